// One node's membership in the cluster, as a state machine: what happens to it goes in with the
// time, what is to be done about it comes out. Pure: no I/O, no thread, no clock of its own.
//
//            opened             greeted            joined          silent              heard
//   kDialing -------> kGreeting -------> kLoading -------> kReady -------> kSuspect -------> kReady
//    |  ^  ^             |                  |                |                |
//    |  |  |             | join failed      | join failed    | lost           | lost, or silent
//    |  |  |             v                  v                v                | for long
//    |  |  +------------ kLost, or, after kFailuresMax of these in a row, kQuarantined
//    +--+  time to retry: dialled again, and called so until it is opened
//   nobody there: tried again soon, as often as it takes
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
  // Before one that could not be reached is dialled again: a connection that is refused costs
  // nothing, and who starts a node waits for it.
  std::chrono::milliseconds redial{500};
};

class Member {
 public:
  enum class State : uint8_t {
    kDialing,
    kGreeting,
    kLoading,
    kReady,
    kSuspect,
    kLost,
    kQuarantined,  // lost or failing so often that it is left alone for a while
  };
  // Losses and failures in a row that are none too many.
  static constexpr int kFailuresMax = 3;

  enum class Order : uint8_t {
    kNone,
    kSuspect,  // tell those who ask it
    kTrust,    // and that it was heard again
    kDrop,     // it is lost: tell them, and end what is left of it
    kJoin,     // start, greet, load; then joined() or join_failed()
  };
  // Whether its first join is under way already or is the first order.
  enum class First : uint8_t { kUnderWay, kOrdered };

  Member(MemberTimes times, Clock::TimePoint now, First first = First::kUnderWay)
      : times_(times), last_tick_(now) {
    if (first == First::kUnderWay) return;
    has_begun_ = false;
    wait_until(now);
  }

  State state() const { return state_; }
  bool is_there() const { return state_ == State::kReady || state_ == State::kSuspect; }
  uint64_t life() const { return life_; }      // counts joins begun, from 1
  uint64_t losses() const { return losses_; }  // of a node that was ready
  uint64_t joins() const { return joins_; }    // that succeeded
  // Why it was lost or couldn't join, the last time. "" if it is there or nothing was tried yet.
  const std::string& why() const { return why_; }
  Clock::TimePoint retry_at() const { return retry_at_; }  // when it is not there and not joining

  // What happened. Each is ignored in a state that it can't happen in.
  void opened();
  void greeted();
  void joined(Clock::TimePoint now);
  void join_failed(Clock::TimePoint now, std::string why);
  // The node said that it is another one than wanted: tried again seldom.
  void refused(Clock::TimePoint now, std::string why);
  // Nobody was there to be asked, which is no fault of the node's.
  void unreachable(Clock::TimePoint now, std::string why);
  void heard();
  // Its connection broke, its process ended, or it did what it mustn't.
  void lost(std::string why);

  // Time passes: what is to be done now. To be called until kNone, about every `heartbeat`. Silence
  // counts at most two heartbeats a tick, so that time in which this process did not run is
  // nobody's silence.
  Order tick(Clock::TimePoint now);

 private:
  bool is_joining() const { return !waiting_ && !is_there(); }
  void wait_until(Clock::TimePoint time) {
    waiting_ = true;
    retry_at_ = time;
  }
  void back_off(Clock::TimePoint now);

  const MemberTimes times_;
  State state_ = State::kDialing;
  bool waiting_ = false;  // for retry_at_
  Clock::TimePoint last_tick_;
  std::chrono::nanoseconds silence_{0};
  bool heard_ = false;  // since the last tick
  bool lost_ = false;   // to be dropped at the next tick
  Clock::TimePoint ready_since_{}, retry_at_{};
  int failures_ = 0;       // since it was settled
  bool has_begun_ = true;  // its first join
  uint64_t life_ = 1, losses_ = 0, joins_ = 0;
  std::string why_;
};

std::string_view to_string(Member::State state);

}  // namespace atl::coordinator
