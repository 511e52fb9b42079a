// How much memory may still be taken here, as the kernel tells: what a deployment is held against
// before it loads anything. The kernel itself says no only when pages are touched, by ending
// a process.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace atl::topology {

struct MemoryBound {
  // Who shares what is left: all processes that are started together, or each has it for itself.
  enum class Of : uint8_t { kMachine, kProcess };
  Of of = Of::kMachine;
  std::string name;          // "MemAvailable", "memory.max of cgroup /a/b", "ulimit -v"
  uint64_t limit_bytes = 0;  // all that there is: RAM, or the limit
  uint64_t free_bytes = 0;   // of it, what can still be taken
  friend bool operator==(const MemoryBound&, const MemoryBound&) = default;
};

// The contents of a file, "" if it is not there or can't be read.
using ReadFile = std::function<std::string(const std::string& path)>;

// All bounds that /proc and the cgroup file systems name: the machine's own first, then those of
// the process's cgroup and its ancestors (of version 1 and 2; file pages that the kernel gives back
// under pressure count as free), then RLIMIT_AS and RLIMIT_DATA. What is unlimited is left out.
// Pure but for `read`. Sources: proc(5); cgroups(7); the kernel's admin-guide/cgroup-v2.rst,
// "Memory", and admin-guide/cgroup-v1/memory.rst.
std::vector<MemoryBound> memory_bounds(const ReadFile& read);
// Those of this process now.
std::vector<MemoryBound> memory_bounds();

// The one with the least left; nullopt if there is none of that kind.
std::optional<MemoryBound> tightest(const std::vector<MemoryBound>& bounds, MemoryBound::Of of);

}  // namespace atl::topology
