#include "model/config.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "base/result.h"
#include "tests/support/temp_dir.h"

namespace atl::model {
namespace {

using nlohmann::json;
using test::TempDir;
using test::write_file;

// DeepSeek-V3 as published (docs/model.md 1).
json v3() {
  return json::parse(R"({
    "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3",
    "vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432,
    "moe_intermediate_size": 2048, "num_hidden_layers": 61, "first_k_dense_replace": 3,
    "moe_layer_freq": 1, "num_attention_heads": 128, "num_key_value_heads": 128,
    "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
    "v_head_dim": 128, "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8,
    "n_group": 8, "topk_group": 4, "topk_method": "noaux_tc", "scoring_func": "sigmoid",
    "norm_topk_prob": true, "routed_scaling_factor": 2.5, "rms_norm_eps": 1e-06,
    "rope_theta": 10000, "max_position_embeddings": 163840, "num_nextn_predict_layers": 1,
    "rope_scaling": {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096,
      "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0},
    "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
      "weight_block_size": [128, 128]},
    "hidden_act": "silu", "attention_bias": false, "attention_dropout": 0.0,
    "tie_word_embeddings": false, "torch_dtype": "bfloat16", "bos_token_id": 0, "eos_token_id": 1,
    "aux_loss_alpha": 0.001, "seq_aux": true, "initializer_range": 0.02, "ep_size": 1,
    "pretraining_tp": 1, "use_cache": true, "transformers_version": "4.33.1",
    "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config"}})");
}

json v2_lite() {
  json j = v3();
  j.merge_patch(json::parse(R"({
    "architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2", "vocab_size": 102400,
    "hidden_size": 2048, "intermediate_size": 10944, "moe_intermediate_size": 1408,
    "num_hidden_layers": 27, "first_k_dense_replace": 1, "num_attention_heads": 16,
    "num_key_value_heads": 16, "n_routed_experts": 64, "n_shared_experts": 2,
    "num_experts_per_tok": 6, "n_group": 1, "topk_group": 1, "topk_method": "greedy",
    "scoring_func": "softmax", "norm_topk_prob": false, "routed_scaling_factor": 1.0,
    "num_nextn_predict_layers": null, "quantization_config": null, "bos_token_id": 100000,
    "eos_token_id": 100001, "rope_scaling": {"mscale": 0.707, "mscale_all_dim": 0.707}})"));
  j["q_lora_rank"] = nullptr;
  return j;
}

json kimi_k2() {
  json j = v3();
  j.merge_patch(json::parse(R"({
    "model_type": "kimi_k2", "vocab_size": 163840, "num_attention_heads": 64,
    "num_key_value_heads": 64, "first_k_dense_replace": 1, "n_routed_experts": 384, "n_group": 1,
    "topk_group": 1, "routed_scaling_factor": 2.827, "rope_theta": 50000.0,
    "max_position_embeddings": 131072, "num_nextn_predict_layers": 0, "bos_token_id": 163584,
    "eos_token_id": 163585, "rope_scaling": {"factor": 32.0, "beta_fast": 1.0, "beta_slow": 1.0}})"));
  return j;
}

ModelConfig load(const json& config, const std::string& generation_config = "") {
  TempDir dir;
  write_file(dir / "config.json", config.dump());
  if (!generation_config.empty()) write_file(dir / "generation_config.json", generation_config);
  return load_config(dir.path());
}

std::string load_error(const std::string& config, const std::string& generation_config = "") {
  TempDir dir;
  write_file(dir / "config.json", config);
  if (!generation_config.empty()) write_file(dir / "generation_config.json", generation_config);
  return test::message_of<LoadError>(dir.path(), [&] { (void)load_config(dir.path()); });
}

TEST(Config, reads_v3) {
  const ModelConfig c = load(v3());
  EXPECT_EQ(c.architecture, Architecture::kDeepseekV3);
  EXPECT_EQ(c.model_type, "deepseek_v3");
  EXPECT_EQ(c.vocab_size, 129280);
  EXPECT_EQ(c.hidden_size, 7168);
  EXPECT_EQ(c.intermediate_size, 18432);
  EXPECT_EQ(c.moe_intermediate_size, 2048);
  EXPECT_EQ(c.num_hidden_layers, 61);
  EXPECT_EQ(c.q_lora_rank, 1536);
  EXPECT_EQ(c.kv_lora_rank, 512);
  EXPECT_EQ(c.qk_head_dim(), 192);
  EXPECT_EQ(c.v_head_dim, 128);
  EXPECT_FALSE(c.is_moe_layer(2));
  EXPECT_TRUE(c.is_moe_layer(3));
  EXPECT_TRUE(c.has_correction_bias());
  EXPECT_TRUE(c.fp8);
  EXPECT_EQ(c.num_nextn_predict_layers, 1);
  EXPECT_EQ(c.max_position_embeddings, 163840);
  EXPECT_EQ(c.bos_token_id, 0);
  EXPECT_THAT(c.eos_token_ids, testing::ElementsAre(1));
  const kernels::RouterShape router = c.router_shape();
  EXPECT_EQ(router.n_routed_experts, 256);
  EXPECT_EQ(router.num_experts_per_tok, 8);
  EXPECT_EQ(router.n_group, 8);
  EXPECT_EQ(router.topk_group, 4);
  EXPECT_EQ(router.routed_scaling_factor, 2.5f);
  EXPECT_TRUE(router.norm_topk_prob);
  EXPECT_EQ(router.scoring_func, kernels::ScoringFunc::kSigmoid);
  EXPECT_EQ(router.topk_method, kernels::TopkMethod::kNoauxTc);
}

TEST(Config, reads_v2_lite_and_k2) {
  const ModelConfig lite = load(v2_lite());
  EXPECT_EQ(lite.architecture, Architecture::kDeepseekV2);
  EXPECT_EQ(lite.q_lora_rank, 0);
  EXPECT_FALSE(lite.fp8);
  EXPECT_FALSE(lite.has_correction_bias());
  EXPECT_EQ(lite.topk_method, kernels::TopkMethod::kGreedy);
  EXPECT_EQ(lite.num_nextn_predict_layers, 0);
  EXPECT_EQ(lite.bos_token_id, 100000);
  const ModelConfig k2 = load(kimi_k2());
  EXPECT_EQ(k2.architecture, Architecture::kKimiK2);
  EXPECT_EQ(k2.rope_scaling.beta_fast, 1);
  EXPECT_EQ(k2.rope_theta, 50000);
  EXPECT_EQ(k2.n_routed_experts, 384);
}

TEST(Config, takes_defaults_and_both_spellings_of_keys) {
  json j = v3();
  for (const char* key :
       {"architectures", "moe_layer_freq", "topk_method", "scoring_func", "norm_topk_prob",
        "routed_scaling_factor", "rms_norm_eps", "num_key_value_heads", "num_nextn_predict_layers",
        "n_shared_experts", "hidden_act", "attention_bias", "bos_token_id", "eos_token_id"}) {
    j.erase(key);
  }
  const ModelConfig c = load(j);
  EXPECT_EQ(c.topk_method, kernels::TopkMethod::kNoauxTc);
  EXPECT_EQ(c.scoring_func, kernels::ScoringFunc::kSigmoid);
  EXPECT_TRUE(c.norm_topk_prob);
  EXPECT_EQ(c.routed_scaling_factor, 1.0);
  EXPECT_EQ(c.n_shared_experts, 0);
  EXPECT_FALSE(c.bos_token_id.has_value());
  EXPECT_TRUE(c.eos_token_ids.empty());

  json v2 = v2_lite();
  for (const char* key :
       {"model_type", "topk_method", "scoring_func", "norm_topk_prob", "n_group", "topk_group"}) {
    v2.erase(key);
  }
  const ModelConfig lite = load(v2);  // the class name alone says what it is
  EXPECT_EQ(lite.model_type, "deepseek_v2");
  EXPECT_EQ(lite.scoring_func, kernels::ScoringFunc::kSoftmax);
  EXPECT_EQ(lite.topk_method, kernels::TopkMethod::kGreedy);
  EXPECT_FALSE(lite.norm_topk_prob);

  json newer = v3();  // rope_parameters, rope_type, dtype, whole numbers as floats
  newer["rope_parameters"] = newer["rope_scaling"];
  newer["rope_parameters"]["rope_type"] = "yarn";
  newer["rope_parameters"]["rope_theta"] = 20000;
  newer["rope_parameters"].erase("type");
  newer.erase("rope_scaling");
  newer.erase("rope_theta");
  newer.erase("torch_dtype");
  newer["dtype"] = "bfloat16";
  newer["hidden_size"] = 7168.0;
  const ModelConfig n = load(newer);
  EXPECT_EQ(n.rope_theta, 20000);
  EXPECT_EQ(n.rope_scaling.factor, 40);
  EXPECT_EQ(n.hidden_size, 7168);
  newer["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", 5000}};
  EXPECT_EQ(load(newer).rope_scaling.factor, 1);
  EXPECT_EQ(load(newer).rope_theta, 5000);
}

TEST(Config, takes_eos_from_generation_config_first) {
  EXPECT_THAT(load(v3(), R"({"eos_token_id":[5,7]})").eos_token_ids, testing::ElementsAre(5, 7));
  EXPECT_THAT(load(v3(), R"({"eos_token_id":9})").eos_token_ids, testing::ElementsAre(9));
  EXPECT_THAT(load(v3(), R"({"temperature":0.6})").eos_token_ids, testing::ElementsAre(1));
  json j = v3();
  j["eos_token_id"] = {3, 4};
  EXPECT_THAT(load(j).eos_token_ids, testing::ElementsAre(3, 4));
  EXPECT_EQ(load(v3(), R"({"bos_token_id":2})").bos_token_id, 2);
}

// Source of the values: docs/model.md 3.3.
TEST(Config, softmax_scale_has_the_published_values) {
  EXPECT_NEAR(load(v3()).softmax_scale(), 0.1352337789, 5e-11);
  EXPECT_NEAR(load(v2_lite()).softmax_scale(), 0.1147213868, 5e-11);
  EXPECT_NEAR(load(kimi_k2()).softmax_scale(), 0.1308608000, 5e-11);
  json k2_256k = kimi_k2();
  k2_256k["rope_scaling"]["factor"] = 64;
  EXPECT_NEAR(load(k2_256k).softmax_scale(), 0.1446796258, 5e-11);
  json plain = v3();
  plain.erase("rope_scaling");
  EXPECT_NEAR(load(plain).softmax_scale(), 0.0721687836, 5e-11);
  for (const json& j : {v3(), v2_lite(), kimi_k2(), plain}) {
    EXPECT_EQ(load(j).rope_magnitude(), 1.0);
  }
  json uneven = v3();
  uneven["rope_scaling"]["mscale"] = 2.0;
  EXPECT_NEAR(load(uneven).rope_magnitude(), (0.2 * std::log(40) + 1) / (0.1 * std::log(40) + 1),
              1e-15);
}

// Source of the values: docs/model.md 3.4, nine digits.
TEST(Config, rope_frequencies_have_the_published_values) {
  const auto expect = [](const std::vector<double>& freq, size_t i, double value) {
    EXPECT_NEAR(freq[i] / value, 1.0, 5e-9) << i;
  };
  const std::vector<double> v3_freq = load(v3()).rope_inv_freq();
  ASSERT_EQ(v3_freq.size(), 32u);
  EXPECT_EQ(v3_freq[0], 1.0);
  const std::vector<double> from_10 = {
      5.62341325e-02, 3.90069266e-02, 2.68793601e-02, 1.83781462e-02, 1.24479559e-02,
      8.33450895e-03, 5.50000000e-03, 3.56199749e-03, 2.24936530e-03, 1.37051364e-03,
      7.90569415e-04, 4.14990398e-04, 1.77827941e-04, 3.33380358e-05, 2.50000000e-05};
  expect(v3_freq, 1, 7.49894209e-01);
  for (size_t i = 0; i < from_10.size(); ++i) expect(v3_freq, 10 + i, from_10[i]);
  expect(v3_freq, 31, 3.33380358e-06);
  const std::vector<double> lite_freq = load(v2_lite()).rope_inv_freq();
  EXPECT_EQ(lite_freq, v3_freq);  // mscale does not touch the frequencies

  const std::vector<double> k2_freq = load(kimi_k2()).rope_inv_freq();
  expect(k2_freq, 1, std::pow(50000.0, -1.0 / 32));
  expect(k2_freq, 19, 1.62175991e-03);
  expect(k2_freq, 20, 3.61404677e-05);
  expect(k2_freq, 31, 8.76441291e-07);

  json plain = v3();
  plain.erase("rope_scaling");
  expect(load(plain).rope_inv_freq(), 31, std::pow(10000.0, -62.0 / 64));
}

TEST(ModelConfig, takes_the_blocks_of_compressed_tensors_as_fp8) {
  json j = v3();
  j["quantization_config"] = json::parse(R"({"quant_method": "compressed-tensors",
      "format": "float-quantized", "kv_cache_scheme": null, "config_groups": {"group_0": {
      "targets": ["Linear"], "weights": {"num_bits": 8, "type": "float", "strategy": "block",
      "block_structure": [128, 128], "symmetric": true}}}})");
  EXPECT_TRUE(load(j).fp8);
}

// One change to V3's config and what the user is told; "~" as value erases the key.
struct BadConfig {
  const char* name;
  const char* patch;
  const char* message;
};

const BadConfig kBadConfigs[] = {
    {"v32", R"({"model_type":"deepseek_v32"})",
     "model_type: expected deepseek_v2, deepseek_v3, kimi_k2, qwen2 or llama, found "
     "\"deepseek_v32\""
     "; supported are DeepSeek-V2, V2-Lite, V2.5, V3, V3.1 and R1 and its distilled models "
     "(Qwen2, Llama 3), and Kimi K2"},
    {"qwen3", R"({"model_type":"qwen3","architectures":["Qwen3ForCausalLM"]})",
     "model_type: expected deepseek_v2, deepseek_v3, kimi_k2, qwen2 or llama, found \"qwen3\""
     "; supported are DeepSeek-V2, V2-Lite, V2.5, V3, V3.1 and R1 and its distilled models "
     "(Qwen2, Llama 3), and Kimi K2"},
    {"v4", R"({"model_type":"deepseek_v4","architectures":null})",
     "model_type: expected deepseek_v2, deepseek_v3, kimi_k2, qwen2 or llama, found \"deepseek_v4\""
     "; supported are DeepSeek-V2, V2-Lite, V2.5, V3, V3.1 and R1 and its distilled models "
     "(Qwen2, Llama 3), and Kimi K2"},
    {"no_type", R"({"model_type":null,"architectures":null})",
     "model_type: expected deepseek_v2, deepseek_v3, kimi_k2, qwen2 or llama, found nothing"
     "; supported are DeepSeek-V2, V2-Lite, V2.5, V3, V3.1 and R1 and its distilled models "
     "(Qwen2, Llama 3), and Kimi K2"},
    {"type_is_number", R"({"model_type":3})", "model_type: expected a string, found 3"},
    {"other_class", R"({"architectures":["DeepseekV32ForCausalLM"]})",
     "architectures: expected the class of model_type deepseek_v3, found "
     "[\"DeepseekV32ForCausalLM\"]"
     "; supported are DeepSeek-V2, V2-Lite, V2.5, V3, V3.1 and R1 and its distilled models "
     "(Qwen2, Llama 3), and Kimi K2"},
    {"class_alone", R"({"model_type":null,"architectures":["Qwen2MoeForCausalLM"]})",
     "architectures: expected the class of a known model_type, found [\"Qwen2MoeForCausalLM\"]"
     "; supported are DeepSeek-V2, V2-Lite, V2.5, V3, V3.1 and R1 and its distilled models "
     "(Qwen2, Llama 3), and Kimi K2"},
    {"class_against_type", R"({"architectures":["DeepseekV2ForCausalLM"]})",
     "architectures: expected the class of model_type deepseek_v3, found "
     "[\"DeepseekV2ForCausalLM\"]"
     "; supported are DeepSeek-V2, V2-Lite, V2.5, V3, V3.1 and R1 and its distilled models "
     "(Qwen2, Llama 3), and Kimi K2"},
    {"vocab_missing", R"({"vocab_size":null})", "vocab_size is missing"},
    {"hidden_zero", R"({"hidden_size":0})",
     "hidden_size: expected a whole number from 1 to 1048576, found 0"},
    {"hidden_negative", R"({"hidden_size":-5})",
     "hidden_size: expected a whole number from 1 to 1048576, found -5"},
    {"hidden_fraction", R"({"hidden_size":7168.5})",
     "hidden_size: expected a whole number from 1 to 1048576, found 7168.5"},
    {"hidden_huge", R"({"hidden_size":1e300})",
     "hidden_size: expected a whole number from 1 to 1048576, found 1e+300"},
    {"hidden_text", R"({"hidden_size":"7168"})",
     "hidden_size: expected a whole number from 1 to 1048576, found \"7168\""},
    {"hidden_true", R"({"hidden_size":true})",
     "hidden_size: expected a whole number from 1 to 1048576, found true"},
    {"layers_huge", R"({"num_hidden_layers":100000})",
     "num_hidden_layers: expected a whole number from 1 to 4096, found 100000"},
    {"dense_beyond_layers", R"({"first_k_dense_replace":62})",
     "first_k_dense_replace: expected a whole number from 0 to 61, found 62"},
    {"freq_zero", R"({"moe_layer_freq":0})",
     "moe_layer_freq: expected a whole number from 1 to 4096, found 0"},
    {"grouped_heads", R"({"num_key_value_heads":8})",
     "num_key_value_heads: expected num_attention_heads (128): MLA has no grouped heads, found 8"},
    {"odd_rope", R"({"qk_rope_head_dim":63})",
     "qk_rope_head_dim: expected an even number, found 63"},
    {"experts_missing", R"({"n_routed_experts":null})", "n_routed_experts is missing"},
    {"topk_beyond_experts", R"({"num_experts_per_tok":257})",
     "num_experts_per_tok: expected a whole number from 1 to 256, found 257"},
    {"topk_beyond_groups", R"({"topk_group":1,"num_experts_per_tok":33})",
     "num_experts_per_tok: expected at most the 32 experts of the chosen groups, found 33"},
    {"uneven_groups", R"({"n_group":7})",
     "n_group: expected a divisor of n_routed_experts (256), found 7"},
    {"groups_of_one", R"({"n_group":256,"topk_group":16})",
     "n_group: expected groups of at least 2 experts: a group's score is the sum of its best two, "
     "found 256"},
    {"topk_group_beyond", R"({"topk_group":9})",
     "topk_group: expected at most n_group (8), found 9"},
    {"topk_group_missing", R"({"topk_group":null})", "topk_group is missing"},
    {"topk_method", R"({"topk_method":"aux_tc"})",
     "topk_method: expected greedy, group_limited_greedy or noaux_tc, found \"aux_tc\""},
    {"scoring", R"({"scoring_func":"sqrtsoftplus"})",
     "scoring_func: expected softmax or sigmoid, found \"sqrtsoftplus\""},
    {"scoring_against_method", R"({"scoring_func":"softmax"})",
     "scoring_func: expected sigmoid, which goes with topk_method noaux_tc, found \"softmax\""},
    {"norm_is_text", R"({"norm_topk_prob":"yes"})",
     "norm_topk_prob: expected true or false, found \"yes\""},
    {"act", R"({"hidden_act":"gelu"})", "hidden_act: expected silu, found \"gelu\""},
    {"bias", R"({"attention_bias":true})", "attention_bias: expected false, found true"},
    {"tied", R"({"tie_word_embeddings":true})", "tie_word_embeddings: expected false, found true"},
    {"half_split", R"({"rope_interleave":false})",
     "rope_interleave: expected true: half-split rope weights are not supported, found false"},
    {"rope_type", R"({"rope_scaling":{"type":"linear"}})",
     "rope_scaling.type: expected yarn, found \"linear\""},
    {"rope_type_new", R"({"rope_scaling":{"rope_type":"llama3"}})",
     "rope_scaling.rope_type: expected yarn, found \"llama3\""},
    {"rope_is_list", R"({"rope_scaling":[]})", "rope_scaling: expected an object, found []"},
    {"factor_missing", R"({"rope_scaling":{"factor":null}})", "rope_scaling.factor is missing"},
    {"factor_small", R"({"rope_scaling":{"factor":0.5}})",
     "rope_scaling.factor: expected a number from 1 to 1000000, found 0.5"},
    {"betas", R"({"rope_scaling":{"beta_slow":64}})",
     "rope_scaling.beta_slow: expected at most beta_fast, found 64"},
    {"block", R"({"quantization_config":{"weight_block_size":[64,128]}})",
     "quantization_config.weight_block_size: expected [128, 128], found [64,128]"},
    {"block_missing", R"({"quantization_config":{"weight_block_size":null}})",
     "quantization_config.weight_block_size: expected [128, 128], found nothing"},
    {"quant_method", R"({"quantization_config":{"quant_method":"gptq"}})",
     "quantization_config.quant_method: expected fp8 or compressed-tensors: other quantized "
     "checkpoints are not supported, found \"gptq\""},
    // As Kimi-K2-Thinking has it.
    {"quant_int4",
     R"({"quantization_config":{"quant_method":"compressed-tensors","format":"pack-quantized",
         "config_groups":{"group_0":{"weights":{"num_bits":4,"type":"int","group_size":32}}}}})",
     "quantization_config.format: expected float-quantized, found \"pack-quantized\"; other forms, "
     "such as the int4 of Kimi-K2-Thinking, are not supported"},
    {"quant_channels",
     R"({"quantization_config":{"quant_method":"compressed-tensors","format":"float-quantized",
         "config_groups":{"group_0":{"weights":{"num_bits":8,"type":"float","strategy":"channel"}}}}})",
     "quantization_config.config_groups.group_0.weights.strategy: expected block, found "
     "\"channel\""},
    {"quant_fmt", R"({"quantization_config":{"fmt":"e5m2"}})",
     "quantization_config.fmt: expected e4m3, found \"e5m2\""},
    {"quant_static", R"({"quantization_config":{"activation_scheme":"static"}})",
     "quantization_config.activation_scheme: expected dynamic, found \"static\""},
    {"eos_beyond_vocab", R"({"eos_token_id":[1,129280]})",
     "eos_token_id: expected token ids from 0 to 129279, found [1,129280]"},
    {"bos_list", R"({"bos_token_id":[0,1]})", "bos_token_id: expected one token id, found [0,1]"},
    {"long_value",
     R"({"hidden_act":["aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"]})",
     "hidden_act: expected a string, found "
     "[\"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa..."},
};

class BadConfigs : public testing::TestWithParam<BadConfig> {};

TEST_P(BadConfigs, are_refused_by_name) {
  json j = v3();
  j.merge_patch(json::parse(GetParam().patch));
  EXPECT_EQ(load_error(j.dump()), "DIR/config.json: " + std::string(GetParam().message));
}

INSTANTIATE_TEST_SUITE_P(Config, BadConfigs, testing::ValuesIn(kBadConfigs),
                         [](const auto& info) { return std::string(info.param.name); });

// ---- Dense models ------------------------------------------------------------------------------

// R1-Distill-Qwen-1.5B as published, but for keys that others have, too.
json qwen2() {
  return json::parse(R"({
    "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643,
    "eos_token_id": 151643, "hidden_act": "silu", "hidden_size": 1536, "initializer_range": 0.02,
    "intermediate_size": 8960, "max_position_embeddings": 131072, "max_window_layers": 21,
    "model_type": "qwen2", "num_attention_heads": 12, "num_hidden_layers": 28,
    "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 10000, "sliding_window": 4096,
    "tie_word_embeddings": false, "torch_dtype": "bfloat16", "use_cache": true,
    "use_mrope": false, "use_sliding_window": false, "vocab_size": 151936})");
}

// R1-Distill-Llama-8B.
json llama() {
  return json::parse(R"({
    "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
    "bos_token_id": 128000, "eos_token_id": 128001, "hidden_act": "silu", "hidden_size": 4096,
    "initializer_range": 0.02, "intermediate_size": 14336, "max_position_embeddings": 131072,
    "mlp_bias": false, "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32,
    "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
    "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
      "original_max_position_embeddings": 8192, "rope_type": "llama3"},
    "rope_theta": 500000.0, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
    "use_cache": true, "vocab_size": 128256})");
}

TEST(Config, reads_the_distilled_models) {
  const ModelConfig q = load(qwen2());
  EXPECT_EQ(q.architecture, Architecture::kQwen2);
  EXPECT_EQ(q.attention_kind(), AttentionKind::kGqa);
  EXPECT_TRUE(q.has_qkv_bias());
  EXPECT_FALSE(q.has_experts());
  EXPECT_FALSE(q.is_moe_layer(5));
  EXPECT_EQ(q.num_key_value_heads, 2);
  EXPECT_EQ(q.head_dim, 128);
  EXPECT_EQ(q.qk_head_dim(), 128);
  EXPECT_EQ(q.rope_scaling.type, RopeType::kDefault);
  EXPECT_NEAR(q.softmax_scale(), 1 / std::sqrt(128.0), 1e-15);
  EXPECT_EQ(q.rope_inv_freq().size(), 64u);
  EXPECT_EQ(q.rope_inv_freq()[1], std::pow(10000.0, -2.0 / 128));
  EXPECT_FALSE(q.tie_word_embeddings);

  const ModelConfig l = load(llama());
  EXPECT_EQ(l.architecture, Architecture::kLlama);
  EXPECT_FALSE(l.has_qkv_bias());
  EXPECT_EQ(l.rope_scaling.type, RopeType::kLlama3);
  EXPECT_EQ(l.rms_norm_eps, 1e-5);
  EXPECT_EQ(l.rope_magnitude(), 1);
  // Computed in double from the published formula: a fast pair stays, a slow one is divided by 8.
  EXPECT_EQ(l.rope_inv_freq()[0], 1);
  EXPECT_NEAR(l.rope_inv_freq()[63] / (std::pow(500000.0, -126.0 / 128) / 8), 1, 1e-15);

  json other = llama();  // one head_dim of its own, tied, as Llama-3.2-1B
  other["head_dim"] = 64;
  other["tie_word_embeddings"] = true;
  EXPECT_EQ(load(other).head_dim, 64);
  EXPECT_TRUE(load(other).tie_word_embeddings);
  other.erase("num_key_value_heads");  // every head its own
  EXPECT_EQ(load(other).num_key_value_heads, 32);

  json linear = qwen2();
  linear["rope_scaling"] = {{"type", "linear"}, {"factor", 4}};
  EXPECT_EQ(load(linear).rope_inv_freq()[3], std::pow(10000.0, -6.0 / 128) / 4);
  json newer = qwen2();
  newer["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", 5000}};
  EXPECT_EQ(load(newer).rope_theta, 5000);
  EXPECT_EQ(load(newer).rope_scaling.type, RopeType::kDefault);
  newer["layer_types"] = std::vector<std::string>(28, "full_attention");
  newer["use_sliding_window"] = true;  // the layers decide
  EXPECT_EQ(load(newer).num_hidden_layers, 28);
  newer.erase("layer_types");
  newer["max_window_layers"] = 28;  // of no layer
  EXPECT_EQ(load(newer).num_hidden_layers, 28);
}

const BadConfig kBadQwen2[] = {
    {"sliding_window", R"({"use_sliding_window":true})",
     "use_sliding_window: expected false, attention over all positions: a sliding window is not "
     "built, found true"},
    {"sliding_layers", R"({"layer_types":["full_attention","sliding_attention"]})",
     "layer_types: expected \"full_attention\" throughout, attention over all positions: a "
     "sliding window is not built, found [\"full_attention\",\"sliding_attention\"]"},
    {"rope_type", R"({"rope_scaling":{"rope_type":"longrope","factor":4}})",
     "rope_scaling.rope_type: expected default, linear, llama3 or yarn, found \"longrope\""},
    {"rope_dynamic", R"({"rope_scaling":{"type":"dynamic","factor":4}})",
     "rope_scaling.type: expected default, linear, llama3 or yarn, found \"dynamic\""},
    {"yarn_without_length", R"({"rope_scaling":{"type":"yarn","factor":4}})",
     "rope_scaling.original_max_position_embeddings is missing"},
    {"yarn_with_a_factor_of_its_own",
     R"({"rope_scaling":{"type":"yarn","factor":4,"original_max_position_embeddings":32768,
         "attention_factor":1.5}})",
     "rope_scaling.attention_factor: expected no such key in a Qwen2 or Llama model, found 1.5"},
    {"llama3_ramp",
     R"({"rope_scaling":{"rope_type":"llama3","factor":8,"low_freq_factor":4,"high_freq_factor":4,
         "original_max_position_embeddings":8192}})",
     "rope_scaling.low_freq_factor: expected less than high_freq_factor, found 4"},
    {"groups", R"({"num_key_value_heads":5})",
     "num_key_value_heads: expected a divisor of num_attention_heads (12), found 5"},
    {"more_groups_than_heads", R"({"num_key_value_heads":24})",
     "num_key_value_heads: expected a whole number from 1 to 12, found 24"},
    {"odd_head_dim", R"({"head_dim":127})", "head_dim: expected an even number, found 127"},
    {"no_head_dim", R"({"hidden_size":1537})",
     "hidden_size: expected a multiple of num_attention_heads (12), found 1537"},
    {"bias", R"({"attention_bias":true})", "attention_bias: expected false, found true"},
    {"mlp_bias", R"({"mlp_bias":true})", "mlp_bias: expected false, found true"},
    {"partial_rope", R"({"partial_rotary_factor":0.5})",
     "partial_rotary_factor: expected 1, found 0.5"},
    {"act", R"({"hidden_act":"gelu"})", "hidden_act: expected silu, found \"gelu\""},
    {"quant", R"({"quantization_config":{"quant_method":"awq","bits":4}})",
     "quantization_config.quant_method: expected fp8 or compressed-tensors: other quantized "
     "checkpoints are not supported, found \"awq\""},
};

class BadQwen2 : public testing::TestWithParam<BadConfig> {};

TEST_P(BadQwen2, are_refused_by_name) {
  json j = qwen2();
  j.merge_patch(json::parse(GetParam().patch));
  EXPECT_EQ(load_error(j.dump()), "DIR/config.json: " + std::string(GetParam().message));
}

INSTANTIATE_TEST_SUITE_P(Config, BadQwen2, testing::ValuesIn(kBadQwen2),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(Config, refuses_files_that_are_no_config) {
  const std::string good = v3().dump();
  const std::string prefix = "DIR/config.json: ";
  EXPECT_EQ(load_error(""), prefix + "not valid JSON at byte 1 of 0");
  EXPECT_EQ(load_error(good.substr(0, 100)), prefix + "not valid JSON at byte 101 of 100");
  EXPECT_EQ(load_error("[1]"), prefix + "expected a JSON object");
  EXPECT_EQ(load_error(std::string(1'000'000, '[')), prefix + "nested deeper than 64");
  EXPECT_EQ(load_error("{\"a\":1,\"a\":2}"), prefix + "key \"a\" stands there twice");
  EXPECT_EQ(load_error("{\"a\":1e999}"), prefix + "not valid JSON: a number is out of range");
  EXPECT_EQ(load_error(good, "{\"eos_token_id\":\"x\"}"),
            "DIR/generation_config.json: eos_token_id: expected token ids from 0 to 129279, found "
            "\"x\"");
  EXPECT_EQ(load_error(good, "{"), "DIR/generation_config.json: not valid JSON at byte 2 of 1");

  TempDir dir;
  const auto error = [&] {
    return test::message_of<LoadError>(dir.path(), [&] { (void)load_config(dir.path()); });
  };
  EXPECT_THAT(error(),
              testing::StartsWith("DIR: config.json is not there, the directory is empty"));
  std::filesystem::create_directory(dir / "config.json");
  EXPECT_EQ(error(), prefix + "not a regular file");
  std::filesystem::remove(dir / "config.json");
  write_file(dir / "config.json", "{}");
  std::filesystem::resize_file(dir / "config.json", (16 << 20) + 1);
  EXPECT_EQ(error(), prefix + "16777217 bytes, expected at most 16777216");
}

TEST(Config, reads_the_bundled_models) {
  for (const char* name : {"tiny-fp8", "tiny-bf16", "rand-ragged", "rand-v2", "rand-long"}) {
    const ModelConfig c =
        load_config(std::filesystem::path(ATOLL_SOURCE_DIR) / "tests/models" / name);
    EXPECT_EQ(c.fp8, std::string(name) == "tiny-fp8" || std::string(name) == "rand-ragged") << name;
    EXPECT_THAT(c.eos_token_ids, testing::ElementsAre(1)) << name;
  }
  for (const char* name : {"rand-qwen2", "rand-llama3", "rand-llama-linear", "rand-qwen2-yarn"}) {
    const ModelConfig c =
        load_config(std::filesystem::path(ATOLL_SOURCE_DIR) / "tests/models" / name);
    EXPECT_FALSE(c.has_experts()) << name;
  }
}

}  // namespace
}  // namespace atl::model
