// The command line of `atoll node` for a child process.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "deployment/memory_options.h"
#include "model/numerics_profile.h"
#include "topology/thread_plan.h"
#include "transport/data/transport.h"

namespace atl::deployment {

struct NodeArguments {
  std::filesystem::path model_dir;
  std::string name;
  topology::TeamPlan threads;
  bool spin = false;
  transport::TransportKind transport = transport::TransportKind::kAuto;
  model::NumericsProfile numerics;
  MemoryOptions memory;  // of this node
  int64_t rows_max = 512;
  bool mtp = false;
};

// What comes after the program; log level as here.
std::vector<std::string> arguments_of_node(const NodeArguments& node);

std::string_view to_string(transport::TransportKind kind);

}  // namespace atl::deployment
