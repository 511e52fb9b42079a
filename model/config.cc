#include "model/config.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <numbers>
#include <set>
#include <string_view>

#include "base/check.h"
#include "base/result.h"
#include "model/gguf_source.h"
#include "storage/checkpoint/model_dir.h"
#include "storage/gguf/gguf_files.h"
#include "storage/io/printable.h"

namespace atl::model {
namespace {

using Json = nlohmann::json;
using kernels::ScoringFunc;
using kernels::TopkMethod;

constexpr uintmax_t kConfigBytesMax = 16 << 20;  // published ones have 2 KB
constexpr int kNestingMax = 64;
// Far beyond any real model; products of three sizes stay inside 64 bits.
constexpr int64_t kSizeMax = 1 << 20;
constexpr int64_t kLayersMax = 1 << 12;
constexpr int64_t kVocabMax = 1 << 24;
constexpr int64_t kPositionsMax = int64_t{1} << 31;

constexpr std::string_view kSupported =
    "supported are DeepSeek-V2, V2-Lite, V2.5, V3, V3.1 and R1 and its distilled models (Qwen2, "
    "Llama 3), and Kimi K2";

constexpr std::string_view kModelTypes = "deepseek_v2, deepseek_v3, kimi_k2, qwen2 or llama";

[[noreturn]] void refuse(const std::filesystem::path& file, const std::string& what) {
  throw LoadError(fmt::format("{}: {}", file.string(), what));
}

std::string read_text(const std::filesystem::path& file) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(file, error)) {
    refuse(file, "not a regular file");
  }
  const uintmax_t bytes = std::filesystem::file_size(file, error);
  if (error) refuse(file, "cannot read: " + error.message());
  if (bytes > kConfigBytesMax) {
    refuse(file, fmt::format("{} bytes, expected at most {}", bytes, kConfigBytesMax));
  }
  std::string text(bytes, '\0');
  std::ifstream in(file, std::ios::binary);
  if (!in.read(text.data(), static_cast<std::streamsize>(bytes))) refuse(file, "cannot read");
  return text;
}

// Parses into a tree of bounded depth and refuses keys that stand twice in one object, of which
// the parser alone would silently keep the last.
Json parse_json(const std::string& text, const std::filesystem::path& file) {
  std::vector<std::set<std::string>> keys;
  const auto check = [&](int depth, Json::parse_event_t event, Json& value) {
    if (depth > kNestingMax) refuse(file, fmt::format("nested deeper than {}", kNestingMax));
    if (event == Json::parse_event_t::object_start) keys.emplace_back();
    if (event == Json::parse_event_t::object_end) keys.pop_back();
    if (event == Json::parse_event_t::key) {
      const auto& key = value.get_ref<const std::string&>();
      if (!keys.back().insert(key).second) {
        refuse(file, fmt::format("key {} stands there twice", storage::printable(key)));
      }
    }
    return true;
  };
  try {
    Json json = Json::parse(text, check);
    if (!json.is_object()) refuse(file, "expected a JSON object");
    return json;
  } catch (const Json::parse_error& error) {
    refuse(file, fmt::format("not valid JSON at byte {} of {}", error.byte, text.size()));
  } catch (const Json::out_of_range&) {
    refuse(file, "not valid JSON: a number is out of range");
  }
}

// The members of one JSON object, by key; every complaint names file and key.
class Section {
 public:
  Section(const std::filesystem::path& file, std::string prefix, const Json& object)
      : file_(file), prefix_(std::move(prefix)), object_(object) {}

  bool has(const char* key) const { return value(key) != nullptr; }

  int64_t integer(const char* key, int64_t least, int64_t most) const {
    return checked_integer(key, require(key), least, most);
  }
  int64_t integer_or(const char* key, int64_t otherwise, int64_t least, int64_t most) const {
    const Json* found = value(key);
    return found == nullptr ? otherwise : checked_integer(key, *found, least, most);
  }
  double number(const char* key, double least, double most) const {
    return checked_number(key, require(key), least, most);
  }
  double number_or(const char* key, double otherwise, double least, double most) const {
    const Json* found = value(key);
    return found == nullptr ? otherwise : checked_number(key, *found, least, most);
  }
  bool boolean_or(const char* key, bool otherwise) const {
    const Json* found = value(key);
    if (found == nullptr) return otherwise;
    if (!found->is_boolean()) wrong(key, "true or false");
    return found->get<bool>();
  }
  std::string text_or(const char* key, std::string otherwise) const {
    const Json* found = value(key);
    if (found == nullptr) return otherwise;
    if (!found->is_string()) wrong(key, "a string");
    return found->get<std::string>();
  }
  Section section(const char* key) const {
    const Json& found = require(key);
    if (!found.is_object()) wrong(key, "an object");
    return Section(file_, prefix_ + key + ".", found);
  }
  // nullptr if absent or null: published configs use both for "not given".
  const Json* value(const char* key) const {
    const auto found = object_.find(key);
    return found == object_.end() || found->is_null() ? nullptr : &*found;
  }
  // "FILE: KEY: expected EXPECTED, found VALUE", and what to do, if anything is known.
  [[noreturn]] void wrong(const char* key, std::string_view expected,
                          std::string_view hint = {}) const {
    const Json* found = value(key);
    const std::string text =
        found == nullptr ? "nothing"
        : found->is_string()
            ? storage::printable(found->get_ref<const std::string&>())
            : shortened(found->dump(-1, ' ', false, Json::error_handler_t::replace));
    refuse(file_, fmt::format("{}{}: expected {}, found {}{}{}", prefix_, key, expected, text,
                              hint.empty() ? "" : "; ", hint));
  }

 private:
  static std::string shortened(const std::string& text) {
    return text.size() <= 80 ? text : text.substr(0, 80) + "...";
  }
  const Json& require(const char* key) const {
    const Json* found = value(key);
    if (found == nullptr) refuse(file_, fmt::format("{}{} is missing", prefix_, key));
    return *found;
  }
  // Whole numbers may be written as floats: some writers do.
  int64_t checked_integer(const char* key, const Json& json, int64_t least, int64_t most) const {
    if (json.is_number()) {
      const double value = json.get<double>();
      if (std::floor(value) == value && value >= static_cast<double>(least) &&
          value <= static_cast<double>(most)) {
        return static_cast<int64_t>(value);
      }
    }
    wrong(key, fmt::format("a whole number from {} to {}", least, most));
  }
  double checked_number(const char* key, const Json& json, double least, double most) const {
    if (json.is_number()) {
      const double value = json.get<double>();
      if (value >= least && value <= most) return value;
    }
    wrong(key, fmt::format("a number from {} to {}", least, most));
  }

  const std::filesystem::path& file_;
  std::string prefix_;
  const Json& object_;
};

struct Kind {
  const char* model_type;
  const char* class_name;
  Architecture architecture;
};
constexpr Kind kKinds[] = {
    {"deepseek_v2", "DeepseekV2ForCausalLM", Architecture::kDeepseekV2},
    {"deepseek_v3", "DeepseekV3ForCausalLM", Architecture::kDeepseekV3},
    {"kimi_k2", "DeepseekV3ForCausalLM", Architecture::kKimiK2},
    {"qwen2", "Qwen2ForCausalLM", Architecture::kQwen2},
    {"llama", "LlamaForCausalLM", Architecture::kLlama},
};

// Both names where both stand must be of one kind; one alone decides, of a class the first.
void read_architecture(const Section& json, ModelConfig& config) {
  const bool has_type = json.has("model_type");
  const std::string type = json.text_or("model_type", "");
  if (has_type && std::none_of(std::begin(kKinds), std::end(kKinds),
                               [&](const Kind& kind) { return type == kind.model_type; })) {
    json.wrong("model_type", kModelTypes, kSupported);
  }
  const Json* list = json.value("architectures");
  if (!has_type && list == nullptr) json.wrong("model_type", kModelTypes, kSupported);
  std::string class_name;
  if (list != nullptr) {
    const bool names_one = list->is_array() && list->size() == 1 && (*list)[0].is_string();
    if (names_one) class_name = (*list)[0].get<std::string>();
  }
  for (const Kind& kind : kKinds) {
    if (has_type && type != kind.model_type) continue;
    if (list != nullptr && class_name != kind.class_name) continue;
    config.model_type = kind.model_type;
    config.architecture = kind.architecture;
    return;
  }
  json.wrong("architectures",
             has_type ? fmt::format("the class of model_type {}", type)
                      : std::string("the class of a known model_type"),
             kSupported);
}

void read_sizes(const Section& json, ModelConfig& config) {
  config.vocab_size = json.integer("vocab_size", 1, kVocabMax);
  config.hidden_size = json.integer("hidden_size", 1, kSizeMax);
  config.intermediate_size = json.integer("intermediate_size", 1, kSizeMax);
  config.num_hidden_layers = json.integer("num_hidden_layers", 1, kLayersMax);
  config.num_attention_heads = json.integer("num_attention_heads", 1, 1 << 14);
  config.max_position_embeddings = json.integer("max_position_embeddings", 1, kPositionsMax);
  config.rms_norm_eps = json.number_or("rms_norm_eps", 1e-6, 0, 1);
}

void read_mla(const Section& json, ModelConfig& config) {
  config.q_lora_rank = json.integer_or("q_lora_rank", 0, 0, kSizeMax);
  config.kv_lora_rank = json.integer("kv_lora_rank", 1, kSizeMax);
  config.qk_nope_head_dim = json.integer("qk_nope_head_dim", 1, 1 << 14);
  config.qk_rope_head_dim = json.integer("qk_rope_head_dim", 2, 1 << 14);
  config.v_head_dim = json.integer("v_head_dim", 1, 1 << 14);
  if (config.qk_rope_head_dim % 2 != 0) json.wrong("qk_rope_head_dim", "an even number");
  const int64_t heads =
      json.integer_or("num_key_value_heads", config.num_attention_heads, 1, kSizeMax);
  if (heads != config.num_attention_heads) {
    json.wrong("num_key_value_heads",
               fmt::format("num_attention_heads ({}): MLA has no grouped heads",
                           config.num_attention_heads));
  }
}

void read_gqa(const Section& json, ModelConfig& config) {
  const int64_t heads = config.num_attention_heads;
  config.num_key_value_heads = json.integer_or("num_key_value_heads", heads, 1, heads);
  if (heads % config.num_key_value_heads != 0) {
    json.wrong("num_key_value_heads", fmt::format("a divisor of num_attention_heads ({})", heads));
  }
  if (!json.has("head_dim") && config.hidden_size % heads != 0) {
    json.wrong("hidden_size", fmt::format("a multiple of num_attention_heads ({})", heads));
  }
  config.head_dim = json.integer_or("head_dim", config.hidden_size / heads, 2, 1 << 14);
  if (config.head_dim % 2 != 0) json.wrong("head_dim", "an even number");
  config.tie_word_embeddings = json.boolean_or("tie_word_embeddings", false);
}

TopkMethod topk_method_of(const Section& json, bool v2) {
  const std::string text = json.text_or("topk_method", v2 ? "greedy" : "noaux_tc");
  if (text == "greedy") return TopkMethod::kGreedy;
  if (text == "group_limited_greedy") return TopkMethod::kGroupLimitedGreedy;
  if (text == "noaux_tc") return TopkMethod::kNoauxTc;
  json.wrong("topk_method", "greedy, group_limited_greedy or noaux_tc");
}

ScoringFunc scoring_func_of(const Section& json, bool v2) {
  const std::string text = json.text_or("scoring_func", v2 ? "softmax" : "sigmoid");
  if (text == "softmax") return ScoringFunc::kSoftmax;
  if (text == "sigmoid") return ScoringFunc::kSigmoid;
  json.wrong("scoring_func", "softmax or sigmoid");
}

void check_groups(const Section& json, const ModelConfig& config) {
  if (config.n_routed_experts % config.n_group != 0) {
    json.wrong("n_group",
               fmt::format("a divisor of n_routed_experts ({})", config.n_routed_experts));
  }
  if (config.topk_group > config.n_group) {
    json.wrong("topk_group", fmt::format("at most n_group ({})", config.n_group));
  }
  const int64_t group = config.n_routed_experts / config.n_group;
  const bool grouped = config.topk_method != TopkMethod::kGreedy && config.n_group > 1;
  if (config.topk_method == TopkMethod::kNoauxTc && grouped && group < 2) {
    json.wrong("n_group",
               "groups of at least 2 experts: a group's score is the sum of its best two");
  }
  const int64_t candidates = grouped ? group * config.topk_group : config.n_routed_experts;
  if (config.num_experts_per_tok > candidates) {
    json.wrong("num_experts_per_tok",
               fmt::format("at most the {} experts of the chosen groups", candidates));
  }
}

void read_experts(const Section& json, ModelConfig& config) {
  const bool v2 = config.architecture == Architecture::kDeepseekV2;
  config.moe_intermediate_size = json.integer("moe_intermediate_size", 1, kSizeMax);
  config.first_k_dense_replace = json.integer("first_k_dense_replace", 0, config.num_hidden_layers);
  config.moe_layer_freq = json.integer_or("moe_layer_freq", 1, 1, kLayersMax);
  config.num_nextn_predict_layers = json.integer_or("num_nextn_predict_layers", 0, 0, kLayersMax);
  config.n_routed_experts = json.integer("n_routed_experts", 1, 1 << 16);
  config.n_shared_experts = json.integer_or("n_shared_experts", 0, 0, 1 << 10);
  config.num_experts_per_tok = json.integer("num_experts_per_tok", 1, config.n_routed_experts);
  config.n_group = json.integer_or("n_group", 1, 1, config.n_routed_experts);
  config.topk_group = config.n_group == 1 ? json.integer_or("topk_group", 1, 1, 1)
                                          : json.integer("topk_group", 1, config.n_routed_experts);
  config.topk_method = topk_method_of(json, v2);
  config.scoring_func = scoring_func_of(json, v2);
  config.norm_topk_prob = json.boolean_or("norm_topk_prob", !v2);
  config.routed_scaling_factor = json.number_or("routed_scaling_factor", 1.0, 1e-6, 1e6);
  const bool noaux = config.topk_method == TopkMethod::kNoauxTc;
  if (noaux != (config.scoring_func == ScoringFunc::kSigmoid)) {
    json.wrong("scoring_func", noaux ? "sigmoid, which goes with topk_method noaux_tc"
                                     : "softmax, which goes with the greedy topk_methods");
  }
  check_groups(json, config);
}

void read_yarn(const Section& scaling, RopeScaling& rope) {
  rope.type = RopeType::kYarn;
  rope.factor = scaling.number("factor", 1, 1e6);
  rope.beta_fast = scaling.number_or("beta_fast", 32, 1e-3, 1e6);
  rope.beta_slow = scaling.number_or("beta_slow", 1, 1e-3, 1e6);
  rope.mscale = scaling.number_or("mscale", 1, 0, 100);
  rope.mscale_all_dim = scaling.number_or("mscale_all_dim", 0, 0, 100);
  if (rope.beta_slow > rope.beta_fast) scaling.wrong("beta_slow", "at most beta_fast");
}

void read_llama3(const Section& scaling, RopeScaling& rope) {
  rope.type = RopeType::kLlama3;
  rope.factor = scaling.number("factor", 1, 1e6);
  rope.low_freq_factor = scaling.number("low_freq_factor", 1e-3, 1e6);
  rope.high_freq_factor = scaling.number("high_freq_factor", 1e-3, 1e6);
  rope.original_max_position_embeddings =
      scaling.integer("original_max_position_embeddings", 1, kPositionsMax);
  if (rope.low_freq_factor >= rope.high_freq_factor) {
    scaling.wrong("low_freq_factor", "less than high_freq_factor");
  }
}

void read_rope_scaling(const Section& scaling, ModelConfig& config) {
  const bool mla = config.attention_kind() == AttentionKind::kMla;
  const bool newer = scaling.has("rope_type");
  const char* type_key = newer ? "rope_type" : "type";
  const std::string type = scaling.text_or(type_key, "");
  RopeScaling& rope = config.rope_scaling;
  if (type == "default" && (newer || !mla)) return;  // "no scaling"
  if (type == "yarn") {
    // Qwen's own files name it; what others may mean without it differs.
    rope.original_max_position_embeddings =
        mla ? scaling.integer_or("original_max_position_embeddings", 4096, 1, kPositionsMax)
            : scaling.integer("original_max_position_embeddings", 1, kPositionsMax);
    for (const char* key : {"mscale", "mscale_all_dim", "attention_factor"}) {
      if (!mla && scaling.has(key)) scaling.wrong(key, "no such key in a Qwen2 or Llama model");
    }
    return read_yarn(scaling, rope);
  }
  if (mla) scaling.wrong(type_key, "yarn");
  if (type == "llama3") return read_llama3(scaling, rope);
  if (type != "linear") scaling.wrong(type_key, "default, linear, llama3 or yarn");
  rope.type = RopeType::kLinear;
  rope.factor = scaling.number("factor", 1, 1e6);
}

// `rope_theta` and `rope_scaling`, or both inside `rope_parameters`.
void read_rope(const Section& json, ModelConfig& config) {
  config.rope_theta = json.number_or("rope_theta", 10000, 1.001, 1e12);
  if (config.attention_kind() == AttentionKind::kGqa) {
    config.rope_scaling.type = RopeType::kDefault;
    if (json.number_or("partial_rotary_factor", 1, 0, 1) != 1) {
      json.wrong("partial_rotary_factor", "1");
    }
  } else if (!json.boolean_or("rope_interleave", true)) {
    json.wrong("rope_interleave", "true: half-split rope weights are not supported");
  }
  if (json.has("rope_parameters")) {
    const Section parameters = json.section("rope_parameters");
    config.rope_theta = parameters.number_or("rope_theta", config.rope_theta, 1.001, 1e12);
    read_rope_scaling(parameters, config);
  } else if (json.has("rope_scaling")) {
    read_rope_scaling(json.section("rope_scaling"), config);
  }
}

// What compressed-tensors writes of the same blocks: one group whose weights are 8-bit floats.
void check_compressed_tensors(const Section& quantization) {
  if (quantization.text_or("format", "") != "float-quantized") {
    quantization.wrong("format", "float-quantized",
                       "other forms, such as the int4 of Kimi-K2-Thinking, are not supported");
  }
  const Json* groups = quantization.value("config_groups");
  if (groups == nullptr || !groups->is_object() || groups->size() != 1) {
    quantization.wrong("config_groups", "one group");
  }
  const Section group =
      quantization.section("config_groups").section(groups->begin().key().c_str());
  const Section weights = group.section("weights");
  if (weights.integer("num_bits", 1, 64) != 8) weights.wrong("num_bits", "8");
  if (weights.text_or("type", "") != "float") weights.wrong("type", "float");
  if (weights.text_or("strategy", "") != "block") weights.wrong("strategy", "block");
  const Json* block = weights.value("block_structure");
  if (block == nullptr || *block != Json::array({128, 128})) {
    weights.wrong("block_structure", "[128, 128]");
  }
}

void read_quantization(const Section& json, ModelConfig& config) {
  if (!json.has("quantization_config")) return;
  const Section quantization = json.section("quantization_config");
  const std::string method = quantization.text_or("quant_method", "");
  config.fp8 = true;
  if (method == "compressed-tensors") return check_compressed_tensors(quantization);
  if (method != "fp8") {
    quantization.wrong("quant_method",
                       "fp8 or compressed-tensors: other quantized checkpoints are not supported");
  }
  if (quantization.text_or("fmt", "e4m3") != "e4m3") quantization.wrong("fmt", "e4m3");
  if (quantization.text_or("activation_scheme", "dynamic") != "dynamic") {
    quantization.wrong("activation_scheme", "dynamic");
  }
  const Json* block = quantization.value("weight_block_size");
  if (block == nullptr || *block != Json::array({128, 128})) {
    quantization.wrong("weight_block_size", "[128, 128]");
  }
}

// Layers that see the last sliding_window positions only: all from max_window_layers on if
// use_sliding_window is set; newer files say it of each layer.
void refuse_sliding_window(const Section& json, const ModelConfig& config) {
  constexpr std::string_view kFull = "attention over all positions: a sliding window is not built";
  if (const Json* types = json.value("layer_types"); types != nullptr) {
    const bool full =
        types->is_array() && std::all_of(types->begin(), types->end(),
                                         [](const Json& type) { return type == "full_attention"; });
    if (!full) json.wrong("layer_types", fmt::format("\"full_attention\" throughout, {}", kFull));
    return;
  }
  if (!json.boolean_or("use_sliding_window", false) || !json.has("sliding_window")) return;
  const int64_t first = json.integer_or("max_window_layers", 0, 0, kLayersMax);
  if (first < config.num_hidden_layers)
    json.wrong("use_sliding_window", fmt::format("false, {}", kFull));
}

void refuse_other_variants(const Section& json, const ModelConfig& config) {
  if (json.text_or("hidden_act", "silu") != "silu") json.wrong("hidden_act", "silu");
  for (const char* key : {"attention_bias", "mlp_bias"}) {
    if (json.boolean_or(key, false)) json.wrong(key, "false");
  }
  if (config.attention_kind() == AttentionKind::kGqa) return;
  if (json.boolean_or("tie_word_embeddings", false)) json.wrong("tie_word_embeddings", "false");
}

int32_t token_id(const Section& json, const char* key, const Json& value, int64_t vocab_size) {
  if (value.is_number_integer()) {
    const auto id = value.get<int64_t>();
    if (id >= 0 && id < vocab_size) return static_cast<int32_t>(id);
  }
  json.wrong(key, fmt::format("token ids from 0 to {}", vocab_size - 1));
}

// One id or a list of them; empty if the key is absent.
std::vector<int32_t> token_ids(const Section& json, const char* key, int64_t vocab_size) {
  const Json* value = json.value(key);
  if (value == nullptr) return {};
  if (!value->is_array()) return {token_id(json, key, *value, vocab_size)};
  std::vector<int32_t> ids;
  for (const Json& id : *value) ids.push_back(token_id(json, key, id, vocab_size));
  return ids;
}

void read_special_tokens(const Section& json, ModelConfig& config) {
  if (const std::vector<int32_t> bos = token_ids(json, "bos_token_id", config.vocab_size);
      bos.size() == 1) {
    config.bos_token_id = bos[0];
  } else if (!bos.empty()) {
    json.wrong("bos_token_id", "one token id");
  }
  if (auto eos = token_ids(json, "eos_token_id", config.vocab_size); !eos.empty()) {
    config.eos_token_ids = std::move(eos);
  }
}

// `file` is for messages only.
ModelConfig parse_config(const std::string& text, const std::filesystem::path& file) {
  const Json tree = parse_json(text, file);
  const Section json(file, "", tree);
  ModelConfig config;
  read_architecture(json, config);
  refuse_other_variants(json, config);
  read_sizes(json, config);
  if (config.attention_kind() == AttentionKind::kMla) {
    read_mla(json, config);
    read_experts(json, config);
  } else {
    read_gqa(json, config);
    refuse_sliding_window(json, config);
  }
  read_rope(json, config);
  read_quantization(json, config);
  read_special_tokens(json, config);
  return config;
}

double yarn_scale(double factor, double mscale) {
  return factor <= 1 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

}  // namespace

ModelConfig load_config(const std::filesystem::path& model_dir) {
  if (storage::find_gguf(model_dir)) {
    const auto source = GgufSource::open(model_dir);
    return parse_config(source->small_file("config.json", kConfigBytesMax).value(), source->file());
  }
  storage::require_model_dir(model_dir);
  const std::filesystem::path file = model_dir / "config.json";
  ModelConfig config = parse_config(read_text(file), file);

  const std::filesystem::path generation_file = model_dir / "generation_config.json";
  std::error_code error;
  if (std::filesystem::exists(generation_file, error)) {
    const Json generation = parse_json(read_text(generation_file), generation_file);
    read_special_tokens(Section(generation_file, "", generation), config);
  }
  return config;
}

kernels::RouterShape ModelConfig::router_shape() const {
  kernels::RouterShape shape;
  shape.scoring_func = scoring_func;
  shape.topk_method = topk_method;
  shape.n_routed_experts = static_cast<int32_t>(n_routed_experts);
  shape.num_experts_per_tok = static_cast<int32_t>(num_experts_per_tok);
  shape.n_group = static_cast<int32_t>(n_group);
  shape.topk_group = static_cast<int32_t>(topk_group);
  shape.norm_topk_prob = norm_topk_prob;
  shape.routed_scaling_factor = static_cast<float>(routed_scaling_factor);
  return shape;
}

double ModelConfig::softmax_scale() const {
  const bool yarn = rope_scaling.type == RopeType::kYarn;
  const double m = yarn ? yarn_scale(rope_scaling.factor, rope_scaling.mscale_all_dim) : 1;
  return m * m / std::sqrt(static_cast<double>(qk_head_dim()));
}

namespace {

double base_frequency(const ModelConfig& config, int64_t pair) {
  return std::pow(config.rope_theta,
                  -2.0 * static_cast<double>(pair) / static_cast<double>(config.rope_head_dim()));
}

std::vector<double> yarn_frequencies(const ModelConfig& config) {
  const RopeScaling& scaling = config.rope_scaling;
  const auto dim = static_cast<double>(config.rope_head_dim());
  const auto original = static_cast<double>(scaling.original_max_position_embeddings);
  // The (fractional) pair that turns `rotations` times over the original context.
  const auto pair_of = [&](double rotations) {
    return dim * std::log(original / (2 * std::numbers::pi * rotations)) /
           (2 * std::log(config.rope_theta));
  };
  const double low = std::max(std::floor(pair_of(scaling.beta_fast)), 0.0);
  double high = std::min(std::ceil(pair_of(scaling.beta_slow)), dim - 1);
  if (low == high) high += 0.001;  // as the published code does, against a division by zero
  std::vector<double> frequencies;
  for (int64_t i = 0; i < config.rope_head_dim() / 2; ++i) {
    const double base = base_frequency(config, i);
    const double ramp = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
    frequencies.push_back(base * (1 - ramp) + base / scaling.factor * ramp);
  }
  return frequencies;
}

// Pairs that turn often over the original context stay, those that turn seldom are slowed down by
// the factor, those between are mixed.
double llama3_frequency(const RopeScaling& scaling, double base) {
  const auto original = static_cast<double>(scaling.original_max_position_embeddings);
  const double turns = original * base / (2 * std::numbers::pi);
  const double kept = std::clamp(
      (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor), 0.0,
      1.0);
  return (1 - kept) * base / scaling.factor + kept * base;
}

}  // namespace

std::vector<double> ModelConfig::rope_inv_freq() const {
  if (rope_scaling.type == RopeType::kYarn) return yarn_frequencies(*this);
  std::vector<double> frequencies;
  for (int64_t i = 0; i < rope_head_dim() / 2; ++i) {
    const double base = base_frequency(*this, i);
    frequencies.push_back(rope_scaling.type == RopeType::kLlama3
                              ? llama3_frequency(rope_scaling, base)
                              : base / rope_scaling.factor);
  }
  return frequencies;
}

double ModelConfig::rope_magnitude() const {
  if (rope_scaling.type != RopeType::kYarn) return 1;
  return yarn_scale(rope_scaling.factor, rope_scaling.mscale) /
         yarn_scale(rope_scaling.factor, rope_scaling.mscale_all_dim);
}

}  // namespace atl::model
