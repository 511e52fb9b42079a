#include "model/logits_processor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace atl::model {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::string refusal(const LogitsProcessor& processor) {
  const Status status = check(processor, 10);
  return status ? "" : status.error().message;
}

TEST(LogitsProcessor, subtracts_penalties_of_generated_tokens_only) {
  std::vector<float> logits = {1, 1, 1, 1};
  LogitsProcessor{
      .presence_penalty = 0.5f, .frequency_penalty = 0.25f, .repetition_penalty = 1, .bias = {}}
      .apply({{1, 1}, {2, 4}, {3, 0}}, {}, logits);
  EXPECT_THAT(logits, ElementsAre(1, 0.25f, -0.5f, 1));
}

TEST(LogitsProcessor, negative_penalties_raise_what_was_said) {
  std::vector<float> logits = {0, 0};
  LogitsProcessor{
      .presence_penalty = -1, .frequency_penalty = -2, .repetition_penalty = 1, .bias = {}}
      .apply({{0, 3}}, {}, logits);
  EXPECT_THAT(logits, ElementsAre(7, 0));
}

TEST(LogitsProcessor, adds_biases_before_penalties) {
  std::vector<float> logits = {1, 2, 3};
  LogitsProcessor{.presence_penalty = 1,
                  .frequency_penalty = 0,
                  .repetition_penalty = 1,
                  .bias = {{0, 100}, {2, -100}}}
      .apply({{2, 1}}, {}, logits);
  EXPECT_THAT(logits, ElementsAre(101, 2, -98));
}

// FP32 keeps about 7 digits, so the order of the two additions can be seen.
TEST(LogitsProcessor, rounds_after_each_of_the_two_steps) {
  const float logit = 0.1f, bias = 77.7f, penalty = 1.3f;
  std::vector<float> logits = {logit};
  LogitsProcessor{.presence_penalty = penalty,
                  .frequency_penalty = 0,
                  .repetition_penalty = 1,
                  .bias = {{0, bias}}}
      .apply({{0, 1}}, {}, logits);
  EXPECT_EQ(logits[0], (logit + bias) - (0.0f * 1 + penalty));
}

TEST(LogitsProcessor, leaves_infinite_logits_and_ids_outside_the_row_alone) {
  std::vector<float> logits = {-std::numeric_limits<float>::infinity(), 1};
  LogitsProcessor{.presence_penalty = 1,
                  .frequency_penalty = 0,
                  .repetition_penalty = 1,
                  .bias = {{0, 100}, {5, 1}}}
      .apply({{0, 1}, {7, 1}, {-1, 1}}, {}, logits);
  EXPECT_TRUE(std::isinf(logits[0]));
  EXPECT_EQ(logits[1], 1);
}

TEST(LogitsProcessor, is_idle_only_without_anything_to_do) {
  EXPECT_TRUE(LogitsProcessor{}.idle());
  EXPECT_FALSE((LogitsProcessor{
      .presence_penalty = 1, .frequency_penalty = 0, .repetition_penalty = 1, .bias = {}}
                    .idle()));
  EXPECT_FALSE((LogitsProcessor{.presence_penalty = 0, .frequency_penalty = 1, .bias = {}}.idle()));
  EXPECT_FALSE((LogitsProcessor{
      .presence_penalty = 0, .frequency_penalty = 0, .repetition_penalty = 1, .bias = {{0, 0}}}
                    .idle()));
}

TEST(LogitsProcessor, check_takes_the_limits_and_names_the_first_value_beyond_them) {
  LogitsProcessor edge{
      .presence_penalty = -2, .frequency_penalty = 2, .bias = {{0, -100}, {9, 100}}};
  EXPECT_EQ(refusal(edge), "");
  EXPECT_THAT(
      refusal(
          {.presence_penalty = 2.1f, .frequency_penalty = 0, .repetition_penalty = 1, .bias = {}}),
      HasSubstr("presence_penalty 2.1: expected -2 to 2"));
  EXPECT_THAT(refusal({.presence_penalty = 0, .frequency_penalty = std::nanf(""), .bias = {}}),
              HasSubstr("frequency_penalty nan"));
  EXPECT_THAT(refusal({.presence_penalty = 0,
                       .frequency_penalty = 0,
                       .repetition_penalty = 1,
                       .bias = {{10, 0}}}),
              HasSubstr("token 10: expected 0 to 9"));
  EXPECT_THAT(refusal({.presence_penalty = 0,
                       .frequency_penalty = 0,
                       .repetition_penalty = 1,
                       .bias = {{-1, 0}}}),
              HasSubstr("token -1"));
  EXPECT_THAT(refusal({.presence_penalty = 0,
                       .frequency_penalty = 0,
                       .repetition_penalty = 1,
                       .bias = {{3, 100.5f}}}),
              HasSubstr("token 3 is 100.5"));
  EXPECT_THAT(refusal({.presence_penalty = 0,
                       .frequency_penalty = 0,
                       .repetition_penalty = 1,
                       .bias = {{3, 1}, {3, 1}}}),
              HasSubstr("token 3 twice"));
}

// As vLLM: divided where it is positive, else multiplied; over the prompt and what was generated,
// each id once; before the other penalties.
TEST(LogitsProcessor, repetition_is_penalised_over_prompt_and_answer) {
  std::vector<float> logits = {2, -2, 4, 1, 0};
  const std::vector<int32_t> prompt = {0, 1};
  LogitsProcessor{
      .presence_penalty = 0.5f, .frequency_penalty = 0, .repetition_penalty = 2, .bias = {}}
      .apply({{1, 3}, {2, 1}}, prompt, logits);
  EXPECT_EQ(logits, (std::vector<float>{1, -4.5f, 1.5f, 1, 0}));
  EXPECT_FALSE(check(
      LogitsProcessor{
          .presence_penalty = 0, .frequency_penalty = 0, .repetition_penalty = 0, .bias = {}},
      10));
}

}  // namespace
}  // namespace atl::model
