// atoll probe: what this machine is, and what it does.
#include <CLI/CLI.hpp>
#include <memory>
#include <string>

#include "cli/commands.h"
#include "cli/machine_probe.h"
#include "cli/node_looks.h"
#include "cli/output.h"

namespace atl::cli {
namespace {

struct ProbeCommand {
  ProbeOptions probe;
  std::string describe;
  ClusterFileOption cluster;
  bool json = false;
};

}  // namespace

void add_probe_command(CLI::App& app, int* exit_code) {
  auto options = std::make_shared<ProbeCommand>();
  CLI::App* command = app.add_subcommand(
      "probe", "Cores, memory, network, drives and GPUs of this machine, and their measured rates");
  command
      ->add_option("--drive", options->probe.drive_dir,
                   "Directory whose drive is measured too, with a file of 1 GiB that is gone "
                   "afterwards; unless given, none")
      ->check(CLI::ExistingDirectory)
      ->type_name("DIR");
  command->add_flag("--remeasure", options->probe.remeasure,
                    "Measure although this machine's figures are kept; off unless given");
  command
      ->add_option("--cache", options->probe.cache_file,
                   "File that keeps the figures; unless given, probe.json in the user's cache "
                   "directory")
      ->type_name("FILE");
  CLI::Option* json = command->add_flag("--json", options->json,
                                        "One JSON object in place of text; off unless given");
  command
      ->add_option("--describe", options->describe,
                   "The machine as a node of this name for `atoll plan --describe`, in YAML")
      ->excludes(json)
      ->type_name("NAME");
  command->footer(
      "Measuring takes about half a minute of all cores, once for each machine and kernel.\n\n"
      "Example:\n  atoll probe --drive /nvme0\n  atoll probe --describe n1 > n1.yaml");
  command
      ->add_option("--nodes-of", options->cluster.path,
                   "Cluster file: what its nodes tell of their machines, as JSON, in place of this "
                   "one; nothing is measured there")
      ->check(CLI::ExistingFile)
      ->type_name("FILE");
  command->callback([options, exit_code] {
    if (options->cluster.is_given()) {
      write_stdout(probes_of_nodes(options->cluster));
      *exit_code = 0;
      return;
    }
    const MachineFacts facts = probe_machine(options->probe);
    write_stdout(options->json                ? probe_json(facts)
                 : !options->describe.empty() ? probe_yaml(facts, options->describe)
                                              : probe_text(facts));
    *exit_code = 0;
  });
}

}  // namespace atl::cli
