#include <algorithm>
#include <bit>
#include <cmath>
#include <vector>

#include "base/check.h"
#include "kernels/reference/reference.h"

namespace atl::kernels::reference {

void tile_gate_up(const TileView& tile, int64_t panel_begin, int64_t panel_end,
                  std::span<const float* const> x, std::span<const float> weights,
                  std::span<float* const> h) {
  CHECK_EQ(x.size(), weights.size());
  const int64_t width = tile.layout->width;
  const int64_t end = std::min(panel_end * kPanelWidth, width);
  std::vector<float> up(static_cast<size_t>(width));
  float* const up_row = up.data();
  for (size_t row = 0; row < x.size(); ++row) {
    reference::linear_panels(tile.gate(), panel_begin, panel_end, x.subspan(row, 1),
                             h.subspan(row, 1));
    reference::linear_panels(tile.up(), panel_begin, panel_end, x.subspan(row, 1), {&up_row, 1});
    for (int64_t o = panel_begin * kPanelWidth; o < end; ++o) {
      h[row][o] = (weights[row] * silu_f32(h[row][o])) * up[static_cast<size_t>(o)];
    }
  }
}

void tile_down_accumulate(const TileView& tile, int64_t panel_begin, int64_t panel_end,
                          std::span<const float* const> h, std::span<int64_t* const> acc,
                          std::span<uint8_t> bad) {
  CHECK_EQ(h.size(), acc.size());
  CHECK_EQ(h.size(), bad.size());
  // value * 2^24 is exact; adding it to 1.5 * 2^52, where one unit in the last place is 1, rounds
  // it to an integer (ties to even), which then stands in the low bits.
  constexpr double kMagic = 0x1.8p+52;
  const PanelMatrix down = tile.down();
  const int64_t end = std::min(panel_end * kPanelWidth, down.shape.outputs);
  std::vector<float> contribution(static_cast<size_t>(down.shape.outputs));
  float* const out = contribution.data();
  for (size_t row = 0; row < h.size(); ++row) {
    reference::linear_panels(down, panel_begin, panel_end, h.subspan(row, 1), {&out, 1});
    for (int64_t o = panel_begin * kPanelWidth; o < end; ++o) {
      const double rounded = std::fma(static_cast<double>(out[o]), 0x1p+24, kMagic);
      const uint64_t units = std::bit_cast<uint64_t>(rounded) - std::bit_cast<uint64_t>(kMagic);
      acc[row][o] = static_cast<int64_t>(static_cast<uint64_t>(acc[row][o]) + units);
      if (!(std::fabs(out[o]) < 0x1p+23f)) bad[row] = 1;
    }
  }
}

bool add_fixed_point_row(const int64_t* sum, int64_t n, float* out) {
  bool within = true;
  for (int64_t i = 0; i < n; ++i) {
    within &= sum[i] <= kContributionBound && sum[i] >= -kContributionBound;
    out[i] += static_cast<float>(sum[i]) * 0x1p-24f;
  }
  return within;
}

}  // namespace atl::kernels::reference
