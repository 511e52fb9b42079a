// The floating-point environment that "The numbers" (docs/numbers.md) assume: round to nearest
// even, subnormals neither flushed (FTZ) nor read as zero (DAZ).
#pragma once

#include <cstdint>

namespace atl {

// True if this thread rounds to nearest with FTZ and DAZ off.
bool fp_env_is_standard();

// Sets the standard environment for this thread and puts the caller's back at the end of the
// scope. Every compute thread holds one for its life, every step of the engine one for its length:
// a library linked with -ffast-math may have turned FTZ on before main().
class ScopedStandardFpEnv {
 public:
  ScopedStandardFpEnv();
  ~ScopedStandardFpEnv();
  ScopedStandardFpEnv(const ScopedStandardFpEnv&) = delete;
  ScopedStandardFpEnv& operator=(const ScopedStandardFpEnv&) = delete;

 private:
  uint64_t saved_ = 0;
};

// For tests: turns FTZ and DAZ on in this thread (x86; a no-op where there is no such switch).
void force_flush_to_zero_for_test();

}  // namespace atl
