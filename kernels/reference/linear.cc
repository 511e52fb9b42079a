#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/check.h"
#include "kernels/reference/reference.h"

namespace atl::kernels::reference {
namespace {

// The code of (output lane of the panel, k), as the number that it stands for.
float code_value(WeightFormat format, const std::byte* panel, int64_t k, int64_t lane) {
  const auto bytes = static_cast<int64_t>(code_bytes(format));
  const int64_t codes_per_word = 4 / bytes;
  const int64_t word = (k / codes_per_word) * kPanelWidth + lane;
  const std::byte* code = panel + word * 4 + (k % codes_per_word) * bytes;
  switch (format) {
    case WeightFormat::kFp8E4m3:
      return e4m3_to_float(std::to_integer<uint8_t>(*code));
    case WeightFormat::kBf16: {
      uint16_t bits;
      std::memcpy(&bits, code, sizeof(bits));
      return bf16_to_float(bits);
    }
    case WeightFormat::kF32: {
      float value;
      std::memcpy(&value, code, sizeof(value));
      return value;
    }
  }
  return 0.0f;
}

float scale_value(const PanelMatrix& w, int64_t panel, int64_t group, int64_t lane) {
  if (w.shape.format != WeightFormat::kFp8E4m3) return 1.0f;
  const float* scales = w.panel_scales(panel);
  return w.shape.scale_per_output ? scales[group * kPanelWidth + lane] : scales[group];
}

float one_output(const PanelMatrix& w, int64_t panel, int64_t lane, const float* x) {
  const std::byte* codes = w.panel_codes(panel);
  float sum = 0.0f;
  int64_t begin = 0;
  for (int64_t group = 0; group < w.shape.num_groups(); ++group) {
    const int64_t end = std::min(w.shape.k, w.shape.first_group() + group * kScaleBlock);
    float acc = 0.0f;
    for (int64_t k = begin; k < end; ++k) {
      acc = std::fma(x[k], code_value(w.shape.format, codes, k, lane), acc);
    }
    sum = std::fma(scale_value(w, panel, group, lane), acc, sum);
    begin = end;
  }
  return sum;
}

}  // namespace

void linear_panels(const PanelMatrix& w, int64_t panel_begin, int64_t panel_end,
                   std::span<const float* const> x, std::span<float* const> y) {
  CHECK_EQ(x.size(), y.size());
  for (size_t row = 0; row < x.size(); ++row) {
    const int64_t end = std::min(panel_end * kPanelWidth, w.shape.outputs);
    for (int64_t o = panel_begin * kPanelWidth; o < end; ++o) {
      y[row][o] = one_output(w, o / kPanelWidth, o % kPanelWidth, x[row]);
    }
  }
}

}  // namespace atl::kernels::reference
