#include "cli/cluster_file_option.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>

#include "base/result.h"

namespace atl::cli {

config::Settings ClusterFileOption::settings() const {
  config::Overrides overrides;
  overrides.flags = flags;
  overrides.environment = config::Overrides::from_environment();
  overrides.node = node;
  return config::Settings::read(path, overrides);
}

config::ClusterConfig ClusterFileOption::load() const {
  return config::make_cluster_config(settings(), config::Purpose::kServe, coordinator);
}

config::ClusterConfig ClusterFileOption::load_for_coordinator() const {
  config::ClusterConfig config = load();
  if (coordinator.empty() && config.coordinator_names.size() > 1) {
    throw LoadError(fmt::format("{} has {} coordinators: expected --coordinator with one of {}",
                                path.filename().string(), config.coordinator_names.size(),
                                fmt::join(config.coordinator_names, ", ")));
  }
  return config;
}

void ClusterFileOption::add_coordinator_option(CLI::App& command) {
  command
      .add_option("--coordinator", coordinator,
                  "Which of the cluster file's `coordinators`, if it has several")
      ->type_name("NAME");
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
