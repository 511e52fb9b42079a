#include "kernels/tile.h"

#include "kernels/reference/reference.h"

namespace atl::kernels {
void tile_gate_up(const TileView& tile, int64_t panel_begin, int64_t panel_end,
                  std::span<const float* const> x, std::span<const float> weights,
                  std::span<float* const> h) {
  reference::tile_gate_up(tile, panel_begin, panel_end, x, weights, h);
}
void tile_down_accumulate(const TileView& tile, int64_t panel_begin, int64_t panel_end,
                          std::span<const float* const> h, std::span<int64_t* const> acc,
                          std::span<uint8_t> bad) {
  reference::tile_down_accumulate(tile, panel_begin, panel_end, h, acc, bad);
}
bool add_fixed_point_row(const int64_t* sum, int64_t n, float* out) {
  return reference::add_fixed_point_row(sum, n, out);
}
}  // namespace atl::kernels
