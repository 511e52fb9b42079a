#include "base/trace_ring.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

namespace atl {
namespace {

using testing::IsEmpty;
using testing::SizeIs;

TraceEvent event(uint64_t id) { return {1, 2, id, 3, 4, 5, 6}; }

TEST(TraceRing, keeps_nothing_while_it_is_off) {
  TraceRing ring;
  ring.add(event(1));
  ring.start();
  ring.add(event(2));
  ring.stop();
  ring.add(event(3));
  const TraceRing::Taken taken = ring.take(10);
  ASSERT_THAT(taken.events, SizeIs(1));
  EXPECT_EQ(taken.events[0], event(2));
  EXPECT_EQ(taken.lost, 0u);
}

TEST(TraceRing, is_taken_piece_by_piece_and_starting_again_empties_it) {
  TraceRing ring;
  ring.start();
  for (uint64_t id = 0; id < 5; ++id) ring.add(event(id));
  EXPECT_EQ(ring.take(2).events[1].id, 1u);
  ring.start();  // it is on
  EXPECT_EQ(ring.take(2).events[0].id, 2u);
  ring.stop();
  EXPECT_THAT(ring.take(10).events, SizeIs(1));
  ring.start();
  ring.add(event(7));
  ring.stop();
  ring.start();
  EXPECT_THAT(ring.take(10).events, IsEmpty());
}

TEST(TraceRing, a_reader_that_is_late_is_told_how_many_were_overwritten) {
  TraceRing ring;
  ring.start();
  for (uint64_t id = 0; id < TraceRing::kCapacity + 3; ++id) ring.add(event(id));
  const TraceRing::Taken taken = ring.take(2 * TraceRing::kCapacity);
  EXPECT_EQ(taken.lost, 3u);
  ASSERT_THAT(taken.events, SizeIs(TraceRing::kCapacity));
  EXPECT_EQ(taken.events.front().id, 3u);
  EXPECT_EQ(taken.events.back().id, TraceRing::kCapacity + 2);
  EXPECT_EQ(ring.take(1).lost, 0u);
}

TEST(TraceRing, spans_last_as_long_as_they_live) {
  ManualClock clock;
  clock.advance(std::chrono::nanoseconds(100));
  TraceRing ring;
  { const TraceSpan off(&ring, clock, 1, 2, 3, 4); }
  { const TraceSpan none(nullptr, clock, 1, 2, 3, 4); }
  ring.start();
  {
    const TraceSpan span(&ring, clock, 1, 2, 3, 4);
    clock.advance(std::chrono::nanoseconds(7));
  }
  const TraceRing::Taken taken = ring.take(10);
  ASSERT_THAT(taken.events, SizeIs(1));
  EXPECT_EQ(taken.events[0], (TraceEvent{100, 107, 2, 3, 4, 0, 1}));
}

TEST(TraceRing, is_taken_while_it_is_filled) {
  TraceRing ring;
  ring.start();
  constexpr uint64_t kEvents = 20'000;
  std::thread writer([&] {
    for (uint64_t id = 0; id < kEvents; ++id) ring.add(event(id));
  });
  uint64_t next = 0;
  while (next < kEvents) {
    for (const TraceEvent& taken : ring.take(100).events) EXPECT_EQ(taken.id, next++);
  }
  writer.join();
}

}  // namespace
}  // namespace atl
