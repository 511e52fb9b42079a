#include "coordinator/serving/drafts.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "base/check.h"

namespace atl::coordinator {
namespace {

// A draft has to bring this much more than it costs: what a step will take is known to some per
// cent.
constexpr double kGainMin = 1.03;
// Likewise a further pass of the next-token layer.
constexpr double kChainGainMin = 1.1;
constexpr double kShutBalance = -3;
constexpr double kFollowSteps = 0.1, kFollowPlain = 0.2;
constexpr uint64_t kIdBits = 21;

}  // namespace

uint64_t LookupDraft::key_of(std::span<const int32_t> last) {
  uint64_t key = 0;
  for (const int32_t id : last) {
    CHECK(id >= 0 && static_cast<uint64_t>(id) < (uint64_t{1} << kIdBits));
    key = key << kIdBits | static_cast<uint64_t>(id);
  }
  return key;
}

void LookupDraft::learn(std::span<const int32_t> tokens) {
  for (size_t next = std::max(learned_, kMatch); next < tokens.size(); ++next) {
    behind_[key_of(tokens.subspan(next - kMatch, kMatch))] = next;
  }
  learned_ = std::max(learned_, tokens.size());
}

std::span<const int32_t> LookupDraft::propose(std::span<const int32_t> tokens, size_t most) const {
  if (tokens.size() < kMatch) return {};
  const auto found = behind_.find(key_of(tokens.last(kMatch)));
  if (found == behind_.end()) return {};
  CHECK_LT(found->second, tokens.size());
  return tokens.subspan(found->second, std::min(most, tokens.size() - found->second));
}

void choose_drafts(const StepCost& cost, StepSize step, int64_t rows_left,
                   std::span<DraftRows> drafts) {
  for (DraftRows& draft : drafts) draft.rows = 0;
  double tokens = static_cast<double>(step.rows), seconds = cost.seconds(step);
  if (seconds <= 0) return;  // nothing is known yet
  // Of those given so far, and of a few more that may pay together though one alone doesn't: the
  // first further row reads weights, the next ones find them read.
  std::vector<int64_t> best(drafts.size(), 0), rows(drafts.size(), 0);
  double rate = tokens / seconds * kGainMin;
  for (; rows_left > 0; --rows_left) {
    size_t next = drafts.size();
    double likeliest = 0;
    for (size_t d = 0; d < drafts.size(); ++d) {
      if (rows[d] == drafts[d].proposed) continue;
      double right = 1;
      for (int64_t i = 0; i <= rows[d]; ++i) right *= drafts[d].acceptance;
      if (right <= likeliest) continue;
      likeliest = right;
      next = d;
    }
    if (next == drafts.size()) break;
    step.rows += 1;
    step.positions += drafts[next].context + rows[next] + 2;
    ++rows[next];
    tokens += likeliest;
    const double with = tokens / cost.seconds(step);
    if (with <= rate) continue;
    rate = with;
    best = rows;
  }
  for (size_t d = 0; d < drafts.size(); ++d) drafts[d].rows = best[d];
}

void DraftGate::observe(double busy_s, double saved_s, double spent_s) {
  if (step_s_ == 0) balance_ = std::max(kFull, kFullSteps * busy_s);  // the first one
  step_s_ += (step_s_ == 0 ? 1 : kFollowSteps) * (busy_s - step_s_);
  const double full = std::max(kFull, kFullSteps * step_s_);
  balance_ += kAllowance * busy_s;
  if (open_) balance_ += saved_s - spent_s;
  balance_ = std::min(balance_, full);
  if (balance_ < 0) open_ = false;
  if (balance_ >= full) open_ = true;
}

DraftGate::Step DraftGate::begin_step() {
  constexpr int64_t kCycle = 256, kUnmeasured = 4, kPlain = 12;
  const int64_t step = steps_++ % kCycle;
  if (step >= kPlain) return Step::kDrafts;
  return step < kUnmeasured ? Step::kPlain : Step::kMeasured;
}

void DraftGate::observe_plain(double token_s) {
  plain_token_s_ += (plain_token_s_ == 0 ? 1 : kFollowPlain) * (token_s - plain_token_s_);
}

void DraftGate::shut() {
  balance_ = kShutBalance;
  open_ = false;
}

int64_t choose_chain(const StepCost& cost, StepSize decoding, std::span<const double> acceptance,
                     double pass_s, int64_t most) {
  const double step_s = cost.seconds(decoding);
  if (acceptance.empty() || decoding.rows == 0 || step_s <= 0) return 1;
  const auto sequences = static_cast<double>(acceptance.size());
  const int64_t positions = decoding.positions / decoding.rows;
  int64_t chain = 1;
  for (; chain < most; ++chain) {
    double right = 0;
    for (const double share : acceptance) right += std::pow(share, chain + 1);
    StepSize longer = decoding;
    longer.rows += std::ssize(acceptance);
    longer.positions += std::ssize(acceptance) * positions;
    const double costs = pass_s + cost.seconds(longer) - step_s;
    if (right * step_s / sequences < kChainGainMin * costs) break;
  }
  return chain;
}

}  // namespace atl::coordinator
