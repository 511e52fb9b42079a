// Router: from logits to top-k ids and weights, both families. Source: docs/model.md 3.6.
#pragma once

#include <cstdint>

namespace atl::kernels {

enum class ScoringFunc : uint8_t { kSigmoid, kSoftmax };
enum class TopkMethod : uint8_t { kGreedy, kGroupLimitedGreedy, kNoauxTc };

struct RouterShape {
  ScoringFunc scoring_func = ScoringFunc::kSigmoid;
  TopkMethod topk_method = TopkMethod::kNoauxTc;
  int32_t n_routed_experts = 0;
  int32_t num_experts_per_tok = 0;
  int32_t n_group = 1;
  int32_t topk_group = 1;
  bool norm_topk_prob = true;
  float routed_scaling_factor = 1.0f;
};

// One token. Ties go to the lower id (of groups, too). Results are sorted by expert id, so that
// every sum over them has one order.
//   logits   [n_routed_experts] FP32; overwritten with the scores s_e
//   bias     [n_routed_experts] e_score_correction_bias for noaux_tc, else nullptr
//   ids      [num_experts_per_tok] out
//   weights  [num_experts_per_tok] out: from unbiased scores, normalised (if asked) and scaled
// False if a logit is not finite (the outputs are then unspecified).
bool route(const RouterShape& shape, float* logits, const float* bias, int32_t* ids,
           float* weights);

}  // namespace atl::kernels
