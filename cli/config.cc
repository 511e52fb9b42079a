// atoll config: looks at a cluster file without starting anything.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "base/units.h"
#include "cli/cluster_file_option.h"
#include "cli/commands.h"
#include "cli/output.h"
#include "config/cluster_config.h"
#include "config/describe.h"

namespace atl::cli {
namespace {

struct ConfigOptions {
  ClusterFileOption file;
  bool origin = false, json = false, markdown = false;
};

std::string summary(const config::ClusterConfig& config) {
  std::vector<std::string> nodes;
  for (const config::NodeConfig& node : config.nodes) {
    nodes.push_back(fmt::format("{} at {}", node.name, node.control.text()));
  }
  return fmt::format("{}: good: cluster {}, model {}, {}\n", config.file.filename().string(),
                     config.cluster, config.model.string(),
                     nodes.empty()
                         ? "no nodes: experts in the coordinator's process"
                         : fmt::format("{} nodes: {}", nodes.size(), fmt::join(nodes, ", ")));
}

int check(const ConfigOptions& options) {
  const config::ClusterConfig config = options.file.load();
  const std::vector<std::string> missing = config::not_built(config);
  if (options.json) {
    std::vector<std::string> names;
    for (const config::NodeConfig& node : config.nodes) names.push_back(node.name);
    write_stdout(nlohmann::ordered_json{{"good", missing.empty()},
                                        {"cluster", config.cluster},
                                        {"nodes", names},
                                        {"not_built", missing}}
                     .dump() +
                 "\n");
    return missing.empty() ? 0 : 1;
  }
  config::require_built(config);
  write_stdout(summary(config));
  return 0;
}

int show(const ConfigOptions& options) {
  const config::Settings settings = options.file.settings();
  (void)config::make_cluster_config(settings);  // what is wrong is said here, too
  write_stdout(options.json ? config::show_json(settings, options.origin)
                            : config::show_text(settings, options.origin));
  return 0;
}

CLI::App* add_file_command(CLI::App& group, const char* name, const char* about,
                           ConfigOptions* options) {
  CLI::App* command = group.add_subcommand(name, about);
  command->add_option("FILE", options->file.path, "Cluster file (YAML)")->required()->type_name("");
  options->file.add_set_option(*command);
  return command;
}

}  // namespace

void add_config_command(CLI::App& app, int* exit_code) {
  CLI::App* group =
      app.add_subcommand("config", "Check and show a cluster file: one file for all roles");
  group->require_subcommand(1);
  group->footer(
      "Example:\n  atoll config check deploy/examples/two-sockets.yaml\n"
      "  atoll config show deploy/examples/two-sockets.yaml --origin\n"
      "  atoll config schema > atoll-cluster.schema.json");
  {
    auto options = std::make_shared<ConfigOptions>();
    CLI::App* command = add_file_command(
        *group, "check", "Is the file right, and can all that it asks for be had?", options.get());
    command->add_flag("--json", options->json, "One JSON object in place of text");
    command->footer("Example:\n  atoll config check deploy/examples/two-sockets.yaml");
    command->callback([options, exit_code] { *exit_code = check(*options); });
  }
  {
    auto options = std::make_shared<ConfigOptions>();
    CLI::App* command =
        add_file_command(*group, "show", "All values, defaults included", options.get());
    command->add_flag("--origin", options->origin,
                      "Where each value comes from: file with line, environment, flag or default");
    command->add_flag("--json", options->json, "One JSON object in place of text");
    command
        ->add_option("--name", options->file.node,
                     "As the node of this name sees it: ATOLL_NODE_* are its own")
        ->type_name("NODE");
    command->footer("Example:\n  atoll config show deploy/examples/two-sockets.yaml --origin");
    command->callback([options, exit_code] { *exit_code = show(*options); });
  }
  {
    auto options = std::make_shared<ConfigOptions>();
    CLI::App* command = group->add_subcommand("schema", "The file's JSON Schema, for editors");
    command->add_flag("--markdown", options->markdown,
                      "The table of keys as in docs/cluster.md instead");
    command->footer("Example:\n  atoll config schema > atoll-cluster.schema.json");
    command->callback([options, exit_code] {
      write_stdout(options->markdown ? config::markdown_table() : config::json_schema());
      *exit_code = 0;
    });
  }
}

}  // namespace atl::cli
