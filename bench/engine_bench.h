// Whole steps of the engine beside what this machine could do with the same bytes and operations:
// `atoll bench decode` and `atoll bench prefill`. docs/benchmarks.md explains the figures.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "bench/repeats.h"
#include "deployment/deployment.h"

namespace atl::bench {

struct EngineBenchOptions {
  deployment::DeploymentOptions deployment;
  std::vector<int64_t> rows{1, 2, 4, 8, 16};  // decode
  std::vector<int64_t> contexts{128};         // decode: tokens in each cache before
  int64_t steps = 8;                          // decode: of one repeat
  int64_t tokens = 512;                       // prefill
  uint64_t seed = 1;
  RepeatOptions repeats;
  double disk_gb_per_second = 0;  // of the cold tier's bound; 0: the packs' drives are measured
  bool cold_start = false;
  bool json = false;
};

// The parts of a step; the first details are of attention, and together they are its time.
enum EnginePart {
  kAttention,
  kProjections,
  kAbsorbed,
  kCore,
  kRouter,
  kHandOff,
  kShared,
  kExperts,
  kDense,
  kHead,
  kPrefetch,
  kOthers,
  kNumEngineParts
};
constexpr bool is_detail(size_t part) { return part >= kProjections && part <= kCore; }

// A number of rows (decode) or the whole prompt (prefill). A value of each counted repeat, or of
// each void one where none counted.
struct EngineCase {
  int64_t rows = 0;
  int64_t context = 0;  // decode
  std::vector<double> tokens_per_second, seconds_per_step, floor_per_step;
  struct PartFigures {
    std::vector<double> seconds, floor;  // per step
    std::vector<double> of_floor;        // empty if nothing has to be read or computed
    const char* bound = "none";
  };
  std::array<PartFigures, kNumEngineParts> parts;
  std::vector<double> expert_bytes_per_step, expert_bytes_per_second, experts_of_read;
  std::vector<double> of_floor;
  // With a cold tier: per step, of all nodes.
  struct Cold {
    std::vector<double> disk_bytes, resident_bytes, coordinator_seconds, bound_seconds, of_bound;
  } cold;
  RepeatsDone repeats;
};

struct EngineReport {
  std::vector<double> read, fma, int8;  // of all repeats
  double disk_bytes_per_second = 0;     // 0: no cold tier
  std::vector<EngineCase> cases;
};

// Both open the model and measure until enough repeats count; LoadError where it can't be opened,
// asks for more positions than it has, or an expert node is lost.
EngineReport measure_decode(const EngineBenchOptions& options);
EngineReport measure_prefill(const EngineBenchOptions& options);

}  // namespace atl::bench
