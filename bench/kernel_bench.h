// Whole experts out of memory, beside the machine's read rate and FMA peak: `atoll bench kernels`.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "bench/repeats.h"
#include "topology/thread_plan.h"

namespace atl::bench {

// Enough operations per weight that no format is bound by memory.
inline constexpr int64_t kKernelScalingRows = 16;
struct KernelBenchOptions {
  std::vector<std::string> formats{"fp8", "bf16"};
  std::vector<int64_t> rows{1, 2, 4, 8, 16, 64, 256};
  std::vector<std::string> targets;  // empty: the best
  bool scaling = false;
  int threads = 0;  // 0: all usable cores
  topology::PinMode pin = topology::PinMode::kAuto;
  int64_t hidden = 7168;
  int64_t intermediate = 2048;
  int64_t experts_in_ram = 0;  // 0: 512 MiB, or four times the caches if that is more
  RepeatOptions repeats;
  bool json = false;
};

// A format, a SIMD target and a number of rows. A value of each counted repeat, or of each void one
// where none counted.
struct KernelCase {
  std::string format, target;
  int64_t rows = 0;
  std::vector<double> bytes_per_second, of_read;
  std::vector<double> op_per_second, peak_op_per_second, of_peak;
  std::vector<double> of_bound;
  double cycles_per_weight_l2 = 0;
  double clock = 0;     // Hz
  double core_fma = 0;  // operations per second of one core, in its processor time
  RepeatsDone repeats;
};

// How much more all threads do than one, where memory is not the limit.
struct ScalingCase {
  std::string format, target;
  std::vector<double> own;      // each on a tile of its own in its L2, 1 row
  std::vector<double> team;     // all on one expert, kKernelScalingRows rows
  std::vector<double> machine;  // FMA peak: what more there is to have
  RepeatsDone repeats;
};

struct TargetLimit {
  std::string target;
  std::vector<double> read, fma, int8;  // of all repeats
};

struct KernelReport {
  topology::TeamPlan threads;
  uint64_t probe_bytes = 0;
  std::vector<TargetLimit> limits;
  std::vector<KernelCase> cases;
  std::vector<ScalingCase> scaling;

  TargetLimit& limit(const std::string& target) {
    for (TargetLimit& known : limits) {
      if (known.target == target) return known;
    }
    return limits.emplace_back(TargetLimit{target, {}, {}, {}});
  }
};

// LoadError if the memory of the experts can't be had.
KernelReport measure_kernels(const KernelBenchOptions& options);

}  // namespace atl::bench
