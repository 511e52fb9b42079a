#include "base/result.h"

#include <gtest/gtest.h>

#include <memory>

#include "base/ids.h"

namespace atl {
namespace {

Result<int> half_of(int n) {
  if (n % 2 != 0) return Error{ErrorCode::kInvalid, "odd"};
  return n / 2;
}

TEST(Result, holds_a_value_or_an_error) {
  const Result<int> good = half_of(8);
  ASSERT_TRUE(good);
  EXPECT_TRUE(good.has_value());
  EXPECT_EQ(*good, 4);
  const Result<int> bad = half_of(7);
  ASSERT_FALSE(bad);
  EXPECT_EQ(bad.error().code, ErrorCode::kInvalid);
  EXPECT_EQ(bad.error().message, "odd");
}

TEST(Result, moves_its_value_out) {
  Result<std::unique_ptr<int>> made(std::make_unique<int>(5));
  EXPECT_EQ(**made, 5);
  const std::unique_ptr<int> taken = *std::move(made);
  EXPECT_EQ(*taken, 5);
}

TEST(ResultDeathTest, reading_the_wrong_side_aborts_with_the_place) {
  EXPECT_DEATH(static_cast<void>(*half_of(7)), "has_value");
  EXPECT_DEATH(static_cast<void>(half_of(8).error()), "has_value");
}

TEST(Status, is_success_or_an_error) {
  EXPECT_TRUE(Status().ok());
  const Status failed = Error{ErrorCode::kTimeout, "after 2 s"};
  EXPECT_FALSE(failed);
  EXPECT_EQ(failed.error().message, "after 2 s");
}

TEST(ErrorCode, has_a_name) {
  EXPECT_EQ(to_string(ErrorCode::kOverloaded), "overloaded");
  EXPECT_EQ(to_string(ErrorCode::kInternal), "internal");
}

TEST(CheckDeathTest, prints_expression_and_both_values) {
  const int slots = 3;
  EXPECT_DEATH(CHECK_LT(slots, 2), "slots < 2: 3 against 2");
  EXPECT_DEATH(CHECK(slots == 4), "slots == 4");
}

TEST(Ids, compare_and_print_as_their_value) {
  EXPECT_LT(NodeId(1), NodeId(2));
  EXPECT_EQ(Epoch(7), Epoch(7));
  EXPECT_LT((ExpertKey{3, 9}), (ExpertKey{4, 0}));
  std::ostringstream out;
  out << NodeId(12);
  EXPECT_EQ(out.str(), "12");
}

}  // namespace
}  // namespace atl
