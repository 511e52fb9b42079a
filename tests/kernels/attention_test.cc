#include "kernels/attention.h"

#include <algorithm>

#include "kernels/ops.h"
#include "kernels/reference/reference.h"
#include "tests/kernels/kernel_test_util.h"

namespace atl::kernels {
namespace {

using namespace testing;

// Cache blocks with the given number of positions; the rest of the last block is NaN, so that
// reading it would show.
struct Cache {
  std::vector<std::vector<uint8_t>> memory;
  std::vector<const void*> blocks;
  std::vector<float> entries;  // [num_positions][width], as rounded
};

template <class Shape>
Cache random_cache(std::mt19937& rng, const Shape& shape, int64_t num_positions) {
  Cache cache;
  const int64_t width = shape.width();
  for (int64_t begin = 0; begin < num_positions; begin += 64) {
    std::vector<float> block = random_values(rng, 64 * width);
    const int64_t used = std::min<int64_t>(64, num_positions - begin) * width;
    std::fill(block.begin() + used, block.end(), NAN);
    cache.memory.emplace_back(static_cast<size_t>(64 * width) * element_bytes(shape.cache_type));
    store_rounded(block.data(), 64 * width, shape.cache_type, cache.memory.back().data());
    load_row(cache.memory.back().data(), 64 * width, shape.cache_type, block.data());
    cache.entries.insert(cache.entries.end(), block.begin(), block.begin() + used);
  }
  for (const auto& block : cache.memory) cache.blocks.push_back(block.data());
  return cache;
}

const LatentShape kShapes[] = {
    {40, 8, RowType::kBf16}, {40, 8, RowType::kF32},   {512, 64, RowType::kBf16},
    {48, 8, RowType::kF32},  {64, 64, RowType::kBf16}, {5, 2, RowType::kF32},
};

TEST(MlaAttend, equals_the_reference_on_every_target_for_any_split_of_heads) {
  std::mt19937 rng(41);
  for (const LatentShape& shape : kShapes) {
    for (int64_t positions : {1, 15, 17, 63, 64, 65, 200}) {
      if (shape.kv_lora_rank == 512 && positions == 200) continue;
      const int64_t heads = 7;
      const Cache cache = random_cache(rng, shape, positions);
      const std::vector<float> q = random_values(rng, heads * shape.width());
      std::vector<float> expected(static_cast<size_t>(heads * shape.kv_lora_rank));
      reference::mla_attend(shape, heads, q.data(), cache.blocks, positions, 0.3f, expected.data());
      for_each_target([&](const std::string& target) {
        for (int64_t split = 0; split <= heads; ++split) {
          if (target == "SCALAR" && split != 3) continue;
          std::vector<float> found(expected.size(), 1e9f);
          mla_attend(shape, split, q.data(), cache.blocks, positions, 0.3f, found.data());
          mla_attend(shape, heads - split, q.data() + split * shape.width(), cache.blocks,
                     positions, 0.3f, found.data() + split * shape.kv_lora_rank);
          ASSERT_NO_FATAL_FAILURE(expect_same_bits(expected, found,
                                                   "C " + std::to_string(shape.kv_lora_rank) +
                                                       " positions " + std::to_string(positions) +
                                                       " split " + std::to_string(split)));
        }
      });
      if (HasFatalFailure()) return;
    }
  }
}

// Heads and positions go through the kernels in tiles of a few, heads in passes of 64.
TEST(MlaAttend, equals_the_reference_for_any_number_of_heads_and_positions) {
  std::mt19937 rng(45);
  for (const LatentShape& shape : {LatentShape{40, 8, RowType::kBf16},
                                   {24, 10, RowType::kF32},
                                   {33, 6, RowType::kBf16},
                                   {96, 16, RowType::kF32}}) {
    for (int64_t positions : {1, 2, 3, 4, 5, 7, 31, 62, 63, 64, 65, 66, 127, 128, 200}) {
      const Cache cache = random_cache(rng, shape, positions);
      for (int64_t heads : {1, 2, 3, 4, 5, 6, 7, 8, 9, 63, 64, 65, 130}) {
        const std::vector<float> q = random_values(rng, heads * shape.width());
        std::vector<float> expected(static_cast<size_t>(heads * shape.kv_lora_rank));
        reference::mla_attend(shape, heads, q.data(), cache.blocks, positions, 0.3f,
                              expected.data());
        for_each_target([&](const std::string& target) {
          if (target == "SCALAR") return;
          std::vector<float> found(expected.size() + 1, 1e9f);
          mla_attend(shape, heads, q.data(), cache.blocks, positions, 0.3f, found.data());
          EXPECT_EQ(found.back(), 1e9f) << "written behind the end";
          found.pop_back();
          ASSERT_NO_FATAL_FAILURE(expect_same_bits(expected, found,
                                                   "C " + std::to_string(shape.kv_lora_rank) +
                                                       " heads " + std::to_string(heads) +
                                                       " positions " + std::to_string(positions)));
        });
        if (HasFatalFailure()) return;
      }
    }
  }
}

// A thread's memory is left from calls of other shapes, also with NaN in it.
TEST(MlaAttend, does_not_see_what_earlier_calls_left_behind) {
  std::mt19937 rng(46);
  const LatentShape wide{64, 16, RowType::kF32}, narrow{20, 4, RowType::kF32};
  const std::vector<float> nan(64 * 80, NAN);
  const Cache cache = random_cache(rng, narrow, 70);
  const std::vector<float> q = random_values(rng, 3 * narrow.width());
  std::vector<float> expected(3 * 20);
  reference::mla_attend(narrow, 3, q.data(), cache.blocks, 70, 0.3f, expected.data());
  for_each_target([&](const std::string&) {
    const void* nan_blocks[] = {nan.data(), nan.data()};
    std::vector<float> nan_out(5 * 64);
    mla_attend(wide, 5, nan.data(), nan_blocks, 128, 1.0f, nan_out.data());
    EXPECT_TRUE(std::isnan(nan_out[0]));
    std::vector<float> found(3 * 20);
    mla_attend(narrow, 3, q.data(), cache.blocks, 70, 0.3f, found.data());
    expect_same_bits(expected, found, "values");
  });
}

// Scores that round to -0 and +0 decide nothing.
TEST(MlaAttend, signs_of_zero_scores_do_not_show) {
  const LatentShape shape{20, 4, RowType::kF32};
  std::vector<float> block(64 * 24);
  std::vector<float> q(24, 1e-30f);
  for (int64_t t = 0; t < 64; ++t) {
    for (int64_t i = 0; i < 24; ++i) block[t * 24 + i] = (t % 3 == 0 ? -1e-30f : 1e-30f);
  }
  const void* blocks[] = {block.data()};
  std::vector<float> expected(20);
  reference::mla_attend(shape, 1, q.data(), blocks, 64, -1.0f, expected.data());
  for_each_target([&](const std::string&) {
    std::vector<float> found(20);
    mla_attend(shape, 1, q.data(), blocks, 64, -1.0f, found.data());
    expect_same_bits(expected, found, "values");
  });
}

// out = sum(p e) / sum(p). A score is off by at most the bound of its dot product (width/16 + 5
// roundings), which p takes over as a relative error; p adds the rounding of score - max and exp;
// the sums over t and the merges of blocks add one rounding each. Numerator and denominator: twice.
TEST(MlaAttend, is_within_the_rounding_bound_of_a_naive_double_precision_softmax) {
  std::mt19937 rng(42);
  for (const LatentShape& shape : kShapes) {
    for (int64_t positions : {1, 63, 64, 65, 200}) {
      const Cache cache = random_cache(rng, shape, positions);
      const int64_t width = shape.width();
      const double scale = 0.25;
      const std::vector<float> q = random_values(rng, width);
      std::vector<float> out(static_cast<size_t>(shape.kv_lora_rank));
      mla_attend(shape, 1, q.data(), cache.blocks, positions, 0.25f, out.data());
      std::vector<double> score(static_cast<size_t>(positions));
      double score_error = 0;
      for (int64_t t = 0; t < positions; ++t) {
        double magnitude = 0;
        for (int64_t i = 0; i < width; ++i) {
          const double term = double{q[i]} * cache.entries[t * width + i];
          score[t] += scale * term;
          magnitude += scale * std::fabs(term);
        }
        const double roundings = static_cast<double>(width) / 16 + 6;
        score_error = std::max(score_error, roundings * 0x1p-24 * magnitude);
      }
      const double max = *std::max_element(score.begin(), score.end());
      const double min = *std::min_element(score.begin(), score.end());
      const double blocks = static_cast<double>((positions + 63) / 64);
      const double relative =
          2 * (score_error + ((max - min) * (1 + blocks) + 64 + 8 + 6 * blocks) * 0x1p-24);
      double sum = 0;
      for (double s : score) sum += std::exp(s - max);
      for (int64_t c = 0; c < shape.kv_lora_rank; ++c) {
        double value = 0;
        double magnitude = 0;
        for (int64_t t = 0; t < positions; ++t) {
          const double term = std::exp(score[t] - max) / sum * cache.entries[t * width + c];
          value += term;
          magnitude += std::fabs(term);
        }
        ASSERT_NEAR(out[c], value, relative * magnitude) << positions << " positions, value " << c;
      }
    }
  }
}

TEST(MlaAttend, one_position_returns_its_entry) {
  std::mt19937 rng(43);
  const LatentShape shape{40, 8, RowType::kBf16};
  const Cache cache = random_cache(rng, shape, 1);
  const std::vector<float> q = random_values(rng, shape.width(), 100.0f);
  std::vector<float> out(40);
  mla_attend(shape, 1, q.data(), cache.blocks, 1, 1.0f, out.data());
  expect_same_bits({cache.entries.data(), 40}, out, "entry");
}

// Scores up to +-1000: without the maximum taken out, exp would overflow.
TEST(MlaAttend, large_scores_stay_finite_and_equal_the_reference) {
  std::mt19937 rng(44);
  const LatentShape shape{64, 16, RowType::kF32};
  const Cache cache = random_cache(rng, shape, 150);
  const std::vector<float> q = random_values(rng, 5 * shape.width(), 100.0f);
  std::vector<float> expected(5 * 64);
  reference::mla_attend(shape, 5, q.data(), cache.blocks, 150, 1.0f, expected.data());
  for (float value : expected) ASSERT_TRUE(std::isfinite(value));
  for_each_target([&](const std::string&) {
    std::vector<float> found(5 * 64);
    mla_attend(shape, 5, q.data(), cache.blocks, 150, 1.0f, found.data());
    expect_same_bits(expected, found, "values");
  });
}

// ---- Grouped queries ---------------------------------------------------------------------------

const GroupedShape kGroupedShapes[] = {{16, RowType::kF32},
                                       {64, RowType::kBf16},
                                       {80, RowType::kF32},
                                       {128, RowType::kBf16},
                                       {10, RowType::kBf16}};

TEST(GqaAttend, equals_the_reference_on_every_target_for_any_split_of_heads) {
  std::mt19937 rng(51);
  for (const GroupedShape& shape : kGroupedShapes) {
    for (int64_t positions : {1, 15, 63, 64, 65, 200}) {
      const int64_t heads = 7, d = shape.head_dim;
      const Cache cache = random_cache(rng, shape, positions);
      const std::vector<float> q = random_values(rng, heads * d);
      std::vector<float> expected(q.size());
      reference::gqa_attend(shape, heads, q.data(), cache.blocks, positions, 0.3f, expected.data());
      for_each_target([&](const std::string& target) {
        for (int64_t split = 0; split <= heads; ++split) {
          if (target == "SCALAR" && split != 3) continue;
          std::vector<float> found(expected.size(), 1e9f);
          gqa_attend(shape, split, q.data(), cache.blocks, positions, 0.3f, found.data());
          gqa_attend(shape, heads - split, q.data() + split * d, cache.blocks, positions, 0.3f,
                     found.data() + split * d);
          ASSERT_NO_FATAL_FAILURE(expect_same_bits(
              expected, found,
              "head_dim " + std::to_string(d) + " positions " + std::to_string(positions)));
        }
      });
      if (HasFatalFailure()) return;
    }
  }
}

// Bounded as MLA's, with the width of a key.
TEST(GqaAttend, is_within_the_rounding_bound_of_a_naive_double_precision_softmax) {
  std::mt19937 rng(52);
  for (const GroupedShape& shape : kGroupedShapes) {
    for (int64_t positions : {1, 64, 150}) {
      const Cache cache = random_cache(rng, shape, positions);
      const int64_t d = shape.head_dim;
      const std::vector<float> q = random_values(rng, d);
      std::vector<float> out(static_cast<size_t>(d));
      gqa_attend(shape, 1, q.data(), cache.blocks, positions, 0.25f, out.data());
      std::vector<double> score(static_cast<size_t>(positions));
      double score_error = 0;
      for (int64_t t = 0; t < positions; ++t) {
        double magnitude = 0;
        for (int64_t i = 0; i < d; ++i) {
          const double term = 0.25 * q[i] * cache.entries[t * 2 * d + i];
          score[t] += term;
          magnitude += std::fabs(term);
        }
        const double roundings = static_cast<double>(d) / 16 + 6;
        score_error = std::max(score_error, roundings * 0x1p-24 * magnitude);
      }
      const double max = *std::max_element(score.begin(), score.end());
      const double min = *std::min_element(score.begin(), score.end());
      const auto blocks = static_cast<double>((positions + 63) / 64);
      const double relative =
          2 * (score_error + ((max - min) * (1 + blocks) + 64 + 8 + 6 * blocks) * 0x1p-24);
      double sum = 0;
      for (double s : score) sum += std::exp(s - max);
      for (int64_t c = 0; c < d; ++c) {
        double value = 0, magnitude = 0;
        for (int64_t t = 0; t < positions; ++t) {
          const double term = std::exp(score[t] - max) / sum * cache.entries[t * 2 * d + d + c];
          value += term;
          magnitude += std::fabs(term);
        }
        ASSERT_NEAR(out[c], value, relative * magnitude) << positions << " positions, value " << c;
      }
    }
  }
}

}  // namespace
}  // namespace atl::kernels
