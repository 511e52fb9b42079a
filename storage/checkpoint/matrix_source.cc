#include "storage/checkpoint/matrix_source.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "base/result.h"
#include "kernels/numeric_types.h"
#include "storage/io/printable.h"

namespace atl::storage {
namespace {

using kernels::kScaleBlock;
using kernels::WeightFormat;

[[noreturn]] void throw_bad_value(const TensorSource& checkpoint, const TensorInfo& tensor,
                                  int64_t element, int64_t cols, const char* what) {
  throw LoadError(
      fmt::format("{}: tensor {}: value [{}, {}] is {}: the file is damaged, fetch it again",
                  (checkpoint.directory() / checkpoint.shards()[tensor.shard].file_name).string(),
                  printable(tensor.name), element / cols, element % cols, what));
}

struct ScaleRows {
  int64_t begin = 0, end = 0, cols = 0;
  WeightFormat format = WeightFormat::kF32;  // or kBf16
  int64_t count() const { return (end - begin) * cols; }
  uint64_t bytes() const { return static_cast<uint64_t>(count()) * kernels::code_bytes(format); }
};

// Rows of the scale grid that rows [row_begin, row_end) of the matrix touch.
ScaleRows scale_rows(const MatrixSource& matrix, int64_t row_begin, int64_t row_end) {
  if (matrix.scale == nullptr || row_begin == row_end) return {};
  return {row_begin / kScaleBlock, ceil_div(row_end, kScaleBlock),
          ceil_div(matrix.cols, kScaleBlock),
          matrix.scale->dtype == DType::kBf16 ? WeightFormat::kBf16 : WeightFormat::kF32};
}

// The whole grid, as kernels::pack indexes it, of which only the rows that are needed are read.
std::vector<float> read_scales(const TensorSource& checkpoint, const MatrixSource& matrix,
                               int64_t row_begin, int64_t row_end, Progress& progress) {
  const ScaleRows rows = scale_rows(matrix, row_begin, row_end);
  if (rows.bytes() == 0) return {};
  std::vector<float> grid(static_cast<size_t>(ceil_div(matrix.rows, kScaleBlock) * rows.cols));
  const auto needed = std::span(grid).subspan(static_cast<size_t>(rows.begin * rows.cols),
                                              static_cast<size_t>(rows.count()));
  std::vector<std::byte> raw(rows.bytes());
  checkpoint.read(*matrix.scale,
                  static_cast<uint64_t>(rows.begin * rows.cols) * kernels::code_bytes(rows.format),
                  raw);
  const int64_t bad = kernels::find_non_finite(rows.format, raw.data(), rows.count());
  if (bad >= 0) {
    throw_bad_value(checkpoint, *matrix.scale, rows.begin * rows.cols + bad, rows.cols,
                    "not finite");
  }
  if (rows.format == WeightFormat::kF32) {
    std::memcpy(needed.data(), raw.data(), raw.size());
  } else {
    for (size_t i = 0; i < needed.size(); ++i) {
      uint16_t bits;
      std::memcpy(&bits, raw.data() + i * sizeof bits, sizeof bits);
      needed[i] = kernels::bf16_to_float(bits);
    }
  }
  progress.advance(raw.size());
  return grid;
}

void check_codes(const TensorSource& checkpoint, const MatrixSource& matrix,
                 const kernels::MatrixRows& rows) {
  const bool fp8 = matrix.format == WeightFormat::kFp8E4m3;
  const int64_t count = rows.num_rows * rows.cols;
  const int64_t bad = fp8 ? kernels::find_e4m3_nan(rows.data, count)
                          : kernels::find_non_finite(matrix.format, rows.data, count);
  if (bad < 0) return;
  throw_bad_value(checkpoint, *matrix.weight, rows.first_row * rows.cols + bad, rows.cols,
                  fp8 ? "an FP8 NaN" : "not finite");
}

// Rows that a window takes. Quantizing needs all k of a group at once: of a transposed matrix those
// are rows, counted from the matrix's first (its tasks begin at multiples of a group, too).
int64_t rows_at_once(const MatrixSource& matrix, std::span<const PackTarget> targets,
                     size_t window_bytes) {
  const auto rows = static_cast<int64_t>(window_bytes / row_bytes(matrix));
  const bool by_group = std::any_of(targets.begin(), targets.end(), [&](const PackTarget& target) {
    return target.source.transposed && target.shape.format != matrix.format;
  });
  return by_group ? rows / kernels::kTransposedPieceRows * kernels::kTransposedPieceRows : rows;
}

}  // namespace

uint64_t row_bytes(const MatrixSource& matrix) {
  return static_cast<uint64_t>(matrix.cols) * kernels::code_bytes(matrix.format);
}

uint64_t source_bytes(const MatrixSource& matrix, int64_t row_begin, int64_t row_end) {
  return static_cast<uint64_t>(row_end - row_begin) * row_bytes(matrix) +
         scale_rows(matrix, row_begin, row_end).bytes();
}

void pack_matrix(const TensorSource& checkpoint, const MatrixSource& matrix, int64_t row_begin,
                 int64_t row_end, std::span<const PackTarget> targets, std::span<std::byte> window,
                 Progress& progress) {
  CHECK(matrix.weight != nullptr);
  CHECK(0 <= row_begin && row_begin <= row_end && row_end <= matrix.rows);
  CHECK_EQ(reinterpret_cast<uintptr_t>(window.data()) % alignof(float), 0u);
  const int64_t rows_per_window = rows_at_once(matrix, targets, window.size());
  CHECK_GE(rows_per_window, 1);

  const std::vector<float> scales = read_scales(checkpoint, matrix, row_begin, row_end, progress);
  for (int64_t row = row_begin; row < row_end; row += rows_per_window) {
    kernels::MatrixRows rows;
    rows.format = matrix.format;
    rows.data = window.data();
    rows.first_row = row;
    rows.num_rows = std::min(rows_per_window, row_end - row);
    rows.cols = matrix.cols;
    rows.scale_grid = scales.empty() ? nullptr : scales.data();
    const auto piece = window.first(static_cast<size_t>(rows.num_rows) * row_bytes(matrix));
    checkpoint.read(*matrix.weight, static_cast<uint64_t>(row) * row_bytes(matrix), piece);
    check_codes(checkpoint, matrix, rows);
    for (const PackTarget& target : targets) {
      kernels::pack(target.shape, target.source, rows, target.codes, target.scales);
    }
    progress.advance(piece.size());
  }
}

}  // namespace atl::storage
