// Steps in two halves: the bits of whole steps, and when they are taken.
#include "coordinator/engine/halves.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "coordinator/engine/engine.h"
#include "deployment/deployment.h"
#include "tests/support/golden.h"

namespace atl::coordinator {
namespace {

// ---- The gate ----

// So many steps of `rows` that take such seconds whole and halved; how many were halved.
int run_steps(HalvesGate& gate, int steps, int64_t rows, double whole, double halved) {
  int count = 0;
  for (int i = 0; i < steps; ++i) {
    const bool in_halves = gate.halves(rows);
    count += in_halves;
    gate.took(rows, in_halves, in_halves ? halved : whole);
  }
  return count;
}

TEST(HalvesGate, takes_the_way_that_is_faster_and_tries_the_other_less_and_less) {
  HalvesGate gate(Halves::kAuto);
  EXPECT_GE(run_steps(gate, 200, 128, 1.0, 0.6), 190);
  HalvesGate slower(Halves::kAuto);
  EXPECT_LE(run_steps(slower, 1000, 128, 1.0, 1.5), 10);
  HalvesGate alike(Halves::kAuto);
  EXPECT_LE(run_steps(alike, 200, 128, 1.0, 1.0), 10) << "whole steps unless it pays";
}

TEST(HalvesGate, follows_what_changes) {
  HalvesGate gate(Halves::kAuto);
  run_steps(gate, 100, 128, 1.0, 0.6);
  EXPECT_LE(run_steps(gate, 400, 128, 1.0, 2.0), 60);
  EXPECT_GE(run_steps(gate, 2000, 128, 1.0, 0.5), 1000);
}

TEST(HalvesGate, knows_each_size_by_itself) {
  HalvesGate gate(Halves::kAuto);
  for (int i = 0; i < 50; ++i) {
    run_steps(gate, 1, 40, 1.0, 1.5);
    run_steps(gate, 1, 400, 1.0, 0.6);
  }
  EXPECT_LE(run_steps(gate, 10, 40, 1.0, 1.5), 1);
  EXPECT_GE(run_steps(gate, 10, 400, 1.0, 0.6), 9);
  EXPECT_EQ(run_steps(gate, 100, HalvesGate::kRowsMin - 1, 1.0, 0.1), 0);
}

TEST(HalvesGate, does_as_it_is_told) {
  HalvesGate off(Halves::kOff), on(Halves::kOn);
  EXPECT_EQ(run_steps(off, 20, 512, 1.0, 0.1), 0);
  EXPECT_EQ(run_steps(on, 20, 2, 1.0, 9.0), 20);
  EXPECT_EQ(run_steps(on, 20, 1, 1.0, 0.1), 0);
}

// ---- Steps ----

struct Computed {
  std::vector<std::vector<float>> logits;  // of all rows of a batch of sequences, chunk by chunk
  ExpertLoadSnapshot load;
};
Computed compute(const std::string& model, Halves halves) {
  deployment::DeploymentOptions options;
  options.model_dir = test::tests_dir() / "models" / model;
  options.threads = 1;
  options.cache_tokens = 1024;
  options.device = "cpu";
  options.halves = halves;
  deployment::Deployment deployment(options);
  Engine& engine = deployment.engine();
  Computed computed;
  Sequence sequences[3];
  // Rows of each sequence in each step: halves meet within a sequence, between two, and one is
  // empty of some.
  const std::vector<std::vector<int64_t>> steps = {{2, 0, 0}, {70, 0, 0}, {33, 40, 1}, {1, 1, 1}};
  for (const auto& step : steps) {
    std::vector<std::vector<int32_t>> tokens(step.size());
    std::vector<SequenceRows> work;
    for (size_t s = 0; s < step.size(); ++s) {
      for (int64_t i = 0; i < step[s]; ++i) {
        tokens[s].push_back(static_cast<int32_t>((sequences[s].num_tokens + i) * 31 % 300 + 3));
      }
      if (step[s] > 0) work.push_back({&sequences[s], tokens[s], WantLogits::kAll, {}});
    }
    std::vector<std::optional<Error>> errors(work.size());
    EXPECT_TRUE(engine.step(
        work,
        [&](size_t, size_t, std::span<const float> row) {
          computed.logits.emplace_back(row.begin(), row.end());
        },
        errors));
    for (const auto& error : errors) EXPECT_FALSE(error);
  }
  EXPECT_EQ(engine.times().halved_steps, halves == Halves::kOn ? steps.size() : 0u);
  for (Sequence& sequence : sequences) engine.release(sequence);
  computed.load = engine.expert_load().snapshot(ExpertLoad::With::kAll);
  return computed;
}

class HalvesOfSteps : public testing::TestWithParam<const char*> {};

TEST_P(HalvesOfSteps, give_the_bits_of_whole_steps) {
  const Computed whole = compute(GetParam(), Halves::kOff);
  const Computed halved = compute(GetParam(), Halves::kOn);
  EXPECT_EQ(halved.logits, whole.logits);
  // What experts had to do is counted of steps, and what follows what of rows.
  EXPECT_EQ(halved.load.layers, whole.load.layers);
  EXPECT_EQ(halved.load.followers, whole.load.followers);
}
INSTANTIATE_TEST_SUITE_P(Models, HalvesOfSteps,
                         testing::Values("tiny-fp8", "tiny-bf16", "rand-v2", "rand-ragged"));

}  // namespace
}  // namespace atl::coordinator
