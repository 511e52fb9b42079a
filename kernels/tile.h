// Tiles: an expert cut along its intermediate dimension (docs/architecture.md).
//
// A tile is 128 rows of gate, the same rows of up and the same columns of down; it is an expert of
// its own, tile(x) = D_t (silu(G_t x) * (U_t x)), and an expert is the sum of its tiles. In memory
// (and in an expert pack) a tile is one extent that starts on 4 KiB:
//
//   gate panels | up panels | down panels | gate scales | up scales | down scales | zeros to 4 KiB
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/panel.h"

namespace atl::kernels {

inline constexpr size_t kTileAlign = 4096;

// Intermediate columns of a regular tile: 128 if moe_intermediate_size >= 512, else a quarter of
// it rounded up to 16.
int64_t tile_width(int64_t moe_intermediate_size);
int num_tiles(int64_t moe_intermediate_size);

// Shape and byte layout of tile `tile` of an expert. A plain value.
struct TileLayout {
  int tile = 0;
  int64_t begin = 0;                                       // first intermediate column
  int64_t width = 0;                                       // the last tile may be narrower
  PanelShape gate_up;                                      // [width, hidden], of gate and of up
  PanelShape down;                                         // [hidden, width]
  size_t gate_codes = 0, up_codes = 0, down_codes = 0;     // byte offsets in the extent
  size_t gate_scales = 0, up_scales = 0, down_scales = 0;  // byte offsets in the extent
  size_t bytes = 0;                                        // multiple of kTileAlign
};
TileLayout tile_layout(WeightFormat format, int64_t hidden_size, int64_t moe_intermediate_size,
                       int tile, Activations activations = Activations::kF32,
                       ScaleOrigin scales = ScaleOrigin::kCheckpoint);

// A tile in memory that somebody else owns and keeps pinned.
struct TileView {
  const TileLayout* layout = nullptr;
  const std::byte* data = nullptr;

  PanelMatrix gate() const {
    return matrix(layout->gate_up, layout->gate_codes, layout->gate_scales);
  }
  PanelMatrix up() const { return matrix(layout->gate_up, layout->up_codes, layout->up_scales); }
  PanelMatrix down() const { return matrix(layout->down, layout->down_codes, layout->down_scales); }

 private:
  PanelMatrix matrix(const PanelShape& shape, size_t codes, size_t scales) const {
    return {shape, data + codes, reinterpret_cast<const float*>(data + scales)};
  }
};

// h[i][o] = (weights[i] * silu(g)) * u for the outputs of panels [panel_begin, panel_end) of gate
// and up, g = G_t x[i], u = U_t x[i], of some tiles of one expert: rows are made ready once for
// all.
//   tiles    [t], panels that a narrower one does not have are left out
//   x        [n] pointers to FP32 rows [hidden] (already rounded to the wire type)
//   weights  [n] router weights w_e
//   h        [t][n] pointers to FP32 rows [width]
void tile_gate_up(std::span<const TileView> tiles, int64_t panel_begin, int64_t panel_end,
                  std::span<const float* const> x, std::span<const float> weights,
                  std::span<float* const> h);

// h[i] = (weight * silu(gate[i])) * up[i] for n values: what tile_gate_up() ends with, for callers
// that compute gate and up apart. h may be gate or up.
void tile_combine_gate_up(const float* gate, const float* up, float weight, int64_t n, float* h);

// Largest magnitude of one contribution, and of a row's sum: 2^47 units of 2^-24, 8.4e6.
inline constexpr int64_t kContributionBound = int64_t{1} << 47;

// Adds the tile's contribution to each row, one FP32 number per output rounded to the nearest
// multiple of 2^-24 (ties to even) and added as an integer.
//   h    [n] pointers to FP32 rows [width]
//   acc  [n] pointers to int64 rows indexed by output of the whole matrix, units of 2^-24
//   bad  [n] set to 1 where a contribution is not finite or not below 2^23 in magnitude
//        (acc is unspecified there); never reset here; may be shared between panels but not threads
//   next the tile whose same panels the caller will ask for next, fetched from memory meanwhile
//        (a tile's share of some panels is too short for the processor to do so by itself);
//        nullptr if not known
void tile_down_accumulate(const TileView& tile, int64_t panel_begin, int64_t panel_end,
                          std::span<const float* const> h, std::span<int64_t* const> acc,
                          std::span<uint8_t> bad, const TileView* next = nullptr);

// out[i] += fp32(sum[i] * 2^-24), correctly rounded once; false if any |sum| is beyond the bound
// (out is then unspecified). n values.
bool add_fixed_point_row(const int64_t* sum, int64_t n, float* out);

}  // namespace atl::kernels
