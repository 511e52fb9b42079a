// Values rounded to int8 with one scale for a block of them, per target: of rows, and of weights
// that are packed.

#if defined(ATOLL_KERNELS_I8_ROWS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ATOLL_KERNELS_I8_ROWS_INL_H_
#undef ATOLL_KERNELS_I8_ROWS_INL_H_
#else
#define ATOLL_KERNELS_I8_ROWS_INL_H_
#endif

#include <cstdint>
#include <cstring>

#include "kernels/cpu/simd-inl.h"
#include "kernels/int4.h"

HWY_BEFORE_NAMESPACE();
namespace atl::kernels::HWY_NAMESPACE {
#if ATOLL_SIMD

// Largest bits of |x| of n values: those of the largest magnitude, or above infinity's for a NaN.
HWY_INLINE uint32_t LargestBits(const float* row, int64_t n) {
  const auto magnitude = hn::Set(kDU, 0x7fffffffu);
  const auto bits_of = [&](const float* at) HWY_ATTR {
    return hn::BitCast(kDI, hn::And(hn::BitCast(kDU, hn::LoadU(kD, at)), magnitude));
  };
  auto largest = hn::Zero(kDI), other = hn::Zero(kDI);
  int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    largest = hn::Max(largest, bits_of(row + i));
    other = hn::Max(other, bits_of(row + i + kLanes));
  }
  if (i + kLanes <= n) {
    other = hn::Max(other, bits_of(row + i));
    i += kLanes;
  }
  int32_t result = hn::GetLane(hn::MaxOfLanes(kDI, hn::Max(largest, other)));
  for (; i < n; ++i) {
    int32_t bits;
    memcpy(&bits, row + i, sizeof(bits));
    bits &= 0x7fffffff;
    result = bits > result ? bits : result;
  }
  return static_cast<uint32_t>(result);
}

// q = from * inverse to the nearest integer, ties to even, for n values of magnitudes that make at
// most 127; returns their sum. Adding 1.5 * 2^23 rounds to an integer, which is then in the low
// bits.
HWY_INLINE int32_t RoundToI8(const float* from, int64_t n, float inverse, int8_t* q) {
  constexpr float kMagic = 0x1.8p+23f;
  const hn::Rebind<int8_t, D> d8;
  const V factor = hn::Set(kD, inverse), magic = hn::Set(kD, kMagic);
  const auto offset = hn::BitCast(kDI, magic);
  auto sums = hn::Zero(kDI);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const V shifted = hn::Add(hn::Mul(hn::LoadU(kD, from + i), factor), magic);
    const auto rounded = hn::Sub(hn::BitCast(kDI, shifted), offset);
    sums = hn::Add(sums, rounded);
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL
    _mm_storeu_si128(reinterpret_cast<__m128i*>(q + i), _mm512_cvtepi32_epi8(rounded.raw));
#else
    hn::StoreU(hn::DemoteTo(d8, rounded), d8, q + i);
#endif
  }
  int32_t sum = hn::GetLane(hn::SumOfLanes(kDI, sums));
  for (; i < n; ++i) {
    q[i] = static_cast<int8_t>(static_cast<int32_t>((from[i] * inverse + kMagic) - kMagic));
    sum += q[i];
  }
  return sum;
}

// The scale of `n` values of this largest magnitude, and what they are multiplied by: both 0 where
// it is too small to have an inverse; a NaN and 0 where it is not finite.
struct I8Scale {
  float scale, inverse;
};
HWY_INLINE I8Scale I8ScaleOf(uint32_t largest_bits) {
  float largest;
  memcpy(&largest, &largest_bits, sizeof(largest));
  if (largest_bits >= 0x7f800000u) return {__builtin_nanf(""), 0.0f};
  if (largest < kI8SmallestBlock) return {0.0f, 0.0f};
  return {largest / 127.0f, 127.0f / largest};
}

#endif  // ATOLL_SIMD
}  // namespace atl::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // include guard
