// atoll keys: an authority and certificates for the members of a cluster.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/result.h"
#include "cli/cluster_file_option.h"
#include "cli/commands.h"
#include "cli/output.h"
#include "transport/tls/make_keys.h"
#include "transport/tls/tls_keys.h"

namespace atl::cli {
namespace {

using transport::MadeKeys;
using transport::MakeKeysOptions;

struct KeysOptions {
  ClusterFileOption cluster_file;
  MakeKeysOptions make;
  bool json = false;
};

// Names that the cluster file has, where the command line says nothing.
void take_cluster_file(const CLI::App& command, KeysOptions* options) {
  const bool has_nodes = command.count("--nodes") > 0;
  if (!options->cluster_file.is_given()) {
    if (!has_nodes) throw CLI::RequiredError("a cluster file, or --nodes,");
    return;
  }
  if (has_nodes) throw CLI::ExcludesError("--nodes", "a cluster file");
  const config::ClusterConfig config = options->cluster_file.load();
  for (const config::NodeConfig& node : config.nodes) options->make.nodes.push_back(node.name);
  if (command.count("--coordinators") == 0) options->make.coordinators = config.coordinator_names;
  if (config.nodes.empty())
    throw LoadError(fmt::format("{}: the file has no nodes, so nobody to make certificates for",
                                config.file.filename().string()));
}

std::vector<std::string> names_of(const std::vector<std::filesystem::path>& files) {
  std::vector<std::string> names;
  for (const auto& file : files) names.push_back(file.filename().string());
  return names;
}

std::string report(const MakeKeysOptions& options, const MadeKeys& keys) {
  const auto list = [](const std::vector<std::filesystem::path>& files) {
    return files.empty() ? "nothing" : fmt::format("{}", fmt::join(names_of(files), " "));
  };
  std::string text = fmt::format("made in {}: {}\n", options.dir.string(), list(keys.made));
  if (!keys.kept.empty()) text += fmt::format("kept as they were: {}\n", list(keys.kept));
  text += "Copy to the folder of keys (mode 0700) on each machine, and nothing else:\n";
  const auto tell = [&text](const std::vector<std::string>& names, const char* what) {
    for (const std::string& name : names)
      text += fmt::format("  {} {}: ca.pem {}.pem {}.key\n", what, name, name, name);
  };
  tell(options.nodes, "node");
  tell(options.coordinators, "coordinator");
  text +=
      "Keep ca.key where no member of the cluster can read it: whoever has it can make itself "
      "one.\n"
      "It is needed again only to add members and to renew certificates.\n";
  return text;
}

std::string to_json(const MakeKeysOptions& options, const MadeKeys& keys) {
  const nlohmann::ordered_json json = {{"dir", options.dir.string()},
                                       {"made", names_of(keys.made)},
                                       {"kept", names_of(keys.kept)},
                                       {"nodes", options.nodes},
                                       {"coordinators", options.coordinators}};
  return json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

}  // namespace

void add_keys_command(CLI::App& app, int* exit_code) {
  auto options = std::make_shared<KeysOptions>();
  options->make.coordinators = transport::kCoordinatorNames;
  CLI::App* command = app.add_subcommand(
      "keys", "Certificates for the members of a cluster, by which they know each other");
  command
      ->add_option("FILE", options->cluster_file.path, "Cluster file (YAML) that names the nodes")
      ->type_name("");
  command
      ->add_option("--nodes", options->make.nodes,
                   "Names of the nodes in place of a file, as --name of 'atoll node' has them")
      ->delimiter(',')
      ->type_name("NAME,NAME,...");
  command->add_option("--coordinators", options->make.coordinators, "Names of the coordinators")
      ->delimiter(',')
      ->type_name("NAME,NAME,...")
      ->capture_default_str();
  command
      ->add_option("--out", options->make.dir,
                   "Folder for the files; made if it is not there. What it holds is never "
                   "overwritten: a second call adds what is missing")
      ->required()
      ->type_name("DIR");
  command
      ->add_option("--days", options->make.days,
                   "Days for which the certificates hold (the authority's own: 10 years, or that "
                   "many)")
      ->check(CLI::Range(1, 36500))
      ->capture_default_str();
  command->add_flag("--json", options->json, "One JSON object in place of the text");
  command->footer(
      "Example:\n  atoll keys cluster.yaml --out keys\n"
      "  atoll keys --nodes n1,n2,n3 --out keys\n"
      "\nMakes ca.pem and ca.key (the authority) and NAME.pem and NAME.key for each member; "
      "private "
      "keys\nhave mode 0600. Certificates of your own do, too: docs/security.md.");
  command->callback([options, exit_code, command] {
    take_cluster_file(*command, options.get());
    const MadeKeys keys = transport::make_keys(options->make);
    write_stdout(options->json ? to_json(options->make, keys) : report(options->make, keys));
    *exit_code = 0;
  });
}

}  // namespace atl::cli
