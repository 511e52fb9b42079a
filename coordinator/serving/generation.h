// What a front end asks of the engine's side, and what comes back: requests in, tokens out.
//
// The scheduler implements GenerationBackend; tests of a front end script one of their own.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/ids.h"
#include "base/result.h"
#include "constrain/token_constraint.h"
#include "model/logits_processor.h"
#include "model/sampler.h"

namespace atl::coordinator {

using GenerationId = Id<struct GenerationIdTag, uint64_t>;  // counts up within a process

enum class FinishReason : uint8_t { kStop, kLength };

// One sequence to be continued. Several completions of one prompt are several requests with
// different `sample`; they share the prompt's part of the cache.
struct GenerationRequest {
  std::vector<int32_t> prompt;  // token ids, not empty
  int64_t max_tokens = 128;     // >= 1
  model::SamplingParams sampling;
  model::LogitsProcessor logits;  // penalties and bias
  uint64_t sample = 0;            // which of several completions of one prompt this is
  std::vector<int32_t> stop_ids;  // end the text and are its last token; usually the eos ids
  int64_t min_tokens = 0;         // a stop id isn't chosen before this many others
  // -1: no log probabilities; n >= 0: the chosen token's and those of the n likeliest ones.
  int32_t top_logprobs = -1;
  // The same of the prompt's tokens, each given those before it; with the first event. The prefix
  // cache is not read then.
  int32_t prompt_logprobs = -1;
  std::unique_ptr<constrain::TokenConstraint> constraint;  // what may be generated; null: anything
  std::string client;      // whose share of the service this is; see docs/serving.md, "Fairness"
  std::string request_id;  // for log lines
  std::optional<Clock::TimePoint> deadline;  // ends with kTimeout when it has passed
};

struct TokenLogprob {
  int32_t id = 0;
  float logprob = 0;  // natural; of the model's own distribution, before penalties and temperature
};

struct PromptLogprob {
  double logprob = 0;             // in double: sums over long prompts are compared
  std::vector<TokenLogprob> top;  // descending; may leave the prompt's own token out
};

// One more token of a sequence, its end, or both.
struct GenerationEvent {
  GenerationId id;
  std::optional<int32_t> token;
  float logprob = 0;              // with top_logprobs >= 0
  std::vector<TokenLogprob> top;  // descending; may leave the chosen one out
  // [prompt tokens - 1], of the second one on; with prompt_logprobs, the first event only.
  std::vector<PromptLogprob> prompt;
  std::optional<FinishReason> finish;
  std::optional<Error> error;  // ended without an answer; neither token nor finish is set
  int64_t cached_tokens = 0;   // of the prompt, found in the prefix cache; with every event
  double queued_seconds = 0;   // from submit() until it entered the batch; with every event
};

// What the engine's side does, for metrics, logs and the status page. Counters are over its life.
struct GenerationStats {
  int64_t running = 0;            // sequences in the batch
  int64_t waiting = 0;            // accepted and not yet in the batch, preempted ones included
  int64_t cache_blocks = 0;       // of 64 positions, in all
  int64_t cache_blocks_used = 0;  // held by sequences
  int64_t cache_blocks_kept = 0;  // held by nobody, kept for prompts that begin alike
  uint64_t accepted = 0, rejected = 0, finished = 0, failed = 0, cancelled = 0, preempted = 0;
  uint64_t prompt_tokens = 0;    // of requests that entered the batch for the first time
  uint64_t cached_tokens = 0;    // of these: found in the prefix cache
  uint64_t computed_tokens = 0;  // rows through the model, recomputed ones included
  uint64_t generated_tokens = 0;
  uint64_t drafted_tokens = 0;   // rows of drafts; of computed_tokens
  uint64_t accepted_tokens = 0;  // of these: were what was generated
  // Of both: the next-token layer's. And the time in its passes, which is not of step_seconds.
  uint64_t mtp_drafted_tokens = 0, mtp_accepted_tokens = 0;
  double mtp_seconds = 0;
  uint64_t steps = 0;
  uint64_t steps_halved = 0;  // of these: computed as two halves (engine/halves.h)
  uint64_t steps_cut = 0;     // of these: had fewer prompt tokens than room, to take less time
  double step_seconds = 0;    // in all
  double last_step_end = 0;   // seconds of the backend's clock; 0: none yet
  double step_begin = 0;      // of the step under way; 0: none is
  bool draining = false;
  std::string failure;  // of the last step; empty if it went well
};

// Any thread, except where it says otherwise.
class GenerationBackend {
 public:
  virtual ~GenerationBackend() = default;
  // Events of requests go to the consumer given to the backend's constructor or start: on the
  // engine's thread, at most once per step, all of the step's together; it must not block.
  using EventSink = std::function<void(std::vector<GenerationEvent>)>;

  // kInvalid: can never be served (too long for the model or for the cache); kOverloaded: the queue
  // is full; kUnavailable: draining.
  virtual Result<GenerationId> submit(GenerationRequest request) = 0;
  // The client is gone: leaves the batch before the next step. No event follows but those that are
  // already under way. Unknown or finished ids are fine.
  virtual void cancel(GenerationId id) = 0;
  virtual GenerationStats stats() const = 0;
};

}  // namespace atl::coordinator
