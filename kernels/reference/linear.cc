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
    case WeightFormat::kF16: {
      uint16_t bits;
      std::memcpy(&bits, code, sizeof(bits));
      return f16_to_float(bits);
    }
    case WeightFormat::kF32: {
      float value;
      std::memcpy(&value, code, sizeof(value));
      return value;
    }
    case WeightFormat::kInt4:
    case WeightFormat::kInt8:
      break;  // one_int4_output, one_i8_output
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

int int4_code(const std::byte* panel, const Int4Group& group, int64_t i, int64_t lane) {
  uint32_t word;
  const size_t line = group.codes + static_cast<size_t>(i / kInt4PerWord) * kInt4WordLine;
  std::memcpy(&word, panel + line + lane * 4, sizeof(word));
  return static_cast<int>((word >> int4_shift(i)) & 0xf) - kInt4Zero;
}

float int4_scale(const std::byte* panel, const Int4Group& group, int64_t lane) {
  uint16_t bits;
  std::memcpy(&bits, panel + group.scales + lane * 2, sizeof(bits));
  return bf16_to_float(bits);
}

float one_int4_output(const PanelMatrix& w, int64_t panel, int64_t lane, const float* x) {
  const std::byte* at = w.panel_codes(panel);
  float sum = 0.0f;
  for_each_int4_group(w.shape.k, w.shape.k_offset, [&](const Int4Group& group) {
    float acc = 0.0f;
    for (int64_t k = group.begin; k < group.end; ++k) {
      acc = std::fma(x[k], static_cast<float>(int4_code(at, group, k - group.begin, lane)), acc);
    }
    sum = std::fma(int4_scale(at, group, lane), acc, sum);
  });
  return sum;
}

// A row rounded to int8, with the scale of each 128-block.
struct I8Row {
  std::vector<int8_t> q;
  std::vector<float> scales;
};

I8Row round_to_i8(const PanelShape& shape, const float* x) {
  I8Row row{std::vector<int8_t>(static_cast<size_t>(shape.k)), {}};
  for (int64_t begin = 0, end; begin < shape.k; begin = end) {
    end = std::min(shape.k, begin + kInt4Block - (shape.k_offset + begin) % kInt4Block);
    row.scales.push_back(
        round_to_int8(x + begin, end - begin, row.q.data() + static_cast<size_t>(begin)));
  }
  return row;
}

float one_int8_output(const PanelMatrix& w, int64_t panel, int64_t lane, const I8Row& x) {
  const std::byte* at = w.panel_codes(panel);
  float sum = 0.0f;
  for_each_int8_block(w.shape.k, w.shape.k_offset, [&](const Int8Block& block) {
    int32_t dot = 0;
    for (int64_t k = block.begin; k < block.end; ++k) {
      const std::byte code = at[block.codes + int8_code_offset(lane, k - block.begin)];
      dot += x.q[static_cast<size_t>(k)] * static_cast<int8_t>(code);
    }
    float scale;
    std::memcpy(&scale, at + block.scales + lane * 4, sizeof(scale));
    const float total = std::fma(scale, static_cast<float>(dot), 0.0f);
    sum = std::fma(x.scales[static_cast<size_t>(block.block)], total, sum);
  });
  return sum;
}

float one_i8_output(const PanelMatrix& w, int64_t panel, int64_t lane, const I8Row& x) {
  if (w.shape.format == WeightFormat::kInt8) return one_int8_output(w, panel, lane, x);
  const std::byte* at = w.panel_codes(panel);
  float sum = 0.0f;
  float acc = 0.0f;
  for_each_int4_group(w.shape.k, w.shape.k_offset, [&](const Int4Group& group) {
    int32_t dot = 0;
    for (int64_t k = group.begin; k < group.end; ++k) {
      dot += x.q[static_cast<size_t>(k)] * int4_code(at, group, k - group.begin, lane);
    }
    acc = std::fma(int4_scale(at, group, lane), static_cast<float>(dot), acc);
    if (group.ends_block) {
      sum = std::fma(x.scales[static_cast<size_t>(group.block)], acc, sum);
      acc = 0.0f;
    }
  });
  return sum;
}

}  // namespace

void linear_panels(const PanelMatrix& w, int64_t panel_begin, int64_t panel_end,
                   std::span<const float* const> x, std::span<float* const> y) {
  CHECK_EQ(x.size(), y.size());
  for (size_t row = 0; row < x.size(); ++row) {
    const int64_t end = std::min(panel_end * kPanelWidth, w.shape.outputs);
    const bool rounded = w.shape.activations == Activations::kI8;
    const I8Row i8 = rounded ? round_to_i8(w.shape, x[row]) : I8Row{};
    for (int64_t o = panel_begin * kPanelWidth; o < end; ++o) {
      const int64_t panel = o / kPanelWidth;
      const int64_t lane = o % kPanelWidth;
      y[row][o] = rounded                                 ? one_i8_output(w, panel, lane, i8)
                  : w.shape.format == WeightFormat::kInt4 ? one_int4_output(w, panel, lane, x[row])
                                                          : one_output(w, panel, lane, x[row]);
    }
  }
}

}  // namespace atl::kernels::reference
