// Who gets how many rows of a step: sequences that decode have theirs, and what is left goes to
// prompts, in equal shares of time and as far as the step keeps within its target.
//
// Equal time and not equal rows: a row costs more the more context is behind it, so that a short
// prompt is through long before its rows would be a half of the step's.
//
// Rows are also bounded below. Where a step costs much before its first row (weights that are read
// from disk, nodes that are far away), small steps would compute prompts at a small part of the
// rate that large ones have, and hardly be faster. So a step is never cut so far that prompts are
// computed at less than 1/slowdown_max of that rate, whatever the target is.
#pragma once

#include <cstdint>
#include <span>

#include "coordinator/serving/step_cost.h"

namespace atl::coordinator {

// A sequence whose prompt is being read.
struct PromptRows {
  int64_t context = 0;  // tokens in the cache
  int64_t pending = 0;  // tokens to compute, >= 1
  int64_t rows = 0;     // of this step: the answer
};

struct StepLimits {
  int64_t rows_max = 1;     // of the step, those that decode included
  double target_s = 0;      // 0: any time
  double slowdown_max = 1;  // >= 1
};

// Sets the rows of `prompts`, which are in the order in which they began: the first one gets at
// least one row if there is any, so that it never stands still; of equal claims the one with fewest
// tokens pending goes first. Returns whether the target cost them rows.
//   decoding  the rows that the step has in any case, fewer than rows_max
bool share_step(const StepCost& cost, StepSize decoding, const StepLimits& limits,
                std::span<PromptRows> prompts);

}  // namespace atl::coordinator
