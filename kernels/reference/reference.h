// The slow, readable version of every kernel: the definition in code. Same contracts and same bits
// as kernels/{linear,tile,ops,attention}.h, written with std::fma and no SIMD; also what runs on a
// CPU without fused multiply-add.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/attention.h"
#include "kernels/linear.h"
#include "kernels/ops.h"
#include "kernels/tile.h"

namespace atl::kernels::reference {

float exp_f32(float x);
float sigmoid_f32(float x);
float silu_f32(float x);
float dot(const float* x, const float* y, int64_t n);
void rms_norm(const float* x, const float* weight, float eps, int64_t n, float* y);
void silu_mul(const float* gate, const float* up, int64_t n, float* h);
void rope_interleaved(float* x, const float* cos, const float* sin, int64_t num_pairs);
void softmax(float* x, int64_t n);
void linear_panels(const PanelMatrix& w, int64_t panel_begin, int64_t panel_end,
                   std::span<const float* const> x, std::span<float* const> y);
void tile_gate_up(const TileView& tile, int64_t panel_begin, int64_t panel_end,
                  std::span<const float* const> x, std::span<const float> weights,
                  std::span<float* const> h);
void tile_down_accumulate(const TileView& tile, int64_t panel_begin, int64_t panel_end,
                          std::span<const float* const> h, std::span<int64_t* const> acc,
                          std::span<uint8_t> bad);
bool add_fixed_point_row(const int64_t* sum, int64_t n, float* out);
void mla_attend(const LatentShape& shape, int64_t num_heads, const float* q,
                std::span<const void* const> blocks, int64_t num_positions, float scale, float* out);

}  // namespace atl::kernels::reference
