#include "base/fp_env.h"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace atl {

#if defined(__x86_64__)
namespace {
// MXCSR: bit 15 FTZ, bits 13-14 rounding (0 = nearest even), bit 6 DAZ.
constexpr uint32_t kFlushToZero = 1u << 15;
constexpr uint32_t kRounding = 3u << 13;
constexpr uint32_t kDenormalsAreZero = 1u << 6;
constexpr uint32_t kWatched = kFlushToZero | kRounding | kDenormalsAreZero;
}  // namespace

bool fp_env_is_standard() { return (_mm_getcsr() & kWatched) == 0; }

ScopedStandardFpEnv::ScopedStandardFpEnv() : saved_(_mm_getcsr()) {
  _mm_setcsr(static_cast<uint32_t>(saved_) & ~kWatched);
}
ScopedStandardFpEnv::~ScopedStandardFpEnv() { _mm_setcsr(static_cast<uint32_t>(saved_)); }

void force_flush_to_zero_for_test() {
  _mm_setcsr(_mm_getcsr() | kFlushToZero | kDenormalsAreZero);
}

#elif defined(__aarch64__)
namespace {
// FPCR: bit 24 FZ, bits 22-23 rounding (0 = nearest even).
constexpr uint64_t kWatched = (1u << 24) | (3u << 22);
uint64_t read_fpcr() {
  uint64_t value;
  asm volatile("mrs %0, fpcr" : "=r"(value));
  return value;
}
void write_fpcr(uint64_t value) { asm volatile("msr fpcr, %0" ::"r"(value)); }
}  // namespace

bool fp_env_is_standard() { return (read_fpcr() & kWatched) == 0; }
ScopedStandardFpEnv::ScopedStandardFpEnv() : saved_(read_fpcr()) { write_fpcr(saved_ & ~kWatched); }
ScopedStandardFpEnv::~ScopedStandardFpEnv() { write_fpcr(saved_); }
void force_flush_to_zero_for_test() { write_fpcr(read_fpcr() | (1u << 24)); }
#else
#error "fp_env.cc knows x86-64 and aarch64: add this machine's control register"
#endif

}  // namespace atl
