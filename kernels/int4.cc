#include "kernels/int4.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>

#include "base/check.h"
#include "kernels/numeric_types.h"

namespace atl::kernels {
namespace {

constexpr int64_t kPartials = 16;
constexpr float kRoundMagic = 0x1.8p+23f;  // adding it leaves no fraction: rounds to an integer

// Nearest code of `weight`, as a float.
inline float nearest_code(float weight, float inverse) {
  float code = weight * inverse;
  code = code < -8.0f ? -8.0f : code;
  code = code > 7.0f ? 7.0f : code;
  return (code + kRoundMagic) - kRoundMagic;
}

// Sum of squares of weight - scale * code.
float squared_error(const float* weights, float scale, float inverse) {
  float partial[kPartials] = {};
  for (int64_t i = 0; i < kInt4Group; i += kPartials) {
    for (int64_t j = 0; j < kPartials; ++j) {
      const float weight = weights[i + j];
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

float reference::best_int4_scale(const float* weights, float largest) {
  Int4Choice best;
  for (int d = 0; d < kInt4Divisors; ++d) {
    for (float sign : {-1.0f, 1.0f}) {
      const float scale = bf16_to_float(float_to_bf16(sign * largest / int4_divisor(d)));
      best.consider(scale, squared_error(weights, scale, 1.0f / scale));
    }
  }
  return best.scale;
}

void quantize_int4(const float* weights, int64_t n, int8_t* codes, uint16_t* scale) {
  CHECK_LE(n, kInt4Group);
  alignas(64) float values[kInt4Group] = {};  // zeros behind the last
  std::memcpy(values, weights, static_cast<size_t>(n) * sizeof(float));
  // Magnitudes compare as integers do; those that are not finite are the largest.
  int32_t magnitudes[kInt4Group];
  std::memcpy(magnitudes, values, sizeof(magnitudes));
  int32_t largest = 0;
  for (int32_t& magnitude : magnitudes) {
    magnitude &= 0x7fffffff;
    largest = std::max(largest, magnitude);
  }
  if (largest >= 0x7f800000) {
    *scale = float_to_bf16(std::nanf(""));
    std::fill_n(codes, n, int8_t{0});
    return;
  }
  const auto first = std::find(std::begin(magnitudes), std::end(magnitudes), largest);
  const float best = best_int4_scale(values, values[first - std::begin(magnitudes)]);
  const float inverse = best != 0.0f ? 1.0f / best : 0.0f;
  *scale = float_to_bf16(best);
  for (int64_t i = 0; i < n; ++i) codes[i] = static_cast<int8_t>(nearest_code(values[i], inverse));
}

}  // namespace atl::kernels
