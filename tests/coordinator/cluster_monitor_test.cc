#include "coordinator/cluster/cluster_monitor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <csignal>
#include <numeric>
#include <thread>

#include "deployment/deployment.h"
#include "tests/support/golden.h"

namespace atl::coordinator {
namespace {

using testing::Each;
using testing::IsEmpty;
using testing::SizeIs;

deployment::DeploymentOptions options_for(int nodes) {
  deployment::DeploymentOptions options;
  options.model_dir = test::tests_dir() / "models/tiny-fp8";
  options.nodes = nodes;
  options.threads = 1;
  options.cache_tokens = 1024;
  options.node_program = ATOLL_BINARY;
  return options;
}

// All tokens get logits, so that all go through the last layer.
Status step(Engine& engine, Sequence& sequence, const std::vector<int32_t>& tokens) {
  const SequenceRows rows{&sequence, tokens, WantLogits::kAll};
  std::optional<Error> error;
  const auto no_logits = [](size_t, size_t, std::span<const float>) {};
  return engine.step(std::span(&rows, 1), no_logits, std::span(&error, 1));
}

// What the nodes count comes on another thread.
ClusterSnapshot snapshot_with_stats(const ClusterMonitor& monitor) {
  const auto give_up = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (true) {
    ClusterSnapshot snapshot = monitor.snapshot();
    bool all = true;
    for (const ClusterSnapshot::Node& node : snapshot.nodes) {
      all = all && node.stats_known && node.stats.rows == node.traffic.rows;
    }
    if (all || std::chrono::steady_clock::now() > give_up) return snapshot;
    std::this_thread::yield();
  }
}

TEST(ClusterMonitor, counts_rows_of_experts_and_asks_the_nodes) {
  for (const int nodes : {0, 2}) {
    SCOPED_TRACE(nodes);
    deployment::Deployment deployment(options_for(nodes));
    ManualClock clock;
    ClusterMonitor monitor(deployment.engine(), deployment.dispatcher(), deployment.cluster(),
                           clock, {.ask_every = std::chrono::milliseconds(1)});
    Sequence sequence;
    ASSERT_TRUE(step(deployment.engine(), sequence, {0, 5, 9}));
    monitor.after_step();
    EXPECT_EQ(monitor.snapshot().times.steps, 0u);  // not yet time for a copy
    clock.advance(std::chrono::milliseconds(200));
    monitor.after_step();
    const ClusterSnapshot snapshot = snapshot_with_stats(monitor);
    EXPECT_EQ(snapshot.times.steps, 1u);
    ASSERT_THAT(snapshot.expert_rows, SizeIs(6));
    EXPECT_THAT(snapshot.expert_rows[0], IsEmpty());  // dense
    for (size_t layer = 1; layer < 6; ++layer) {
      ASSERT_THAT(snapshot.expert_rows[layer], SizeIs(32));
      EXPECT_EQ(std::accumulate(snapshot.expert_rows[layer].begin(),
                                snapshot.expert_rows[layer].end(), uint64_t{0}),
                3u * 4);
    }
    ASSERT_THAT(snapshot.nodes, SizeIs(nodes == 0 ? 1 : nodes));
    for (const ClusterSnapshot::Node& node : snapshot.nodes) {
      EXPECT_TRUE(node.alive);
      EXPECT_EQ(node.num_tiles, nodes == 0 ? 4 : 2);
      EXPECT_EQ(node.traffic.rows, 15u);
      EXPECT_EQ(node.stats.rows, 15u);
      EXPECT_GE(node.num_threads, 1u);
    }
    deployment.engine().release(sequence);
  }
}

TEST(ClusterMonitor, tells_that_a_node_was_lost_and_is_back_with_its_tiles) {
  deployment::Deployment deployment(options_for(2));
  ManualClock clock;
  ClusterMonitor monitor(deployment.engine(), deployment.dispatcher(), deployment.cluster(), clock);
  ASSERT_EQ(::kill(deployment.child_pids()[1], SIGKILL), 0);
  Sequence sequence;
  ASSERT_TRUE(step(deployment.engine(), sequence, {0, 5, 9}));
  const auto give_up = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (monitor.snapshot().nodes[1].restarts == 0) {
    ASSERT_LT(std::chrono::steady_clock::now(), give_up);
    std::this_thread::yield();
  }
  ASSERT_TRUE(step(deployment.engine(), sequence, {7}));
  clock.advance(std::chrono::seconds(1));
  monitor.after_step();
  const ClusterSnapshot snapshot = monitor.snapshot();
  ASSERT_THAT(snapshot.nodes, SizeIs(2));
  for (const ClusterSnapshot::Node& node : snapshot.nodes) {
    EXPECT_TRUE(node.alive);
    EXPECT_EQ(node.state, "ready");
    EXPECT_EQ(node.num_tiles, 2);
  }
  EXPECT_EQ(snapshot.nodes[0].losses, 0u);
  EXPECT_EQ(snapshot.nodes[1].losses, 1u);
  deployment.engine().release(sequence);
}

}  // namespace
}  // namespace atl::coordinator
