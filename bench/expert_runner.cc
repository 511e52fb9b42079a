#include "bench/expert_runner.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "base/units.h"
#include "topology/machine_limit.h"

namespace atl::bench {
namespace {

using kernels::Activations;
using kernels::PanelShape;
using kernels::TileLayout;
using kernels::WeightFormat;

constexpr float kScale = 0.01f;
constexpr int64_t kExpertsPerStep = 8;

// Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014 (splitmix64).
uint64_t mix(uint64_t value) {
  value += 0x9e3779b97f4a7c15u;
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9u;
  value = (value ^ (value >> 27)) * 0x94d049bb133111ebu;
  return value ^ (value >> 31);
}

// Bits of a code that are random and those that are set: magnitudes below 2; BF16 and F32 from 2^-7
// on, as subnormals would cost what real weights don't.
struct CodeBits {
  uint64_t random, set;
};
CodeBits bits_of_codes(WeightFormat format) {
  switch (format) {
    case WeightFormat::kFp8E4m3:
      return {0xb7b7b7b7b7b7b7b7u, 0};
    case WeightFormat::kBf16:
      return {0x83ff83ff83ff83ffu, 0x3c003c003c003c00u};
    case WeightFormat::kF32:
      return {0x83ffffff83ffffffu, 0x3c0000003c000000u};
    case WeightFormat::kF16:
      return {0x83ff83ff83ff83ffu, 0x3c003c003c003c00u};
    case WeightFormat::kInt4:
    case WeightFormat::kInt8:
      return {~uint64_t{0}, 0};
  }
  return {};
}

// Sets the scales that int4 has among its codes (kernels/int4.h).
void set_int4_scales(const PanelShape& shape, std::byte* codes) {
  uint16_t scales[kernels::kPanelWidth];
  std::fill(std::begin(scales), std::end(scales), kernels::float_to_bf16(kScale));
  for (int64_t panel = 0; panel < shape.num_panels(); ++panel) {
    std::byte* begin = codes + static_cast<size_t>(panel) * shape.panel_code_bytes();
    kernels::for_each_int4_group(shape.k, shape.k_offset, [&](const kernels::Int4Group& group) {
      std::memcpy(begin + group.scales, scales, sizeof(scales));
    });
  }
}

// Likewise those of int8 (kernels/int8.h).
void set_int8_scales(const PanelShape& shape, std::byte* codes) {
  float scales[kernels::kPanelWidth];
  std::fill(std::begin(scales), std::end(scales), kScale / 16);
  for (int64_t panel = 0; panel < shape.num_panels(); ++panel) {
    std::byte* begin = codes + static_cast<size_t>(panel) * shape.panel_code_bytes();
    kernels::for_each_int8_block(shape.k, shape.k_offset, [&](const kernels::Int8Block& block) {
      std::memcpy(begin + block.scales, scales, sizeof(scales));
    });
  }
}

}  // namespace

std::optional<KernelFormat> parse_kernel_format(std::string_view name) {
  if (name == "int4-i8") return KernelFormat{WeightFormat::kInt4, Activations::kI8};
  if (name == "int8-i8") return KernelFormat{WeightFormat::kInt8, Activations::kI8};
  if (name == "int8") return std::nullopt;  // takes rounded rows alone
  const std::optional<WeightFormat> weights = kernels::parse_weight_format(name);
  if (!weights) return std::nullopt;
  return KernelFormat{*weights, Activations::kF32};
}

int64_t ExpertShape::weights() const {
  int64_t columns = 0;
  for (const TileLayout& tile : tiles) columns += tile.width;
  return 3 * hidden * columns;
}

uint64_t ExpertShape::weight_bytes() const {
  uint64_t bytes = 0;
  for (const TileLayout& tile : tiles) {
    bytes += 2 * (tile.gate_up.total_code_bytes() + tile.gate_up.total_scale_bytes()) +
             tile.down.total_code_bytes() + tile.down.total_scale_bytes();
  }
  return bytes;
}

uint64_t ExpertShape::extent_bytes() const {
  uint64_t bytes = 0;
  for (const TileLayout& tile : tiles) bytes += tile.bytes;
  return bytes;
}

ExpertShape expert_shape(KernelFormat format, int64_t hidden, int64_t intermediate) {
  ExpertShape shape{format, hidden, {}};
  for (int tile = 0; tile < kernels::num_tiles(intermediate); ++tile) {
    shape.tiles.push_back(
        kernels::tile_layout(format.weights, hidden, intermediate, tile, format.activations));
  }
  return shape;
}

ExpertShape l2_shape(KernelFormat format) {
  constexpr int64_t kWidth = 128;
  const uint64_t column_bits = 3 * kWidth * kernels::code_bits(format.weights);
  const auto fitting = static_cast<int64_t>(topology::l2_cache_bytes() / 2 * 8 / column_bits);
  const int64_t hidden = std::max<int64_t>(kWidth, fitting / kWidth * kWidth);
  return {format,
          hidden,
          {kernels::tile_layout(format.weights, hidden, 4 * kWidth, 0, format.activations)}};
}

ExpertMemory::ExpertMemory(ThreadTeam& team, ExpertShape shape, int64_t num_experts)
    : shape_(std::move(shape)),
      num_experts_(num_experts),
      buffer_(shape_.extent_bytes() * static_cast<uint64_t>(num_experts)) {
  const auto num_tiles = static_cast<int64_t>(shape_.tiles.size());
  team.parallel_for(num_experts * num_tiles, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) fill(i / num_tiles, i % num_tiles);
  });
}

void ExpertMemory::fill(int64_t expert, size_t tile) {
  const TileLayout& layout = shape_.tiles[tile];
  std::byte* data = buffer_.data() + offset(expert, tile);
  auto* words = reinterpret_cast<uint64_t*>(data);
  const CodeBits bits = bits_of_codes(shape_.format.weights);
  const uint64_t first = offset(expert, tile) / sizeof(uint64_t);
  for (size_t i = 0; i < layout.bytes / sizeof(uint64_t); ++i) {
    words[i] = (mix(first + i) & bits.random) | bits.set;
  }
  if (shape_.format.weights == WeightFormat::kInt4) {
    set_int4_scales(layout.gate_up, data + layout.gate_codes);
    set_int4_scales(layout.gate_up, data + layout.up_codes);
    set_int4_scales(layout.down, data + layout.down_codes);
  } else if (shape_.format.weights == WeightFormat::kInt8) {
    set_int8_scales(layout.gate_up, data + layout.gate_codes);
    set_int8_scales(layout.gate_up, data + layout.up_codes);
    set_int8_scales(layout.down, data + layout.down_codes);
  } else if (layout.gate_up.total_scale_bytes() > 0) {
    // Scales are all that follows the codes.
    auto* scales = reinterpret_cast<float*>(data + layout.gate_scales);
    std::fill(scales, reinterpret_cast<float*>(data + layout.bytes), kScale);
  }
}

ExpertRunner::ExpertRunner(ThreadTeam& team, const ExpertMemory& memory, int64_t num_rows)
    : team_(team), memory_(memory), phases_(team), num_rows_(static_cast<size_t>(num_rows)) {
  const int64_t hidden = memory.shape().hidden;
  x_.resize(num_rows * hidden);
  for (size_t i = 0; i < x_.size(); ++i) {
    x_[i] = static_cast<float>(static_cast<int64_t>(mix(i) % 2001) - 1000) * 1e-3f;
  }
  sums_.assign(num_rows * hidden, 0);
  weights_.assign(experts_per_step() * num_rows, 0.125f);
  for (int64_t pair = 0; pair < experts_per_step() * num_rows; ++pair) {
    x_rows_.push_back(&x_[pair % num_rows * hidden]);
    sum_rows_.push_back(&sums_[pair % num_rows * hidden]);
  }
}

int64_t ExpertRunner::experts_per_step() const {
  return std::min(kExpertsPerStep, memory_.num_experts());
}

void ExpertRunner::run_step(int64_t num_experts) {
  works_.clear();
  for (int64_t i = 0; i < num_experts; ++i) {
    const size_t pair = static_cast<size_t>(i) * num_rows_;
    for (size_t tile = 0; tile < memory_.shape().tiles.size(); ++tile) {
      works_.push_back({memory_.tile(next_, tile), pair, pair + num_rows_});
    }
    next_ = (next_ + 1) % memory_.num_experts();
  }
  phases_.start({x_rows_, weights_, sum_rows_});
  phases_.gate_up(works_);
  phases_.down(0, ceil_div(memory_.shape().hidden, kernels::kPanelWidth));
  for (size_t pair = 0; pair < x_rows_.size(); ++pair) CHECK(!phases_.is_bad(pair));
}

void ExpertRunner::run(int64_t count) {
  for (; count > 0; count -= experts_per_step()) run_step(std::min(count, experts_per_step()));
}

double ExpertRunner::time(int64_t count) {
  const double start = topology::team_seconds(team_);
  run(count);
  return topology::team_seconds(team_) - start;
}

int64_t ExpertRunner::experts_for(double seconds) {
  const double one = std::min(time(1), time(1));
  const auto count = static_cast<int64_t>(seconds / std::max(one, 1e-7)) + 1;
  return round_up(count, experts_per_step());
}

double ExpertRunner::weights_of(int64_t count) const {
  return static_cast<double>(count * memory_.shape().weights());
}

}  // namespace atl::bench
