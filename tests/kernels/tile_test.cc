#include "kernels/tile.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "kernels/reference/reference.h"
#include "tests/kernels/kernel_test_util.h"

namespace atl::kernels {
namespace {

using namespace testing;

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

struct TestTile {
  TileLayout layout;
  HostBuffer extent;
  TileView view() const { return {&layout, extent.data()}; }
};

struct TestExpert {
  Arithmetic arithmetic;
  TestMatrix gate, up, down;
  std::vector<TestTile> tiles;
};

TestTile make_tile(const TestExpert& expert, int64_t hidden, int64_t intermediate, int index) {
  TestTile tile{tile_layout(expert.arithmetic.format, hidden, intermediate, index,
                            expert.arithmetic.activations),
                HostBuffer()};
  const TileLayout& layout = tile.layout;
  tile.extent = HostBuffer(layout.bytes);
  std::byte* at = tile.extent.data();
  const auto scales = [at](size_t offset) { return reinterpret_cast<float*>(at + offset); };
  const PanelSource rows{.row_begin = layout.begin};
  const PanelSource cols{.col_begin = layout.begin};
  pack(layout.gate_up, rows, expert.gate.all(), at + layout.gate_codes, scales(layout.gate_scales));
  pack(layout.gate_up, rows, expert.up.all(), at + layout.up_codes, scales(layout.up_scales));
  pack(layout.down, cols, expert.down.all(), at + layout.down_codes, scales(layout.down_scales));
  return tile;
}

TestExpert random_expert(std::mt19937& rng, const Arithmetic& arithmetic, int64_t hidden,
                         int64_t intermediate) {
  const WeightFormat format = arithmetic.source_format();
  TestExpert expert{arithmetic,
                    random_matrix(rng, format, intermediate, hidden),
                    random_matrix(rng, format, intermediate, hidden),
                    random_matrix(rng, format, hidden, intermediate),
                    {}};
  for (int t = 0; t < num_tiles(intermediate); ++t) {
    expert.tiles.push_back(make_tile(expert, hidden, intermediate, t));
  }
  return expert;
}

TEST(Tile, widths_follow_from_the_model_alone) {
  const auto widths = [](int64_t intermediate) {
    std::vector<int64_t> result;
    for (int t = 0; t < num_tiles(intermediate); ++t) {
      result.push_back(tile_layout(WeightFormat::kBf16, 32, intermediate, t).width);
    }
    return result;
  };
  EXPECT_EQ(widths(2048), std::vector<int64_t>(16, 128));
  EXPECT_EQ(widths(1408), std::vector<int64_t>(11, 128));
  EXPECT_EQ(widths(512), std::vector<int64_t>(4, 128));
  EXPECT_EQ(widths(64), std::vector<int64_t>(4, 16));
  EXPECT_EQ(widths(80), (std::vector<int64_t>{32, 32, 16}));
  EXPECT_EQ(widths(20), (std::vector<int64_t>{16, 4}));
  EXPECT_EQ(widths(400), (std::vector<int64_t>{112, 112, 112, 64}));
  EXPECT_EQ(widths(600), (std::vector<int64_t>{128, 128, 128, 128, 88}));
  EXPECT_EQ(widths(1), std::vector<int64_t>{1});
}

TEST(Tile, layout_puts_the_parts_behind_one_another_on_whole_pages) {
  const TileLayout v3 = tile_layout(WeightFormat::kFp8E4m3, 7168, 2048, 3);
  EXPECT_EQ(v3.begin, 384);
  EXPECT_EQ(v3.gate_codes, 0u);
  EXPECT_EQ(v3.up_codes, 7168u * 128);
  EXPECT_EQ(v3.down_codes, 2u * 7168 * 128);
  EXPECT_EQ(v3.gate_scales, 3u * 7168 * 128);
  EXPECT_EQ(v3.up_scales - v3.gate_scales, 8u * 56 * 4);
  EXPECT_EQ(v3.down_scales - v3.up_scales, 8u * 56 * 4);
  EXPECT_EQ(v3.bytes, 3u * 7168 * 128 + 8192);  // 5376 bytes of scales
  for (WeightFormat format : kFormats) {
    for (int64_t intermediate : {20, 80, 400, 600}) {
      for (int t = 0; t < num_tiles(intermediate); ++t) {
        const TileLayout layout = tile_layout(format, 72, intermediate, t);
        EXPECT_EQ(layout.bytes % kTileAlign, 0u);
        EXPECT_FALSE(layout.gate_up.scale_per_output);
        EXPECT_FALSE(layout.down.scale_per_output);
        for (size_t offset : {layout.gate_codes, layout.up_codes, layout.down_codes}) {
          EXPECT_EQ(offset % 64, 0u);
        }
      }
    }
  }
}

TEST(Tile, gate_up_and_down_equal_the_reference_on_every_target) {
  std::mt19937 rng(21);
  for (const Arithmetic& arithmetic : kArithmetics) {
    SCOPED_TRACE(arithmetic.name());
    for (int64_t intermediate : {20, 400, 520}) {
      const int64_t hidden = intermediate == 400 ? 170 : 72;
      const TestExpert expert = random_expert(rng, arithmetic, hidden, intermediate);
      constexpr size_t kRows = 17;
      std::vector<std::vector<float>> rows;
      for (size_t r = 0; r < kRows; ++r) {
        rows.push_back(random_values(rng, hidden, r % 3 == 1 ? 1e-30f : r % 3 == 2 ? 20.0f : 0.3f));
      }
      const Rows x(std::move(rows));
      const std::vector<float> weights = random_values(rng, kRows);
      for (const TestTile& tile : expert.tiles) {
        const TileView view = tile.view();
        const int64_t panels = tile.layout.gate_up.num_panels();
        const int64_t down_panels = tile.layout.down.num_panels();
        Rows h(kRows, static_cast<size_t>(tile.layout.width));
        reference::tile_gate_up(view, 0, panels, x.read, weights, h.write);
        using Sums = std::vector<std::vector<int64_t>>;
        const Sums before(kRows, std::vector<int64_t>(static_cast<size_t>(hidden), 1000));
        const auto down = [&](auto function, size_t n, int64_t step, std::vector<uint8_t>& bad) {
          Sums acc(before.begin(), before.begin() + static_cast<int64_t>(n));
          std::vector<int64_t*> pointers;
          for (auto& row : acc) pointers.push_back(row.data());
          for (int64_t p = 0; p < down_panels; p += step) {
            function(view, p, std::min(p + step, down_panels), {h.read.data(), n}, pointers, bad);
          }
          return acc;
        };
        std::vector<uint8_t> expected_bad(kRows);
        const Sums expected = down(reference::tile_down_accumulate, kRows, 1000, expected_bad);
        for_each_target([&](const std::string& target) {
          for (size_t n : {1, 2, 5, 8, 17}) {
            if (target == "SCALAR" && n > 1) continue;
            const int64_t step = 1 + static_cast<int64_t>(rng() % 9);
            Rows found(n, static_cast<size_t>(tile.layout.width));
            for (int64_t p = 0; p < panels; p += step) {
              tile_gate_up({&view, 1}, p, std::min(p + step, panels), {x.read.data(), n},
                           {weights.data(), n}, found.write);
            }
            for (size_t r = 0; r < n; ++r) {
              ASSERT_NO_FATAL_FAILURE(expect_same_bits(h.values[r], found.values[r], "h"));
            }
            std::vector<uint8_t> bad(n);
            const TileView* next = n % 2 == 0 ? &view : nullptr;  // fetching changes nothing
            const auto accumulate = [next](const TileView& t, int64_t begin, int64_t end,
                                           std::span<const float* const> in,
                                           std::span<int64_t* const> acc, std::span<uint8_t> bad) {
              tile_down_accumulate(t, begin, end, in, acc, bad, next);
            };
            const Sums sums = down(accumulate, n, step, bad);
            for (size_t r = 0; r < n; ++r) {
              ASSERT_EQ(bad[r], expected_bad[r]);
              if (bad[r] == 0) {
                ASSERT_EQ(sums[r], expected[r]);
              }
            }
          }
        });
        if (HasFatalFailure()) return;
      }
    }
  }
}

// Against the formula in double precision; the bound adds up the roundings of the three products.
TEST(Tile, reference_expert_is_close_to_the_formula_in_double_precision) {
  std::mt19937 rng(22);
  for (WeightFormat format : kFormats) {
    const int64_t hidden = 72;
    const int64_t intermediate = 400;
    const TestExpert expert = random_expert(rng, {format}, hidden, intermediate);
    // F16's random codes go up to 65,504: the sums stay in range.
    const float scale = format == WeightFormat::kFp8E4m3 ? 0.02f
                        : format == WeightFormat::kF16   ? 1e-6f
                                                         : 0.1f;
    const Rows x({random_values(rng, hidden, scale)});
    const float weight = 0.37f;
    std::vector<int64_t> acc(static_cast<size_t>(hidden));
    int64_t* acc_row = acc.data();
    uint8_t bad = 0;
    for (const TestTile& tile : expert.tiles) {
      Rows h(1, static_cast<size_t>(tile.layout.width));
      reference::tile_gate_up(tile.view(), 0, tile.layout.gate_up.num_panels(), x.read,
                              {&weight, 1}, h.write);
      reference::tile_down_accumulate(tile.view(), 0, tile.layout.down.num_panels(), h.read,
                                      {&acc_row, 1}, {&bad, 1});
    }
    ASSERT_EQ(bad, 0);
    struct Product {
      double value = 0, magnitude = 0;
    };
    const auto product = [&](const TestMatrix& m, int64_t row, auto in, int64_t n) {
      Product p;
      for (int64_t i = 0; i < n; ++i) {
        const double term = double{m.code(row, i)} * m.scale(row, i) * in(i);
        p.value += term;
        p.magnitude += std::fabs(term);
      }
      return p;
    };
    const double u = 0x1p-24;
    std::vector<double> h(static_cast<size_t>(intermediate)), h_error(h.size());
    const auto x_at = [&](int64_t i) { return double{x.values[0][static_cast<size_t>(i)]}; };
    for (int64_t i = 0; i < intermediate; ++i) {
      const Product g = product(expert.gate, i, x_at, hidden);
      const Product v = product(expert.up, i, x_at, hidden);
      const double silu = g.value / (1 + std::exp(-g.value));
      h[static_cast<size_t>(i)] = weight * silu * v.value;
      // |silu'| < 1.1; 8 roundings inside silu and the two products after it.
      const double chain = 2 * (hidden + 4) * u;
      h_error[static_cast<size_t>(i)] =
          weight * (1.1 * chain * g.magnitude * std::fabs(v.value) +
                    chain * v.magnitude * std::fabs(silu) + 12 * u * std::fabs(silu * v.value));
    }
    for (int64_t o = 0; o < hidden; ++o) {
      const Product y = product(
          expert.down, o, [&](int64_t i) { return h[static_cast<size_t>(i)]; }, intermediate);
      double error = 2 * 116 * u * y.magnitude + num_tiles(intermediate) * 0x1p-25;
      for (int64_t i = 0; i < intermediate; ++i) {
        error += std::fabs(double{expert.down.code(o, i)} * expert.down.scale(o, i)) *
                 h_error[static_cast<size_t>(i)] * (1 + 1e-3);
      }
      ASSERT_NEAR(static_cast<double>(acc[static_cast<size_t>(o)]) * 0x1p-24, y.value, error)
          << to_string(format) << " output " << o;
      ASSERT_LT(error, 0.01 * y.magnitude + 1e-6);  // the bound says something
    }
  }
}

TEST(Tile, sum_over_tiles_is_the_same_for_any_order_and_grouping) {
  std::mt19937 rng(23);
  const int64_t hidden = 320;
  const TestExpert expert = random_expert(rng, {WeightFormat::kFp8E4m3}, hidden, 2048);
  const Rows x({random_values(rng, hidden), random_values(rng, hidden)});
  const std::vector<float> weights = {0.7f, -1.3f};
  const auto run = [&](const TestTile& tile, int64_t* first, int64_t* second) {
    Rows h(2, static_cast<size_t>(tile.layout.width));
    const TileView view = tile.view();
    tile_gate_up({&view, 1}, 0, tile.layout.gate_up.num_panels(), x.read, weights, h.write);
    int64_t* acc[] = {first, second};
    uint8_t bad[2] = {};
    tile_down_accumulate(tile.view(), 0, tile.layout.down.num_panels(), h.read, acc, bad);
    EXPECT_EQ(bad[0] + bad[1], 0);
  };
  std::vector<int64_t> expected(2 * 320);
  for (const TestTile& tile : expert.tiles) run(tile, expected.data(), expected.data() + 320);
  std::vector<size_t> order(expert.tiles.size());
  std::iota(order.begin(), order.end(), size_t{0});
  for (int round = 0; round < 5; ++round) {
    std::shuffle(order.begin(), order.end(), rng);
    // Three nodes with their own sums, then the coordinator's addition.
    std::vector<std::vector<int64_t>> node(3, std::vector<int64_t>(2 * 320));
    for (size_t i : order) {
      auto& sums = node[rng() % 3];
      run(expert.tiles[i], sums.data(), sums.data() + 320);
    }
    std::vector<int64_t> total(2 * 320);
    for (const auto& sums : node) {
      for (size_t i = 0; i < total.size(); ++i) total[i] += sums[i];
    }
    EXPECT_EQ(total, expected);
  }
}

// One tile whose down projection copies h[0] to every output.
TestTile copying_tile(int64_t hidden) {
  TestExpert expert{{WeightFormat::kF32},
                    {WeightFormat::kF32, 16, hidden, {}, {}},
                    {WeightFormat::kF32, 16, hidden, {}, {}},
                    {WeightFormat::kF32, hidden, 16, {}, {}},
                    {}};
  expert.gate.data.resize(static_cast<size_t>(16 * hidden) * 4);
  expert.up.data = expert.down.data = expert.gate.data;
  const float one = 1.0f;
  for (int64_t o = 0; o < hidden; ++o) std::memcpy(expert.down.data.data() + o * 64, &one, 4);
  return make_tile(expert, hidden, 16, 0);
}

struct Contribution {
  int64_t units;
  uint8_t bad;
};

Contribution contribution_of(const TestTile& tile, float value) {
  std::vector<float> h(16);
  h[0] = value;
  const float* h_row = h.data();
  std::vector<int64_t> acc(static_cast<size_t>(tile.layout.down.outputs));
  int64_t* acc_row = acc.data();
  uint8_t bad = 0;
  tile_down_accumulate(tile.view(), 0, tile.layout.down.num_panels(), {&h_row, 1}, {&acc_row, 1},
                       {&bad, 1});
  if (!bad) {
    for (int64_t units : acc) EXPECT_EQ(units, acc[0]);
  }
  return {acc[0], bad};
}

TEST(Tile, contributions_round_to_the_nearest_unit_with_ties_to_even) {
  for (int64_t hidden : {16, 21}) {
    const TestTile tile = copying_tile(hidden);
    for_each_target([&](const std::string&) {
      for (float sign : {1.0f, -1.0f}) {
        const auto units = [&](float v) {
          const Contribution c = contribution_of(tile, sign * v);
          EXPECT_EQ(c.bad, 0);
          return static_cast<int64_t>(sign) * c.units;
        };
        EXPECT_EQ(units(0.0f), 0);
        EXPECT_EQ(units(0x1p-24f), 1);
        EXPECT_EQ(units(0x1p-25f), 0);
        EXPECT_EQ(units(0x1.000002p-25f), 1);
        EXPECT_EQ(units(0x1.8p-24f), 2);
        EXPECT_EQ(units(0x1.4p-23f), 2);
        EXPECT_EQ(units(0x1.cp-23f), 4);
        EXPECT_EQ(units(1e-38f), 0);
        EXPECT_EQ(units(1.0f), int64_t{1} << 24);
        EXPECT_EQ(units(0x1.fffffep+22f), (int64_t{1} << 47) - (int64_t{1} << 23));
      }
    });
  }
}

TEST(Tile, contributions_out_of_bounds_or_not_finite_mark_their_row) {
  for (int64_t hidden : {16, 21, 4}) {
    const TestTile tile = copying_tile(hidden);
    for_each_target([&](const std::string&) {
      for (float bad : {0x1p+23f, -0x1p+23f, 3e38f, kInf, -kInf, kNan}) {
        EXPECT_EQ(contribution_of(tile, bad).bad, 1) << bad;
      }
    });
  }
}

TEST(Tile, a_bad_row_leaves_the_other_rows_alone) {
  const TestTile tile = copying_tile(40);
  for_each_target([&](const std::string&) {
    Rows h(9, 16, 0.0f);
    for (auto& row : h.values) row[0] = 2.0f;
    h.values[4][0] = kNan;
    std::vector<std::vector<int64_t>> acc(9, std::vector<int64_t>(40));
    std::vector<int64_t*> acc_rows;
    for (auto& row : acc) acc_rows.push_back(row.data());
    std::vector<uint8_t> bad(9);
    bad[7] = 1;  // never reset
    tile_down_accumulate(tile.view(), 0, 3, h.read, acc_rows, bad);
    EXPECT_EQ(bad, (std::vector<uint8_t>{0, 0, 0, 0, 1, 0, 0, 1, 0}));
    for (size_t r : {0, 3, 5, 8}) {
      EXPECT_EQ(acc[r], std::vector<int64_t>(40, int64_t{2} << 24)) << r;
    }
  });
}

TEST(Tile, fixed_point_rows_convert_with_one_rounding) {
  std::mt19937_64 rng(24);
  std::vector<int64_t> sums;
  for (int shift = 17; shift < 64; ++shift) {
    for (int i = 0; i < 7; ++i) sums.push_back(static_cast<int64_t>(rng()) >> shift);
  }
  for (int64_t edge : {kContributionBound, -kContributionBound, int64_t{0}, int64_t{0x1000001},
                       int64_t{0x1000003}}) {
    sums.push_back(edge);
  }
  const auto n = static_cast<int64_t>(sums.size());
  for (int64_t& sum : sums) sum = std::clamp(sum, -kContributionBound, kContributionBound);
  for_each_target([&](const std::string&) {
    std::vector<float> out(sums.size(), -0.0f);  // -0 + x is x
    ASSERT_TRUE(add_fixed_point_row(sums.data(), n, out.data()));
    for (size_t i = 0; i < sums.size(); ++i) {
      ASSERT_EQ(out[i], static_cast<float>(static_cast<double>(sums[i]) * 0x1p-24)) << sums[i];
    }
    std::vector<float> shared(sums.size(), 0.3f);
    ASSERT_TRUE(add_fixed_point_row(sums.data(), n, shared.data()));
    for (size_t i = 0; i < sums.size(); ++i) ASSERT_EQ(shared[i], 0.3f + out[i]);
    for (size_t at : {size_t{0}, size_t{5}, sums.size() - 1}) {
      for (int64_t beyond :
           {kContributionBound + 1, -kContributionBound - 1, std::numeric_limits<int64_t>::max(),
            std::numeric_limits<int64_t>::min()}) {
        std::vector<int64_t> bad = sums;
        bad[at] = beyond;
        EXPECT_FALSE(add_fixed_point_row(bad.data(), n, out.data())) << at << " " << beyond;
      }
    }
  });
}

}  // namespace
}  // namespace atl::kernels
