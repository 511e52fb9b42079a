#include "base/units.h"

#include <gtest/gtest.h>

namespace atl {
namespace {

TEST(Units, bytes_have_three_significant_digits_and_binary_units) {
  EXPECT_EQ(format_bytes(0), "0 B");
  EXPECT_EQ(format_bytes(1023), "1023 B");
  EXPECT_EQ(format_bytes(1024), "1.00 KiB");
  EXPECT_EQ(format_bytes(18'035'507), "17.2 MiB");
  EXPECT_EQ(format_bytes(kMiB - 1), "1.00 MiB");
  EXPECT_EQ(format_bytes(654 * kGiB), "654 GiB");
  EXPECT_EQ(format_bytes(~uint64_t{0}), "16384 PiB");
}

TEST(Units, rates_have_decimal_units) {
  EXPECT_EQ(format_rate(0), "0.00 B/s");
  EXPECT_EQ(format_rate(1.25e9), "1.25 GB/s");
  EXPECT_EQ(format_rate(999.9e6), "1.00 GB/s");
}

TEST(Units, durations_choose_their_unit) {
  EXPECT_EQ(format_duration(12e-6), "12.0 us");
  EXPECT_EQ(format_duration(0.85), "850 ms");
  EXPECT_EQ(format_duration(12.3), "12.3 s");
  EXPECT_EQ(format_duration(245), "4 min 05 s");
  EXPECT_EQ(format_duration(7500), "2 h 05 min");
}

TEST(Units, counts_are_grouped_by_thousands) {
  EXPECT_EQ(format_count(0), "0");
  EXPECT_EQ(format_count(999), "999");
  EXPECT_EQ(format_count(14848), "14,848");
  EXPECT_EQ(format_count(1'000'000), "1,000,000");
}

TEST(ParseBytes, reads_plain_binary_and_decimal_sizes) {
  EXPECT_EQ(*parse_bytes("0"), 0u);
  EXPECT_EQ(*parse_bytes("4096"), 4096u);
  EXPECT_EQ(*parse_bytes("64KiB"), 64 * kKiB);
  EXPECT_EQ(*parse_bytes("64 MiB"), 64 * kMiB);
  EXPECT_EQ(*parse_bytes("1.5GiB"), kGiB + kGiB / 2);
  EXPECT_EQ(*parse_bytes("2TiB"), 2048 * kGiB);
  EXPECT_EQ(*parse_bytes("3kB"), 3000u);
  EXPECT_EQ(*parse_bytes("7GB"), 7'000'000'000u);
}

TEST(ParseBytes, refuses_what_is_no_size_and_names_it) {
  for (const char* text :
       {"", "MiB", "-1", "5 Mib", "5M", "nan", "inf", "1e300", "1 2", "0x10", "9000000TiB"}) {
    const auto bytes = parse_bytes(text);
    ASSERT_FALSE(bytes) << text;
    EXPECT_EQ(bytes.error().code, ErrorCode::kInvalid);
    EXPECT_NE(bytes.error().message.find("'" + std::string(text) + "'"), std::string::npos);
  }
}

TEST(CeilDiv, rounds_up) {
  static_assert(ceil_div(0, 4) == 0 && ceil_div(1, 4) == 1 && ceil_div(4, 4) == 1);
  static_assert(round_up(5, 4) == 8 && round_up(8, 4) == 8);
}

}  // namespace
}  // namespace atl
