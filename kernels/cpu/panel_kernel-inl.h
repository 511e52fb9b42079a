// What linear layers and tiles need of the panel micro-kernel (panel_kernel.cc), per target.

#if defined(ATOLL_KERNELS_PANEL_KERNEL_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ATOLL_KERNELS_PANEL_KERNEL_INL_H_
#undef ATOLL_KERNELS_PANEL_KERNEL_INL_H_
#else
#define ATOLL_KERNELS_PANEL_KERNEL_INL_H_
#endif

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/simd-inl.h"
#include "kernels/panel.h"

HWY_BEFORE_NAMESPACE();
namespace atl::kernels::HWY_NAMESPACE {
#if ATOLL_SIMD

constexpr int kRowChunk = 64;  // rows whose sums are kept at once
constexpr int kPanelsMax = 8;
// Accumulators that leave registers for weights, rows and constants: 16 registers on AVX2, else 32.
// Zen 4 and Cascade Lake need 8 chains of FMA for full speed at least.
constexpr int kAccumulatorsMax = kLanes == 8 ? 12 : kLanes == 4 ? 24 : 16;
constexpr int kRowsMax = kLanes == 16 ? 8 : 6;

// Largest power of two of panels whose accumulators for `rows` rows fit the registers.
constexpr int PanelsFor(int64_t rows) {
  int panels = kPanelsMax;
  while (panels > 1 && panels * rows * kVectors > kAccumulatorsMax) panels /= 2;
  return panels;
}
static_assert(PanelsFor(kRowsMax) * kRowsMax * kVectors <= kAccumulatorsMax);
constexpr int kManyRowsPanels = PanelsFor(kRowsMax);
constexpr int64_t kSumsMax =
    HWY_MAX(kRowChunk * kManyRowsPanels, kAccumulatorsMax / kVectors + kPanelsMax) * kPanelWidth;

// Panels that the next call of PanelSums should take: a power of two.
HWY_INLINE int NextPanels(int64_t panels_left, int64_t num_rows) {
  int panels = PanelsFor(num_rows < kRowsMax ? num_rows : kRowsMax);
  while (panels > panels_left) panels /= 2;
  return panels;
}

// sums[row][num_panels * 16] of panels [panel, panel + num_panels), num_panels from NextPanels, for
// at most kRowChunk rows. `sums` is aligned and holds kSumsMax values.
void PanelSums(const PanelMatrix& w, int64_t panel, int num_panels, const float* const* rows,
               int64_t num_rows, float* sums);

#endif  // ATOLL_SIMD
}  // namespace atl::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard
