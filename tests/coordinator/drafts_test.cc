#include "coordinator/serving/drafts.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace atl::coordinator {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

std::vector<int32_t> proposed(const LookupDraft& lookup, const std::vector<int32_t>& tokens,
                              size_t most = 4) {
  const std::span<const int32_t> draft = lookup.propose(tokens, most);
  return {draft.begin(), draft.end()};
}

TEST(LookupDraft, is_what_followed_the_last_three_tokens_the_last_time) {
  LookupDraft lookup;
  std::vector<int32_t> tokens = {1, 2, 3, 4, 5, 1, 2, 3, 6, 7, 8, 9};
  lookup.learn(tokens);
  EXPECT_THAT(proposed(lookup, tokens), IsEmpty());
  tokens.insert(tokens.end(), {1, 2, 3});
  lookup.learn(tokens);
  EXPECT_THAT(proposed(lookup, tokens), ElementsAre(6, 7, 8, 9));
  EXPECT_THAT(proposed(lookup, tokens, 2), ElementsAre(6, 7));
  // No further than there is text, and never of the end itself.
  EXPECT_THAT(proposed(lookup, tokens, 100), ElementsAre(6, 7, 8, 9, 1, 2, 3));
}

TEST(LookupDraft, learns_tokens_as_they_come) {
  LookupDraft at_once, one_by_one;
  std::vector<int32_t> tokens;
  for (int32_t i = 0; i < 200; ++i) {
    tokens.push_back(i * i % 7);
    one_by_one.learn(tokens);
    at_once = {};
    at_once.learn(tokens);
    EXPECT_EQ(proposed(one_by_one, tokens), proposed(at_once, tokens)) << i;
  }
  EXPECT_EQ(proposed(one_by_one, tokens).size(), 4u);
}

TEST(LookupDraft, of_short_texts_is_empty) {
  LookupDraft lookup;
  for (const std::vector<int32_t>& tokens : {std::vector<int32_t>{}, {1}, {1, 1}, {1, 1, 1}}) {
    lookup.learn(tokens);
    EXPECT_THAT(proposed(lookup, tokens), IsEmpty());
  }
  const std::vector<int32_t> tokens = {1, 1, 1, 1};
  lookup.learn(tokens);
  EXPECT_THAT(proposed(lookup, tokens), ElementsAre(1));
}

// Steps take `fixed` and `row` seconds a row.
StepCost cost_of(double fixed, double row) {
  StepCost cost(64, 0);
  for (int round = 0; round < 20; ++round) {
    for (const int64_t rows : {1, 2, 4, 8, 16, 32, 64}) {
      cost.observe({rows, rows}, fixed + row * static_cast<double>(rows), 0);
    }
  }
  return cost;
}

int64_t chosen(const StepCost& cost, double acceptance, int64_t proposed, int64_t left = 63) {
  std::vector<DraftRows> drafts = {{acceptance, 10, proposed, -1}};
  choose_drafts(cost, {1, 11}, left, drafts);
  return drafts[0].rows;
}

TEST(ChooseDrafts, takes_what_brings_more_than_it_costs) {
  const StepCost cheap_rows = cost_of(1, 0.01), dear_rows = cost_of(0.01, 1);
  EXPECT_EQ(chosen(cheap_rows, 0.9, 8), 8);
  EXPECT_EQ(chosen(dear_rows, 0.9, 8), 0);
  EXPECT_EQ(chosen(cheap_rows, 0.02, 8), 0);
  EXPECT_EQ(chosen(cheap_rows, 1, 8, 3), 3);
  EXPECT_EQ(chosen(cheap_rows, 1, 8, 0), 0);
  // 1 + 0.5 = 1.5 tokens in 1.1 s, 1.75 in 1.2, 1.875 in 1.3, 1.9375 in 1.4.
  EXPECT_EQ(chosen(cost_of(1, 0.1), 0.5, 8), 2);
}

TEST(ChooseDrafts, knows_no_costs_before_the_first_step) {
  EXPECT_EQ(chosen(StepCost(64, 0), 1, 8), 0);
}

// Of experts alone: the second row reads nearly as many new ones as the first, the eighth fewer.
TEST(ChooseDrafts, takes_rows_that_pay_together) {
  StepCost cost(64, 0.1);
  for (int round = 0; round < 40; ++round) {
    for (const int64_t rows : {1, 2, 4, 8, 16, 32, 64}) {
      cost.observe({rows, rows}, 1 - std::pow(0.9, static_cast<double>(rows)), 0);
    }
  }
  EXPECT_EQ(chosen(cost, 0.95, 1), 0);
  EXPECT_GE(chosen(cost, 0.95, 8), 2);
}

TEST(ChooseDrafts, the_likeliest_come_first) {
  std::vector<DraftRows> drafts = {{0.3, 0, 4, 0}, {0.95, 0, 4, 0}, {0.6, 0, 4, 0}};
  choose_drafts(cost_of(1, 0.001), {3, 3}, 5, drafts);
  EXPECT_EQ(drafts[1].rows, 4);
  EXPECT_EQ(drafts[2].rows, 1);
  EXPECT_EQ(drafts[0].rows, 0);
}

TEST(DraftAcceptance, follows_what_happens) {
  DraftAcceptance acceptance(0.5);
  for (int i = 0; i < 100; ++i) acceptance.observe(true);
  EXPECT_GT(acceptance.share(), 0.99);
  for (int i = 0; i < 100; ++i) acceptance.observe(i % 4 == 0);
  EXPECT_NEAR(acceptance.share(), 0.25, 0.1);
}

}  // namespace
}  // namespace atl::coordinator
