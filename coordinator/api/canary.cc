#include "coordinator/api/canary.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace atl::coordinator {

Canary::Canary(CanaryOptions options, GenerationBackend& backend, const Clock& clock)
    : options_(std::move(options)), backend_(backend), clock_(clock) {}

void Canary::tick() {
  if (under_way_) return;
  const bool fresh = last_token_ && clock_.now() - *last_token_ < options_.every;
  if (fresh && !in_doubt_ && backend_.stats().failure.empty()) return;
  in_doubt_ = false;
  GenerationRequest request;
  request.prompt = options_.prompt;
  request.max_tokens = 1;
  request.client = "canary";
  request.request_id = "canary";
  const auto id = backend_.submit(std::move(request));
  if (id) {
    under_way_ = *id;
  } else {
    error_ = id.error().message;
  }
}

bool Canary::on_event(const GenerationEvent& event) {
  if (event.token) {
    last_token_ = clock_.now();
    error_.clear();
  }
  if (under_way_ != event.id) return false;
  if (event.error) error_ = event.error->message;
  if (event.error || event.finish) under_way_.reset();
  return true;
}

// A step that has not come to its end when everybody would expect it.
std::optional<std::string> Canary::stuck_step() const {
  const GenerationStats stats = backend_.stats();
  if (stats.step_begin == 0) return std::nullopt;
  const double seconds = seconds_between(Clock::TimePoint(), clock_.now()) - stats.step_begin;
  const double usual = stats.step_seconds / static_cast<double>(std::max<uint64_t>(stats.steps, 1));
  const double limit = std::max(std::chrono::duration<double>(options_.step_max).count(),
                                options_.step_times_usual * usual);
  if (seconds <= limit) return std::nullopt;
  return fmt::format("a step has been under way for {:.1f} s, usual are {:.3f} s", seconds, usual);
}

std::optional<std::string> Canary::not_ready_because() const {
  if (const GenerationStats stats = backend_.stats(); !stats.failure.empty()) {
    return "the engine's last step failed: " + stats.failure;
  }
  if (auto stuck = stuck_step()) return stuck;
  if (!last_token_) {
    if (!error_.empty()) return "no token could be generated: " + error_;
    return "no token was generated yet";
  }
  const Clock::TimePoint now = clock_.now();
  if (now - *last_token_ <= options_.max_age) return std::nullopt;
  return fmt::format("no token was generated for {:.0f} s{}", seconds_between(*last_token_, now),
                     error_.empty() ? "" : ": " + error_);
}

}  // namespace atl::coordinator
