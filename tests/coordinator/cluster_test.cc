// Nodes that load, die and are brought back, by nodes that say what they are told to.
#include "coordinator/cluster/cluster.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <iterator>
#include <utility>

#include "topology/placement.h"

namespace atl::coordinator {
namespace {

using transport::NodeState;
using Phase = transport::NodeState::Phase;
constexpr auto kPatience = std::chrono::seconds(60);

// A transport to which every address is right.
class NullTransport final : public transport::Transport {
 public:
  std::vector<std::byte> address() const override { return {std::byte{42}}; }
  Result<transport::PeerId> connect(std::span<const std::byte>, const std::string&) override {
    return transport::PeerId{1};
  }
  void close(transport::PeerId) override {}
  Status send(transport::PeerId, std::span<const std::byte>, transport::SharedBuffer,
              size_t) override {
    return {};
  }
  std::optional<transport::Event> poll() override { return std::nullopt; }
  void wait(std::chrono::microseconds) override {}
  void wake() override { ++wakes; }
  std::string selected_links(transport::PeerId) const override { return "null"; }

  std::atomic<int> wakes{0};
};

// What the test says of a node, and what was done with it. Any thread.
struct Script {
  std::mutex mutex;
  NodeState state;
  std::optional<Error> hello_error;
  bool is_started = true;
  std::string name;  // that it says; "": none
  std::vector<SessionId> sessions;
  int opened = 0, ended = 0, greeted = 0, planned = 0, stopped = 0;
  transport::Plan plan;
  std::atomic<bool> beats{true}, connected{true};
  std::atomic<uint64_t> heartbeats{0};
};

class FakeClient final : public transport::NodeClient {
 public:
  explicit FakeClient(Script& script) : script_(script) {}
  Result<transport::HelloReply> hello(const transport::Hello& hello) override {
    const std::lock_guard lock(script_.mutex);
    EXPECT_EQ(hello.data_address, std::vector<std::byte>{std::byte{42}});
    if (script_.hello_error) return *script_.hello_error;
    ++script_.greeted;
    script_.sessions.push_back(hello.session);
    transport::HelloReply reply;
    reply.node = script_.name;
    reply.data_address = {static_cast<std::byte>(script_.greeted)};
    return reply;
  }
  Status apply_plan(SessionId, const transport::Plan& plan) override {
    const std::lock_guard lock(script_.mutex);
    script_.plan = plan;
    ++script_.planned;
    return {};
  }
  Result<NodeState> state(SessionId) override {
    const std::lock_guard lock(script_.mutex);
    return script_.state;
  }
  Result<transport::NodeStats> stats(SessionId) override { return transport::NodeStats{}; }
  Status close_session(SessionId) override { return {}; }
  Status stop() override {
    const std::lock_guard lock(script_.mutex);
    ++script_.stopped;
    return {};
  }
  void send_heartbeats(std::chrono::milliseconds) override {}
  Pulse pulse() const override {
    if (script_.beats) ++script_.heartbeats;
    return {script_.heartbeats, script_.connected};
  }

 private:
  Script& script_;
};

class FakeSource final : public NodeSource {
 public:
  FakeSource(std::vector<std::unique_ptr<Script>>& nodes, bool waits)
      : nodes_(nodes), waits_(waits) {}
  int num_nodes() const override { return static_cast<int>(nodes_.size()); }
  std::string name(int node) const override { return "n" + std::to_string(node); }
  Result<std::unique_ptr<transport::NodeClient>> open(int node) override {
    Script& script = *nodes_[static_cast<size_t>(node)];
    const std::lock_guard lock(script.mutex);
    if (!script.is_started) return Error{ErrorCode::kUnavailable, "connection refused"};
    ++script.opened;
    script.connected = true;
    return std::unique_ptr<transport::NodeClient>(std::make_unique<FakeClient>(script));
  }
  std::string end(int node) override {
    Script& script = *nodes_[static_cast<size_t>(node)];
    const std::lock_guard lock(script.mutex);
    ++script.ended;
    script.beats = true;  // a new life is well
    return "exit code 3";
  }
  bool reopens() const override { return true; }
  bool waits() const override { return waits_; }

 private:
  std::vector<std::unique_ptr<Script>>& nodes_;
  const bool waits_;
};

class ClusterTest : public testing::Test {
 protected:
  ClusterTest() {
    for (int n = 0; n < 2; ++n) nodes_.push_back(std::make_unique<Script>());
  }
  void open() {
    ClusterOptions options;
    options.times.heartbeat = std::chrono::milliseconds(5);
    options.times.suspect_after = std::chrono::milliseconds(100);
    options.times.lost_after = std::chrono::milliseconds(400);
    options.times.backoff_min = std::chrono::milliseconds(1);
    options.load_patience = std::chrono::milliseconds(200);
    options.times.redial = std::chrono::milliseconds(1);
    options.grace = grace_;
    options.min_coverage = min_coverage_;
    options.owners_patience = owners_patience_;
    options.redundancy = redundancy_;
    options.follows_speed = follows_speed_;
    topology::Placement placement = topology::equal_placement(4, 2);
    placement.standby_of_node =
        topology::standby_tiles(placement.tiles_of_node, redundancy_, {4, 4});
    cluster_.emplace(transport_, clock_, options, placement,
                     std::make_unique<FakeSource>(nodes_, waits_));
  }
  void open_ready() {
    set(0, state(Phase::kReady, 7, 7));
    set(1, state(Phase::kReady, 7, 7));
    open();
    cluster_->watch();
  }
  static NodeState state(Phase phase, uint64_t loaded, uint64_t total) {
    NodeState state;
    state.phase = phase;
    state.bytes_loaded = loaded;
    state.bytes_total = total;
    return state;
  }
  void set(size_t node, const NodeState& state) {
    const std::lock_guard lock(nodes_[node]->mutex);
    nodes_[node]->state = state;
  }
  // Takes news until one is of this kind, which is then the last. What came with it, after it, is
  // for the next call.
  std::vector<NodeNews> news_until(NodeNews::Kind kind) {
    std::vector<NodeNews> all = std::exchange(later_news_, {});
    const auto deadline = std::chrono::steady_clock::now() + kPatience;
    while (true) {
      const auto last = std::find_if(all.rbegin(), all.rend(),
                                     [&](const NodeNews& news) { return news.kind == kind; });
      if (last != all.rend()) {
        later_news_.assign(std::make_move_iterator(last.base()),
                           std::make_move_iterator(all.end()));
        all.erase(last.base(), all.end());
        return all;
      }
      if (std::chrono::steady_clock::now() > deadline) {
        ADD_FAILURE() << "not in time";
        all.emplace_back();
        return all;
      }
      for (NodeNews& news : cluster_->take_news()) all.push_back(std::move(news));
      std::this_thread::yield();
    }
  }
  bool eventually(const std::function<bool()>& holds) {
    const auto deadline = std::chrono::steady_clock::now() + kPatience;
    while (!holds() && std::chrono::steady_clock::now() < deadline) std::this_thread::yield();
    return holds();
  }

  std::vector<transport::TileRange> planned(size_t node) {
    const std::lock_guard lock(nodes_[node]->mutex);
    return nodes_[node]->plan.tiles;
  }
  void start(size_t node, bool is_started = true) {
    const std::lock_guard lock(nodes_[node]->mutex);
    nodes_[node]->is_started = is_started;
    nodes_[node]->name = "n" + std::to_string(node);
  }
  // Nodes that others start, of which none is there yet.
  void open_dialled() {
    waits_ = true;
    set(0, state(Phase::kReady, 7, 7));
    set(1, state(Phase::kReady, 7, 7));
    start(0, false);
    start(1, false);
    open();
    cluster_->watch();
  }
  void await_all() {
    start(0);
    start(1);
    ASSERT_TRUE(eventually([&] { return cluster_->load_state().ready; }));
    cluster_->begin();
    ASSERT_TRUE(eventually([&] { return cluster_->missing().empty(); }));
    (void)cluster_->take_news();
  }

  int times_planned(size_t node) {
    const std::lock_guard lock(nodes_[node]->mutex);
    return nodes_[node]->planned;
  }
  // As if n0 took so much longer than n1, at as many looks as it takes until it counts.
  void tell_slower(double times, double tried_seconds = 0) {
    for (int look = 0; look < 5; ++look) {
      cluster_->measured({{100, times * 1e-3, tried_seconds}, {100, 1e-3, 0}});
    }
  }

  bool waits_ = false, follows_speed_ = false;
  int redundancy_ = 1;
  double min_coverage_ = 1;
  std::chrono::milliseconds owners_patience_{600'000};
  std::chrono::milliseconds grace_{600'000};
  const SteadyClock clock_;
  NullTransport transport_;
  std::vector<std::unique_ptr<Script>> nodes_;
  std::optional<Cluster> cluster_;
  std::vector<NodeNews> later_news_;
};

TEST_F(ClusterTest, is_ready_when_every_node_is_and_warm_when_all_have_loaded_the_rest) {
  open();
  const struct {
    NodeState n0, n1;
    bool ready, warm;
  } kCases[] = {
      {state(Phase::kIdle, 0, 0), state(Phase::kIdle, 0, 0), false, false},
      {state(Phase::kReady, 7, 7), state(Phase::kLoading, 9, 9), false, false},
      {state(Phase::kLoading, 9, 9), state(Phase::kReady, 7, 7), false, false},
      {state(Phase::kReady, 0, 7), state(Phase::kReady, 0, 9), true, false},
      {state(Phase::kReady, 7, 7), state(Phase::kReady, 8, 9), true, false},
      {state(Phase::kReady, 6, 7), state(Phase::kReady, 9, 9), true, false},
      {state(Phase::kReady, 7, 7), state(Phase::kReady, 9, 9), true, true},
      {state(Phase::kReady, 0, 0), state(Phase::kReady, 9, 9), true, true},  // owns no tiles
  };
  for (const auto& one : kCases) {
    set(0, one.n0);
    set(1, one.n1);
    const Cluster::LoadState sum = cluster_->load_state();
    EXPECT_EQ(sum.ready, one.ready) << &one - kCases;
    EXPECT_EQ(sum.warm, one.warm) << &one - kCases;
    EXPECT_EQ(sum.bytes_loaded, one.n0.bytes_loaded + one.n1.bytes_loaded);
    EXPECT_EQ(sum.bytes_total, one.n0.bytes_total + one.n1.bytes_total);
  }
}

TEST_F(ClusterTest, a_node_that_fails_while_it_loads_the_first_time_is_named) {
  open();
  set(0, state(Phase::kReady, 7, 7));
  NodeState failed = state(Phase::kFailed, 3, 9);
  failed.error = "extent 5: truncated";
  set(1, failed);
  try {
    cluster_->load_state();
    FAIL() << "no error";
  } catch (const LoadError& error) {
    EXPECT_STREQ(error.what(), "expert node n1: extent 5: truncated");
  }
}

TEST_F(ClusterTest, a_node_that_cannot_be_greeted_the_first_time_is_named_with_its_end) {
  nodes_[1]->hello_error = Error{ErrorCode::kUnavailable, "connection reset"};
  try {
    open();
    FAIL() << "no error";
  } catch (const LoadError& error) {
    EXPECT_STREQ(error.what(), "expert node n1: it did not start: exit code 3");
  }
}

TEST_F(ClusterTest, a_node_whose_connection_breaks_is_ended_and_brought_back_with_its_plan) {
  open_ready();
  const transport::Plan plan = nodes_[1]->plan;
  nodes_[1]->connected = false;
  const std::vector<NodeNews> news = news_until(NodeNews::Kind::kJoined);
  ASSERT_FALSE(news.empty());
  EXPECT_EQ(news.back().node, 1u);
  EXPECT_EQ(news.back().life, 2u);
  EXPECT_EQ(news.back().data_address, std::vector<std::byte>{std::byte{2}});  // of the second one
  EXPECT_GT(transport_.wakes, 0);
  const std::lock_guard lock(nodes_[1]->mutex);
  EXPECT_EQ(nodes_[1]->ended, 1);
  EXPECT_EQ(nodes_[1]->opened, 2);
  EXPECT_EQ(nodes_[1]->planned, 2);
  EXPECT_EQ(nodes_[1]->plan.tiles, plan.tiles);
  EXPECT_EQ(nodes_[0]->opened, 1);
  const Cluster::NodeStatus status = cluster_->status()[1];
  EXPECT_EQ(status.state, Member::State::kReady);
  EXPECT_EQ(status.losses, 1u);
  EXPECT_EQ(status.restarts, 1u);
}

TEST_F(ClusterTest, a_node_without_heartbeats_is_suspect_then_ended_and_brought_back) {
  open_ready();
  nodes_[0]->beats = false;
  EXPECT_EQ(news_until(NodeNews::Kind::kSuspect).back().node, 0u);
  const std::vector<NodeNews> news = news_until(NodeNews::Kind::kJoined);
  EXPECT_EQ(news.front().kind, NodeNews::Kind::kLost);
  EXPECT_THAT(news.front().why, testing::HasSubstr("no heartbeat"));
}

TEST_F(ClusterTest, a_suspect_that_is_heard_again_keeps_its_life) {
  open_ready();
  nodes_[0]->beats = false;
  news_until(NodeNews::Kind::kSuspect);
  nodes_[0]->beats = true;
  news_until(NodeNews::Kind::kTrusted);
  EXPECT_EQ(nodes_[0]->opened, 1);
}

TEST_F(ClusterTest, what_the_dispatcher_gives_up_is_brought_back_once) {
  open_ready();
  cluster_->given_up(1, 1, "sent a bad frame");
  EXPECT_EQ(news_until(NodeNews::Kind::kJoined).back().life, 2u);
  cluster_->given_up(1, 1, "late word about its first life");
  EXPECT_EQ(cluster_->status()[1].state, Member::State::kReady);
  EXPECT_TRUE(cluster_->take_news().empty());
}

TEST_F(ClusterTest, tries_again_while_a_node_cannot_be_greeted_fails_or_reads_nothing) {
  open_ready();
  Script& node = *nodes_[1];
  {
    const std::lock_guard lock(node.mutex);
    node.hello_error = Error{ErrorCode::kUnavailable, "reset"};
  }
  node.connected = false;
  const auto tried = [&](int times) {
    return eventually([&, before = [&] {
      const std::lock_guard lock(node.mutex);
      return node.opened;
    }()] {
      const std::lock_guard lock(node.mutex);
      return node.opened >= before + times;
    });
  };
  EXPECT_TRUE(tried(3));
  EXPECT_FALSE(cluster_->status()[1].lost_because.empty());
  {
    const std::lock_guard lock(node.mutex);
    node.hello_error.reset();
    node.state = state(Phase::kFailed, 0, 0);
  }
  EXPECT_TRUE(tried(2));
  set(1, state(Phase::kLoading, 3, 9));
  EXPECT_TRUE(tried(2));
  for (const NodeNews& news : cluster_->take_news()) EXPECT_NE(news.kind, NodeNews::Kind::kJoined);
  set(1, state(Phase::kReady, 9, 9));
  EXPECT_EQ(news_until(NodeNews::Kind::kJoined).back().node, 1u);
}

// An engine that has nothing to do takes no news: they must not pile up, and the last life counts.
TEST_F(ClusterTest, news_that_nobody_took_are_replaced_by_later_ones) {
  open_ready();
  for (uint64_t losses = 1; losses <= 5; ++losses) {
    nodes_[1]->connected = false;
    ASSERT_TRUE(eventually([&] {
      const Cluster::NodeStatus status = cluster_->status()[1];
      return status.restarts == losses && status.state == Member::State::kReady;
    }));
  }
  const std::vector<NodeNews> news = cluster_->take_news();
  ASSERT_EQ(news.size(), 2u);
  EXPECT_EQ(news[0].kind, NodeNews::Kind::kLost);
  EXPECT_EQ(news[1].kind, NodeNews::Kind::kJoined);
  EXPECT_EQ(news[1].life, 6u);
}

TEST_F(ClusterTest, a_join_that_nobody_took_is_void_when_that_life_has_ended) {
  open_ready();
  nodes_[1]->connected = false;
  ASSERT_TRUE(eventually([&] { return cluster_->status()[1].restarts == 1; }));
  set(1, state(Phase::kLoading, 0, 9));  // the third life takes its time
  nodes_[1]->connected = false;
  ASSERT_TRUE(eventually([&] { return cluster_->status()[1].losses == 2; }));
  const std::vector<NodeNews> news = cluster_->take_news();
  ASSERT_EQ(news.size(), 1u);
  EXPECT_EQ(news[0].kind, NodeNews::Kind::kLost);
}

TEST_F(ClusterTest, closing_ends_what_is_being_brought_back) {
  open_ready();
  set(1, state(Phase::kLoading, 0, 9));
  nodes_[1]->connected = false;
  ASSERT_TRUE(eventually([&] {
    const std::lock_guard lock(nodes_[1]->mutex);
    return nodes_[1]->opened >= 2;
  }));
  cluster_->close(Cluster::Nodes::kStop);
  EXPECT_EQ(nodes_[0]->stopped, 1);
  EXPECT_EQ(nodes_[1]->stopped, 0);
}

// ---- Nodes that others start -------------------------------------------------------------------

TEST_F(ClusterTest, nodes_that_others_start_may_come_in_any_order) {
  open_dialled();
  ASSERT_TRUE(eventually([&] { return cluster_->missing().size() == 2; }));
  EXPECT_FALSE(cluster_->load_state().ready);
  for (const NodeLink& link : cluster_->links()) EXPECT_FALSE(link.is_there);
  ASSERT_TRUE(eventually([&] {
    return cluster_->missing() ==
           std::vector<std::string>{"n0 (connection refused)", "n1 (connection refused)"};
  }));
  start(1);
  const std::vector<NodeNews> news = news_until(NodeNews::Kind::kJoined);
  EXPECT_EQ(news.back().node, 1u);
  EXPECT_FALSE(cluster_->load_state().ready) << "half of the tiles have no node";
  start(0);
  EXPECT_TRUE(eventually([&] { return cluster_->load_state().ready; }));
}

TEST_F(ClusterTest, enough_nodes_are_enough_and_the_rest_comes_later) {
  min_coverage_ = 0.5;
  open_dialled();
  start(1);
  ASSERT_TRUE(eventually([&] { return cluster_->load_state().ready; }));
  cluster_->begin();
  start(0);
  EXPECT_TRUE(eventually([&] { return cluster_->missing().empty(); }));
}

TEST_F(ClusterTest, a_node_that_is_another_than_wanted_ends_the_start_with_its_words) {
  open_dialled();
  {
    const std::lock_guard lock(nodes_[0]->mutex);
    nodes_[0]->hello_error = Error{ErrorCode::kInvalid, "checkpoint differs: n0 has a, you b"};
  }
  start(0);
  std::string error;
  EXPECT_TRUE(eventually([&] {
    try {
      (void)cluster_->load_state();
    } catch (const LoadError& thrown) {
      error = thrown.what();
    }
    return !error.empty();
  }));
  EXPECT_EQ(error, "expert node n0: checkpoint differs: n0 has a, you b");
}

TEST_F(ClusterTest, standbys_are_enough_once_owners_have_been_waited_for) {
  redundancy_ = 2;
  open_dialled();
  start(1);
  ASSERT_TRUE(eventually([&] { return cluster_->missing().size() == 1; }));
  EXPECT_FALSE(cluster_->load_state().ready) << "the owners may still come";
  cluster_.reset();
  owners_patience_ = std::chrono::milliseconds(50);
  open_dialled();
  EXPECT_FALSE(cluster_->load_state().ready);
  start(1);
  EXPECT_TRUE(eventually([&] { return cluster_->load_state().ready; }));
}

TEST_F(ClusterTest, a_node_that_does_not_fit_does_not_end_the_start_of_those_that_are_enough) {
  redundancy_ = 2;
  owners_patience_ = std::chrono::milliseconds(50);
  open_dialled();
  {
    const std::lock_guard lock(nodes_[0]->mutex);
    nodes_[0]->hello_error = Error{ErrorCode::kInvalid, "checkpoint differs: n0 has a, you b"};
  }
  start(0);
  ASSERT_TRUE(eventually([&] { return !cluster_->status()[0].lost_because.empty(); }));
  EXPECT_FALSE(cluster_->load_state().ready);
  start(1);
  EXPECT_TRUE(eventually([&] { return cluster_->load_state().ready; }));
  EXPECT_EQ(cluster_->missing(),
            std::vector<std::string>{"n0 (checkpoint differs: n0 has a, you b)"});
}

TEST_F(ClusterTest, a_node_that_answers_at_anothers_address_is_refused) {
  open_dialled();
  {
    const std::lock_guard lock(nodes_[0]->mutex);
    nodes_[0]->is_started = true;
    nodes_[0]->name = "n7";
  }
  EXPECT_TRUE(eventually(
      [&] { return cluster_->status()[0].lost_because == "at its address is node n7, not n0"; }));
}

TEST_F(ClusterTest, each_life_of_a_node_has_a_session_of_its_own) {
  open_dialled();
  await_all();
  nodes_[0]->connected = false;
  const std::vector<NodeNews> news = news_until(NodeNews::Kind::kJoined);
  const std::lock_guard lock(nodes_[0]->mutex);
  ASSERT_EQ(nodes_[0]->sessions.size(), 2u);
  EXPECT_NE(nodes_[0]->sessions[0], nodes_[0]->sessions[1]);
  EXPECT_EQ(news.back().session, nodes_[0]->sessions[1]);
}

TEST_F(ClusterTest,
       a_node_that_comes_back_as_another_one_is_quarantined_and_does_not_end_the_rest) {
  open_dialled();
  await_all();
  {
    const std::lock_guard lock(nodes_[0]->mutex);
    nodes_[0]->hello_error = Error{ErrorCode::kInvalid, "profile differs: n0 has a, you b"};
  }
  nodes_[0]->connected = false;
  EXPECT_TRUE(
      eventually([&] { return cluster_->status()[0].state == Member::State::kQuarantined; }));
  EXPECT_EQ(cluster_->status()[0].lost_because, "profile differs: n0 has a, you b");
  EXPECT_NO_THROW((void)cluster_->load_state());
}

// ---- Plans -------------------------------------------------------------------------------------

TEST_F(ClusterTest, after_the_grace_period_others_load_a_lost_nodes_tiles_until_it_is_back) {
  grace_ = std::chrono::milliseconds(20);
  open_dialled();
  await_all();
  start(0, false);
  nodes_[0]->connected = false;
  NodeNews plan = news_until(NodeNews::Kind::kPlan).back();
  ASSERT_EQ(plan.plan.size(), 2u);
  EXPECT_TRUE(plan.plan[0].tiles.empty());
  EXPECT_EQ(plan.plan[1].tiles, (std::vector<int>{0, 1, 2, 3}));
  EXPECT_EQ(planned(1), (std::vector<transport::TileRange>{{0, 4}}));
  start(0);
  std::vector<NodeNews> news = news_until(NodeNews::Kind::kPlan);
  EXPECT_EQ(news.back().plan[0].tiles, (std::vector<int>{0, 1}));
  EXPECT_EQ(news.back().plan[1].tiles, (std::vector<int>{2, 3}));
  EXPECT_EQ(planned(0), (std::vector<transport::TileRange>{{0, 2}}));
}

TEST_F(ClusterTest, a_plan_is_told_to_the_dispatcher_when_who_stays_has_loaded) {
  open_dialled();
  await_all();
  set(1, state(Phase::kReady, 3, 9));  // it reads
  ASSERT_TRUE(cluster_->drain("n0"));
  ASSERT_TRUE(eventually([&] { return planned(1) == std::vector<transport::TileRange>{{0, 4}}; }));
  EXPECT_TRUE(cluster_->take_news().empty());
  EXPECT_TRUE(cluster_->status()[0].is_draining);
  set(1, state(Phase::kReady, 9, 9));
  NodeNews plan = news_until(NodeNews::Kind::kPlan).back();
  EXPECT_TRUE(plan.plan[0].tiles.empty());
  EXPECT_TRUE(plan.plan[0].is_leaving);
  EXPECT_FALSE(plan.plan[1].is_leaving);
  ASSERT_TRUE(cluster_->resume("n0"));
  plan = news_until(NodeNews::Kind::kPlan).back();
  EXPECT_EQ(plan.plan[0].tiles, (std::vector<int>{0, 1}));
  EXPECT_FALSE(plan.plan[0].is_leaving);
}

TEST_F(ClusterTest, the_last_node_that_could_compute_is_not_drained) {
  open_dialled();
  await_all();
  ASSERT_TRUE(cluster_->drain("n1"));
  const Status status = cluster_->drain("n0");
  ASSERT_FALSE(status);
  EXPECT_THAT(status.error().message, testing::HasSubstr("n0 is the only one that could compute"));
  EXPECT_EQ(cluster_->drain("n9").error().message, "there is no node n9");
  EXPECT_EQ(cluster_->resume("n9").error().message, "there is no node n9");
}

TEST_F(ClusterTest, with_redundancy_nodes_are_told_what_they_own_and_what_they_stand_by_for) {
  redundancy_ = 2;
  grace_ = std::chrono::milliseconds(20);
  open_dialled();
  EXPECT_EQ(cluster_->links()[0].standby, (std::vector<int>{2, 3}));
  await_all();
  EXPECT_EQ(planned(0), (std::vector<transport::TileRange>{{0, 4}}));
  EXPECT_EQ(nodes_[0]->plan.standby, (std::vector<transport::TileRange>{{2, 4}}));
  start(0, false);
  nodes_[0]->connected = false;
  NodeNews plan = news_until(NodeNews::Kind::kPlan).back();
  EXPECT_EQ(plan.plan[1].tiles, (std::vector<int>{0, 1, 2, 3}));
  EXPECT_TRUE(plan.plan[1].standby.empty());
  EXPECT_EQ(times_planned(1), 1) << "it has all of that already";
  start(0);
  plan = news_until(NodeNews::Kind::kPlan).back();
  EXPECT_EQ(plan.plan[0].tiles, (std::vector<int>{0, 1}));
  EXPECT_EQ(plan.plan[1].standby, (std::vector<int>{0, 1}));
}

TEST_F(ClusterTest, a_node_that_has_no_room_to_stand_by_stands_by_for_nothing) {
  redundancy_ = 2;
  open_dialled();
  NodeState small = state(Phase::kReady, 7, 7);
  small.standby_left_out = true;
  set(1, small);
  start(0);
  start(1);
  ASSERT_TRUE(eventually([&] { return cluster_->load_state().ready; }));
  cluster_->begin();
  const NodeNews plan = news_until(NodeNews::Kind::kPlan).back();
  EXPECT_EQ(plan.plan[0].standby, (std::vector<int>{2, 3}));
  EXPECT_TRUE(plan.plan[1].standby.empty());
}

TEST_F(ClusterTest, a_slow_nodes_tiles_are_asked_from_who_keeps_them_and_nothing_is_loaded) {
  redundancy_ = 2;
  follows_speed_ = true;
  open_dialled();
  await_all();
  tell_slower(1.2);
  tell_slower(10);
  NodeNews plan = news_until(NodeNews::Kind::kPlan).back();
  EXPECT_TRUE(plan.plan[0].tiles.empty());
  EXPECT_EQ(plan.plan[0].standby, (std::vector<int>{0, 1, 2, 3}));
  EXPECT_EQ(plan.plan[0].tried, (std::vector<int>{0, 1}));
  EXPECT_EQ(plan.plan[1].tiles, (std::vector<int>{0, 1, 2, 3}));
  EXPECT_EQ(times_planned(0), 1);
  EXPECT_EQ(times_planned(1), 1);
  // As fast as the other one again.
  for (int look = 0; look < 5; ++look) cluster_->measured({{0, 0, 2e-3}, {100, 1e-3, 0}});
  plan = news_until(NodeNews::Kind::kPlan).back();
  EXPECT_EQ(plan.plan[0].tiles, (std::vector<int>{0, 1}));
  EXPECT_TRUE(plan.plan[0].tried.empty());
}

TEST_F(ClusterTest, without_redundancy_a_slow_nodes_tiles_move_once_others_have_loaded_them) {
  follows_speed_ = true;
  open_dialled();
  await_all();
  set(1, state(Phase::kReady, 3, 9));  // it reads
  tell_slower(10);
  ASSERT_TRUE(eventually([&] { return planned(1) == std::vector<transport::TileRange>{{0, 4}}; }));
  EXPECT_TRUE(cluster_->take_news().empty());
  set(1, state(Phase::kReady, 9, 9));
  const NodeNews plan = news_until(NodeNews::Kind::kPlan).back();
  EXPECT_TRUE(plan.plan[0].tiles.empty());
  EXPECT_EQ(plan.plan[0].standby, (std::vector<int>{0, 1})) << "it keeps them to take them back";
  EXPECT_EQ(plan.plan[1].tiles, (std::vector<int>{0, 1, 2, 3}));
}

TEST_F(ClusterTest, nodes_come_in_and_go_while_others_stay) {
  open_dialled();
  await_all();
  nodes_.push_back(std::make_unique<Script>());
  set(2, state(Phase::kReady, 7, 7));
  start(2);
  cluster_->set_nodes({{{}, true, false}, {{0, 1}, false, false}, {{2, 3}, false, false}});
  // The dispatcher hears of a node only after the plan that names it.
  const std::vector<NodeNews> news = news_until(NodeNews::Kind::kJoined);
  EXPECT_EQ(news.back().node, 2u);
  ASSERT_EQ(news.front().plan.size(), 3u);
  EXPECT_EQ(news.front().plan[2].name, "n2");
  EXPECT_TRUE(news.front().plan[0].is_leaving);
  EXPECT_EQ(planned(1), (std::vector<transport::TileRange>{{0, 2}}));
  EXPECT_EQ(news_until(NodeNews::Kind::kLost).back().node, 0u);
  EXPECT_TRUE(cluster_->status()[0].is_removed);
  // And back at its place.
  cluster_->set_nodes({{{0}, false, false}, {{1}, false, false}, {{2, 3}, false, false}});
  EXPECT_TRUE(eventually([&] { return cluster_->missing().empty(); }));
  EXPECT_FALSE(cluster_->status()[0].is_removed);
}

}  // namespace
}  // namespace atl::coordinator
