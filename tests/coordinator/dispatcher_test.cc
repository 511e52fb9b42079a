#include "coordinator/cluster/dispatcher.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/coordinator/scripted_nodes.h"

namespace atl::coordinator {
namespace {

TEST_F(DispatcherTest, adds_every_nodes_integers_once) {
  auto failures = step();
  ASSERT_TRUE(failures);
  EXPECT_TRUE(failures->empty());
  expect_exact();
}

TEST_F(DispatcherTest, pieces_may_come_in_any_order_and_twice) {
  transport_.scripts[0] = [](PeerId peer, const Dispatch& dispatch) {
    std::vector<Event> events;
    events.push_back(partial_event(peer, dispatch, 0, kRows, 32, 8));
    events.push_back(partial_event(peer, dispatch, 1, 2, 0, 32));
    events.push_back(partial_event(peer, dispatch, 1, 2, 0, 32));
    events.push_back(partial_event(peer, dispatch, 0, 2, 0, 32));  // overlaps the last one
    return events;
  };
  ASSERT_TRUE(step());
  expect_exact();
}

TEST_F(DispatcherTest, two_in_flight_are_combined_in_any_order) {
  for (const bool first_first : {true, false}) {
    // Who is asked keeps its answer to the first until it is asked the second.
    std::map<uint32_t, Event> kept;
    for (uint32_t peer = 0; peer < 3; ++peer) {
      transport_.scripts[peer] = [&](PeerId from, const Dispatch& dispatch) {
        std::vector<Event> events;
        if (kept.contains(from.value)) {
          events.push_back(whole_partial(from, dispatch));
          events.push_back(std::move(kept.at(from.value)));
        } else {
          kept.emplace(from.value, whole_partial(from, dispatch));
        }
        return events;
      };
    }
    auto first = dispatch(3);
    auto second = dispatch(first_first ? 3 : 4);  // of the same layer, or of the next
    ASSERT_TRUE(first && second);
    ASSERT_TRUE(combine(first_first ? *first : *second));
    expect_exact();
    ASSERT_TRUE(combine(first_first ? *second : *first));
    expect_exact();
  }
}

TEST_F(DispatcherTest, a_dispatch_that_is_dropped_makes_room_and_its_answers_are_for_nobody) {
  for (int i = 0; i < 5; ++i) ASSERT_TRUE(dispatch(3));
  auto first = dispatch(3);
  auto second = dispatch(3);
  ASSERT_TRUE(first && second);
  first->reset();
  ASSERT_TRUE(combine(*second));
  expect_exact();
}

// A buffer that was used before: what lies between weights and rows is zero all the same
// (docs/wire.md), which the transport's decoder wants.
TEST_F(DispatcherTest, padding_is_zero_in_a_buffer_that_held_more_rows) {
  constexpr int64_t kMore = kRows + 1;
  const std::vector<float> rows(kMore * kHidden, 1.0f), weights(kMore * 2, 0.5f);
  const std::vector<int32_t> ids = {0, 1, 2, 3, 4, 5, 0, 1};
  auto larger = dispatcher_->dispatch(3, kMore, rows.data(), ids.data(), weights.data());
  ASSERT_TRUE(larger);
  larger->reset();
  ASSERT_TRUE(step());
  expect_exact();
}

TEST_F(DispatcherTest, a_loss_is_about_all_that_is_in_flight) {
  int asked = 0;
  transport_.scripts[1] = [&](PeerId peer, const Dispatch&) {
    std::vector<Event> events;
    if (++asked == 2) events.push_back(lost_event(peer));
    return events;
  };
  auto first = dispatch(3);
  auto second = dispatch(4);
  ASSERT_TRUE(first && second);
  ASSERT_TRUE(combine(*second));
  expect_exact();
  ASSERT_TRUE(combine(*first));
  expect_exact();
  EXPECT_EQ(dispatcher_->num_living(), 2);
}

TEST_F(DispatcherTest, what_every_node_refuses_ends_one_dispatch_and_not_the_other) {
  for (uint32_t peer = 0; peer < 3; ++peer) {
    transport_.scripts[peer] = [](PeerId from, const Dispatch& dispatch) {
      std::vector<Event> events;
      if (dispatch.names.layer == 4) {
        events.push_back(whole_partial(from, dispatch));
        return events;
      }
      std::vector<std::byte> header;
      transport::encode_refusal(
          {dispatch.names, Error{ErrorCode::kCorrupt, "expert 3 of layer 3 does not verify"}},
          &header);
      events.push_back(message_event(from, std::move(header), {}));
      return events;
    };
  }
  auto first = dispatch(3);
  auto second = dispatch(4);
  ASSERT_TRUE(first && second);
  ASSERT_TRUE(combine(*second));
  expect_exact();
  auto failed = combine(*first);
  ASSERT_FALSE(failed);
  EXPECT_THAT(failed.error().message, testing::HasSubstr("layer 3"));
  EXPECT_EQ(dispatcher_->num_living(), 3);
}

// It computes one after the other: for what it owes of the second it is not silent while it answers
// the first.
TEST_F(DispatcherTest, a_node_that_answers_one_dispatch_is_not_silent_about_the_other) {
  std::vector<Dispatch> owed;
  transport_.scripts[2] = [&](PeerId, const Dispatch& dispatch) {
    owed.push_back(dispatch);
    return std::vector<Event>{};
  };
  auto first = dispatch(3);
  auto second = dispatch(4);
  ASSERT_TRUE(first && second);
  const auto start = clock_.now();
  uint32_t row = 0;
  transport_.on_wait = [&] {  // a row each time, 3/4 of the deadline apart
    const Dispatch& at = owed[row / kRows];
    if (row < 2 * kRows && clock_.now() - start > (row + 1) * (kDeadline * 3 / 4)) {
      transport_.events.push_back(partial_event(PeerId{2}, at, row++ % kRows, 1, 0, kHidden));
    }
  };
  ASSERT_TRUE(combine(*second));  // waits for all of the first
  expect_exact();
  ASSERT_TRUE(combine(*first));
  expect_exact();
  EXPECT_TRUE(transport_.closed.empty());
}

TEST_F(DispatcherTest, answers_to_an_earlier_dispatch_are_dropped) {
  ASSERT_TRUE(step());
  const auto answer = transport_.scripts[1];
  std::optional<Dispatch> earlier;
  transport_.scripts[1] = [&](PeerId peer, const Dispatch& dispatch) {
    Dispatch old = dispatch;
    old.names.dispatch.value -= 3;
    std::vector<Event> events;
    events.push_back(whole_partial(peer, old));
    for (Event& event : answer(peer, dispatch)) events.push_back(std::move(event));
    return events;
  };
  ASSERT_TRUE(step());
  expect_exact();
}

TEST_F(DispatcherTest, tiles_of_a_node_that_dies_before_its_answer_are_asked_elsewhere) {
  transport_.scripts[1] = [](PeerId peer, const Dispatch&) {
    std::vector<Event> events;
    events.push_back(lost_event(peer));
    return events;
  };
  ASSERT_TRUE(step());
  expect_exact();
  EXPECT_THAT(transport_.closed, testing::ElementsAre(1));
  EXPECT_EQ(transport_.sent.back(),
            std::make_pair(uint32_t{2}, std::vector<transport::TileRange>{{1, 2}}));

  transport_.sent.clear();  // from now on the heir is asked for both at once
  ASSERT_TRUE(step());
  expect_exact();
  EXPECT_THAT(
      transport_.sent,
      testing::ElementsAre(std::make_pair(uint32_t{0}, to_ranges({0, 3})),
                           std::make_pair(uint32_t{2}, std::vector<transport::TileRange>{{1, 3}})));
}

TEST_F(DispatcherTest, what_a_node_answered_before_it_died_counts_once) {
  transport_.scripts[0] = [](PeerId peer, const Dispatch& dispatch) {
    std::vector<Event> events;
    events.push_back(partial_event(peer, dispatch, 0, kRows, 0, 16));
    events.push_back(lost_event(peer));
    return events;
  };
  ASSERT_TRUE(step());
  expect_exact();
}

TEST_F(DispatcherTest, a_hung_node_is_given_up_at_the_deadline_and_not_before) {
  transport_.scripts[2] = [](PeerId, const Dispatch&) { return std::vector<Event>{}; };
  const auto start = clock_.now();
  std::optional<Clock::TimePoint> closed_at;
  transport_.on_wait = [&] {
    if (!transport_.closed.empty() && !closed_at) closed_at = clock_.now();
    if (clock_.now() - start <= kDeadline) {
      EXPECT_TRUE(transport_.closed.empty());
    }
  };
  ASSERT_TRUE(step());
  expect_exact();
  EXPECT_THAT(transport_.closed, testing::ElementsAre(2));
  EXPECT_LE(clock_.now() - start, kDeadline + std::chrono::milliseconds(200));
}

TEST_F(DispatcherTest, what_a_node_usually_takes_tells_when_it_hangs) {
  const auto after = [&](std::chrono::milliseconds time) {
    return [&, time](PeerId peer, const Dispatch& dispatch) {
      clock_.advance(time);
      std::vector<Event> events;
      events.push_back(whole_partial(peer, dispatch));
      return events;
    };
  };
  struct Case {
    std::chrono::milliseconds usual, deadline;
  };
  for (const Case& one : {Case{std::chrono::milliseconds(10), std::chrono::milliseconds(1200)},
                          Case{std::chrono::milliseconds(300), std::chrono::milliseconds(2400)},
                          Case{std::chrono::milliseconds(900), kDeadline}}) {
    SetUp();
    transport_.closed.clear();
    transport_.scripts[2] = after(one.usual);
    for (uint32_t i = 0; i < AnswerTimes::kAnswersMin; ++i) ASSERT_TRUE(step());
    transport_.scripts[2] = [](PeerId, const Dispatch&) { return std::vector<Event>{}; };
    const auto start = clock_.now();
    ASSERT_TRUE(step());
    expect_exact();
    EXPECT_THAT(transport_.closed, testing::ElementsAre(2));
    EXPECT_GT(clock_.now() - start, one.deadline);
    EXPECT_LE(clock_.now() - start, one.deadline + std::chrono::milliseconds(200));
  }
}

TEST_F(DispatcherTest, who_reads_tiles_of_others_from_disk_has_the_longest_deadline) {
  for (uint32_t i = 0; i < AnswerTimes::kAnswersMin; ++i) ASSERT_TRUE(step());
  const auto start = clock_.now();
  transport_.unreachable = {1};
  transport_.scripts[2] = [&](PeerId peer, const Dispatch& dispatch) {
    std::vector<Event> events;
    if (dispatch.tiles != to_ranges({1})) events.push_back(whole_partial(peer, dispatch));
    return events;  // n1's tile never
  };
  ASSERT_TRUE(step());
  expect_exact();
  EXPECT_GT(clock_.now() - start, kDeadline);
  EXPECT_FALSE(dispatcher_->alive(2));
}

TEST_F(DispatcherTest, a_lost_node_that_joins_again_has_its_tiles_back_in_a_new_epoch) {
  const PlacementView plan = dispatcher_->placement();
  transport_.scripts[1] = [](PeerId peer, const Dispatch&) {
    std::vector<Event> events;
    events.push_back(lost_event(peer));
    return events;
  };
  ASSERT_TRUE(step());
  ASSERT_EQ(watch_.losses.size(), 1u);
  EXPECT_EQ(watch_.losses[0].node, 1u);
  EXPECT_EQ(watch_.losses[0].life, 1u);
  EXPECT_EQ(watch_.losses[0].why, "connection reset");

  watch_.add_joined(1, 2, 11);
  transport_.sent.clear();
  ASSERT_TRUE(step());
  expect_exact();
  EXPECT_EQ(dispatcher_->num_living(), 3);
  EXPECT_EQ(dispatcher_->last_loss(1), "");
  EXPECT_EQ(dispatcher_->placement().tiles_of_node, plan.tiles_of_node);
  EXPECT_GT(dispatcher_->placement().epoch, plan.epoch);
  EXPECT_THAT(transport_.sent,
              testing::UnorderedElementsAre(std::make_pair(uint32_t{0}, to_ranges({0, 3})),
                                            std::make_pair(uint32_t{11}, to_ranges({1})),
                                            std::make_pair(uint32_t{2}, to_ranges({2}))));
}

TEST_F(DispatcherTest, a_loss_told_by_the_watch_is_not_told_back_and_moves_what_is_owed) {
  transport_.scripts[1] = [](PeerId, const Dispatch&) { return std::vector<Event>{}; };
  transport_.on_wait = [&] {
    if (dispatcher_->alive(1)) watch_.add(NodeNews::Kind::kLost, 1);
  };
  const auto start = clock_.now();
  ASSERT_TRUE(step());
  expect_exact();
  EXPECT_LT(clock_.now() - start, std::chrono::milliseconds(1000));
  EXPECT_EQ(dispatcher_->last_loss(1), "no heartbeat");
  EXPECT_TRUE(watch_.losses.empty());
}

TEST_F(DispatcherTest, a_suspect_is_not_asked_while_there_are_others_and_gets_its_tiles_back) {
  const auto plan = dispatcher_->placement().tiles_of_node;
  std::optional<Dispatch> asked;
  transport_.scripts[1] = [&](PeerId, const Dispatch& dispatch) {
    asked = dispatch;
    return std::vector<Event>{};
  };
  transport_.on_wait = [&] { watch_.add(NodeNews::Kind::kSuspect, 1); };
  ASSERT_TRUE(step());
  expect_exact();
  EXPECT_TRUE(dispatcher_->alive(1));
  transport_.events.push_back(whole_partial(PeerId{1}, *asked));  // late: added by nobody
  transport_.sent.clear();
  ASSERT_TRUE(step());
  expect_exact();
  EXPECT_EQ(transport_.sent.size(), 2u);

  transport_.scripts[1] = transport_.scripts[0];
  watch_.add(NodeNews::Kind::kTrusted, 1);
  ASSERT_TRUE(step());
  expect_exact();
  EXPECT_EQ(dispatcher_->placement().tiles_of_node, plan);
  EXPECT_TRUE(transport_.closed.empty());
}

TEST_F(DispatcherTest, suspects_are_asked_if_there_is_nobody_else) {
  const auto plan = dispatcher_->placement().tiles_of_node;
  for (const size_t node : {0, 1, 2}) watch_.add(NodeNews::Kind::kSuspect, node);
  ASSERT_TRUE(step());
  expect_exact();
  EXPECT_EQ(dispatcher_->placement().tiles_of_node, plan);
  transport_.unreachable = {0, 1};
  ASSERT_TRUE(step());
  expect_exact();
  EXPECT_EQ(dispatcher_->num_living(), 1);
}

TEST_F(DispatcherTest, a_node_that_cannot_be_connected_again_is_given_up_by_its_new_life) {
  watch_.add(NodeNews::Kind::kLost, 1);
  ASSERT_TRUE(step());
  transport_.unreachable = {11};
  watch_.add_joined(1, 2, 11);
  ASSERT_TRUE(step());
  expect_exact();
  ASSERT_EQ(watch_.losses.size(), 1u);
  EXPECT_EQ(watch_.losses[0].life, 2u);
  EXPECT_FALSE(dispatcher_->alive(1));
}

// All were lost; the first one that is back computes all there is until the others are.
TEST_F(DispatcherTest, works_again_as_soon_as_one_node_is_back) {
  transport_.unreachable = {0, 1, 2};
  ASSERT_FALSE(step());
  ASSERT_FALSE(step());
  watch_.add_joined(2, 2, 11);
  transport_.sent.clear();
  ASSERT_TRUE(step());
  expect_exact();
  EXPECT_EQ(transport_.sent.size(), 1u);
  watch_.add_joined(0, 2, 10);
  ASSERT_TRUE(step());
  expect_exact();
}

TEST_F(DispatcherTest, waits_for_the_first_to_be_back_when_all_were_lost_in_the_middle) {
  watch_.brings_back_ = true;
  for (uint32_t node = 0; node < 3; ++node) {
    transport_.scripts[node] = [](PeerId peer, const Dispatch& dispatch) {
      std::vector<Event> events;
      events.push_back(partial_event(peer, dispatch, 0, 1, 0, 16));  // counts once
      events.push_back(lost_event(peer));
      return events;
    };
  }
  int waits = 0;
  transport_.on_wait = [&] {
    if (++waits == 20) watch_.add_joined(1, 2, 11);
  };
  ASSERT_TRUE(step());
  expect_exact();
  EXPECT_EQ(dispatcher_->num_living(), 1);
}

TEST_F(DispatcherTest, does_not_wait_for_ever_for_nodes_that_stay_away) {
  watch_.brings_back_ = true;
  transport_.unreachable = {0, 1, 2};
  const auto start = clock_.now();
  const auto failures = step();
  ASSERT_FALSE(failures);
  EXPECT_THAT(failures.error().message, testing::HasSubstr("no expert node is left"));
  EXPECT_GE(clock_.now() - start, DispatcherOptions().return_patience);
  EXPECT_LE(clock_.now() - start, DispatcherOptions().return_patience + std::chrono::seconds(1));
}

TEST_F(DispatcherTest, a_node_that_is_lost_and_joins_within_one_dispatch_is_asked_anew) {
  transport_.scripts[1] = [](PeerId, const Dispatch&) { return std::vector<Event>{}; };
  int waits = 0;
  transport_.on_wait = [&] {
    ASSERT_LT(++waits, 100);
    if (waits > 1) return;
    watch_.add(NodeNews::Kind::kLost, 1);
    watch_.add_joined(1, 2, 11);
  };
  ASSERT_TRUE(step());
  expect_exact();
  EXPECT_EQ(transport_.sent.back(), std::make_pair(uint32_t{11}, to_ranges({1})));
}

TEST_F(DispatcherTest, a_refusal_or_a_bad_frame_sends_the_tiles_elsewhere) {
  transport_.scripts[1] = [](PeerId peer, const Dispatch& dispatch) {
    std::vector<std::byte> header;
    transport::encode_refusal({dispatch.names, {ErrorCode::kUnavailable, "disk gone"}}, &header);
    std::vector<Event> events;
    events.push_back(message_event(peer, header, {}));
    return events;
  };
  transport_.scripts[2] = [](PeerId peer, const Dispatch&) {
    std::vector<Event> events;
    events.push_back(message_event(peer, std::vector<std::byte>(7), {}));
    return events;
  };
  ASSERT_TRUE(step());
  expect_exact();
  EXPECT_THAT(transport_.closed, testing::ElementsAre(2));  // n1 has other tiles to give
}

// One read that failed says nothing of other experts, and nothing of the next read.
TEST_F(DispatcherTest, a_refusal_moves_no_tile_for_good) {
  const auto answer = transport_.scripts[1];
  transport_.scripts[1] = [](PeerId peer, const Dispatch& dispatch) {
    std::vector<std::byte> header;
    transport::encode_refusal({dispatch.names, {ErrorCode::kUnavailable, "read failed"}}, &header);
    std::vector<Event> events;
    events.push_back(message_event(peer, header, {}));
    return events;
  };
  ASSERT_TRUE(step());
  expect_exact();
  transport_.scripts[1] = answer;
  transport_.sent.clear();
  ASSERT_TRUE(step());
  expect_exact();
  EXPECT_EQ(transport_.sent.size(), 3u);
  for (const auto& [node, tiles] : transport_.sent)
    EXPECT_EQ(tiles, dispatcher_->placement().tiles_of_node[node]);
  EXPECT_EQ(dispatcher_->placement().tiles_of_node[1], (std::vector<transport::TileRange>{{1, 2}}));
}

// A damaged file is met by every dispatch that wants its expert.
TEST_F(DispatcherTest, the_same_refusal_is_logged_once_for_each_node) {
  for (uint32_t node = 0; node < 2; ++node) {
    transport_.scripts[node] = [](PeerId peer, const Dispatch& dispatch) {
      std::vector<std::byte> header;
      transport::encode_refusal({dispatch.names, {ErrorCode::kCorrupt, "expert 3/1 bad"}}, &header);
      std::vector<Event> events;
      events.push_back(message_event(peer, header, {}));
      return events;
    };
  }
  testing::internal::CaptureStderr();
  for (int again = 0; again < 20; ++again) {
    ASSERT_TRUE(step());
    expect_exact();
  }
  const std::string log = testing::internal::GetCapturedStderr();
  EXPECT_EQ(std::count(log.begin(), log.end(), '\n'), 2) << log;
  EXPECT_THAT(log, testing::HasSubstr("node n0 at layer 3: refused: expert 3/1 bad"));
}

// The tiles are the first one's still: with two owners they would be added twice from then on.
TEST_F(DispatcherTest, who_dies_with_tiles_that_another_refused_leaves_them_with_their_owner) {
  const auto answers = transport_.scripts;
  bool failing = true;
  transport_.scripts[1] = [&](PeerId peer, const Dispatch& dispatch) {
    if (!failing) return answers.at(1)(peer, dispatch);
    std::vector<std::byte> header;
    transport::encode_refusal({dispatch.names, {ErrorCode::kUnavailable, "read failed"}}, &header);
    std::vector<Event> events;
    events.push_back(message_event(peer, header, {}));
    return events;
  };
  transport_.scripts[2] = [&](PeerId peer, const Dispatch& dispatch) {
    const bool own = dispatch.tiles == std::vector<transport::TileRange>{{2, 3}};
    if (own) return answers.at(2)(peer, dispatch);
    std::vector<Event> events;
    events.push_back(lost_event(peer));
    return events;
  };
  ASSERT_TRUE(step());
  expect_exact();
  EXPECT_EQ(dispatcher_->num_living(), 2);
  failing = false;
  for (int again = 0; again < 2; ++again) {
    ASSERT_TRUE(step());
    expect_exact();
  }
  // Its own and the dead one's.
  EXPECT_EQ(dispatcher_->placement().tiles_of_node[1], (std::vector<transport::TileRange>{{1, 3}}));
}

// A damaged tile in the checkpoint that all of them read.
TEST_F(DispatcherTest, what_every_node_refuses_ends_a_step_and_not_the_run) {
  bool damaged = true;
  for (uint32_t node = 0; node < 3; ++node) {
    transport_.scripts[node] = [&, answer = transport_.scripts[node]](PeerId peer,
                                                                      const Dispatch& dispatch) {
      const bool mine = std::any_of(dispatch.tiles.begin(), dispatch.tiles.end(),
                                    [](const auto& r) { return r.begin <= 1 && r.end > 1; });
      if (!mine || !damaged) return answer(peer, dispatch);
      std::vector<std::byte> header;
      transport::encode_refusal({dispatch.names, {ErrorCode::kCorrupt, "tile 1 damaged"}}, &header);
      std::vector<Event> events;
      events.push_back(message_event(peer, header, {}));
      return events;
    };
  }
  for (int again = 0; again < 3; ++again) {
    const auto failures = step();
    ASSERT_FALSE(failures);
    EXPECT_THAT(failures.error().message, testing::HasSubstr("layer 3"));
    EXPECT_THAT(failures.error().message, testing::HasSubstr("tile 1 damaged"));
  }
  damaged = false;  // an expert whose tile is sound
  transport_.sent.clear();
  ASSERT_TRUE(step());
  expect_exact();
  EXPECT_EQ(dispatcher_->num_living(), 3);
  EXPECT_EQ(transport_.sent.size(), 3u);  // each its own
}

TEST_F(DispatcherTest, a_refusal_for_another_reason_is_the_last_word_of_a_node) {
  transport_.scripts[1] = [](PeerId peer, const Dispatch& dispatch) {
    std::vector<std::byte> header;
    transport::encode_refusal({dispatch.names, {ErrorCode::kInvalid, "no session"}}, &header);
    std::vector<Event> events;
    events.push_back(message_event(peer, header, {}));
    return events;
  };
  ASSERT_TRUE(step());
  expect_exact();
  EXPECT_THAT(transport_.closed, testing::ElementsAre(1));
}

TEST_F(DispatcherTest, a_rectangle_outside_the_dispatch_is_a_bad_frame) {
  transport_.scripts[1] = [](PeerId peer, const Dispatch& dispatch) {
    std::vector<Event> events;
    events.push_back(partial_event(peer, dispatch, 2, kRows, 0, kHidden));  // rows 2..4 of 3
    return events;
  };
  ASSERT_TRUE(step());
  expect_exact();
  EXPECT_THAT(transport_.closed, testing::ElementsAre(1));
}

TEST_F(DispatcherTest, fails_with_layer_and_cause_only_when_no_node_is_left) {
  for (uint32_t node = 0; node < 3; ++node) {
    transport_.scripts[node] = [](PeerId peer, const Dispatch&) {
      std::vector<Event> events;
      events.push_back(lost_event(peer));
      return events;
    };
  }
  auto failures = step();
  ASSERT_FALSE(failures);
  EXPECT_EQ(failures.error().code, ErrorCode::kUnavailable);
  EXPECT_THAT(failures.error().message,
              testing::HasSubstr("no expert node is left to compute layer 3"));
  EXPECT_THAT(failures.error().message, testing::HasSubstr("connection reset"));
}

TEST_F(DispatcherTest, unreachable_nodes_are_replaced_at_once) {
  transport_.unreachable = {0, 2};
  ASSERT_TRUE(step());
  expect_exact();
  EXPECT_EQ(dispatcher_->num_living(), 1);
}

// n2's tiles go to n1, which has answered for one of its two shares when it dies, too.
TEST_F(DispatcherTest, an_heir_that_dies_leaves_all_its_tiles_whichever_it_answered_for) {
  const auto answer = transport_.scripts[1];
  for (const bool answers_own : {false, true}) {
    SetUp();
    const auto last_words = [&, answers_own](PeerId peer, const Dispatch& dispatch) {
      const bool own = dispatch.tiles == to_ranges({1});
      std::vector<Event> events;
      if (own == answers_own) events.push_back(whole_partial(peer, dispatch));
      if (!own) events.push_back(lost_event(peer));
      return events;
    };
    transport_.scripts[1] = last_words;
    transport_.unreachable = {2};
    ASSERT_TRUE(step());
    expect_exact();
    EXPECT_EQ(dispatcher_->num_living(), 1);
    for (int again = 0; again < 2; ++again) {
      transport_.sent.clear();
      ASSERT_TRUE(step());
      expect_exact();
    }
    EXPECT_THAT(transport_.sent, testing::ElementsAre(std::make_pair(
                                     uint32_t{0}, std::vector<transport::TileRange>{{0, 4}})));
  }
}

// The one that was asked first for n2's tiles can't be reached either.
TEST_F(DispatcherTest, tiles_that_go_through_two_hands_are_asked_once_afterwards) {
  transport_.scripts[1] = [&](PeerId peer, const Dispatch& dispatch) {
    transport_.unreachable = {1, 2};  // from now on
    std::vector<Event> events;
    events.push_back(whole_partial(peer, dispatch));
    return events;
  };
  transport_.unreachable = {2};
  for (int again = 0; again < 3; ++again) {
    transport_.sent.clear();
    ASSERT_TRUE(step());
    expect_exact();
  }
  EXPECT_EQ(transport_.sent.size(), 1u);
}

// Stopped by a signal, say, with its nodes: what they couldn't say meanwhile isn't silence.
TEST_F(DispatcherTest, time_in_which_this_process_did_not_run_is_no_nodes_silence) {
  const auto answer = transport_.scripts[2];
  for (const bool while_stopped : {true, false}) {
    std::optional<Dispatch> asked;
    transport_.scripts[2] = [&](PeerId, const Dispatch& dispatch) {
      asked = dispatch;
      return std::vector<Event>{};
    };
    int waits = 0;
    transport_.on_wait = [&] {
      if (++waits == 1) clock_.advance(2 * kDeadline);
      if (waits == (while_stopped ? 1 : 2)) {
        for (Event& event : answer(PeerId{2}, *asked)) {
          transport_.events.push_back(std::move(event));
        }
      }
    };
    ASSERT_TRUE(step());
    expect_exact();
    EXPECT_EQ(dispatcher_->num_living(), 3);
  }
}

// Between dispatch() and combine() the coordinator computes itself, for as long as it takes.
TEST_F(DispatcherTest, time_before_it_is_waited_for_is_no_nodes_silence) {
  const auto answer = transport_.scripts[2];
  std::optional<Dispatch> asked;
  transport_.scripts[2] = [&](PeerId, const Dispatch& dispatch) {
    asked = dispatch;
    return std::vector<Event>{};
  };
  int waits = 0;
  transport_.on_wait = [&] {
    if (++waits != 3) return;
    for (Event& event : answer(PeerId{2}, *asked)) transport_.events.push_back(std::move(event));
  };
  auto flight = dispatch(3);
  ASSERT_TRUE(flight);
  clock_.advance(2 * kDeadline);
  ASSERT_TRUE(combine(*flight));
  expect_exact();
  EXPECT_EQ(dispatcher_->num_living(), 3);
}

// What it usually took it may have had another disk for, or less to do.
TEST_F(DispatcherTest, a_node_that_returns_has_no_usual_time_yet) {
  for (uint32_t i = 0; i < AnswerTimes::kAnswersMin; ++i) ASSERT_TRUE(step());
  watch_.add(NodeNews::Kind::kLost, 2);
  ASSERT_TRUE(step());
  watch_.add_joined(2, 2, 11);
  const auto answer = transport_.scripts[11];
  std::optional<Dispatch> asked;
  transport_.scripts[11] = [&](PeerId, const Dispatch& dispatch) {
    asked = dispatch;
    return std::vector<Event>{};
  };
  std::optional<Clock::TimePoint> start;
  transport_.on_wait = [&] {
    if (!asked) return;
    if (!start) start = clock_.now();
    // Beyond the shortest deadline of a node whose times are known, 1.2 s.
    if (clock_.now() - *start < std::chrono::milliseconds(3000)) return;
    for (Event& event : answer(PeerId{11}, *asked)) transport_.events.push_back(std::move(event));
    asked.reset();
  };
  ASSERT_TRUE(step());
  expect_exact();
  EXPECT_TRUE(dispatcher_->alive(2));
  EXPECT_TRUE(transport_.closed.empty() || transport_.closed.back() != 11u);
}

// A sum that no output can have (docs/numbers.md) spoils its row and no other.
TEST_F(DispatcherTest, a_sum_out_of_range_fails_its_row) {
  transport_.scripts[1] = [](PeerId peer, const Dispatch& dispatch) {
    std::vector<int64_t> values(kRows * kHidden, 0);
    values[1 * kHidden + 7] = INT64_MAX / 2;
    Partial partial;
    partial.names = dispatch.names;
    partial.num_rows = kRows;
    partial.num_outputs = kHidden;
    partial.element_bits = 64;
    std::vector<std::byte> header, payload(values.size() * 8);
    transport::encode_partial_header(partial, &header);
    transport::pack_elements(values, 64, payload.data());
    std::vector<Event> events;
    events.push_back(message_event(peer, std::move(header), std::move(payload)));
    return events;
  };
  const auto failures = step();
  ASSERT_TRUE(failures);
  ASSERT_EQ(failures->size(), 1u);
  EXPECT_EQ((*failures)[0].row, 1u);
}

TEST_F(DispatcherTest, a_node_that_says_the_same_again_and_again_makes_no_progress) {
  std::optional<Dispatch> asked;
  transport_.scripts[1] = [&](PeerId, const Dispatch& dispatch) {
    asked = dispatch;
    return std::vector<Event>{};
  };
  int waits = 0;
  transport_.on_wait = [&] {
    ASSERT_LT(++waits, 1000);
    if (dispatcher_->alive(1)) {
      transport_.events.push_back(partial_event(PeerId{1}, *asked, 0, 1, 0, 16));
    }
  };
  ASSERT_TRUE(step());
  expect_exact();
  EXPECT_THAT(transport_.closed, testing::ElementsAre(1));
}

TEST_F(DispatcherTest, a_hint_goes_to_every_living_node_with_its_own_tiles) {
  const std::vector<int32_t> experts = {0, 2, 5};
  dispatcher_->hint(4, experts);
  ASSERT_EQ(transport_.hinted.size(), 3u);
  const std::vector<std::vector<transport::TileRange>> tiles = {to_ranges({0, 3}), to_ranges({1}),
                                                                to_ranges({2})};
  for (uint32_t node = 0; node < 3; ++node) {
    const ScriptedTransport::SentHint& hint = transport_.hinted[node];
    EXPECT_EQ(hint.peer, node);
    EXPECT_EQ(hint.names, (transport::DispatchNames{SessionId{77}, DispatchId{0}, Epoch{1}, 4}));
    EXPECT_EQ(hint.tiles, tiles[node]);
    EXPECT_EQ(hint.experts, experts);
    EXPECT_EQ(dispatcher_->traffic()[node].hints, 1u);
  }
  transport_.hinted.clear();
  dispatcher_->hint(4, {});
  EXPECT_TRUE(transport_.hinted.empty());
}

TEST_F(DispatcherTest, a_note_names_the_dispatch_that_comes_next_to_every_living_node) {
  transport_.unreachable = {1};
  ASSERT_TRUE(step());
  transport_.unreachable.clear();
  transport_.sent.clear();
  dispatcher_->announce("req-1 req-2");
  ASSERT_EQ(transport_.noted.size(), 2u);
  for (const auto& [peer, note] : transport_.noted) {
    EXPECT_NE(peer, 1u);
    EXPECT_EQ(note.text, "req-1 req-2");
    EXPECT_EQ(note.names.session, SessionId{77});
    EXPECT_GT(note.names.dispatch.value, 1u);
  }
  EXPECT_TRUE(step());  // it changes nothing
}

TEST_F(DispatcherTest, a_hint_to_a_lost_node_is_not_sent_and_its_heir_gets_those_tiles) {
  transport_.unreachable = {1};
  ASSERT_TRUE(step());
  transport_.unreachable.clear();
  dispatcher_->hint(4, std::vector<int32_t>{3});
  ASSERT_EQ(transport_.hinted.size(), 2u);
  EXPECT_EQ(transport_.hinted[0].peer, 0u);
  EXPECT_EQ(transport_.hinted[1].peer, 2u);
  int tiles = 0;
  for (const auto& hint : transport_.hinted) {
    for (const transport::TileRange& range : hint.tiles) tiles += range.end - range.begin;
  }
  EXPECT_EQ(tiles, static_cast<int>(kTiles));
}

TEST_F(DispatcherTest, a_hint_that_cannot_be_sent_changes_nothing) {
  transport_.unreachable = {0, 1, 2};
  dispatcher_->hint(3, std::vector<int32_t>{1});
  EXPECT_EQ(dispatcher_->traffic()[0].hints, 0u);
  transport_.unreachable.clear();
  EXPECT_EQ(dispatcher_->num_living(), 3);
  ASSERT_TRUE(step());
  expect_exact();
}

TEST_F(DispatcherTest, a_node_that_sends_a_hint_is_given_up) {
  transport_.scripts[1] = [](PeerId peer, const Dispatch& dispatch) {
    const std::vector<int32_t> experts = {1};
    transport::Hint hint;
    hint.names = dispatch.names;
    hint.names.dispatch = DispatchId{0};
    hint.tiles = dispatch.tiles;
    hint.experts = experts;
    std::vector<std::byte> header, payload(sizeof(int32_t));
    transport::encode_hint_header(hint, &header);
    std::memcpy(payload.data(), experts.data(), payload.size());
    std::vector<Event> events;
    events.push_back(message_event(peer, std::move(header), std::move(payload)));
    return events;
  };
  ASSERT_TRUE(step());
  expect_exact();
  EXPECT_THAT(transport_.closed, testing::ElementsAre(1));
}

TEST_F(DispatcherTest, a_failed_row_names_the_lowest_expert_of_all_nodes) {
  transport_.scripts[0] = [](PeerId peer, const Dispatch& dispatch) {
    std::vector<Event> events;
    events.push_back(partial_event(peer, dispatch, 0, kRows, 0, kHidden, {{1, 2}, {2, 5}}));
    return events;
  };
  transport_.scripts[2] = [](PeerId peer, const Dispatch& dispatch) {
    std::vector<Event> events;
    events.push_back(partial_event(peer, dispatch, 0, kRows, 0, kHidden, {{1, 3}, {2, 4}}));
    return events;
  };
  auto failures = step();
  ASSERT_TRUE(failures);
  ASSERT_EQ(failures->size(), 2u);
  EXPECT_EQ((*failures)[0].row, 1u);
  EXPECT_EQ((*failures)[0].expert, 2);
  EXPECT_EQ((*failures)[1].row, 2u);
  EXPECT_EQ((*failures)[1].expert, 4);
}

// ---- Other plans -------------------------------------------------------------------------------

TEST_F(DispatcherTest, asks_by_the_new_plan_and_whom_it_names) {
  const Epoch before = dispatcher_->placement().epoch;
  watch_.add_plan({{"n0", {0, 1}, false}, {"n1", {}, true}, {"n2", {2, 3}, false}});
  ASSERT_TRUE(step());
  expect_exact();
  EXPECT_GT(dispatcher_->placement().epoch, before);
  EXPECT_EQ(dispatcher_->placement().num_tiles(0), 2);
  EXPECT_EQ(dispatcher_->placement().num_tiles(1), 0);
  EXPECT_EQ(dispatcher_->traffic()[1].dispatches, 0u);
}

TEST_F(DispatcherTest, a_plan_in_the_middle_of_a_dispatch_loses_nothing) {
  auto flight = dispatch(3);
  ASSERT_TRUE(flight);
  watch_.add_plan({{"n0", {}, true}, {"n1", {0, 1, 2, 3}, false}, {"n2", {}, true}});
  ASSERT_TRUE(combine(*flight));
  expect_exact();
  ASSERT_TRUE(step());
  expect_exact();
  EXPECT_EQ(dispatcher_->traffic()[0].dispatches, 1u);
  EXPECT_EQ(dispatcher_->traffic()[1].dispatches, 2u);
}

TEST_F(DispatcherTest, a_node_of_a_new_plan_is_asked_once_it_has_joined) {
  watch_.add_plan({{"n0", {0}, false}, {"n1", {1}, false}, {"n2", {2}, false}, {"n3", {3}, false}});
  ASSERT_TRUE(step());
  expect_exact();
  ASSERT_EQ(dispatcher_->nodes().size(), 4u);
  EXPECT_FALSE(dispatcher_->alive(3));
  EXPECT_EQ(dispatcher_->traffic()[3].dispatches, 0u);
  watch_.add_joined(3, 1, 3);
  ASSERT_TRUE(step());
  expect_exact();
  EXPECT_EQ(dispatcher_->traffic()[3].dispatches, 1u);
}

TEST_F(DispatcherTest, a_node_that_is_leaving_is_asked_when_nobody_else_is_there) {
  watch_.add_plan({{"n0", {0, 1, 2, 3}, false}, {"n1", {}, true}, {"n2", {}, true}});
  watch_.add(NodeNews::Kind::kLost, 0);
  ASSERT_TRUE(step());
  expect_exact();
  EXPECT_EQ(dispatcher_->traffic()[0].dispatches, 0u);
}

}  // namespace
}  // namespace atl::coordinator
