#include "coordinator/serving/step_budget.h"

#include <queue>
#include <tuple>
#include <vector>

#include "base/check.h"

namespace atl::coordinator {
namespace {

// Who gets the next row: the one that was given least time, then fewest rows, then has fewest
// pending.
struct Claim {
  double seconds = 0;
  int64_t rows = 0;
  int64_t pending = 0;
  size_t prompt = 0;
  bool operator>(const Claim& other) const {
    return std::tie(seconds, rows, pending, prompt) >
           std::tie(other.seconds, other.rows, other.pending, other.prompt);
  }
};

// The step after one more row: how long it takes, and what its prompts' rows weigh.
struct Turn {
  size_t prompt = 0;
  double seconds = 0;
  double work = 0;
};

// The rows of a step that may take any time, one after the other.
std::vector<Turn> turns_of(const StepCost& cost, StepSize step, int64_t num_rows,
                           std::span<const PromptRows> prompts) {
  std::priority_queue<Claim, std::vector<Claim>, std::greater<>> claims;
  for (size_t i = 1; i < prompts.size(); ++i) claims.push({0, 0, prompts[i].pending, i});
  std::vector<Turn> turns;
  double work = 0;
  Claim claim{0, 0, prompts[0].pending, 0};
  while (std::ssize(turns) < num_rows) {
    const PromptRows& prompt = prompts[claim.prompt];
    const int64_t position = prompt.context + claim.rows;
    const double seconds = cost.row_seconds(position);
    step.add(1, position);
    work += seconds;
    turns.push_back({claim.prompt, cost.seconds(step), work});

    claim.seconds += seconds;
    if (++claim.rows < prompt.pending) claims.push(claim);
    if (claims.empty()) break;
    claim = claims.top();
    claims.pop();
  }
  return turns;
}

// How many of the turns the step has time for, at least one.
size_t turns_within(const std::vector<Turn>& turns, const StepLimits& limits) {
  const Turn& whole = turns.back();
  if (limits.target_s <= 0 || whole.seconds <= limits.target_s) return turns.size();
  const auto too_slow = [&](const Turn& turn) {
    return turn.work / turn.seconds * limits.slowdown_max < whole.work / whole.seconds;
  };
  size_t taken = 1;
  while (taken < turns.size() &&
         (turns[taken].seconds <= limits.target_s || too_slow(turns[taken - 1]))) {
    ++taken;
  }
  return taken;
}

}  // namespace

bool share_step(const StepCost& cost, StepSize decoding, const StepLimits& limits,
                std::span<PromptRows> prompts) {
  for (PromptRows& prompt : prompts) prompt.rows = 0;
  const int64_t num_rows = limits.rows_max - decoding.rows;
  if (prompts.empty() || num_rows <= 0) return false;
  const std::vector<Turn> turns = turns_of(cost, decoding, num_rows, prompts);
  const size_t taken = turns_within(turns, limits);
  for (size_t t = 0; t < taken; ++t) ++prompts[turns[t].prompt].rows;
  return taken < turns.size();
}

}  // namespace atl::coordinator
