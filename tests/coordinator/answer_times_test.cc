#include "coordinator/cluster/answer_times.h"

#include <gtest/gtest.h>

namespace atl::coordinator {
namespace {

using std::chrono::milliseconds;

void observe(AnswerTimes& times, int64_t rows, milliseconds took, int count) {
  for (int i = 0; i < count; ++i) times.observe(rows, took);
}

TEST(AnswerTimes, know_nothing_before_enough_answers_came) {
  AnswerTimes times;
  EXPECT_FALSE(times.usual(1));
  observe(times, 4, milliseconds(20), AnswerTimes::kAnswersMin - 1);
  EXPECT_FALSE(times.usual(4));
  observe(times, 4, milliseconds(20), 1);
  EXPECT_EQ(times.usual(4), milliseconds(20));
}

TEST(AnswerTimes, of_fewer_rows_are_at_most_those_of_more_rows) {
  AnswerTimes times;
  observe(times, 512, milliseconds(300), 10);
  EXPECT_EQ(times.usual(1), milliseconds(300));
  EXPECT_EQ(times.usual(1023), milliseconds(300));
  EXPECT_FALSE(times.usual(1024));
  observe(times, 1, milliseconds(2), 10);
  EXPECT_EQ(times.usual(1), milliseconds(2));
  EXPECT_EQ(times.usual(2), milliseconds(300));
}

TEST(AnswerTimes, follow_a_node_that_becomes_slower) {
  AnswerTimes times;
  observe(times, 8, milliseconds(10), 1000);
  observe(times, 8, milliseconds(100), 30);
  EXPECT_GT(times.usual(8), milliseconds(90));
}

}  // namespace
}  // namespace atl::coordinator
