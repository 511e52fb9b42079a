// The SIMD targets that this program has. Include before any Highway header: those that include one
// choose among the targets by place, process-wide, so all must have the same list.
//
// Kept are the targets that have fused multiply-add and a vector length known at compile time; where
// there is none of them, the kernels are the reference.
#pragma once

#define HWY_DISABLED_TARGETS \
  (HWY_SSSE3 | HWY_SSE4 | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128)
