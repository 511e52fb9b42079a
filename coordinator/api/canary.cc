#include "coordinator/api/canary.h"

#include <fmt/format.h>

#include <utility>

namespace atl::coordinator {

Canary::Canary(CanaryOptions options, GenerationBackend& backend, const Clock& clock)
    : options_(std::move(options)), backend_(backend), clock_(clock) {}

void Canary::tick() {
  if (under_way_) return;
  const bool fresh = last_token_ && clock_.now() - *last_token_ < options_.every;
  if (fresh && backend_.stats().failure.empty()) return;
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

std::optional<std::string> Canary::not_ready_because() const {
  if (const GenerationStats stats = backend_.stats(); !stats.failure.empty()) {
    return "the engine's last step failed: " + stats.failure;
  }
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
