#include "coordinator/serving/drafts.h"

#include <algorithm>
#include <vector>

#include "base/check.h"

namespace atl::coordinator {
namespace {

// A draft has to bring this much more than it costs: what a step will take is known to some per
// cent.
constexpr double kGainMin = 1.03;
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

}  // namespace atl::coordinator
