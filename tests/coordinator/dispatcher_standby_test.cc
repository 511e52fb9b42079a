// What is kept by two nodes: who stands by is asked as soon as the owner is lost, refuses or is
// slow.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "coordinator/cluster/dispatcher.h"
#include "tests/coordinator/scripted_nodes.h"

namespace atl::coordinator {
namespace {

using Ranges = std::vector<transport::TileRange>;
using Sent = std::pair<uint32_t, Ranges>;
using testing::IsSupersetOf;

// n0 owns 0 and 3, n1 owns 1, n2 owns 2.
class Standbys : public DispatcherTest {
 protected:
  void SetUp() override { make({{1}, {0, 2}, {3}}); }
  void refuse(uint32_t node) {
    transport_.scripts[node] = [](PeerId peer, const Dispatch& dispatch) {
      std::vector<std::byte> header;
      transport::encode_refusal({dispatch.names, {ErrorCode::kUnavailable, "disk gone"}}, &header);
      std::vector<Event> events;
      events.push_back(message_event(peer, header, {}));
      return events;
    };
  }
};

TEST_F(Standbys, nobody_who_stands_by_is_asked_while_all_is_well) {
  ASSERT_TRUE(step());
  expect_exact();
  EXPECT_EQ(transport_.sent.size(), 3u);
  EXPECT_EQ(dispatcher_->placement().num_standby(1), 2);
}

TEST_F(Standbys, a_lost_nodes_share_is_asked_tile_by_tile_from_who_keeps_it) {
  // Half of its answer came before it died: that counts once.
  transport_.scripts[0] = [](PeerId peer, const Dispatch& dispatch) {
    std::vector<Event> events;
    events.push_back(partial_event(peer, dispatch, 0, 2, 0, 16));
    events.push_back(lost_event(peer));
    return events;
  };
  testing::internal::CaptureStderr();
  ASSERT_TRUE(step());
  EXPECT_EQ(testing::internal::GetCapturedStderr().find("from disk"), std::string::npos);
  expect_exact();
  EXPECT_THAT(transport_.sent, IsSupersetOf({Sent{1, {{0, 1}}}, Sent{2, {{3, 4}}}}));
  EXPECT_EQ(transport_.sent.size(), 5u);
  // And from then on in one message each.
  transport_.sent.clear();
  ASSERT_TRUE(step());
  expect_exact();
  EXPECT_THAT(transport_.sent, testing::UnorderedElementsAre(Sent{1, {{0, 2}}}, Sent{2, {{2, 4}}}));
}

TEST_F(Standbys, a_refused_share_is_asked_from_who_keeps_it) {
  refuse(0);
  ASSERT_TRUE(step());
  expect_exact();
  EXPECT_TRUE(transport_.closed.empty());
  EXPECT_THAT(transport_.sent, IsSupersetOf({Sent{1, {{0, 1}}}, Sent{2, {{3, 4}}}}));
}

TEST_F(Standbys, what_a_suspect_owes_is_asked_from_who_keeps_it) {
  transport_.scripts[0] = [](PeerId, const Dispatch&) { return std::vector<Event>{}; };
  transport_.on_wait = [&] { watch_.add(NodeNews::Kind::kSuspect, 0); };
  ASSERT_TRUE(step());
  expect_exact();
  EXPECT_TRUE(transport_.closed.empty());
  EXPECT_THAT(transport_.sent, IsSupersetOf({Sent{1, {{0, 1}}}, Sent{2, {{3, 4}}}}));
}

// Both keepers of a tile are gone: somebody else reads it.
TEST_F(Standbys, what_nobody_keeps_any_more_is_asked_from_who_is_left) {
  transport_.unreachable = {0, 1};
  ASSERT_TRUE(step());
  expect_exact();
  EXPECT_EQ(dispatcher_->num_living(), 1);
}

TEST_F(Standbys, one_who_stands_by_and_dies_too_leaves_its_part_to_others) {
  const auto answer = transport_.scripts[1];
  transport_.scripts[0] = [](PeerId peer, const Dispatch&) {
    std::vector<Event> events;
    events.push_back(lost_event(peer));
    return events;
  };
  transport_.scripts[1] = [&](PeerId peer, const Dispatch& dispatch) {
    if (dispatch.tiles == Ranges{{1, 2}}) return answer(peer, dispatch);
    std::vector<Event> events;
    events.push_back(partial_event(peer, dispatch, 1, 1, 0, kHidden));
    events.push_back(lost_event(peer));
    return events;
  };
  ASSERT_TRUE(step());
  expect_exact();
  EXPECT_EQ(dispatcher_->num_living(), 1);
}

TEST_F(Standbys, a_plan_that_only_swaps_who_is_asked_is_followed_by_the_next_dispatch) {
  ASSERT_TRUE(step());
  watch_.add_plan(
      {{"n0", {3}, false, {0, 1}}, {"n1", {0, 1}, false, {2}}, {"n2", {2}, false, {3}}});
  transport_.sent.clear();
  ASSERT_TRUE(step());
  expect_exact();
  EXPECT_THAT(transport_.sent,
              testing::ElementsAre(Sent{0, {{3, 4}}}, Sent{1, {{0, 2}}}, Sent{2, {{2, 3}}}));
  EXPECT_EQ(dispatcher_->placement().num_standby(0), 2);
}

}  // namespace
}  // namespace atl::coordinator
