// What linear layers and tiles need of the panel micro-kernel (panel_kernel.cc), per target.

#if defined(ATOLL_KERNELS_PANEL_KERNEL_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ATOLL_KERNELS_PANEL_KERNEL_INL_H_
#undef ATOLL_KERNELS_PANEL_KERNEL_INL_H_
#else
#define ATOLL_KERNELS_PANEL_KERNEL_INL_H_
#endif

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/int4_kernel-inl.h"
#include "kernels/cpu/int8_kernel-inl.h"
#include "kernels/cpu/simd-inl.h"
#include "kernels/panel.h"

HWY_BEFORE_NAMESPACE();
namespace atl::kernels::HWY_NAMESPACE {
#if ATOLL_SIMD

// Rows whose sums are kept at once. Half with 16 registers, where rows share the first level with
// decoded codes.
constexpr int kRowChunk = kLanes == 8 ? 32 : 64;
// From row to row of a group, in floats: rows 512 bytes apart would meet in the same places of the
// first level (Zen 4 as AVX2, 64 rows: 73 GFLOP/s so, 95 with a line more).
constexpr int64_t kRowStride = kScaleBlock + 16;
constexpr int kDirectRows = 4;  // rows that share one decoding in registers
// Panels that more rows take at once, a scale group of all of them after the other: its codes (16
// KiB of FP8 or BF16) stay in L1 for the next rows.
constexpr int ManyRowsPanels(WeightFormat format) {
  return format == WeightFormat::kFp8E4m3 ? 8 : 4;
}
constexpr int kManyRowsPanelsMax = 8;

// Accumulators of the direct kernels. 16 registers (AVX2): 8, a decoded vector, a broadcast and the
// pieces of a word leave nothing. 32 registers: 16. Eight chains of FMA are full speed where two
// FMAs of four cycles start per cycle.
constexpr int kDirectAccumulators = kLanes == 8 ? 8 : 16;

constexpr int kDirectPanelsMax = 8;

// Largest power of two of panels whose accumulators for `rows` rows fit the registers.
constexpr int DirectPanels(int64_t rows) {
  int panels = kDirectPanelsMax;
  while (panels > 1 && panels * rows * kVectors > kDirectAccumulators) panels /= 2;
  return panels;
}

// Panels that the next call of PanelSums should take.
HWY_INLINE int NextPanels(WeightFormat format, int64_t panels_left, int64_t num_rows) {
  int panels = num_rows <= kDirectRows ? DirectPanels(num_rows) : ManyRowsPanels(format);
  while (panels > panels_left) panels /= 2;
  return panels;
}
constexpr int64_t kSumsMax = kRowChunk * kManyRowsPanelsMax * kPanelWidth;

// At most kRowChunk rows as the kernel reads them: [group][row][kRowStride], k counted from the
// group's begin.
struct PreparedRows {
  const float* x;
  const uint8_t* direct;  // [group] 1: for the direct kernels (FP8: scaled by kFp8RowScale)
  int64_t num_rows;
  Int4Rows int4 = {};  // kInt4: instead of x and direct
  Int8Rows int8 = {};  // kInt8: likewise
};

// Bytes that some rows take, and where in them (aligned to a cache line) what lies.
size_t PreparedBytes(const PanelShape& shape, int64_t num_rows);
PreparedRows PreparedAt(const PanelShape& shape, int64_t num_rows, std::byte* memory);
// Copies or rounds `rows` to there.
void PrepareRowsAt(const PanelShape& shape, const float* const* rows, int64_t num_rows,
                   std::byte* memory);
// The same in memory of this thread, valid until its next call.
PreparedRows PrepareRows(const PanelShape& shape, const float* const* rows, int64_t num_rows);

// sums[row][num_panels * 16] of panels [panel, panel + num_panels), num_panels from NextPanels.
// `sums` is aligned and holds kSumsMax values. `next`: codes of the panels that the next call will
// take, of a matrix of the same shape, fetched meanwhile; nullptr if not known. The caller holds
// TilesInUse for the shape and rows.
void PanelSums(const PanelMatrix& w, int64_t panel, int num_panels, const PreparedRows& rows,
               const std::byte* next, float* sums);

// Codes of the panels behind [panel, panel + num_panels), or `after` if those are the last ones
// wanted.
HWY_INLINE const std::byte* NextCodes(const PanelMatrix& w, int64_t panel, int num_panels,
                                      int64_t panel_end, const std::byte* after) {
  return panel + num_panels < panel_end ? w.panel_codes(panel + num_panels) : after;
}

#endif  // ATOLL_SIMD
}  // namespace atl::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard
