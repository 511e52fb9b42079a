// One node's membership in the cluster, as a state machine: what happens to it goes in with the
// time, what is to be done about it comes out. Pure: no I/O, no thread, no clock of its own.
//
//                  joined                silent                  heard
//      kJoining ------------> kReady ------------> kSuspect ------------> kReady
//        |  ^                   |                     |
//        |  |  time to retry    | lost                | lost, or silent for long
//        |  +----- kBackingOff <+---------------------+
//        +------------^
//          join failed
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/clock.h"

namespace atl::coordinator {

struct MemberTimes {
  std::chrono::milliseconds heartbeat{100};  // a node is asked so often, and this ticks so often
  std::chrono::milliseconds suspect_after{300};
  std::chrono::milliseconds lost_after{1000};
  // Before joining again: at once the first time, then this, then twice as long each time.
  std::chrono::milliseconds backoff_min{250};
  std::chrono::milliseconds backoff_max{30'000};
  std::chrono::milliseconds settled_after{60'000};  // ready for so long: begins at "at once" again
};

class Member {
 public:
  enum class State : uint8_t { kJoining, kReady, kSuspect, kBackingOff };
  enum class Order : uint8_t {
    kNone,
    kSuspect,  // tell those who ask it
    kTrust,    // and that it was heard again
    kDrop,     // it is lost: tell them, and end what is left of it
    kJoin,     // start, greet, load; then joined() or join_failed()
  };

  // It is being joined for the first time.
  Member(MemberTimes times, Clock::TimePoint now) : times_(times), last_tick_(now) {}

  State state() const { return state_; }
  uint64_t life() const { return life_; }          // counts joins begun, from 1
  uint64_t losses() const { return losses_; }      // of a node that was ready
  uint64_t joins() const { return joins_; }        // that succeeded
  const std::string& why() const { return why_; }  // it was lost or couldn't join, the last time
  Clock::TimePoint retry_at() const { return retry_at_; }  // kBackingOff

  // What happened. Each is ignored in a state that it can't happen in.
  void joined(Clock::TimePoint now);
  void join_failed(Clock::TimePoint now, std::string why);
  void heard();
  // Its connection broke, its process ended, or it did what it mustn't.
  void lost(std::string why);

  // Time passes: what is to be done now. To be called until kNone, about every `heartbeat`. Silence
  // counts at most two heartbeats a tick, so that time in which this process did not run is
  // nobody's silence.
  Order tick(Clock::TimePoint now);

 private:
  void back_off(Clock::TimePoint now);

  const MemberTimes times_;
  State state_ = State::kJoining;
  Clock::TimePoint last_tick_;
  std::chrono::nanoseconds silence_{0};
  bool heard_ = false;  // since the last tick
  bool lost_ = false;   // to be dropped at the next tick
  Clock::TimePoint ready_since_{}, retry_at_{};
  int failures_ = 0;  // since it was settled
  uint64_t life_ = 1, losses_ = 0, joins_ = 0;
  std::string why_;
};

std::string_view to_string(Member::State state);

}  // namespace atl::coordinator
