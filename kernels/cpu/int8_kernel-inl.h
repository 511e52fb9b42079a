// What the panel micro-kernel needs of the int8 one (int8_kernel.cc), per target.

#if defined(ATOLL_KERNELS_INT8_KERNEL_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ATOLL_KERNELS_INT8_KERNEL_INL_H_
#undef ATOLL_KERNELS_INT8_KERNEL_INL_H_
#else
#define ATOLL_KERNELS_INT8_KERNEL_INL_H_
#endif

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/byte_units.h"
#include "kernels/cpu/simd-inl.h"
#include "kernels/panel.h"

HWY_BEFORE_NAMESPACE();
namespace atl::kernels::HWY_NAMESPACE {
#if ATOLL_SIMD

// Rows rounded per 128-block of k: [block][row][128], zeros behind a shorter block.
struct Int8Rows {
  const int8_t* q = nullptr;       // 15 more rows may be read behind the last block's
  const int32_t* start = nullptr;  // [block][row]: -128 x sum of q, what unsigned codes start from
  const float* scales = nullptr;   // [block][row]
};

// Bytes that some rows take, and where in them what lies.
size_t Int8RowsBytes(const PanelShape& shape, int64_t num_rows);
Int8Rows Int8RowsAt(const PanelShape& shape, int64_t num_rows, std::byte* memory);
// Rounds `rows` to there.
void PrepareInt8Rows(const PanelShape& shape, const float* const* rows, int64_t num_rows,
                     std::byte* memory);

// sums[row][num_panels * 16] of panels [panel, panel + num_panels); `next` as in PanelSums().
void Int8Sums(const PanelMatrix& w, int64_t panel, int num_panels, const Int8Rows& rows,
              int64_t num_rows, const std::byte* next, float* sums);

// While it lives, this thread's tiles (amx-inl.h) can be used for linear layers of this shape and
// so many rows, if they are to be: some 90 ns, too much for each call of PanelSums().
class TilesInUse {
 public:
  TilesInUse(const PanelShape& shape, int64_t num_rows);
  ~TilesInUse();
  TilesInUse(const TilesInUse&) = delete;
  TilesInUse& operator=(const TilesInUse&) = delete;

 private:
  AmxUse use_;
};

#endif  // ATOLL_SIMD
}  // namespace atl::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard
