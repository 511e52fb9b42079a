// Chooses the next token from logits, the same on any machine.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/result.h"
#include "base/rng.h"

namespace atl::model {

// Filters apply in this order, each to what the one before it left: temperature, top_k, top_p,
// min_p. Source: docs/model.md 6 and the order of Hugging Face transformers' logits warpers.
struct SamplingParams {
  float temperature = 0;  // 0: the largest logit. Otherwise logits are divided by it
  int32_t top_k = 0;      // keep the k largest; 0: all
  float top_p = 1;        // keep the shortest list of largest ones whose probability reaches this
  float min_p = 0;        // drop what is less probable than this times the most probable one
  uint64_t seed = 0;
};

// kInvalid names the first parameter out of range: temperature finite and >= 0, top_k >= 0,
// top_p in (0, 1], min_p in [0, 1].
Status check(const SamplingParams& params);

// The n ids of the largest logits, descending, the lower id first among equals; all of them if
// there are fewer. NaN has no place among them: its callers have refused it.
std::vector<int32_t> likeliest_ids(std::span<const float> logits, int32_t n);

// Holds working memory; one thread at a time.
//
// Defined to the bit: weights are exp_f32((logit - largest) / temperature) in FP32; sums are in
// double, in ascending id order (for top_p's cut: in descending order of logits); "largest" prefers
// the lower id among equals, in every filter. Exactly k ids survive top_k. The draw takes the first
// id, ascending, whose cumulative weight exceeds u * total, u = uniform_f64(seed, place).
class Sampler {
 public:
  // logits: [vocabulary] FP32 of one row. Only ids in [0, vocab_limit) can be chosen (the rest is
  // padding of the output head) and, if `allowed` isn't empty, only those with a nonzero entry
  // there (size vocab_limit). Masked logits aren't looked at.
  // kInternal: a logit is NaN or +inf, or all are -inf; kInvalid: see check(), or nothing is
  // allowed.
  Result<int32_t> sample(std::span<const float> logits, const SamplingParams& params,
                         RandomPlace place, int32_t vocab_limit,
                         std::span<const uint8_t> allowed = {});

 private:
  struct Candidate {
    float logit = 0;
    float weight = 0;
    int32_t id = 0;
  };
  static bool comes_first(const Candidate& a, const Candidate& b);

  Status collect(std::span<const float> logits, int32_t vocab_limit,
                 std::span<const uint8_t> allowed);
  int32_t largest() const;
  void apply_temperature(float temperature);
  void keep_top_k(int32_t top_k);
  void keep_top_p(float top_p);
  void keep_min_p(float min_p);
  int32_t draw(double u) const;

  std::vector<Candidate> candidates_;  // ascending ids
  std::vector<Candidate> head_;        // of top_p: the largest ones, descending
};

// -log(softmax(logits)[id]), in double from FP32 logits, over all of them; NaN if one is NaN.
// `id` lies in the row. For evaluation: natural logarithm, std::exp, so not defined to the bit.
double token_nll(std::span<const float> logits, int32_t id);

}  // namespace atl::model
