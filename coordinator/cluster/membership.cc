#include "coordinator/cluster/membership.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace atl::coordinator {

void Member::opened() {
  if (is_joining()) state_ = State::kGreeting;
}

void Member::greeted() {
  if (is_joining()) state_ = State::kLoading;
}

void Member::joined(Clock::TimePoint now) {
  if (!is_joining()) return;
  state_ = State::kReady;
  ++joins_;
  silence_ = {};
  heard_ = lost_ = false;
  ready_since_ = last_tick_ = now;
  why_.clear();
}

void Member::join_failed(Clock::TimePoint now, std::string why) {
  if (!is_joining()) return;
  why_ = std::move(why);
  back_off(now);
}

void Member::refused(Clock::TimePoint now, std::string why) {
  failures_ = std::max(failures_, kFailuresMax);
  join_failed(now, std::move(why));
}

void Member::unreachable(Clock::TimePoint now, std::string why) {
  if (!is_joining()) return;
  why_ = std::move(why);
  state_ = joins_ > 0 ? State::kLost : State::kDialing;
  wait_until(now + times_.redial);
}

void Member::heard() { heard_ = true; }

void Member::lost(std::string why) {
  if (lost_ || !is_there()) return;
  lost_ = true;
  why_ = std::move(why);
}

void Member::back_off(Clock::TimePoint now) {
  const int doublings = std::min(std::max(failures_ - 1, 0), 20);
  const auto pause =
      failures_ == 0 ? std::chrono::milliseconds(0)
                     : std::min(times_.backoff_max, times_.backoff_min * (int64_t{1} << doublings));
  CHECK(!waiting_);
  ++failures_;
  wait_until(now + pause);
  state_ = failures_ > kFailuresMax ? State::kQuarantined : State::kLost;
}

Member::Order Member::tick(Clock::TimePoint now) {
  CHECK(now >= last_tick_);
  const auto passed = std::min<std::chrono::nanoseconds>(now - last_tick_, 2 * times_.heartbeat);
  last_tick_ = now;
  if (waiting_) {
    if (now < retry_at_) return Order::kNone;
    waiting_ = false;
    if (std::exchange(has_begun_, true)) ++life_;
    return Order::kJoin;
  }
  if (is_joining()) return Order::kNone;
  silence_ = std::exchange(heard_, false) ? std::chrono::nanoseconds(0) : silence_ + passed;
  if (silence_ >= times_.lost_after) {
    lost(fmt::format("no heartbeat for {} ms", times_.lost_after.count()));
  }
  if (lost_) {
    ++losses_;
    if (now - ready_since_ >= times_.settled_after) failures_ = 0;
    back_off(now);
    return Order::kDrop;
  }
  const bool silent = silence_ >= times_.suspect_after;
  if (state_ == State::kReady && silent) {
    state_ = State::kSuspect;
    return Order::kSuspect;
  }
  if (state_ == State::kSuspect && !silent) {
    state_ = State::kReady;
    return Order::kTrust;
  }
  return Order::kNone;
}

std::string_view to_string(Member::State state) {
  switch (state) {
    case Member::State::kDialing:
      return "dialing";
    case Member::State::kGreeting:
      return "greeting";
    case Member::State::kLoading:
      return "loading";
    case Member::State::kReady:
      return "ready";
    case Member::State::kSuspect:
      return "suspect";
    case Member::State::kLost:
      return "lost";
    case Member::State::kQuarantined:
      return "quarantined";
  }
  return "?";
}

}  // namespace atl::coordinator
