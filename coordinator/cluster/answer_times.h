// How long a node usually takes to answer, so that one that hangs is told from one with much to do.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <optional>

namespace atl::coordinator {

// By the power of two that the number of rows lies in. A value; no clock.
class AnswerTimes {
 public:
  // Answers of one size that are needed before anything is said about it.
  static constexpr uint32_t kAnswersMin = 8;

  // rows >= 1; from the dispatch to the last piece of its answer.
  void observe(int64_t rows, std::chrono::nanoseconds took);
  // For so many rows, or for the next larger size that is known: never less than is usual.
  std::optional<std::chrono::nanoseconds> usual(int64_t rows) const;

 private:
  struct Bucket {
    uint32_t answers = 0;
    double mean_ns = 0;  // of the last some 16, the newest counting most
  };
  std::array<Bucket, 24> buckets_;
};

}  // namespace atl::coordinator
