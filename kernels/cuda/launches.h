// The coordinator's kernels on a GPU, profile f32: each gives the bits of kernels/reference.
//
// Pointers are to the device's memory, arguments plain values; everything is queued on the stream
// and done in order. Weights are Atoll's panels as they lie in RAM (kernels/panel.h): what is
// uploaded is a copy. No CUDA type is named here; kernels.cu is compiled by nvcc for devices and by
// the C++ compiler for the emulator.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/numeric_types.h"
#include "kernels/panel.h"
#include "kernels/router.h"

namespace atl::kernels::cuda {

// cudaStream_t.
using StreamHandle = void*;

// A scale group of a panel: k in [begin, end).
struct PanelGroup {
  int32_t begin = 0, end = 0;
  uint32_t word = 0;   // of the panel: the line of 16 words that holds `begin`
  uint32_t scale = 0;  // of the panel: FP8: index of the (first) FP32 scale; int4: of the first of
                       // 16 BF16 scales; others: unused
};
// Of all panels of such a matrix.
std::vector<PanelGroup> panel_groups(const PanelShape& shape);

// A matrix on the device. Matrices that are computed together (the heads of kv_b) have all but
// codes, scales and groups in common.
struct DeviceMatrix {
  const uint32_t* codes = nullptr;
  const float* scales = nullptr;       // FP8
  const PanelGroup* groups = nullptr;  // [num_groups]
  int32_t num_groups = 0;
  int32_t k = 0, outputs = 0;
  uint32_t panel_words = 0;  // from one panel to the next
  uint32_t panel_scales = 0;
  uint32_t scale_per_output = 0;
};

// y[z][row][o] = sum over k of x[z][row][k] W_z[o][k], for matrices z.
struct LinearCall {
  WeightFormat format = WeightFormat::kF32;
  const DeviceMatrix* matrices = nullptr;  // [num_matrices], on the device
  int32_t num_matrices = 1;
  int32_t outputs = 0;
  int32_t num_rows = 0;
  const float* x = nullptr;
  int64_t x_row = 0, x_matrix = 0;  // floats from one row, one matrix to the next
  float* y = nullptr;
  int64_t y_row = 0, y_matrix = 0;
};
void linear(StreamHandle stream, const LinearCall& call);

// y = x / rms(x) * weight, rows of n floats, x_row and y_row floats from one to the next; y may be
// x.
void rms_norm(StreamHandle stream, int32_t num_rows, int32_t n, const float* x, int64_t x_row,
              const float* weight, float eps, float* y, int64_t y_row);

// Rotates `pairs` pairs at x + row * x_row + part * x_part, for num_parts parts of each row.
//   cos, sin  [num_rows][pairs]
void rope(StreamHandle stream, int32_t num_rows, int32_t num_parts, int32_t pairs, const float* cos,
          const float* sin, float* x, int64_t x_row, int64_t x_part);

// gate = silu(gate) * up, n values.
void silu_mul(StreamHandle stream, int64_t n, float* gate, const float* up);
// to += from, n values.
void add(StreamHandle stream, int64_t n, const float* from, float* to);
// to[row][0..width) = from[row][0..width).
void copy_rows(StreamHandle stream, int32_t num_rows, int32_t width, const float* from,
               int64_t from_row, float* to, int64_t to_row);

// Where the rows of a step are in the paged cache of one layer.
struct CacheCall {
  RowType type = RowType::kBf16;
  void* entries = nullptr;  // of the layer: [blocks][64][rank + rope]
  int32_t rank = 0, rope = 0;
  int32_t num_rows = 0;
  const int32_t* num_positions = nullptr;  // [num_rows]: the row's own included
  const int32_t* block_table = nullptr;    // [num_rows][blocks_max]
  int32_t blocks_max = 0;
};
// latent [num_rows][rank + rope]: rounded into each row's last position.
void write_cache(StreamHandle stream, const CacheCall& cache, const float* latent);

// Attention of the absorbed form (kernels/attention.h).
struct AttendCall {
  int32_t heads = 0;
  float scale = 0;
  const float* q = nullptr;  // [num_rows][heads][rank + rope]
  float* out = nullptr;      // [num_rows][heads][rank]
  float* scratch = nullptr;  // attend_scratch_floats()
};
int64_t attend_scratch_floats(int32_t num_rows, int32_t heads, int32_t blocks_max);
void mla_attend(StreamHandle stream, const CacheCall& cache, const AttendCall& call);

// kernels::route() of every row; ids of -1 and weights of 0 where logits are not finite.
//   logits   [num_rows][n_routed_experts], overwritten
//   bias     [n_routed_experts] or nullptr
//   finite   [num_rows] 0 or 1
void route(StreamHandle stream, const RouterShape& shape, int32_t num_rows, float* logits,
           const float* bias, int32_t* ids, float* weights, uint8_t* finite);

}  // namespace atl::kernels::cuda
