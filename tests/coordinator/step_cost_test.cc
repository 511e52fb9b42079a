#include "coordinator/serving/step_cost.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <random>

#include "coordinator/serving/step_budget.h"

namespace atl::coordinator {
namespace {

constexpr int64_t kRowsMax = 512;
constexpr double kChosen = 8.0 / 256;

// A machine that takes the time its numbers say, give or take `noise`.
struct Machine {
  double fixed = 0, experts = 0, row = 0, position = 0, noise = 0;
  std::mt19937 random{7};

  double attention(StepSize step) const { return position * static_cast<double>(step.positions); }
  double seconds(StepSize step) const {
    const auto n = static_cast<double>(step.rows);
    return fixed + experts * (1 - std::pow(1 - kChosen, n)) + row * n + attention(step);
  }
  double run(StepCost& cost, StepSize step) {
    const double factor =
        1 + noise * (2.0 * static_cast<double>(random()) / std::mt19937::max() - 1);
    cost.observe(step, seconds(step) * factor, attention(step) * factor);
    return seconds(step) * factor;
  }
};

StepSize rows_at(int64_t rows, int64_t context) {
  StepSize step;
  step.add(rows, context);
  return step;
}

TEST(StepSize, counts_the_positions_that_each_row_attends_to) {
  StepSize step;
  step.add(1, 0);
  EXPECT_EQ(step.positions, 1);
  step.add(3, 10);  // 11 + 12 + 13
  EXPECT_EQ(step.rows, 4);
  EXPECT_EQ(step.positions, 1 + 36);
}

TEST(StepCost, expects_no_time_before_the_first_step_and_then_what_that_took) {
  StepCost cost(kRowsMax, kChosen);
  EXPECT_EQ(cost.seconds(rows_at(512, 100)), 0);
  cost.observe(rows_at(512, 100), 2.0, 0.5);
  EXPECT_NEAR(cost.seconds(rows_at(512, 100)), 2.0, 1e-9);
}

TEST(StepCost, learns_each_part_from_steps_of_several_sizes) {
  Machine machine{.fixed = 0.01, .experts = 0.3, .row = 0.002, .position = 1e-7};
  StepCost cost(kRowsMax, kChosen);
  for (int i = 0; i < 300; ++i) {
    const int64_t rows[] = {1, 4, 30, 120, 512};
    machine.run(cost, rows_at(rows[i % 5], i * 100));
  }
  for (const int64_t rows : {1, 10, 64, 300, 512}) {
    const StepSize step = rows_at(rows, 20'000);
    EXPECT_NEAR(cost.seconds(step), machine.seconds(step), 0.02 * machine.seconds(step)) << rows;
  }
  EXPECT_NEAR(cost.row_seconds(9'999), (0.01 + 0.3 + 512 * 0.002) / 512 + 1e-3, 1e-4);
}

TEST(StepCost, attention_is_never_more_than_the_step) {
  StepCost cost(kRowsMax, 0);
  cost.observe(rows_at(1, 99), 1.0, 5.0);
  EXPECT_NEAR(cost.seconds(rows_at(1, 99)), 1.0, 1e-9);
  EXPECT_NEAR(cost.seconds(rows_at(1, 199)), 2.0, 1e-9);
}

// A thousand steps of one token say nothing of what a prompt costs, and don't change it.
TEST(StepCost, steps_of_one_size_do_not_unlearn_the_others) {
  Machine machine{.fixed = 0.01, .experts = 0.3, .row = 0.002, .noise = 0.2};
  StepCost cost(kRowsMax, kChosen);
  for (int i = 0; i < 100; ++i) machine.run(cost, rows_at(i % 2 ? 1 : 512, 0));
  for (int i = 0; i < 1000; ++i) machine.run(cost, rows_at(1, 0));
  EXPECT_NEAR(cost.seconds(rows_at(512, 0)), machine.seconds(rows_at(512, 0)),
              0.15 * machine.seconds(rows_at(512, 0)));
}

TEST(StepCost, a_step_that_stalled_is_forgotten_after_a_few_others) {
  Machine machine{.fixed = 0.01, .row = 0.002};
  StepCost cost(kRowsMax, kChosen);
  const StepSize step = rows_at(80, 0);
  for (int i = 0; i < 50; ++i) machine.run(cost, step);
  cost.observe(step, 10.0, 0);
  EXPECT_GT(cost.seconds(step), 1.0);
  for (int i = 0; i < 12; ++i) machine.run(cost, step);
  EXPECT_NEAR(cost.seconds(step), machine.seconds(step), 0.05);
}

// A long prompt beside one sequence that decodes: steps keep to the target while the context grows
// a thousandfold, whatever the machine's mix of costs. Times vary by a fifth.
TEST(StepCost, steps_cut_by_it_keep_to_the_target) {
  const Machine machines[] = {
      {.fixed = 0.004, .row = 0.0004, .position = 8e-8, .noise = 0.2},
      {.experts = 0.1, .row = 0.001, .position = 1e-7, .noise = 0.2},
      {.fixed = 0.05, .experts = 0.02, .row = 0.003, .noise = 0.2},
  };
  for (Machine machine : machines) {
    SCOPED_TRACE(testing::Message() << machine.fixed << " " << machine.experts);
    StepCost cost(kRowsMax, kChosen);
    machine.run(cost, rows_at(1, 10));
    int64_t context = 0, steps = 0, late = 0;
    double sum = 0;
    while (context < 130'000) {
      const StepSize decoding = rows_at(1, 10);
      PromptRows prompt{context, 131'000 - context};
      share_step(cost, decoding, {kRowsMax, 0.2, 2}, {&prompt, 1});
      StepSize step = decoding;
      step.add(prompt.rows, context);
      context += prompt.rows;
      const double seconds = machine.run(cost, step);
      if (++steps <= 20) continue;  // learning
      sum += seconds;
      late += seconds > 0.3;
    }
    const double mean = sum / static_cast<double>(steps - 20);
    EXPECT_GT(mean, 0.16);
    EXPECT_LT(mean, 0.22);
    EXPECT_EQ(late, 0);
  }
}

// Where the weights of a step take longer to read than the target, prompts go on at about half of
// the rate that whole steps would give, and do not sink: the sizes of the steps feed back into what
// is known of the machine. Half of it as foretold; noise and sizes not seen make it less.
TEST(StepCost, weights_that_are_read_from_disk_do_not_starve_prompts) {
  Machine machine{.fixed = 1, .experts = 60, .row = 0.01, .noise = 0.1};
  StepCost cost(kRowsMax, kChosen);
  machine.run(cost, rows_at(512, 0));
  machine.run(cost, rows_at(1, 10));
  const double whole_rate = 511 / machine.seconds(rows_at(512, 0));
  for (int round = 0; round < 20; ++round) {
    int64_t read = 0;
    double seconds = 0;
    for (int i = 0; i < 100; ++i) {
      PromptRows prompt{0, 100'000};
      share_step(cost, rows_at(1, 10), {kRowsMax, 0.2, 2}, {&prompt, 1});
      read += prompt.rows;
      seconds += machine.run(cost, rows_at(prompt.rows + 1, 0));
    }
    EXPECT_GT(static_cast<double>(read) / seconds, 0.36 * whole_rate) << "round " << round;
    for (int i = 0; i < 100; ++i) machine.run(cost, rows_at(1, 10));  // nobody reads
  }
}

}  // namespace
}  // namespace atl::coordinator
