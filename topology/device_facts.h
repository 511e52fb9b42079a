// Network devices and drives as the kernel tells them in sysfs.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "topology/memory_bounds.h"

namespace atl::topology {

struct NicFacts {
  std::string name;
  double bytes_per_second = 0;  // 0: the kernel doesn't know (a guest's)
  int mtu = 0;
  int numa_node = -1;  // -1: near none in particular
  bool is_up = false;
  friend bool operator==(const NicFacts&, const NicFacts&) = default;
};

struct DriveFacts {
  std::string name, model;
  uint64_t bytes = 0;
  int numa_node = -1;
  bool rotates = false;
  friend bool operator==(const DriveFacts&, const DriveFacts&) = default;
};

// Names in a directory, sorted; empty if there is none.
using ListNames = std::function<std::vector<std::string>(const std::string& path)>;

// Without loopback. Pure but for `read` and `list`. Source: the kernel's
// Documentation/ABI/testing/sysfs-class-net and stable/sysfs-block.
std::vector<NicFacts> nic_facts(const ReadFile& read, const ListNames& list);
// Whole drives, without loop, RAM and optical ones.
std::vector<DriveFacts> drive_facts(const ReadFile& read, const ListNames& list);

// Of this machine.
std::string read_system_file(const std::string& path);
std::vector<std::string> list_system_names(const std::string& path);

}  // namespace atl::topology
