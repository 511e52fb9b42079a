// Penalties and biases on logits, before sampling.
#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/result.h"

namespace atl::model {

// logit[id] += bias[id]; then, for every id of the prompt or generated so far, the logit is divided
// by repetition_penalty if it is above 0, else multiplied with it (as vLLM does, after Keskar et
// al., CTRL, 2019); then, for every id generated c > 0 times so far:
// logit[id] -= frequency_penalty * c + presence_penalty. Source: OpenAI's API reference, "Frequency
// and presence penalties". Tokens of the prompt don't count for these two.
struct LogitsProcessor {
  float presence_penalty = 0;                   // [-2, 2]
  float frequency_penalty = 0;                  // [-2, 2]
  float repetition_penalty = 1;                 // (0, 10]
  std::vector<std::pair<int32_t, float>> bias;  // id, [-100, 100]; ids distinct

  bool idle() const {
    return presence_penalty == 0 && frequency_penalty == 0 && repetition_penalty == 1 &&
           bias.empty();
  }
  // logits [vocabulary]; counts: id -> times generated; prompt: its ids, ascending, each once.
  void apply(const std::unordered_map<int32_t, int32_t>& counts, std::span<const int32_t> prompt,
             std::span<float> logits) const;
};

// kInvalid names the first value out of range.
Status check(const LogitsProcessor& processor, int32_t vocab_limit);

}  // namespace atl::model
