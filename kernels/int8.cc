#include "kernels/int8.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "kernels/int4.h"

namespace atl::kernels {

float reference::round_to_int8(const float* values, int64_t n, int8_t* codes) {
  float largest = 0.0f;
  bool finite = true;
  for (int64_t i = 0; i < n; ++i) {
    finite &= std::isfinite(values[i]);
    largest = std::max(largest, std::fabs(values[i]));
  }
  if (!finite || largest < kI8SmallestBlock) {
    std::fill_n(codes, n, int8_t{0});
    return finite ? 0.0f : std::nanf("");
  }
  const float inverse = static_cast<float>(kInt8CodeMax) / largest;
  for (int64_t i = 0; i < n; ++i) {
    codes[i] = static_cast<int8_t>(std::nearbyint(values[i] * inverse));
  }
  return largest / static_cast<float>(kInt8CodeMax);
}

void quantize_int8(const float* weights, int64_t n, int8_t* codes, float* scale) {
  CHECK(n >= 1 && n <= kInt8Block);
  *scale = round_to_int8(weights, n, codes);
}

}  // namespace atl::kernels
