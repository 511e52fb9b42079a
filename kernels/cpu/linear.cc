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

// Panels of at most kRowChunk rows that are prepared.
void PanelsOfRows(const PanelMatrix& w, int64_t panel_begin, int64_t panel_end,
                  const PreparedRows& rows, float* const* y, const std::byte* after) {
  HWY_ALIGN float sums[kSumsMax];
  const TilesInUse tiles(w.shape, rows.num_rows);
  int panels;
  for (int64_t panel = panel_begin; panel < panel_end; panel += panels) {
    panels = NextPanels(w.shape.format, panel_end - panel, rows.num_rows);
    PanelSums(w, panel, panels, rows, NextCodes(w, panel, panels, panel_end, after), sums);
    const int64_t first = panel * kPanelWidth;
    const int64_t count = HWY_MIN(panels * kPanelWidth, w.shape.outputs - first);
    for (int64_t r = 0; r < rows.num_rows; ++r) {
      memcpy(y[r] + first, sums + r * panels * kPanelWidth,
             static_cast<size_t>(count) * sizeof(float));
    }
  }
}

void LinearPanels(const PanelMatrix& w, int64_t panel_begin, int64_t panel_end,
                  const float* const* x, float* const* y, int64_t num_rows,
                  const PanelMatrix* next) {
  const std::byte* after = next != nullptr ? next->panel_codes(0) : nullptr;
  for (int64_t row = 0; row < num_rows; row += kRowChunk) {
    const int64_t rows = HWY_MIN(kRowChunk, num_rows - row);
    PanelsOfRows(w, panel_begin, panel_end, PrepareRows(w.shape, x + row, rows), y + row, after);
  }
}

// Rows that are prepared together; 0: this target prepares none.
int64_t RowsAtOnce() { return kRowChunk; }
size_t RowsBytes(const PanelShape& shape, int64_t num_rows) {
  return PreparedBytes(shape, num_rows);
}
void Prepare(const PanelShape& shape, const float* const* x, int64_t num_rows, std::byte* to) {
  PrepareRowsAt(shape, x, num_rows, to);
}
void PreparedPanels(const PanelMatrix& w, int64_t panel_begin, int64_t panel_end,
                    std::byte* prepared, float* const* y, int64_t num_rows) {
  PanelsOfRows(w, panel_begin, panel_end, PreparedAt(w.shape, num_rows, prepared), y, nullptr);
}

#else

void LinearPanels(const PanelMatrix& w, int64_t panel_begin, int64_t panel_end,
                  const float* const* x, float* const* y, int64_t num_rows, const PanelMatrix*) {
  const auto n = static_cast<size_t>(num_rows);
  reference::linear_panels(w, panel_begin, panel_end, {x, n}, {y, n});
}
int64_t RowsAtOnce() { return 0; }
size_t RowsBytes(const PanelShape&, int64_t) { return 0; }
void Prepare(const PanelShape&, const float* const*, int64_t, std::byte*) {}
void PreparedPanels(const PanelMatrix&, int64_t, int64_t, std::byte*, float* const*, int64_t) {}

#endif
}  // namespace atl::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <algorithm>

#include <vector>

#include "base/check.h"
#include "base/memory.h"

namespace atl::kernels {

HWY_EXPORT(LinearPanels);
HWY_EXPORT(RowsAtOnce);
HWY_EXPORT(RowsBytes);
HWY_EXPORT(Prepare);
HWY_EXPORT(PreparedPanels);

void linear_panels(const PanelMatrix& w, int64_t panel_begin, int64_t panel_end,
                   std::span<const float* const> x, std::span<float* const> y,
                   const PanelMatrix* next) {
  CHECK_EQ(x.size(), y.size());
  CHECK_GE(panel_begin, 0);
  CHECK_LE(panel_end, w.shape.num_panels());
  HWY_DYNAMIC_DISPATCH(LinearPanels)
  (w, panel_begin, panel_end, x.data(), y.data(), static_cast<int64_t>(x.size()), next);
}

namespace {

// From here on rows are made ready once for all panels, which costs a barrier more.
constexpr int64_t kSharedRowsMin = 16;

// Pointers to rows that are `stride` floats apart, made once for all units of a call.
template <typename Row>
std::vector<Row*> rows_at(Row* first, int64_t stride, int64_t num_rows) {
  std::vector<Row*> rows;
  rows.reserve(static_cast<size_t>(num_rows));
  for (int64_t r = 0; r < num_rows; ++r) rows.push_back(first + r * stride);
  return rows;
}

// Panels of a unit: enough units for members of unequal speed.
int64_t panels_per_unit(const ThreadTeam& team, int64_t panels) {
  constexpr int64_t kBlock = 8;  // panels that one row takes at once (cpu/panel_kernel-inl.h)
  constexpr int64_t kTurnsPerMember = 4;
  const int64_t share = ceil_div(panels, team.num_threads());
  return std::min(share, round_up(ceil_div(share, kTurnsPerMember), kBlock));
}

// Rows made ready by the team first, `at_once` of them together, in memory that this thread keeps.
void linear_of_shared_rows(ThreadTeam& team, const PanelMatrix& w, int64_t num_rows,
                           int64_t at_once, const float* const* x, float* const* y) {
  thread_local HostBuffer memory;
  const int64_t chunks = ceil_div(num_rows, at_once);
  const auto rows_of = [&](int64_t chunk) { return std::min(at_once, num_rows - chunk * at_once); };
  const size_t chunk_bytes = static_cast<size_t>(round_up(
      static_cast<int64_t>(HWY_DYNAMIC_DISPATCH(RowsBytes)(w.shape, at_once)), int64_t{64}));
  if (memory.size() < chunk_bytes * static_cast<size_t>(chunks)) {
    memory = HostBuffer(chunk_bytes * static_cast<size_t>(chunks));
  }
  const auto place = [&, at = memory.data()](int64_t chunk) {
    return at + static_cast<size_t>(chunk) * chunk_bytes;
  };
  team.parallel_for(chunks, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      const int64_t n = rows_of(chunk);
      HWY_DYNAMIC_DISPATCH(Prepare)
      (w.shape, x + chunk * at_once, n, place(chunk));
    }
  });
  const int64_t panels = w.shape.num_panels();
  team.parallel_for(panels, panels_per_unit(team, panels), [&](int64_t begin, int64_t end, int) {
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      HWY_DYNAMIC_DISPATCH(PreparedPanels)
      (w, begin, end, place(chunk), y + chunk * at_once, rows_of(chunk));
    }
  });
}

}  // namespace

void linear(ThreadTeam& team, const PanelMatrix& w, int64_t num_rows, const float* x,
            int64_t x_stride, float* y, int64_t y_stride) {
  const std::vector<const float*> x_rows = rows_at(x, x_stride, num_rows);
  const std::vector<float*> y_rows = rows_at(y, y_stride, num_rows);
  const int64_t at_once = HWY_DYNAMIC_DISPATCH(RowsAtOnce)();
  if (num_rows >= kSharedRowsMin && at_once > 0) {
    return linear_of_shared_rows(team, w, num_rows, at_once, x_rows.data(), y_rows.data());
  }
  const int64_t panels = w.shape.num_panels();
  team.parallel_for(panels, panels_per_unit(team, panels), [&](int64_t begin, int64_t end, int) {
    linear_panels(w, begin, end, x_rows, y_rows);
  });
}

}  // namespace atl::kernels
#endif  // HWY_ONCE
