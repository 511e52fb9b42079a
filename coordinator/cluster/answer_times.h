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

  // rows, tiles >= 1; from the dispatch to the last piece of its answer.
  void observe(int64_t rows, int tiles, std::chrono::nanoseconds took);

  struct Usual {
    std::chrono::nanoseconds mean{};  // of the last some 16, the newest counting most
    // 99 of 100 took no longer, of the last some hundred to a thousand; up to a fifth more than
    // that, never less.
    std::chrono::nanoseconds p99{};
  };
  // For so many rows, or for the next larger size that is known: never less than is usual. More in
  // proportion for more tiles than were usual, and no less for fewer.
  std::optional<Usual> usual(int64_t rows, int tiles) const;

 private:
  // Steps of a fifth from 16 us to about a minute; what takes longer counts as that.
  static constexpr int kSteps = 88;
  struct Bucket {
    uint32_t answers = 0;
    double mean_ns = 0, mean_tiles = 0;
    std::array<uint16_t, kSteps> counts{};  // of the answers by time; halved now and then
    uint32_t counted = 0;
  };
  static std::chrono::nanoseconds p99(const Bucket& bucket);

  std::array<Bucket, 24> buckets_;
};

}  // namespace atl::coordinator
