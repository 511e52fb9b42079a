#include "kernels/int4.h"

#include <cmath>

#include "base/check.h"
#include "kernels/numeric_types.h"

namespace atl::kernels {
namespace {

constexpr int64_t kPartials = 16;
constexpr float kFirstDivisor = 6.5f;  // of the largest magnitude; 8 would just use all of [-8, 7]
constexpr float kDivisorStep = 0.25f;
constexpr int kDivisors = 19;
constexpr float kRoundMagic = 0x1.8p+23f;  // adding it leaves no fraction: rounds to an integer

struct Values {
  alignas(64) float v[kInt4Group] = {};  // zeros behind the last
};

// Nearest code of `weight`, as a float.
inline float nearest_code(float weight, float inverse) {
  float code = weight * inverse;
  code = code < -8.0f ? -8.0f : code;
  code = code > 7.0f ? 7.0f : code;
  return (code + kRoundMagic) - kRoundMagic;
}

// Sum of squares of weight - scale * code.
float squared_error(const Values& weights, float scale, float inverse) {
  float partial[kPartials] = {};
  for (int64_t i = 0; i < kInt4Group; i += kPartials) {
    for (int64_t j = 0; j < kPartials; ++j) {
      const float weight = weights.v[i + j];
      const float error = weight - scale * nearest_code(weight, inverse);
      partial[j] += error * error;
    }
  }
  for (int64_t half = kPartials / 2; half >= 1; half /= 2) {
    for (int64_t j = 0; j < half; ++j) partial[j] += partial[j + half];
  }
  return partial[0];
}

}  // namespace

void quantize_int4(const float* weights, int64_t n, int8_t* codes, uint16_t* scale) {
  CHECK_LE(n, kInt4Group);
  float largest = 0.0f;
  Values values;
  bool finite = true;
  for (int64_t i = 0; i < n; ++i) {
    values.v[i] = weights[i];
    finite &= std::isfinite(weights[i]);
    if (std::fabs(weights[i]) > std::fabs(largest)) largest = weights[i];
  }
  float best_scale = finite ? 0.0f : std::nanf("");
  float best_inverse = 0.0f;
  float best_error = INFINITY;
  for (int d = 0; finite && d < kDivisors; ++d) {
    for (float sign : {-1.0f, 1.0f}) {
      const float divisor = kFirstDivisor + kDivisorStep * static_cast<float>(d);
      const float candidate = bf16_to_float(float_to_bf16(sign * largest / divisor));
      const float inverse = 1.0f / candidate;
      if (candidate == 0.0f || !std::isfinite(inverse)) continue;
      const float error = squared_error(values, candidate, inverse);
      // The first one where even errors overflow.
      if (error < best_error || best_scale == 0.0f) {
        best_error = error;
        best_scale = candidate;
        best_inverse = inverse;
      }
    }
  }
  *scale = float_to_bf16(best_scale);
  for (int64_t i = 0; i < n; ++i) {
    codes[i] = finite ? static_cast<int8_t>(nearest_code(values.v[i], best_inverse)) : int8_t{0};
  }
}

}  // namespace atl::kernels
