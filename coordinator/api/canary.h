// Whether text can be generated now: a token is generated now and then when nobody asks for one.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "coordinator/serving/generation.h"

namespace atl::coordinator {

struct CanaryOptions {
  std::chrono::milliseconds every{10'000};    // without a token: one is generated
  std::chrono::milliseconds max_age{30'000};  // no token for longer: not ready
  // A step that takes longer, and this many times what steps usually take: not ready.
  std::chrono::milliseconds step_max{1'500};
  double step_times_usual = 10;
  std::vector<int32_t> prompt;
};

// One thread. Borrows backend and clock.
class Canary {
 public:
  Canary(CanaryOptions options, GenerationBackend& backend, const Clock& clock);

  // Now and then, at least twice in `every`. An engine that fails is tried each time, so that it is
  // known soon when it is well again.
  void tick();
  // Something has happened that may keep the engine from generating: the next tick tries.
  void doubt() { in_doubt_ = true; }
  // Of every event, whosesoever. True: it was the canary's.
  bool on_event(const GenerationEvent& event);
  // Nullopt: a token came lately, and the engine's last step went well.
  std::optional<std::string> not_ready_because() const;

 private:
  std::optional<std::string> stuck_step() const;

  const CanaryOptions options_;
  GenerationBackend& backend_;
  const Clock& clock_;
  std::optional<Clock::TimePoint> last_token_;
  std::optional<GenerationId> under_way_;
  bool in_doubt_ = false;
  std::string error_;  // of the last one, if it failed
};

}  // namespace atl::coordinator
