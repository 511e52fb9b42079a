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
  std::string coordinator;         // --coordinator: which of several this is about

  bool is_given() const { return !path.empty(); }
  // LoadError, one line.
  config::Settings settings() const;
  config::ClusterConfig load() const;
  // Of a process that is a coordinator or talks to one: LoadError if the file has several and
  // nobody said which.
  config::ClusterConfig load_for_coordinator() const;

  // --set KEY=VALUE; this is borrowed for the life of the program.
  void add_set_option(CLI::App& command);
  // --config FILE and --set; likewise.
  void add_config_option(CLI::App& command);
  // --coordinator NAME; likewise.
  void add_coordinator_option(CLI::App& command);
};

}  // namespace atl::cli
