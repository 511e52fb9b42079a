// The CPU's arithmetic in the words of simt.h (docs/numbers.md; kernels/reference/ops.cc).
#pragma once

#include "kernels/cuda/simt.h"
#include "kernels/reference/exp_constants.h"

namespace atl::kernels::cuda {

SIMT_DEVICE float exp_f32(float x) {
  if (x != x) return x;
  x = x < kExpMin ? kExpMin : x;
  x = x > kExpMax ? kExpMax : x;
  const float t = simt::fma_rn(x, kExpLog2e, kRoundMagic);
  const float n = simt::add_rn(t, -kRoundMagic);
  float r = simt::fma_rn(n, -kExpLn2Hi, x);
  r = simt::fma_rn(n, -kExpLn2Lo, r);
  // 1 / 7!, 1 / 6!, ..., 1 / 0!: a device has no address of a constexpr array of the host's.
  float p = 1.0f / 5040;
  p = simt::fma_rn(p, r, 1.0f / 720);
  p = simt::fma_rn(p, r, 1.0f / 120);
  p = simt::fma_rn(p, r, 1.0f / 24);
  p = simt::fma_rn(p, r, 1.0f / 6);
  p = simt::fma_rn(p, r, 0.5f);
  p = simt::fma_rn(p, r, 1.0f);
  p = simt::fma_rn(p, r, 1.0f);
  const int exponent =
      static_cast<int>(simt::as_bits(t)) - static_cast<int>(simt::as_bits(kRoundMagic));
  const int first = exponent >> 1;
  const float low = simt::as_float(static_cast<uint32_t>(first + 127) << 23);
  const float high = simt::as_float(static_cast<uint32_t>(exponent - first + 127) << 23);
  return simt::mul_rn(simt::mul_rn(p, low), high);
}

SIMT_DEVICE float sigmoid_f32(float x) {
  return simt::div_rn(1.0f, simt::add_rn(1.0f, exp_f32(-x)));
}
SIMT_DEVICE float silu_f32(float x) { return simt::div_rn(x, simt::add_rn(1.0f, exp_f32(-x))); }

// The fixed tree over 16 partial sums, one in each lane of a half-warp; all 32 lanes call it.
// Additions commute, so that every lane ends with the bits of s[j] += s[j + 8], + 4, + 2, + 1.
SIMT_DEVICE float tree_sum16(float value) {
  for (int mask = 8; mask >= 1; mask /= 2) {
    value = simt::add_rn(value, simt::shuffle_xor(value, mask));
  }
  return value;
}
// The largest of a half-warp's values.
SIMT_DEVICE float max16(float value) {
  for (int mask = 8; mask >= 1; mask /= 2) {
    const float other = simt::shuffle_xor(value, mask);
    value = other > value ? other : value;
  }
  return value;
}

SIMT_DEVICE float bf16_value(uint32_t bits) { return simt::as_float(bits << 16); }
// To nearest, ties to even; a NaN stays a quiet NaN (kernels/numeric_types.h).
SIMT_DEVICE uint16_t to_bf16(float value) {
  const uint32_t bits = simt::as_bits(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
// Exact, subnormal codes too: the exponent is put right by a product with 2^120. NaN codes don't
// come here: loading refuses them.
SIMT_DEVICE float e4m3_value(uint32_t code) {
  const float magnitude = simt::mul_rn(simt::as_float((code & 0x7fu) << 20), 0x1p120f);
  return simt::as_float(simt::as_bits(magnitude) | (code & 0x80u) << 24);
}

}  // namespace atl::kernels::cuda
