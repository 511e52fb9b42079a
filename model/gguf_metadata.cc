#include "model/gguf_metadata.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <numbers>
#include <vector>

#include "base/result.h"
#include "storage/io/printable.h"

namespace atl::model {
namespace {

using Json = nlohmann::json;
using storage::GgufArray;
using storage::GgufValue;

constexpr std::string_view kArchitectures = "deepseek2, qwen2 and llama";
constexpr int64_t kSoftmax = 1, kSigmoid = 2;  // expert_gating_func

// Keys of one architecture, "deepseek2.block_count", and what config.json makes of them.
class ConfigWriter {
 public:
  ConfigWriter(const GgufMetadata& metadata, std::string architecture)
      : metadata_(metadata), architecture_(std::move(architecture)) {}

  std::string key(std::string_view name) const { return fmt::format("{}.{}", architecture_, name); }
  int64_t integer(std::string_view name) const { return metadata_.integer(key(name)); }
  int64_t integer_or(std::string_view name, int64_t otherwise) const {
    return metadata_.integer_or(key(name), otherwise);
  }
  double number_or(std::string_view name, double otherwise) const {
    return metadata_.number_or(key(name), otherwise);
  }
  bool has(std::string_view name) const { return metadata_.has(key(name)); }

  Json sizes() const {
    Json json;
    json["hidden_size"] = integer("embedding_length");
    json["intermediate_size"] = integer("feed_forward_length");
    json["num_hidden_layers"] = integer("block_count") - integer_or("nextn_predict_layers", 0);
    json["num_attention_heads"] = integer("attention.head_count");
    json["max_position_embeddings"] = integer("context_length");
    json["rms_norm_eps"] = metadata_.number(key("attention.layer_norm_rms_epsilon"));
    json["rope_theta"] = number_or("rope.freq_base", 10000);
    json["vocab_size"] = vocab_size();
    add_token_ids(json);
    return json;
  }

  // deepseek2: latent attention and experts.
  Json deepseek() const {
    Json json = sizes();
    const int64_t gating = integer_or("expert_gating_func", kSoftmax);
    if (gating != kSoftmax && gating != kSigmoid) {
      metadata_.refuse(key("expert_gating_func"),
                       fmt::format("{}, expected 1 (softmax) or 2 (sigmoid)", gating));
    }
    const bool v2 = gating == kSoftmax;
    json["model_type"] = v2 ? "deepseek_v2" : is_kimi() ? "kimi_k2" : "deepseek_v3";
    json["architectures"] = {v2 ? "DeepseekV2ForCausalLM" : "DeepseekV3ForCausalLM"};
    add_attention(json);
    add_experts(json, v2);
    add_yarn(json);
    return json;
  }

  Json dense(const GgufTensorFacts& facts) const {
    Json json = sizes();
    const bool qwen = architecture_ == "qwen2";
    json["model_type"] = architecture_;
    json["architectures"] = {qwen ? "Qwen2ForCausalLM" : "LlamaForCausalLM"};
    json["num_key_value_heads"] =
        integer_or("attention.head_count_kv", integer("attention.head_count"));
    if (has("attention.key_length")) json["head_dim"] = integer("attention.key_length");
    json["tie_word_embeddings"] = !facts.has_head;
    for (const char* name : {"expert_count", "attention.sliding_window"}) {
      if (integer_or(name, 0) != 0) metadata_.refuse(key(name), "not supported, expected none");
    }
    if (!facts.rope_factors.empty()) {
      json["rope_scaling"] = llama3_scaling(json, facts.rope_factors);
    } else if (const std::string type = scaling_type(); type == "linear") {
      json["rope_scaling"] = {{"type", type}, {"factor", scaling_factor()}};
    } else if (type == "yarn") {
      json["rope_scaling"] = {
          {"type", type},
          {"factor", scaling_factor()},
          {"original_max_position_embeddings", integer("rope.scaling.original_context_length")},
          {"beta_fast", number_or("rope.scaling.yarn_beta_fast", 32)},
          {"beta_slow", number_or("rope.scaling.yarn_beta_slow", 1)}};
    }
    return json;
  }

 private:
  bool is_kimi() const { return metadata_.text_or("tokenizer.ggml.pre", "") == "kimi-k2"; }

  int64_t vocab_size() const {
    if (has("vocab_size")) return integer("vocab_size");
    const GgufArray* tokens = metadata_.array("tokenizer.ggml.tokens");
    if (tokens == nullptr) metadata_.refuse(key("vocab_size"), "missing");
    return static_cast<int64_t>(tokens->count);
  }

  // The end is what the file calls so, and a turn's end, which chat formats write.
  void add_token_ids(Json& json) const {
    constexpr std::string_view kBos = "tokenizer.ggml.bos_token_id";
    if (metadata_.has(kBos)) json["bos_token_id"] = metadata_.integer(kBos);
    Json ends = Json::array();
    for (const char* name : {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"}) {
      if (!metadata_.has(name)) continue;
      const int64_t id = metadata_.integer(name);
      if (std::find(ends.begin(), ends.end(), Json(id)) == ends.end()) ends.push_back(id);
    }
    if (!ends.empty()) json["eos_token_id"] = ends;
  }

  void add_attention(Json& json) const {
    // Older files have the sizes of heads; newer ones those of the latent, and the others as *_mla.
    const bool mla = has("attention.key_length_mla");
    const int64_t rope = integer("rope.dimension_count");
    json["kv_lora_rank"] = integer("attention.kv_lora_rank");
    if (const int64_t rank = integer_or("attention.q_lora_rank", 0); rank != 0) {
      json["q_lora_rank"] = rank;
    }
    json["qk_rope_head_dim"] = rope;
    json["qk_nope_head_dim"] =
        integer(mla ? "attention.key_length_mla" : "attention.key_length") - rope;
    json["v_head_dim"] = integer(mla ? "attention.value_length_mla" : "attention.value_length");
  }

  void add_experts(Json& json, bool v2) const {
    const int64_t groups = std::max<int64_t>(integer_or("expert_group_count", 1), 1);
    const double scale = number_or("expert_weights_scale", 1);
    json["first_k_dense_replace"] = integer_or("leading_dense_block_count", 0);
    json["moe_intermediate_size"] = integer("expert_feed_forward_length");
    json["n_routed_experts"] = integer("expert_count");
    json["num_experts_per_tok"] = integer("expert_used_count");
    json["n_shared_experts"] = integer_or("expert_shared_count", 0);
    json["n_group"] = groups;
    json["topk_group"] = groups == 1 ? 1 : integer("expert_group_used_count");
    json["scoring_func"] = v2 ? "softmax" : "sigmoid";
    json["topk_method"] = !v2 ? "noaux_tc" : groups == 1 ? "greedy" : "group_limited_greedy";
    json["norm_topk_prob"] = metadata_.boolean_or(key("expert_weights_norm"), false);
    json["routed_scaling_factor"] = scale == 0 ? 1 : scale;  // 0: the key's "not scaled"
    json["num_nextn_predict_layers"] = integer_or("nextn_predict_layers", 0);
  }

  std::string scaling_type() const { return metadata_.text_or(key("rope.scaling.type"), "none"); }
  double scaling_factor() const { return metadata_.number(key("rope.scaling.factor")); }

  // yarn_log_multiplier is 0.1 mscale_all_dim. mscale is not in the file; published models have the
  // same number for both, and llama.cpp computes as if.
  void add_yarn(Json& json) const {
    const std::string type = scaling_type();
    if (type == "none") return;
    const double mscale =
        std::round(number_or("rope.scaling.yarn_log_multiplier", 0) * 10 * 1e6) / 1e6;
    json["rope_scaling"] = {
        {"type", type},
        {"factor", scaling_factor()},
        {"original_max_position_embeddings",
         integer_or("rope.scaling.original_context_length", 4096)},
        // Kimi K2's published config has 1; files without the key are of that converter, too.
        {"beta_fast", number_or("rope.scaling.yarn_beta_fast", is_kimi() ? 1 : 32)},
        {"beta_slow", number_or("rope.scaling.yarn_beta_slow", 1)},
        {"mscale", mscale},
        {"mscale_all_dim", mscale}};
  }

  // The file has the factor of each frequency in place of the four numbers. Two of these are the
  // same in every published model; the factor is the last frequency's, and the original length
  // follows from a frequency that is slowed down by less. Other factors than these make are
  // refused.
  Json llama3_scaling(const Json& sizes, const std::vector<float>& factors) const {
    constexpr double kLow = 1, kHigh = 4;
    const double factor = factors.back();
    const double theta = sizes["rope_theta"].get<double>();
    const auto base = [&](size_t pair) {
      return std::pow(theta, -static_cast<double>(pair) / static_cast<double>(factors.size()));
    };
    double original = 8192;
    for (size_t i = 0; i < factors.size(); ++i) {
      const double kept = (1 / factors[i] - 1 / factor) / (1 - 1 / factor);
      if (!(kept > 1e-3 && kept < 1 - 1e-3)) continue;
      original = std::round((kLow + kept * (kHigh - kLow)) * 2 * std::numbers::pi / base(i));
    }
    for (size_t i = 0; i < factors.size(); ++i) {
      const double turns = original * base(i) / (2 * std::numbers::pi);
      const double kept = std::clamp((turns - kLow) / (kHigh - kLow), 0.0, 1.0);
      const double expected = 1 / ((1 - kept) / factor + kept);
      if (std::abs(expected - factors[i]) <= 1e-4 * expected) continue;
      throw LoadError(fmt::format(
          "{}: tensor \"rope_freqs.weight\": factor {} of pair {}, expected {}: only the rope "
          "scaling of Llama 3 with low_freq_factor 1 and high_freq_factor 4 is supported",
          metadata_.file().string(), factors[i], i, expected));
    }
    return {{"rope_type", "llama3"},
            {"factor", factor},
            {"low_freq_factor", kLow},
            {"high_freq_factor", kHigh},
            {"original_max_position_embeddings", original}};
  }

  const GgufMetadata& metadata_;
  std::string architecture_;
};

}  // namespace

const GgufValue& GgufMetadata::require(std::string_view key) const {
  const GgufValue* value = header_.find(key);
  if (value == nullptr) refuse(key, "missing");
  return *value;
}

void GgufMetadata::refuse(std::string_view key, std::string_view what) const {
  throw LoadError(fmt::format("{}: key {}: {}", file_.string(), key, what));
}

void GgufMetadata::wrong(std::string_view key, std::string_view expected) const {
  refuse(key, fmt::format("expected {}, found {}", expected, storage::kind_text(require(key))));
}

std::string GgufMetadata::text(std::string_view key) const {
  const auto* value = std::get_if<std::string_view>(&require(key));
  if (value == nullptr) wrong(key, "a string");
  return std::string(*value);
}
std::string GgufMetadata::text_or(std::string_view key, std::string otherwise) const {
  return has(key) ? text(key) : otherwise;
}

int64_t GgufMetadata::integer(std::string_view key) const {
  const GgufValue& value = require(key);
  if (const auto* number = std::get_if<int64_t>(&value)) return *number;
  const auto* number = std::get_if<uint64_t>(&value);
  if (number == nullptr) wrong(key, "a whole number");
  if (*number > uint64_t{1} << 62) refuse(key, fmt::format("{} is out of range", *number));
  return static_cast<int64_t>(*number);
}
int64_t GgufMetadata::integer_or(std::string_view key, int64_t otherwise) const {
  return has(key) ? integer(key) : otherwise;
}

double GgufMetadata::number(std::string_view key) const {
  const auto* number = std::get_if<double>(&require(key));
  if (number == nullptr) return static_cast<double>(integer(key));
  if (!std::isfinite(*number)) refuse(key, "not finite");
  const std::string shortest = fmt::format("{}", static_cast<float>(*number));
  return std::strtod(shortest.c_str(), nullptr);
}
double GgufMetadata::number_or(std::string_view key, double otherwise) const {
  return has(key) ? number(key) : otherwise;
}

bool GgufMetadata::boolean_or(std::string_view key, bool otherwise) const {
  if (!has(key)) return otherwise;
  const auto* value = std::get_if<bool>(&require(key));
  if (value == nullptr) wrong(key, "true or false");
  return *value;
}

const GgufArray* GgufMetadata::array(std::string_view key) const {
  if (!has(key)) return nullptr;
  const auto* value = std::get_if<GgufArray>(&require(key));
  if (value == nullptr) wrong(key, "an array");
  return value;
}

std::string gguf_architecture(const GgufMetadata& metadata) {
  std::string name = metadata.text("general.architecture");
  if (name == "deepseek2" || name == "qwen2" || name == "llama") return name;
  metadata.refuse("general.architecture", fmt::format("{} isn't supported; supported are {}",
                                                      storage::printable(name), kArchitectures));
}

std::string gguf_config_json(const GgufMetadata& metadata, const GgufTensorFacts& facts) {
  const std::string architecture = gguf_architecture(metadata);
  const ConfigWriter writer(metadata, architecture);
  return (architecture == "deepseek2" ? writer.deepseek() : writer.dense(facts)).dump(2);
}

}  // namespace atl::model
