// All that the doctor looks at, gathered once: a plain value, so that any fault can be planted in
// a test. What the system doesn't tell is unset and isn't judged.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "topology/device_facts.h"
#include "topology/memory_bounds.h"

namespace atl::topology {

// A directory that a process here reads its model from.
struct DirectoryFacts {
  std::string path;
  bool is_there = true;
  std::optional<bool> takes_o_direct;  // unset: it has no file to try with
  std::optional<uint64_t> free_bytes;
  bool rotates = false;
};

// An address that a process here is to listen on.
struct PortFacts {
  std::string who, address;
  std::string error;  // of trying to; "": it can
};

// A file or directory with keys, and who may read it.
struct SecretFacts {
  std::string path;
  bool is_there = true;
  uint32_t mode = 0600;  // permission bits
};

struct Snapshot {
  // Of this process, soft limits; UINT64_MAX: unlimited.
  std::optional<uint64_t> memlock_bytes, open_files, stack_bytes;
  std::string thp_enabled, thp_defrag;  // as sysfs has them: "always [madvise] never"
  std::optional<int> numa_balancing, zone_reclaim, swappiness, overcommit;
  std::optional<int64_t> max_map_count, tcp_rmem_max, tcp_wmem_max, pids_max;
  std::string governor, clocksource, smt_active;
  int numa_nodes = 1, cores = 1, cpus = 1;  // cores that can be used, all processors
  bool has_cpu_quota = false;
  int usable_cores = 1;
  std::optional<uint64_t> swap_used_bytes, memory_bytes, shm_free_bytes;
  std::optional<double> load;  // of the last minute
  std::optional<bool> clock_is_synchronized;
  std::string kernel;          // "6.1.0-18-amd64"
  std::string simd;            // the best target of the kernels: "AVX3"
  std::string io_uring_error;  // "": a ring can be made
  std::vector<MemoryBound> bounds;
  std::vector<NicFacts> nics;
  bool has_other_machines = false;  // nodes or coordinator elsewhere: the network counts
  std::vector<DirectoryFacts> directories;
  std::vector<PortFacts> ports;
  std::vector<SecretFacts> secrets;
  // Measured by `atoll probe` and kept; as the file describes this machine; 0: not known.
  double read_bytes_per_second = 0, described_read = 0;
  double drive_bytes_per_second = 0, described_drive = 0;
  double described_nic = 0;
  int described_cores = 0;
  std::string gpu_wanted, gpu_error;  // coordinator.device, and why it can't be had
};

// The system's part: limits, /proc, /sys, clock. Pure but for `read` and `list` (files below /proc
// and /sys); read_system_limits() adds what has system calls of its own.
void read_system(const ReadFile& read, const ListNames& list, Snapshot* snapshot);
void read_system_limits(Snapshot* snapshot);

}  // namespace atl::topology
