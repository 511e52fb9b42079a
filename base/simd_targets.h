// The SIMD targets that this program has. Include before any Highway header: those that include one
// choose among the targets by place, process-wide, so all must have the same list.
//
// Kept are the targets that have fused multiply-add and a vector length known at compile time;
// where there is none of them, the kernels are the reference. Clang, which builds the fuzzers, goes
// without AVX-512: it takes no VNNI instruction in a function that is compiled for less.
#pragma once

#ifdef __clang__
#define ATOLL_NOT_BY_CLANG (HWY_AVX3 | HWY_AVX3_DL)
#else
#define ATOLL_NOT_BY_CLANG 0
#endif
#define HWY_DISABLED_TARGETS \
  (HWY_SSSE3 | HWY_SSE4 | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | ATOLL_NOT_BY_CLANG)
