#include "model/sampler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <random>

#include "kernels/ops.h"

namespace atl::model {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// The token drawn at `position`.
int32_t sample(const std::vector<float>& logits, SamplingParams params, uint64_t position = 0) {
  Sampler sampler;
  const auto id =
      sampler.sample(logits, params, {0, position}, static_cast<int32_t>(logits.size()));
  EXPECT_TRUE(id) << id.error().message;
  return id ? *id : -1;
}

// How often each id comes in `draws` draws.
std::map<int32_t, int> counts(const std::vector<float>& logits, SamplingParams params, int draws) {
  Sampler sampler;
  std::map<int32_t, int> out;
  for (int i = 0; i < draws; ++i) {
    const auto id = sampler.sample(logits, params, {0, static_cast<uint64_t>(i)},
                                   static_cast<int32_t>(logits.size()));
    EXPECT_TRUE(id) << id.error().message;
    ++out[*id];
  }
  return out;
}

std::vector<int32_t> support(const std::vector<float>& logits, SamplingParams params) {
  std::vector<int32_t> ids;
  for (const auto& [id, count] : counts(logits, params, 4000)) ids.push_back(id);
  return ids;
}

std::vector<float> logs(std::vector<double> probabilities) {
  std::vector<float> out;
  for (double p : probabilities) out.push_back(static_cast<float>(std::log(p)));
  return out;
}

TEST(Sampler, temperature_zero_takes_the_largest_logit_and_of_equals_the_lowest_id) {
  EXPECT_EQ(sample({1, 3, 2}, {}), 1);
  EXPECT_EQ(sample({1, 3, 2, 3, 3}, {}), 1);
  EXPECT_EQ(sample({-0.0f, 0.0f}, {}), 0);
  EXPECT_EQ(sample({-kInfinity, -3e38f}, {}), 1);
}

TEST(Sampler, draws_follow_the_softmax) {
  const std::vector<double> p = {0.4, 0.05, 0.3, 0.2, 0.05};
  constexpr int kDraws = 20000;
  for (uint64_t seed : {1, 2, 3}) {
    const auto seen = counts(logs(p), {.temperature = 1, .seed = seed}, kDraws);
    double chi_square = 0;
    for (size_t id = 0; id < p.size(); ++id) {
      const double expected = p[id] * kDraws;
      const double off = (seen.contains(id) ? seen.at(id) : 0) - expected;
      chi_square += off * off / expected;
    }
    EXPECT_LT(chi_square, 18.47);  // 4 degrees of freedom, p = 0.001
  }
}

TEST(Sampler, temperature_divides_the_logits) {
  // At temperature 2 the weights are the square roots: 3 : 1.
  constexpr int kDraws = 20000;
  const auto seen = counts(logs({0.9, 0.1}), {.temperature = 2, .seed = 5}, kDraws);
  const double off = seen.at(1) - 0.25 * kDraws;
  EXPECT_LT(std::abs(off), 3.3 * std::sqrt(kDraws * 0.25 * 0.75));
  EXPECT_EQ(support({0, 1, 0.5f}, {.temperature = 1e-30f}), std::vector<int32_t>{1});
  EXPECT_EQ(support({-3e38f, 3e38f}, {.temperature = 1e-40f}), std::vector<int32_t>{1});
}

TEST(Sampler, top_k_keeps_exactly_k_and_of_equals_the_lower_ids) {
  const std::vector<float> logits = {1, 2, 2, 2, 0};
  EXPECT_EQ(support(logits, {.temperature = 1, .top_k = 1}), (std::vector<int32_t>{1}));
  EXPECT_EQ(support(logits, {.temperature = 1, .top_k = 2}), (std::vector<int32_t>{1, 2}));
  EXPECT_EQ(support(logits, {.temperature = 1, .top_k = 4}), (std::vector<int32_t>{0, 1, 2, 3}));
  EXPECT_EQ(support(logits, {.temperature = 1, .top_k = 0}).size(), 5u);
  EXPECT_EQ(support(logits, {.temperature = 1, .top_k = 99}).size(), 5u);
}

TEST(Sampler, top_p_keeps_the_shortest_list_that_reaches_it) {
  const std::vector<float> logits = logs({0.1, 0.5, 0.15, 0.25});
  const auto kept = [&](float p) { return support(logits, {.temperature = 1, .top_p = p}); };
  EXPECT_EQ(kept(1e-9f), (std::vector<int32_t>{1}));
  EXPECT_EQ(kept(0.49f), (std::vector<int32_t>{1}));
  EXPECT_EQ(kept(0.51f), (std::vector<int32_t>{1, 3}));
  EXPECT_EQ(kept(0.76f), (std::vector<int32_t>{1, 2, 3}));
  EXPECT_EQ(kept(0.91f), (std::vector<int32_t>{0, 1, 2, 3}));
  // Exactly reached: 2 of 4 equal ones, the lower ids.
  EXPECT_EQ(support({7, 7, 7, 7}, {.temperature = 1, .top_p = 0.5f}), (std::vector<int32_t>{0, 1}));
}

TEST(Sampler, min_p_is_relative_to_the_most_probable) {
  const std::vector<float> logits = {0, std::log(0.5f) + 1e-6f, std::log(0.25f)};
  const auto kept = [&](float p) { return support(logits, {.temperature = 1, .min_p = p}); };
  EXPECT_EQ(kept(1), (std::vector<int32_t>{0}));
  EXPECT_EQ(kept(0.51f), (std::vector<int32_t>{0}));
  EXPECT_EQ(kept(0.5f), (std::vector<int32_t>{0, 1}));
  EXPECT_EQ(kept(0.24f), (std::vector<int32_t>{0, 1, 2}));
}

TEST(Sampler, filters_apply_in_order_each_to_what_is_left) {
  // After top_k 2 the probabilities are 0.625, 0.375: top_p 0.6 keeps one, of all it would keep
  // two.
  const std::vector<float> logits = logs({0.5, 0.3, 0.2});
  EXPECT_EQ(support(logits, {.temperature = 1, .top_p = 0.6f}), (std::vector<int32_t>{0, 1}));
  EXPECT_EQ(support(logits, {.temperature = 1, .top_k = 2, .top_p = 0.6f}),
            (std::vector<int32_t>{0}));
  // Temperature comes first: a high one flattens what min_p sees.
  EXPECT_EQ(support(logits, {.temperature = 100, .min_p = 0.9f}).size(), 3u);
}

// The definition in sampler.h, without any short cut.
int32_t plain_sample(const std::vector<float>& logits, const SamplingParams& params,
                     RandomPlace place) {
  struct Token {
    float logit, weight;
    int32_t id;
  };
  const float max = *std::max_element(logits.begin(), logits.end());
  std::vector<Token> tokens;
  for (size_t i = 0; i < logits.size(); ++i) {
    tokens.push_back({logits[i], kernels::exp_f32((logits[i] - max) / params.temperature),
                      static_cast<int32_t>(i)});
  }
  const auto by_id = [](const Token& a, const Token& b) { return a.id < b.id; };
  const auto total = [&] {
    std::sort(tokens.begin(), tokens.end(), by_id);
    double sum = 0;
    for (const Token& token : tokens) sum += token.weight;
    return sum;
  };
  const auto sort_descending = [&] {
    std::sort(tokens.begin(), tokens.end(), by_id);
    std::stable_sort(tokens.begin(), tokens.end(),
                     [](const Token& a, const Token& b) { return a.logit > b.logit; });
  };
  if (params.top_k > 0) {
    sort_descending();
    tokens.resize(std::min(tokens.size(), static_cast<size_t>(params.top_k)));
  }
  if (params.top_p < 1) {
    const double wanted = total() * params.top_p;
    sort_descending();
    size_t count = 0;
    for (double sum = 0; count < tokens.size() && sum < wanted; ++count)
      sum += tokens[count].weight;
    tokens.resize(count);
  }
  std::erase_if(tokens, [&](const Token& token) { return token.weight < params.min_p; });
  const double target = uniform_f64(params.seed, place) * total();
  double sum = 0;
  for (const Token& token : tokens) {
    sum += token.weight;
    if (sum > target) return token.id;
  }
  return -1;
}

TEST(Sampler, draws_exactly_what_the_definition_says) {
  std::mt19937 random(3);
  std::normal_distribution<float> normal(0, 3);
  const std::vector<SamplingParams> all = {
      {.temperature = 1},
      {.temperature = 0.6f, .top_p = 0.95f},
      {.temperature = 1, .top_p = 0.01f},
      {.temperature = 3, .top_p = 0.999f},
      {.temperature = 0.7f, .top_k = 50},
      {.temperature = 1.3f, .top_k = 400, .top_p = 0.8f, .min_p = 0.02f, .seed = 9},
      {.temperature = 2, .min_p = 0.1f}};
  Sampler sampler;
  for (const SamplingParams& params : all) {
    std::vector<float> logits(3000);
    for (float& logit : logits) logit = std::round(normal(random) * 8) / 8;  // many equal ones
    for (uint64_t i = 0; i < 200; ++i) {
      const auto id = sampler.sample(logits, params, {1, i}, 3000);
      ASSERT_TRUE(id) << id.error().message;
      EXPECT_EQ(*id, plain_sample(logits, params, {1, i}));
    }
  }
}

TEST(Sampler, the_place_decides_and_nothing_else) {
  std::vector<float> logits(1000);
  for (size_t i = 0; i < logits.size(); ++i) logits[i] = static_cast<float>(i % 7);
  const SamplingParams params{
      .temperature = 0.8f, .top_k = 200, .top_p = 0.9f, .min_p = 0.01f, .seed = 42};
  Sampler used;
  for (uint64_t i = 0; i < 100; ++i) ASSERT_TRUE(used.sample(logits, params, {i, i}, 1000));
  for (uint64_t i = 0; i < 20; ++i) {
    Sampler fresh;
    EXPECT_EQ(*used.sample(logits, params, {3, i}, 1000),
              *fresh.sample(logits, params, {3, i}, 1000));
  }
  const auto drawn = [&](uint64_t seed, RandomPlace place) {
    SamplingParams other = params;
    other.seed = seed;
    std::vector<int32_t> ids;
    for (uint64_t i = 0; i < 20; ++i) {
      ids.push_back(*used.sample(logits, other, {place.sample_index, place.position + i}, 1000));
    }
    return ids;
  };
  EXPECT_EQ(drawn(42, {0, 0}), drawn(42, {0, 0}));
  EXPECT_NE(drawn(42, {0, 0}), drawn(43, {0, 0}));
  EXPECT_NE(drawn(42, {0, 0}), drawn(42, {1, 0}));
  EXPECT_NE(drawn(42, {0, 0}), drawn(42, {0, 100}));
}

TEST(Sampler, masked_ids_are_neither_chosen_nor_looked_at) {
  const std::vector<float> logits = {1, 5, 2, std::nanf(""), kInfinity};
  Sampler sampler;
  EXPECT_EQ(*sampler.sample(logits, {}, {}, 3), 1);
  const std::vector<uint8_t> allowed = {1, 0, 1};
  EXPECT_EQ(*sampler.sample(logits, {}, {}, 3, allowed), 2);
  for (uint64_t i = 0; i < 200; ++i) {
    EXPECT_NE(*sampler.sample(logits, {.temperature = 9}, {0, i}, 3, allowed), 1);
  }
  EXPECT_EQ(*sampler.sample(std::vector<float>{1, 2}, {}, {}, 100), 1);  // a head with fewer rows
}

TEST(Sampler, what_is_no_distribution_is_an_error) {
  Sampler sampler;
  const auto error = [&](std::vector<float> logits, int32_t limit) {
    for (float temperature : {0.0f, 1.0f}) {
      const auto id = sampler.sample(logits, {.temperature = temperature}, {}, limit);
      EXPECT_FALSE(id);
      if (!id && temperature == 1) return id.error();
    }
    return Error{};
  };
  EXPECT_THAT(error({1, std::nanf(""), 2}, 3).message, testing::HasSubstr("token 1 is nan"));
  EXPECT_THAT(error({1, 2, kInfinity}, 3).message, testing::HasSubstr("token 2 is inf"));
  EXPECT_THAT(error({-kInfinity, -kInfinity}, 2).message,
              testing::HasSubstr("all logits are -inf"));
  EXPECT_EQ(error({1, 2}, 0).code, ErrorCode::kInvalid);
}

TEST(SamplingParams, out_of_range_is_named) {
  const auto named = [](SamplingParams params) {
    const Status status = check(params);
    return status ? std::string() : status.error().message;
  };
  EXPECT_EQ(named({}), "");
  EXPECT_EQ(named({.temperature = 2, .top_k = 5, .top_p = 0.5f, .min_p = 1}), "");
  EXPECT_THAT(named({.temperature = -1}), testing::HasSubstr("temperature -1"));
  EXPECT_THAT(named({.temperature = std::nanf("")}), testing::HasSubstr("temperature nan"));
  EXPECT_THAT(named({.temperature = kInfinity}), testing::HasSubstr("temperature inf"));
  EXPECT_THAT(named({.top_k = -1}), testing::HasSubstr("top_k -1"));
  EXPECT_THAT(named({.top_p = 0}), testing::HasSubstr("top_p 0"));
  EXPECT_THAT(named({.top_p = 1.5f}), testing::HasSubstr("top_p 1.5"));
  EXPECT_THAT(named({.top_p = std::nanf("")}), testing::HasSubstr("top_p nan"));
  EXPECT_THAT(named({.min_p = -0.1f}), testing::HasSubstr("min_p -0.1"));
  EXPECT_THAT(named({.min_p = 2}), testing::HasSubstr("min_p 2"));
}

TEST(TokenNll, is_the_negative_log_of_the_softmax) {
  const std::vector<float> logits = logs({0.5, 0.25, 0.25});
  EXPECT_NEAR(token_nll(logits, 0), std::log(2.0), 1e-7);
  EXPECT_NEAR(token_nll(logits, 2), std::log(4.0), 1e-7);
  EXPECT_NEAR(token_nll(std::vector<float>{1000, 0}, 1), 1000, 1e-9);
  EXPECT_EQ(token_nll(std::vector<float>{0, -kInfinity}, 1), kInfinity);
  EXPECT_TRUE(std::isnan(token_nll(std::vector<float>{0, std::nanf("")}, 0)));
}

TEST(LikeliestIds, are_the_largest_and_the_lower_id_comes_first_among_equals) {
  const std::vector<float> logits = {1, 3, 2, 3, 0, 3, 2};
  EXPECT_THAT(likeliest_ids(logits, 0), testing::IsEmpty());
  EXPECT_THAT(likeliest_ids(logits, 2), testing::ElementsAre(1, 3));
  EXPECT_THAT(likeliest_ids(logits, 4), testing::ElementsAre(1, 3, 5, 2));
  EXPECT_THAT(likeliest_ids(logits, 100), testing::ElementsAre(1, 3, 5, 2, 6, 0, 4));
}

}  // namespace
}  // namespace atl::model
