// Weights held in another format than the checkpoint's: what that costs in quality, and that it
// keeps the contract of equal bits.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "coordinator/engine/evaluate.h"
#include "deployment/deployment.h"
#include "tests/support/golden.h"

namespace atl {
namespace {

using kernels::Activations;
using kernels::WeightFormat;
using test::GoldenArray;
using test::GoldenFolder;

const std::filesystem::path kTinyFp8 = test::tests_dir() / "models/tiny-fp8";

deployment::DeploymentOptions options_of(std::optional<WeightFormat> experts,
                                         std::optional<WeightFormat> dense,
                                         Activations activations) {
  deployment::DeploymentOptions options;
  options.model_dir = kTinyFp8;
  options.numerics.format = experts;
  options.numerics.dense_format = dense;
  if (experts == WeightFormat::kInt4 || dense == WeightFormat::kInt4) {
    options.numerics.activations = activations;
  }
  options.cache_tokens = 2048;
  options.node_program = ATOLL_BINARY;
  return options;
}

std::vector<std::vector<int32_t>> rows_of(const GoldenFolder& golden, const std::string& domain) {
  const GoldenArray<int32_t> ids = golden.ids("ppl/" + domain + ".ids");
  std::vector<std::vector<int32_t>> rows;
  for (int64_t row = 0; row < ids.shape[0]; ++row) {
    rows.emplace_back(ids.row(row), ids.row(row) + ids.row_elements());
  }
  return rows;
}

double nll(const deployment::DeploymentOptions& options,
           const std::vector<std::vector<int32_t>>& rows) {
  deployment::Deployment deployment(options);
  auto result = coordinator::evaluate(deployment.engine(), rows, {}, nullptr);
  EXPECT_TRUE(result) << (result ? "" : result.error().message);
  return result ? result->nll : NAN;
}

struct Quality {
  const char* name;
  std::optional<WeightFormat> experts, dense;
  Activations activations;
  double bound;  // on what the mean negative log likelihood rises or falls by
};

// Bounds are about twice the largest figure measured over the three domains.
TEST(Formats, cost_little_perplexity) {
  const GoldenFolder golden(test::tests_dir() / "golden");
  const Quality cases[] = {
      {"experts int8", WeightFormat::kInt8, {}, Activations::kI8, 0.001},
      {"all int8", WeightFormat::kInt8, WeightFormat::kInt8, Activations::kI8, 0.004},
      {"experts bf16", WeightFormat::kBf16, {}, Activations::kF32, 0.0005},
      {"all fp8", WeightFormat::kFp8E4m3, WeightFormat::kFp8E4m3, Activations::kF32, 0.002},
      {"experts int4, f32 rows", WeightFormat::kInt4, {}, Activations::kF32, 0.004},
      {"experts int4, i8 rows", WeightFormat::kInt4, {}, Activations::kI8, 0.004},
      {"all int4, f32 rows", WeightFormat::kInt4, WeightFormat::kInt4, Activations::kF32, 0.036},
      {"all int4, i8 rows", WeightFormat::kInt4, WeightFormat::kInt4, Activations::kI8, 0.036},
  };
  for (const std::string domain : {"moby", "kjv", "sotu"}) {
    const std::vector<std::vector<int32_t>> rows = rows_of(golden, domain);
    const double as_published = nll(options_of({}, {}, Activations::kF32), rows);
    std::printf("tiny-fp8 %-4s %-22s: perplexity %.4f\n", domain.c_str(), "as published",
                std::exp(as_published));
    for (const Quality& c : cases) {
      const double found = nll(options_of(c.experts, c.dense, c.activations), rows);
      std::printf("tiny-fp8 %-4s %-22s: perplexity %.4f, nll %+.5f (bound %.4f)\n", domain.c_str(),
                  c.name, std::exp(found), found - as_published, c.bound);
      EXPECT_NEAR(found, as_published, c.bound) << c.name << ", " << domain;
      EXPECT_NE(found, as_published) << c.name << " is not what was computed with";
    }
  }
}

std::vector<float> logits(const deployment::DeploymentOptions& options,
                          const std::vector<std::vector<int32_t>>& rows) {
  deployment::Deployment deployment(options);
  std::vector<float> all;
  coordinator::EvaluateOptions evaluate;
  evaluate.rows_max = options.rows_max;
  auto result = coordinator::evaluate(deployment.engine(), rows, evaluate,
                                      [&](size_t, size_t, std::span<const float> row) {
                                        all.insert(all.end(), row.begin(), row.end());
                                      });
  EXPECT_TRUE(result) << (result ? "" : result.error().message);
  return all;
}

TEST(Formats, give_the_same_bits_on_any_layout_and_in_any_chunk) {
  const std::vector<std::vector<int32_t>> rows = {{0, 5, 600, 14, 262, 3000, 9, 77, 18, 1200, 6},
                                                  {0, 42, 699}};
  const std::pair<WeightFormat, Activations> formats[] = {{WeightFormat::kInt4, Activations::kI8},
                                                          {WeightFormat::kInt4, Activations::kF32},
                                                          {WeightFormat::kInt8, Activations::kI8}};
  for (const auto& [format, activations] : formats) {
    SCOPED_TRACE(to_string(format));
    SCOPED_TRACE(to_string(activations));
    deployment::DeploymentOptions options = options_of(format, format, activations);
    options.threads = 1;
    const std::vector<float> expected = logits(options, rows);
    ASSERT_FALSE(expected.empty());
    const auto expect_same = [&](const char* name) {
      const std::vector<float> found = logits(options, rows);
      ASSERT_EQ(found.size(), expected.size());
      EXPECT_EQ(std::memcmp(found.data(), expected.data(), found.size() * sizeof(float)), 0)
          << name;
    };
    options.rows_max = 1;
    expect_same("chunks of 1");
    options.rows_max = 5;
    options.threads = 2;
    expect_same("chunks of 5, 2 threads");
    options.nodes = 3;
    expect_same("3 nodes");
  }
}

}  // namespace
}  // namespace atl
