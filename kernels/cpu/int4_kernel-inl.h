// What the panel micro-kernel needs of the int4 one (int4_kernel.cc), per target.

#if defined(ATOLL_KERNELS_INT4_KERNEL_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ATOLL_KERNELS_INT4_KERNEL_INL_H_
#undef ATOLL_KERNELS_INT4_KERNEL_INL_H_
#else
#define ATOLL_KERNELS_INT4_KERNEL_INL_H_
#endif

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/simd-inl.h"
#include "kernels/panel.h"

HWY_BEFORE_NAMESPACE();
namespace atl::kernels::HWY_NAMESPACE {
#if ATOLL_SIMD

// Rows as the int4 kernels read them, per 128-block of k: [block][row][128], a group's values from
// 64 * slot on, those behind a shorter group zero.
struct Int4Rows {
  const float* x = nullptr;         // kF32, times kInt4RowScale where `direct`
  const uint8_t* direct = nullptr;  // kF32, per block: for the kernels that decode in registers
  const int8_t* q = nullptr;        // kI8
  const int32_t* start = nullptr;   // kI8, [block][row][2]: -8 x sum of a group's q
  const float* scales = nullptr;    // kI8, [block][row]
};

// Bytes that some rows take, and where in them what lies.
size_t Int4RowsBytes(const PanelShape& shape, int64_t num_rows);
Int4Rows Int4RowsAt(const PanelShape& shape, int64_t num_rows, std::byte* memory);
// Copies or rounds `rows` to there.
void PrepareInt4Rows(const PanelShape& shape, const float* const* rows, int64_t num_rows,
                     std::byte* memory);

// sums[row][num_panels * 16] of panels [panel, panel + num_panels); `next` as in PanelSums().
void Int4Sums(const PanelMatrix& w, int64_t panel, int num_panels, const Int4Rows& rows,
              int64_t num_rows, const std::byte* next, float* sums);

#endif  // ATOLL_SIMD
}  // namespace atl::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard
