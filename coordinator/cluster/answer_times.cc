#include "coordinator/cluster/answer_times.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "base/check.h"

namespace atl::coordinator {
namespace {

constexpr double kNewestCounts = 1.0 / 8;
constexpr double kFirstStepNs = 16e3, kStepsPerOctave = 4;
// Then the counts of answers by time are halved: what was long ago is forgotten.
constexpr uint32_t kCountsMax = 1024;

int step_of(double ns) {
  return std::max(0,
                  static_cast<int>(std::floor(std::log2(ns / kFirstStepNs) * kStepsPerOctave)) + 1);
}
double end_of_step(int step) { return kFirstStepNs * std::exp2(step / kStepsPerOctave); }

}  // namespace

void AnswerTimes::observe(int64_t rows, int tiles, std::chrono::nanoseconds took) {
  CHECK(rows >= 1 && tiles >= 1);
  const auto size =
      std::min<size_t>(std::bit_width(static_cast<uint64_t>(rows)), buckets_.size()) - 1;
  Bucket& bucket = buckets_[size];
  const double weight = std::max(kNewestCounts, 1.0 / (bucket.answers + 1));  // a plain mean first
  bucket.mean_ns += weight * (static_cast<double>(took.count()) - bucket.mean_ns);
  bucket.mean_tiles += weight * (tiles - bucket.mean_tiles);
  ++bucket.answers;
  const double ns = std::max(1.0, static_cast<double>(took.count()));
  ++bucket.counts[static_cast<size_t>(std::min(step_of(ns), kSteps - 1))];
  if (++bucket.counted < kCountsMax) return;
  bucket.counted = 0;
  for (uint16_t& count : bucket.counts) bucket.counted += count /= 2;
}

std::chrono::nanoseconds AnswerTimes::p99(const Bucket& bucket) {
  uint32_t longer = 0;
  for (int step = kSteps - 1; step >= 0; --step) {
    longer += bucket.counts[static_cast<size_t>(step)];
    if (longer * 100 > bucket.counted) {
      return std::chrono::nanoseconds(static_cast<int64_t>(end_of_step(step)));
    }
  }
  return {};
}

std::optional<AnswerTimes::Usual> AnswerTimes::usual(int64_t rows, int tiles) const {
  CHECK(rows >= 1 && tiles >= 1);
  for (size_t size = std::bit_width(static_cast<uint64_t>(rows)) - 1; size < buckets_.size();
       ++size) {
    const Bucket& bucket = buckets_[size];
    if (bucket.answers < kAnswersMin) continue;
    const double more = std::max(1.0, tiles / bucket.mean_tiles);
    const auto times = [more](double ns) {
      return std::chrono::nanoseconds(static_cast<int64_t>(ns * more));
    };
    return Usual{times(bucket.mean_ns), times(static_cast<double>(p99(bucket).count()))};
  }
  return std::nullopt;
}

}  // namespace atl::coordinator
