#include <bit>
#include <cmath>

#include "kernels/reference/exp_constants.h"
#include "kernels/reference/reference.h"

namespace atl::kernels::reference {
namespace {

constexpr int kPartials = 16;

float power_of_two(int32_t exponent) {
  return std::bit_cast<float>(static_cast<uint32_t>(exponent + 127) << 23);
}

}  // namespace

float exp_f32(float x) {
  if (x != x) return x;
  x = x < kExpMin ? kExpMin : x;
  x = x > kExpMax ? kExpMax : x;
  const float t = std::fma(x, kExpLog2e, kRoundMagic);
  const float n = t - kRoundMagic;
  float r = std::fma(n, -kExpLn2Hi, x);
  r = std::fma(n, -kExpLn2Lo, r);
  float p = kExpCoefficients[0];
  for (int i = 1; i < 8; ++i) p = std::fma(p, r, kExpCoefficients[i]);
  const int32_t exponent = std::bit_cast<int32_t>(t) - std::bit_cast<int32_t>(kRoundMagic);
  const int32_t first = exponent >> 1;
  return (p * power_of_two(first)) * power_of_two(exponent - first);
}

float sigmoid_f32(float x) { return 1.0f / (1.0f + exp_f32(-x)); }

float silu_f32(float x) { return x / (1.0f + exp_f32(-x)); }

float tree_sum(float s[kPartials]) {
  for (int half = kPartials / 2; half >= 1; half /= 2) {
    for (int j = 0; j < half; ++j) s[j] += s[j + half];
  }
  return s[0];
}

float dot(const float* x, const float* y, int64_t n) {
  float s[kPartials] = {};
  for (int64_t i = 0; i < n; ++i) s[i % kPartials] = std::fma(x[i], y[i], s[i % kPartials]);
  return tree_sum(s);
}

void rms_norm(const float* x, const float* weight, float eps, int64_t n, float* y) {
  const float mean = dot(x, x, n) / static_cast<float>(n);
  const float inverse = 1.0f / std::sqrt(mean + eps);
  for (int64_t i = 0; i < n; ++i) y[i] = (x[i] * inverse) * weight[i];
}

void sigmoid(float* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) x[i] = sigmoid_f32(x[i]);
}

void silu_mul(const float* gate, const float* up, int64_t n, float* h) {
  for (int64_t i = 0; i < n; ++i) h[i] = silu_f32(gate[i]) * up[i];
}

void add_in_place(float* x, const float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) x[i] += y[i];
}

void rope_interleaved(float* x, const float* cos, const float* sin, int64_t num_pairs) {
  for (int64_t i = 0; i < num_pairs; ++i) {
    const float a = x[2 * i];
    const float b = x[2 * i + 1];
    x[2 * i] = std::fma(a, cos[i], -(b * sin[i]));
    x[2 * i + 1] = std::fma(a, sin[i], b * cos[i]);
  }
}

void rope_halves(float* x, const float* cos, const float* sin, int64_t num_pairs) {
  for (int64_t i = 0; i < num_pairs; ++i) {
    const float a = x[i];
    const float b = x[num_pairs + i];
    x[i] = std::fma(a, cos[i], -(b * sin[i]));
    x[num_pairs + i] = std::fma(a, sin[i], b * cos[i]);
  }
}

void store_rounded(const float* x, int64_t n, RowType type, void* out) {
  for (int64_t i = 0; i < n; ++i) {
    if (type == RowType::kF32) {
      static_cast<float*>(out)[i] = x[i];
    } else {
      static_cast<uint16_t*>(out)[i] = float_to_bf16(x[i]);
    }
  }
}

void load_row(const void* row, int64_t n, RowType type, float* out) {
  for (int64_t i = 0; i < n; ++i) {
    out[i] = type == RowType::kF32 ? static_cast<const float*>(row)[i]
                                   : bf16_to_float(static_cast<const uint16_t*>(row)[i]);
  }
}

void softmax(float* x, int64_t n) {
  if (n == 0) return;
  float max = x[0];
  for (int64_t i = 1; i < n; ++i) max = x[i] > max ? x[i] : max;
  float s[kPartials] = {};
  for (int64_t i = 0; i < n; ++i) {
    x[i] = exp_f32(x[i] - max);
    s[i % kPartials] += x[i];
  }
  const float sum = tree_sum(s);
  for (int64_t i = 0; i < n; ++i) x[i] /= sum;
}

}  // namespace atl::kernels::reference
