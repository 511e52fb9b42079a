// The small operations around the linear layers, defined to the bit (docs/numbers.md).
//
// Reductions use 16 fixed partial sums: element i goes to partial i % 16 in ascending i, and the
// tree is s[j] += s[j+8], then +4, +2, +1. exp is one FMA polynomial for the whole system.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/numeric_types.h"

namespace atl::kernels {

// e^x: correctly scaled FMA polynomial, within 1 ulp or so of exact; exp(-inf) = 0, overflow to
// +inf, NaN stays NaN, exp(0) = 1. The scalar form of what every vector kernel computes.
float exp_f32(float x);
// 1 / (1 + exp(-x)).
float sigmoid_f32(float x);
// x / (1 + exp(-x)).
float silu_f32(float x);

// Sum of x[i]*y[i] by 16 partial sums of fma and the fixed tree.
float dot(const float* x, const float* y, int64_t n);

// y = (x * (1 / sqrt(mean(x^2) + eps))) * weight, all FP32. y may be x. Source: docs/model.md 3.1.
void rms_norm(const float* x, const float* weight, float eps, int64_t n, float* y);

// x[i] = 1 / (1 + exp(-x[i])).
void sigmoid(float* x, int64_t n);

// h[i] = silu(gate[i]) * up[i]. h may be gate or up.
void silu_mul(const float* gate, const float* up, int64_t n, float* h);

// x[i] += y[i].
void add_in_place(float* x, const float* y, int64_t n);

// Rotates the pairs (2i, 2i+1) of x, n = 2 * pairs values, in place:
//   y[2i] = fma(x[2i], cos[i], -(x[2i+1] * sin[i])), y[2i+1] = fma(x[2i], sin[i], x[2i+1] * cos[i])
// Source: docs/model.md 3.5 (interleaved layout).
void rope_interleaved(float* x, const float* cos, const float* sin, int64_t num_pairs);

// The same of the pairs (i, num_pairs + i): the layout of Qwen2 and Llama. Source: docs/model.md
// 3.8.
void rope_halves(float* x, const float* cos, const float* sin, int64_t num_pairs);

// Rounds n values to `type` at `out` (BF16: nearest even), and back.
void store_rounded(const float* x, int64_t n, RowType type, void* out);
void load_row(const void* row, int64_t n, RowType type, float* out);
// Same for embedding rows of a weight format without scales (kBf16, kF16, kF32).
void load_weights_row(const void* row, int64_t n, WeightFormat format, float* out);

// Softmax over n values in place: exp(x - max), divided by their sum (16 partial sums).
void softmax(float* x, int64_t n);

}  // namespace atl::kernels
