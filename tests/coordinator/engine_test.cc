// The engine with its expert node in this process: sequences that fail, neighbours that don't care.
#include "coordinator/engine/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <set>

#include "coordinator/serving/generate.h"
#include "deployment/deployment.h"
#include "model/sampler.h"
#include "tests/support/golden.h"
#include "tests/support/synthetic_model.h"
#include "tests/support/temp_dir.h"

namespace atl::coordinator {
namespace {

using testing::HasSubstr;

deployment::DeploymentOptions options_for(const std::filesystem::path& model,
                                          int64_t cache_tokens) {
  deployment::DeploymentOptions options;
  options.model_dir = model;
  options.threads = 1;
  options.cache_tokens = cache_tokens;
  return options;
}

std::filesystem::path tiny() { return test::tests_dir() / "models/tiny-fp8"; }

// Steps one sequence; its last logits, or its error.
Result<std::vector<float>> step(Engine& engine, Sequence& sequence, std::vector<int32_t> tokens) {
  const SequenceRows rows{&sequence, tokens, WantLogits::kLast};
  std::optional<Error> error;
  std::vector<float> logits;
  const Status status = engine.step(
      std::span(&rows, 1),
      [&](size_t, size_t, std::span<const float> row) { logits.assign(row.begin(), row.end()); },
      std::span(&error, 1));
  if (!status) return status.error();
  if (error) return *error;
  return logits;
}

TEST(Engine, steps_of_mixed_sequences_give_each_what_it_gets_alone) {
  deployment::Deployment deployment(options_for(tiny(), 1024));
  Engine& engine = deployment.engine();
  Sequence alone;
  auto first = step(engine, alone, {0, 42, 699});
  auto second = step(engine, alone, {14});
  ASSERT_TRUE(first && second);
  engine.release(alone);

  Sequence decoding, prefilling;
  ASSERT_TRUE(step(engine, decoding, {0, 42, 699}));
  const std::vector<int32_t> decode_token = {14}, prompt = {0, 7, 8, 9, 10, 11};
  const SequenceRows rows[] = {{&prefilling, prompt, WantLogits::kNone},
                               {&decoding, decode_token, WantLogits::kLast}};
  std::optional<Error> errors[2];
  std::vector<float> logits;
  ASSERT_TRUE(engine.step(
      rows,
      [&](size_t, size_t, std::span<const float> row) { logits.assign(row.begin(), row.end()); },
      errors));
  EXPECT_EQ(logits, *second);
  EXPECT_EQ(decoding.num_tokens, 4);
  EXPECT_EQ(prefilling.num_tokens, 6);
}

// Rows of prompts whose logits nobody wants end in the last layer's cache: its attention and
// experts are for the others alone. Each wanted row has the bits that it has among all.
TEST(Engine, the_last_layer_computes_the_wanted_rows_only) {
  deployment::Deployment deployment(options_for(tiny(), 1024));
  Engine& engine = deployment.engine();
  const auto& config = deployment.config();
  const int64_t moe_layers = config.num_hidden_layers - config.first_k_dense_replace;
  const auto rows_sent = [&] { return deployment.dispatcher()->traffic()[0].rows; };
  const std::vector<int32_t> a = {0, 5, 600, 14, 262, 9, 77}, b = {0, 42, 699, 3000};
  std::map<std::pair<size_t, size_t>, std::vector<float>> all, wanted;
  const auto run = [&](WantLogits want_a, WantLogits want_b, auto& to) {
    Sequence first, second;
    const SequenceRows rows[] = {{&first, a, want_a}, {&second, b, want_b}};
    std::optional<Error> errors[2];
    const uint64_t before = rows_sent();
    EXPECT_TRUE(engine.step(
        rows,
        [&](size_t w, size_t t, std::span<const float> row) {
          to[{w, t}].assign(row.begin(), row.end());
        },
        errors));
    EXPECT_FALSE(errors[0] || errors[1]);
    const uint64_t sent = rows_sent() - before;
    // What is in the cache of both is what it is without this.
    auto next = step(engine, first, {14});
    auto next_of_b = step(engine, second, {15});
    EXPECT_TRUE(next && next_of_b);
    if (next && next_of_b) {
      to[{0, 100}] = *next;
      to[{1, 100}] = *next_of_b;
    }
    engine.release(first);
    engine.release(second);
    return sent;
  };
  const uint64_t num_rows = a.size() + b.size();
  EXPECT_EQ(run(WantLogits::kAll, WantLogits::kAll, all), num_rows * moe_layers);
  ASSERT_EQ(all.size(), num_rows + 2);
  EXPECT_EQ(run(WantLogits::kNone, WantLogits::kLast, wanted), num_rows * (moe_layers - 1) + 1);
  EXPECT_EQ(run(WantLogits::kLast, WantLogits::kNone, wanted), num_rows * (moe_layers - 1) + 1);
  EXPECT_EQ(run(WantLogits::kLast, WantLogits::kAll, wanted),
            num_rows * (moe_layers - 1) + 1 + b.size());
  EXPECT_EQ(run(WantLogits::kNone, WantLogits::kNone, wanted), num_rows * (moe_layers - 1));
  EXPECT_EQ(wanted.size(), 3 + b.size());
  for (const auto& [row, logits] : wanted) {
    EXPECT_EQ(logits, (all[row])) << row.first << ", " << row.second;
  }
}

TEST(Engine, a_bad_token_or_too_long_a_context_stops_that_sequence_only) {
  deployment::Deployment deployment(options_for(tiny(), 1024));
  Engine& engine = deployment.engine();
  Sequence good, bad, longer;
  longer.num_tokens = deployment.config().max_position_embeddings;
  const std::vector<int32_t> good_tokens = {0, 5}, bad_tokens = {0, 3328}, more = {1};
  const SequenceRows rows[] = {{&bad, bad_tokens, WantLogits::kLast},
                               {&good, good_tokens, WantLogits::kLast},
                               {&longer, more, WantLogits::kLast}};
  std::optional<Error> errors[3];
  int calls = 0;
  ASSERT_TRUE(engine.step(
      rows,
      [&](size_t w, size_t, std::span<const float>) {
        EXPECT_EQ(w, 1u);
        ++calls;
      },
      errors));
  EXPECT_EQ(calls, 1);
  ASSERT_TRUE(errors[0]);
  EXPECT_EQ(errors[0]->message, "token id 3328 is not in the vocabulary of 3328");
  EXPECT_FALSE(errors[1]);
  ASSERT_TRUE(errors[2]);
  EXPECT_EQ(errors[2]->message, "context of 2049 tokens is longer than the model's 2048 positions");
  EXPECT_EQ(bad.num_tokens, 0);
}

TEST(Engine, a_made_up_context_is_attended_to_and_depends_on_its_seed_only) {
  deployment::Deployment deployment(options_for(tiny(), 1024));
  Engine& engine = deployment.engine();
  const auto after_context = [&](int64_t tokens, uint64_t seed) {
    Sequence sequence;
    EXPECT_TRUE(engine.fill_context(sequence, tokens, seed).ok());
    EXPECT_EQ(sequence.num_tokens, tokens);
    auto logits = step(engine, sequence, {7});
    EXPECT_TRUE(logits);
    EXPECT_EQ(sequence.num_tokens, tokens + 1);
    engine.release(sequence);
    return logits ? *logits : std::vector<float>{};
  };
  const std::vector<float> logits = after_context(65, 1);
  EXPECT_EQ(after_context(65, 1), logits);
  EXPECT_NE(after_context(65, 2), logits);
  EXPECT_NE(after_context(0, 1), logits);
  EXPECT_NE(after_context(64, 1), logits);
}

TEST(Engine, a_made_up_context_must_fit_the_cache_and_the_model) {
  deployment::Deployment deployment(options_for(tiny(), 64));  // two blocks
  Engine& engine = deployment.engine();
  Sequence sequence;
  EXPECT_EQ(engine.fill_context(sequence, 129, 1).error().code, ErrorCode::kOverloaded);
  EXPECT_EQ(sequence.num_tokens, 0);
  engine.release(sequence);
  EXPECT_TRUE(engine.fill_context(sequence, 128, 1).ok());
  engine.release(sequence);
  const Status longer = engine.fill_context(sequence, 2049, 1);
  EXPECT_EQ(longer.error().message,
            "context of 2049 tokens is longer than the model's 2048 positions");
}

TEST(Engine, a_full_cache_is_an_answer_and_released_blocks_serve_again) {
  deployment::Deployment deployment(options_for(tiny(), 64));  // two blocks
  Engine& engine = deployment.engine();
  Sequence a, b;
  ASSERT_TRUE(step(engine, a, std::vector<int32_t>(100, 5)));
  auto full = step(engine, b, {5});
  ASSERT_FALSE(full);
  EXPECT_EQ(full.error().code, ErrorCode::kOverloaded);
  EXPECT_THAT(full.error().message, HasSubstr("all 2 blocks of 64 positions are in use"));
  engine.release(a);
  engine.release(b);
  EXPECT_TRUE(step(engine, b, {5}));
}

// Prefixes that are found in the cache give the same bits as computing them, whole blocks only.
TEST(Engine, a_kept_prefix_is_reused_and_changes_no_bit) {
  deployment::Deployment deployment(options_for(tiny(), 1024));
  Engine& engine = deployment.engine();
  std::vector<int32_t> tokens(150);
  for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<int32_t>(7 * i % 3000);
  Sequence first;
  auto alone = step(engine, first, tokens);
  ASSERT_TRUE(alone);
  engine.keep(first, tokens);
  engine.release(first);
  EXPECT_EQ(engine.prefixes().held(), 0);
  EXPECT_EQ(engine.prefixes().kept(), 2);

  Sequence again;
  engine.reuse(again, tokens);
  EXPECT_EQ(again.num_tokens, 128);
  auto reused = step(engine, again, {tokens.begin() + 128, tokens.end()});
  ASSERT_TRUE(reused);
  EXPECT_EQ(*reused, *alone);
  engine.release(again);

  tokens[100] = 5;  // in the second block
  Sequence other;
  engine.reuse(other, tokens);
  EXPECT_EQ(other.num_tokens, 64);
  auto branched = step(engine, other, {tokens.begin() + 64, tokens.end()});
  engine.release(other);
  Sequence fresh;
  auto expected = step(engine, fresh, tokens);
  ASSERT_TRUE(branched && expected);
  EXPECT_EQ(*branched, *expected);
  engine.release(fresh);
}

// One expert whose results are far beyond the range: only rows that choose it end, with its name.
TEST(Engine, a_value_out_of_range_names_layer_and_expert_and_spares_the_other_rows) {
  const test::TempDir dir;
  test::write_small_model(dir.path(), 320, 512);
  Sequence probe;
  std::vector<int32_t> chosen;  // experts of token 5 as the first of a sequence
  class Routes final : public StepObserver {
   public:
    explicit Routes(std::vector<int32_t>* to) : to_(to) {}
    void on_routes(int64_t, std::span<const int32_t> ids, std::span<const float>) override {
      to_->assign(ids.begin(), ids.end());
    }
    void on_hidden(int64_t, std::span<const float>) override {}

   private:
    std::vector<int32_t>* to_;
  } routes(&chosen);
  int32_t victim = -1, bystander = -1;
  std::vector<int32_t> victim_experts;
  {
    deployment::Deployment deployment(options_for(dir.path(), 1024));
    std::vector<std::vector<int32_t>> routes_of;
    for (int32_t token = 0; token < 40; ++token) {
      Sequence sequence;
      const std::vector<int32_t> tokens = {token};
      const SequenceRows rows{&sequence, tokens, WantLogits::kNone};
      std::optional<Error> error;
      ASSERT_TRUE(deployment.engine().step(std::span(&rows, 1), {}, std::span(&error, 1), &routes));
      routes_of.push_back(chosen);
      deployment.engine().release(sequence);
    }
    victim = 0;
    victim_experts = routes_of[0];
    for (int32_t token = 1; token < 40 && bystander < 0; ++token) {
      const auto& ids = routes_of[token];
      if (std::find(ids.begin(), ids.end(), victim_experts[0]) == ids.end()) bystander = token;
    }
    ASSERT_GE(bystander, 0);
  }
  const int32_t expert = victim_experts[0];
  test::patch_tensor(
      dir.path(),
      "model.layers.1.mlp.experts." + std::to_string(expert) + ".down_proj.weight_scale_inv", 0, 4,
      1e30f);

  deployment::Deployment deployment(options_for(dir.path(), 1024));
  Sequence bad, good;
  const std::vector<int32_t> bad_tokens = {victim}, good_tokens = {bystander};
  const SequenceRows rows[] = {{&bad, bad_tokens, WantLogits::kLast},
                               {&good, good_tokens, WantLogits::kLast}};
  std::optional<Error> errors[2];
  std::vector<float> good_logits;
  ASSERT_TRUE(deployment.engine().step(
      rows,
      [&](size_t w, size_t, std::span<const float> row) {
        EXPECT_EQ(w, 1u);
        good_logits.assign(row.begin(), row.end());
      },
      errors));
  ASSERT_TRUE(errors[0]);
  EXPECT_EQ(errors[0]->message, "position 0, layer 1: expert " + std::to_string(expert) +
                                    " gave a value that is not finite or beyond +-8388608");
  EXPECT_FALSE(errors[1]);
  deployment.engine().release(good);
  auto alone = step(deployment.engine(), good, good_tokens);
  ASSERT_TRUE(alone);
  EXPECT_EQ(good_logits, *alone);
}

// ---- Drafts by the next-token layer ------------------------------------------------------------

deployment::DeploymentOptions with_mtp(int64_t cache_tokens) {
  deployment::DeploymentOptions options = options_for(tiny(), cache_tokens);
  options.next_token_layer = deployment::NextTokenLayer::kRequired;
  return options;
}

std::vector<int32_t> some_text(size_t n) {
  std::vector<int32_t> tokens;
  for (size_t i = 0; i < n; ++i) tokens.push_back(static_cast<int32_t>(i * i * 7 % 3000));
  return tokens;
}

// Steps tokens [begin, end) of the text, then asks for drafts.
std::vector<int32_t> step_and_draft(Engine& engine, Sequence& sequence,
                                    std::span<const int32_t> text, int64_t end, int64_t most = 4,
                                    std::optional<int64_t> mtp_from = 0) {
  const SequenceRows rows{&sequence,
                          text.subspan(static_cast<size_t>(sequence.num_tokens),
                                       static_cast<size_t>(end - sequence.num_tokens)),
                          WantLogits::kLast, mtp_from};
  std::optional<Error> error;
  EXPECT_TRUE(engine
                  .step(
                      std::span(&rows, 1), [](size_t, size_t, std::span<const float>) {},
                      std::span(&error, 1))
                  .ok());
  EXPECT_FALSE(error);
  if (!mtp_from) return {};
  DraftWork work{&sequence, text.first(static_cast<size_t>(end) + 1), most, {}};
  EXPECT_TRUE(engine.draft(std::span(&work, 1)).ok());
  return work.draft;
}

// In one go; in pieces; with tokens computed behind that were wrong and went again; and with a last
// token that came late.
TEST(Mtp, what_is_proposed_depends_on_the_tokens_alone) {
  deployment::Deployment deployment(with_mtp(2048));
  Engine& engine = deployment.engine();
  const std::vector<int32_t> text = some_text(120);
  const auto expected = [&](int64_t end) {
    Sequence sequence;
    auto draft = step_and_draft(engine, sequence, text, end);
    engine.release(sequence);
    return draft;
  };
  const std::vector<int32_t> at_100 = expected(100), at_101 = expected(101);
  EXPECT_EQ(at_100.size(), 4u);
  EXPECT_EQ(at_101.size(), 4u);

  Sequence pieces;
  for (const int64_t end : {7, 60, 70, 99}) step_and_draft(engine, pieces, text, end);
  EXPECT_EQ(step_and_draft(engine, pieces, text, 100), at_100);

  std::vector<int32_t> wrong = text;
  wrong[101] = 5;
  wrong[102] = 6;
  const SequenceRows rows{&pieces, std::span(wrong).subspan(100, 3), WantLogits::kAll, 0};
  std::optional<Error> error;
  ASSERT_TRUE(engine
                  .step(
                      std::span(&rows, 1), [](size_t, size_t, std::span<const float>) {},
                      std::span(&error, 1))
                  .ok());
  engine.rewind(pieces, 101);
  DraftWork work{&pieces, std::span(text).first(102), 4, {}};
  ASSERT_TRUE(engine.draft(std::span(&work, 1)).ok());
  EXPECT_EQ(work.draft, at_101);

  // Its next token isn't known yet: nothing is proposed, and it goes on as if it had been.
  const SequenceRows late{&pieces, std::span(text).subspan(101, 1), WantLogits::kLast, 0};
  ASSERT_TRUE(engine
                  .step(
                      std::span(&late, 1), [](size_t, size_t, std::span<const float>) {},
                      std::span(&error, 1))
                  .ok());
  DraftWork nothing{&pieces, std::span(text).first(102), 4, {}};
  ASSERT_TRUE(engine.draft(std::span(&nothing, 1)).ok());
  EXPECT_EQ(nothing.draft, std::vector<int32_t>());
  EXPECT_EQ(step_and_draft(engine, pieces, text, 103), expected(103));
  engine.release(pieces);
}

TEST(Mtp, begins_anew_with_a_block_where_tokens_were_left_out) {
  deployment::Deployment deployment(with_mtp(2048));
  Engine& engine = deployment.engine();
  const std::vector<int32_t> text = some_text(260);
  Sequence sequence;
  EXPECT_EQ(step_and_draft(engine, sequence, text, 70).size(), 4u);
  step_and_draft(engine, sequence, text, 75, 4, std::nullopt);
  for (const int64_t end : {80, 100, 128}) {
    EXPECT_EQ(step_and_draft(engine, sequence, text, end), std::vector<int32_t>()) << end;
  }
  EXPECT_EQ(step_and_draft(engine, sequence, text, 129).size(), 4u);
  EXPECT_EQ(sequence.mtp_begin, 128);
  // As one that was told to begin there, so that nothing before is read.
  Sequence told;
  EXPECT_EQ(step_and_draft(engine, told, text, 150, 4, 100),
            step_and_draft(engine, sequence, text, 150));
  EXPECT_EQ(told.mtp_begin, 128);
  // Behind the room in the cache nothing is proposed: position 191 is the block's last.
  EXPECT_EQ(step_and_draft(engine, sequence, text, 190).size(), 3u);
  EXPECT_EQ(step_and_draft(engine, sequence, text, 192).size(), 1u);
  engine.release(told);
  engine.release(sequence);
}

// A prefix that is found brings no entries of the layer, and the model's own bits don't change.
TEST(Mtp, does_without_a_kept_prefix) {
  deployment::Deployment deployment(with_mtp(2048));
  Engine& engine = deployment.engine();
  const std::vector<int32_t> text = some_text(160);
  Sequence first;
  step_and_draft(engine, first, text, 150);
  engine.keep(first, text);
  Sequence again, told;
  engine.reuse(again, text);
  EXPECT_EQ(again.num_tokens, 128);
  const std::vector<int32_t> draft = step_and_draft(engine, again, text, 150);
  EXPECT_EQ(draft.size(), 4u);
  EXPECT_EQ(draft, step_and_draft(engine, told, text, 150, 4, 128));
  for (Sequence* sequence : {&first, &again, &told}) engine.release(*sequence);
}

// ---- Hints -----------------------------------------------------------------------------------

// What a step's layers chose and what they were foretold, to count anew what the engine counts.
class HintObserver final : public StepObserver {
 public:
  void on_routes(int64_t layer, std::span<const int32_t> ids, std::span<const float>) override {
    routes_by_layer[layer].push_back({ids.begin(), ids.end()});
    const auto hint = open_.find(layer);
    if (hint == open_.end()) return;
    const std::set<int32_t> chosen(ids.begin(), ids.end());
    ++counted.layers;
    counted.hinted += hint->second.size();
    counted.chosen += chosen.size();
    for (const int32_t expert : chosen) {
      counted.foretold += std::count(hint->second.begin(), hint->second.end(), expert);
    }
    open_.erase(hint);
  }
  void on_hidden(int64_t, std::span<const float>) override {}
  void on_hint(int64_t layer, std::span<const int32_t> experts) override {
    EXPECT_TRUE(std::is_sorted(experts.begin(), experts.end()));
    EXPECT_EQ(std::adjacent_find(experts.begin(), experts.end()), experts.end());
    EXPECT_TRUE(open_.empty());  // only the very next layer is foretold
    open_[layer] = {experts.begin(), experts.end()};
    hints_by_layer[layer].push_back({experts.begin(), experts.end()});
  }

  HintStats counted;
  std::map<int64_t, std::vector<std::vector<int32_t>>> routes_by_layer, hints_by_layer;

 private:
  std::map<int64_t, std::vector<int32_t>> open_;
};

// Logits of `num_steps` steps of `num_sequences` sequences, one token each.
std::vector<float> decode(Engine& engine, int num_sequences, int num_steps,
                          StepObserver* observer = nullptr) {
  std::vector<Sequence> sequences(num_sequences);
  std::vector<float> all;
  for (int at = 0; at < num_steps; ++at) {
    std::vector<std::vector<int32_t>> tokens;
    std::vector<SequenceRows> rows;
    for (int s = 0; s < num_sequences; ++s) tokens.push_back({(s * 131 + at * 977) % 3328});
    for (int s = 0; s < num_sequences; ++s) {
      rows.push_back({&sequences[s], tokens[s], WantLogits::kLast});
    }
    std::vector<std::optional<Error>> errors(num_sequences);
    EXPECT_TRUE(engine.step(
        rows,
        [&](size_t, size_t, std::span<const float> row) {
          all.insert(all.end(), row.begin(), row.end());
        },
        errors, observer));
  }
  for (Sequence& sequence : sequences) engine.release(sequence);
  return all;
}

TEST(Prefetch, changes_no_bit_and_counts_what_its_hints_were_worth) {
  deployment::DeploymentOptions options = options_for(tiny(), 2048);
  deployment::Deployment without(options);
  options.prefetch = Prefetch::kNextLayer;
  deployment::Deployment with(options);
  for (const int sequences : {1, 3, static_cast<int>(kHintRowsMax)}) {
    HintObserver observer;
    const HintStats before = with.engine().hint_stats();
    const std::vector<float> logits = decode(with.engine(), sequences, 4, &observer);
    EXPECT_EQ(decode(without.engine(), sequences, 4), logits) << sequences;
    const HintStats stats = with.engine().hint_stats();
    EXPECT_EQ(stats.layers - before.layers, observer.counted.layers);
    EXPECT_EQ(stats.hinted - before.hinted, observer.counted.hinted);
    EXPECT_EQ(stats.chosen - before.chosen, observer.counted.chosen);
    EXPECT_EQ(stats.foretold - before.foretold, observer.counted.foretold);
    // Of 6 layers the first is dense, the second has no layer with experts before it.
    EXPECT_EQ(observer.counted.layers, 4u * 4);
  }
  EXPECT_EQ(without.engine().hint_stats(), HintStats{});
  EXPECT_EQ(without.engine().times()[Stage::kPrefetch], 0);
  EXPECT_GT(with.engine().times()[Stage::kPrefetch], 0);
  EXPECT_EQ(with.node_reports()[0].traffic.hints, 3u * 4 * 4);
  EXPECT_EQ(without.node_reports()[0].traffic.hints, 0u);
}

// The model has learnt, so its residual stream changes little from layer to layer: a blind choice
// of 4 of 32 experts would be right in one case of eight.
TEST(Prefetch, foretells_far_better_than_chance) {
  deployment::DeploymentOptions options = options_for(tiny(), 2048);
  options.prefetch = Prefetch::kNextLayer;
  deployment::Deployment deployment(options);
  decode(deployment.engine(), 1, 40);
  const HintStats stats = deployment.engine().hint_stats();
  EXPECT_GT(stats.recall(), 0.4);
  EXPECT_LT(stats.waste(), 0.6);
}

TEST(Prefetch, steps_of_more_rows_get_no_hint) {
  deployment::DeploymentOptions options = options_for(tiny(), 4096);
  options.prefetch = Prefetch::kNextLayer;
  deployment::Deployment deployment(options);
  decode(deployment.engine(), static_cast<int>(kHintRowsMax) + 1, 2);
  EXPECT_EQ(deployment.engine().hint_stats(), HintStats{});
  EXPECT_EQ(deployment.node_reports()[0].traffic.hints, 0u);
}

TEST(Generate, the_same_seed_gives_the_same_tokens_and_another_seed_others) {
  deployment::Deployment deployment(options_for(tiny(), 256));
  model::Sampler sampler;
  GenerateRequest request;
  request.prompt = {0, 42, 699, 14};
  request.max_tokens = 24;
  request.vocab_limit = 3328;
  request.sampling.temperature = 1.0f;
  const auto tokens = [&](uint64_t seed, int64_t chunk) {
    request.sampling.seed = seed;
    request.rows_max = chunk;
    auto result =
        generate(deployment.engine(), deployment.clock(), request, sampler, [](int32_t) {});
    EXPECT_TRUE(result);
    return result->tokens;
  };
  EXPECT_EQ(tokens(1, 512), tokens(1, 3));
  EXPECT_NE(tokens(1, 512), tokens(2, 512));
}

TEST(Generate, ends_at_a_stop_id_at_max_tokens_and_at_the_last_position) {
  deployment::DeploymentOptions options = options_for(tiny(), 2048);
  deployment::Deployment deployment(options);
  model::Sampler sampler;
  GenerateRequest request;
  request.prompt = {0, 42, 699, 14};
  request.max_tokens = 6;
  request.vocab_limit = 3328;
  auto all = generate(deployment.engine(), deployment.clock(), request, sampler, [](int32_t) {});
  ASSERT_TRUE(all);
  ASSERT_EQ(all->tokens.size(), 6u);
  EXPECT_EQ(all->finish, FinishReason::kLength);

  request.stop_ids = {all->tokens[3]};
  auto stopped =
      generate(deployment.engine(), deployment.clock(), request, sampler, [](int32_t) {});
  ASSERT_TRUE(stopped);
  EXPECT_EQ(stopped->finish, FinishReason::kStop);
  const auto first_stop = std::find(all->tokens.begin(), all->tokens.end(), all->tokens[3]);
  EXPECT_EQ(stopped->tokens, std::vector<int32_t>(all->tokens.begin(), first_stop + 1));

  request.stop_ids.clear();
  request.prompt.assign(2046, 42);
  auto last = generate(deployment.engine(), deployment.clock(), request, sampler, [](int32_t) {});
  ASSERT_TRUE(last);
  EXPECT_EQ(last->tokens.size(), 3u);  // after positions 2045, 2046 and 2047
  EXPECT_EQ(deployment.engine().cache().free_blocks(), deployment.engine().cache().max_blocks());
}

}  // namespace
}  // namespace atl::coordinator
