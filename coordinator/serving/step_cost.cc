#include "coordinator/serving/step_cost.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "base/check.h"

namespace atl::coordinator {
namespace {

// What the mean of a size moves towards a new step: one that stalls is forgotten after six others
// (0.7^6 = 12 %), and noise of single steps is more than halved (sqrt(0.3 / 1.7) = 42 %).
constexpr double kFollow = 0.3;
// What is left of a size's weight after a step of another one, and of the attention's sums. The
// sums weigh steps by their positions, so that one long context counts more than many short ones.
constexpr double kKeepSize = 0.98, kKeepAttention = 0.9;
// Small enough that old sizes, even several that are wrong by now, move the fit by a few per cent.
constexpr double kWeightMin = 0.001;
// What sizes leave open is taken for a cost of rows: then the next steps have fewer and show it.
constexpr double kShrink = 0.00001;
// Of a descent that goes on from the last fit.
constexpr int kRounds = 100;

}  // namespace

StepCost::StepCost(int64_t rows_max, double chosen_share)
    : rows_max_(static_cast<double>(rows_max)),
      chosen_share_(chosen_share),
      seen_(std::bit_width(static_cast<uint64_t>(rows_max))) {
  CHECK_GE(rows_max, 1);
  CHECK(chosen_share >= 0 && chosen_share <= 1);
}

// Each at most 1: once, experts touched, rows.
std::array<double, StepCost::kTerms> StepCost::terms(double rows) const {
  return {1, 1 - std::pow(1 - chosen_share_, rows), rows / rows_max_};
}

void StepCost::observe(StepSize step, double seconds, double attention_seconds) {
  const double attention = std::clamp(attention_seconds, 0.0, seconds);
  attention_seconds_ = kKeepAttention * attention_seconds_ + attention;
  positions_ = kKeepAttention * positions_ + static_cast<double>(step.positions);

  for (Seen& size : seen_) {
    if (size.weight > 0) size.weight = std::max(kWeightMin, kKeepSize * size.weight);
  }
  const auto rows = static_cast<double>(step.rows);
  Seen& size = seen_.at(std::bit_width(static_cast<uint64_t>(step.rows)) - 1);
  const double follow = size.weight > 0 ? kFollow : 1;
  size.rows += follow * (rows - size.rows);
  size.seconds += follow * (seconds - attention - size.seconds);
  size.weight = 1;
  fit();
}

// Least squares of the relative errors with weights that are not negative, by coordinate descent.
void StepCost::fit() {
  std::array<std::array<double, kTerms>, kTerms> squares{};
  std::array<double, kTerms> target{};
  for (const Seen& size : seen_) {
    if (size.weight == 0 || size.seconds <= 0) continue;
    const std::array<double, kTerms> x = terms(size.rows);
    const double weight = size.weight / (size.seconds * size.seconds);
    for (size_t i = 0; i < kTerms; ++i) {
      for (size_t j = 0; j < kTerms; ++j) squares[i][j] += weight * x[i] * x[j];
      target[i] += weight * x[i] * size.seconds;
    }
  }
  squares[0][0] *= 1 + kShrink;
  squares[1][1] *= 1 + kShrink;
  for (int round = 0; round < kRounds; ++round) {
    for (size_t i = 0; i < kTerms; ++i) {
      if (squares[i][i] == 0) continue;  // without experts, or no step took any time
      double rest = target[i];
      for (size_t j = 0; j < kTerms; ++j) {
        if (j != i) rest -= squares[i][j] * weights_[j];
      }
      weights_[i] = std::max(0.0, rest / squares[i][i]);
    }
  }
}

double StepCost::seconds(StepSize step) const {
  const double position = positions_ > 0 ? attention_seconds_ / positions_ : 0;
  return rest_seconds(static_cast<double>(step.rows)) +
         position * static_cast<double>(step.positions);
}

double StepCost::row_seconds(int64_t position) const {
  return rest_seconds(rows_max_) / rows_max_ + seconds({0, position + 1}) - seconds({0, 0});
}

double StepCost::rest_seconds(double rows) const {
  const std::array<double, kTerms> x = terms(rows);
  double seconds = 0;
  for (size_t i = 0; i < kTerms; ++i) seconds += weights_[i] * x[i];
  return seconds;
}

}  // namespace atl::coordinator
