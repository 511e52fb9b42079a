#include "kernels/panel.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"

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

PanelShape panel_shape(WeightFormat format, int64_t outputs, int64_t k, const PanelSource& source) {
  PanelShape shape;
  shape.format = format;
  shape.outputs = outputs;
  shape.k = k;
  shape.k_offset = source.transposed ? source.row_begin : source.col_begin;
  if (format != WeightFormat::kFp8E4m3) return shape;
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
  CHECK(rows.format == shape.format);
  CHECK_LE(source.col_begin + (source.transposed ? shape.outputs : shape.k), rows.cols);
  if (source.transposed) {
    pack_transposed(shape, source, rows, codes, scales);
  } else {
    pack_outputs(shape, source, rows, codes, scales);
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
    case WeightFormat::kFp8E4m3:
      return find_e4m3_nan(values, count);
  }
  return -1;
}

}  // namespace atl::kernels
