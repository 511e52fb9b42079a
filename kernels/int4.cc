#include "kernels/int4.h"

#include <cmath>

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
  return choose_int4_scale(largest, [weights](float scale, float inverse) {
    return squared_error(weights, scale, inverse);
  });
}

void quantize_int4(const float* weights, int64_t n, int8_t* codes, uint16_t* scale) {
  CHECK_LE(n, kInt4Group);
  alignas(64) float values[kInt4Group] = {};  // zeros behind the last
  float largest = 0.0f;
  bool finite = true;
  for (int64_t i = 0; i < n; ++i) {
    values[i] = weights[i];
    finite &= std::isfinite(weights[i]);
    if (std::fabs(weights[i]) > std::fabs(largest)) largest = weights[i];
  }
  const float best = finite ? best_int4_scale(values, largest) : std::nanf("");
  const float inverse = finite && best != 0.0f ? 1.0f / best : 0.0f;
  *scale = float_to_bf16(best);
  for (int64_t i = 0; i < n; ++i) {
    codes[i] = finite ? static_cast<int8_t>(nearest_code(values[i], inverse)) : int8_t{0};
  }
}

}  // namespace atl::kernels
