// What this machine can do at best, measured now: a benchmark's figure means nothing without it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/memory.h"
#include "base/thread_team.h"

namespace atl::topology {

// Processor time of the calling thread. The other processes of a busy machine don't count.
double thread_seconds();
// What work of a team is timed with: wall time, as its members wait for each other; of a team of
// one, which works in the calling thread, thread_seconds().
double team_seconds(const ThreadTeam& team);

// Clock of this core, from a chain of dependent additions of one cycle each.
double cycles_per_second();

// FP32 operations per second of the calling thread, in its processor time, on the SIMD target that
// the kernels run on.
double thread_fma_flop_per_second();

// Bytes of the largest cache levels of all processors together (and of one core's second level), as
// the kernel tells them; 64 MiB (512 KiB) where it doesn't.
uint64_t last_level_cache_bytes();
uint64_t l2_cache_bytes();

struct MachineLimit {
  double read_bytes_per_second = 0;  // all members reading memory in order
  double fma_flop_per_second = 0;    // FP32, a fused multiply-add is two
  // Byte products added up in 32 bits, a multiply-add is two; 0 on targets without instructions for
  // that (x86 has maddubs or VNNI).
  double int8_op_per_second = 0;
};

// True if one of the rates of one is more than 10 % below the other's: what was measured between
// the two says nothing about our code.
bool limits_differ(const MachineLimit& a, const MachineLimit& b);

// Measures the limit with the threads of a team, on the SIMD target that the kernels run on. Holds
// the memory that it reads: four times the last-level caches, at least 256 MiB. One thread.
class MachineProbe {
 public:
  // The team is borrowed. LoadError if the memory can't be had.
  explicit MachineProbe(ThreadTeam& team);

  // The best of a few passes of some ten milliseconds each.
  MachineLimit measure();
  size_t read_bytes() const { return buffer_.size(); }

 private:
  double read_pass();
  // Operations per second of all members; `chains` does some, gives their sum away and says how
  // many they were.
  double peak_pass(FunctionRef<double(float*)> chains);

  ThreadTeam& team_;
  HostBuffer buffer_;
};

}  // namespace atl::topology
