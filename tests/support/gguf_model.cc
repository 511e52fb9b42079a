#include "tests/support/gguf_model.h"

#include <cmath>
#include <cstring>
#include <map>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <vector>

#include "base/progress.h"
#include "kernels/numeric_types.h"
#include "model/config.h"
#include "model/synthetic.h"
#include "storage/checkpoint/checkpoint.h"
#include "storage/checkpoint/safetensors_writer.h"
#include "tests/support/gguf_bytes.h"
#include "tests/support/golden.h"
#include "tests/support/temp_dir.h"

namespace atl::test {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

constexpr uint32_t kF32 = 0, kQ8_0 = 8, kBf16 = 30;

struct Tensor {
  std::vector<uint64_t> shape;
  std::vector<float> values;
};
using Tensors = std::map<std::string, Tensor>;

bool is_mtp(const model::ModelConfig& config, const std::string& name) {
  return name.starts_with("model.layers." + std::to_string(config.num_hidden_layers) + ".");
}

Tensors read_tensors(const fs::path& dir, const model::ModelConfig& config) {
  const storage::Checkpoint checkpoint = storage::Checkpoint::open(dir);
  Tensors tensors;
  for (const storage::TensorInfo& info : checkpoint.tensors()) {
    if (is_mtp(config, info.name)) continue;
    std::vector<std::byte> raw(info.bytes);
    checkpoint.read(info, 0, raw);
    Tensor& tensor = tensors[info.name];
    tensor.shape.assign(info.shape.begin(), info.shape.end());
    tensor.values.resize(static_cast<size_t>(info.elements()));
    for (size_t i = 0; i < tensor.values.size(); ++i) {
      if (info.dtype == storage::DType::kF32) {
        std::memcpy(&tensor.values[i], raw.data() + 4 * i, 4);
      } else if (info.dtype == storage::DType::kBf16) {
        uint16_t bits;
        std::memcpy(&bits, raw.data() + 2 * i, 2);
        tensor.values[i] = kernels::bf16_to_float(bits);
      } else {
        throw std::runtime_error(info.name + ": neither F32 nor BF16");
      }
    }
  }
  return tensors;
}

// A scale that is a power of two, so that FP16 holds it and products are exact.
float q8_scale(const float* block) {
  float largest = 0;
  for (int i = 0; i < 32; ++i) largest = std::max(largest, std::abs(block[i]));
  return largest == 0 ? 0 : std::exp2(std::ceil(std::log2(largest / 127)));
}

uint16_t f16_power_of_two(float value) {
  return value == 0 ? 0 : static_cast<uint16_t>((std::ilogb(value) + 15) << 10);
}

std::string encode(const std::vector<float>& values, uint32_t type) {
  std::string out;
  if (type == kF32) {
    out.assign(reinterpret_cast<const char*>(values.data()), values.size() * 4);
  } else if (type == kBf16) {
    for (const float value : values) {
      const uint16_t bits = kernels::float_to_bf16(value);
      out.append(reinterpret_cast<const char*>(&bits), 2);
    }
  } else {
    for (size_t at = 0; at < values.size(); at += 32) {
      const float scale = q8_scale(&values[at]);
      const uint16_t bits = f16_power_of_two(scale);
      out.append(reinterpret_cast<const char*>(&bits), 2);
      for (size_t i = at; i < at + 32; ++i) {
        out += static_cast<char>(scale == 0 ? 0 : std::lrint(values[i] / scale));
      }
    }
  }
  return out;
}

std::vector<float> rounded(const std::vector<float>& values, uint32_t type) {
  std::vector<float> out(values);
  if (type == kBf16) {
    for (float& value : out) value = kernels::bf16_to_float(kernels::float_to_bf16(value));
  } else if (type == kQ8_0) {
    for (size_t i = 0; i < out.size(); ++i) {
      const float scale = q8_scale(&values[i / 32 * 32]);
      out[i] = scale == 0 ? 0 : static_cast<float>(std::lrint(values[i] / scale)) * scale;
    }
  }
  return out;
}

// [heads, rows, cols] of `values` [heads, head_rows, cols] from row `begin` on, perhaps transposed.
std::vector<float> cut_heads(const std::vector<float>& values, int64_t heads, int64_t head_rows,
                             int64_t cols, int64_t begin, int64_t rows, bool transposed) {
  std::vector<float> out(static_cast<size_t>(heads * rows * cols));
  for (int64_t h = 0; h < heads; ++h) {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < cols; ++c) {
        const int64_t place = transposed ? (h * cols + c) * rows + r : (h * rows + r) * cols + c;
        out[static_cast<size_t>(place)] =
            values[static_cast<size_t>((h * head_rows + begin + r) * cols + c)];
      }
    }
  }
  return out;
}

bool is_matrix(const std::string& name, const Tensor& tensor) {
  return tensor.shape.size() == 2 && !name.ends_with("mlp.gate.weight") &&
         name != "model.embed_tokens.weight";
}

const std::map<std::string, std::string>& names() {
  static const std::map<std::string, std::string> all = {
      {"input_layernorm.weight", "attn_norm.weight"},
      {"post_attention_layernorm.weight", "ffn_norm.weight"},
      {"self_attn.q_proj.weight", "attn_q.weight"},
      {"self_attn.q_a_proj.weight", "attn_q_a.weight"},
      {"self_attn.q_a_layernorm.weight", "attn_q_a_norm.weight"},
      {"self_attn.q_b_proj.weight", "attn_q_b.weight"},
      {"self_attn.kv_a_proj_with_mqa.weight", "attn_kv_a_mqa.weight"},
      {"self_attn.kv_a_layernorm.weight", "attn_kv_a_norm.weight"},
      {"self_attn.kv_b_proj.weight", "attn_kv_b.weight"},
      {"self_attn.o_proj.weight", "attn_output.weight"},
      {"mlp.gate_proj.weight", "ffn_gate.weight"},
      {"mlp.up_proj.weight", "ffn_up.weight"},
      {"mlp.down_proj.weight", "ffn_down.weight"},
      {"mlp.gate.weight", "ffn_gate_inp.weight"},
      {"mlp.gate.e_score_correction_bias", "exp_probs_b.bias"},
      {"mlp.shared_experts.gate_proj.weight", "ffn_gate_shexp.weight"},
      {"mlp.shared_experts.up_proj.weight", "ffn_up_shexp.weight"},
      {"mlp.shared_experts.down_proj.weight", "ffn_down_shexp.weight"}};
  return all;
}

void add_config(GgufBytes& bytes, const model::ModelConfig& c, bool joined) {
  const auto integer = [&](const std::string& name, int64_t value) {
    bytes.integer("deepseek2." + name, static_cast<uint32_t>(value));
  };
  const auto number = [&](const std::string& name, double value) {
    bytes.number("deepseek2." + name, static_cast<float>(value));
  };
  bytes.string("general.architecture", "deepseek2");
  integer("block_count", c.num_hidden_layers);
  integer("context_length", c.max_position_embeddings);
  integer("embedding_length", c.hidden_size);
  integer("feed_forward_length", c.intermediate_size);
  integer("vocab_size", c.vocab_size);
  integer("leading_dense_block_count", c.first_k_dense_replace);
  integer("attention.head_count", c.num_attention_heads);
  number("attention.layer_norm_rms_epsilon", c.rms_norm_eps);
  if (c.q_lora_rank > 0) integer("attention.q_lora_rank", c.q_lora_rank);
  integer("attention.kv_lora_rank", c.kv_lora_rank);
  const int64_t key = c.qk_nope_head_dim + c.qk_rope_head_dim;
  integer("attention.key_length", joined ? key : c.kv_lora_rank + c.qk_rope_head_dim);
  integer("attention.value_length", joined ? c.v_head_dim : c.kv_lora_rank);
  if (!joined) {
    integer("attention.key_length_mla", key);
    integer("attention.value_length_mla", c.v_head_dim);
  }
  integer("rope.dimension_count", c.qk_rope_head_dim);
  number("rope.freq_base", c.rope_theta);
  bytes.string("deepseek2.rope.scaling.type", "yarn");
  number("rope.scaling.factor", c.rope_scaling.factor);
  integer("rope.scaling.original_context_length", c.rope_scaling.original_max_position_embeddings);
  number("rope.scaling.yarn_log_multiplier", 0.1 * c.rope_scaling.mscale_all_dim);
  integer("expert_count", c.n_routed_experts);
  integer("expert_used_count", c.num_experts_per_tok);
  integer("expert_shared_count", c.n_shared_experts);
  integer("expert_feed_forward_length", c.moe_intermediate_size);
  integer("expert_group_count", c.n_group);
  integer("expert_group_used_count", c.topk_group);
  integer("expert_gating_func", c.scoring_func == kernels::ScoringFunc::kSigmoid ? 2 : 1);
  number("expert_weights_scale", c.routed_scaling_factor);
  bytes.boolean("deepseek2.expert_weights_norm", c.norm_topk_prob);
}

void add_tokenizer(GgufBytes& bytes, const fs::path& dir, const model::ModelConfig& config) {
  if (!fs::exists(dir / "tokenizer.json")) return;
  const Json json = Json::parse(read_file(dir / "tokenizer.json"));
  const auto size = static_cast<size_t>(config.vocab_size);
  std::vector<std::string> tokens(size), merges;
  std::vector<int32_t> types(size, 5);
  for (size_t i = 0; i < size; ++i) tokens[i] = "[PAD" + std::to_string(i) + "]";
  for (const auto& [text, id] : json["model"]["vocab"].items()) {
    tokens[id.get<size_t>()] = text;
    types[id.get<size_t>()] = 1;
  }
  for (const Json& token : json["added_tokens"]) {
    tokens[token["id"].get<size_t>()] = token["content"];
    types[token["id"].get<size_t>()] = token["special"].get<bool>() ? 3 : 4;
  }
  for (const Json& merge : json["model"]["merges"]) {
    merges.push_back(merge.is_string()
                         ? merge.get<std::string>()
                         : merge[0].get<std::string>() + " " + merge[1].get<std::string>());
  }
  const Json settings = Json::parse(read_file(dir / "tokenizer_config.json"));
  bytes.string("tokenizer.ggml.model", "gpt2").string("tokenizer.ggml.pre", "deepseek-v3");
  bytes.strings("tokenizer.ggml.tokens", tokens).strings("tokenizer.ggml.merges", merges);
  bytes.integers("tokenizer.ggml.token_type", types);
  bytes.integer("tokenizer.ggml.bos_token_id", static_cast<uint32_t>(*config.bos_token_id));
  bytes.integer("tokenizer.ggml.eos_token_id", static_cast<uint32_t>(config.eos_token_ids[0]));
  bytes.boolean("tokenizer.ggml.add_bos_token", settings["add_bos_token"].get<bool>());
  if (settings.contains("chat_template")) {
    bytes.string("tokenizer.chat_template", settings["chat_template"].get<std::string>());
  }
}

struct Entry {
  std::string name;
  std::vector<uint64_t> shape;
  uint32_t type = kF32;
  std::string data;
};

std::vector<Entry> entries_of(const Tensors& tensors, const model::ModelConfig& c,
                              const GgufModelSpec& spec) {
  std::vector<Entry> entries;
  std::map<std::string, Tensor> stacks;
  const auto add = [&](const std::string& name, const std::vector<uint64_t>& shape, uint32_t type,
                       const std::vector<float>& values) {
    entries.push_back({name, shape, type, encode(values, type)});
  };
  for (const auto& [name, tensor] : tensors) {
    const uint32_t type = is_matrix(name, tensor) ? spec.type : kF32;
    if (name == "model.embed_tokens.weight") {
      // BF16 as it was, so that the embedding is the same tensor.
      add("token_embd.weight", tensor.shape, spec.type == kF32 ? kF32 : kBf16, tensor.values);
    } else if (name == "model.norm.weight") {
      add("output_norm.weight", tensor.shape, type, tensor.values);
    } else if (name == "lm_head.weight") {
      add("output.weight", tensor.shape, type, tensor.values);
    } else {
      const std::string behind = name.substr(std::string("model.layers.").size());
      const std::string block = "blk." + behind.substr(0, behind.find('.')) + ".";
      const std::string rest = behind.substr(behind.find('.') + 1);
      if (rest.starts_with("mlp.experts.")) {
        const size_t dot = rest.find('.', 12);
        const std::string part = rest.substr(dot + 1, rest.find('_', dot) - dot - 1);
        Tensor& stack = stacks[block + "ffn_" + part + "_exps.weight"];
        if (stack.values.empty()) {
          const auto experts = static_cast<size_t>(c.n_routed_experts);
          stack.shape = {experts, tensor.shape[0], tensor.shape[1]};
          stack.values.resize(experts * tensor.values.size());
        }
        std::copy(tensor.values.begin(), tensor.values.end(),
                  stack.values.begin() + std::stol(rest.substr(12, dot - 12)) *
                                             static_cast<long>(tensor.values.size()));
      } else if (rest == "self_attn.kv_b_proj.weight" && !spec.joined_kv_b) {
        const int64_t heads = c.num_attention_heads, nope = c.qk_nope_head_dim, v = c.v_head_dim;
        const int64_t rank = c.kv_lora_rank;
        const auto size = [](int64_t value) { return static_cast<uint64_t>(value); };
        add(block + "attn_k_b.weight", {size(heads), size(rank), size(nope)}, spec.type,
            cut_heads(tensor.values, heads, nope + v, rank, 0, nope, true));
        add(block + "attn_v_b.weight", {size(heads), size(v), size(rank)}, spec.type,
            cut_heads(tensor.values, heads, nope + v, rank, nope, v, false));
      } else {
        add(block + names().at(rest), tensor.shape, type, tensor.values);
      }
    }
  }
  for (const auto& [name, stack] : stacks) add(name, stack.shape, spec.type, stack.values);
  return entries;
}

std::string split_path(const fs::path& stem, int number, int count) {
  char tail[32];
  std::snprintf(tail, sizeof tail, "-%05d-of-%05d.gguf", number, count);
  return stem.string() + tail;
}

}  // namespace

void write_gguf_model(const fs::path& model_dir, const fs::path& out, const GgufModelSpec& spec) {
  const model::ModelConfig config = model::load_config(model_dir);
  const auto entries = entries_of(read_tensors(model_dir, config), config, spec);
  for (int number = 1; number <= spec.splits; ++number) {
    GgufBytes bytes;
    if (number == 1) {
      add_config(bytes, config, spec.joined_kv_b);
      add_tokenizer(bytes, model_dir, config);
    }
    if (spec.splits > 1) {
      bytes.integer("split.no", static_cast<uint32_t>(number - 1));
      bytes.integer("split.count", static_cast<uint32_t>(spec.splits));
    }
    for (size_t i = 0; i < entries.size(); ++i) {
      if (static_cast<int>(i % static_cast<size_t>(spec.splits)) != number - 1) continue;
      bytes.tensor(entries[i].name, entries[i].shape, entries[i].type, entries[i].data);
    }
    write_file(spec.splits == 1 ? out : fs::path(split_path(out, number, spec.splits)),
               bytes.file());
  }
}

void write_dequantized_model(const fs::path& model_dir, const fs::path& out, uint32_t type) {
  const model::ModelConfig config = model::load_config(model_dir);
  const Tensors tensors = read_tensors(model_dir, config);
  fs::create_directories(out);
  std::vector<storage::TensorSpec> specs;
  for (const auto& [name, tensor] : tensors) {
    specs.push_back({name, storage::DType::kF32, {tensor.shape.begin(), tensor.shape.end()}});
  }
  storage::CheckpointWriter writer(out, specs, uint64_t{1} << 40);
  size_t at = 0;
  for (const auto& [name, tensor] : tensors) {
    // k_b's blocks lie along the values of k, not along the latent.
    std::vector<float> values = tensor.values;
    if (is_matrix(name, tensor) && !name.ends_with("kv_b_proj.weight")) {
      values = rounded(values, type);
    } else if (is_matrix(name, tensor)) {
      const int64_t heads = config.num_attention_heads, nope = config.qk_nope_head_dim;
      const int64_t v = config.v_head_dim, rank = config.kv_lora_rank, rows = nope + v;
      const auto k = rounded(cut_heads(values, heads, rows, rank, 0, nope, true), type);
      const auto b = rounded(cut_heads(values, heads, rows, rank, nope, v, false), type);
      for (int64_t i = 0; i < heads * rows * rank; ++i) {
        const int64_t head = i / rank / rows, row = i / rank % rows, col = i % rank;
        values[static_cast<size_t>(i)] =
            row < nope ? k[static_cast<size_t>((head * rank + col) * nope + row)]
                       : b[static_cast<size_t>((head * v + row - nope) * rank + col)];
      }
    }
    writer.write(writer.tensors()[at++], 0, std::as_bytes(std::span(values)));
  }
  writer.finish();
  for (const char* name : {"config.json", "tokenizer.json", "tokenizer_config.json"}) {
    if (fs::exists(model_dir / name)) fs::copy_file(model_dir / name, out / name);
  }
}

void write_small_bf16_model(const fs::path& dir) {
  model::SyntheticSpec spec;
  spec.config = model::load_config(tests_dir() / "models/tiny-bf16");
  spec.config.num_hidden_layers = 2;
  spec.config.num_nextn_predict_layers = 0;
  spec.config.n_routed_experts = 8;
  spec.config.n_group = 2;
  spec.config.topk_group = 1;
  spec.config.num_experts_per_tok = 3;
  spec.format = kernels::WeightFormat::kBf16;
  spec.tokenizer_dir = tests_dir() / "models/tiny-bf16";
  model::write_synthetic_checkpoint(dir, spec);
}

}  // namespace atl::test
