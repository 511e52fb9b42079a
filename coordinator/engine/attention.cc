#include "coordinator/engine/attention.h"

#include <algorithm>
#include <utility>

namespace atl::coordinator {
namespace {

// Multi-head latent attention in its absorbed form. Source: docs/model.md 3.2.
class MlaAttention final : public Attention {
 public:
  MlaAttention(Compute& compute, StageTimer& timer, std::function<void()> between)
      : compute_(compute), timer_(timer), between_(std::move(between)) {}

  void write_cache(int64_t layer, const AttentionWeights& of_layer) override {
    const auto& weights = std::get<MlaWeights>(of_layer);
    StageScope linears(timer_, Stage::kAttentionLinear);
    compute_.linear(weights.kv_a_proj, Activation::kH, Activation::kKvA);
    compute_.write_latents(layer, weights.kv_a_layernorm);
  }

  void attend(int64_t layer, const AttentionWeights& of_layer, int64_t num_rows) override {
    const auto& weights = std::get<MlaWeights>(of_layer);
    StageScope linears(timer_, Stage::kAttentionLinear);
    queries(weights);
    between_();
    for (int64_t row = 0; row < num_rows; row += compute_.attention_rows()) {
      const int64_t n = std::min(compute_.attention_rows(), num_rows - row);
      StageScope absorbed(timer_, Stage::kAttentionAbsorbed);
      compute_.absorb_queries(weights, row, n);
      {
        StageScope core(timer_, Stage::kAttentionCore);
        compute_.attend_latents(layer, row, n);
      }
      compute_.unabsorb_values(weights, row, n);
      between_();
    }
    compute_.linear(weights.o_proj, Activation::kO, Activation::kOut);
  }

 private:
  // q = RMSNorm(h q_a) q_b, its rope part rotated.
  void queries(const MlaWeights& weights) {
    if (weights.q_a_proj) {
      compute_.linear(weights.q_a_proj, Activation::kH, Activation::kQA);
      compute_.rms_norm(Activation::kQA, weights.q_a_layernorm, model::kInnerNormEps,
                        Activation::kQA);
      compute_.linear(weights.q_proj, Activation::kQA, Activation::kQ);
    } else {
      compute_.linear(weights.q_proj, Activation::kH, Activation::kQ);
    }
    compute_.rope_queries();
  }

  Compute& compute_;
  StageTimer& timer_;
  const std::function<void()> between_;
};

// Grouped-query attention. Source: docs/model.md 3.8.
class GqaAttention final : public Attention {
 public:
  GqaAttention(Compute& compute, StageTimer& timer) : compute_(compute), timer_(timer) {}

  void write_cache(int64_t layer, const AttentionWeights& of_layer) override {
    const auto& weights = std::get<GqaWeights>(of_layer);
    StageScope linears(timer_, Stage::kAttentionLinear);
    project(weights.k_proj, weights.k_bias, Activation::kK);
    project(weights.v_proj, weights.v_bias, Activation::kV);
    compute_.rope_heads(Activation::kK);
    compute_.write_keys_and_values(layer);
  }

  void attend(int64_t layer, const AttentionWeights& of_layer, int64_t /*num_rows*/) override {
    const auto& weights = std::get<GqaWeights>(of_layer);
    StageScope linears(timer_, Stage::kAttentionLinear);
    project(weights.q_proj, weights.q_bias, Activation::kQ);
    compute_.rope_heads(Activation::kQ);
    {
      StageScope core(timer_, Stage::kAttentionCore);
      compute_.attend_groups(layer);
    }
    compute_.linear(weights.o_proj, Activation::kO, Activation::kOut);
  }

 private:
  void project(const Linear& weights, const std::vector<float>& bias, Activation to) {
    compute_.linear(weights, Activation::kH, to);
    if (!bias.empty()) compute_.add_bias(bias, to);
  }

  Compute& compute_;
  StageTimer& timer_;
};

}  // namespace

std::unique_ptr<Attention> make_attention(const model::ModelConfig& config, Compute& compute,
                                          StageTimer& timer, std::function<void()> between) {
  if (config.attention_kind() == model::AttentionKind::kGqa) {  // of models without experts
    return std::make_unique<GqaAttention>(compute, timer);
  }
  return std::make_unique<MlaAttention>(compute, timer, std::move(between));
}

}  // namespace atl::coordinator
