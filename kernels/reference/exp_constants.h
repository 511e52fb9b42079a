// The numbers of the one exponential that scalar and vector code share.
//
//   t = fma(x, log2(e), 1.5 * 2^23);  n = t - 1.5 * 2^23         (round to nearest, ties to even)
//   r = fma(n, -ln2_hi, x);  r = fma(n, -ln2_lo, r)              (|r| <= ln(2)/2)
//   p = sum of r^i / i!, i = 0..7, by Horner's rule in fma
//   e^x = (p * 2^(n >> 1)) * 2^(n - (n >> 1))
//
// The Taylor remainder r^8 / 8! is below 5.2e-9 = 0.09 ulp of 1 at |r| = ln(2)/2. Two steps of
// scaling, since 2^n alone is no normal FP32 number for n < -126 or n > 127; only the second can
// round (into the subnormals) or overflow.
#pragma once

namespace atl::kernels {

inline constexpr float kExpLog2e = 0x1.715476p+0f;
inline constexpr float kExpLn2Hi = 0x1.62e4p-1f;     // 15 bits: n * ln2_hi is exact
inline constexpr float kExpLn2Lo = 0x1.7f7d1cp-20f;  // ln(2) - ln2_hi
inline constexpr float kRoundMagic = 0x1.8p+23f;     // its low mantissa bits count ones
inline constexpr float kExpMin = -104.0f;            // e^-104 < 2^-150 rounds to 0
inline constexpr float kExpMax = 89.0f;              // e^89 > FLT_MAX rounds to infinity
inline constexpr float kExpCoefficients[8] = {       // 1 / 7!, 1 / 6!, ..., 1 / 0!
    1.0f / 5040, 1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};

}  // namespace atl::kernels
