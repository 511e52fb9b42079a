// What one thread does, stretch by stretch, while somebody wants to know.
//
// Off, a ring costs the question whether it is on. On, it keeps the last kCapacity events: who
// reads too slowly is told how many were overwritten, and nobody who works waits for a reader.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <vector>

#include "base/clock.h"

namespace atl {

// A stretch of a thread's time. What `kind` and `peer` mean is the matter of who records.
struct TraceEvent {
  int64_t begin_ns = 0, end_ns = 0;  // of the clock of the machine: steady, since it started
  uint64_t id = 0;                   // of a dispatch, 0: none
  int32_t layer = -1;                // -1: outside of layers
  uint32_t rows = 0;
  uint16_t peer = 0;
  uint8_t kind = 0;
  friend bool operator==(const TraceEvent&, const TraceEvent&) = default;
};

inline int64_t trace_ns(Clock::TimePoint at) {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(at.time_since_epoch()).count();
}

class TraceRing {
 public:
  static constexpr size_t kCapacity = 1 << 16;  // 2.6 MB, taken at the first start()

  // Any thread.
  bool is_on() const { return on_.load(std::memory_order_relaxed); }
  // Empties the ring, too, unless it is on.
  void start();
  void stop();
  struct Taken {
    std::vector<TraceEvent> events;  // oldest first, at most as many as were asked for
    uint64_t lost = 0;               // overwritten since the last take()
  };
  Taken take(size_t events_max);

  // The thread whose ring it is. Does nothing while it is off.
  void add(const TraceEvent& event);

 private:
  std::atomic<bool> on_{false};
  std::mutex mutex_;
  std::vector<TraceEvent> events_;
  uint64_t written_ = 0, taken_ = 0, lost_ = 0;
};

// Adds the stretch from its making to its end. `ring` may be null.
class TraceSpan {
 public:
  TraceSpan(TraceRing* ring, const Clock& clock, uint8_t kind, uint64_t id, int32_t layer,
            uint32_t rows)
      : ring_(ring != nullptr && ring->is_on() ? ring : nullptr), clock_(clock) {
    if (ring_) event_ = {trace_ns(clock.now()), 0, id, layer, rows, 0, kind};
  }
  ~TraceSpan() {
    if (!ring_) return;
    event_.end_ns = trace_ns(clock_.now());
    ring_->add(event_);
  }
  TraceSpan(const TraceSpan&) = delete;
  TraceSpan& operator=(const TraceSpan&) = delete;

 private:
  TraceRing* const ring_;
  const Clock& clock_;
  TraceEvent event_;
};

}  // namespace atl
