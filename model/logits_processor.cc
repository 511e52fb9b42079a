#include "model/logits_processor.h"

#include <fmt/core.h>

#include <algorithm>
#include <unordered_set>

namespace atl::model {
namespace {

constexpr float kPenaltyMax = 2;
constexpr float kBiasMax = 100;

Status check_penalty(const char* name, float value) {
  if (value >= -kPenaltyMax && value <= kPenaltyMax) return {};
  return Error{ErrorCode::kInvalid,
               fmt::format("{} {}: expected {} to {}", name, value, -kPenaltyMax, kPenaltyMax)};
}

bool in_range(int32_t id, std::span<const float> logits) {
  return id >= 0 && static_cast<size_t>(id) < logits.size();
}

}  // namespace

void LogitsProcessor::apply(const std::unordered_map<int32_t, int32_t>& counts,
                            std::span<const int32_t> prompt, std::span<float> logits) const {
  for (const auto& [id, value] : bias) {
    if (in_range(id, logits)) logits[id] += value;
  }
  if (repetition_penalty != 1) {
    const auto repeated = [&](int32_t id) {
      if (!in_range(id, logits)) return;
      float& logit = logits[static_cast<size_t>(id)];
      logit = logit > 0 ? logit / repetition_penalty : logit * repetition_penalty;
    };
    for (const int32_t id : prompt) repeated(id);
    for (const auto& [id, count] : counts) {
      const bool in_prompt = std::binary_search(prompt.begin(), prompt.end(), id);
      if (count > 0 && !in_prompt) repeated(id);
    }
  }
  if (presence_penalty == 0 && frequency_penalty == 0) return;
  // Each id stands once in the map, so its order doesn't matter.
  for (const auto& [id, count] : counts) {
    if (count <= 0 || !in_range(id, logits)) continue;
    logits[id] -= frequency_penalty * static_cast<float>(count) + presence_penalty;
  }
}

Status check(const LogitsProcessor& processor, int32_t vocab_limit) {
  if (Status s = check_penalty("presence_penalty", processor.presence_penalty); !s) return s;
  if (Status s = check_penalty("frequency_penalty", processor.frequency_penalty); !s) return s;
  if (!(processor.repetition_penalty > 0 && processor.repetition_penalty <= 10)) {
    return Error{ErrorCode::kInvalid, fmt::format("repetition_penalty {}: expected 0 to 10, 0 not "
                                                  "included",
                                                  processor.repetition_penalty)};
  }
  std::unordered_set<int32_t> seen;
  for (const auto& [id, value] : processor.bias) {
    if (id < 0 || id >= vocab_limit) {
      return Error{ErrorCode::kInvalid,
                   fmt::format("logit_bias of token {}: expected 0 to {}", id, vocab_limit - 1)};
    }
    if (!(value >= -kBiasMax && value <= kBiasMax)) {
      return Error{ErrorCode::kInvalid,
                   fmt::format("logit_bias of token {} is {}: expected {} to {}", id, value,
                               -kBiasMax, kBiasMax)};
    }
    if (!seen.insert(id).second) {
      return Error{ErrorCode::kInvalid, fmt::format("logit_bias names token {} twice", id)};
    }
  }
  return {};
}

}  // namespace atl::model
