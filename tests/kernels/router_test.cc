#include "kernels/router.h"

#include <limits>

#include "tests/kernels/kernel_test_util.h"

namespace atl::kernels {
namespace {

using namespace testing;

struct Choice {
  std::vector<int32_t> ids;
  std::vector<float> weights;
};

Choice choose(const RouterShape& shape, std::vector<float> logits,
              const std::vector<float>& bias = {}) {
  Choice c;
  c.ids.resize(static_cast<size_t>(shape.num_experts_per_tok));
  c.weights.resize(c.ids.size());
  EXPECT_TRUE(route(shape, logits.data(), bias.empty() ? nullptr : bias.data(), c.ids.data(),
                    c.weights.data()));
  return c;
}

void expect_choice(const Choice& found, const std::vector<int32_t>& ids,
                   const std::vector<float>& weights) {
  EXPECT_EQ(found.ids, ids);
  for (size_t i = 0; i < weights.size(); ++i) {
    // The published figures have 7 decimals: half a unit of the last, and the roundings of FP32.
    EXPECT_NEAR(found.weights[i], weights[i], 0.5e-7 + 8 * 0x1p-24 * weights[i]);
  }
}

const std::vector<float> kLogits = {0.3f, -1.2f, 2.0f, -0.5f, 1.1f, 1.0f, -2.0f, 0.8f};
const RouterShape kV3{ScoringFunc::kSigmoid, TopkMethod::kNoauxTc, 8, 3, 4, 2, true, 2.5f};

// The four cases of docs/model.md 3.6, from DeepSeek's own Gate class.
TEST(Router, sigmoid_with_bias_matches_the_published_gate) {
  expect_choice(choose(kV3, kLogits, {0.1f, 0.9f, -0.2f, 0.4f, 0, -0.1f, 1.0f, 0.05f}), {1, 6, 7},
                {0.5560819f, 0.2863658f, 1.6575525f});
}
TEST(Router, negative_biased_scores_do_not_bring_dropped_groups_back) {
  expect_choice(choose(kV3, kLogits, std::vector<float>(8, -1.0f)), {2, 4, 5},
                {0.9322119f, 0.7940552f, 0.7737328f});
}
TEST(Router, group_limited_softmax_matches_the_published_gate) {
  const RouterShape v2{
      ScoringFunc::kSoftmax, TopkMethod::kGroupLimitedGreedy, 8, 3, 4, 2, false, 16.0f};
  expect_choice(choose(v2, kLogits), {2, 4, 5}, {6.6680846f, 2.7110410f, 2.4530513f});
}
TEST(Router, greedy_softmax_matches_the_published_gate) {
  const RouterShape lite{ScoringFunc::kSoftmax, TopkMethod::kGreedy, 8, 3, 1, 1, false, 1.0f};
  expect_choice(choose(lite, kLogits), {2, 4, 5}, {0.4167553f, 0.1694401f, 0.1533157f});
}

TEST(Router, ties_go_to_the_lower_expert_and_group) {
  const RouterShape flat{ScoringFunc::kSigmoid, TopkMethod::kNoauxTc, 8, 3, 1, 1, true, 1.0f};
  EXPECT_EQ(choose(flat, std::vector<float>(8, 0.5f)).ids, (std::vector<int32_t>{0, 1, 2}));
  EXPECT_EQ(choose(flat, {0, 1, 0, 2, 0, 1, 1, 1}).ids, (std::vector<int32_t>{1, 3, 5}));
  EXPECT_EQ(choose(kV3, std::vector<float>(8, 0.5f)).ids, (std::vector<int32_t>{0, 1, 2}));
  // Groups {0,1} and {4,5} tie behind {6,7}.
  EXPECT_EQ(choose(kV3, {1, 1, 0, 0, 1, 1, 2, 2}).ids, (std::vector<int32_t>{0, 6, 7}));
}

// V3 adds the two largest of a group, V2 takes the largest: this one tells them apart.
TEST(Router, group_score_is_the_sum_of_two_for_noaux_and_the_maximum_for_v2) {
  const std::vector<float> logits = {3, -9, 1, 1, -9, -9, -9, -9};
  RouterShape v3 = kV3;
  v3.topk_group = 1;
  v3.num_experts_per_tok = 2;
  EXPECT_EQ(choose(v3, logits).ids, (std::vector<int32_t>{2, 3}));
  RouterShape v2 = v3;
  v2.topk_method = TopkMethod::kGroupLimitedGreedy;
  EXPECT_EQ(choose(v2, logits).ids, (std::vector<int32_t>{0, 1}));
}

TEST(Router, weights_come_from_unbiased_scores_and_sum_to_the_factor) {
  std::mt19937 rng(51);
  const RouterShape v3{ScoringFunc::kSigmoid, TopkMethod::kNoauxTc, 256, 8, 8, 4, true, 2.5f};
  const std::vector<float> logits = random_values(rng, 256);
  const Choice plain = choose(v3, logits, std::vector<float>(256, 0.0f));
  const Choice shifted = choose(v3, logits, std::vector<float>(256, 4.0f));
  EXPECT_EQ(plain.ids, shifted.ids);
  EXPECT_EQ(plain.weights, shifted.weights);
  float sum = 0;
  for (float weight : plain.weights) sum += weight;
  EXPECT_NEAR(sum, 2.5, 2.5 * 20 * 0x1p-24);
}

TEST(Router, refuses_logits_that_are_not_finite) {
  for (float bad : {std::numeric_limits<float>::quiet_NaN(), INFINITY, -INFINITY}) {
    std::vector<float> logits = kLogits;
    logits[3] = bad;
    int32_t ids[3];
    float weights[3];
    EXPECT_FALSE(route(kV3, logits.data(), nullptr, ids, weights));
  }
}

TEST(Router, gives_the_same_bits_on_every_target) {
  std::mt19937 rng(52);
  for (const RouterShape& shape :
       {kV3, RouterShape{ScoringFunc::kSoftmax, TopkMethod::kGreedy, 8, 3, 1, 1, false, 1.0f}}) {
    for (int round = 0; round < 50; ++round) {
      const std::vector<float> logits = random_values(rng, 8, 3.0f);
      ASSERT_TRUE(use_cpu_target(cpu_targets().back()));
      const Choice expected = choose(shape, logits);
      for_each_target([&](const std::string&) {
        const Choice found = choose(shape, logits);
        EXPECT_EQ(found.ids, expected.ids);
        EXPECT_EQ(found.weights, expected.weights);
      });
    }
  }
}

}  // namespace
}  // namespace atl::kernels
