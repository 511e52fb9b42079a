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
// Adds up the 16 partial sums by the fixed tree: s[j] += s[j + 8], then + 4, + 2, + 1.
float tree_sum(float s[16]);
float dot(const float* x, const float* y, int64_t n);
void rms_norm(const float* x, const float* weight, float eps, int64_t n, float* y);
void sigmoid(float* x, int64_t n);
void silu_mul(const float* gate, const float* up, int64_t n, float* h);
void add_in_place(float* x, const float* y, int64_t n);
void rope_interleaved(float* x, const float* cos, const float* sin, int64_t num_pairs);
void rope_halves(float* x, const float* cos, const float* sin, int64_t num_pairs);
void store_rounded(const float* x, int64_t n, RowType type, void* out);
void load_row(const void* row, int64_t n, RowType type, float* out);
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
                std::span<const void* const> blocks, int64_t num_positions, float scale,
                float* out);
void gqa_attend(const GroupedShape& shape, int64_t num_heads, const float* q,
                std::span<const void* const> blocks, int64_t num_positions, float scale,
                float* out);

}  // namespace atl::kernels::reference
