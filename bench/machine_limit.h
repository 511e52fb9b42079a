// What one core of this machine can do at best, measured now: a benchmark's figure means nothing
// without it.
#pragma once

#include <string>

namespace atl::bench {

// Processor time of the calling thread. The other processes of a busy machine don't count.
double thread_seconds();

// Bytes per second of one thread reading 128 MiB in order.
double read_bytes_per_second();
// FP32 operations per second (a fused multiply-add is two) of one thread with the named SIMD
// target.
double fma_flop_per_second(const std::string& target);
// Clock of this core, from a chain of dependent additions.
double cycles_per_second();

}  // namespace atl::bench
