// Two halves of a step in flight, where what they take is simulated: how much sooner a prompt is
// computed when nodes are as fast as the coordinator.
#include <gtest/gtest.h>

#include <cstdio>

#include <memory>
#include <vector>

#include "tests/sim/coordinator.h"
#include "tests/sim/network.h"
#include "tests/sim/node.h"
#include "tests/sim/world.h"
#include "topology/placement.h"

namespace atl::sim {
namespace {

using namespace std::chrono_literals;

struct Answer {
  std::vector<int32_t> tokens;
  Duration first_token{};
  uint64_t halved_steps = 0;
};

const Model& model() {
  static const Model model(32, 64, 12);
  return model;
}

// A prompt of 97 tokens and one more, by two nodes with half of each expert.
Answer answer(coordinator::Halves halves, Duration attention, Duration node_per_byte) {
  World world(1);
  Network network(world);
  std::vector<std::unique_ptr<SimNode>> nodes;
  for (const char* name : {"n0", "n1"}) {
    nodes.push_back(std::make_unique<SimNode>(world, network, model(), name));
    nodes.back()->compute_min = nodes.back()->compute_max = 1us;
    nodes.back()->compute_per_byte = node_per_byte;
    nodes.back()->piece_bytes = 1 << 20;
    nodes.back()->start();
  }
  CoordinatorOptions options;
  options.placement = topology::equal_placement(model().num_tiles(), 2);
  options.cluster.session = SessionId{1};
  options.engine.rows_max = kRowsMax;
  options.engine.cache_blocks = 4;
  options.engine.halves = halves;
  options.scheduler.sequences_max = 2;
  options.attention_per_row = attention;
  Answer answer;
  Time begin{};
  bool ended = false;
  SimCoordinator coordinator(world, network, model(), nodes, options,
                             [&](std::vector<coordinator::GenerationEvent> events) {
                               for (const auto& event : events) {
                                 EXPECT_FALSE(event.error);
                                 if (event.token) answer.tokens.push_back(*event.token);
                                 if (event.token && answer.tokens.size() == 1) {
                                   answer.first_token = world.now() - begin;
                                 }
                                 ended = ended || event.finish;
                               }
                             });
  EXPECT_TRUE(world.run(world.now() + 10s, [&] { return coordinator.is_serving(); }));
  world.run(world.now() + 1s, [] { return false; });  // whoever is late has come
  coordinator::GenerationRequest request;
  for (int32_t i = 0; i < 97; ++i) request.prompt.push_back(2 + i % 90);
  request.max_tokens = 2;
  begin = world.now();
  EXPECT_TRUE(coordinator.scheduler().submit(std::move(request)));
  EXPECT_TRUE(world.run(world.now() + 100s, [&] { return ended; })) << world.failure();
  answer.halved_steps = coordinator.halved_steps();
  coordinator.stop();
  EXPECT_TRUE(world.run(world.now() + 10s, [&] { return coordinator.has_ended(); }));
  return answer;
}

TEST(Halves, a_prompt_is_computed_sooner_where_nodes_are_as_fast_as_the_coordinator) {
  // 1 ms a row and layer here; of a node's dispatch about 100 bytes are a row's.
  const Answer whole = answer(coordinator::Halves::kOff, 1ms, 10us);
  const Answer halved = answer(coordinator::Halves::kOn, 1ms, 10us);
  EXPECT_EQ(halved.tokens, whole.tokens);
  EXPECT_EQ(whole.halved_steps, 0u);
  EXPECT_GE(halved.halved_steps, 4u);
  const double gain = seconds_between(Time(), Time() + whole.first_token) /
                      seconds_between(Time(), Time() + halved.first_token);
  RecordProperty("gain", std::to_string(gain));
  std::printf("first token after %.1f ms whole, %.1f ms in halves: %.2f times as fast\n",
              1e-6 * static_cast<double>(whole.first_token.count()),
              1e-6 * static_cast<double>(halved.first_token.count()), gain);
  EXPECT_GE(gain, 1.7);
}

}  // namespace
}  // namespace atl::sim
