#include "kernels/int8.h"

#include <limits>

#include "kernels/linear.h"
#include "kernels/reference/reference.h"
#include "tests/kernels/kernel_test_util.h"

namespace atl::kernels {
namespace {

using namespace testing;

constexpr Arithmetic kInt8{WeightFormat::kInt8, Activations::kI8};

TestMatrix matrix_of(int64_t rows, int64_t cols, const std::vector<float>& values) {
  TestMatrix m{WeightFormat::kF32, rows, cols, std::vector<std::byte>(values.size() * 4), {}};
  std::memcpy(m.data.data(), values.data(), m.data.size());
  return m;
}

// Element by element from the bytes, by the page in docs/numbers.md and not by the walk of blocks.
struct Element {
  int code;
  float scale;
};
Element element(const PanelMatrix& m, int64_t output, int64_t k) {
  const int64_t first = 128 - m.shape.k_offset % 128;
  const int64_t block = k < first ? 0 : 1 + (k - first) / 128;
  const int64_t begin = block == 0 ? 0 : first + (block - 1) * 128;
  int64_t at = 0;
  for (int64_t b = 0, from = 0; b < block; ++b) {
    const int64_t to = first + b * 128;
    at += 64 + (to - from + 7) / 8 * 128;
    from = to;
  }
  const auto* panel = reinterpret_cast<const uint8_t*>(m.panel_codes(output / 16));
  const int64_t lane = output % 16, i = k - begin;
  float scale;
  std::memcpy(&scale, panel + at + lane * 4, 4);
  return {static_cast<int8_t>(panel[at + 64 + i / 4 * 64 + lane * 4 + i % 4]), scale};
}

TEST(Int8, takes_eight_and_a_quarter_bits_per_weight) {
  const PanelShape gate = panel_shape(WeightFormat::kInt8, 2048, 7168, {}, Activations::kI8);
  EXPECT_EQ(gate.total_code_bytes() * 8, 2048u * 7168 * 33 / 4);
  EXPECT_EQ(gate.total_scale_bytes(), 0u);
}

TEST(Int8, a_panel_cut_anywhere_holds_all_its_blocks_without_overlap) {
  for (int64_t offset : {0, 1, 16, 64, 112, 127}) {
    for (int64_t k : {1, 7, 16, 128, 129, 300, 512}) {
      int64_t next = 0;
      size_t at = 0;
      for_each_int8_block(k, offset, [&](const Int8Block& block) {
        EXPECT_EQ(block.begin, next);
        EXPECT_GT(block.end, block.begin);
        EXPECT_TRUE(block.begin == 0 || (offset + block.begin) % 128 == 0);
        EXPECT_TRUE(block.end == k || (offset + block.end) % 128 == 0);
        EXPECT_EQ(block.scales, at);
        next = block.end;
        at += int8_block_bytes(block.end - block.begin);
      });
      EXPECT_EQ(next, k);
      EXPECT_EQ(int8_panel_bytes(k, offset), at);
    }
  }
}

TEST(Int8, packs_every_source_format_within_half_a_step) {
  std::mt19937 rng(51);
  for (WeightFormat format : kFormats) {
    for (bool transposed : {false, true}) {
      for (int64_t offset : {0, 8, 61, 127}) {
        const int64_t outputs = 37, k = 150;
        const PanelSource source{transposed ? offset : 5, transposed ? 5 : offset, transposed};
        const TestMatrix dense =
            random_matrix(rng, format, source.row_begin + (transposed ? k : outputs) + 2,
                          source.col_begin + (transposed ? outputs : k) + 3);
        const Packed packed = pack_as(kInt8, dense, outputs, k, source);
        for (int64_t o = 0; o < outputs; ++o) {
          for (int64_t i = 0; i < k; ++i) {
            const int64_t row = source.row_begin + (transposed ? i : o);
            const int64_t col = source.col_begin + (transposed ? o : i);
            const float weight = dense.code(row, col) * dense.scale(row, col);
            const Element found = element(packed.matrix, o, i);
            ASSERT_LE(std::abs(found.code), 127);
            ASSERT_NEAR(found.scale * static_cast<float>(found.code), weight, 0.5001f * found.scale)
                << to_string(format) << " output " << o << " k " << i << " offset " << offset;
          }
        }
      }
    }
  }
}

TEST(Int8, every_target_rounds_a_block_alike) {
  std::mt19937 rng(52);
  for (int64_t n : {1, 5, 16, 100, 128}) {
    for (float size : {1.0f, 1e-33f, 1e30f}) {
      std::vector<float> values = random_values(rng, n, size);
      if (size > 1) values[0] = std::numeric_limits<float>::infinity();
      std::vector<int8_t> expected(static_cast<size_t>(n)), found(expected);
      const float scale = reference::round_to_int8(values.data(), n, expected.data());
      for_each_target([&](const std::string&) {
        const float other = round_to_int8(values.data(), n, found.data());
        EXPECT_TRUE(same_bits(scale, other));
        EXPECT_EQ(found, expected);
      });
    }
  }
}

// 127 x 127 everywhere, in every sign: no unit may saturate.
TEST(Int8, the_largest_sums_are_exact_on_every_target) {
  const int64_t outputs = 48, k = 384;
  for (float weight : {127.0f, -127.0f}) {
    const std::vector<float> values(static_cast<size_t>(outputs * k), weight);
    const Packed w = pack_as(kInt8, matrix_of(outputs, k, values), outputs, k, {});
    for (float sign : {1.0f, -1.0f}) {
      const std::vector<float> x(static_cast<size_t>(k), sign * 254.0f);  // scale 2, all +-127
      for_each_target([&](const std::string&) {
        for (size_t n : {1, 4, 5, 16, 17, 33}) {
          Rows rows(std::vector<std::vector<float>>(n, x));
          Rows y(n, static_cast<size_t>(outputs));
          linear_panels(w.matrix, 0, 3, rows.read, y.write);
          for (size_t r = 0; r < n; ++r) {
            for (float found : y.values[r]) {
              ASSERT_EQ(found, sign * 254.0f * weight * static_cast<float>(k));
            }
          }
        }
      });
    }
  }
}

TEST(Int8, takes_rounded_rows_only) {
  EXPECT_DEATH(panel_shape(WeightFormat::kInt8, 16, 16, {}, Activations::kF32), "kInt8");
}

}  // namespace
}  // namespace atl::kernels
