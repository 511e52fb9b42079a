// The coordinator's view of nodes that load, by nodes that say what they are told to.
#include "coordinator/cluster/cluster.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "topology/placement.h"

namespace atl::coordinator {
namespace {

using transport::NodeState;
using Phase = transport::NodeState::Phase;

// A transport to which every address is right.
class NullTransport final : public transport::Transport {
 public:
  std::vector<std::byte> address() const override { return {}; }
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
  void wake() override {}
  std::string selected_links(transport::PeerId) const override { return "null"; }
};

// Answers with a state that the test sets.
class FakeClient final : public transport::NodeClient {
 public:
  explicit FakeClient(const NodeState& state) : state_(state) {}
  Result<transport::HelloReply> hello(const transport::Hello&) override {
    return transport::HelloReply{};
  }
  Status apply_plan(SessionId, const transport::Plan&) override { return {}; }
  Result<NodeState> state(SessionId) override { return state_; }
  Result<transport::NodeStats> stats(SessionId) override { return transport::NodeStats{}; }
  Status close_session(SessionId) override { return {}; }
  Status stop() override { return {}; }

 private:
  const NodeState& state_;
};

class ClusterTest : public testing::Test {
 protected:
  ClusterTest() {
    std::vector<ClusterNode> nodes;
    nodes.push_back({"n0", std::make_unique<FakeClient>(states_[0])});
    nodes.push_back({"n1", std::make_unique<FakeClient>(states_[1])});
    cluster_.emplace(transport_, ClusterOptions{}, topology::equal_placement(4, 2),
                     std::move(nodes));
  }
  static NodeState state(Phase phase, uint64_t loaded, uint64_t total) {
    NodeState state;
    state.phase = phase;
    state.bytes_loaded = loaded;
    state.bytes_total = total;
    return state;
  }

  NullTransport transport_;
  NodeState states_[2];
  std::optional<Cluster> cluster_;
};

TEST_F(ClusterTest, is_ready_when_every_node_is_and_warm_when_all_have_loaded_the_rest) {
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
    states_[0] = one.n0;
    states_[1] = one.n1;
    const Cluster::LoadState sum = cluster_->load_state();
    EXPECT_EQ(sum.ready, one.ready) << &one - kCases;
    EXPECT_EQ(sum.warm, one.warm) << &one - kCases;
    EXPECT_EQ(sum.bytes_loaded, one.n0.bytes_loaded + one.n1.bytes_loaded);
    EXPECT_EQ(sum.bytes_total, one.n0.bytes_total + one.n1.bytes_total);
  }
}

TEST_F(ClusterTest, a_node_that_fails_while_it_loads_in_the_background_is_named) {
  states_[0] = state(Phase::kReady, 7, 7);
  states_[1] = state(Phase::kFailed, 3, 9);
  states_[1].error = "extent 5: truncated";
  try {
    cluster_->load_state();
    FAIL() << "no error";
  } catch (const LoadError& error) {
    EXPECT_STREQ(error.what(), "expert node n1: extent 5: truncated");
  }
}

}  // namespace
}  // namespace atl::coordinator
