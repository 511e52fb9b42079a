#include "kernels/ops.h"

#include <limits>

#include "kernels/reference/reference.h"
#include "tests/kernels/kernel_test_util.h"

namespace atl::kernels {
namespace {

using namespace testing;

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr int64_t kSizes[] = {1, 2, 3, 7, 8, 15, 16, 17, 24, 31, 32, 33, 64, 100, 257};

// Values with all sizes, both zeros, infinities and a NaN.
std::vector<float> wild_values(std::mt19937& rng, int64_t n) {
  std::vector<float> values = random_values(rng, n);
  for (float& value : values) value = std::ldexp(value, static_cast<int>(rng() % 280) - 140);
  const float special[] = {0.0f, -0.0f, kInf, -kInf, kNan, 1e-40f, 3e38f};
  if (n > 8) values[rng() % n] = special[rng() % 7];
  return values;
}

double ulp_of(float value) {
  const float magnitude = std::fabs(value);
  return magnitude < 0x1p-126f ? 0x1p-149 : std::ldexp(1.0, std::ilogb(magnitude) - 23);
}

TEST(Exp, is_within_one_ulp_over_its_whole_range) {
  double worst = 0;
  float worst_at = 0;
  // Every 1009th float of both signs up to 104.
  for (uint32_t bits = 0; bits < std::bit_cast<uint32_t>(104.5f); bits += 1009) {
    for (uint32_t sign : {0u, 0x80000000u}) {
      const float x = std::bit_cast<float>(bits | sign);
      const double exact = std::exp(static_cast<double>(x));
      const float found = exp_f32(x);
      if (exact > std::numeric_limits<float>::max() + 0x1p103) {
        ASSERT_EQ(found, kInf) << x;
        continue;
      }
      const double error = std::fabs(found - exact) / ulp_of(static_cast<float>(exact));
      if (error > worst) {
        worst = error;
        worst_at = x;
      }
    }
  }
  std::printf("exp: largest error %.4f ulp at %a\n", worst, static_cast<double>(worst_at));
  EXPECT_LT(worst, 1.0);
}

TEST(Exp, special_values) {
  EXPECT_EQ(exp_f32(0.0f), 1.0f);
  EXPECT_EQ(exp_f32(-0.0f), 1.0f);
  EXPECT_EQ(exp_f32(-kInf), 0.0f);
  EXPECT_EQ(exp_f32(kInf), kInf);
  EXPECT_TRUE(std::isnan(exp_f32(kNan)));
  EXPECT_EQ(exp_f32(-1e30f), 0.0f);
  const float last = 88.72283f;  // the last one with a finite result
  EXPECT_NEAR(exp_f32(last), std::exp(static_cast<double>(last)), 0x1p104);
  EXPECT_EQ(exp_f32(88.72284f), kInf);
  EXPECT_EQ(exp_f32(-103.0f), 0x1p-149f);  // subnormal
  EXPECT_EQ(sigmoid_f32(-200.0f), 0.0f);
  EXPECT_EQ(sigmoid_f32(200.0f), 1.0f);
  EXPECT_EQ(sigmoid_f32(0.0f), 0.5f);
  EXPECT_EQ(silu_f32(-200.0f), 0.0f);
  EXPECT_EQ(silu_f32(200.0f), 200.0f);
}

TEST(Exp, vector_and_scalar_forms_agree_over_a_dense_sweep) {
  std::vector<float> x;
  for (uint32_t bits = 0; bits < 0x7f900000u; bits += 16411) {
    x.push_back(std::bit_cast<float>(bits));
    x.push_back(-x.back());
  }
  const auto n = static_cast<int64_t>(x.size());
  std::vector<float> expected(x.size());
  for (size_t i = 0; i < x.size(); ++i) expected[i] = sigmoid_f32(x[i]);
  for_each_target([&](const std::string&) {
    std::vector<float> found = x;
    sigmoid(found.data(), n);
    expect_same_bits(expected, found, "sigmoid");
  });
}

TEST(Ops, every_operation_equals_the_reference_on_every_target) {
  std::mt19937 rng(31);
  for (int64_t n : kSizes) {
    for (bool wild : {false, true}) {
      SCOPED_TRACE("n " + std::to_string(n) + (wild ? " wild" : ""));
      const auto values = [&] { return wild ? wild_values(rng, n) : random_values(rng, n); };
      const std::vector<float> x = values();
      const std::vector<float> y = values();
      const std::vector<float> empty(static_cast<size_t>(n));
      for_each_target([&](const std::string&) {
        std::vector<float> a, b;
        const auto compare = [&](const char* what) { expect_same_bits(a, b, what); };
        a = {reference::dot(x.data(), y.data(), n)};
        b = {dot(x.data(), y.data(), n)};
        compare("dot");
        a = b = empty;
        reference::rms_norm(x.data(), y.data(), 1e-6f, n, a.data());
        rms_norm(x.data(), y.data(), 1e-6f, n, b.data());
        compare("rms_norm");
        a = b = x;
        reference::rms_norm(a.data(), y.data(), 1e-6f, n, a.data());
        rms_norm(b.data(), y.data(), 1e-6f, n, b.data());
        compare("rms_norm in place");
        a = b = empty;
        reference::silu_mul(x.data(), y.data(), n, a.data());
        silu_mul(x.data(), y.data(), n, b.data());
        compare("silu_mul");
        a = b = x;
        reference::add_in_place(a.data(), y.data(), n);
        add_in_place(b.data(), y.data(), n);
        compare("add_in_place");
        a = b = x;
        reference::softmax(a.data(), n);
        softmax(b.data(), n);
        compare("softmax");
        a = b = x;
        a.insert(a.end(), y.begin(), y.end());
        b = a;
        reference::rope_interleaved(a.data(), x.data(), y.data(), n);
        rope_interleaved(b.data(), x.data(), y.data(), n);
        compare("rope");
        a = x;
        a.insert(a.end(), y.begin(), y.end());
        b = a;
        reference::rope_halves(a.data(), x.data(), y.data(), n);
        rope_halves(b.data(), x.data(), y.data(), n);
        compare("rope_halves");
        std::vector<uint16_t> rounded(static_cast<size_t>(n));
        store_rounded(x.data(), n, RowType::kBf16, rounded.data());
        for (size_t i = 0; i < rounded.size(); ++i) ASSERT_EQ(rounded[i], float_to_bf16(x[i]));
        a = b = empty;
        for (size_t i = 0; i < rounded.size(); ++i) a[i] = bf16_to_float(rounded[i]);
        load_row(rounded.data(), n, RowType::kBf16, b.data());
        compare("load_row bf16");
        load_weights_row(rounded.data(), n, WeightFormat::kBf16, b.data());
        compare("load_weights_row bf16");
        std::vector<float> copy(static_cast<size_t>(n));
        store_rounded(x.data(), n, RowType::kF32, copy.data());
        load_row(copy.data(), n, RowType::kF32, b.data());
        a = x;
        compare("f32 rows");
      });
      if (HasFatalFailure()) return;
    }
  }
}

// A padded term fma(0, 0, s) would turn a partial sum of -0 into +0.
TEST(Ops, dot_does_no_arithmetic_past_the_end) {
  for_each_target([&](const std::string&) {
    for (int64_t n : kSizes) {
      const std::vector<float> x(static_cast<size_t>(n), 1e-30f);
      const std::vector<float> y(static_cast<size_t>(n), -1e-30f);
      EXPECT_TRUE(same_bits(dot(x.data(), y.data(), n), reference::dot(x.data(), y.data(), n)));
    }
    EXPECT_TRUE(std::signbit(reference::tree_sum(std::vector<float>(16, -0.0f).data())));
  });
}

TEST(Ops, rms_norm_is_within_the_rounding_bound_of_double_precision) {
  std::mt19937 rng(32);
  for (int64_t n : {1, 40, 512, 7168}) {
    const std::vector<float> x = random_values(rng, n, 3.0f);
    const std::vector<float> weight = random_values(rng, n);
    std::vector<float> y(x.size());
    rms_norm(x.data(), weight.data(), 1e-6f, n, y.data());
    double sum = 0;
    for (float value : x) sum += double{value} * value;
    const double inverse = 1 / std::sqrt(sum / static_cast<double>(n) + double{1e-6f});
    // n/16 roundings per partial sum and 4 in the tree, halved by the root; 6 after it.
    const double bound = (static_cast<double>(n) / 32 + 2 + 6) * 0x1p-24 * 1.01;
    for (size_t i = 0; i < x.size(); ++i) {
      const double exact = x[i] * inverse * weight[i];
      ASSERT_NEAR(y[i], exact, bound * std::fabs(exact)) << n << " " << i;
    }
  }
}

TEST(Ops, rope_rotates_pairs_of_neighbours) {
  std::mt19937 rng(33);
  const int64_t pairs = 36;
  std::vector<float> x = random_values(rng, 2 * pairs);
  const std::vector<float> before = x;
  std::vector<float> cosines, sines;
  for (int i = 0; i < pairs; ++i) {
    cosines.push_back(std::cos(0.3f * static_cast<float>(i)));
    sines.push_back(std::sin(0.3f * static_cast<float>(i)));
  }
  rope_interleaved(x.data(), cosines.data(), sines.data(), pairs);
  for (size_t i = 0; i < static_cast<size_t>(pairs); ++i) {
    const double a = before[2 * i], b = before[2 * i + 1], c = cosines[i], s = sines[i];
    const double bound = 2 * 0x1p-24 * 1.01 * (std::fabs(a) + std::fabs(b));
    EXPECT_NEAR(x[2 * i], a * c - b * s, bound);
    EXPECT_NEAR(x[2 * i + 1], a * s + b * c, bound);
  }
}

// The two layouts are one rotation of other places.
TEST(Ops, rope_halves_rotates_the_pairs_of_both_halves) {
  std::mt19937 rng(34);
  const int64_t pairs = 37;
  std::vector<float> interleaved = random_values(rng, 2 * pairs), halves(2 * pairs);
  const std::vector<float> cosines = random_values(rng, pairs), sines = random_values(rng, pairs);
  for (int64_t i = 0; i < pairs; ++i) {
    halves[i] = interleaved[2 * i];
    halves[pairs + i] = interleaved[2 * i + 1];
  }
  rope_interleaved(interleaved.data(), cosines.data(), sines.data(), pairs);
  rope_halves(halves.data(), cosines.data(), sines.data(), pairs);
  for (int64_t i = 0; i < pairs; ++i) {
    EXPECT_TRUE(same_bits(halves[i], interleaved[2 * i])) << i;
    EXPECT_TRUE(same_bits(halves[pairs + i], interleaved[2 * i + 1])) << i;
  }
}

TEST(Ops, softmax_is_within_the_rounding_bound_of_double_precision) {
  std::mt19937 rng(34);
  for (int64_t n : {1, 5, 64, 1000}) {
    std::vector<float> x = random_values(rng, n, 8.0f);
    const std::vector<float> before = x;
    softmax(x.data(), n);
    const double max = *std::max_element(before.begin(), before.end());
    double sum = 0;
    for (float value : before) sum += std::exp(value - max);
    for (size_t i = 0; i < x.size(); ++i) {
      const double exact = std::exp(before[i] - max) / sum;
      // Rounding of x - max enters exp as such; then exp, the sum and the division.
      const double bound =
          (2 * (max - before[i]) + 2 * 80 + 4 + static_cast<double>(n) / 16 + 4) * 0x1p-24;
      ASSERT_NEAR(x[i], exact, bound * exact) << n << " " << i;
    }
  }
}

}  // namespace
}  // namespace atl::kernels
