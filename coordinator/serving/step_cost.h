// How long a step of the engine will take, learned from those it took.
//
//   seconds = fixed + experts * touched(rows) + row * rows + position * positions
//
// touched(n) = 1 - (1 - k/E)^n is the share of a layer's E experts that n rows choose, k each,
// independently: what of the weights is read for the step, however many rows want it. It is why
// the first rows of a step cost more than the last ones. `positions` are those of the KV cache that
// rows attend to, added up over the rows.
//
// Attention over the cache is timed apart by the engine, so `position` is a ratio. The other three
// are fitted to what steps of about 1, 2, 4, ... rows took lately. A size that wasn't seen for long
// counts little but is not forgotten: a prompt's steps are alike, and alone couldn't tell a cost of
// each step from one of each row.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace atl::coordinator {

struct StepSize {
  int64_t rows = 0;
  int64_t positions = 0;  // attended to, over all rows: of a row at position p, p + 1

  // The next num_rows of a sequence that has `context` tokens in the cache.
  void add(int64_t num_rows, int64_t context) {
    rows += num_rows;
    positions += num_rows * context + num_rows * (num_rows + 1) / 2;
  }
};

// One thread. Before the first observe() every step is expected to take no time.
class StepCost {
 public:
  //   rows_max      of a step, >= 1
  //   chosen_share  k/E: of a layer's experts, those that one row chooses; 0 without experts
  StepCost(int64_t rows_max, double chosen_share);

  // A step took `seconds`, of these `attention_seconds` over the cache.
  void observe(StepSize step, double seconds, double attention_seconds);

  double seconds(StepSize step) const;
  // One row's part of the largest step, at `position` of its sequence: what rows weigh beside one
  // another.
  double row_seconds(int64_t position) const;

 private:
  static constexpr size_t kTerms = 3;
  // Steps of [2^i, 2^(i+1)) rows: fading means, and how much they count in the fit.
  struct Seen {
    double rows = 0;
    double seconds = 0;  // without attention over the cache
    double weight = 0;   // 0: none seen
  };

  std::array<double, kTerms> terms(double rows) const;
  double rest_seconds(double rows) const;  // all but attention over the cache
  void fit();

  const double rows_max_, chosen_share_;
  std::vector<Seen> seen_;
  std::array<double, kTerms> weights_{};          // seconds of terms(), each >= 0
  double attention_seconds_ = 0, positions_ = 0;  // sums that fade
};

}  // namespace atl::coordinator
