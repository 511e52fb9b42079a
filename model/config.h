// The model's hyperparameters, spelled as in the published config.json. Source: docs/model.md 1.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "kernels/router.h"

namespace atl::model {

// q_a_layernorm and kv_a_layernorm are built with this epsilon, irrespective of rms_norm_eps
// (docs/model.md 3.1).
inline constexpr float kInnerNormEps = 1e-6f;

enum class Architecture : uint8_t { kDeepseekV2, kDeepseekV3, kKimiK2, kQwen2, kLlama };

// How the layers attend, and with it which of the sizes below a model has.
enum class AttentionKind : uint8_t {
  kMla,  // one latent for all heads
  kGqa,  // groups of query heads, each with a head of keys and values
};

enum class RopeType : uint8_t { kDefault, kLinear, kLlama3, kYarn };

struct RopeScaling {  // absent in the config: YaRN of factor 1 with kMla, kDefault with kGqa
  RopeType type = RopeType::kYarn;
  double factor = 1;
  int64_t original_max_position_embeddings = 4096;
  double beta_fast = 32;
  double beta_slow = 1;
  double mscale = 1;
  double mscale_all_dim = 0;
  double low_freq_factor = 1;  // kLlama3
  double high_freq_factor = 4;
};

// A checked value: every size is positive and consistent with the others, so that code that holds
// a ModelConfig need not look again.
struct ModelConfig {
  Architecture architecture = Architecture::kDeepseekV3;
  std::string model_type;  // as in the file
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int64_t moe_intermediate_size = 0;
  int64_t num_hidden_layers = 0;
  int64_t first_k_dense_replace = 0;
  int64_t moe_layer_freq = 1;
  int64_t num_attention_heads = 0;
  // kGqa only:
  int64_t num_key_value_heads = 0;  // divides num_attention_heads
  int64_t head_dim = 0;
  // kMla only:
  int64_t q_lora_rank = 0;  // 0: one q_proj, no q_a/q_b
  int64_t kv_lora_rank = 0;
  int64_t qk_nope_head_dim = 0;
  int64_t qk_rope_head_dim = 0;
  int64_t v_head_dim = 0;
  int64_t n_routed_experts = 0;  // 0: a dense model, as those of kGqa are; no others are then
  int64_t n_shared_experts = 0;
  int64_t num_experts_per_tok = 0;
  int64_t n_group = 1;
  int64_t topk_group = 1;
  kernels::TopkMethod topk_method = kernels::TopkMethod::kNoauxTc;
  kernels::ScoringFunc scoring_func = kernels::ScoringFunc::kSigmoid;
  bool norm_topk_prob = true;
  double routed_scaling_factor = 1;
  double rms_norm_eps = 1e-6;
  double rope_theta = 10000;
  RopeScaling rope_scaling;
  int64_t max_position_embeddings = 0;
  int64_t num_nextn_predict_layers = 0;
  bool fp8 = false;                  // quantization_config: fp8, e4m3, 128x128 blocks
  bool tie_word_embeddings = false;  // the head is the embedding
  std::optional<int32_t> bos_token_id;
  std::vector<int32_t> eos_token_ids;  // generation_config.json first, else config.json

  AttentionKind attention_kind() const {
    const bool grouped =
        architecture == Architecture::kQwen2 || architecture == Architecture::kLlama;
    return grouped ? AttentionKind::kGqa : AttentionKind::kMla;
  }
  bool has_qkv_bias() const { return architecture == Architecture::kQwen2; }
  bool has_experts() const { return n_routed_experts > 0; }
  bool is_moe_layer(int64_t layer) const {
    return n_routed_experts > 0 && layer >= first_k_dense_replace && layer % moe_layer_freq == 0;
  }
  bool has_correction_bias() const { return topk_method == kernels::TopkMethod::kNoauxTc; }
  // Values of a head's query (and key), of its rotated part, and of its result.
  int64_t qk_head_dim() const {
    return attention_kind() == AttentionKind::kGqa ? head_dim : qk_nope_head_dim + qk_rope_head_dim;
  }
  int64_t rope_head_dim() const {
    return attention_kind() == AttentionKind::kGqa ? head_dim : qk_rope_head_dim;
  }
  int64_t o_head_dim() const {
    return attention_kind() == AttentionKind::kGqa ? head_dim : v_head_dim;
  }
  kernels::RouterShape router_shape() const;
  // qk_head_dim^-1/2 * m^2. Source: docs/model.md 3.3.
  double softmax_scale() const;
  // Frequencies [rope_head_dim / 2], the factor on cos and sin. Source: docs/model.md 3.4 and 3.8.
  std::vector<double> rope_inv_freq() const;
  double rope_magnitude() const;
};

// Reads MODEL_DIR/config.json and, if present, generation_config.json; of a GGUF model its metadata
// (docs/gguf.md). LoadError: one line that
// names the file, the key, what was expected and what was found.
ModelConfig load_config(const std::filesystem::path& model_dir);

}  // namespace atl::model
