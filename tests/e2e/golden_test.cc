// The engine against reference results, layer by layer, so that the first wrong layer shows.
//
// Tolerances are those that the makers of the data measured between independent FP32 codes (for
// `--wire f32 --kv f32`) and for activations rounded to BF16 (for the default); see
// tests/golden/README.md. They are about someone else's order of sums: our own results are compared
// bit for bit in same_bits_test.cc.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "coordinator/engine/evaluate.h"
#include "coordinator/serving/generate.h"
#include "deployment/deployment.h"
#include "model/sampler.h"
#include "tests/support/golden.h"

namespace atl {
namespace {

using test::GoldenArray;
using test::GoldenFolder;
using test::tests_dir;

struct Profile {
  kernels::RowType type;  // of wire and cache
  double experts_margin;  // routes are compared where the reference's margin is above
};
constexpr Profile kFp32{kernels::RowType::kF32, 1e-4};
constexpr Profile kBf16{kernels::RowType::kBf16, 0.204};

deployment::DeploymentOptions deployment_options(const std::filesystem::path& model,
                                                 Profile profile, int64_t cache_tokens) {
  deployment::DeploymentOptions options;
  options.model_dir = model;
  options.numerics.wire = options.numerics.cache = profile.type;
  options.cache_tokens = cache_tokens;
  options.threads = 2;
  return options;
}

// Everything a step lets see, for all positions of one sequence stepped in chunks.
class Recorder final : public coordinator::StepObserver {
 public:
  Recorder(const model::ModelConfig& config) : config_(config) {}

  void on_routes(int64_t layer, std::span<const int32_t> ids,
                 std::span<const float> weights) override {
    append(ids_[layer], ids);
    append(weights_[layer], weights);
  }
  void on_hidden(int64_t layer, std::span<const float> hidden) override {
    append(hidden_[layer], hidden);
  }

  std::span<const float> hidden(int64_t layer, int64_t position) const {
    return std::span(hidden_.at(layer))
        .subspan(position * config_.hidden_size, config_.hidden_size);
  }
  std::map<int32_t, float> route(int64_t layer, int64_t position) const {
    std::map<int32_t, float> route;
    for (int64_t k = 0; k < config_.num_experts_per_tok; ++k) {
      const size_t at = position * config_.num_experts_per_tok + k;
      route[ids_.at(layer)[at]] = weights_.at(layer)[at];
    }
    return route;
  }

 private:
  template <typename T>
  static void append(std::vector<T>& to, std::span<const T> from) {
    to.insert(to.end(), from.begin(), from.end());
  }
  const model::ModelConfig& config_;
  std::map<int64_t, std::vector<int32_t>> ids_;
  std::map<int64_t, std::vector<float>> weights_, hidden_;
};

struct SequenceResult {
  Recorder recorder;
  std::vector<std::vector<float>> logits;  // [position]
};

SequenceResult evaluate_sequence(deployment::Deployment& deployment,
                                 const std::vector<int32_t>& ids) {
  SequenceResult result{Recorder(deployment.config()), std::vector<std::vector<float>>(ids.size())};
  coordinator::EvaluateOptions options;
  options.observer = &result.recorder;
  const std::vector<std::vector<int32_t>> rows{ids};
  auto evaluated = coordinator::evaluate(deployment.engine(), rows, options,
                                         [&](size_t, size_t position, std::span<const float> row) {
                                           result.logits[position].assign(row.begin(), row.end());
                                         });
  EXPECT_TRUE(evaluated) << (evaluated ? "" : evaluated.error().message);
  return result;
}

// Where the golden arrays' rows are in the sequence: rand-long keeps only some positions.
std::vector<int32_t> golden_positions(const GoldenFolder& golden, int64_t rows) {
  if (golden.index().at("files").contains("positions")) return golden.i32("positions").data;
  std::vector<int32_t> positions(rows);
  for (int64_t i = 0; i < rows; ++i) positions[i] = static_cast<int32_t>(i);
  return positions;
}

void expect_hidden_near(const SequenceResult& result, const GoldenArray<float>& hidden,
                        const std::vector<int32_t>& positions) {
  const int64_t rows = hidden.shape[1], width = hidden.shape[2];
  for (int64_t layer = 0; layer < hidden.shape[0]; ++layer) {
    double worst = 0, ours = 0, theirs = 0;
    int64_t worst_row = 0, worst_column = 0;
    for (int64_t row = 0; row < rows; ++row) {
      const float* expected = hidden.row(layer * rows + row);
      const std::span<const float> actual = result.recorder.hidden(layer, positions[row]);
      for (int64_t i = 0; i < width; ++i) {
        const double excess =
            std::fabs(actual[i] - expected[i]) - (2e-3 + 1e-5 * std::fabs(expected[i]));
        if (excess > worst) {
          worst = excess;
          worst_row = row;
          worst_column = i;
          ours = actual[i];
          theirs = expected[i];
        }
      }
    }
    ASSERT_EQ(worst, 0) << "first wrong layer: " << layer << ", position " << positions[worst_row]
                        << ", column " << worst_column << ": " << ours << ", expected " << theirs;
  }
}

void expect_routes_equal(const SequenceResult& result, const GoldenArray<int32_t>& experts,
                         const GoldenArray<float>& weights, const GoldenArray<float>& margin,
                         const std::vector<int32_t>& positions, int64_t first_moe_layer,
                         Profile profile) {
  const int64_t rows = experts.shape[1], top_k = experts.shape[2];
  int64_t compared = 0;
  for (int64_t l = 0; l < experts.shape[0]; ++l) {
    for (int64_t row = 0; row < rows; ++row) {
      if (margin.data[l * rows + row] <= profile.experts_margin) continue;
      ++compared;
      std::map<int32_t, float> expected;
      for (int64_t k = 0; k < top_k; ++k) {
        expected[experts.row(l * rows + row)[k]] = weights.row(l * rows + row)[k];
      }
      const std::map<int32_t, float> actual =
          result.recorder.route(first_moe_layer + l, positions[row]);
      for (const auto& [id, weight] : expected) {
        ASSERT_TRUE(actual.contains(id)) << "layer " << first_moe_layer + l << ", position "
                                         << positions[row] << ": expert " << id << " not chosen";
        if (profile.type == kernels::RowType::kF32) {
          EXPECT_NEAR(actual.at(id), weight, 1e-4) << "expert " << id;
        }
      }
    }
  }
  EXPECT_GT(compared, 0) << "no route has a margin above " << profile.experts_margin;
}

double max_difference(const SequenceResult& result, const GoldenArray<float>& logits,
                      const std::vector<int32_t>& positions) {
  double worst = 0;
  for (int64_t row = 0; row < logits.shape[0]; ++row) {
    const std::vector<float>& ours = result.logits[positions[row]];
    for (int64_t i = 0; i < logits.row_elements(); ++i) {
      worst = std::max(worst, std::fabs(double{ours[i]} - logits.row(row)[i]));
    }
  }
  return worst;
}

double log_sum_exp(std::span<const float> x) {
  const double top = *std::max_element(x.begin(), x.end());
  double sum = 0;
  for (const float v : x) sum += std::exp(v - top);
  return top + std::log(sum);
}

// ---- Random models: awkward shapes, both router families, long context -------------------------

class RandomModel : public testing::TestWithParam<const char*> {};

TEST_P(RandomModel, layers_routes_and_logits_agree_in_fp32) {
  const std::filesystem::path model = tests_dir() / "models" / GetParam();
  const GoldenFolder golden(model / "golden");
  const std::vector<int32_t> ids = golden.ids("ids").data;
  deployment::Deployment deployment(deployment_options(model, kFp32, ids.size()));
  const SequenceResult result = evaluate_sequence(deployment, ids);
  const GoldenArray<float> logits = golden.f32("logits");
  const std::vector<int32_t> positions = golden_positions(golden, logits.shape[0]);

  expect_hidden_near(result, golden.f32("hidden"), positions);
  expect_routes_equal(result, golden.i32("experts"), golden.f32("weights"),
                      golden.f32("route_margin"), positions,
                      deployment.config().first_k_dense_replace, kFp32);
  const double worst = max_difference(result, logits, positions);
  RecordProperty("max_logit_difference", std::to_string(worst));
  std::printf("%s: max |dlogit| %.3g (bound 1e-3)\n", GetParam(), worst);
  EXPECT_LE(worst, 1e-3);
}

class RandomModelGreedy : public testing::TestWithParam<const char*> {};

TEST_P(RandomModelGreedy, tokens_agree_in_fp32) {
  const std::filesystem::path model = tests_dir() / "models" / GetParam();
  const GoldenFolder golden(model / "golden");
  const auto expected = golden.index().at("greedy").get<std::vector<int32_t>>();
  ASSERT_FALSE(expected.empty());
  const std::vector<int32_t> ids = golden.ids("ids").data;
  deployment::Deployment deployment(deployment_options(model, kFp32, ids.size() + expected.size()));
  coordinator::GenerateRequest request;
  request.prompt = ids;
  request.max_tokens = static_cast<int64_t>(expected.size());
  request.vocab_limit = static_cast<int32_t>(deployment.config().vocab_size);
  model::Sampler sampler;
  auto generated = coordinator::generate(deployment.engine(), deployment.clock(), request, sampler,
                                         [](int32_t) {});
  ASSERT_TRUE(generated) << generated.error().message;
  EXPECT_EQ(generated->tokens, expected);
}

// ---- Dense random models: grouped-query attention (tests/golden/make_dense.py) ------------------

class DenseModel : public testing::TestWithParam<const char*> {
 protected:
  std::filesystem::path model() const { return tests_dir() / "models" / GetParam(); }
  const GoldenFolder golden_{tests_dir() / "models" / GetParam() / "golden"};
};

// Logits of these models are below 14; independent FP32 codes differ by less than 1e-4 in them.
TEST_P(DenseModel, layers_and_logits_agree_in_fp32) {
  const std::vector<int32_t> ids = golden_.ids("ids").data;
  deployment::Deployment deployment(deployment_options(model(), kFp32, ids.size()));
  EXPECT_EQ(deployment.cluster(), nullptr);  // there is nothing for nodes to do
  const SequenceResult result = evaluate_sequence(deployment, ids);
  const GoldenArray<float> logits = golden_.f32("logits");
  const std::vector<int32_t> positions = golden_positions(golden_, logits.shape[0]);
  expect_hidden_near(result, golden_.f32("hidden"), positions);
  const double worst = max_difference(result, logits, positions);
  RecordProperty("max_logit_difference", std::to_string(worst));
  std::printf("%s: max |dlogit| %.3g (bound 1e-4)\n", GetParam(), worst);
  EXPECT_LE(worst, 1e-4);
}

// transformers computes them in FP32: 1 or 2 roundings of a power, a division and a mixture.
TEST_P(DenseModel, rope_frequencies_agree) {
  const model::ModelConfig config = model::load_config(model());
  const std::vector<double> frequencies = config.rope_inv_freq();
  const GoldenArray<float> expected = golden_.f32("inv_freq");
  ASSERT_EQ(frequencies.size(), expected.data.size());
  for (size_t i = 0; i < frequencies.size(); ++i) {
    EXPECT_NEAR(frequencies[i] / expected.data[i], 1, 1e-6) << i;
  }
  EXPECT_NEAR(config.rope_magnitude(), golden_.index().at("rope_magnitude"), 1e-9);
}

std::string test_name(const testing::TestParamInfo<const char*>& info) {
  std::string name = info.param;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}
INSTANTIATE_TEST_SUITE_P(Golden, DenseModel,
                         testing::Values("rand-qwen2", "rand-llama3", "rand-llama-linear",
                                         "rand-qwen2-yarn"),
                         test_name);
INSTANTIATE_TEST_SUITE_P(Golden, RandomModel,
                         testing::Values("rand-ragged", "rand-v2", "rand-long"), test_name);
// The data holds no greedy tokens for rand-long.
INSTANTIATE_TEST_SUITE_P(Golden, RandomModelGreedy, testing::Values("rand-ragged", "rand-v2"),
                         test_name);

// ---- The trained model, BF16 and FP8 weights ----------------------------------------------------

class TinyModel : public testing::TestWithParam<const char*> {
 protected:
  std::string weights() const { return GetParam(); }
  std::filesystem::path model() const { return tests_dir() / "models" / ("tiny-" + weights()); }
  const GoldenFolder golden_{tests_dir() / "golden"};
};

TEST_P(TinyModel, layers_routes_and_logits_agree_in_fp32) {
  deployment::Deployment deployment(deployment_options(model(), kFp32, 64));
  for (const auto& prompt : golden_.index().at("prompts")) {
    const std::string domain = prompt.at("domain");
    SCOPED_TRACE(domain);
    const auto ids = prompt.at("ids").get<std::vector<int32_t>>();
    const SequenceResult result = evaluate_sequence(deployment, ids);
    const std::string at = weights() + "/" + domain;
    const GoldenArray<float> logits = golden_.f32(at + ".logits");
    const std::vector<int32_t> positions = golden_positions(golden_, logits.shape[0]);
    expect_hidden_near(result, golden_.f32(at + ".hidden"), positions);
    expect_routes_equal(result, golden_.i32(at + ".experts"), golden_.f32(at + ".weights"),
                        golden_.f32(at + ".route_margin"), positions, 1, kFp32);
    const double worst = max_difference(result, logits, positions);
    std::printf("tiny-%s %s: max |dlogit| %.3g (bound 1e-3)\n", GetParam(), domain.c_str(), worst);
    EXPECT_LE(worst, 1e-3);
  }
}

// Its entries over a stretch of prompt in one pass, then one by one as decoding makes them.
TEST_P(TinyModel, the_next_token_layer_agrees_in_fp32) {
  deployment::DeploymentOptions options = deployment_options(model(), kFp32, 128);
  options.next_token_layer = deployment::NextTokenLayer::kRequired;
  deployment::Deployment deployment(options);
  coordinator::Engine& engine = deployment.engine();
  class LayerRecorder final : public coordinator::StepObserver {
   public:
    void on_routes(int64_t, std::span<const int32_t>, std::span<const float>) override {}
    void on_hidden(int64_t, std::span<const float> rows) override {
      hidden.insert(hidden.end(), rows.begin(), rows.end());
    }
    void on_draft_logits(std::span<const float> row) override {
      logits.emplace_back(row.begin(), row.end());
    }
    std::vector<float> hidden;
    std::vector<std::vector<float>> logits;
  };
  for (const auto& prompt : golden_.index().at("prompts")) {
    const std::string at = weights() + "/" + prompt.at("domain").get<std::string>();
    SCOPED_TRACE(at);
    const auto ids = prompt.at("ids").get<std::vector<int32_t>>();
    const GoldenArray<float> hidden = golden_.f32(at + ".mtp_hidden");
    const GoldenArray<float> logits = golden_.f32(at + ".mtp_logits");
    const auto rows = static_cast<size_t>(hidden.shape[0]), last = logits.data.size() / 3328;
    ASSERT_EQ(rows, ids.size() - 1);
    LayerRecorder recorder;
    coordinator::Sequence sequence;
    for (size_t begin = 0, end = rows - last; end <= rows; begin = end++) {
      const std::span<const int32_t> tokens(ids);
      const coordinator::SequenceRows step{&sequence, tokens.subspan(begin, end - begin),
                                           coordinator::WantLogits::kNone, 0};
      std::optional<Error> error;
      ASSERT_TRUE(engine.step(std::span(&step, 1), {}, std::span(&error, 1)).ok());
      ASSERT_FALSE(error);
      coordinator::DraftWork work{&sequence, tokens.first(end + 1), 1, {}};
      ASSERT_TRUE(engine.draft(std::span(&work, 1), &recorder).ok());
      ASSERT_EQ(work.draft.size(), 1u);
      const std::vector<float>& of_last = recorder.logits.back();
      EXPECT_EQ(work.draft[0], std::max_element(of_last.begin(), of_last.end()) - of_last.begin());
    }
    ASSERT_EQ(recorder.hidden.size(), hidden.data.size());
    for (size_t i = 0; i < hidden.data.size(); ++i) {
      ASSERT_NEAR(recorder.hidden[i], hidden.data[i], 2e-3 + 1e-5 * std::fabs(hidden.data[i]))
          << "position " << i / 256 << ", column " << i % 256;
    }
    double worst = 0;
    ASSERT_EQ(recorder.logits.size(), last + 1);
    for (size_t row = 0; row < last; ++row) {
      for (size_t i = 0; i < 3328; ++i) {
        const float expected = logits.row(static_cast<int64_t>(row))[i];
        worst = std::max(worst, std::fabs(double{recorder.logits[row + 1][i]} - expected));
      }
    }
    std::printf("%s: next-token layer, max |dlogit| %.3g (bound 1e-3)\n", at.c_str(), worst);
    EXPECT_LE(worst, 1e-3);

    // What it foretells of the greedy text: of its second token on.
    const auto& greedy = prompt.at("greedy").at(weights());
    std::vector<int32_t> text = ids;
    for (const auto& id : greedy.at("ids")) text.push_back(id.get<int32_t>());
    int64_t right = 0, drafts = 0;
    for (size_t at_token = ids.size() - 1; at_token + 2 < text.size(); ++at_token, ++drafts) {
      const std::span<const int32_t> tokens(text);
      const coordinator::SequenceRows step{&sequence, tokens.subspan(at_token, 1),
                                           coordinator::WantLogits::kNone, 0};
      std::optional<Error> error;
      ASSERT_TRUE(engine.step(std::span(&step, 1), {}, std::span(&error, 1)).ok());
      coordinator::DraftWork work{&sequence, tokens.first(at_token + 2), 1, {}};
      ASSERT_TRUE(engine.draft(std::span(&work, 1)).ok());
      ASSERT_EQ(work.draft.size(), 1u);
      right += work.draft[0] == text[at_token + 2];
    }
    engine.release(sequence);
    EXPECT_EQ(drafts, greedy.at("mtp_drafts"));
    EXPECT_EQ(right, greedy.at("mtp_draft_hits"));
  }
}

TEST_P(TinyModel, greedy_continuations_and_chat_replies_agree_in_fp32) {
  deployment::Deployment deployment(deployment_options(model(), kFp32, 512));
  model::Sampler sampler;
  coordinator::GenerateRequest request;
  request.vocab_limit = static_cast<int32_t>(deployment.config().vocab_size);
  for (const auto& prompt : golden_.index().at("prompts")) {
    request.prompt = prompt.at("ids").get<std::vector<int32_t>>();
    const auto expected = prompt.at("greedy").at(weights()).at("ids").get<std::vector<int32_t>>();
    request.max_tokens = static_cast<int64_t>(expected.size());
    auto generated = coordinator::generate(deployment.engine(), deployment.clock(), request,
                                           sampler, [](int32_t) {});
    ASSERT_TRUE(generated) << generated.error().message;
    EXPECT_EQ(generated->tokens, expected) << prompt.at("domain");
  }
  request.stop_ids = deployment.config().eos_token_ids;
  for (const auto& chat : golden_.index().at("chat")) {
    request.prompt = chat.at("prompt_ids").get<std::vector<int32_t>>();
    const auto expected = chat.at("reply").at(weights()).at("ids").get<std::vector<int32_t>>();
    request.max_tokens = static_cast<int64_t>(expected.size());
    auto generated = coordinator::generate(deployment.engine(), deployment.clock(), request,
                                           sampler, [](int32_t) {});
    ASSERT_TRUE(generated) << generated.error().message;
    EXPECT_EQ(generated->tokens, expected) << chat.at("domain");
  }
}

TEST_P(TinyModel, perplexity_agrees_in_both_profiles) {
  for (const Profile profile : {kFp32, kBf16}) {
    deployment::Deployment deployment(deployment_options(model(), profile, 2048));
    const bool fp32 = profile.type == kernels::RowType::kF32;
    for (const std::string domain : {"moby", "kjv", "sotu"}) {
      const GoldenArray<int32_t> ids = golden_.ids("ppl/" + domain + ".ids");
      std::vector<std::vector<int32_t>> rows;
      for (int64_t row = 0; row < ids.shape[0]; ++row) {
        rows.emplace_back(ids.row(row), ids.row(row) + ids.row_elements());
      }
      auto result = coordinator::evaluate(deployment.engine(), rows, {}, nullptr);
      ASSERT_TRUE(result) << result.error().message;
      const nlohmann::json& expected = golden_.index().at("ppl").at(domain).at(weights());
      const double nll = expected.at("nll_mean");
      EXPECT_EQ(result->tokens, golden_.index().at("ppl").at(domain).at("predicted_tokens"));
      std::printf("tiny-%s %s %s: nll %.6f, reference %.6f, difference %+.2g (bound %.2g)\n",
                  GetParam(), domain.c_str(), fp32 ? "f32" : "bf16", result->nll, nll,
                  result->nll - nll, fp32 ? 1e-4 : 0.02);
      EXPECT_NEAR(result->nll, nll, fp32 ? 1e-4 : 0.02);
    }
  }
}

// Rows and cache rounded to BF16: bounds of 3x the figures measured for BF16 activations.
TEST_P(TinyModel, default_profile_stays_within_the_bounds_of_bf16_activations) {
  const double mean_abs_bound = 3 * (weights() == "bf16" ? 0.017 : 0.016);
  const double kl_bound = 3 * (weights() == "bf16" ? 0.0008 : 0.0007);
  deployment::Deployment deployment(deployment_options(model(), kBf16, 64));
  for (const auto& prompt : golden_.index().at("prompts")) {
    const std::string domain = prompt.at("domain");
    SCOPED_TRACE(domain);
    const SequenceResult result =
        evaluate_sequence(deployment, prompt.at("ids").get<std::vector<int32_t>>());
    const std::string at = weights() + "/" + domain;
    const GoldenArray<float> logits = golden_.f32(at + ".logits");
    const std::vector<int32_t> positions = golden_positions(golden_, logits.shape[0]);
    expect_routes_equal(result, golden_.i32(at + ".experts"), golden_.f32(at + ".weights"),
                        golden_.f32(at + ".route_margin"), positions, 1, kBf16);
    double sum_abs = 0, sum_kl = 0;
    for (int64_t row = 0; row < logits.shape[0]; ++row) {
      const std::span<const float> reference(logits.row(row), logits.row_elements());
      const std::vector<float>& ours = result.logits[row];
      const double lse_reference = log_sum_exp(reference), lse_ours = log_sum_exp(ours);
      for (size_t i = 0; i < reference.size(); ++i) {
        sum_abs += std::fabs(double{ours[i]} - reference[i]);
        const double log_p = reference[i] - lse_reference;
        sum_kl += std::exp(log_p) * (log_p - (ours[i] - lse_ours));
      }
    }
    const double mean_abs = sum_abs / static_cast<double>(logits.data.size());
    const double mean_kl = sum_kl / static_cast<double>(logits.shape[0]);
    std::printf("tiny-%s %s bf16: mean |dlogit| %.4f (bound %.4f), mean KL %.5f (bound %.5f)\n",
                GetParam(), domain.c_str(), mean_abs, mean_abs_bound, mean_kl, kl_bound);
    EXPECT_LE(mean_abs, mean_abs_bound);
    EXPECT_LE(mean_kl, kl_bound);
  }
}

INSTANTIATE_TEST_SUITE_P(Golden, TinyModel, testing::Values("bf16", "fp8"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace atl
