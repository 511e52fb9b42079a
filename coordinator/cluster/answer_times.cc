#include "coordinator/cluster/answer_times.h"

#include <algorithm>
#include <bit>

#include "base/check.h"

namespace atl::coordinator {
namespace {

constexpr double kNewestCounts = 1.0 / 8;

}  // namespace

void AnswerTimes::observe(int64_t rows, std::chrono::nanoseconds took) {
  CHECK_GE(rows, 1);
  const auto size =
      std::min<size_t>(std::bit_width(static_cast<uint64_t>(rows)), buckets_.size()) - 1;
  Bucket& bucket = buckets_[size];
  const double weight = std::max(kNewestCounts, 1.0 / (bucket.answers + 1));  // a plain mean first
  bucket.mean_ns += weight * (static_cast<double>(took.count()) - bucket.mean_ns);
  ++bucket.answers;
}

std::optional<std::chrono::nanoseconds> AnswerTimes::usual(int64_t rows) const {
  CHECK_GE(rows, 1);
  for (size_t size = std::bit_width(static_cast<uint64_t>(rows)) - 1; size < buckets_.size();
       ++size) {
    if (buckets_[size].answers >= kAnswersMin) {
      return std::chrono::nanoseconds(static_cast<int64_t>(buckets_[size].mean_ns));
    }
  }
  return std::nullopt;
}

}  // namespace atl::coordinator
