#include "kernels/linear.h"

#include <gmock/gmock.h>

#include <limits>
#include <thread>

#include "base/fp_env.h"
#include "kernels/reference/reference.h"
#include "tests/kernels/kernel_test_util.h"

namespace atl::kernels {
namespace {

using namespace testing;

struct Case {
  int64_t outputs;
  int64_t k;
  PanelSource source;
};

// Ragged on every side: outputs, k, first group, partial words at both ends, scales per output.
const Case kCases[] = {
    {1, 1, {}},
    {16, 128, {}},
    {50, 131, {.row_begin = 16, .col_begin = 0}},
    {33, 7, {.row_begin = 0, .col_begin = 3}},
    {145, 260, {.row_begin = 100, .col_begin = 126}},
    {130, 301, {.row_begin = 8, .col_begin = 255}},
    {20, 129, {.row_begin = 127, .col_begin = 1, .transposed = true}},
};

TestMatrix matrix_for(std::mt19937& rng, WeightFormat format, const Case& c) {
  const int64_t rows = c.source.row_begin + (c.source.transposed ? c.k : c.outputs);
  const int64_t cols = c.source.col_begin + (c.source.transposed ? c.outputs : c.k);
  return random_matrix(rng, format, rows, cols);
}

// Rows of very different sizes, some with numbers that are none.
std::vector<std::vector<float>> rows_of_all_sizes(std::mt19937& rng, int64_t num_rows, int64_t k) {
  const float sizes[] = {1.0f, 1e-38f, 1e-30f, 3e38f, 1e-3f};
  std::vector<std::vector<float>> rows;
  for (int64_t r = 0; r < num_rows; ++r) {
    rows.push_back(random_values(rng, k, sizes[r % 5]));
    if (r % 7 == 5) rows.back()[rng() % k] = std::numeric_limits<float>::quiet_NaN();
    if (r % 7 == 6) rows.back()[rng() % k] = std::numeric_limits<float>::infinity();
    if (r % 7 == 4) rows.back()[rng() % k] = -0.0f;
  }
  return rows;
}

std::string describe(const Arithmetic& arithmetic, const Case& c) {
  return arithmetic.name() + " [" + std::to_string(c.outputs) + ", " + std::to_string(c.k) +
         "] at " + std::to_string(c.source.row_begin) + ", " + std::to_string(c.source.col_begin);
}

TEST(Linear, equals_the_reference_bit_for_bit_on_every_target_for_any_rows_and_panel_split) {
  std::mt19937 rng(11);
  for (const Arithmetic& arithmetic : kArithmetics) {
    for (const Case& c : kCases) {
      SCOPED_TRACE(describe(arithmetic, c));
      const Packed w = pack_as(arithmetic, matrix_for(rng, arithmetic.source_format(), c),
                               c.outputs, c.k, c.source);
      const int64_t panels = w.matrix.shape.num_panels();
      const Rows x(rows_of_all_sizes(rng, 70, c.k));
      Rows expected(x.size(), static_cast<size_t>(c.outputs));
      reference::linear_panels(w.matrix, 0, panels, x.read, expected.write);
      for_each_target(
          [&](const std::string& target) {
            if (target == "SCALAR") return;  // the reference itself
            for (size_t n : {1, 2, 3, 4, 5, 6, 7, 8, 9, 17, 70}) {
              Rows y(n, static_cast<size_t>(c.outputs) + 1, 123.0f);
              for (int64_t begin = 0, step = 0; begin < panels; begin += step) {
                step = std::min<int64_t>(1 + static_cast<int64_t>(rng() % 9), panels - begin);
                const PanelMatrix* next = n % 2 == 0 ? &w.matrix : nullptr;  // changes nothing
                linear_panels(w.matrix, begin, begin + step, {x.read.data(), n}, y.write, next);
              }
              for (size_t r = 0; r < n; ++r) {
                EXPECT_EQ(y.values[r].back(), 123.0f) << "written past the outputs";
                y.values[r].pop_back();
                expect_same_bits(expected.values[r], y.values[r],
                                 std::to_string(n) + " rows, row " + std::to_string(r));
                if (HasFatalFailure()) return;
              }
            }
          },
          arithmetic.activations == Activations::kI8);
      if (HasFatalFailure()) return;
    }
  }
}

// Whole words in every group and rows below 2^8 take the direct kernels, all at once or in blocks;
// a single larger value sends its group of all rows another way. Around all block sizes.
TEST(Linear, gives_the_reference_bits_for_rows_around_the_bound_of_scaled_fp8_rows) {
  const Case cases[] = {
      {145, 260, {.row_begin = 100, .col_begin = 124}},  // scales per output, short first group
      {240, 128, {}},                                    // one group, as a tile's down
      {130, 388, {}},                                    // short last group
      // So many groups that one row of few panels takes several at once: 1, 2, 3 and 6 panels.
      {16, 1300, {}},
      {20, 1412, {.row_begin = 100, .col_begin = 124}},
      {48, 1152, {}},
      {90, 1280, {.row_begin = 120, .col_begin = 256}},
  };
  std::mt19937 rng(15);
  for (const Arithmetic& arithmetic : kArithmetics) {
    for (const Case& c : cases) {
      // The bounds of FP8 and of F16.
      const bool f16 = arithmetic.format == WeightFormat::kF16;
      const float bound = f16 ? 65536.0f : 256.0f, below = std::nextafter(bound, 0.0f);
      for (float largest : {below, bound, -257.0f / 256 * bound}) {
        SCOPED_TRACE(describe(arithmetic, c) + " largest " + std::to_string(largest));
        const Packed w = pack_as(arithmetic, matrix_for(rng, arithmetic.source_format(), c),
                                 c.outputs, c.k, c.source);
        const int64_t panels = w.matrix.shape.num_panels();
        Rows x(70, static_cast<size_t>(c.k));
        for (auto& row : x.values) {
          for (float& v : row)
            v = std::ldexp(1.0f + 0x1p-23f * (rng() % (1 << 23)),
                           static_cast<int>(rng() % 158) - 150);
          row[rng() % row.size()] = rng() % 2 ? -below : below;
        }
        x.values[0][static_cast<size_t>(c.k - 1)] = largest;
        Rows expected(x.size(), static_cast<size_t>(c.outputs));
        reference::linear_panels(w.matrix, 0, panels, x.read, expected.write);
        for_each_target(
            [&](const std::string& target) {
              if (target == "SCALAR") return;  // the reference itself
              for (size_t n : {1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 16, 17, 63, 64, 65, 70}) {
                Rows y(n, static_cast<size_t>(c.outputs));
                linear_panels(w.matrix, 0, panels, {x.read.data(), n}, y.write);
                for (size_t r = 0; r < n; ++r) {
                  expect_same_bits(expected.values[r], y.values[r],
                                   std::to_string(n) + " rows, row " + std::to_string(r));
                  if (HasFatalFailure()) return;
                }
              }
            },
            arithmetic.activations == Activations::kI8);
        if (HasFatalFailure()) return;
      }
    }
  }
}

// A single product per output tells each code apart, on every target.
TEST(Linear, decodes_all_254_finite_e4m3_codes_exactly_on_every_target) {
  TestMatrix m{WeightFormat::kFp8E4m3, 256, 9, {}, {1.0f, 1.0f}};
  for (int i = 0; i < 256 * 9; ++i) {
    const int code = (i / 9 + i % 9 * 37) % 256;
    m.data.push_back(static_cast<std::byte>((code & 0x7f) == 0x7f ? 0 : code));
  }
  const Packed w = pack_all(m, 256, 9, {});
  for_each_target([&](const std::string&) {
    for (size_t n : {size_t{1}, size_t{4}, size_t{12}}) {
      for (int64_t k = 0; k < 9; ++k) {
        Rows x(n, 9);
        for (auto& row : x.values) row[static_cast<size_t>(k)] = 1.0f;
        Rows y(n, 256);
        linear_panels(w.matrix, 0, 16, x.read, y.write);
        for (size_t r = 0; r < n; ++r) {
          for (int64_t o = 0; o < 256; ++o) {
            ASSERT_EQ(y.values[r][static_cast<size_t>(o)], m.code(o, k)) << o << " " << k;
          }
        }
      }
    }
  });
}

// Standard bound of a chain of n roundings: n * u / (1 - n * u) times the sum of magnitudes.
TEST(Linear, reference_is_within_the_rounding_bound_of_a_double_precision_product) {
  std::mt19937 rng(12);
  for (WeightFormat format : kFormats) {
    for (const Case& c : kCases) {
      const TestMatrix m = matrix_for(rng, format, c);
      const Packed w = pack_all(m, c.outputs, c.k, c.source);
      const Rows x({random_values(rng, c.k)});
      Rows y(1, static_cast<size_t>(c.outputs));
      reference::linear_panels(w.matrix, 0, w.matrix.shape.num_panels(), x.read, y.write);
      const double roundings = static_cast<double>(c.k + w.matrix.shape.num_groups());
      const double bound = roundings * 0x1p-24 / (1 - roundings * 0x1p-24);
      for (int64_t o = 0; o < c.outputs; ++o) {
        double exact = 0;
        double magnitude = 0;
        for (int64_t k = 0; k < c.k; ++k) {
          const int64_t row = c.source.row_begin + (c.source.transposed ? k : o);
          const int64_t col = c.source.col_begin + (c.source.transposed ? o : k);
          const double term = static_cast<double>(x.values[0][static_cast<size_t>(k)]) *
                              m.code(row, col) * m.scale(row, col);
          exact += term;
          magnitude += std::fabs(term);
        }
        ASSERT_LE(std::fabs(y.values[0][static_cast<size_t>(o)] - exact), bound * magnitude)
            << describe({format}, c) << " output " << o;
      }
    }
  }
}

// Rounds after each scale group, in this order, and nowhere else: 1 + 2^-24 + 2^-24 depends on it.
TEST(Linear, sums_inside_a_group_first_and_then_over_groups) {
  for_each_target([&](const std::string&) {
    TestMatrix m{WeightFormat::kF32, 1, 256, std::vector<std::byte>(256 * 4), {}};
    const auto set = [&](int64_t col, float v) { std::memcpy(m.data.data() + col * 4, &v, 4); };
    set(0, 1.0f);
    set(128, 0x1p-24f);
    set(255, 0x1p-24f);
    const Packed w = pack_all(m, 1, 256, {});
    const Rows x(1, 256, 1.0f);
    Rows y(1, 1);
    linear_panels(w.matrix, 0, 1, x.read, y.write);
    EXPECT_EQ(y.values[0][0], 1.0f + 0x1p-23f);  // one chain would give 1
    // The same columns at an offset: the first group is 64 long, and 2^-24 falls into 1's chain.
    const Packed shifted = pack_all(m, 1, 128, {.col_begin = 128});
    EXPECT_EQ(shifted.matrix.shape.k_offset, 128);
  });
}

TEST(Linear, gives_the_same_bits_for_any_team_size_even_where_the_caller_flushes_to_zero) {
  std::mt19937 rng(13);
  for (const Arithmetic& arithmetic : kArithmetics) {
    const Case c{333, 200, {.row_begin = 8, .col_begin = 60}};
    const Packed w = pack_as(arithmetic, matrix_for(rng, arithmetic.source_format(), c), c.outputs,
                             c.k, c.source);
    std::vector<float> x = random_values(rng, 20 * c.k, 1e-38f);  // products are subnormal
    std::vector<const float*> x_rows;
    Rows expected(20, static_cast<size_t>(c.outputs));
    for (int r = 0; r < 20; ++r) x_rows.push_back(x.data() + r * c.k);
    reference::linear_panels(w.matrix, 0, w.matrix.shape.num_panels(), x_rows, expected.write);
    for_each_target(
        [&](const std::string& target) {
          for (int threads : {1, 2, 3}) {
            const int64_t n = target == "SCALAR" ? 2 : 20;
            std::vector<float> y(static_cast<size_t>(n * 340), -1.0f);
            std::thread caller([&] {
              force_flush_to_zero_for_test();
              ThreadTeam team(threads);
              linear(team, w.matrix, n, x.data(), c.k, y.data(), 340);
            });
            caller.join();
            for (int64_t r = 0; r < n; ++r) {
              expect_same_bits(expected.values[static_cast<size_t>(r)],
                               {y.data() + r * 340, static_cast<size_t>(c.outputs)},
                               std::to_string(threads) + " threads, row " + std::to_string(r));
              ASSERT_EQ(y[static_cast<size_t>(r * 340 + c.outputs)], -1.0f);
            }
          }
        },
        arithmetic.activations == Activations::kI8);
  }
}

TEST(Linear, subnormal_results_are_not_flushed) {
  std::mt19937 rng(14);
  const TestMatrix m = random_matrix(rng, WeightFormat::kFp8E4m3, 16, 8);
  const Packed w = pack_all(m, 16, 8, {});
  const Rows x(1, 8, 1e-42f);
  Rows y(1, 16);
  linear_panels(w.matrix, 0, 1, x.read, y.write);
  EXPECT_THAT(y.values[0], ::testing::Contains(::testing::Ne(0.0f)));
}

}  // namespace
}  // namespace atl::kernels
