#include "kernels/linear.h"

#include "kernels/cpu/targets.h"
#include "kernels/reference/reference.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/linear.cc"
#include "hwy/foreach_target.h"  // compiles this file once per target

#include "hwy/highway.h"
#include "kernels/cpu/panel_kernel-inl.h"

HWY_BEFORE_NAMESPACE();
namespace atl::kernels::HWY_NAMESPACE {
#if ATOLL_SIMD

void LinearPanels(const PanelMatrix& w, int64_t panel_begin, int64_t panel_end,
                  const float* const* x, float* const* y, int64_t num_rows,
                  const PanelMatrix* next) {
  const std::byte* after = next != nullptr ? next->panel_codes(0) : nullptr;
  HWY_ALIGN float sums[kSumsMax];
  for (int64_t row = 0; row < num_rows; row += kRowChunk) {
    const int64_t rows = HWY_MIN(kRowChunk, num_rows - row);
    const PreparedRows prepared = PrepareRows(w.shape, x + row, rows);
    int panels;
    for (int64_t panel = panel_begin; panel < panel_end; panel += panels) {
      panels = NextPanels(w.shape.format, panel_end - panel, rows);
      PanelSums(w, panel, panels, prepared, NextCodes(w, panel, panels, panel_end, after), sums);
      const int64_t first = panel * kPanelWidth;
      const int64_t count = HWY_MIN(panels * kPanelWidth, w.shape.outputs - first);
      for (int64_t r = 0; r < rows; ++r) {
        memcpy(y[row + r] + first, sums + r * panels * kPanelWidth,
               static_cast<size_t>(count) * sizeof(float));
      }
    }
  }
}

#else

void LinearPanels(const PanelMatrix& w, int64_t panel_begin, int64_t panel_end,
                  const float* const* x, float* const* y, int64_t num_rows, const PanelMatrix*) {
  const auto n = static_cast<size_t>(num_rows);
  reference::linear_panels(w, panel_begin, panel_end, {x, n}, {y, n});
}

#endif
}  // namespace atl::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <algorithm>

#include "base/check.h"

namespace atl::kernels {

HWY_EXPORT(LinearPanels);

void linear_panels(const PanelMatrix& w, int64_t panel_begin, int64_t panel_end,
                   std::span<const float* const> x, std::span<float* const> y,
                   const PanelMatrix* next) {
  CHECK_EQ(x.size(), y.size());
  CHECK_GE(panel_begin, 0);
  CHECK_LE(panel_end, w.shape.num_panels());
  HWY_DYNAMIC_DISPATCH(LinearPanels)
  (w, panel_begin, panel_end, x.data(), y.data(), static_cast<int64_t>(x.size()), next);
}

void linear(ThreadTeam& team, const PanelMatrix& w, int64_t num_rows, const float* x,
            int64_t x_stride, float* y, int64_t y_stride) {
  constexpr int64_t kBlock = 8;  // panels that one row takes at once (cpu/panel_kernel-inl.h)
  constexpr int64_t kTurnsPerMember = 4;  // enough for members of unequal speed
  constexpr int64_t kRows = 64;
  const int64_t panels = w.shape.num_panels();
  const int64_t share = ceil_div(panels, team.num_threads());
  const int64_t grain = std::min(share, round_up(ceil_div(share, kTurnsPerMember), kBlock));
  team.parallel_for(panels, grain, [&](int64_t panel_begin, int64_t panel_end, int) {
    for (int64_t row = 0; row < num_rows; row += kRows) {
      const float* x_rows[kRows];
      float* y_rows[kRows];
      const int64_t rows = std::min(kRows, num_rows - row);
      for (int64_t r = 0; r < rows; ++r) {
        x_rows[r] = x + (row + r) * x_stride;
        y_rows[r] = y + (row + r) * y_stride;
      }
      const auto n = static_cast<size_t>(rows);
      linear_panels(w, panel_begin, panel_end, {x_rows, n}, {y_rows, n});
    }
  });
}

}  // namespace atl::kernels
#endif  // HWY_ONCE
