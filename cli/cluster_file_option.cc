#include "cli/cluster_file_option.h"

#include <CLI/CLI.hpp>

namespace atl::cli {

config::Settings ClusterFileOption::settings() const {
  config::Overrides overrides;
  overrides.flags = flags;
  overrides.environment = config::Overrides::from_environment();
  overrides.node = node;
  return config::Settings::read(path, overrides);
}

void ClusterFileOption::add_set_option(CLI::App& command) {
  command
      .add_option("--set", flags,
                  "A value in place of the file's, such as coordinator.chunk=256 or "
                  "nodes.n1.ram=24GiB; several times")
      ->allow_extra_args(false)
      ->type_name("KEY=VALUE");
}

void ClusterFileOption::add_config_option(CLI::App& command) {
  command
      .add_option("--config", path,
                  "Cluster file (YAML): model, numerics, coordinator and nodes from there")
      ->type_name("FILE");
  add_set_option(command);
}

}  // namespace atl::cli
