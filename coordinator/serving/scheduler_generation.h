// One request in the scheduler's hands. Private to coordinator/serving; the engine's thread.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <unordered_map>
#include <vector>

#include "coordinator/serving/drafts.h"
#include "coordinator/serving/scheduler.h"

namespace atl::coordinator {

struct Scheduler::Generation {
  GenerationId id;
  GenerationRequest request;
  std::vector<int32_t> tokens;                  // the prompt, then what was generated
  Sequence sequence;                            // as far as it is computed
  std::unordered_map<int32_t, int32_t> counts;  // of generated tokens
  std::vector<int32_t> prompt_ids;              // each once, ascending; with repetition_penalty
  std::vector<PromptLogprob> prompt_logprobs;   // as far as they are known
  uint64_t admission = 0;  // place in the order of first admissions; 0: none yet
  int64_t cached_tokens = 0;
  Clock::TimePoint submitted{};
  double queued_seconds = 0;
  bool ended = false;

  // Of the step under way.
  int64_t rows = 0;
  int64_t sequence_begin = 0;       // the first of these rows within the sequence
  std::vector<size_t> logits_rows;  // in the step's logits; several: of a draft
  std::optional<int32_t> sampled;
  std::optional<Error> sample_error;
  float logprob = 0;
  std::vector<TokenLogprob> top;

  // Drafts (drafts.h).
  LookupDraft lookup;
  DraftAcceptance lookup_acceptance{0.5}, mtp_acceptance{0.5};
  std::vector<int32_t> mtp_draft;    // behind the tokens as they are; of the next-token layer
  bool mtp_goes_on = false;          // that layer takes this step's rows, too
  bool draft_is_mtp = false;         // the draft below
  std::vector<int32_t> draft;        // of the step under way: what may follow its own row
  int64_t draft_rows = 0;            // of these: computed, behind that row and counted in `rows`
  std::vector<int32_t> step_tokens;  // what is computed, then
  size_t num_right = 0;              // tokens of the draft that were chosen
  bool draft_failed = false;         // a row of one: there is no other

  // A mask that is being found beside the steps: it has the request's constraint meanwhile.
  std::shared_ptr<MaskTask> mask;
  std::vector<float> held_logits;  // for which it is; the sequence sits out until then

  std::optional<size_t> event;  // its place among the step's events

  int64_t num_tokens() const { return static_cast<int64_t>(tokens.size()); }
  int64_t num_generated() const {
    return num_tokens() - static_cast<int64_t>(request.prompt.size());
  }
  int64_t pending() const { return num_tokens() - sequence.num_tokens; }
  // Whether its rows of this step are the prompt's, whose probabilities are wanted.
  bool is_scored() const { return request.prompt_logprobs >= 0 && num_generated() == 0; }
  DraftAcceptance& acceptance() { return draft_is_mtp ? mtp_acceptance : lookup_acceptance; }
  bool decodes() const { return pending() == 1 && num_generated() > 0; }
  bool stops_at(int32_t id) const {
    return std::count(request.stop_ids.begin(), request.stop_ids.end(), id) > 0;
  }
};

}  // namespace atl::coordinator
