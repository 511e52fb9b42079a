#include "coordinator/serving/step_budget.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

namespace atl::coordinator {
namespace {

using testing::ElementsAre;

// What a machine taught that takes this long, without noise.
StepCost learned(double fixed, double row, double position, int64_t rows_max = 512) {
  StepCost cost(rows_max, 0);
  for (int i = 0; i < 4000; ++i) {
    StepSize step;
    step.add(i % 2 ? 1 : rows_max, i % 3 * 1000);
    const double attention = position * static_cast<double>(step.positions);
    cost.observe(step, fixed + row * static_cast<double>(step.rows) + attention, attention);
  }
  return cost;
}

std::vector<int64_t> rows_of(const std::vector<PromptRows>& prompts) {
  std::vector<int64_t> rows;
  for (const PromptRows& prompt : prompts) rows.push_back(prompt.rows);
  return rows;
}

const StepSize kOneDecodes{1, 10};

TEST(StepBudget, without_a_target_or_with_time_enough_a_step_is_filled) {
  const StepCost cost = learned(0.01, 0.001, 0);
  std::vector<PromptRows> prompts = {{0, 1000}};
  EXPECT_FALSE(share_step(cost, kOneDecodes, {512, 0, 2}, prompts));
  EXPECT_THAT(rows_of(prompts), ElementsAre(511));
  EXPECT_FALSE(share_step(cost, kOneDecodes, {512, 0.6, 2}, prompts));
  EXPECT_THAT(rows_of(prompts), ElementsAre(511));
  prompts = {{0, 100}};
  EXPECT_FALSE(share_step(cost, {}, {512, 0.2, 2}, prompts));
  EXPECT_THAT(rows_of(prompts), ElementsAre(100));
}

TEST(StepBudget, rows_fill_the_target_and_no_more) {
  const StepCost cost = learned(0.01, 0.001, 0);
  std::vector<PromptRows> prompts = {{0, 1000}};
  EXPECT_TRUE(share_step(cost, kOneDecodes, {512, 0.1, 2}, prompts));
  EXPECT_NEAR(static_cast<double>(prompts[0].rows), 89, 1);  // 10 ms + (89 + 1) * 1 ms
}

TEST(StepBudget, rows_with_much_context_behind_them_are_fewer) {
  const StepCost cost = learned(0.01, 0.001, 1e-7);  // 100,000 positions: 10 ms
  std::vector<PromptRows> prompts = {{100'000, 31'000}};
  EXPECT_TRUE(share_step(cost, kOneDecodes, {512, 0.2, 2}, prompts));
  EXPECT_NEAR(static_cast<double>(prompts[0].rows), 17, 1);  // 189 ms at 11 ms each
}

TEST(StepBudget, prompts_are_read_one_after_the_other_and_short_ones_first) {
  for (const StepCost& cost : {learned(0.01, 0.001, 0), StepCost(512, 0)}) {
    std::vector<PromptRows> prompts = {{0, 1000}, {0, 30}, {0, 1000}};
    EXPECT_FALSE(share_step(cost, kOneDecodes, {129, 0, 1}, prompts));
    EXPECT_THAT(rows_of(prompts), ElementsAre(98, 30, 0));
    prompts = {{0, 40}, {0, 30}, {0, 1000}};
    EXPECT_FALSE(share_step(cost, kOneDecodes, {129, 0, 1}, prompts));
    EXPECT_THAT(rows_of(prompts), ElementsAre(40, 30, 58));
  }
}

// 100 rows need 0.1 s, 1,000 rows 1 s; behind 100,000 positions eleven times that. A step takes 0.5
// s.
TEST(StepBudget, who_waited_longest_by_what_it_needs_is_first) {
  const StepCost cost = learned(0.01, 0.001, 1e-7);
  std::vector<PromptRows> prompts = {{.pending = 100, .waited_s = 0.3},
                                     {.pending = 1000, .waited_s = 7}};
  share_step(cost, kOneDecodes, {512, 0, 1}, prompts);
  EXPECT_THAT(rows_of(prompts), ElementsAre(100, 411));
  prompts[1].waited_s = 9;
  share_step(cost, kOneDecodes, {512, 0, 1}, prompts);
  EXPECT_THAT(rows_of(prompts), ElementsAre(0, 511));
  prompts[1].context = 100'000;
  share_step(cost, kOneDecodes, {512, 0, 1}, prompts);
  EXPECT_THAT(rows_of(prompts), ElementsAre(100, 411));
}

TEST(StepBudget, a_client_is_a_step_ahead_of_another_at_most) {
  const StepCost cost = learned(0.01, 0.001, 0);
  std::vector<PromptRows> prompts;
  for (int i = 0; i < 3; ++i) prompts.push_back({.pending = 400, .waited_s = 9, .client = 7});
  prompts.push_back({.pending = 400, .waited_s = 1, .client = 2});
  share_step(cost, kOneDecodes, {512, 0, 1}, prompts);
  EXPECT_THAT(rows_of(prompts), ElementsAre(400, 111, 0, 0));
  for (int i = 0; i < 3; ++i) prompts[i].service = 511;
  share_step(cost, kOneDecodes, {512, 0, 1}, prompts);
  EXPECT_THAT(rows_of(prompts), ElementsAre(111, 0, 0, 400));  // 1 row, 400, then 110
  for (int i = 0; i < 3; ++i) prompts[i].service = 2000;
  share_step(cost, kOneDecodes, {300, 0, 1}, prompts);
  EXPECT_THAT(rows_of(prompts), ElementsAre(0, 0, 0, 299));
  prompts[3].rows = 0;
  share_step(cost, kOneDecodes, {300, 0, 1}, std::span(prompts).first(3));
  EXPECT_THAT(rows_of(prompts), ElementsAre(299, 0, 0, 0));  // ahead of nobody
}

TEST(StepBudget, the_more_prompts_wait_the_less_of_their_rate_is_given_away) {
  EXPECT_DOUBLE_EQ(slowdown_for(3, 1), 2);
  EXPECT_DOUBLE_EQ(slowdown_for(3, 4), 1.25);
  EXPECT_DOUBLE_EQ(slowdown_for(3, 40), 1.1);
  EXPECT_DOUBLE_EQ(slowdown_for(0, 1), 1.1);
}

TEST(StepBudget, a_target_below_any_step_leaves_prompts_half_of_their_rate) {
  const StepCost cost = learned(0.3, 0.001, 0);
  std::vector<PromptRows> prompts = {{0, 1000}};
  EXPECT_TRUE(share_step(cost, kOneDecodes, {512, 0.1, 2}, prompts));
  // 511 rows in 812 ms are 629 a second; 138 in 439 ms are 314.
  EXPECT_NEAR(static_cast<double>(prompts[0].rows), 138, 2);
}

TEST(StepBudget, prompts_never_stand_still) {
  const StepCost cost = learned(0.01, 0.001, 1e-5);  // 100,000 positions: 1 s
  std::vector<PromptRows> prompts = {{100'000, 31'000}, {50'000, 10}, {50'000, 10}};
  EXPECT_TRUE(share_step(cost, kOneDecodes, {512, 0.2, 1.5}, prompts));
  EXPECT_THAT(rows_of(prompts), ElementsAre(0, 1, 0));
}

TEST(StepBudget, a_step_full_of_those_that_decode_reads_nothing) {
  const StepCost cost = learned(0.01, 0.001, 0);
  std::vector<PromptRows> prompts = {{0, 10}};
  EXPECT_FALSE(share_step(cost, {512, 5120}, {512, 0.2, 2}, prompts));
  EXPECT_THAT(rows_of(prompts), ElementsAre(0));
  EXPECT_FALSE(share_step(cost, kOneDecodes, {512, 0.2, 2}, {}));
}

}  // namespace
}  // namespace atl::coordinator
