#include "coordinator/serving/drafts.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>
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

TEST(ChooseChain, goes_on_while_a_further_pass_pays) {
  const StepCost cost = cost_of(1, 0.01);
  const std::vector<double> good = {0.9}, bad = {0.2}, both = {0.9, 0.9};
  EXPECT_EQ(choose_chain(cost, {1, 11}, good, 0.01, 4), 4);
  EXPECT_EQ(choose_chain(cost, {1, 11}, good, 2, 4), 1);
  EXPECT_EQ(choose_chain(cost, {1, 11}, bad, 0.5, 4), 1);
  // 0.9^2 of a token that takes a second pays for 0.7 s of pass and 0.01 of rows, 0.9^3 doesn't.
  EXPECT_EQ(choose_chain(cost, {1, 11}, good, 0.7, 4), 2);
  // Two sequences share a pass, and a step.
  EXPECT_EQ(choose_chain(cost, {2, 22}, both, 0.7, 4), 2);
  EXPECT_EQ(choose_chain(StepCost(64, 0), {1, 11}, good, 0, 4), 1);
  EXPECT_EQ(choose_chain(cost, {0, 0}, good, 0.01, 4), 1);
}

// Losses are at most the allowance, and two balances.
TEST(DraftGate, loses_little_and_tries_again) {
  DraftGate gate;
  double lost = 0, total = 0;
  int probes = 0;
  for (bool was_open = true; total < 600;) {
    const double pass = gate.is_open() ? 0.01 : 0;
    total += 0.1 + pass;
    lost += pass;
    gate.observe(0.1 + pass, 0, pass);
    probes += !was_open && gate.is_open();
    was_open = gate.is_open();
  }
  EXPECT_LE(lost, DraftGate::kAllowance * total + 2 * DraftGate::kFull);
  EXPECT_GE(probes, 8);
}

TEST(DraftGate, stays_open_while_it_pays_and_forgets_what_it_won) {
  DraftGate gate;
  for (int i = 0; i < 1000; ++i) {
    gate.observe(0.1, 0.05, 0.01);
    ASSERT_TRUE(gate.is_open());
  }
  double lost = 0;
  for (; gate.is_open() && lost < 100; lost += 0.01) gate.observe(0.1, 0, 0.01);
  EXPECT_LE(lost, 1.2 * DraftGate::kFull);
  gate.shut();
  double seconds = 0;
  for (; !gate.is_open() && seconds < 10'000; seconds += 0.1) gate.observe(0.1, 0, 0);
  EXPECT_NEAR(seconds, (3 + DraftGate::kFull) / DraftGate::kAllowance, 1);
}

// Where steps take long, so does all that a probe needs.
TEST(DraftGate, has_room_for_a_part_of_a_step) {
  DraftGate gate;
  gate.observe(100, 0, 80);
  EXPECT_TRUE(gate.is_open());
  gate.observe(100, 0, 80);
  EXPECT_FALSE(gate.is_open());
}

TEST(DraftGate, leaves_drafts_out_to_have_what_they_are_held_against) {
  DraftGate gate;
  std::map<DraftGate::Step, int> kinds;
  EXPECT_EQ(gate.begin_step(), DraftGate::Step::kPlain);
  for (int step = 1; step < 12; ++step) ++kinds[gate.begin_step()];
  EXPECT_EQ(kinds[DraftGate::Step::kPlain], 3);
  EXPECT_EQ(kinds[DraftGate::Step::kMeasured], 8);
  for (int step = 0; step < 244; ++step) ++kinds[gate.begin_step()];
  EXPECT_EQ(kinds[DraftGate::Step::kDrafts], 244);
  EXPECT_EQ(gate.begin_step(), DraftGate::Step::kPlain);
  EXPECT_EQ(gate.plain_token_s(), 0);
  gate.observe_plain(5);  // the first is taken as it is, and forgotten after some others
  EXPECT_EQ(gate.plain_token_s(), 5);
  for (int i = 0; i < 20; ++i) gate.observe_plain(1);
  EXPECT_NEAR(gate.plain_token_s(), 1, 0.05);
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
