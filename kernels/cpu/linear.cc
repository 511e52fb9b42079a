#include "kernels/linear.h"

#include <algorithm>

#include "kernels/reference/reference.h"

namespace atl::kernels {
void linear_panels(const PanelMatrix& w, int64_t panel_begin, int64_t panel_end,
                   std::span<const float* const> x, std::span<float* const> y) {
  reference::linear_panels(w, panel_begin, panel_end, x, y);
}
void linear(ThreadTeam& team, const PanelMatrix& w, int64_t num_rows, const float* x,
            int64_t x_stride, float* y, int64_t y_stride) {
  team.parallel_for(w.shape.num_panels(), 1, [&](int64_t b, int64_t e, int) {
    for (int64_t r = 0; r < num_rows; ++r) {
      const float* xr = x + r * x_stride;
      float* yr = y + r * y_stride;
      linear_panels(w, b, e, {&xr, 1}, {&yr, 1});
    }
  });
}
}  // namespace atl::kernels
