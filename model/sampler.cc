#include "model/sampler.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/check.h"
#include "kernels/ops.h"

namespace atl::model {
namespace {

Error invalid(std::string message) { return {ErrorCode::kInvalid, std::move(message)}; }

}  // namespace

Status check(const SamplingParams& params) {
  if (!std::isfinite(params.temperature) || params.temperature < 0) {
    return invalid(fmt::format("temperature {}: expected a number >= 0", params.temperature));
  }
  if (params.top_k < 0) return invalid(fmt::format("top_k {}: expected >= 0", params.top_k));
  if (!(params.top_p > 0 && params.top_p <= 1)) {
    return invalid(fmt::format("top_p {}: expected above 0 and at most 1", params.top_p));
  }
  if (!(params.min_p >= 0 && params.min_p <= 1)) {
    return invalid(fmt::format("min_p {}: expected 0 to 1", params.min_p));
  }
  return {};
}

Result<int32_t> Sampler::sample(std::span<const float> logits, const SamplingParams& params,
                                RandomPlace place, int32_t vocab_limit,
                                std::span<const uint8_t> allowed) {
  if (Status status = check(params); !status) return status.error();
  if (Status status = collect(logits, vocab_limit, allowed); !status) return status.error();
  if (params.temperature == 0) return largest();
  apply_temperature(params.temperature);
  keep_top_k(params.top_k);
  keep_top_p(params.top_p);
  keep_min_p(params.min_p);
  return draw(uniform_f64(params.seed, place));
}

bool Sampler::comes_first(const Candidate& a, const Candidate& b) {
  return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
}

Status Sampler::collect(std::span<const float> logits, int32_t vocab_limit,
                        std::span<const uint8_t> allowed) {
  CHECK_GE(vocab_limit, 0);
  CHECK(allowed.empty() || allowed.size() == static_cast<size_t>(vocab_limit));
  const auto end = std::min<int64_t>(vocab_limit, static_cast<int64_t>(logits.size()));
  candidates_.clear();
  bool any_allowed = false;
  for (int64_t id = 0; id < end; ++id) {
    if (!allowed.empty() && allowed[id] == 0) continue;
    any_allowed = true;
    const float logit = logits[id];
    if (std::isnan(logit) || logit == std::numeric_limits<float>::infinity()) {
      return Error{ErrorCode::kInternal, fmt::format("logit of token {} is {}", id, logit)};
    }
    if (logit == -std::numeric_limits<float>::infinity()) continue;
    candidates_.push_back({logit, 0, static_cast<int32_t>(id)});
  }
  if (!any_allowed) return invalid("no token is allowed here");
  if (candidates_.empty()) return Error{ErrorCode::kInternal, "all logits are -inf"};
  return {};
}

int32_t Sampler::largest() const {
  return std::min_element(candidates_.begin(), candidates_.end(), comes_first)->id;
}

void Sampler::apply_temperature(float temperature) {
  float max = candidates_.front().logit;
  for (const Candidate& candidate : candidates_) max = std::max(max, candidate.logit);
  for (Candidate& candidate : candidates_) {
    candidate.weight = kernels::exp_f32((candidate.logit - max) / temperature);
  }
}

void Sampler::keep_top_k(int32_t top_k) {
  const auto k = static_cast<size_t>(top_k);
  if (k == 0 || k >= candidates_.size()) return;
  std::nth_element(candidates_.begin(), candidates_.begin() + (top_k - 1), candidates_.end(),
                   comes_first);
  candidates_.resize(k);
  std::sort(candidates_.begin(), candidates_.end(),
            [](const Candidate& a, const Candidate& b) { return a.id < b.id; });
}

void Sampler::keep_top_p(float top_p) {
  if (top_p >= 1) return;
  double total = 0;
  float lowest = candidates_.front().logit;
  float highest = lowest;
  for (const Candidate& candidate : candidates_) {
    total += candidate.weight;
    lowest = std::min(lowest, candidate.logit);
    highest = std::max(highest, candidate.logit);
  }
  const double wanted = total * top_p;
  // Sorts only the head that is needed: all logits down to a bound, which falls until the head
  // reaches `wanted`. The list and its sums are those of a sort of everything.
  const float span = highest - lowest;
  for (float share = 1.0f / 64; true; share *= 4) {
    const float bound = share < 1 ? highest - span * share : lowest;
    head_.clear();
    for (const Candidate& candidate : candidates_) {
      if (candidate.logit >= bound) head_.push_back(candidate);
    }
    std::sort(head_.begin(), head_.end(), comes_first);
    double sum = 0;
    size_t count = 0;
    while (count < head_.size() && sum < wanted) sum += head_[count++].weight;
    if (sum < wanted && bound > lowest) continue;
    head_.resize(count);
    break;
  }
  std::sort(head_.begin(), head_.end(),
            [](const Candidate& a, const Candidate& b) { return a.id < b.id; });
  candidates_.swap(head_);
}

void Sampler::keep_min_p(float min_p) {
  // The largest weight is exp_f32(0) = 1.
  std::erase_if(candidates_, [min_p](const Candidate& c) { return c.weight < min_p; });
}

int32_t Sampler::draw(double u) const {
  CHECK(!candidates_.empty());  // every filter keeps the largest
  double total = 0;
  for (const Candidate& candidate : candidates_) total += candidate.weight;
  const double target = u * total;
  double sum = 0;
  int32_t last = candidates_.front().id;
  for (const Candidate& candidate : candidates_) {
    if (candidate.weight == 0) continue;
    last = candidate.id;
    sum += candidate.weight;
    if (sum > target) break;
  }
  return last;
}

double token_nll(std::span<const float> logits, int32_t id) {
  CHECK(id >= 0 && static_cast<size_t>(id) < logits.size());
  const float max = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (float logit : logits) sum += std::exp(static_cast<double>(logit) - max);
  return std::log(sum) - (static_cast<double>(logits[id]) - max);
}

// One look at each: nearly all are less likely than the n-th so far.
std::vector<int32_t> likeliest_ids(std::span<const float> logits, int32_t n) {
  const size_t size = std::min(static_cast<size_t>(std::max(n, 0)), logits.size());
  std::vector<int32_t> ids;
  ids.reserve(size + 1);
  const auto logit = [&](int32_t id) { return logits[static_cast<size_t>(id)]; };
  const auto comes_first = [&](int32_t a, int32_t b) { return logit(a) > logit(b); };
  for (size_t i = 0; i < logits.size() && size > 0; ++i) {
    if (ids.size() == size && logits[i] <= logit(ids.back())) continue;
    const auto id = static_cast<int32_t>(i);
    ids.insert(std::upper_bound(ids.begin(), ids.end(), id, comes_first), id);
    if (ids.size() > size) ids.pop_back();
  }
  return ids;
}

}  // namespace atl::model
