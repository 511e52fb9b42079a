#include "kernels/numeric_types.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace atl::kernels {
namespace {

TEST(NumericTypes, e4m3_of_all_256_codes_follows_the_formula) {
  for (int code = 0; code < 256; ++code) {
    const auto byte = static_cast<uint8_t>(code);
    const int exponent = (code >> 3) & 15;
    const int mantissa = code & 7;
    if ((code & 0x7f) == 0x7f) {
      EXPECT_TRUE(e4m3_is_nan(byte));
      EXPECT_TRUE(std::isnan(e4m3_to_float(byte)));
      continue;
    }
    EXPECT_FALSE(e4m3_is_nan(byte));
    const double magnitude =
        exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(1.0 + mantissa / 8.0, exponent - 7);
    EXPECT_EQ(e4m3_to_float(byte), code & 0x80 ? -magnitude : magnitude) << code;
    EXPECT_EQ(std::signbit(e4m3_to_float(byte)), (code & 0x80) != 0) << code;
  }
}

TEST(NumericTypes, e4m3_matches_the_published_examples) {
  EXPECT_EQ(e4m3_to_float(0x01), 0x1p-9f);
  EXPECT_EQ(e4m3_to_float(0x07), 7 * 0x1p-9f);
  EXPECT_EQ(e4m3_to_float(0x08), 0x1p-6f);
  EXPECT_EQ(e4m3_to_float(0x38), 1.0f);
  EXPECT_EQ(e4m3_to_float(0x3c), 1.5f);
  EXPECT_EQ(e4m3_to_float(0x77), 240.0f);
  EXPECT_EQ(e4m3_to_float(0x7e), 448.0f);
  EXPECT_EQ(e4m3_to_float(0xfe), -448.0f);
}

TEST(NumericTypes, bf16_survives_a_round_trip) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const float value = bf16_to_float(static_cast<uint16_t>(bits));
    const uint16_t back = float_to_bf16(value);
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(bf16_to_float(back)));
    } else {
      ASSERT_EQ(back, bits);
    }
  }
}

// Between each two neighbours: below, at and above the middle.
TEST(NumericTypes, bf16_rounds_to_nearest_with_ties_to_even) {
  for (uint32_t low = 0; low < 0x7f80; ++low) {
    const uint32_t base = low << 16;
    const auto round = [](uint32_t bits) { return float_to_bf16(std::bit_cast<float>(bits)); };
    ASSERT_EQ(round(base | 0x7fff), low);
    ASSERT_EQ(round(base | 0x8001), low + 1);
    ASSERT_EQ(round(base | 0x8000), low % 2 == 0 ? low : low + 1);
    ASSERT_EQ(round(base | 0x80008001u), (low + 1) | 0x8000u);
  }
  EXPECT_EQ(float_to_bf16(std::numeric_limits<float>::max()), 0x7f80);  // overflows to infinity
}

}  // namespace
}  // namespace atl::kernels
