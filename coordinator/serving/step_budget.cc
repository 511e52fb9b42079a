#include "coordinator/serving/step_budget.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <vector>

#include "base/check.h"

namespace atl::coordinator {
namespace {

// The step after one more row: how long it takes, and what its prompts' rows weigh.
struct Turn {
  size_t prompt = 0;
  double seconds = 0;
  double work = 0;
};

// What a prompt will have waited at the end of a step of `step_s` by what it needs; nothing is
// learned yet: by its rows.
double response_ratio(const StepCost& cost, const PromptRows& prompt, double step_s) {
  const double row_seconds = cost.row_seconds(prompt.context + prompt.pending / 2);
  return (prompt.waited_s + step_s) /
         (static_cast<double>(prompt.pending) * (row_seconds > 0 ? row_seconds : 1));
}

// The prompts as they would be read if all clients were level.
std::vector<size_t> order_of(const StepCost& cost, std::span<const PromptRows> prompts,
                             double step_s) {
  std::vector<double> ratios;
  std::vector<size_t> order;
  for (const PromptRows& prompt : prompts) {
    order.push_back(order.size());
    ratios.push_back(response_ratio(cost, prompt, step_s));
  }
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    if (ratios[a] != ratios[b]) return ratios[a] > ratios[b];
    return prompts[a].pending < prompts[b].pending;
  });
  return order;
}

// Who reads next, and how many rows until another client's turn may come.
struct NextPrompt {
  size_t place = 0;  // in the order
  int64_t rows = 0;
};

NextPrompt next_prompt(std::span<const PromptRows> prompts, const std::vector<size_t>& order,
                       const std::map<size_t, double>& services, double level) {
  const auto service = [&](size_t i) { return services.at(prompts[i].client); };
  double least = service(order[0]);
  for (const size_t i : order) least = std::min(least, service(i));
  // The least served client is among them.
  const auto next = std::find_if(order.begin(), order.end(),
                                 [&](size_t i) { return service(i) < least + level; });
  CHECK(next != order.end());
  return {static_cast<size_t>(next - order.begin()),
          static_cast<int64_t>(std::ceil(least + level - service(*next)))};
}

// The rows of a step that may take any time, one after the other.
std::vector<Turn> turns_of(const StepCost& cost, StepSize step, const StepLimits& limits,
                           std::span<const PromptRows> prompts) {
  const int64_t num_rows = limits.rows_max - step.rows;
  const auto level = static_cast<double>(limits.rows_max);
  const double whole_s = cost.seconds({limits.rows_max, step.positions});
  const double step_s = limits.target_s > 0 ? std::min(limits.target_s, whole_s) : whole_s;
  std::map<size_t, double> services;
  for (const PromptRows& prompt : prompts) services[prompt.client] = prompt.service;
  std::vector<int64_t> given(prompts.size(), 0);
  std::vector<size_t> order = order_of(cost, prompts, step_s);
  std::vector<Turn> turns;
  double work = 0;
  while (std::ssize(turns) < num_rows && !order.empty()) {
    const NextPrompt next = next_prompt(prompts, order, services, level);
    const size_t i = order[next.place];
    const PromptRows& prompt = prompts[i];
    const int64_t rows =
        std::min({next.rows, prompt.pending - given[i], num_rows - std::ssize(turns)});
    for (int64_t row = 0; row < rows; ++row, ++given[i]) {
      const int64_t position = prompt.context + given[i];
      step.add(1, position);
      work += cost.row_seconds(position);
      turns.push_back({i, cost.seconds(step), work});
    }
    services[prompt.client] += static_cast<double>(rows);
    if (given[i] == prompt.pending) {
      order.erase(order.begin() + static_cast<std::ptrdiff_t>(next.place));
    }
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

double slowdown_for(int64_t rows_decoding, size_t num_prompts) {
  constexpr double kLeast = 1.1;
  if (rows_decoding == 0 || num_prompts == 0) return kLeast;
  return std::max(kLeast, 1 + 1 / static_cast<double>(num_prompts));
}

bool share_step(const StepCost& cost, StepSize decoding, const StepLimits& limits,
                std::span<PromptRows> prompts) {
  for (PromptRows& prompt : prompts) prompt.rows = 0;
  const int64_t num_rows = limits.rows_max - decoding.rows;
  if (prompts.empty() || num_rows <= 0) return false;
  const std::vector<Turn> turns = turns_of(cost, decoding, limits, prompts);
  const size_t taken = turns_within(turns, limits);
  for (size_t t = 0; t < taken; ++t) ++prompts[turns[t].prompt].rows;
  return taken < turns.size();
}

}  // namespace atl::coordinator
