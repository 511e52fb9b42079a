#include "kernels/cpu/widen.h"

#include "kernels/cpu/targets.h"
#include "kernels/numeric_types.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/widen.cc"
#include "hwy/foreach_target.h"  // compiles this file once per target

#include "hwy/highway.h"
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace atl::kernels::HWY_NAMESPACE {

// s eeee mmm at the sign, the low exponent bits and the high mantissa bits of an FP32 is the value
// times 2^-120, also where eeee = 0 (then it is subnormal): both are exact, only `scale` rounds.
void WidenE4m3(const std::byte* codes, int64_t n, float scale, float* values) {
  int64_t i = 0;
#if ATOLL_SIMD
  const hn::Rebind<uint8_t, D> d8;
  const V up = hn::Set(kD, 0x1p+120f), factor = hn::Set(kD, scale);
  const auto magnitude = hn::Set(kDU, 0x7fu), nan = hn::Set(kDU, 0x7fc00000u);
  for (; i + kLanes <= n; i += kLanes) {
    const auto code =
        hn::PromoteTo(kDU, hn::LoadU(d8, reinterpret_cast<const uint8_t*>(codes + i)));
    const auto low = hn::And(code, magnitude);
    const auto sign = hn::ShiftLeft<24>(hn::Xor(code, low));
    const V value = hn::Mul(hn::BitCast(kD, hn::Or(sign, hn::ShiftLeft<20>(low))), up);
    const V any = hn::IfThenElse(hn::RebindMask(kD, hn::Eq(low, magnitude)),
                                 hn::BitCast(kD, hn::Or(sign, nan)), value);
    hn::StoreU(hn::Mul(any, factor), kD, values + i);
  }
#endif
  for (; i < n; ++i) values[i] = e4m3_to_float(static_cast<uint8_t>(codes[i])) * scale;
}

}  // namespace atl::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace atl::kernels {

HWY_EXPORT(WidenE4m3);

void widen_e4m3(const std::byte* codes, int64_t n, float scale, float* values) {
  HWY_DYNAMIC_DISPATCH(WidenE4m3)(codes, n, scale, values);
}

}  // namespace atl::kernels
#endif  // HWY_ONCE
