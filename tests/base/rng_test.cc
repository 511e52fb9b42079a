#include "base/rng.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>
#include <vector>

namespace atl {
namespace {

using Words = std::array<uint32_t, 4>;

// Source: Random123 1.14, tests/kat_vectors, "philox4x32 10".
TEST(Philox, gives_the_published_known_answers) {
  EXPECT_EQ(philox4x32_10({0, 0, 0, 0}, {0, 0}),
            (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(
      philox4x32_10({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}),
      (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(
      philox4x32_10({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
      (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Uniform, uses_the_upper_bits_of_the_first_words) {
  // The first known answer: counter and key 0.
  EXPECT_EQ(uniform_f64(0, {0, 0}),
            std::ldexp(static_cast<double>(0x6627e8d5e169c58dull >> 11), -53));
  EXPECT_EQ(uniform_f32(0, {0, 0}), std::ldexp(static_cast<float>(0x6627e8), -24));
}

TEST(Uniform, every_part_of_the_place_counts) {
  std::set<double> seen;
  const uint64_t values[] = {0, 1, 2, uint64_t{1} << 32, uint64_t{1} << 63};
  for (uint64_t seed : values) {
    for (uint64_t sample : values) {
      for (uint64_t position : values) seen.insert(uniform_f64(seed, {sample, position}));
    }
  }
  EXPECT_EQ(seen.size(), 125u);
}

TEST(Uniform, fills_the_unit_interval_evenly) {
  constexpr int kBins = 64;
  constexpr int kDraws = 64'000;
  std::vector<int> counts(kBins);
  for (int i = 0; i < kDraws; ++i) {
    const double u = uniform_f64(7, {3, static_cast<uint64_t>(i)});
    ASSERT_GE(u, 0.0);
    ASSERT_LT(u, 1.0);
    ++counts[static_cast<int>(u * kBins)];
  }
  double chi_square = 0;
  for (int count : counts) chi_square += (count - 1000.0) * (count - 1000.0) / 1000.0;
  EXPECT_LT(chi_square, 103.4);  // 63 degrees of freedom, p = 0.001
  EXPECT_GT(chi_square, 32.0);   // p = 0.9995: too even isn't random either
}

}  // namespace
}  // namespace atl
