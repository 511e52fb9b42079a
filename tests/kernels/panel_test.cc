#include "kernels/panel.h"

#include <algorithm>

#include "kernels/cpu/widen.h"
#include "tests/kernels/kernel_test_util.h"

namespace atl::kernels {
namespace {

using namespace testing;

float unpacked_code(const PanelMatrix& m, int64_t output, int64_t k) {
  const int64_t bytes = static_cast<int64_t>(code_bytes(m.shape.format));
  const int64_t per_word = 4 / bytes;
  const std::byte* at =
      m.panel_codes(output / 16) + ((k / per_word) * 16 + output % 16) * 4 + (k % per_word) * bytes;
  TestMatrix one{m.shape.format, 1, 1, std::vector<std::byte>(at, at + bytes), {}};
  return one.code(0, 0);
}

float unpacked_scale(const PanelMatrix& m, int64_t output, int64_t k) {
  if (m.scales == nullptr) return 1.0f;
  const int64_t group = (m.shape.k_offset % 128 + k) / 128;
  const float* scales = m.panel_scales(output / 16);
  return m.shape.scale_per_output ? scales[group * 16 + output % 16] : scales[group];
}

void expect_packed_equals_dense(const TestMatrix& dense, const Packed& packed,
                                const PanelSource& source) {
  const PanelShape& shape = packed.matrix.shape;
  for (int64_t o = 0; o < shape.outputs; ++o) {
    for (int64_t k = 0; k < shape.k; ++k) {
      const int64_t row = source.row_begin + (source.transposed ? k : o);
      const int64_t col = source.col_begin + (source.transposed ? o : k);
      ASSERT_TRUE(same_bits(unpacked_code(packed.matrix, o, k), dense.code(row, col)))
          << "code of output " << o << " k " << k;
      ASSERT_EQ(unpacked_scale(packed.matrix, o, k), dense.scale(row, col))
          << "scale of output " << o << " k " << k;
    }
  }
}

// Every byte that belongs to no output and k must still be zero.
int64_t nonzero_padding_bytes(const Packed& packed) {
  const PanelShape& shape = packed.matrix.shape;
  const int64_t bytes = static_cast<int64_t>(code_bytes(shape.format));
  int64_t nonzero = 0;
  for (int64_t panel = 0; panel < shape.num_panels(); ++panel) {
    for (int64_t at = 0; at < static_cast<int64_t>(shape.panel_code_bytes()); ++at) {
      const int64_t lane = at / 4 % 16;
      const int64_t k = at / 64 * (4 / bytes) + at % 4 / bytes;
      const bool padding = panel * 16 + lane >= shape.outputs || k >= shape.k;
      if (padding && packed.matrix.panel_codes(panel)[at] != std::byte{0}) ++nonzero;
    }
  }
  return nonzero;
}

TEST(Panel, packed_elements_equal_the_dense_ones_for_every_number_of_outputs) {
  std::mt19937 rng(1);
  for (WeightFormat format : kFormats) {
    for (int64_t outputs = 1; outputs <= 50; ++outputs) {
      const int64_t k = 1 + static_cast<int64_t>(rng() % 300);
      SCOPED_TRACE(std::string(to_string(format)) + " outputs " + std::to_string(outputs) + " k " +
                   std::to_string(k));
      const PanelSource source{.row_begin = static_cast<int64_t>(rng() % 150),
                               .col_begin = static_cast<int64_t>(rng() % 200)};
      const TestMatrix dense =
          random_matrix(rng, format, source.row_begin + outputs + 3, source.col_begin + k + 5);
      const Packed packed = pack_all(dense, outputs, k, source);
      ASSERT_NO_FATAL_FAILURE(expect_packed_equals_dense(dense, packed, source));
      EXPECT_EQ(nonzero_padding_bytes(packed), 0);
    }
  }
}

TEST(Panel, transposed_elements_equal_the_dense_ones) {
  std::mt19937 rng(2);
  for (WeightFormat format : kFormats) {
    for (int64_t outputs : {1, 15, 16, 17, 48, 200}) {
      for (int64_t k : {1, 3, 28, 128, 131}) {
        const PanelSource source{.row_begin = static_cast<int64_t>(rng() % 260),
                                 .col_begin = static_cast<int64_t>(rng() % 130),
                                 .transposed = true};
        const TestMatrix dense =
            random_matrix(rng, format, source.row_begin + k + 2, source.col_begin + outputs);
        const Packed packed = pack_all(dense, outputs, k, source);
        ASSERT_NO_FATAL_FAILURE(expect_packed_equals_dense(dense, packed, source));
        EXPECT_EQ(nonzero_padding_bytes(packed), 0);
      }
    }
  }
}

TEST(Panel, an_output_is_read_back_as_it_was_packed) {
  std::mt19937 rng(9);
  for (WeightFormat format : kFormats) {
    if (format == WeightFormat::kFp8E4m3) continue;  // has scales
    const TestMatrix dense = random_matrix(rng, format, 37, 131);
    const Packed packed = pack_all(dense, 37, 131, {});
    std::vector<float> values(131);
    for (int64_t output : {0, 15, 16, 36}) {
      unpack_output(packed.matrix, output, values.data());
      for (int64_t k = 0; k < 131; ++k) EXPECT_EQ(values[k], dense.code(output, k)) << k;
    }
  }
}

TEST(Panel, a_matrix_may_arrive_in_any_pieces_and_order) {
  std::mt19937 rng(3);
  for (bool transposed : {false, true}) {
    for (WeightFormat format : kFormats) {
      const TestMatrix dense = random_matrix(rng, format, 300, 290);
      const PanelSource source{.row_begin = 7, .col_begin = 13, .transposed = transposed};
      const Packed whole = pack_all(dense, 270, 265, source);
      std::vector<int64_t> cuts = {0, 300};
      for (int i = 0; i < 12; ++i) cuts.push_back(static_cast<int64_t>(rng() % 300));
      std::sort(cuts.begin(), cuts.end());
      std::vector<size_t> order(cuts.size() - 1);
      for (size_t i = 0; i < order.size(); ++i) order[i] = i;
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

TEST(Panel, scales_are_per_output_only_where_a_panel_straddles_two_blocks) {
  const auto per_output = [](int64_t outputs, const PanelSource& source) {
    return panel_shape(WeightFormat::kFp8E4m3, outputs, 8, source).scale_per_output;
  };
  EXPECT_FALSE(per_output(2048, {}));
  EXPECT_FALSE(per_output(64, {.row_begin = 112}));
  EXPECT_FALSE(per_output(16, {.row_begin = 8}));
  EXPECT_TRUE(per_output(16, {.row_begin = 120}));
  EXPECT_FALSE(per_output(8, {.row_begin = 120}));
  EXPECT_TRUE(per_output(200, {.row_begin = 8}));
  EXPECT_TRUE(per_output(9, {.col_begin = 120, .transposed = true}));
  EXPECT_FALSE(per_output(9, {.row_begin = 120, .transposed = true}));
  EXPECT_FALSE(panel_shape(WeightFormat::kBf16, 200, 8, {.row_begin = 8}).scale_per_output);
}

TEST(Panel, groups_end_at_multiples_of_128_of_the_whole_matrix) {
  PanelShape shape{.format = WeightFormat::kFp8E4m3, .outputs = 16, .k = 128};
  EXPECT_EQ(shape.num_groups(), 1);
  shape.k_offset = 112;
  EXPECT_EQ(shape.num_groups(), 2);
  EXPECT_EQ(shape.first_group(), 16);
  shape.k_offset = 128;
  EXPECT_EQ(shape.num_groups(), 1);
  shape.k_offset = 127;
  shape.k = 258;
  EXPECT_EQ(shape.num_groups(), 4);
}

// One bad value at every place of an array with every alignment of its end.
TEST(Panel, scans_find_the_first_bad_value_wherever_it_is) {
  for (int64_t count : {1, 7, 63, 64, 65, 200}) {
    for (int64_t at = 0; at < count; ++at) {
      for (uint8_t nan : {uint8_t{0x7f}, uint8_t{0xff}}) {
        std::vector<uint8_t> codes(static_cast<size_t>(count), 0xfe);
        EXPECT_EQ(find_e4m3_nan(reinterpret_cast<std::byte*>(codes.data()), count), -1);
        codes[static_cast<size_t>(at)] = nan;
        codes.back() = nan;
        ASSERT_EQ(find_e4m3_nan(reinterpret_cast<std::byte*>(codes.data()), count), at);
      }
      for (float bad : {INFINITY, -INFINITY, NAN}) {
        std::vector<float> values(static_cast<size_t>(count), -3.4e38f);
        const auto scan = [&] {
          return find_non_finite(WeightFormat::kF32, reinterpret_cast<std::byte*>(values.data()),
                                 count);
        };
        EXPECT_EQ(scan(), -1);
        values[static_cast<size_t>(at)] = bad;
        ASSERT_EQ(scan(), at);
        std::vector<uint16_t> halves(static_cast<size_t>(count), 0xff7f);
        const auto scan16 = [&] {
          return find_non_finite(WeightFormat::kBf16, reinterpret_cast<std::byte*>(halves.data()),
                                 count);
        };
        EXPECT_EQ(scan16(), -1);
        halves[static_cast<size_t>(at)] = float_to_bf16(bad);
        ASSERT_EQ(scan16(), at);
        std::vector<uint16_t> f16(static_cast<size_t>(count), 0xfbff);  // the largest
        const auto scan_f16 = [&] {
          return find_non_finite(WeightFormat::kF16, reinterpret_cast<std::byte*>(f16.data()),
                                 count);
        };
        EXPECT_EQ(scan_f16(), -1);
        f16[static_cast<size_t>(at)] = std::isnan(bad) ? 0x7c01 : 0xfc00;
        ASSERT_EQ(scan_f16(), at);
      }
    }
  }
}

TEST(Panel, scan_takes_exactly_the_two_nan_codes_for_nan) {
  for (int code = 0; code < 256; ++code) {
    const auto byte = static_cast<std::byte>(code);
    EXPECT_EQ(find_e4m3_nan(&byte, 1) == 0, e4m3_is_nan(static_cast<uint8_t>(code))) << code;
  }
}

// All 256 codes, NaNs among them, from every place in a vector on.
TEST(Widen, gives_the_code_times_the_scale_on_every_target) {
  std::vector<std::byte> codes;
  for (int code = 0; code < 256; ++code) codes.push_back(static_cast<std::byte>(code));
  for (const float scale : {1.0f, 0.0123f, -3e-30f, 1e30f}) {
    for_each_target([&](const std::string&) {
      for (int64_t begin = 0; begin < 17; ++begin) {
        std::vector<float> values(static_cast<size_t>(256 - begin) + 1, 7.0f);
        widen_e4m3(codes.data() + begin, 256 - begin, scale, values.data());
        for (int64_t i = 0; i < 256 - begin; ++i) {
          const auto code = static_cast<uint8_t>(begin + i);
          const float expected = e4m3_to_float(code) * scale;
          const float found = values[static_cast<size_t>(i)];
          ASSERT_TRUE(e4m3_is_nan(code) ? std::isnan(found) : same_bits(found, expected))
              << int{code} << " " << scale;
        }
        EXPECT_EQ(values.back(), 7.0f);
      }
    });
  }
}

}  // namespace
}  // namespace atl::kernels
