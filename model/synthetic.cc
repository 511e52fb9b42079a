#include "model/synthetic.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstring>
#include <exception>
#include <fstream>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string_view>
#include <thread>

#include "base/check.h"
#include "base/result.h"
#include "base/units.h"
#include "kernels/panel.h"

namespace atl::model {
namespace {

using kernels::WeightFormat;
using storage::DType;
using storage::TensorInfo;
using storage::TensorSpec;

constexpr std::string_view kScaleSuffix = "_scale_inv";
constexpr size_t kChunkBytes = 1 * kMiB;
constexpr int kTableBits = 12;
constexpr size_t kTableSize = size_t{1} << kTableBits;
// An FP8 code of 448 stands for this many standard deviations, just past the largest of 256
// quantiles (2.89).
constexpr double kFp8Deviations = 3.0;

class TensorList {
 public:
  TensorList(const ModelConfig& config, WeightFormat format) : config_(config), format_(format) {}

  std::vector<TensorSpec> build() {
    const int64_t layers = config_.num_hidden_layers;
    plain("model.embed_tokens.weight", {config_.vocab_size, config_.hidden_size});
    for (int64_t layer = 0; layer < layers; ++layer) add_layer(layer, config_.is_moe_layer(layer));
    plain("model.norm.weight", {config_.hidden_size});
    if (!config_.tie_word_embeddings) {
      plain("lm_head.weight", {config_.vocab_size, config_.hidden_size});
    }
    for (int64_t i = 0; i < config_.num_nextn_predict_layers; ++i) add_mtp(layers + i);
    return std::move(tensors_);
  }

 private:
  void plain(const std::string& name, std::vector<int64_t> shape) {
    tensors_.push_back(
        {name, format_ == WeightFormat::kF32 ? DType::kF32 : DType::kBf16, std::move(shape)});
  }
  void matrix(const std::string& name, int64_t rows, int64_t cols) {
    if (format_ != WeightFormat::kFp8E4m3) return plain(name, {rows, cols});
    tensors_.push_back({name, DType::kF8E4m3, {rows, cols}});
    tensors_.push_back(
        {name + std::string(kScaleSuffix),
         DType::kF32,
         {ceil_div(rows, kernels::kScaleBlock), ceil_div(cols, kernels::kScaleBlock)}});
  }
  void ffn(const std::string& prefix, int64_t width) {
    matrix(prefix + "gate_proj.weight", width, config_.hidden_size);
    matrix(prefix + "up_proj.weight", width, config_.hidden_size);
    matrix(prefix + "down_proj.weight", config_.hidden_size, width);
  }
  void attention(const std::string& prefix) {
    config_.attention_kind() == AttentionKind::kGqa ? gqa(prefix) : mla(prefix);
  }
  void gqa(const std::string& prefix) {
    const int64_t hidden = config_.hidden_size;
    const int64_t q_rows = config_.num_attention_heads * config_.head_dim;
    const int64_t kv_rows = config_.num_key_value_heads * config_.head_dim;
    const auto projection = [&](const char* name, int64_t rows) {
      matrix(fmt::format("{}{}.weight", prefix, name), rows, hidden);
      if (config_.has_qkv_bias()) plain(fmt::format("{}{}.bias", prefix, name), {rows});
    };
    projection("q_proj", q_rows);
    projection("k_proj", kv_rows);
    projection("v_proj", kv_rows);
    matrix(prefix + "o_proj.weight", hidden, q_rows);
  }
  void mla(const std::string& prefix) {
    const int64_t heads = config_.num_attention_heads;
    const int64_t hidden = config_.hidden_size;
    const int64_t q_rows = heads * config_.qk_head_dim();
    if (config_.q_lora_rank == 0) {
      matrix(prefix + "q_proj.weight", q_rows, hidden);
    } else {
      matrix(prefix + "q_a_proj.weight", config_.q_lora_rank, hidden);
      plain(prefix + "q_a_layernorm.weight", {config_.q_lora_rank});
      matrix(prefix + "q_b_proj.weight", q_rows, config_.q_lora_rank);
    }
    matrix(prefix + "kv_a_proj_with_mqa.weight", config_.kv_lora_rank + config_.qk_rope_head_dim,
           hidden);
    plain(prefix + "kv_a_layernorm.weight", {config_.kv_lora_rank});
    matrix(prefix + "kv_b_proj.weight", heads * (config_.qk_nope_head_dim + config_.v_head_dim),
           config_.kv_lora_rank);
    matrix(prefix + "o_proj.weight", hidden, heads * config_.v_head_dim);
  }
  void moe(const std::string& prefix) {
    plain(prefix + "gate.weight", {config_.n_routed_experts, config_.hidden_size});
    if (config_.has_correction_bias()) {
      tensors_.push_back(
          {prefix + "gate.e_score_correction_bias", DType::kF32, {config_.n_routed_experts}});
    }
    for (int64_t e = 0; e < config_.n_routed_experts; ++e) {
      ffn(fmt::format("{}experts.{}.", prefix, e), config_.moe_intermediate_size);
    }
    if (config_.n_shared_experts > 0) {
      ffn(prefix + "shared_experts.", config_.n_shared_experts * config_.moe_intermediate_size);
    }
  }
  void add_layer(int64_t layer, bool is_moe) {
    const std::string prefix = fmt::format("model.layers.{}.", layer);
    plain(prefix + "input_layernorm.weight", {config_.hidden_size});
    attention(prefix + "self_attn.");
    plain(prefix + "post_attention_layernorm.weight", {config_.hidden_size});
    if (is_moe) {
      moe(prefix + "mlp.");
    } else {
      ffn(prefix + "mlp.", config_.intermediate_size);
    }
  }
  void add_mtp(int64_t layer) {
    const std::string prefix = fmt::format("model.layers.{}.", layer);
    const int64_t hidden = config_.hidden_size;
    add_layer(layer, true);
    plain(prefix + "enorm.weight", {hidden});
    plain(prefix + "hnorm.weight", {hidden});
    plain(prefix + "eh_proj.weight", {hidden, 2 * hidden});
    plain(prefix + "shared_head.norm.weight", {hidden});
    plain(prefix + "embed_tokens.weight", {config_.vocab_size, hidden});
    plain(prefix + "shared_head.head.weight", {config_.vocab_size, hidden});
  }

  const ModelConfig& config_;
  WeightFormat format_;
  std::vector<TensorSpec> tensors_;
};

// Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014 (splitmix64).
uint64_t mix(uint64_t value) {
  value += 0x9e3779b97f4a7c15u;
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9u;
  value = (value ^ (value >> 27)) * 0x94d049bb133111ebu;
  return value ^ (value >> 31);
}

// The MTP layer's embedding and head are copies of the main ones.
std::string_view stream_name(std::string_view name) {
  if (name.starts_with("model.layers.") && name.ends_with(".embed_tokens.weight")) {
    return "model.embed_tokens.weight";
  }
  return name.ends_with(".shared_head.head.weight") ? "lm_head.weight" : name;
}

uint64_t stream_key(uint64_t seed, std::string_view name) {
  uint64_t key = mix(seed);
  for (const char c : stream_name(name)) key = mix(key ^ static_cast<unsigned char>(c));
  return key;
}

// x with P(X < x) = p for a standard normal X, by bisection.
double normal_quantile(double p) {
  double low = -10, high = 10;
  for (int i = 0; i < 60; ++i) {
    const double middle = (low + high) / 2;
    (0.5 * std::erfc(-middle / std::sqrt(2.0)) < p ? low : high) = middle;
  }
  return low;
}

struct NormalTables {
  std::array<double, kTableSize> values;
  std::array<uint8_t, 256> fp8_codes;  // 448 / kFp8Deviations per standard deviation
};

uint8_t nearest_e4m3(double value) {
  int best = 0;
  for (int code = 0; code < 256; ++code) {
    if (kernels::e4m3_is_nan(static_cast<uint8_t>(code))) continue;
    const double distance = std::abs(kernels::e4m3_to_float(static_cast<uint8_t>(code)) - value);
    if (distance < std::abs(kernels::e4m3_to_float(static_cast<uint8_t>(best)) - value)) {
      best = code;
    }
  }
  return static_cast<uint8_t>(best);
}

const NormalTables& normal_tables() {
  static const NormalTables tables = [] {
    NormalTables made;
    for (size_t i = 0; i < kTableSize; ++i) {
      made.values[i] = normal_quantile((static_cast<double>(i) + 0.5) / kTableSize);
    }
    for (int i = 0; i < 256; ++i) {
      made.fp8_codes[i] = nearest_e4m3(normal_quantile((i + 0.5) / 256) * 448 / kFp8Deviations);
    }
    return made;
  }();
  return tables;
}

// The 4096 values that the elements of one BF16 or F32 tensor are drawn from.
std::array<float, kTableSize> value_table(const TensorInfo& tensor) {
  const std::string_view name = tensor.name;
  std::array<float, kTableSize> table;
  const bool one_dimension = tensor.shape.size() == 1;
  double deviation = 1;
  if (!one_dimension && !name.ends_with("embed_tokens.weight")) {
    deviation = 1 / std::sqrt(static_cast<double>(tensor.shape.back()));
  }
  for (size_t i = 0; i < kTableSize; ++i) {
    const double uniform = (static_cast<double>(i) + 0.5) / kTableSize;
    const double value = name.ends_with("_bias") || name.ends_with(".bias") ? 0.2 * uniform - 0.1
                         : one_dimension                                    ? 0.5 + uniform
                                         : normal_tables().values[i] * deviation;
    table[i] = static_cast<float>(value);
  }
  return table;
}

void fill_fp8(uint64_t key, uint64_t first, std::span<std::byte> out) {
  const std::array<uint8_t, 256>& codes = normal_tables().fp8_codes;
  for (size_t i = 0; i < out.size(); i += 8) {
    uint64_t word = mix(key + (first + i) / 8);
    for (size_t j = i; j < std::min(i + 8, out.size()); ++j, word >>= 8) {
      out[j] = static_cast<std::byte>(codes[word & 0xff]);
    }
  }
}

// Five draws of 12 bits would fit into a word; four keep element / 4 a shift.
template <typename T, typename Convert>
void fill_plain(uint64_t key, uint64_t first_byte, std::span<std::byte> out,
                const std::array<float, kTableSize>& values, Convert convert) {
  std::array<T, kTableSize> table;
  std::transform(values.begin(), values.end(), table.begin(), convert);
  const uint64_t first = first_byte / sizeof(T);
  const size_t count = out.size() / sizeof(T);
  for (size_t i = 0; i < count; i += 4) {
    uint64_t word = mix(key + (first + i) / 4);
    for (size_t j = i; j < std::min(i + 4, count); ++j, word >>= kTableBits) {
      std::memcpy(out.data() + j * sizeof(T), &table[word & (kTableSize - 1)], sizeof(T));
    }
  }
}

// Scales of an FP8 matrix: deviation 1/sqrt(k) times 0.5 .. 1.5 for each block.
void fill_scales(uint64_t key, uint64_t first_byte, std::span<std::byte> out, int64_t k) {
  const double base = kFp8Deviations / 448 / std::sqrt(static_cast<double>(k));
  for (size_t i = 0; i < out.size() / sizeof(float); ++i) {
    const uint64_t word = mix(key + first_byte / sizeof(float) + i);
    const auto scale = static_cast<float>(base * (0.5 + static_cast<double>(word >> 11) * 0x1p-53));
    std::memcpy(out.data() + i * sizeof scale, &scale, sizeof scale);
  }
}

// Bytes [begin, begin + out.size()) of a tensor; begin is a multiple of kChunkBytes. For a scale
// grid, `k` is the width of its weight.
void fill(const TensorInfo& tensor, uint64_t seed, int64_t k, uint64_t begin,
          std::span<std::byte> out) {
  const uint64_t key = stream_key(seed, tensor.name);
  if (tensor.name.ends_with(kScaleSuffix)) return fill_scales(key, begin, out, k);
  switch (tensor.dtype) {
    case DType::kF8E4m3:
      return fill_fp8(key, begin, out);
    case DType::kBf16:
      return fill_plain<uint16_t>(key, begin, out, value_table(tensor), kernels::float_to_bf16);
    default:
      return fill_plain<float>(key, begin, out, value_table(tensor), [](float v) { return v; });
  }
}

// A piece of a tensor that one thread generates and writes.
struct Chunk {
  size_t tensor = 0;
  uint64_t begin = 0;
};

std::vector<Chunk> chunks_of(std::span<const TensorInfo> tensors) {
  std::vector<Chunk> chunks;
  for (size_t i = 0; i < tensors.size(); ++i) {
    for (uint64_t begin = 0; begin < tensors[i].bytes; begin += kChunkBytes) {
      chunks.push_back({i, begin});
    }
  }
  return chunks;
}

void write_data(storage::CheckpointWriter& writer, const SyntheticSpec& spec, Progress& progress) {
  const std::span<const TensorInfo> tensors = writer.tensors();
  const std::vector<Chunk> chunks = chunks_of(tensors);
  std::atomic<size_t> next{0};
  std::mutex mutex;
  std::exception_ptr error;
  const auto member = [&] {
    try {
      std::vector<std::byte> buffer(kChunkBytes);
      for (size_t i = next++; i < chunks.size(); i = next++) {
        const TensorInfo& tensor = tensors[chunks[i].tensor];
        const bool is_scale = tensor.name.ends_with(kScaleSuffix);
        const int64_t k = is_scale ? tensors[chunks[i].tensor - 1].shape.back() : 0;
        const auto out = std::span(buffer).first(
            std::min<uint64_t>(kChunkBytes, tensor.bytes - chunks[i].begin));
        fill(tensor, spec.seed, k, chunks[i].begin, out);
        writer.write(tensor, chunks[i].begin, out);
        progress.advance(out.size());
      }
    } catch (...) {
      next = chunks.size();
      const std::lock_guard lock(mutex);
      if (!error) error = std::current_exception();
    }
  };
  std::vector<std::thread> threads;
  for (int i = 1; i < spec.num_threads; ++i) threads.emplace_back(member);
  member();
  for (std::thread& thread : threads) thread.join();
  if (error) std::rethrow_exception(error);
}

void write_text(const std::filesystem::path& file, const std::string& text) {
  std::ofstream out(file, std::ios::binary | std::ios::trunc);
  out << text << '\n';
  if (!out.flush()) throw LoadError(fmt::format("{}: cannot write", file.string()));
}

void copy_tokenizer(const std::filesystem::path& from, const std::filesystem::path& to) {
  for (const char* name : {"tokenizer.json", "tokenizer_config.json"}) {
    std::error_code error;
    std::filesystem::copy_file(from / name, to / name,
                               std::filesystem::copy_options::overwrite_existing, error);
    if (error) {
      throw LoadError(fmt::format("{}: cannot copy: {}", (from / name).string(), error.message()));
    }
  }
}

const char* topk_method_name(kernels::TopkMethod method) {
  switch (method) {
    case kernels::TopkMethod::kGreedy:
      return "greedy";
    case kernels::TopkMethod::kGroupLimitedGreedy:
      return "group_limited_greedy";
    case kernels::TopkMethod::kNoauxTc:
      return "noaux_tc";
  }
  return "?";
}

nlohmann::json mla_json(const ModelConfig& c, WeightFormat format) {
  const bool v2 = c.architecture == Architecture::kDeepseekV2;
  nlohmann::json json = {
      {"architectures", {v2 ? "DeepseekV2ForCausalLM" : "DeepseekV3ForCausalLM"}},
      {"model_type", v2                                        ? "deepseek_v2"
                     : c.architecture == Architecture::kKimiK2 ? "kimi_k2"
                                                               : "deepseek_v3"},
      {"vocab_size", c.vocab_size},
      {"hidden_size", c.hidden_size},
      {"intermediate_size", c.intermediate_size},
      {"moe_intermediate_size", c.moe_intermediate_size},
      {"num_hidden_layers", c.num_hidden_layers},
      {"first_k_dense_replace", c.first_k_dense_replace},
      {"moe_layer_freq", c.moe_layer_freq},
      {"num_attention_heads", c.num_attention_heads},
      {"num_key_value_heads", c.num_attention_heads},
      {"kv_lora_rank", c.kv_lora_rank},
      {"qk_nope_head_dim", c.qk_nope_head_dim},
      {"qk_rope_head_dim", c.qk_rope_head_dim},
      {"v_head_dim", c.v_head_dim},
      {"n_routed_experts", c.n_routed_experts},
      {"n_shared_experts", c.n_shared_experts},
      {"num_experts_per_tok", c.num_experts_per_tok},
      {"n_group", c.n_group},
      {"topk_group", c.topk_group},
      {"topk_method", topk_method_name(c.topk_method)},
      {"scoring_func", c.scoring_func == kernels::ScoringFunc::kSigmoid ? "sigmoid" : "softmax"},
      {"norm_topk_prob", c.norm_topk_prob},
      {"routed_scaling_factor", c.routed_scaling_factor},
      {"rms_norm_eps", c.rms_norm_eps},
      {"rope_theta", c.rope_theta},
      {"max_position_embeddings", c.max_position_embeddings},
      {"num_nextn_predict_layers", c.num_nextn_predict_layers},
      {"hidden_act", "silu"},
      {"attention_bias", false},
      {"tie_word_embeddings", false},
      {"torch_dtype", format == WeightFormat::kF32 ? "float32" : "bfloat16"}};
  json["q_lora_rank"] = c.q_lora_rank == 0 ? nlohmann::json() : nlohmann::json(c.q_lora_rank);
  const RopeScaling& rope = c.rope_scaling;
  json["rope_scaling"] = {
      {"type", "yarn"},
      {"factor", rope.factor},
      {"original_max_position_embeddings", rope.original_max_position_embeddings},
      {"beta_fast", rope.beta_fast},
      {"beta_slow", rope.beta_slow},
      {"mscale", rope.mscale},
      {"mscale_all_dim", rope.mscale_all_dim}};
  return json;
}

nlohmann::json rope_json(const RopeScaling& rope) {
  switch (rope.type) {
    case RopeType::kDefault:
      break;
    case RopeType::kLinear:
      return {{"rope_type", "linear"}, {"factor", rope.factor}};
    case RopeType::kLlama3:
      return {{"rope_type", "llama3"},
              {"factor", rope.factor},
              {"low_freq_factor", rope.low_freq_factor},
              {"high_freq_factor", rope.high_freq_factor},
              {"original_max_position_embeddings", rope.original_max_position_embeddings}};
    case RopeType::kYarn:
      return {{"rope_type", "yarn"},
              {"factor", rope.factor},
              {"original_max_position_embeddings", rope.original_max_position_embeddings},
              {"beta_fast", rope.beta_fast},
              {"beta_slow", rope.beta_slow}};
  }
  return nullptr;
}

nlohmann::json gqa_json(const ModelConfig& c, WeightFormat format) {
  const bool qwen = c.architecture == Architecture::kQwen2;
  return {{"architectures", {qwen ? "Qwen2ForCausalLM" : "LlamaForCausalLM"}},
          {"model_type", qwen ? "qwen2" : "llama"},
          {"vocab_size", c.vocab_size},
          {"hidden_size", c.hidden_size},
          {"intermediate_size", c.intermediate_size},
          {"num_hidden_layers", c.num_hidden_layers},
          {"num_attention_heads", c.num_attention_heads},
          {"num_key_value_heads", c.num_key_value_heads},
          {"head_dim", c.head_dim},
          {"rms_norm_eps", c.rms_norm_eps},
          {"rope_theta", c.rope_theta},
          {"rope_scaling", rope_json(c.rope_scaling)},
          {"max_position_embeddings", c.max_position_embeddings},
          {"hidden_act", "silu"},
          {"tie_word_embeddings", c.tie_word_embeddings},
          {"torch_dtype", format == WeightFormat::kF32 ? "float32" : "bfloat16"}};
}

nlohmann::json config_json(const ModelConfig& c, WeightFormat format) {
  nlohmann::json json =
      c.attention_kind() == AttentionKind::kGqa ? gqa_json(c, format) : mla_json(c, format);
  if (c.bos_token_id) json["bos_token_id"] = *c.bos_token_id;
  if (format == WeightFormat::kFp8E4m3) {
    json["quantization_config"] = {{"quant_method", "fp8"},
                                   {"fmt", "e4m3"},
                                   {"activation_scheme", "dynamic"},
                                   {"weight_block_size", {128, 128}}};
  }
  return json;
}

}  // namespace

std::vector<storage::TensorSpec> synthetic_tensors(const SyntheticSpec& spec) {
  return TensorList(spec.config, spec.format).build();
}

void write_config(const std::filesystem::path& model_dir, const SyntheticSpec& spec) {
  write_text(model_dir / "config.json", config_json(spec.config, spec.format).dump(2));
  if (!spec.config.eos_token_ids.empty()) {
    write_text(model_dir / "generation_config.json",
               nlohmann::json{{"eos_token_id", spec.config.eos_token_ids}}.dump(2));
  }
}

void write_synthetic_checkpoint(const std::filesystem::path& model_dir, const SyntheticSpec& spec,
                                Progress& progress) {
  CHECK_GE(spec.num_threads, 1);
  storage::CheckpointWriter writer(model_dir, synthetic_tensors(spec), spec.shard_bytes);
  progress.start(writer.data_bytes());
  write_data(writer, spec, progress);
  writer.finish();
  write_config(model_dir, spec);
  if (!spec.tokenizer_dir.empty()) copy_tokenizer(spec.tokenizer_dir, model_dir);
}

void write_synthetic_checkpoint(const std::filesystem::path& model_dir, const SyntheticSpec& spec) {
  NoProgress progress;
  write_synthetic_checkpoint(model_dir, spec, progress);
}

}  // namespace atl::model
