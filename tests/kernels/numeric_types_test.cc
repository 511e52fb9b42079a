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

TEST(NumericTypes, f16_of_all_65536_codes_follows_the_formula) {
  for (int code = 0; code < 65536; ++code) {
    const float value = f16_to_float(static_cast<uint16_t>(code));
    const int exponent = (code >> 10) & 31, mantissa = code & 1023;
    EXPECT_EQ(std::signbit(value), (code & 0x8000) != 0) << code;
    if (exponent == 31) {
      EXPECT_TRUE(mantissa == 0 ? std::isinf(value) : std::isnan(value)) << code;
      continue;
    }
    const double magnitude =
        exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
    EXPECT_EQ(std::fabs(value), magnitude) << code;
  }
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

TEST(NumericTypes, e4m3_rounds_to_the_nearest_of_all_codes_with_ties_to_even) {
  const auto rounded = [](float value) {
    uint8_t best = 0;
    for (int code = 0; code < 0x7f; ++code) {
      const float distance = std::fabs(e4m3_to_float(static_cast<uint8_t>(code)) - value);
      const float best_distance = std::fabs(e4m3_to_float(best) - value);
      if (distance < best_distance || (distance == best_distance && code % 2 == 0)) {
        best = static_cast<uint8_t>(code);
      }
    }
    return best;
  };
  for (int code = 0; code < 0x7f; ++code) {
    const float value = e4m3_to_float(static_cast<uint8_t>(code));
    EXPECT_EQ(float_to_e4m3(value), code);
    EXPECT_EQ(float_to_e4m3(-value), code | 0x80);
    if (code == 0x7e) break;
    const float next = e4m3_to_float(static_cast<uint8_t>(code + 1));
    const float middle = value + (next - value) / 2;
    for (float v : {std::nextafter(middle, 0.0f), middle, std::nextafter(middle, 1e9f)}) {
      EXPECT_EQ(float_to_e4m3(v), rounded(v)) << v;
      EXPECT_EQ(float_to_e4m3(-v), rounded(v) | 0x80) << v;
    }
  }
  for (float beyond : {465.0f, 1e30f, INFINITY, NAN}) {
    EXPECT_TRUE(e4m3_is_nan(float_to_e4m3(beyond))) << beyond;
    EXPECT_TRUE(e4m3_is_nan(float_to_e4m3(-beyond))) << beyond;
  }
  EXPECT_EQ(float_to_e4m3(463.0f), 0x7e);
}

TEST(NumericTypes, names_of_formats_and_activations_parse_back) {
  for (WeightFormat format : {WeightFormat::kF32, WeightFormat::kBf16, WeightFormat::kFp8E4m3,
                              WeightFormat::kInt4, WeightFormat::kInt8}) {
    EXPECT_EQ(parse_weight_format(to_string(format)), format);
  }
  for (Activations activations : {Activations::kF32, Activations::kI8}) {
    EXPECT_EQ(parse_activations(to_string(activations)), activations);
  }
  EXPECT_FALSE(parse_weight_format("int2"));
  EXPECT_FALSE(parse_activations(""));
}

}  // namespace
}  // namespace atl::kernels
