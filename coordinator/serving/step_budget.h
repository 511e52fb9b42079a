// Who gets how many rows of a step: sequences that decode have theirs, and what is left goes to
// prompts, one after the other and as far as the step keeps within its target.
//
// One after the other and not in equal shares: of n prompts that came together and share each step,
// all have their first token at the end; in turn, half of them have it in half the time, and none
// later. Whose turn it is:
// - Clients are level while their service (tokens computed for them) differs by less than a whole
//   step. One that is further ahead waits for those behind it, so that many prompts of one client
//   hold up another's by a step and no more.
// - Among level clients the prompt with the highest ratio of time waited to time needed: a short
// one
//   is through soon, and a long one's ratio grows until it is next ("highest response ratio next").
//
// Rows are also bounded below. Where a step costs much before its first row (weights that are read
// from disk, nodes that are far away), small steps would compute prompts at a small part of the
// rate that large ones have, and hardly be faster. So a step is never cut so far that prompts are
// computed at less than 1/slowdown_max of that rate, whatever the target is.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "coordinator/serving/step_cost.h"

namespace atl::coordinator {

// A sequence whose prompt is being read.
struct PromptRows {
  int64_t context = 0;  // tokens in the cache
  int64_t pending = 0;  // tokens to compute, >= 1
  double waited_s = 0;  // since its request came, >= 0
  size_t client = 0;    // whose it is: the same number in all of a client's prompts
  double service = 0;   // tokens computed for this client: likewise
  int64_t rows = 0;     // of this step: the answer
};

struct StepLimits {
  int64_t rows_max = 1;     // of the step, those that decode included
  double target_s = 0;      // 0: any time
  double slowdown_max = 1;  // >= 1
};

// slowdown_max of a step beside so many rows that decode and with so many prompts to read. Half of
// the rate for the sake of those that decode while one prompt is read; the more wait, the less, as
// a rate that is given away then makes all of them wait. Where nobody decodes a shorter step only
// helps who comes while it runs.
double slowdown_for(int64_t rows_decoding, size_t num_prompts);

// Sets the rows of `prompts`, of which at least one gets some if there are any; of equal claims the
// shorter prompt goes first, then the one that is listed first. Returns whether the target cost
// them rows.
//   decoding  the rows that the step has in any case, fewer than rows_max
bool share_step(const StepCost& cost, StepSize decoding, const StepLimits& limits,
                std::span<PromptRows> prompts);

}  // namespace atl::coordinator
