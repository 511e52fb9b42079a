// Panels: how a weight matrix lies in memory, the same for every weight format and SIMD target.
//
// A matrix W [outputs, k] (y = x W^T) is cut into panels of kPanelWidth outputs. Inside a panel a
// SIMD lane is an output: for each step of k, one 32-bit word per output holds the next
// 4 / code_bytes codes of that output, first k in the lowest byte:
//
//   FP8   [ceil(k/4)][16][4 codes]     BF16, F16  [ceil(k/2)][16][2 codes]     F32  [k][16]
//
// (int4 and int8 have their scales among the codes: kernels/int4.h, kernels/int8.h.) k is padded to
// a multiple of 4 and the last panel to 16 outputs, both with zero codes. Kernels never do
// arithmetic on padded k (a padded term could turn a -0 into +0).
//
// FP8 scales lie apart from the codes, per panel and scale group. A group is the stretch of k
// inside one 128-block of the checkpoint's matrix, so the first and last may be shorter:
// boundaries are where (k_offset + i) % 128 == 0. One scale per group if all outputs of every
// panel share a 128-row block of the checkpoint's scales, else one per output ([groups][16]).
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/units.h"
#include "kernels/int4.h"
#include "kernels/int8.h"
#include "kernels/numeric_types.h"

namespace atl::kernels {

inline constexpr int64_t kPanelWidth = 16;   // P: one cache line of FP8 codes per 4 k
inline constexpr int64_t kScaleBlock = 128;  // checkpoint block, in outputs and in k
inline constexpr int64_t kPanelKPad = 4;     // k is padded to a multiple of this

// What a packed matrix is. A plain value; everything else follows from it.
struct PanelShape {
  WeightFormat format = WeightFormat::kF32;
  int64_t outputs = 0;
  int64_t k = 0;
  int64_t k_offset = 0;  // place of the first k in the checkpoint's matrix
  // FP8 only: a panel may straddle two 128-row blocks, or the codes were made by packing.
  bool scale_per_output = false;
  Activations activations = Activations::kF32;  // kI8 for kInt4, if asked for, and kInt8

  int64_t num_panels() const { return ceil_div(outputs, kPanelWidth); }
  // Length of the first group; the following ones are 128 long but the last.
  int64_t first_group() const { return kScaleBlock - k_offset % kScaleBlock; }
  int64_t num_groups() const {
    return k == 0 ? 0 : (k_offset + k - 1) / kScaleBlock - k_offset / kScaleBlock + 1;
  }
  // kInt4 and kInt8: with their scales.
  size_t panel_code_bytes() const {
    if (format == WeightFormat::kInt4) return int4_panel_bytes(k, k_offset);
    if (format == WeightFormat::kInt8) return int8_panel_bytes(k, k_offset);
    return static_cast<size_t>(round_up(k, kPanelKPad) * kPanelWidth) * code_bytes(format);
  }
  // FP32 scales of one panel beside its codes: 0 for formats without.
  int64_t panel_scales() const {
    if (format != WeightFormat::kFp8E4m3) return 0;
    return num_groups() * (scale_per_output ? kPanelWidth : 1);
  }
  size_t total_code_bytes() const { return static_cast<size_t>(num_panels()) * panel_code_bytes(); }
  size_t total_scale_bytes() const {
    return static_cast<size_t>(num_panels() * panel_scales()) * sizeof(float);
  }
  friend bool operator==(const PanelShape&, const PanelShape&) = default;
};

// A packed matrix in memory that somebody else owns. codes is 64-byte aligned.
struct PanelMatrix {
  PanelShape shape;
  const std::byte* codes = nullptr;
  const float* scales = nullptr;  // nullptr for formats without scales

  const std::byte* panel_codes(int64_t panel) const {
    return codes + static_cast<size_t>(panel) * shape.panel_code_bytes();
  }
  const float* panel_scales(int64_t panel) const { return scales + panel * shape.panel_scales(); }
};

// Some rows of a checkpoint's row-major matrix, all its columns, as read into the staging window.
struct MatrixRows {
  WeightFormat format = WeightFormat::kF32;
  const std::byte* data = nullptr;  // first element of row `first_row`
  int64_t first_row = 0;            // of the whole matrix
  int64_t num_rows = 0;
  int64_t cols = 0;                   // of the whole matrix
  const float* scale_grid = nullptr;  // FP8: the whole grid [ceil(rows/128)][ceil(cols/128)]
};

// Where a packed matrix comes from in the checkpoint's matrix: outputs are its rows (or columns if
// transposed) from row_begin / col_begin on.
struct PanelSource {
  int64_t row_begin = 0;
  int64_t col_begin = 0;
  bool transposed = false;  // outputs are columns, k are rows (the k half of kv_b, absorbed)
};

// Whose scales an FP8 matrix has: those of the checkpoint's 128x128 blocks, or, where packing makes
// FP8 of a checkpoint in BF16 or F32, its own for each output and 128 k.
enum class ScaleOrigin : uint8_t { kCheckpoint, kPacking };

// The shape of outputs x k cut out at `source`, deciding k_offset and scale_per_output.
PanelShape panel_shape(WeightFormat format, int64_t outputs, int64_t k, const PanelSource& source,
                       Activations activations = Activations::kF32,
                       ScaleOrigin scales = ScaleOrigin::kCheckpoint);

// The rows of a piece for a transposed pack that quantizes (to int4, int8, or BF16 or F32 to FP8)
// begin and end at multiples of this, counted in the whole matrix, or at the packed matrix's ends.
inline constexpr int64_t kTransposedPieceRows = 128;

// Writes those rows of `rows` that fall into the packed matrix to their places in codes and scales
// (as laid out by `shape`, zero-filled before by the caller). Rows outside are ignored, so that a
// matrix may arrive in any pieces and order (but see kTransposedPieceRows); disjoint pieces may be
// packed by several threads at once only if no two touch the same output (or, transposed, the same
// group of 4 k).
//
// Where rows.format is not shape.format, each value (FP8: code * scale, rounded to FP32) is
// converted (never to F16): rounded to BF16; or quantized to int4, to int8, or to FP8 with scale =
// largest magnitude / 448 of an output's 128 k (which asks for ScaleOrigin::kPacking).
// docs/numbers.md, "Converted weights".
void pack(const PanelShape& shape, const PanelSource& source, const MatrixRows& rows,
          std::byte* codes, float* scales);

// The k values of one output of a matrix without scales (kF32, kBf16, kF16), as FP32.
void unpack_output(const PanelMatrix& matrix, int64_t output, float* values);

// Index of the first NaN code (0x7F, 0xFF) among `count` E4M3 codes, or -1.
int64_t find_e4m3_nan(const std::byte* codes, int64_t count);
// Index of the first NaN or infinity among `count` values of F32, BF16 or F16, or -1.
int64_t find_non_finite(WeightFormat format, const std::byte* values, int64_t count);

}  // namespace atl::kernels
