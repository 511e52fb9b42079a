#include "kernels/int4.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "kernels/linear.h"
#include "kernels/reference/reference.h"
#include "tests/kernels/kernel_test_util.h"

namespace atl::kernels {
namespace {

using namespace testing;

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr Arithmetic kF32Rows{WeightFormat::kInt4, Activations::kF32};
constexpr Arithmetic kI8Rows{WeightFormat::kInt4, Activations::kI8};

TestMatrix matrix_of(int64_t rows, int64_t cols, const std::vector<float>& values) {
  TestMatrix m{WeightFormat::kF32, rows, cols, std::vector<std::byte>(values.size() * 4), {}};
  std::memcpy(m.data.data(), values.data(), m.data.size());
  return m;
}

// Element by element from the bytes, by the page in docs/numbers.md and not by the walk of groups.
struct Element {
  int code;
  float scale;
};
Element element(const PanelMatrix& m, int64_t output, int64_t k) {
  const int64_t offset = m.shape.k_offset;
  const int64_t first = offset % 128;
  int64_t at = 0;  // of the block
  for (int64_t block = offset / 128; block < (offset + k) / 128; ++block) {
    const int64_t begin = block == offset / 128 ? first : 0;
    for (int64_t g = begin / 64; g < 2; ++g) {
      at += (64 - std::max<int64_t>(begin - g * 64, 0) + 7) / 8 * 64;
    }
    at += 64;
  }
  const bool in_first = (offset + k) / 128 == offset / 128;
  const int64_t begin = in_first ? first : 0;  // of what this block holds
  const int64_t place = (offset + k) % 128;
  const int64_t group = place / 64 - begin / 64;
  const int64_t group_begin = std::max(begin, place / 64 * 64);
  const int64_t words_before = group == 0 ? 0 : ((begin / 64 + 1) * 64 - begin + 7) / 8;
  const int64_t word = words_before + (place - group_begin) / 8;
  const int64_t i = (place - group_begin) % 8;
  const auto* panel = reinterpret_cast<const uint8_t*>(m.panel_codes(output / 16));
  const uint8_t byte = panel[at + 64 + (word * 16 + output % 16) * 4 + i % 4];
  uint16_t scale;
  std::memcpy(&scale, panel + at + (group * 16 + output % 16) * 2, 2);
  return {(i < 4 ? byte & 15 : byte >> 4) - 8, bf16_to_float(scale)};
}

TEST(Int4, takes_four_and_a_quarter_bits_per_weight) {
  EXPECT_EQ(int4_block_bytes(0, 128), 1088u);
  const PanelShape gate = panel_shape(WeightFormat::kInt4, 2048, 7168, {});
  EXPECT_EQ(gate.total_code_bytes() * 8 * 4, 2048u * 7168 * 17);
  EXPECT_EQ(gate.total_scale_bytes(), 0u);
  EXPECT_EQ(code_bits(WeightFormat::kInt4), 4);
}

TEST(Int4, a_panel_cut_anywhere_holds_all_its_groups_without_overlap) {
  for (int64_t offset : {0, 1, 7, 8, 60, 63, 64, 65, 100, 127}) {
    for (int64_t k = 1; k <= 300; ++k) {
      size_t at = 0;
      int64_t next = 0, in_block = 0;
      for_each_int4_group(k, offset, [&](const Int4Group& group) {
        EXPECT_EQ(group.begin, next);
        EXPECT_LE(group.end - group.begin, 64);
        EXPECT_EQ((offset + group.begin) / 64, (offset + group.end - 1) / 64);
        EXPECT_EQ(group.slot, (offset + group.begin) / 64 % 2);
        EXPECT_EQ(group.block, (offset + group.begin) / 128 - offset / 128);
        EXPECT_EQ(group.ends_block, group.end == k || (offset + group.end) % 128 == 0);
        if (in_block++ == 0) {
          EXPECT_EQ(group.scales, at);
          at += 64;
        }
        EXPECT_EQ(group.codes, at);
        at += static_cast<size_t>((group.end - group.begin + 7) / 8 * 64);
        next = group.end;
        if (group.ends_block) in_block = 0;
      });
      ASSERT_EQ(next, k);
      ASSERT_EQ(at, int4_panel_bytes(k, offset)) << "k " << k << " offset " << offset;
    }
  }
}

// Weights that are scale * code already, the largest magnitude at either end of the range.
TEST(Int4, weights_on_the_grid_come_back_exactly) {
  std::mt19937 rng(31);
  for (int64_t n : {1, 3, 8, 63, 64}) {
    for (int largest : {-8, 7}) {
      for (float scale : {1.0f, -0.0078125f, 0x1.8p+100f, 0x1.02p-60f}) {
        std::vector<float> weights(static_cast<size_t>(n));
        for (float& w : weights) w = scale * (static_cast<int>(rng() % 15) - 7);
        weights[rng() % weights.size()] = scale * static_cast<float>(largest);
        int8_t codes[64];
        uint16_t bits;
        quantize_int4(weights.data(), n, codes, &bits);
        for (int64_t i = 0; i < n; ++i) {
          ASSERT_EQ(bf16_to_float(bits) * codes[i], weights[i]) << i << " of " << n;
        }
      }
    }
  }
}

// Against the simplest scheme, scale = largest / 7 in BF16, whose error is half a step; and in sum
// never worse than it or than the mirrored -largest / 8.
TEST(Int4, quantization_errors_are_within_half_a_step_of_the_plain_scheme) {
  std::mt19937 rng(32);
  double total = 0, plain_total = 0;
  for (int round = 0; round < 500; ++round) {
    const auto n = static_cast<int64_t>(1 + rng() % 64);
    std::vector<float> weights =
        random_values(rng, n, std::ldexp(1.0f, static_cast<int>(rng() % 60) - 30));
    int8_t codes[64];
    uint16_t bits;
    quantize_int4(weights.data(), n, codes, &bits);
    float largest = 0;
    for (float w : weights) largest = std::max(largest, std::fabs(w));
    const float plain_scale = bf16_to_float(float_to_bf16(largest / 7));
    double error = 0, plain_error = 0;
    for (int64_t i = 0; i < n; ++i) {
      ASSERT_GE(codes[i], -8);
      ASSERT_LE(codes[i], 7);
      const double e = weights[i] - double{bf16_to_float(bits)} * codes[i];
      const double plain_code = std::clamp(std::nearbyint(weights[i] / plain_scale), -8.0f, 7.0f);
      const double plain = weights[i] - plain_scale * plain_code;
      error += e * e;
      plain_error += plain * plain;
      // A clipped weight: at most 11 / 8 of the largest is out of reach.
      EXPECT_LE(std::fabs(e), largest * 0.4);
    }
    EXPECT_LE(error, plain_error * (1 + 1e-5));
    total += error / (largest * largest);
    plain_total += plain_error / (largest * largest);
  }
  EXPECT_LT(total, 0.85 * plain_total);  // what the search is for
}

TEST(Int4, every_target_chooses_the_same_scale) {
  std::mt19937 rng(40);
  for (int round = 0; round < 300; ++round) {
    const float size = std::ldexp(1.0f, static_cast<int>(rng() % 250) - 140);
    alignas(64) float weights[64];
    std::ranges::copy(random_values(rng, 64, size), weights);
    float largest = 0;
    for (float w : weights) largest = std::fabs(w) > std::fabs(largest) ? w : largest;
    const float expected = reference::best_int4_scale(weights, largest);
    for_each_target([&](const std::string&) {
      ASSERT_TRUE(same_bits(best_int4_scale(weights, largest), expected)) << largest;
    });
  }
}

TEST(Int4, zeros_tiny_and_huge_groups_quantize_without_surprises) {
  int8_t codes[64];
  uint16_t bits;
  std::vector<float> weights(64, 0.0f);
  quantize_int4(weights.data(), 64, codes, &bits);
  EXPECT_EQ(bf16_to_float(bits), 0.0f);
  EXPECT_TRUE(std::all_of(codes, codes + 64, [](int8_t c) { return c == 0; }));
  weights[5] = 1e-44f;  // no scale has an inverse
  quantize_int4(weights.data(), 64, codes, &bits);
  EXPECT_EQ(bf16_to_float(bits), 0.0f);
  weights[5] = 1e38f;
  weights[6] = -1e38f;
  quantize_int4(weights.data(), 64, codes, &bits);
  EXPECT_NEAR(bf16_to_float(bits) * codes[5] / 1e38f, 1.0f, 0.15f);
  EXPECT_NEAR(bf16_to_float(bits) * codes[6] / -1e38f, 1.0f, 0.15f);
  for (float bad : {kInf, -kInf, kNan}) {
    weights[6] = bad;
    quantize_int4(weights.data(), 64, codes, &bits);
    EXPECT_TRUE(std::isnan(bf16_to_float(bits)));
  }
}

// Packing from each source: each group is quantized as quantize_int4() does it.
TEST(Int4, packs_every_source_format_group_by_group) {
  std::mt19937 rng(33);
  for (WeightFormat format : kFormats) {
    for (bool transposed : {false, true}) {
      for (int64_t offset : {0, 8, 61, 64, 127}) {
        const int64_t outputs = 37, k = 150;
        const PanelSource source{transposed ? offset : 5, transposed ? 5 : offset, transposed};
        const TestMatrix dense =
            random_matrix(rng, format, source.row_begin + (transposed ? k : outputs) + 2,
                          source.col_begin + (transposed ? outputs : k) + 3);
        const Packed packed = pack_as(kF32Rows, dense, outputs, k, source);
        for (int64_t o = 0; o < outputs; ++o) {
          for (int64_t begin = 0, end; begin < k; begin = end) {
            end = std::min(k, begin + 64 - (offset + begin) % 64);
            std::vector<float> weights;
            for (int64_t i = begin; i < end; ++i) {
              const int64_t row = source.row_begin + (transposed ? i : o);
              const int64_t col = source.col_begin + (transposed ? o : i);
              weights.push_back(dense.code(row, col) * dense.scale(row, col));
            }
            int8_t codes[64];
            uint16_t bits;
            quantize_int4(weights.data(), end - begin, codes, &bits);
            for (int64_t i = begin; i < end; ++i) {
              const Element found = element(packed.matrix, o, i);
              ASSERT_EQ(found.code, codes[i - begin])
                  << to_string(format) << " output " << o << " k " << i << " offset " << offset;
              ASSERT_EQ(found.scale, bf16_to_float(bits));
            }
          }
        }
      }
    }
  }
}

TEST(Int4, packing_in_pieces_gives_the_same_bytes) {
  std::mt19937 rng(34);
  const struct {
    WeightFormat from, to;
  } conversions[] = {
      {WeightFormat::kFp8E4m3, WeightFormat::kInt4}, {WeightFormat::kBf16, WeightFormat::kInt4},
      {WeightFormat::kFp8E4m3, WeightFormat::kInt8}, {WeightFormat::kF32, WeightFormat::kInt8},
      {WeightFormat::kF32, WeightFormat::kFp8E4m3},  {WeightFormat::kFp8E4m3, WeightFormat::kBf16},
      {WeightFormat::kBf16, WeightFormat::kF32}};
  for (const auto& [from, to] : conversions) {
    for (bool transposed : {false, true}) {
      const TestMatrix dense = random_matrix(rng, from, 700, 290);
      const PanelSource source{.row_begin = 7, .col_begin = 13, .transposed = transposed};
      const Packed whole =
          pack_as({to, to == WeightFormat::kInt8 ? Activations::kI8 : Activations::kF32}, dense,
                  transposed ? 270 : 660, transposed ? 660 : 270, source);
      std::vector<int64_t> cuts = {0, 700};
      for (int i = 0; i < 5; ++i) {
        const auto cut = static_cast<int64_t>(rng() % 700);
        cuts.push_back(transposed ? cut / kTransposedPieceRows * kTransposedPieceRows : cut);
      }
      std::sort(cuts.begin(), cuts.end());
      std::vector<size_t> order(cuts.size() - 1);
      std::iota(order.begin(), order.end(), size_t{0});
      std::shuffle(order.begin(), order.end(), rng);
      Packed pieces = allocate_packed(whole.matrix.shape);
      for (size_t i : order) {
        pack(whole.matrix.shape, source, dense.piece(cuts[i], cuts[i + 1] - cuts[i]),
             pieces.codes.data(), pieces.scales.data());
      }
      EXPECT_EQ(std::memcmp(whole.codes.data(), pieces.codes.data(), whole.codes.size()), 0);
      EXPECT_EQ(whole.scales, pieces.scales);
    }
  }
}

TEST(Int4, refuses_a_transposed_piece_that_cuts_a_group) {
  std::mt19937 rng(35);
  const TestMatrix dense = random_matrix(rng, WeightFormat::kBf16, 300, 20);
  const PanelSource source{.transposed = true};
  for (WeightFormat to : {WeightFormat::kInt4, WeightFormat::kFp8E4m3}) {
    const PanelShape shape =
        panel_shape(to, 20, 300, source, Activations::kF32, ScaleOrigin::kPacking);
    Packed packed = allocate_packed(shape);
    EXPECT_DEATH(
        pack(shape, source, dense.piece(0, 100), packed.codes.data(), packed.scales.data()),
        "whole");
    EXPECT_DEATH(
        pack(shape, source, dense.piece(64, 64), packed.codes.data(), packed.scales.data()),
        "whole");
    pack(shape, source, dense.piece(128, 172), packed.codes.data(), packed.scales.data());
  }
}

TEST(Int4, rounded_rows_are_for_int4_and_int8_alone) {
  for (WeightFormat format : kFormats) {
    EXPECT_DEATH(panel_shape(format, 16, 16, {}, Activations::kI8), "is_packed_only");
  }
}

// y of one row.
std::vector<float> linear_of(const PanelMatrix& w, const std::vector<float>& x, bool reference) {
  const float* from = x.data();
  std::vector<float> y(static_cast<size_t>(w.shape.outputs));
  float* to = y.data();
  if (reference) {
    reference::linear_panels(w, 0, w.shape.num_panels(), {&from, 1}, {&to, 1});
  } else {
    linear_panels(w, 0, w.shape.num_panels(), {&from, 1}, {&to, 1});
  }
  return y;
}

// A one at each k tells each code apart; outputs have all 16 codes at all 8 places of a word.
TEST(Int4, decodes_all_16_codes_at_every_place_on_every_target) {
  const int64_t outputs = 16, k = 128;
  std::vector<float> values;
  for (int64_t o = 0; o < outputs; ++o) {
    for (int64_t i = 0; i < k; ++i) {
      // Each group of 64 holds a -8, so that the scale is 1.
      values.push_back(i % 64 == o ? -8.0f : static_cast<float>((o + i * 5 + i / 8) % 16 - 8));
    }
  }
  const TestMatrix dense = matrix_of(outputs, k, values);
  for (const Arithmetic& arithmetic : {kF32Rows, kI8Rows}) {
    const Packed w = pack_as(arithmetic, dense, outputs, k, {});
    for_each_target([&](const std::string&) {
      for (size_t n : {size_t{1}, size_t{3}, size_t{9}}) {
        for (int64_t i = 0; i < k; ++i) {
          Rows x(n, static_cast<size_t>(k));
          for (auto& row : x.values) row[static_cast<size_t>(i)] = 127.0f;
          Rows y(n, static_cast<size_t>(outputs));
          linear_panels(w.matrix, 0, 1, x.read, y.write);
          for (size_t r = 0; r < n; ++r) {
            for (int64_t o = 0; o < outputs; ++o) {
              ASSERT_EQ(y.values[r][static_cast<size_t>(o)],
                        127.0f * values[static_cast<size_t>(o * k + i)])
                  << arithmetic.name() << " output " << o << " k " << i;
            }
          }
        }
      }
    });
  }
}

// Stored codes of 15 with rows of +-127 everywhere are the largest sums there are: 8 lines of two
// products of 15 x 127 fill 30 480 of the 32 767 that 16 bits hold.
TEST(Int4, sums_of_rounded_rows_never_saturate) {
  const int64_t outputs = 32, k = 384;
  for (float weight : {7.0f, -8.0f}) {
    std::vector<float> values(static_cast<size_t>(outputs * k), weight);
    const Packed w = pack_as(kI8Rows, matrix_of(outputs, k, values), outputs, k, {});
    const Element stored = element(w.matrix, 3, 100);
    EXPECT_EQ(stored.code * stored.scale, weight);
    for (float sign : {1.0f, -1.0f}) {
      const std::vector<float> x(static_cast<size_t>(k), sign * 254.0f);  // scale 2, all +-127
      for_each_target([&](const std::string&) {
        for (size_t n : {size_t{1}, size_t{4}, size_t{6}, size_t{20}}) {
          Rows rows(std::vector<std::vector<float>>(n, x));
          Rows y(n, static_cast<size_t>(outputs));
          linear_panels(w.matrix, 0, 2, rows.read, y.write);
          for (size_t r = 0; r < n; ++r) {
            for (float found : y.values[r]) {
              ASSERT_EQ(found, sign * 254.0f * weight * static_cast<float>(k));
            }
          }
        }
      });
    }
  }
  // Code 7 with a negative scale would hide 15: make sure that a stored 15 was among them.
  std::vector<float> values(64, 7.0f);
  values[0] = -8.0f;
  const Packed w = pack_as(kI8Rows, matrix_of(1, 64, values), 1, 64, {});
  ASSERT_EQ(element(w.matrix, 0, 1).code, 7);
  for_each_target([&](const std::string&) {
    ASSERT_EQ(linear_of(w.matrix, std::vector<float>(64, 127.0f), false)[0], 127.0f * (63 * 7 - 8));
    ASSERT_EQ(linear_of(w.matrix, std::vector<float>(64, -127.0f), false)[0],
              -127.0f * (63 * 7 - 8));
  });
}

TEST(Int4, extreme_rows_give_the_reference_bits_and_no_finite_number_for_one_that_is_none) {
  std::mt19937 rng(36);
  const int64_t outputs = 40, k = 330;
  const PanelSource source{.col_begin = 40};
  const TestMatrix dense = random_matrix(rng, WeightFormat::kBf16, outputs, 400);
  const float extremes[] = {0.0f,  -0.0f, 1e-45f, 1e-38f, -1e-32f, 0x1p-98f, 0x1.8p-99f, 0x1p-100f,
                            1e-5f, 1e30f, -1e30f, 3e38f,  3.4e38f, kInf,     -kInf,      kNan};
  for (const Arithmetic& arithmetic : {kF32Rows, kI8Rows}) {
    const Packed w = pack_as(arithmetic, dense, outputs, k, source);
    for (bool alone : {true, false}) {
      Rows x(std::size(extremes), static_cast<size_t>(k));
      for (size_t r = 0; r < x.size(); ++r) {
        if (!alone) std::ranges::copy(random_values(rng, k), x.values[r].begin());
        for (int64_t i = static_cast<int64_t>(r); i < k; i += alone ? 1 : 97) {
          x.values[r][static_cast<size_t>(i)] = extremes[r];
        }
      }
      Rows expected(x.size(), static_cast<size_t>(outputs));
      reference::linear_panels(w.matrix, 0, 3, x.read, expected.write);
      for (size_t r = 0; r < x.size(); ++r) {
        if (std::isfinite(extremes[r])) continue;
        for (float y : expected.values[r]) EXPECT_FALSE(std::isfinite(y));
      }
      for_each_target([&](const std::string& target) {
        if (target == "SCALAR") return;  // the reference itself
        for (size_t r = 0; r < x.size(); ++r) {
          expect_same_bits(expected.values[r], linear_of(w.matrix, x.values[r], false),
                           arithmetic.name() + " row of " + std::to_string(extremes[r]));
        }
        Rows y(x.size(), static_cast<size_t>(outputs));
        linear_panels(w.matrix, 0, 3, x.read, y.write);
        for (size_t r = 0; r < x.size(); ++r) {
          expect_same_bits(expected.values[r], y.values[r], arithmetic.name() + " all rows");
        }
      });
    }
  }
}

// |q x scale - x| <= scale / 2 (a bit more by rounding), so a dot product is off by at most that
// times the sum of |weight|.
TEST(Int4, rounded_rows_are_within_half_a_step_of_the_rows) {
  std::mt19937 rng(37);
  const int64_t outputs = 48, k = 300;
  const TestMatrix dense = random_matrix(rng, WeightFormat::kBf16, outputs, k);
  const Packed exact = pack_as(kF32Rows, dense, outputs, k, {});
  const Packed rounded = pack_as(kI8Rows, dense, outputs, k, {});
  EXPECT_EQ(std::memcmp(exact.codes.data(), rounded.codes.data(), exact.codes.size()), 0);
  const std::vector<float> x = random_values(rng, k);
  const std::vector<float> y = linear_of(exact.matrix, x, true);
  const std::vector<float> y_rounded = linear_of(rounded.matrix, x, true);
  for (int64_t o = 0; o < outputs; ++o) {
    double bound = 0;
    for (int64_t begin = 0; begin < k; begin += 128) {
      float largest = 0;
      const int64_t end = std::min(k, begin + 128);
      for (int64_t i = begin; i < end; ++i) largest = std::max(largest, std::fabs(x[i]));
      for (int64_t i = begin; i < end; ++i) {
        const Element e = element(exact.matrix, o, i);
        bound += 0.501 * largest / 127 * std::fabs(double{e.scale} * e.code);
      }
    }
    const double difference = std::fabs(double{y[o]} - y_rounded[o]);
    EXPECT_LE(difference, bound + 1e-4);
    EXPECT_GT(difference, 0);
  }
}

TEST(Pack, converts_fp8_and_f32_to_bf16_and_widens_exactly) {
  std::mt19937 rng(38);
  const TestMatrix fp8 = random_matrix(rng, WeightFormat::kFp8E4m3, 150, 140);
  const TestMatrix bf16 = random_matrix(rng, WeightFormat::kBf16, 150, 140);
  const TestMatrix f32 = random_matrix(rng, WeightFormat::kF32, 150, 140);
  for (const TestMatrix* m : {&fp8, &bf16, &f32}) {
    for (WeightFormat to : {WeightFormat::kBf16, WeightFormat::kF32}) {
      const Packed packed = pack_as({to}, *m, 131, 133, {.row_begin = 9, .col_begin = 5});
      for (int64_t o = 0; o < 131; ++o) {
        for (int64_t k = 0; k < 133; ++k) {
          const float value = m->code(9 + o, 5 + k) * m->scale(9 + o, 5 + k);
          std::vector<float> x(133);
          x[static_cast<size_t>(k)] = 1.0f;
          const std::byte* panel = packed.matrix.panel_codes(o / 16);
          float found;
          if (to == WeightFormat::kF32) {
            std::memcpy(&found, panel + (k * 16 + o % 16) * 4, 4);
            ASSERT_EQ(found, value);
          } else {
            uint16_t bits;
            std::memcpy(&bits, panel + (k / 2 * 16 + o % 16) * 4 + k % 2 * 2, 2);
            ASSERT_EQ(bf16_to_float(bits), bf16_to_float(float_to_bf16(value)));
          }
        }
      }
    }
  }
}

// Nearest code of value / scale: within half a step, 2^-4 of it, or 2^-10 of the scale below 2^-6.
TEST(Pack, quantizes_to_fp8_with_a_scale_for_each_output_and_128_k) {
  std::mt19937 rng(39);
  const PanelSource source{.row_begin = 3, .col_begin = 100};
  for (WeightFormat from : {WeightFormat::kBf16, WeightFormat::kF32}) {
    const TestMatrix m = random_matrix(rng, from, 60, 400);
    const Packed packed = pack_as({WeightFormat::kFp8E4m3}, m, 50, 290, source);
    ASSERT_TRUE(packed.matrix.shape.scale_per_output);
    for (int64_t o = 0; o < 50; ++o) {
      for (int64_t begin = 0, group = 0, end; begin < 290; begin = end, ++group) {
        end = std::min<int64_t>(290, begin + 128 - (100 + begin) % 128);
        float largest = 0;
        for (int64_t k = begin; k < end; ++k) {
          largest = std::max(largest, std::fabs(m.code(3 + o, 100 + k)));
        }
        const float scale = packed.matrix.panel_scales(o / 16)[group * 16 + o % 16];
        ASSERT_EQ(scale, largest / 448);
        for (int64_t k = begin; k < end; ++k) {
          const auto code = std::to_integer<uint8_t>(
              packed.matrix.panel_codes(o / 16)[(k / 4 * 16 + o % 16) * 4 + k % 4]);
          const float value = m.code(3 + o, 100 + k);
          ASSERT_NEAR(e4m3_to_float(code) * scale, value,
                      std::max(std::fabs(value) * 0x1.001p-4f, scale * 0x1.001p-10f));
        }
      }
    }
  }
}

}  // namespace
}  // namespace atl::kernels
