#include "base/trace_ring.h"

#include <algorithm>
#include <utility>

namespace atl {

void TraceRing::start() {
  const std::lock_guard lock(mutex_);
  if (is_on()) return;
  events_.resize(kCapacity);
  written_ = taken_ = lost_ = 0;
  on_ = true;
}

void TraceRing::stop() { on_ = false; }

void TraceRing::add(const TraceEvent& event) {
  if (!is_on()) return;
  const std::lock_guard lock(mutex_);
  events_[written_++ % kCapacity] = event;
  if (written_ - taken_ > kCapacity) {
    ++taken_;
    ++lost_;
  }
}

TraceRing::Taken TraceRing::take(size_t events_max) {
  const std::lock_guard lock(mutex_);
  Taken taken;
  taken.lost = std::exchange(lost_, 0);
  for (; taken_ < written_ && taken.events.size() < events_max; ++taken_) {
    taken.events.push_back(events_[taken_ % kCapacity]);
  }
  return taken;
}

}  // namespace atl
