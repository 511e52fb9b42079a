// The options of commands that read a cluster file: which one, and what is stronger than it.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "config/cluster_config.h"

namespace CLI {
class App;
}

namespace atl::cli {

struct ClusterFileOption {
  std::filesystem::path path;      // "": none was given
  std::vector<std::string> flags;  // --set
  std::string node;                // whom ATOLL_NODE_* are about

  bool is_given() const { return !path.empty(); }
  // LoadError, one line.
  config::Settings settings() const;
  config::ClusterConfig load() const { return config::make_cluster_config(settings()); }

  // --set KEY=VALUE; this is borrowed for the life of the program.
  void add_set_option(CLI::App& command);
  // --config FILE and --set; likewise.
  void add_config_option(CLI::App& command);
};

}  // namespace atl::cli
