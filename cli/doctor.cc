// atoll doctor: what is wrong with the machines of a cluster, why it matters, what to do.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "cli/doctor_look.h"
#include "cli/node_looks.h"
#include "cli/output.h"
#include "topology/doctor/checks.h"

namespace atl::cli {
namespace {

using topology::Finding;
using topology::Verdict;

std::string to_text(const std::vector<Finding>& findings, bool all) {
  std::string text;
  int good = 0, unknown = 0, warnings = 0, blockers = 0;
  for (const Finding& finding : findings) {
    good += finding.verdict == Verdict::kOk;
    unknown += finding.verdict == Verdict::kUnknown;
    warnings += finding.verdict == Verdict::kWarning;
    blockers += finding.verdict == Verdict::kBlocker;
    const bool is_wrong =
        finding.verdict == Verdict::kWarning || finding.verdict == Verdict::kBlocker;
    if (!is_wrong && !all) continue;
    text += fmt::format("{:<8} {}: {}\n", topology::to_string(finding.verdict), finding.name,
                        finding.what);
    if (!is_wrong) continue;
    text += fmt::format("         {}\n         fix: {}\n", finding.why, finding.fix);
  }
  return text + fmt::format(
                    "{} checks: {} good, {} not told or not needed, {} warnings, {} "
                    "blockers\n",
                    findings.size(), good, unknown, warnings, blockers);
}

std::string to_json(const std::vector<Finding>& findings) {
  using Json = nlohmann::ordered_json;
  Json checks = Json::array();
  int warnings = 0, blockers = 0;
  for (const Finding& finding : findings) {
    warnings += finding.verdict == Verdict::kWarning;
    blockers += finding.verdict == Verdict::kBlocker;
    checks.push_back({{"name", finding.name},
                      {"verdict", topology::to_string(finding.verdict)},
                      {"what", finding.what},
                      {"why", finding.why},
                      {"fix", finding.fix}});
  }
  const Json json = {
      {"ok", blockers == 0}, {"blockers", blockers}, {"warnings", warnings}, {"checks", checks}};
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace

void add_doctor_command(CLI::App& app, int* exit_code) {
  auto options = std::make_shared<DoctorOptions>();
  CLI::App* command = app.add_subcommand(
      "doctor", "What is wrong with this machine, why it matters, and the command that fixes it");
  command
      ->add_option("FILE", options->file.path,
                   "Cluster file (YAML): also its ports, directories, keys and what it says of "
                   "this machine")
      ->type_name("");
  options->file.add_set_option(*command);
  command
      ->add_option("--name", options->file.node,
                   "This machine is the node of this name; the coordinator's unless given")
      ->type_name("NODE");
  command->add_flag("--running", options->running,
                    "Atoll runs here already and has its ports: they are not tried; off unless "
                    "given");
  command
      ->add_option("--probe-cache", options->probe_cache,
                   "File that keeps this machine's figures, as of `atoll probe --cache`")
      ->type_name("FILE");
  command->add_flag("--here", options->here,
                    "This machine alone: no node is asked; off unless given");
  command->add_flag("--all", options->all, "Also what is good; off unless given");
  command->add_flag("--json", options->json, "One JSON object in place of text; off unless given");
  command->footer(
      "Exit code 1: there are blockers; warnings alone are 0. It looks at the machine that it runs "
      "on and, with\na file, asks every node of it that runs, over its control address; what they "
      "find is told with the\nnode's name in front.\n\nExample:\n  atoll doctor cluster.yaml\n"
      "  atoll doctor cluster.yaml --name n1      # there, as that node");
  command->callback([options, exit_code] {
    std::vector<Finding> findings = examine_here(*options);
    if (options->file.is_given() && options->file.node.empty() && !options->here) {
      const auto asked = findings_of_nodes(options->file);
      findings.insert(findings.end(), asked.begin(), asked.end());
    }
    write_stdout(options->json ? to_json(findings) : to_text(findings, options->all));
    *exit_code = topology::has_blockers(findings) ? 1 : 0;
  });
}

}  // namespace atl::cli
