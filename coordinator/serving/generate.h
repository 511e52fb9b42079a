// One prompt to one completion.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/result.h"
#include "coordinator/engine/engine.h"
#include "coordinator/serving/generation.h"
#include "model/sampler.h"

namespace atl::coordinator {

struct GenerateRequest {
  std::vector<int32_t> prompt;  // not empty
  int64_t max_tokens = 128;
  int64_t rows_max = 512;  // prompt tokens of a step, at most the engine's rows_max
  model::SamplingParams sampling;
  uint64_t sample = 0;            // which of several completions of one prompt this is
  std::vector<int32_t> stop_ids;  // end the text and belong to it; usually the eos ids
  int32_t vocab_limit = 0;        // ids from here on have no token and are never chosen
  std::vector<uint8_t> allowed;   // [vocab_limit], 0 for ids without a token; empty: all
};

struct GenerateResult {
  std::vector<int32_t> tokens;
  FinishReason finish = FinishReason::kLength;
  double prefill_seconds = 0;  // until the first token
  double decode_seconds = 0;   // of the others
};

// Prefill in chunks, then one token a step; on_token gets each as it comes. Ends early at a stop id
// or at the model's last position.
Result<GenerateResult> generate(Engine& engine, const Clock& clock, const GenerateRequest& request,
                                model::Sampler& sampler,
                                const std::function<void(int32_t)>& on_token);

}  // namespace atl::coordinator
