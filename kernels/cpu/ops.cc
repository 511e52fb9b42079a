#include "kernels/ops.h"

#include "kernels/reference/reference.h"

namespace atl::kernels {
float exp_f32(float x) { return reference::exp_f32(x); }
float sigmoid_f32(float x) { return reference::sigmoid_f32(x); }
float silu_f32(float x) { return reference::silu_f32(x); }
float dot(const float* x, const float* y, int64_t n) { return reference::dot(x, y, n); }
void rms_norm(const float* x, const float* weight, float eps, int64_t n, float* y) {
  reference::rms_norm(x, weight, eps, n, y);
}
void sigmoid(float* x, int64_t n) { reference::sigmoid(x, n); }
void silu_mul(const float* gate, const float* up, int64_t n, float* h) {
  reference::silu_mul(gate, up, n, h);
}
void add_in_place(float* x, const float* y, int64_t n) { reference::add_in_place(x, y, n); }
void rope_interleaved(float* x, const float* cos, const float* sin, int64_t num_pairs) {
  reference::rope_interleaved(x, cos, sin, num_pairs);
}
void store_rounded(const float* x, int64_t n, RowType type, void* out) {
  reference::store_rounded(x, n, type, out);
}
void load_row(const void* row, int64_t n, RowType type, float* out) {
  reference::load_row(row, n, type, out);
}
void load_weights_row(const void* row, int64_t n, WeightFormat format, float* out) {
  reference::load_row(row, n, format == WeightFormat::kF32 ? RowType::kF32 : RowType::kBf16, out);
}
void softmax(float* x, int64_t n) { reference::softmax(x, n); }
}  // namespace atl::kernels
