// atoll synth: a checkpoint with true shapes and random weights, to measure without the model.
#include "cli/synth.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "base/one_line.h"
#include "base/thread_team.h"
#include "base/units.h"
#include "cli/commands.h"
#include "cli/output.h"
#include "cli/progress_bar.h"
#include "model/synthetic.h"

namespace atl::cli {
namespace {

namespace fs = std::filesystem;
using kernels::WeightFormat;
using model::Architecture;
using model::ModelConfig;

struct SynthOptions {
  std::string like;
  SynthShape shape;
  std::string format;  // empty: as published
  uint64_t seed = 1;
  fs::path out;
};

ModelConfig deepseek_v3() {
  ModelConfig c;
  c.architecture = Architecture::kDeepseekV3;
  c.model_type = "deepseek_v3";
  c.vocab_size = 129280;
  c.hidden_size = 7168;
  c.intermediate_size = 18432;
  c.moe_intermediate_size = 2048;
  c.num_hidden_layers = 61;
  c.first_k_dense_replace = 3;
  c.num_attention_heads = 128;
  c.q_lora_rank = 1536;
  c.kv_lora_rank = 512;
  c.qk_nope_head_dim = 128;
  c.qk_rope_head_dim = 64;
  c.v_head_dim = 128;
  c.n_routed_experts = 256;
  c.n_shared_experts = 1;
  c.num_experts_per_tok = 8;
  c.n_group = 8;
  c.topk_group = 4;
  c.topk_method = kernels::TopkMethod::kNoauxTc;
  c.scoring_func = kernels::ScoringFunc::kSigmoid;
  c.norm_topk_prob = true;
  c.routed_scaling_factor = 2.5;
  c.rope_scaling = {.factor = 40,
                    .original_max_position_embeddings = 4096,
                    .beta_fast = 32,
                    .beta_slow = 1,
                    .mscale = 1,
                    .mscale_all_dim = 1};
  c.max_position_embeddings = 163840;
  c.fp8 = true;
  return c;
}

// K2 is V3 with more experts, fewer heads and no groups.
ModelConfig kimi_k2() {
  ModelConfig c = deepseek_v3();
  c.architecture = Architecture::kKimiK2;
  c.model_type = "kimi_k2";
  c.vocab_size = 163840;
  c.first_k_dense_replace = 1;
  c.num_attention_heads = 64;
  c.n_routed_experts = 384;
  c.n_group = 1;
  c.topk_group = 1;
  c.routed_scaling_factor = 2.827;
  c.rope_theta = 50000;
  c.rope_scaling.factor = 32;
  c.rope_scaling.beta_fast = 1;
  c.max_position_embeddings = 131072;
  return c;
}

ModelConfig deepseek_v2_lite() {
  ModelConfig c = deepseek_v3();
  c.architecture = Architecture::kDeepseekV2;
  c.model_type = "deepseek_v2";
  c.vocab_size = 102400;
  c.hidden_size = 2048;
  c.intermediate_size = 10944;
  c.moe_intermediate_size = 1408;
  c.num_hidden_layers = 27;
  c.first_k_dense_replace = 1;
  c.num_attention_heads = 16;
  c.q_lora_rank = 0;
  c.n_routed_experts = 64;
  c.n_shared_experts = 2;
  c.num_experts_per_tok = 6;
  c.n_group = 1;
  c.topk_group = 1;
  c.topk_method = kernels::TopkMethod::kGreedy;
  c.scoring_func = kernels::ScoringFunc::kSoftmax;
  c.norm_topk_prob = false;
  c.routed_scaling_factor = 1;
  c.rope_scaling.mscale = 0.707;
  c.rope_scaling.mscale_all_dim = 0.707;
  c.fp8 = false;
  return c;
}

// R1-Distill-Qwen-1.5B, which has Qwen2.5-Math-1.5B's shape.
ModelConfig qwen2_1_5b() {
  ModelConfig c;
  c.architecture = Architecture::kQwen2;
  c.model_type = "qwen2";
  c.vocab_size = 151936;
  c.hidden_size = 1536;
  c.intermediate_size = 8960;
  c.num_hidden_layers = 28;
  c.num_attention_heads = 12;
  c.num_key_value_heads = 2;
  c.head_dim = 128;
  c.rope_theta = 10000;
  c.rope_scaling.type = model::RopeType::kDefault;
  c.max_position_embeddings = 131072;
  return c;
}

// R1-Distill-Llama-8B, which has Llama-3.1-8B's shape.
ModelConfig llama3_8b() {
  ModelConfig c;
  c.architecture = Architecture::kLlama;
  c.model_type = "llama";
  c.vocab_size = 128256;
  c.hidden_size = 4096;
  c.intermediate_size = 14336;
  c.num_hidden_layers = 32;
  c.num_attention_heads = 32;
  c.num_key_value_heads = 8;
  c.head_dim = 128;
  c.rms_norm_eps = 1e-5;
  c.rope_theta = 500000;
  c.rope_scaling.type = model::RopeType::kLlama3;
  c.rope_scaling.factor = 8;
  c.rope_scaling.original_max_position_embeddings = 8192;
  c.rope_scaling.low_freq_factor = 1;
  c.rope_scaling.high_freq_factor = 4;
  c.max_position_embeddings = 131072;
  return c;
}

// What only a model with experts has, asked for of one without.
void refuse_expert_shape(std::string_view like, const SynthShape& shape) {
  const auto refuse = [&](const char* option) {
    throw LoadError(fmt::format("{}: a {} model has no experts", option, like));
  };
  if (shape.n_routed_experts) refuse("--experts");
  if (shape.first_k_dense_replace) refuse("--dense");
  if (shape.mtp) refuse("--mtp");
}

// Heads keep their groups, as far as the number of heads allows.
void shape_gqa(const SynthShape& shape, ModelConfig& c) {
  if (shape.moe_intermediate_size) c.intermediate_size = *shape.moe_intermediate_size;
  if (!shape.num_attention_heads) return;
  const int64_t group = c.num_attention_heads / c.num_key_value_heads;
  c.num_attention_heads = *shape.num_attention_heads;
  c.num_key_value_heads =
      c.num_attention_heads % group == 0 ? c.num_attention_heads / group : c.num_attention_heads;
}

// Fewer experts: fewer groups, each of at least two experts, half of them chosen as published; and
// no more experts per token than the chosen groups have. (docs/model.md 1, rules.)
void fit_router(ModelConfig& c) {
  while (c.n_group > 1 &&
         (c.n_routed_experts % c.n_group != 0 || c.n_routed_experts / c.n_group < 2)) {
    c.n_group /= 2;
    c.topk_group = std::max<int64_t>(1, c.topk_group / 2);
  }
  const int64_t candidates = c.n_routed_experts / c.n_group * c.topk_group;
  c.num_experts_per_tok = std::min(c.num_experts_per_tok, candidates);
}

// The directory itself or the nearest one above it that exists.
fs::path existing_parent(const fs::path& path) {
  std::error_code error;
  fs::path at = fs::absolute(path, error);
  while (!fs::exists(at, error) && at.has_relative_path()) at = at.parent_path();
  return at;
}

// Refuses what would fail or fill the disk half-way. The directory may exist if it is empty.
void check_output(const fs::path& out, uint64_t bytes) {
  std::error_code error;
  const fs::file_status status = fs::status(out, error);
  if (fs::exists(status) && !fs::is_directory(status)) {
    throw LoadError(fmt::format("--out {}: is not a directory", out.string()));
  }
  if (fs::is_directory(status) && !fs::is_empty(out, error)) {
    throw LoadError(fmt::format("--out {}: is not empty; name a new directory or empty this one",
                                out.string()));
  }
  const fs::space_info space = fs::space(existing_parent(out), error);
  if (!error && space.available < bytes) {
    throw LoadError(
        fmt::format("--out {}: the checkpoint takes {}, the file system has {} free; choose fewer "
                    "--layers or --experts, or another disk",
                    out.string(), format_bytes(bytes), format_bytes(space.available)));
  }
  fs::create_directories(out, error);
  if (error) {
    throw LoadError(fmt::format("--out {}: cannot be made: {}", out.string(), error.message()));
  }
}

uint64_t data_bytes(const model::SyntheticSpec& spec) {
  uint64_t bytes = 0;
  for (const storage::TensorSpec& tensor : model::synthetic_tensors(spec)) {
    uint64_t tensor_bytes = storage::dtype_bytes(tensor.dtype);
    for (const int64_t size : tensor.shape) tensor_bytes *= size;
    bytes += tensor_bytes;
  }
  return bytes;
}

void synth(const SynthOptions& options) {
  model::SyntheticSpec spec;
  spec.config = synth_config(options.like, options.shape);
  spec.format = (options.format.empty() ? spec.config.fp8 : options.format == "fp8")
                    ? WeightFormat::kFp8E4m3
                    : WeightFormat::kBf16;
  spec.seed = options.seed;
  spec.num_threads = usable_cores();
  const uint64_t bytes = data_bytes(spec);
  check_output(options.out, bytes);
  ProgressBar bar("writing");
  model::write_synthetic_checkpoint(options.out, spec, bar);
  write_byte_tokenizer(options.out);
  bar.finish();
  write_stdout(fmt::format("{}: {}, {} layers, {} weights, {}\n", one_line(options.out.string()),
                           options.like, spec.config.num_hidden_layers,
                           kernels::to_string(spec.format), format_bytes(bytes)));
}

void add_shape_option(CLI::App& command, const std::string& name, const std::string& what,
                      std::optional<int64_t>* value, int64_t low, int64_t high) {
  command.add_option(name, *value, what + "; as published unless given")
      ->check(CLI::Range(low, high))
      ->type_name("N");
}

}  // namespace

ModelConfig synth_config(std::string_view like, const SynthShape& shape) {
  ModelConfig c = like == "kimi-k2"            ? kimi_k2()
                  : like == "deepseek-v2-lite" ? deepseek_v2_lite()
                  : like == "qwen2-1.5b"       ? qwen2_1_5b()
                  : like == "llama3-8b"        ? llama3_8b()
                                               : deepseek_v3();
  c.num_hidden_layers = shape.num_hidden_layers.value_or(c.num_hidden_layers);
  c.hidden_size = shape.hidden_size.value_or(c.hidden_size);
  c.vocab_size = shape.vocab_size.value_or(c.vocab_size);
  c.bos_token_id = kByteTokenizerBos;
  c.eos_token_ids = {kByteTokenizerEos};
  if (!c.has_experts()) {
    refuse_expert_shape(like, shape);
    shape_gqa(shape, c);
    return c;
  }
  if (shape.first_k_dense_replace) {
    c.first_k_dense_replace = *shape.first_k_dense_replace;
  } else {
    // A slice of few layers keeps at least one with experts.
    c.first_k_dense_replace = std::min(c.first_k_dense_replace, c.num_hidden_layers - 1);
  }
  if (c.first_k_dense_replace > c.num_hidden_layers) {
    throw LoadError(fmt::format("--dense {} is more than the {} layers; give at most --layers",
                                c.first_k_dense_replace, c.num_hidden_layers));
  }
  if (shape.moe_intermediate_size) {
    c.intermediate_size = std::max<int64_t>(
        1, c.intermediate_size * *shape.moe_intermediate_size / c.moe_intermediate_size);
    c.moe_intermediate_size = *shape.moe_intermediate_size;
  }
  c.n_routed_experts = shape.n_routed_experts.value_or(c.n_routed_experts);
  c.num_attention_heads = shape.num_attention_heads.value_or(c.num_attention_heads);
  c.num_nextn_predict_layers = shape.mtp ? 1 : 0;
  fit_router(c);
  return c;
}

void add_synth_command(CLI::App& app, int* exit_code) {
  auto options = std::make_shared<SynthOptions>();
  CLI::App* command = app.add_subcommand(
      "synth", "Write a checkpoint with a published model's shapes and random weights");
  command->add_option("--like", options->like, "Whose shapes")
      ->required()
      ->check(
          CLI::IsMember({"deepseek-v3", "deepseek-v2-lite", "kimi-k2", "qwen2-1.5b", "llama3-8b"}))
      ->type_name("deepseek-v3|deepseek-v2-lite|kimi-k2|qwen2-1.5b|llama3-8b");
  SynthShape& shape = options->shape;
  add_shape_option(*command, "--layers", "Layers", &shape.num_hidden_layers, 1, 1000);
  add_shape_option(*command, "--dense", "Leading layers without experts",
                   &shape.first_k_dense_replace, 0, 1000);
  add_shape_option(*command, "--experts",
                   "Routed experts of a layer; groups and choices shrink along",
                   &shape.n_routed_experts, 2, 65536);
  add_shape_option(*command, "--vocab", "Token ids", &shape.vocab_size, kByteTokenizerIdEnd,
                   int64_t{1} << 22);
  add_shape_option(*command, "--hidden", "Width of a row", &shape.hidden_size, 16, 65536);
  add_shape_option(*command, "--intermediate",
                   "Width of an expert; dense layers keep their ratio to it. Of a model without "
                   "experts: of its layers",
                   &shape.moe_intermediate_size, 16, 65536);
  add_shape_option(*command, "--heads", "Attention heads", &shape.num_attention_heads, 1, 1024);
  command->add_flag("--mtp", shape.mtp, "Add a multi-token-prediction layer");
  command
      ->add_option("--format", options->format,
                   "Of the large matrices: fp8 (128x128 scales) or bf16; as published unless given")
      ->check(CLI::IsMember({"fp8", "bf16"}))
      ->type_name("fp8|bf16");
  command->add_option("--seed", options->seed, "Equal seeds, equal bytes")->capture_default_str();
  command->add_option("--out", options->out, "New or empty directory to write to")
      ->required()
      ->type_name("DIR");
  command->footer(
      "The tokenizer that comes with it has one token for every byte.\n\nExample (13 GB):\n  "
      "atoll synth --like deepseek-v3 --layers 2 --dense 1 --out v3-slice");
  command->callback([options, exit_code] {
    synth(*options);
    *exit_code = 0;
  });
}

}  // namespace atl::cli
