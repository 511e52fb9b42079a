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

TEST(StepBudget, prompts_get_equal_time_and_what_short_ones_leave_goes_to_the_long_one) {
  const StepCost cost = learned(0.01, 0.001, 1e-7);
  // 11 ms a row and, nearly, 1 ms a row.
  std::vector<PromptRows> prompts = {{100'000, 31'000}, {0, 1000}};
  share_step(cost, kOneDecodes, {512, 0.2, 2}, prompts);
  EXPECT_NEAR(static_cast<double>(prompts[0].rows), 9, 1);
  EXPECT_NEAR(static_cast<double>(prompts[1].rows), 93, 6);
  prompts = {{100'000, 31'000}, {0, 30}};
  share_step(cost, kOneDecodes, {512, 0.2, 2}, prompts);
  EXPECT_EQ(prompts[1].rows, 30);  // whole
  EXPECT_NEAR(static_cast<double>(prompts[0].rows), 14, 1);
}

TEST(StepBudget, rows_are_equal_where_they_cost_the_same_and_the_step_is_full) {
  for (const StepCost& cost : {learned(0.01, 0.001, 0), StepCost(512, 0)}) {
    std::vector<PromptRows> prompts = {{0, 1000}, {0, 30}, {0, 1000}};
    EXPECT_FALSE(share_step(cost, kOneDecodes, {129, 0, 1}, prompts));
    EXPECT_THAT(rows_of(prompts), ElementsAre(49, 30, 49));
    EXPECT_FALSE(share_step(cost, kOneDecodes, {76, 0, 1}, prompts));
    EXPECT_THAT(rows_of(prompts), ElementsAre(25, 25, 25));
  }
}

TEST(StepBudget, a_target_below_any_step_leaves_prompts_half_of_their_rate) {
  const StepCost cost = learned(0.3, 0.001, 0);
  std::vector<PromptRows> prompts = {{0, 1000}};
  EXPECT_TRUE(share_step(cost, kOneDecodes, {512, 0.1, 2}, prompts));
  // 511 rows in 812 ms are 629 a second; 138 in 439 ms are 314.
  EXPECT_NEAR(static_cast<double>(prompts[0].rows), 138, 2);
}

TEST(StepBudget, the_prompt_that_came_first_never_stands_still) {
  const StepCost cost = learned(0.01, 0.001, 1e-5);  // 100,000 positions: 1 s
  std::vector<PromptRows> prompts = {{100'000, 31'000}, {50'000, 10}, {50'000, 10}};
  EXPECT_TRUE(share_step(cost, kOneDecodes, {512, 0.2, 1.5}, prompts));
  EXPECT_THAT(rows_of(prompts), ElementsAre(1, 0, 0));
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
