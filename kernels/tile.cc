#include "kernels/tile.h"

#include <algorithm>

#include "base/check.h"

namespace atl::kernels {

int64_t tile_width(int64_t moe_intermediate_size) {
  CHECK_GT(moe_intermediate_size, 0);
  if (moe_intermediate_size >= 512) return 128;
  return round_up(ceil_div(moe_intermediate_size, 4), kPanelWidth);
}

int num_tiles(int64_t moe_intermediate_size) {
  return static_cast<int>(ceil_div(moe_intermediate_size, tile_width(moe_intermediate_size)));
}

TileLayout tile_layout(WeightFormat format, int64_t hidden_size, int64_t moe_intermediate_size,
                       int tile, Activations activations, ScaleOrigin scales) {
  CHECK_GE(tile, 0);
  CHECK_LT(tile, num_tiles(moe_intermediate_size));
  TileLayout layout;
  layout.tile = tile;
  layout.begin = tile * tile_width(moe_intermediate_size);
  layout.width = std::min(tile_width(moe_intermediate_size), moe_intermediate_size - layout.begin);
  layout.gate_up = panel_shape(format, layout.width, hidden_size, {.row_begin = layout.begin},
                               activations, scales);
  layout.down = panel_shape(format, hidden_size, layout.width, {.col_begin = layout.begin},
                            activations, scales);
  size_t at = 0;
  const auto take = [&at](size_t bytes) {
    const size_t offset = at;
    at += bytes;
    return offset;
  };
  layout.gate_codes = take(layout.gate_up.total_code_bytes());
  layout.up_codes = take(layout.gate_up.total_code_bytes());
  layout.down_codes = take(layout.down.total_code_bytes());
  layout.gate_scales = take(layout.gate_up.total_scale_bytes());
  layout.up_scales = take(layout.gate_up.total_scale_bytes());
  layout.down_scales = take(layout.down.total_scale_bytes());
  layout.bytes = ceil_div(static_cast<int64_t>(at), kTileAlign) * kTileAlign;
  return layout;
}

}  // namespace atl::kernels
