// What all vector kernels share, compiled once per target: 16 FP32 lanes as kVectors vectors, the
// 16 partial sums with their tree, and the exponential (reference/exp_constants.h).

#if defined(ATOLL_KERNELS_SIMD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ATOLL_KERNELS_SIMD_INL_H_
#undef ATOLL_KERNELS_SIMD_INL_H_
#else
#define ATOLL_KERNELS_SIMD_INL_H_
#endif

#include <cstdint>
#include <cstring>

#include "hwy/highway.h"
#include "kernels/reference/exp_constants.h"

// Vectors of known length with fused multiply-add; without, a target's functions are the reference.
#undef ATOLL_SIMD
#if HWY_NATIVE_FMA && !HWY_HAVE_SCALABLE
#define ATOLL_SIMD 1
#else
#define ATOLL_SIMD 0
#endif

HWY_BEFORE_NAMESPACE();
namespace atl::kernels::HWY_NAMESPACE {
#if ATOLL_SIMD
namespace hn = hwy::HWY_NAMESPACE;

using D = hn::CappedTag<float, 16>;
using DI = hn::RebindToSigned<D>;
using DU = hn::RebindToUnsigned<D>;
using V = hn::Vec<D>;
using M = hn::Mask<D>;

constexpr D kD{};
constexpr DI kDI{};
constexpr DU kDU{};
constexpr int kLanes = static_cast<int>(hn::MaxLanes(D()));
constexpr int kVectors = 16 / kLanes;  // per panel, and per set of 16 partial sums

HWY_INLINE V Broadcast(const float* x) { return hn::Set(kD, *x); }

// 16 lanes.
struct V16 {
  // Not implicit: the compiler would make that one without the target's options, and on NEON the
  // vectors' own constructors could not be inlined there.
  HWY_INLINE V16() {}
  V v[kVectors];
};

HWY_INLINE V16 Zero16() {
  V16 r;
  HWY_UNROLL(8)
  for (int i = 0; i < kVectors; ++i) r.v[i] = hn::Zero(kD);
  return r;
}
HWY_INLINE V16 Load16(const float* p) {
  V16 r;
  HWY_UNROLL(8)
  for (int i = 0; i < kVectors; ++i) r.v[i] = hn::LoadU(kD, p + i * kLanes);
  return r;
}
HWY_INLINE void Store16(const V16& x, float* p) {
  HWY_UNROLL(8)
  for (int i = 0; i < kVectors; ++i) hn::StoreU(x.v[i], kD, p + i * kLanes);
}
// 16 BF16 values.
HWY_INLINE V16 Load16Bf16(const uint16_t* p) {
  const hn::Rebind<uint16_t, D> d16;
  V16 r;
  HWY_UNROLL(8)
  for (int i = 0; i < kVectors; ++i) {
    const auto bits = hn::PromoteTo(kDU, hn::LoadU(d16, p + i * kLanes));
    r.v[i] = hn::BitCast(kD, hn::ShiftLeft<16>(bits));
  }
  return r;
}
// Lanes [0, n) from a, the others from b; n < 16.
HWY_INLINE V16 FirstNOf(int64_t n, const V16& a, const V16& b) {
  V16 r;
  HWY_UNROLL(8)
  for (int i = 0; i < kVectors; ++i) {
    const int64_t here = HWY_MIN(HWY_MAX(n - i * kLanes, 0), kLanes);
    r.v[i] = hn::IfThenElse(hn::FirstN(kD, static_cast<size_t>(here)), a.v[i], b.v[i]);
  }
  return r;
}
// The first n < 16 values at p, zeros behind them, reading no byte past them.
HWY_INLINE V16 LoadN16(const float* p, int64_t n) {
  HWY_ALIGN float buffer[16] = {};
  memcpy(buffer, p, static_cast<size_t>(n) * sizeof(float));
  return Load16(buffer);
}
HWY_INLINE void StoreN16(const V16& x, float* p, int64_t n) {
  HWY_ALIGN float buffer[16];
  Store16(x, buffer);
  memcpy(p, buffer, static_cast<size_t>(n) * sizeof(float));
}

HWY_INLINE V16 Add16(const V16& a, const V16& b) {
  V16 r;
  HWY_UNROLL(8)
  for (int i = 0; i < kVectors; ++i) r.v[i] = hn::Add(a.v[i], b.v[i]);
  return r;
}
HWY_INLINE V16 Mul16(const V16& a, const V16& b) {
  V16 r;
  HWY_UNROLL(8)
  for (int i = 0; i < kVectors; ++i) r.v[i] = hn::Mul(a.v[i], b.v[i]);
  return r;
}
HWY_INLINE V16 MulAdd16(const V16& a, const V16& b, const V16& c) {
  V16 r;
  HWY_UNROLL(8)
  for (int i = 0; i < kVectors; ++i) r.v[i] = hn::MulAdd(a.v[i], b.v[i], c.v[i]);
  return r;
}

// s[j] += s[j + 8], then + 4, + 2, + 1.
HWY_INLINE float TreeSum(const V16& s) {
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL
  const hn::Full128<float> d4;
  const hn::Half<D> d8;
  const auto s8 = hn::Add(hn::LowerHalf(d8, s.v[0]), hn::UpperHalf(d8, s.v[0]));
  const auto s4 = hn::Add(hn::LowerHalf(d4, s8), hn::UpperHalf(d4, s8));
#elif HWY_TARGET == HWY_AVX2
  const hn::Full128<float> d4;
  const auto s8 = hn::Add(s.v[0], s.v[1]);
  const auto s4 = hn::Add(hn::LowerHalf(d4, s8), hn::UpperHalf(d4, s8));
#else
  static_assert(kLanes == 4);
  const auto s4 = hn::Add(hn::Add(s.v[0], s.v[2]), hn::Add(s.v[1], s.v[3]));
#endif
  const auto s2 = hn::Add(s4, hn::Shuffle1032(s4));
  return hn::GetLane(hn::Add(s2, hn::Shuffle2301(s2)));
}

HWY_INLINE V Exp(V x) {
  const V magic = hn::Set(kD, kRoundMagic);
  const auto is_nan = hn::IsNaN(x);
  V c = hn::IfThenElse(hn::Lt(x, hn::Set(kD, kExpMin)), hn::Set(kD, kExpMin), x);
  c = hn::IfThenElse(hn::Gt(c, hn::Set(kD, kExpMax)), hn::Set(kD, kExpMax), c);
  const V t = hn::MulAdd(c, hn::Set(kD, kExpLog2e), magic);
  const V n = hn::Sub(t, magic);
  V r = hn::MulAdd(n, hn::Set(kD, -kExpLn2Hi), c);
  r = hn::MulAdd(n, hn::Set(kD, -kExpLn2Lo), r);
  V p = hn::Set(kD, kExpCoefficients[0]);
  HWY_UNROLL(7)
  for (int i = 1; i < 8; ++i) p = hn::MulAdd(p, r, hn::Set(kD, kExpCoefficients[i]));
  const auto exponent = hn::Sub(hn::BitCast(kDI, t), hn::BitCast(kDI, magic));
  const auto first = hn::ShiftRight<1>(exponent);
  const auto bias = hn::Set(kDI, 127);
  const auto scale1 = hn::ShiftLeft<23>(hn::Add(first, bias));
  const auto scale2 = hn::ShiftLeft<23>(hn::Add(hn::Sub(exponent, first), bias));
  const V e = hn::Mul(hn::Mul(p, hn::BitCast(kD, scale1)), hn::BitCast(kD, scale2));
  return hn::IfThenElse(is_nan, x, e);
}

// 1 + exp(-x), the divisor of sigmoid and silu.
HWY_INLINE V OnePlusExpNeg(V x) { return hn::Add(hn::Set(kD, 1.0f), Exp(hn::Neg(x))); }
HWY_INLINE V Sigmoid(V x) { return hn::Div(hn::Set(kD, 1.0f), OnePlusExpNeg(x)); }
HWY_INLINE V Silu(V x) { return hn::Div(x, OnePlusExpNeg(x)); }

#endif  // ATOLL_SIMD
}  // namespace atl::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard
