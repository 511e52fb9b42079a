#include "kernels/router.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <vector>

#include "base/check.h"
#include "kernels/ops.h"

namespace atl::kernels {
namespace {

constexpr float kMasked = -std::numeric_limits<float>::infinity();

// Indices of the `count` largest values, ties to the lower index, sorted by index.
void top_k(std::span<const float> values, int32_t count, int32_t* indices) {
  std::vector<bool> taken(values.size());
  for (int32_t i = 0; i < count; ++i) {
    int32_t best = -1;
    for (int32_t j = 0; j < static_cast<int32_t>(values.size()); ++j) {
      if (!taken[j] && (best < 0 || values[j] > values[best])) best = j;
    }
    taken[best] = true;
    indices[i] = best;
  }
  std::sort(indices, indices + count);
}

// noaux_tc: the sum of the two largest; group_limited_greedy: the largest.
float group_score(std::span<const float> group, TopkMethod method) {
  float first = kMasked;
  float second = kMasked;
  for (float value : group) {
    if (value > first) {
      second = first;
      first = value;
    } else if (value > second) {
      second = value;
    }
  }
  return method == TopkMethod::kNoauxTc && group.size() > 1 ? first + second : first;
}

// Leaves only the topk_group best groups: the others can't be chosen, whatever their sign.
void mask_groups(const RouterShape& shape, std::span<float> choice) {
  const size_t size = choice.size() / static_cast<size_t>(shape.n_group);
  std::vector<float> scores(static_cast<size_t>(shape.n_group));
  for (size_t g = 0; g < scores.size(); ++g) {
    scores[g] = group_score(choice.subspan(g * size, size), shape.topk_method);
  }
  std::vector<int32_t> kept(static_cast<size_t>(shape.topk_group));
  top_k(scores, shape.topk_group, kept.data());
  for (size_t e = 0; e < choice.size(); ++e) {
    const auto group = static_cast<int32_t>(e / size);
    if (!std::binary_search(kept.begin(), kept.end(), group)) choice[e] = kMasked;
  }
}

}  // namespace

bool route(const RouterShape& shape, float* logits, const float* bias, int32_t* ids,
           float* weights) {
  const int32_t n = shape.n_routed_experts;
  CHECK_LE(shape.num_experts_per_tok, n);
  CHECK_LE(shape.topk_group, shape.n_group);
  CHECK_EQ(n % shape.n_group, 0);
  for (int32_t e = 0; e < n; ++e) {
    if (!std::isfinite(logits[e])) return false;
  }
  float* scores = logits;
  if (shape.scoring_func == ScoringFunc::kSigmoid) {
    sigmoid(scores, n);
  } else {
    softmax(scores, n);
  }

  std::vector<float> choice(scores, scores + n);
  if (shape.topk_method == TopkMethod::kNoauxTc && bias != nullptr) {
    add_in_place(choice.data(), bias, n);
  }
  if (shape.n_group > 1 && shape.topk_method != TopkMethod::kGreedy) mask_groups(shape, choice);
  top_k(choice, shape.num_experts_per_tok, ids);

  float sum = 0.0f;
  for (int32_t i = 0; i < shape.num_experts_per_tok; ++i) sum += scores[ids[i]];
  for (int32_t i = 0; i < shape.num_experts_per_tok; ++i) {
    float weight = scores[ids[i]];
    if (shape.norm_topk_prob) weight /= sum + 1e-20f;
    weights[i] = weight * shape.routed_scaling_factor;
  }
  return true;
}

}  // namespace atl::kernels
