// The shapes of `atoll synth` against the published ones, and its tokenizer.
#include "cli/synth.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "base/result.h"
#include "model/synthetic.h"
#include "storage/checkpoint/safetensors_writer.h"
#include "tests/support/temp_dir.h"
#include "text/tokenizer.h"

namespace atl::cli {
namespace {

using model::ModelConfig;
using ::testing::HasSubstr;

// Parameters of all tensors but scales.
double parameters(const ModelConfig& config) {
  model::SyntheticSpec spec;
  spec.config = config;
  spec.format = kernels::WeightFormat::kBf16;
  double count = 0;
  for (const storage::TensorSpec& tensor : model::synthetic_tensors(spec)) {
    double elements = 1;
    for (const int64_t size : tensor.shape) elements *= static_cast<double>(size);
    count += elements;
  }
  return count;
}

// The published totals: 671 B and 15.7 B (DeepSeek's model cards); Kimi-K2's card says 1 T, and its
// published shapes give 1.03 T.
TEST(SynthConfig, has_the_published_number_of_parameters) {
  EXPECT_NEAR(parameters(synth_config("deepseek-v3", {})), 671e9, 0.5e9);
  EXPECT_NEAR(parameters(synth_config("deepseek-v2-lite", {})), 15.7e9, 0.05e9);
  EXPECT_NEAR(parameters(synth_config("kimi-k2", {})), 1.03e12, 0.015e12);
}

// Source: the table of docs/model.md 1.
TEST(SynthConfig, has_the_published_rope_and_router) {
  const ModelConfig v3 = synth_config("deepseek-v3", {});
  EXPECT_EQ(v3.rope_theta, 10000);
  EXPECT_EQ(v3.rope_scaling.factor, 40);
  EXPECT_EQ(v3.rope_scaling.beta_fast, 32);
  EXPECT_EQ(v3.rope_scaling.mscale, 1);
  EXPECT_EQ(v3.max_position_embeddings, 163840);
  EXPECT_EQ(v3.routed_scaling_factor, 2.5);
  const ModelConfig k2 = synth_config("kimi-k2", {});
  EXPECT_EQ(k2.rope_theta, 50000);
  EXPECT_EQ(k2.rope_scaling.factor, 32);
  EXPECT_EQ(k2.rope_scaling.beta_fast, 1);
  EXPECT_EQ(k2.rope_scaling.mscale_all_dim, 1);
  EXPECT_EQ(k2.max_position_embeddings, 131072);
  EXPECT_EQ(k2.n_group, 1);
  EXPECT_EQ(k2.routed_scaling_factor, 2.827);
  const ModelConfig lite = synth_config("deepseek-v2-lite", {});
  EXPECT_EQ(lite.rope_scaling.mscale, 0.707);
  EXPECT_EQ(lite.rope_scaling.mscale_all_dim, 0.707);
  EXPECT_EQ(lite.topk_method, kernels::TopkMethod::kGreedy);
  EXPECT_EQ(lite.scoring_func, kernels::ScoringFunc::kSoftmax);
  EXPECT_FALSE(lite.norm_topk_prob);
  EXPECT_EQ(lite.routed_scaling_factor, 1);
}

TEST(SynthConfig, is_what_the_loader_reads_back) {
  const char* kModels[] = {"deepseek-v3", "deepseek-v2-lite", "kimi-k2"};
  for (const char* like : kModels) {
    const test::TempDir dir;
    model::SyntheticSpec spec;
    spec.config = synth_config(like, {});
    model::write_config(dir.path(), spec);
    const ModelConfig read = model::load_config(dir.path());
    EXPECT_EQ(read.model_type, spec.config.model_type);
    EXPECT_EQ(read.rope_theta, spec.config.rope_theta) << like;
    EXPECT_EQ(read.rope_inv_freq(), spec.config.rope_inv_freq()) << like;
    EXPECT_EQ(read.softmax_scale(), spec.config.softmax_scale()) << like;
    EXPECT_EQ(read.num_experts_per_tok, spec.config.num_experts_per_tok) << like;
  }
}

TEST(SynthConfig, fewer_experts_shrink_groups_and_choices) {
  ModelConfig config = synth_config("deepseek-v3", {.n_routed_experts = 8});
  EXPECT_EQ(config.n_group, 4);
  EXPECT_EQ(config.topk_group, 2);
  EXPECT_EQ(config.num_experts_per_tok, 4);
  config = synth_config("deepseek-v3", {.n_routed_experts = 64});
  EXPECT_EQ(config.n_group, 8);
  EXPECT_EQ(config.num_experts_per_tok, 8);
  config = synth_config("deepseek-v2-lite", {.n_routed_experts = 4});
  EXPECT_EQ(config.num_experts_per_tok, 4);
}

TEST(SynthConfig, a_slice_keeps_a_layer_with_experts) {
  EXPECT_EQ(synth_config("deepseek-v3", {.num_hidden_layers = 2}).first_k_dense_replace, 1);
  EXPECT_EQ(synth_config("deepseek-v3", {.num_hidden_layers = 9}).first_k_dense_replace, 3);
  EXPECT_EQ(synth_config("deepseek-v3", {.num_hidden_layers = 2, .first_k_dense_replace = 2})
                .first_k_dense_replace,
            2);
  EXPECT_THROW(synth_config("deepseek-v3", {.num_hidden_layers = 2, .first_k_dense_replace = 3}),
               LoadError);
}

TEST(SynthConfig, dense_layers_keep_their_ratio_to_an_expert) {
  const ModelConfig config = synth_config("deepseek-v3", {.moe_intermediate_size = 512});
  EXPECT_EQ(config.moe_intermediate_size, 512);
  EXPECT_EQ(config.intermediate_size, 18432 / 4);
}

TEST(ByteTokenizer, has_a_token_for_every_byte) {
  const test::TempDir dir;
  write_byte_tokenizer(dir.path());
  const text::Tokenizer tokenizer = text::Tokenizer::load(dir.path());
  EXPECT_EQ(tokenizer.id_end(), kByteTokenizerIdEnd);
  EXPECT_EQ(tokenizer.vocab_size(), kByteTokenizerIdEnd);
  EXPECT_EQ(tokenizer.bos_id(), kByteTokenizerBos);
  EXPECT_EQ(tokenizer.eos_id(), kByteTokenizerEos);
  for (int byte = 0; byte < 256; ++byte) {
    EXPECT_EQ(tokenizer.token_bytes(3 + byte), std::string(1, static_cast<char>(byte)));
  }
  const std::string text = "ab 12345 \n\xe4\xbd\xa0\xf0\x9f\x90\xb3!";
  const auto ids = tokenizer.encode(text);
  ASSERT_TRUE(ids);
  EXPECT_EQ(ids->size(), text.size());
  EXPECT_EQ(tokenizer.decode(*ids, text::SpecialTokens::kKeep), text);
}

}  // namespace
}  // namespace atl::cli
