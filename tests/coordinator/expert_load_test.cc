#include "coordinator/engine/expert_load.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <numeric>
#include <thread>

namespace atl::coordinator {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using testing::SizeIs;

// Layer 0 is dense; 1, 2 and 3 have four experts, two a token.
model::ModelConfig small_config() {
  model::ModelConfig config;
  config.num_hidden_layers = 4;
  config.first_k_dense_replace = 1;
  config.n_routed_experts = 4;
  config.num_experts_per_tok = 2;
  return config;
}

TEST(ExpertLoad, counts_rows_of_experts_steps_and_distinct_experts) {
  ManualClock clock;
  ExpertLoad load(small_config(), clock);
  load.begin_step();
  load.count(1, std::vector<int32_t>{0, 1, 0, 3});
  load.count(2, std::vector<int32_t>{2, 3, -1, -1});  // a row that could not be routed
  load.begin_step();
  load.count(1, std::vector<int32_t>{0, 2});
  const ExpertLoadSnapshot snapshot = load.snapshot(ExpertLoad::With::kTotals);
  EXPECT_THAT(snapshot.layer_ids, ElementsAre(1, 2, 3));
  ASSERT_THAT(snapshot.layers, SizeIs(3));
  EXPECT_THAT(snapshot.layers[0].uses, ElementsAre(3, 1, 1, 1));
  EXPECT_EQ(snapshot.layers[0].steps, 2u);
  EXPECT_EQ(snapshot.layers[0].rows, 3u);
  EXPECT_EQ(snapshot.layers[0].distinct, 3u + 2u);
  EXPECT_THAT(snapshot.layers[1].uses, ElementsAre(0, 0, 1, 1));
  EXPECT_EQ(snapshot.layers[1].distinct, 2u);
  EXPECT_EQ(snapshot.layers[2].steps, 0u);
  EXPECT_THAT(snapshot.windows, IsEmpty());
  EXPECT_THAT(load.rows_of_experts(),
              ElementsAre(IsEmpty(), ElementsAre(3, 1, 1, 1), ElementsAre(0, 0, 1, 1),
                          ElementsAre(0, 0, 0, 0)));
}

TEST(ExpertLoad, small_steps_are_also_counted_apart) {
  ManualClock clock;
  ExpertLoad load(small_config(), clock);
  for (const int64_t rows : {ExpertLoad::kSmallStepRows, ExpertLoad::kSmallStepRows + 1}) {
    load.begin_step();
    load.count(1, std::vector<int32_t>(static_cast<size_t>(2 * rows), 1));
  }
  const LayerLoad layer = load.snapshot(ExpertLoad::With::kTotals).layers[0];
  EXPECT_EQ(layer.rows, 33u);
  EXPECT_EQ(layer.small_rows, 16u);
  EXPECT_EQ(layer.small_steps, 1u);
  EXPECT_EQ(layer.small_distinct, 1u);
}

TEST(ExpertLoad, windows_begin_with_the_first_step_after_their_time_and_oldest_ones_go) {
  ManualClock clock;
  ExpertLoad load(small_config(), clock);
  const auto step = [&] {
    load.begin_step();
    load.count(1, std::vector<int32_t>{0, 1});
  };
  step();
  clock.advance(ExpertLoad::kWindow - std::chrono::nanoseconds(1));
  step();
  EXPECT_THAT(load.snapshot(ExpertLoad::With::kAll).windows, SizeIs(1));
  clock.advance(std::chrono::seconds(30));
  step();  // 90 s: the second window
  clock.advance(std::chrono::seconds(10));
  ExpertLoadSnapshot snapshot = load.snapshot(ExpertLoad::With::kAll);
  ASSERT_THAT(snapshot.windows, SizeIs(2));
  EXPECT_EQ(snapshot.windows[0].layers[0].rows, 2u);
  EXPECT_NEAR(snapshot.windows[0].seconds, 90, 1e-6);
  EXPECT_EQ(snapshot.windows[1].layers[0].rows, 1u);
  EXPECT_NEAR(snapshot.windows[1].begin_seconds, 90, 1e-6);
  EXPECT_NEAR(snapshot.windows[1].seconds, 10, 1e-6);
  for (size_t i = 0; i < ExpertLoad::kWindowsMax; ++i) {
    clock.advance(ExpertLoad::kWindow);
    step();
  }
  snapshot = load.snapshot(ExpertLoad::With::kAll);
  EXPECT_THAT(snapshot.windows, SizeIs(ExpertLoad::kWindowsMax));
  EXPECT_EQ(snapshot.windows[0].layers[0].rows, 1u);
  EXPECT_EQ(snapshot.layers[0].rows, 3u + ExpertLoad::kWindowsMax);
}

TEST(ExpertLoad, tells_what_rows_of_an_expert_choose_in_the_next_layer) {
  ManualClock clock;
  ExpertLoad load(small_config(), clock);
  for (int i = 0; i < 3; ++i) {
    load.begin_step();
    load.count(1, std::vector<int32_t>{0, 1});
    load.count(2, std::vector<int32_t>{2, i == 0 ? 0 : 3});
    load.count(3, std::vector<int32_t>{1, 0});
    for (uint64_t step = 1; step < ExpertLoad::kPairEvery; ++step) {  // not counted
      load.begin_step();
      load.count(1, std::vector<int32_t>{2, 3});
      load.count(2, std::vector<int32_t>{0, 1});
    }
  }
  load.begin_step();  // the row of layer 3 has no layer before it in this step
  load.count(3, std::vector<int32_t>{2, 3});
  const auto followers = load.snapshot(ExpertLoad::With::kAll).followers;
  ASSERT_THAT(followers, SizeIs(2));
  const Followers& of_0 = followers[0][0];
  EXPECT_EQ(of_0.pairs, 3u * 2);
  ASSERT_THAT(of_0.best, SizeIs(3));
  EXPECT_EQ(of_0.best[0].expert, 2);
  EXPECT_EQ(of_0.best[0].rows, 3u);
  EXPECT_EQ(of_0.best[1].expert, 3);
  EXPECT_EQ(of_0.best[1].rows, 2u);
  EXPECT_EQ(of_0.best[2].expert, 0);
  EXPECT_THAT(followers[0][2].best, IsEmpty());
  EXPECT_EQ(followers[1][2].best[0].rows, 3u);
}

TEST(ExpertLoad, pairs_of_long_steps_are_of_a_few_rows) {
  ManualClock clock;
  ExpertLoad load(small_config(), clock);
  load.begin_step();
  load.count(1, std::vector<int32_t>(2 * 512, 1));
  load.count(2, std::vector<int32_t>(2 * 512, 2));
  load.count(3, std::vector<int32_t>(2 * 7, 2));  // only rows that get logits: no pairs
  const auto followers = load.snapshot(ExpertLoad::With::kAll).followers;
  EXPECT_EQ(followers[0][1].pairs, 4u * ExpertLoad::kPairRowsMax);
  EXPECT_EQ(followers[1][2].pairs, 0u);
}

TEST(ExpertLoad, is_read_while_it_counts) {
  SteadyClock clock;
  ExpertLoad load(small_config(), clock);
  std::atomic<bool> done = false;
  std::thread reader([&] {
    uint64_t before = 0;
    while (!done) {
      const uint64_t rows = load.snapshot(ExpertLoad::With::kAll).layers[0].rows;
      EXPECT_GE(rows, before);
      before = rows;
    }
  });
  for (int i = 0; i < 1000; ++i) {
    load.begin_step();
    load.count(1, std::vector<int32_t>{0, 1});
    load.count(2, std::vector<int32_t>{2, 3});
  }
  done = true;
  reader.join();
  EXPECT_EQ(load.snapshot(ExpertLoad::With::kTotals).layers[1].uses[3], 1000u);
}

}  // namespace
}  // namespace atl::coordinator
