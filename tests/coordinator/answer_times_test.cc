#include "coordinator/cluster/answer_times.h"

#include <gtest/gtest.h>

namespace atl::coordinator {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;

constexpr int kTiles = 4;

void observe(AnswerTimes& times, int64_t rows, std::chrono::nanoseconds took, int count) {
  for (int i = 0; i < count; ++i) times.observe(rows, kTiles, took);
}
std::optional<std::chrono::nanoseconds> mean(const AnswerTimes& times, int64_t rows,
                                             int tiles = kTiles) {
  const auto usual = times.usual(rows, tiles);
  if (!usual) return std::nullopt;
  return usual->mean;
}

TEST(AnswerTimes, know_nothing_before_enough_answers_came) {
  AnswerTimes times;
  EXPECT_FALSE(times.usual(1, kTiles));
  observe(times, 4, milliseconds(20), AnswerTimes::kAnswersMin - 1);
  EXPECT_FALSE(times.usual(4, kTiles));
  observe(times, 4, milliseconds(20), 1);
  EXPECT_EQ(mean(times, 4), milliseconds(20));
}

TEST(AnswerTimes, of_fewer_rows_are_at_most_those_of_more_rows) {
  AnswerTimes times;
  observe(times, 512, milliseconds(300), 10);
  EXPECT_EQ(mean(times, 1), milliseconds(300));
  EXPECT_EQ(mean(times, 1023), milliseconds(300));
  EXPECT_FALSE(times.usual(1024, kTiles));
  observe(times, 1, milliseconds(2), 10);
  EXPECT_EQ(mean(times, 1), milliseconds(2));
  EXPECT_EQ(mean(times, 2), milliseconds(300));
}

TEST(AnswerTimes, follow_a_node_that_becomes_slower) {
  AnswerTimes times;
  observe(times, 8, milliseconds(10), 1000);
  observe(times, 8, milliseconds(100), 30);
  EXPECT_GT(mean(times, 8), milliseconds(90));
}

TEST(AnswerTimes, grow_with_the_tiles_beyond_those_that_were_usual_and_do_not_shrink_below) {
  AnswerTimes times;
  observe(times, 1, milliseconds(10), 20);
  EXPECT_EQ(mean(times, 1, 2 * kTiles), milliseconds(20));
  EXPECT_EQ(mean(times, 1, kTiles / 2), milliseconds(10));
}

TEST(AnswerTimes, the_99th_of_100_is_within_a_fifth_above) {
  for (const auto took : {microseconds(3), microseconds(150), microseconds(7777),
                          microseconds(400'000), microseconds(40'000'000)}) {
    AnswerTimes times;
    observe(times, 1, took, 500);
    const auto p99 = times.usual(1, kTiles)->p99;
    EXPECT_GE(p99, took);
    EXPECT_LE(p99, std::max<std::chrono::nanoseconds>(microseconds(16), took * 12 / 10));
  }
}

TEST(AnswerTimes, one_in_a_hundred_that_is_slow_is_not_what_99_take_but_two_are) {
  AnswerTimes times;
  for (int i = 0; i < 5; ++i) {
    observe(times, 1, milliseconds(1), 99);
    observe(times, 1, milliseconds(80), 1);
  }
  EXPECT_LT(times.usual(1, kTiles)->p99, milliseconds(2));
  observe(times, 1, milliseconds(80), 6);
  EXPECT_GE(times.usual(1, kTiles)->p99, milliseconds(80));
}

TEST(AnswerTimes, slow_answers_of_long_ago_are_forgotten) {
  AnswerTimes times;
  observe(times, 1, milliseconds(500), 600);
  observe(times, 1, milliseconds(1), 20'000);
  EXPECT_LT(times.usual(1, kTiles)->p99, milliseconds(2));
}

}  // namespace
}  // namespace atl::coordinator
