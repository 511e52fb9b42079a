// The panel micro-kernel: every linear layer of the system, as docs/numbers.md defines it.
//
// For output o and row r, per scale group g in ascending order:
//   acc = +0; for k of g ascending: acc = fma(x[r][k], code[o][k], acc)
//   sum = fma(scale[o][g], acc, sum)            (sum starts at +0; no scale: scale = 1, groups of
//   128)
// A SIMD lane is an output, never a part of k, so any SIMD width, row block or split of outputs
// gives the same bits.
#pragma once

#include <cstdint>
#include <span>

#include "base/thread_team.h"
#include "kernels/panel.h"

namespace atl::kernels {

// y[r][o] for all rows and outputs of panels [panel_begin, panel_end).
//   x    [num_rows] pointers to FP32 rows of at least shape.k values, borrowed
//   y    [num_rows] pointers to FP32 rows indexed by output o of the whole matrix; outputs past
//        shape.outputs (padding) are not written
//   next a matrix of the same shape whose first panels the caller will ask for next, fetched from
//        memory meanwhile; nullptr if not known
void linear_panels(const PanelMatrix& w, int64_t panel_begin, int64_t panel_end,
                   std::span<const float* const> x, std::span<float* const> y,
                   const PanelMatrix* next = nullptr);

// RAM that linear() takes and keeps for `num_rows` rows of k values made ready: a bound for every
// format (FP32 rows: each block of 128 values a line apart from the next, and some bytes).
constexpr uint64_t linear_rows_bytes(int64_t num_rows, int64_t k) {
  constexpr int64_t kBytesPerBlock = 640;
  return static_cast<uint64_t>(num_rows * (ceil_div(k, kScaleBlock) + 1) * kBytesPerBlock);
}

// All panels, shared out over the team. x rows are x_stride floats apart, y rows y_stride.
void linear(ThreadTeam& team, const PanelMatrix& w, int64_t num_rows, const float* x,
            int64_t x_stride, float* y, int64_t y_stride);

}  // namespace atl::kernels
