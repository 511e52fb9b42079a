#include "kernels/panel.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "base/check.h"
#include "kernels/cpu/widen.h"

namespace atl::kernels {
namespace {

// Byte offset in a panel of the code of (lane, k).
int64_t code_offset(WeightFormat format, int64_t lane, int64_t k) {
  const auto bytes = static_cast<int64_t>(code_bytes(format));
  const int64_t codes_per_word = 4 / bytes;
  return ((k / codes_per_word) * kPanelWidth + lane) * 4 + (k % codes_per_word) * bytes;
}

const std::byte* element(const MatrixRows& rows, int64_t row, int64_t col) {
  const auto bytes = static_cast<int64_t>(code_bytes(rows.format));
  return rows.data + ((row - rows.first_row) * rows.cols + col) * bytes;
}

float grid_scale(const MatrixRows& rows, int64_t row, int64_t col) {
  const int64_t grid_cols = ceil_div(rows.cols, kScaleBlock);
  return rows.scale_grid[(row / kScaleBlock) * grid_cols + col / kScaleBlock];
}

// Place in the scales of (output, group); the caller writes it only for lane 0 of a panel if the
// panel shares its scales.
int64_t scale_index(const PanelShape& shape, int64_t output, int64_t group) {
  const int64_t panel = output / kPanelWidth;
  const int64_t in_panel =
      shape.scale_per_output ? group * kPanelWidth + output % kPanelWidth : group;
  return panel * shape.panel_scales() + in_panel;
}

// The values of `n` elements of one row: code * scale.
void row_values(const MatrixRows& rows, int64_t row, int64_t col, int64_t n, float* values) {
  const std::byte* codes = element(rows, row, col);
  switch (rows.format) {
    case WeightFormat::kF32:
      std::memcpy(values, codes, static_cast<size_t>(n) * sizeof(float));
      return;
    case WeightFormat::kBf16:
      for (int64_t i = 0; i < n; ++i) {
        uint16_t bits;
        std::memcpy(&bits, codes + i * 2, sizeof(bits));
        values[i] = bf16_to_float(bits);
      }
      return;
    case WeightFormat::kF16:
      for (int64_t i = 0; i < n; ++i) {
        uint16_t bits;
        std::memcpy(&bits, codes + i * 2, sizeof(bits));
        values[i] = f16_to_float(bits);
      }
      return;
    case WeightFormat::kFp8E4m3:
      for (int64_t begin = 0, end; begin < n; begin = end) {
        end = std::min(n, begin + kScaleBlock - (col + begin) % kScaleBlock);
        widen_e4m3(codes + begin, end - begin, grid_scale(rows, row, col + begin), values + begin);
      }
      return;
    case WeightFormat::kInt4:
    case WeightFormat::kInt8:
      break;
  }
  std::fill_n(values, n, 0.0f);  // never in a checkpoint
}

// Whether packing chooses scales.
bool quantizes(const PanelShape& shape, const MatrixRows& rows) {
  return shape.format != rows.format &&
         (is_packed_only(shape.format) || shape.format == WeightFormat::kFp8E4m3);
}

bool writes_scale(const PanelShape& shape, int64_t output) {
  return shape.scale_per_output || output % kPanelWidth == 0;
}

// First k of a scale group.
int64_t group_begin(const PanelShape& shape, int64_t group) {
  return group == 0 ? 0 : shape.first_group() + (group - 1) * kScaleBlock;
}

// Rows of the checkpoint are outputs: lanes [lane_begin, lane_end) of one panel, word by word, so
// that whole cache lines are written.
void pack_panel_lanes(const PanelShape& shape, const PanelSource& source, const MatrixRows& rows,
                      int64_t panel, int64_t lane_begin, int64_t lane_end, std::byte* codes) {
  const auto bytes = static_cast<int64_t>(code_bytes(shape.format));
  std::byte* out = codes + panel * static_cast<int64_t>(shape.panel_code_bytes());
  const int64_t stride = rows.cols * bytes;
  const std::byte* first =
      element(rows, source.row_begin + panel * kPanelWidth + lane_begin, source.col_begin);
  const int64_t row_bytes = shape.k * bytes;
  int64_t at = 0;  // byte within a row
  for (; at + 4 <= row_bytes; at += 4, out += 4 * kPanelWidth) {
    const std::byte* in = first + at;
    for (int64_t lane = lane_begin; lane < lane_end; ++lane, in += stride) {
      std::memcpy(out + lane * 4, in, 4);
    }
  }
  for (int64_t lane = lane_begin; at < row_bytes && lane < lane_end; ++lane) {
    std::memcpy(out + lane * 4, first + (lane - lane_begin) * stride + at,
                static_cast<size_t>(row_bytes - at));
  }
}

void pack_outputs(const PanelShape& shape, const PanelSource& source, const MatrixRows& rows,
                  std::byte* codes, float* scales) {
  const int64_t begin = std::max<int64_t>(rows.first_row - source.row_begin, 0);
  const int64_t end = std::min(rows.first_row + rows.num_rows - source.row_begin, shape.outputs);
  for (int64_t output = begin; output < end;) {
    const int64_t panel = output / kPanelWidth;
    const int64_t lane_end = std::min(end - panel * kPanelWidth, kPanelWidth);
    pack_panel_lanes(shape, source, rows, panel, output % kPanelWidth, lane_end, codes);
    output = panel * kPanelWidth + lane_end;
  }
  if (shape.format != WeightFormat::kFp8E4m3) return;
  for (int64_t output = begin; output < end; ++output) {
    if (!writes_scale(shape, output)) continue;
    for (int64_t group = 0; group < shape.num_groups(); ++group) {
      scales[scale_index(shape, output, group)] =
          grid_scale(rows, source.row_begin + output, source.col_begin + group_begin(shape, group));
    }
  }
}

// Rows of the checkpoint are k, its columns outputs.
void pack_transposed(const PanelShape& shape, const PanelSource& source, const MatrixRows& rows,
                     std::byte* codes, float* scales) {
  const size_t bytes = code_bytes(shape.format);
  const auto panel_bytes = static_cast<int64_t>(shape.panel_code_bytes());
  const int64_t begin = std::max<int64_t>(rows.first_row - source.row_begin, 0);
  const int64_t end = std::min(rows.first_row + rows.num_rows - source.row_begin, shape.k);
  for (int64_t k = begin; k < end; ++k) {
    const std::byte* in = element(rows, source.row_begin + k, source.col_begin);
    for (int64_t output = 0; output < shape.outputs; ++output, in += bytes) {
      std::byte* panel = codes + (output / kPanelWidth) * panel_bytes;
      std::memcpy(panel + code_offset(shape.format, output % kPanelWidth, k), in, bytes);
    }
  }
  if (shape.format != WeightFormat::kFp8E4m3) return;
  for (int64_t group = 0; group < shape.num_groups(); ++group) {
    const int64_t k = group_begin(shape, group);
    if (k < begin || k >= end) continue;  // whoever brings a group's first k brings its scales
    for (int64_t output = 0; output < shape.outputs; ++output) {
      if (!writes_scale(shape, output)) continue;
      scales[scale_index(shape, output, group)] =
          grid_scale(rows, source.row_begin + k, source.col_begin + output);
    }
  }
}

// Writes an output's codes and scales for the stretch [begin, end) of k, whose values are at
// `values`; a stretch to be quantized is whole groups.
class OutputWriter {
 public:
  OutputWriter(const PanelShape& shape, std::byte* codes, float* scales)
      : shape_(shape), codes_(codes), scales_(scales) {
    if (shape.format == WeightFormat::kInt4) {
      for_each_int4_group(shape.k, shape.k_offset,
                          [&](const Int4Group& group) { int4_groups_.push_back(group); });
    }
    if (shape.format == WeightFormat::kInt8) {
      for_each_int8_block(shape.k, shape.k_offset,
                          [&](const Int8Block& block) { int8_blocks_.push_back(block); });
    }
  }

  void write(int64_t output, int64_t begin, int64_t end, const float* values) {
    std::byte* panel =
        codes_ + output / kPanelWidth * static_cast<int64_t>(shape_.panel_code_bytes());
    const int64_t lane = output % kPanelWidth;
    switch (shape_.format) {
      case WeightFormat::kF32:
        for (int64_t k = begin; k < end; ++k) store(panel, lane, k, *values++);
        return;
      case WeightFormat::kBf16:
        for (int64_t k = begin; k < end; ++k) store(panel, lane, k, float_to_bf16(*values++));
        return;
      case WeightFormat::kFp8E4m3:
        return write_fp8(output, begin, end, values, panel);
      case WeightFormat::kInt4:
        return write_int4(lane, begin, end, values, panel);
      case WeightFormat::kInt8:
        return write_int8(lane, begin, end, values, panel);
      case WeightFormat::kF16:
        break;  // nothing is converted to it: pack() checks
    }
  }

 private:
  template <typename T>
  void store(std::byte* panel, int64_t lane, int64_t k, T code) const {
    std::memcpy(panel + code_offset(shape_.format, lane, k), &code, sizeof(code));
  }

  void write_fp8(int64_t output, int64_t begin, int64_t end, const float* values,
                 std::byte* panel) const {
    for (int64_t group = 0; group < shape_.num_groups(); ++group) {
      const int64_t first = group_begin(shape_, group);
      if (first < begin || first >= end) continue;
      const int64_t last = std::min(shape_.first_group() + group * kScaleBlock, end);
      float largest = 0.0f;
      for (int64_t k = first; k < last; ++k) {
        largest = std::max(largest, std::fabs(values[k - begin]));
      }
      const float scale = largest / 448.0f;
      scales_[scale_index(shape_, output, group)] = scale;
      for (int64_t k = first; k < last; ++k) {
        // Below 2^-126 a scale is inexact enough to carry a quotient beyond the largest code.
        const float code = scale == 0.0f ? 0.0f : values[k - begin] / scale;
        store(panel, output % kPanelWidth, k, float_to_e4m3(std::clamp(code, -448.0f, 448.0f)));
      }
    }
  }

  void write_int4(int64_t lane, int64_t begin, int64_t end, const float* values,
                  std::byte* panel) const {
    for (const Int4Group& group : int4_groups_) {
      if (group.begin < begin || group.begin >= end) continue;
      int8_t codes[kInt4Group];
      uint16_t scale;
      const int64_t length = group.end - group.begin;
      quantize_int4(values + (group.begin - begin), length, codes, &scale);
      std::memcpy(panel + group.scales + lane * 2, &scale, sizeof(scale));
      std::byte* line = panel + group.codes + lane * 4;
      int64_t i = 0;
      for (; i + kInt4PerWord <= length; i += kInt4PerWord, line += kInt4WordLine) {
        uint32_t first, second;
        std::memcpy(&first, codes + i, sizeof(first));
        std::memcpy(&second, codes + i + 4, sizeof(second));
        // Adds 8 to each byte's low half: a code is -8 to 7.
        constexpr uint32_t kZeros = 0x01010101u * kInt4Zero, kLow = 0x0f0f0f0fu;
        const uint32_t word = ((first ^ kZeros) & kLow) | ((second ^ kZeros) & kLow) << 4;
        std::memcpy(line, &word, sizeof(word));
      }
      if (i == length) continue;
      uint32_t word = 0;
      for (int64_t j = 0; i + j < length; ++j) {
        word |= static_cast<uint32_t>(codes[i + j] + kInt4Zero) << int4_shift(j);
      }
      std::memcpy(line, &word, sizeof(word));
    }
  }

  void write_int8(int64_t lane, int64_t begin, int64_t end, const float* values,
                  std::byte* panel) const {
    for (const Int8Block& block : int8_blocks_) {
      if (block.begin < begin || block.begin >= end) continue;
      int8_t codes[kInt8Block];
      float scale;
      const int64_t length = block.end - block.begin;
      quantize_int8(values + (block.begin - begin), length, codes, &scale);
      std::memcpy(panel + block.scales + lane * 4, &scale, sizeof(scale));
      for (int64_t i = 0; i < length; i += 4) {
        std::memcpy(panel + block.codes + int8_code_offset(lane, i), codes + i,
                    static_cast<size_t>(std::min<int64_t>(4, length - i)));
      }
    }
  }

  const PanelShape& shape_;
  std::byte* codes_;
  float* scales_;
  std::vector<Int4Group> int4_groups_;
  std::vector<Int8Block> int8_blocks_;
};

void convert_outputs(const PanelShape& shape, const PanelSource& source, const MatrixRows& rows,
                     std::byte* codes, float* scales) {
  const int64_t begin = std::max<int64_t>(rows.first_row - source.row_begin, 0);
  const int64_t end = std::min(rows.first_row + rows.num_rows - source.row_begin, shape.outputs);
  OutputWriter writer(shape, codes, scales);
  std::vector<float> values(static_cast<size_t>(shape.k));
  for (int64_t output = begin; output < end; ++output) {
    row_values(rows, source.row_begin + output, source.col_begin, shape.k, values.data());
    writer.write(output, 0, shape.k, values.data());
  }
}

// Rows of the checkpoint are k: whole 128-blocks of the rows that are here.
void convert_transposed(const PanelShape& shape, const PanelSource& source, const MatrixRows& rows,
                        std::byte* codes, float* scales) {
  const int64_t begin = std::max<int64_t>(rows.first_row - source.row_begin, 0);
  const int64_t end = std::min(rows.first_row + rows.num_rows - source.row_begin, shape.k);
  if (begin >= end) return;
  if (quantizes(shape, rows)) {
    const auto whole = [&](int64_t k) {
      return k == 0 || k == shape.k || (source.row_begin + k) % kTransposedPieceRows == 0;
    };
    CHECK(whole(begin) && whole(end));
  }
  // Some outputs together, so that a row's elements are read and widened in one go.
  constexpr int64_t kOutputs = kPanelWidth;
  OutputWriter writer(shape, codes, scales);
  const int64_t length = end - begin;
  std::vector<float> values(static_cast<size_t>(kOutputs * length));
  for (int64_t output = 0; output < shape.outputs; output += kOutputs) {
    const int64_t count = std::min(kOutputs, shape.outputs - output);
    float of_row[kOutputs];
    for (int64_t k = 0; k < length; ++k) {
      row_values(rows, source.row_begin + begin + k, source.col_begin + output, count, of_row);
      for (int64_t o = 0; o < count; ++o) values[static_cast<size_t>(o * length + k)] = of_row[o];
    }
    for (int64_t o = 0; o < count; ++o) {
      writer.write(output + o, begin, end, values.data() + o * length);
    }
  }
}

// Index of the first of `count` codes of type T for which (code & mask) + carry has its top bit
// set. 64 bytes at a time, so that the compiler can use vectors: no sum carries out of its code.
template <typename T>
int64_t find_code(const std::byte* codes, int64_t count, T mask, T carry) {
  constexpr T kTop = static_cast<T>(T{1} << (8 * sizeof(T) - 1));
  constexpr int64_t kBlock = 64 / static_cast<int64_t>(sizeof(T));
  int64_t i = 0;
  for (; i + kBlock <= count; i += kBlock) {
    T block[kBlock];
    std::memcpy(block, codes + i * static_cast<int64_t>(sizeof(T)), sizeof(block));
    T found = 0;
    for (T code : block) found = static_cast<T>(found | static_cast<T>((code & mask) + carry));
    if (found & kTop) break;
  }
  for (; i < count; ++i) {
    T code;
    std::memcpy(&code, codes + i * static_cast<int64_t>(sizeof(T)), sizeof(T));
    if (static_cast<T>((code & mask) + carry) & kTop) return i;
  }
  return -1;
}

}  // namespace

PanelShape panel_shape(WeightFormat format, int64_t outputs, int64_t k, const PanelSource& source,
                       Activations activations, ScaleOrigin scales) {
  // Rounded rows are for int4 and int8 weights, and int8 ones take no others.
  CHECK(activations == Activations::kF32 || is_packed_only(format));
  CHECK(activations == Activations::kI8 || format != WeightFormat::kInt8);
  PanelShape shape;
  shape.activations = activations;
  shape.format = format;
  shape.outputs = outputs;
  shape.k = k;
  shape.k_offset = source.transposed ? source.row_begin : source.col_begin;
  if (format != WeightFormat::kFp8E4m3) return shape;
  shape.scale_per_output = scales == ScaleOrigin::kPacking;
  const int64_t first = source.transposed ? source.col_begin : source.row_begin;
  for (int64_t panel = 0; panel < shape.num_panels(); ++panel) {
    const int64_t begin = first + panel * kPanelWidth;
    const int64_t last = first + std::min((panel + 1) * kPanelWidth, outputs) - 1;
    if (begin / kScaleBlock != last / kScaleBlock) shape.scale_per_output = true;
  }
  return shape;
}

void pack(const PanelShape& shape, const PanelSource& source, const MatrixRows& rows,
          std::byte* codes, float* scales) {
  CHECK(!is_packed_only(rows.format));
  CHECK_LE(source.col_begin + (source.transposed ? shape.outputs : shape.k), rows.cols);
  if (rows.format != shape.format) {
    CHECK(shape.format != WeightFormat::kF16);
    // Scales of a checkpoint's block would be shared by outputs that are quantized one by one.
    CHECK(shape.format != WeightFormat::kFp8E4m3 || shape.scale_per_output);
    if (source.transposed) {
      convert_transposed(shape, source, rows, codes, scales);
    } else {
      convert_outputs(shape, source, rows, codes, scales);
    }
  } else if (source.transposed) {
    pack_transposed(shape, source, rows, codes, scales);
  } else {
    pack_outputs(shape, source, rows, codes, scales);
  }
}

void unpack_output(const PanelMatrix& matrix, int64_t output, float* values) {
  const WeightFormat format = matrix.shape.format;
  CHECK(!is_packed_only(format) && format != WeightFormat::kFp8E4m3);
  const std::byte* panel = matrix.panel_codes(output / kPanelWidth);
  for (int64_t k = 0; k < matrix.shape.k; ++k) {
    const std::byte* code = panel + code_offset(format, output % kPanelWidth, k);
    if (format == WeightFormat::kF32) {
      std::memcpy(&values[k], code, sizeof(float));
      continue;
    }
    uint16_t bits;
    std::memcpy(&bits, code, sizeof(bits));
    values[k] = format == WeightFormat::kF16 ? f16_to_float(bits) : bf16_to_float(bits);
  }
}

int64_t find_e4m3_nan(const std::byte* codes, int64_t count) {
  return find_code<uint8_t>(codes, count, 0x7f, 0x01);
}

int64_t find_non_finite(WeightFormat format, const std::byte* values, int64_t count) {
  switch (format) {
    case WeightFormat::kF32:
      return find_code<uint32_t>(values, count, 0x7f800000u, 0x00800000u);
    case WeightFormat::kBf16:
      return find_code<uint16_t>(values, count, 0x7f80, 0x0080);
    case WeightFormat::kF16:
      return find_code<uint16_t>(values, count, 0x7c00, 0x0400);
    case WeightFormat::kFp8E4m3:
      return find_e4m3_nan(values, count);
    case WeightFormat::kInt4:
    case WeightFormat::kInt8:
      break;  // never in a checkpoint
  }
  return -1;
}

}  // namespace atl::kernels
