// What the doctor finds on the machine that it runs on.
#pragma once

#include <filesystem>
#include <vector>

#include "cli/cluster_file_option.h"
#include "topology/doctor/checks.h"

namespace atl::cli {

struct DoctorOptions {
  ClusterFileOption file;
  std::filesystem::path probe_cache;
  bool running = false;  // Atoll runs here and has its ports: they are not tried
  bool json = false, all = false, here = false;
};

// Takes a few milliseconds. LoadError: the cluster file is wrong.
std::vector<topology::Finding> examine_here(const DoctorOptions& options);

}  // namespace atl::cli
