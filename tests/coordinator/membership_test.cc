#include "coordinator/cluster/membership.h"

#include <gtest/gtest.h>

namespace atl::coordinator {
namespace {

using std::chrono::milliseconds;
using State = Member::State;
using Order = Member::Order;

class MembershipTest : public testing::Test {
 protected:
  // Ticks every heartbeat for so long; the last order that was not kNone.
  Order pass(milliseconds time, bool heard = false) {
    Order last = Order::kNone;
    for (milliseconds t{0}; t < time; t += times_.heartbeat) {
      clock_.advance(times_.heartbeat);
      if (heard) member_.heard();
      if (const Order order = member_.tick(clock_.now()); order != Order::kNone) last = order;
    }
    return last;
  }
  // From kLost on: how long until it is to be joined.
  milliseconds until_join() {
    milliseconds waited{0};
    while (member_.tick(clock_.now()) != Order::kJoin) {
      clock_.advance(milliseconds(10));
      waited += milliseconds(10);
    }
    return waited;
  }
  void lose() {
    member_.lost("reset");
    ASSERT_EQ(member_.tick(clock_.now()), Order::kDrop);
    ASSERT_FALSE(member_.is_there());
  }

  ManualClock clock_;
  MemberTimes times_;
  Member member_{times_, clock_.now()};
};

TEST_F(MembershipTest, a_node_that_is_heard_stays_ready) {
  EXPECT_EQ(member_.state(), State::kDialing);
  EXPECT_EQ(pass(milliseconds(5000)), Order::kNone);  // loading takes what it takes
  member_.joined(clock_.now());
  EXPECT_EQ(pass(milliseconds(5000), true), Order::kNone);
  EXPECT_EQ(member_.state(), State::kReady);
  EXPECT_EQ(member_.joins(), 1u);
}

TEST_F(MembershipTest, silence_makes_it_suspect_then_lost_then_it_is_joined_again) {
  member_.joined(clock_.now());
  EXPECT_EQ(pass(milliseconds(200)), Order::kNone);
  EXPECT_EQ(pass(milliseconds(100)), Order::kSuspect);
  EXPECT_EQ(member_.state(), State::kSuspect);
  EXPECT_EQ(pass(milliseconds(600)), Order::kNone);
  EXPECT_EQ(pass(milliseconds(100)), Order::kDrop);
  EXPECT_EQ(member_.why(), "no heartbeat for 1000 ms");
  EXPECT_EQ(member_.losses(), 1u);
  EXPECT_EQ(member_.tick(clock_.now()), Order::kJoin);  // at once
  EXPECT_EQ(member_.state(), State::kLost);             // until somebody answers
  member_.opened();
  EXPECT_EQ(member_.state(), State::kGreeting);
  member_.greeted();
  EXPECT_EQ(member_.state(), State::kLoading);
  EXPECT_EQ(member_.life(), 2u);
  member_.joined(clock_.now());
  EXPECT_EQ(member_.joins(), 2u);
  EXPECT_EQ(member_.why(), "");
  EXPECT_EQ(pass(milliseconds(200)), Order::kNone);  // the silence of its last life is forgotten
}

TEST_F(MembershipTest, a_suspect_that_is_heard_is_trusted_again) {
  member_.joined(clock_.now());
  ASSERT_EQ(pass(milliseconds(500)), Order::kSuspect);
  member_.heard();
  EXPECT_EQ(pass(milliseconds(100)), Order::kTrust);
  EXPECT_EQ(member_.state(), State::kReady);
  EXPECT_EQ(member_.losses(), 0u);
}

TEST_F(MembershipTest, time_in_which_nobody_looked_is_no_silence) {
  member_.joined(clock_.now());
  for (int i = 0; i < 100; ++i) {  // stopped again and again, with one look and no word in between
    clock_.advance(std::chrono::hours(1));
    ASSERT_EQ(member_.tick(clock_.now()), Order::kNone);
    member_.heard();
    clock_.advance(times_.heartbeat);
    ASSERT_EQ(member_.tick(clock_.now()), Order::kNone);
  }
}

TEST_F(MembershipTest, pauses_double_while_it_does_not_settle_and_have_a_bound) {
  member_.joined(clock_.now());
  lose();
  EXPECT_EQ(until_join(), milliseconds(0));
  for (const int pause : {250, 500, 1000, 2000}) {
    member_.joined(clock_.now());
    lose();
    EXPECT_EQ(until_join(), milliseconds(pause));
  }
  for (int i = 0; i < 100; ++i) {
    member_.join_failed(clock_.now(), "exit code 1");
    EXPECT_EQ(member_.state(), State::kQuarantined);
    EXPECT_LE(until_join(), times_.backoff_max);
  }
  EXPECT_EQ(member_.why(), "exit code 1");
  EXPECT_EQ(member_.losses(), 5u);
  EXPECT_EQ(member_.life(), 106u);
}

TEST_F(MembershipTest, a_node_that_was_ready_for_long_is_joined_at_once_when_it_is_lost) {
  member_.joined(clock_.now());
  for (int i = 0; i < 5; ++i) {
    lose();
    until_join();
    member_.joined(clock_.now());
  }
  pass(times_.settled_after, true);
  lose();
  EXPECT_EQ(until_join(), milliseconds(0));
}

TEST_F(MembershipTest, what_cannot_happen_now_is_ignored) {
  member_.lost("it never was there");
  EXPECT_EQ(member_.tick(clock_.now()), Order::kNone);
  member_.joined(clock_.now());
  member_.joined(clock_.now());
  member_.join_failed(clock_.now(), "late");
  EXPECT_EQ(member_.state(), State::kReady);
  EXPECT_EQ(member_.joins(), 1u);
  member_.lost("first");
  member_.lost("second");
  EXPECT_EQ(member_.tick(clock_.now()), Order::kDrop);
  EXPECT_EQ(member_.why(), "first");
  member_.lost("third");
  EXPECT_EQ(member_.tick(clock_.now()), Order::kJoin);
  EXPECT_EQ(member_.losses(), 1u);
}

TEST_F(MembershipTest, a_flapping_node_is_quarantined_until_it_settles) {
  member_.joined(clock_.now());
  for (int i = 0; i < Member::kFailuresMax; ++i) {
    lose();
    EXPECT_EQ(member_.state(), State::kLost);
    until_join();
    member_.joined(clock_.now());
  }
  lose();
  EXPECT_EQ(member_.state(), State::kQuarantined);
  until_join();
  member_.joined(clock_.now());
  pass(times_.settled_after, true);
  lose();
  EXPECT_EQ(member_.state(), State::kLost);
}

TEST_F(MembershipTest, one_that_nobody_has_started_is_dialled_again_and_again_at_the_same_pace) {
  Member member(times_, clock_.now(), Member::First::kOrdered);
  EXPECT_EQ(member.tick(clock_.now()), Order::kJoin);
  EXPECT_EQ(member.life(), 1u);
  for (int i = 0; i < 1000; ++i) {
    member.unreachable(clock_.now(), "connection refused");
    EXPECT_EQ(member.state(), State::kDialing);
    EXPECT_EQ(member.why(), "connection refused");
    clock_.advance(times_.redial - milliseconds(1));
    ASSERT_EQ(member.tick(clock_.now()), Order::kNone);
    clock_.advance(milliseconds(1));
    ASSERT_EQ(member.tick(clock_.now()), Order::kJoin);
  }
  member.joined(clock_.now());
  member.lost("reset");
  EXPECT_EQ(member.tick(clock_.now()), Order::kDrop);
  EXPECT_EQ(member.tick(clock_.now()), Order::kJoin);  // at once: it was never at fault
  member.unreachable(clock_.now(), "connection refused");
  EXPECT_EQ(member.state(), State::kLost);
}

TEST_F(MembershipTest, one_that_is_another_than_wanted_is_quarantined_at_once) {
  member_.refused(clock_.now(), "checkpoint differs: it has a, the coordinator b");
  EXPECT_EQ(member_.state(), State::kQuarantined);
  EXPECT_EQ(until_join(), milliseconds(1000));
  member_.refused(clock_.now(), "checkpoint differs: it has a, the coordinator b");
  EXPECT_EQ(until_join(), milliseconds(2000));
}

}  // namespace
}  // namespace atl::coordinator
