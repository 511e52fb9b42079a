#include "kernels/ops.h"

#include <cmath>

#include "kernels/cpu/targets.h"
#include "kernels/reference/reference.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/ops.cc"
#include "hwy/foreach_target.h"  // compiles this file once per target

#include "hwy/highway.h"
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace atl::kernels::HWY_NAMESPACE {
#if ATOLL_SIMD

float Dot(const float* x, const float* y, int64_t n) {
  V16 s = Zero16();
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) s = MulAdd16(Load16(x + i), Load16(y + i), s);
  if (i < n) {
    s = FirstNOf(n - i, MulAdd16(LoadN16(x + i, n - i), LoadN16(y + i, n - i), s), s);
  }
  return TreeSum(s);
}

// y = (x * inverse) * weight.
void ScaleByWeight(const float* x, const float* weight, float inverse, int64_t n, float* y) {
  V16 factor;
  HWY_UNROLL(8)
  for (int j = 0; j < kVectors; ++j) factor.v[j] = hn::Set(kD, inverse);
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    Store16(Mul16(Mul16(Load16(x + i), factor), Load16(weight + i)), y + i);
  }
  for (; i < n; ++i) y[i] = (x[i] * inverse) * weight[i];
}

void SigmoidInPlace(float* x, int64_t n) {
  for (int64_t i = 0; i < n; i += 16) {
    const int64_t left = n - i;
    V16 v = left >= 16 ? Load16(x + i) : LoadN16(x + i, left);
    HWY_UNROLL(8)
    for (int j = 0; j < kVectors; ++j) v.v[j] = Sigmoid(v.v[j]);
    left >= 16 ? Store16(v, x + i) : StoreN16(v, x + i, left);
  }
}

void SiluMul(const float* gate, const float* up, int64_t n, float* h) {
  for (int64_t i = 0; i < n; i += 16) {
    const int64_t left = n - i;
    V16 g = left >= 16 ? Load16(gate + i) : LoadN16(gate + i, left);
    const V16 u = left >= 16 ? Load16(up + i) : LoadN16(up + i, left);
    HWY_UNROLL(8)
    for (int j = 0; j < kVectors; ++j) g.v[j] = hn::Mul(Silu(g.v[j]), u.v[j]);
    left >= 16 ? Store16(g, h + i) : StoreN16(g, h + i, left);
  }
}

void AddInPlace(float* x, const float* y, int64_t n) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) Store16(Add16(Load16(x + i), Load16(y + i)), x + i);
  for (; i < n; ++i) x[i] += y[i];
}

void Rope(float* x, const float* cos, const float* sin, int64_t num_pairs) {
  int64_t i = 0;
  for (; i + kLanes <= num_pairs; i += kLanes) {
    V a, b;
    hn::LoadInterleaved2(kD, x + 2 * i, a, b);
    const V c = hn::LoadU(kD, cos + i);
    const V s = hn::LoadU(kD, sin + i);
    const V even = hn::MulSub(a, c, hn::Mul(b, s));
    const V odd = hn::MulAdd(a, s, hn::Mul(b, c));
    hn::StoreInterleaved2(even, odd, kD, x + 2 * i);
  }
  reference::rope_interleaved(x + 2 * i, cos + i, sin + i, num_pairs - i);
}

void RopeHalves(float* x, const float* cos, const float* sin, int64_t num_pairs) {
  float* const y = x + num_pairs;
  int64_t i = 0;
  for (; i + kLanes <= num_pairs; i += kLanes) {
    const V a = hn::LoadU(kD, x + i), b = hn::LoadU(kD, y + i);
    const V c = hn::LoadU(kD, cos + i);
    const V s = hn::LoadU(kD, sin + i);
    hn::StoreU(hn::MulSub(a, c, hn::Mul(b, s)), kD, x + i);
    hn::StoreU(hn::MulAdd(a, s, hn::Mul(b, c)), kD, y + i);
  }
  for (; i < num_pairs; ++i) {
    const float a = x[i], b = y[i];
    x[i] = std::fma(a, cos[i], -(b * sin[i]));
    y[i] = std::fma(a, sin[i], b * cos[i]);
  }
}

void StoreBf16(const float* x, int64_t n, uint16_t* out) {
  const hn::Rebind<uint16_t, D> d16;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const V value = hn::LoadU(kD, x + i);
    const auto bits = hn::BitCast(kDU, value);
    const auto high = hn::ShiftRight<16>(bits);
    const auto odd = hn::And(high, hn::Set(kDU, 1));
    const auto rounded = hn::ShiftRight<16>(hn::Add(bits, hn::Add(odd, hn::Set(kDU, 0x7fff))));
    const auto quiet = hn::Or(high, hn::Set(kDU, 0x40));
    const auto is_nan = hn::RebindMask(kDU, hn::IsNaN(value));
    const auto result = hn::BitCast(kDI, hn::IfThenElse(is_nan, quiet, rounded));
    hn::StoreU(hn::DemoteTo(d16, result), d16, out + i);
  }
  for (; i < n; ++i) out[i] = float_to_bf16(x[i]);
}

void LoadBf16(const uint16_t* in, int64_t n, float* out) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) Store16(Load16Bf16(in + i), out + i);
  for (; i < n; ++i) out[i] = bf16_to_float(in[i]);
}

float Max(const float* x, int64_t n) {
  float max = x[0];
  int64_t i = 0;
  if (n >= kLanes) {
    V m = hn::LoadU(kD, x);
    for (; i + kLanes <= n; i += kLanes) {
      const V v = hn::LoadU(kD, x + i);
      m = hn::IfThenElse(hn::Gt(v, m), v, m);
    }
    HWY_ALIGN float lanes[kLanes];
    hn::Store(m, kD, lanes);
    for (int j = 0; j < kLanes; ++j) max = lanes[j] > max ? lanes[j] : max;
  }
  for (; i < n; ++i) max = x[i] > max ? x[i] : max;
  return max;
}

void Softmax(float* x, int64_t n) {
  if (n == 0) return;
  const V max = hn::Set(kD, Max(x, n));
  V16 s = Zero16();
  for (int64_t i = 0; i < n; i += 16) {
    const int64_t left = n - i;
    V16 p = left >= 16 ? Load16(x + i) : LoadN16(x + i, left);
    HWY_UNROLL(8)
    for (int j = 0; j < kVectors; ++j) p.v[j] = Exp(hn::Sub(p.v[j], max));
    if (left >= 16) {
      s = Add16(s, p);
      Store16(p, x + i);
    } else {
      s = FirstNOf(left, Add16(s, p), s);
      StoreN16(p, x + i, left);
    }
  }
  const float sum = TreeSum(s);
  const V divisor = hn::Set(kD, sum);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    hn::StoreU(hn::Div(hn::LoadU(kD, x + i), divisor), kD, x + i);
  }
  for (; i < n; ++i) x[i] /= sum;
}

#else

float Dot(const float* x, const float* y, int64_t n) { return reference::dot(x, y, n); }
void ScaleByWeight(const float* x, const float* weight, float inverse, int64_t n, float* y) {
  for (int64_t i = 0; i < n; ++i) y[i] = (x[i] * inverse) * weight[i];
}
void SigmoidInPlace(float* x, int64_t n) { reference::sigmoid(x, n); }
void SiluMul(const float* gate, const float* up, int64_t n, float* h) {
  reference::silu_mul(gate, up, n, h);
}
void AddInPlace(float* x, const float* y, int64_t n) { reference::add_in_place(x, y, n); }
void Rope(float* x, const float* cos, const float* sin, int64_t num_pairs) {
  reference::rope_interleaved(x, cos, sin, num_pairs);
}
void RopeHalves(float* x, const float* cos, const float* sin, int64_t num_pairs) {
  reference::rope_halves(x, cos, sin, num_pairs);
}
void StoreBf16(const float* x, int64_t n, uint16_t* out) {
  reference::store_rounded(x, n, RowType::kBf16, out);
}
void LoadBf16(const uint16_t* in, int64_t n, float* out) {
  reference::load_row(in, n, RowType::kBf16, out);
}
void Softmax(float* x, int64_t n) { reference::softmax(x, n); }

#endif
}  // namespace atl::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <cmath>
#include <cstring>

#include "base/check.h"

namespace atl::kernels {

HWY_EXPORT(Dot);
HWY_EXPORT(ScaleByWeight);
HWY_EXPORT(SigmoidInPlace);
HWY_EXPORT(SiluMul);
HWY_EXPORT(AddInPlace);
HWY_EXPORT(Rope);
HWY_EXPORT(RopeHalves);
HWY_EXPORT(StoreBf16);
HWY_EXPORT(LoadBf16);
HWY_EXPORT(Softmax);

float exp_f32(float x) { return reference::exp_f32(x); }
float sigmoid_f32(float x) { return reference::sigmoid_f32(x); }
float silu_f32(float x) { return reference::silu_f32(x); }

float dot(const float* x, const float* y, int64_t n) { return HWY_DYNAMIC_DISPATCH(Dot)(x, y, n); }

void rms_norm(const float* x, const float* weight, float eps, int64_t n, float* y) {
  const float mean = dot(x, x, n) / static_cast<float>(n);
  const float inverse = 1.0f / std::sqrt(mean + eps);
  HWY_DYNAMIC_DISPATCH(ScaleByWeight)(x, weight, inverse, n, y);
}

void sigmoid(float* x, int64_t n) { HWY_DYNAMIC_DISPATCH(SigmoidInPlace)(x, n); }

void silu_mul(const float* gate, const float* up, int64_t n, float* h) {
  HWY_DYNAMIC_DISPATCH(SiluMul)(gate, up, n, h);
}

void add_in_place(float* x, const float* y, int64_t n) {
  HWY_DYNAMIC_DISPATCH(AddInPlace)(x, y, n);
}

void rope_interleaved(float* x, const float* cos, const float* sin, int64_t num_pairs) {
  HWY_DYNAMIC_DISPATCH(Rope)(x, cos, sin, num_pairs);
}

void rope_halves(float* x, const float* cos, const float* sin, int64_t num_pairs) {
  HWY_DYNAMIC_DISPATCH(RopeHalves)(x, cos, sin, num_pairs);
}

void store_rounded(const float* x, int64_t n, RowType type, void* out) {
  if (type == RowType::kF32) {
    std::memcpy(out, x, static_cast<size_t>(n) * sizeof(float));
  } else {
    HWY_DYNAMIC_DISPATCH(StoreBf16)(x, n, static_cast<uint16_t*>(out));
  }
}

void load_row(const void* row, int64_t n, RowType type, float* out) {
  if (type == RowType::kF32) {
    std::memcpy(out, row, static_cast<size_t>(n) * sizeof(float));
  } else {
    HWY_DYNAMIC_DISPATCH(LoadBf16)(static_cast<const uint16_t*>(row), n, out);
  }
}

void load_weights_row(const void* row, int64_t n, WeightFormat format, float* out) {
  CHECK(format != WeightFormat::kFp8E4m3);
  if (format == WeightFormat::kF16) {
    const auto* bits = static_cast<const uint16_t*>(row);
    for (int64_t i = 0; i < n; ++i) out[i] = f16_to_float(bits[i]);
    return;
  }
  load_row(row, n, format == WeightFormat::kF32 ? RowType::kF32 : RowType::kBf16, out);
}

void softmax(float* x, int64_t n) { HWY_DYNAMIC_DISPATCH(Softmax)(x, n); }

}  // namespace atl::kernels
#endif  // HWY_ONCE
