// What this machine has, as far as this process may use it: cores, NUMA domains, caches, devices.
//
// A Machine is a plain value that hwloc fills in once; what is planned with it (thread_plan.h) is a
// pure function, so that machines nobody has here are planned in tests.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace atl::topology {

// A physical core. Of its hardware threads the first allowed one is used: two on one core share its
// units and caches, which kernels fill alone.
struct Core {
  int cpu = 0;          // the kernel's number of that hardware thread
  int num_cpus = 1;     // hardware threads of this core that the process may use
  int package = 0;      // socket, from 0
  int numa_node = 0;    // the kernel's number, as `numactl` counts
  int cache_group = 0;  // cores with the same number share a last-level cache
  friend bool operator==(const Core&, const Core&) = default;
};

struct NumaNode {
  int id = 0;  // the kernel's number
  // As the kernel tells now. Guests whose memory grows tell too little: a ratio between domains,
  // not a size to plan with.
  uint64_t memory_bytes = 0;
  int num_cores = 0;  // 0: memory only (HBM, CXL), or cores that the process may not use
  friend bool operator==(const NumaNode&, const NumaNode&) = default;
};

// All data and unified caches of one level and size.
struct CacheLevel {
  int level = 0;
  uint64_t bytes = 0;  // of one
  int count = 0;
  friend bool operator==(const CacheLevel&, const CacheLevel&) = default;
};

struct Device {
  enum class Kind { kDisk, kNetwork, kRdma, kGpu };
  Kind kind = Kind::kDisk;
  std::string name;    // "nvme0n1", "eth0", "mlx5_0", "cuda0"
  int numa_node = -1;  // the kernel's number; -1: near none in particular
  std::string model;   // as the device tells; may be empty
  friend bool operator==(const Device&, const Device&) = default;
};
std::string_view to_string(Device::Kind kind);

struct Machine {
  std::vector<Core> cores;  // domain by domain, in it neighbours together
  std::vector<NumaNode> numa_nodes;
  std::vector<CacheLevel> caches;  // ascending levels
  std::vector<Device> devices;
  int num_packages = 1;
  // The cgroup's CPU quota is below the cores: they are shared with others, whoever they are.
  bool has_quota = false;
  int usable_cores = 1;  // min(cores, quota), at least 1: how many threads can really run
  bool is_this_system = true;

  const NumaNode* find_numa_node(int id) const;  // nullptr if there is none
};

// Looking for devices takes some ten milliseconds, the rest one.
enum class Devices { kLeaveOut, kFind };

// This machine, restricted to the calling thread's CPU mask and the process's cgroup. Call before
// threads are pinned. Where hwloc can't tell, a machine of one domain with the cores of the mask;
// where hwloc's environment variables describe another machine, that one.
Machine this_machine(Devices devices = Devices::kLeaveOut);

// hwloc's own descriptions, such as "package:2 numa:2 core:4 pu:2", or an XML of `lstopo`.
// LoadError names the text or file that hwloc doesn't take.
//   allowed_cpus  kernel numbers that the process may use; empty: all
Machine machine_from_synthetic(const std::string& description,
                               const std::vector<int>& allowed_cpus = {});
Machine machine_from_xml(const std::string& path, const std::vector<int>& allowed_cpus = {});

// Moves this thread, and with it all threads that it starts later, to the cores of one domain and
// has the kernel take their memory from it and from nowhere else. Called first thing in main's
// thread, before memory is touched. The error says what the kernel refused: kUnavailable if cores
// or memory are not bound (containers often forbid the latter); kInvalid if there is no such domain
// or it has no core.
Status bind_to_numa_node(int id);

}  // namespace atl::topology
