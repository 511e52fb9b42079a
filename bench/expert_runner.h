// Random experts in memory and rows through them, for benchmarks: what an expert node computes with
// (expert_node/tile_phases.h), without checkpoint, wire or coordinator.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/memory.h"
#include "base/thread_team.h"
#include "expert_node/tile_phases.h"
#include "kernels/tile.h"

namespace atl::bench {

// A weight format and what is done with the rows: "fp8", "bf16", "f32", "int4", and "int4-i8"
// and "int8-i8", in which rows are rounded to int8.
struct KernelFormat {
  kernels::WeightFormat weights = kernels::WeightFormat::kFp8E4m3;
  kernels::Activations activations = kernels::Activations::kF32;
};
inline constexpr std::string_view kKernelFormats[] = {"fp8",  "bf16",    "f32",
                                                      "int4", "int4-i8", "int8-i8"};
std::optional<KernelFormat> parse_kernel_format(std::string_view name);

// Sizes of an expert, or of its first tiles.
struct ExpertShape {
  KernelFormat format;
  int64_t hidden = 0;
  std::vector<kernels::TileLayout> tiles;  // all but the last have the same size

  int64_t weights() const;
  // What the kernels read: codes and scales, without the padding between tiles.
  uint64_t weight_bytes() const;
  uint64_t extent_bytes() const;
};
ExpertShape expert_shape(KernelFormat format, int64_t hidden, int64_t intermediate);
// One tile of the regular width whose hidden size is cut until it fills half of a core's second
// level, so that rows and sums stay there, too.
ExpertShape l2_shape(KernelFormat format);

// Experts as a node holds them, tile after tile, with random codes and small scales: the rows'
// results are finite.
class ExpertMemory {
 public:
  // Filled by the team. LoadError if the memory can't be had.
  ExpertMemory(ThreadTeam& team, ExpertShape shape, int64_t num_experts);

  const ExpertShape& shape() const { return shape_; }
  int64_t num_experts() const { return num_experts_; }
  kernels::TileView tile(int64_t expert, size_t tile) const {
    return {&shape_.tiles[tile], buffer_.data() + offset(expert, tile)};
  }

 private:
  uint64_t offset(int64_t expert, size_t tile) const {
    return static_cast<uint64_t>(expert) * shape_.extent_bytes() + tile * shape_.tiles[0].bytes;
  }
  void fill(int64_t expert, size_t tile);

  ExpertShape shape_;
  int64_t num_experts_;
  HostBuffer buffer_;
};

// Some rows that go through whole experts, as many in one step as a token of DeepSeek-V3 chooses:
// gate, up, SiLU; then down and the integer sum.
class ExpertRunner {
 public:
  // Team and memory are borrowed and must outlive the runner.
  ExpertRunner(ThreadTeam& team, const ExpertMemory& memory, int64_t num_rows);

  // Seconds (topology::team_seconds()) for `count` experts in turn, beginning after the last one of
  // the call before.
  double time(int64_t count);
  // Runs them without looking at the clock.
  void run(int64_t count);
  // How many experts take `seconds` or a little more, whole steps of them.
  int64_t experts_for(double seconds);
  double weights_of(int64_t count) const;

 private:
  int64_t experts_per_step() const;
  void run_step(int64_t num_experts);

  ThreadTeam& team_;
  const ExpertMemory& memory_;
  expert_node::TilePhases phases_;
  std::vector<float> x_;              // [rows, hidden]
  std::vector<int64_t> sums_;         // [rows, hidden]
  std::vector<float> weights_;        // [experts of a step][rows]
  std::vector<const float*> x_rows_;  // likewise
  std::vector<int64_t*> sum_rows_;    // likewise
  const size_t num_rows_;
  std::vector<expert_node::TileWork> works_;
  int64_t next_ = 0;
};

}  // namespace atl::bench
