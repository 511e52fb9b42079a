// One test over all layouts: logits are equal bit for bit for any number of nodes, split of tiles,
// link, thread count, chunk and batch. Real node processes.
#include <gtest/gtest.h>
#include <signal.h>

#include <cstring>
#include <filesystem>
#include <random>

#include "base/fp_env.h"
#include "coordinator/engine/evaluate.h"
#include "coordinator/serving/generate.h"
#include "deployment/deployment.h"
#include "model/sampler.h"
#include "tests/support/golden.h"
#include "tests/support/synthetic_model.h"
#include "tests/support/temp_dir.h"

namespace atl {
namespace {

using kernels::RowType;
using transport::TransportKind;

using Rows = std::vector<std::vector<int32_t>>;

Rows random_rows(const std::vector<size_t>& lengths, int64_t vocab_size) {
  std::mt19937 random(7);
  Rows rows;
  for (const size_t length : lengths) {
    std::vector<int32_t>& row = rows.emplace_back(length);
    for (int32_t& id : row) id = static_cast<int32_t>(random() % vocab_size);
  }
  return rows;
}

deployment::DeploymentOptions base_options(const std::filesystem::path& model) {
  deployment::DeploymentOptions options;
  options.model_dir = model;
  options.threads = 1;
  options.cache_tokens = 4096;
  options.node_program = ATOLL_BINARY;
  return options;
}

// Logits of all rows, one after the other.
std::vector<float> all_logits(const deployment::DeploymentOptions& options, const Rows& rows,
                              std::vector<deployment::Deployment::NodeReport>* reports = nullptr) {
  deployment::Deployment deployment(options);
  std::vector<float> logits;
  coordinator::EvaluateOptions evaluate;
  evaluate.rows_max = options.rows_max;
  auto result = coordinator::evaluate(deployment.engine(), rows, evaluate,
                                      [&](size_t, size_t, std::span<const float> row) {
                                        logits.insert(logits.end(), row.begin(), row.end());
                                      });
  EXPECT_TRUE(result) << (result ? "" : result.error().message);
  if (reports) *reports = deployment.node_reports();
  return logits;
}

void expect_same_bits(const std::vector<float>& actual, const std::vector<float>& expected) {
  ASSERT_EQ(actual.size(), expected.size());
  if (std::memcmp(actual.data(), expected.data(), actual.size() * sizeof(float)) == 0) return;
  for (size_t i = 0; i < actual.size(); ++i) {
    ASSERT_EQ(std::bit_cast<uint32_t>(actual[i]), std::bit_cast<uint32_t>(expected[i]))
        << "first difference at logit " << i << ": " << actual[i] << ", expected " << expected[i];
  }
}

struct Layout {
  std::string name;
  int nodes = 0;
  std::vector<int> counts = {};
  std::vector<std::vector<int>> scattered = {};
  TransportKind transport = TransportKind::kAuto;
  int threads = 1;
  int64_t rows_max = 512;
  coordinator::Halves halves = coordinator::Halves::kAuto;
};

void expect_layouts_equal(const std::filesystem::path& model, const Rows& rows, RowType type,
                          const std::vector<Layout>& layouts) {
  deployment::DeploymentOptions options = base_options(model);
  options.numerics.wire = options.numerics.cache = type;
  const std::vector<float> expected = all_logits(options, rows);
  ASSERT_FALSE(expected.empty());
  for (const Layout& layout : layouts) {
    SCOPED_TRACE(layout.name);
    options.nodes = layout.nodes;
    options.tile_counts = layout.counts;
    options.scattered_tiles = layout.scattered;
    options.transport = layout.transport;
    options.threads = layout.threads;
    options.rows_max = layout.rows_max;
    options.halves = layout.halves;
    std::vector<deployment::Deployment::NodeReport> reports;
    expect_same_bits(all_logits(options, rows, &reports), expected);
    for (const auto& report : reports) {  // every owner of tiles did its part
      EXPECT_EQ(report.traffic.dispatches > 0, report.num_tiles > 0) << report.name;
      EXPECT_EQ(report.stats.cache.misses, 0u) << report.name;
    }
  }
}

TEST(SameBits, for_any_nodes_tiles_link_threads_and_chunk) {
  const std::vector<Layout> layouts = {
      {.name = "2 threads", .threads = 2},
      {.name = "chunks of 1", .rows_max = 1},
      {.name = "chunks of 7, 2 threads", .threads = 2, .rows_max = 7},
      {.name = "1 node", .nodes = 1},
      {.name = "2 nodes", .nodes = 2},
      {.name = "3 nodes, chunks of 7", .nodes = 3, .rows_max = 7},
      {.name = "4 nodes, 2 threads", .nodes = 4, .threads = 2},
      {.name = "2 nodes, in halves", .nodes = 2, .threads = 2, .halves = coordinator::Halves::kOn},
      {.name = "2 nodes over shared memory", .nodes = 2, .transport = TransportKind::kShm},
      {.name = "3 nodes over TCP", .nodes = 3, .transport = TransportKind::kTcp},
      {.name = "uneven tiles 3+1", .nodes = 2, .counts = {3, 1}},
      {.name = "uneven tiles 1+0+3", .nodes = 3, .counts = {1, 0, 3}},
      {.name = "two spare nodes", .nodes = 6, .counts = {1, 1, 1, 1, 0, 0}},
  };
  const Rows rows = random_rows({70, 3, 130, 17}, 3328);
  const std::filesystem::path model = test::tests_dir() / "models/tiny-fp8";
  expect_layouts_equal(model, rows, RowType::kBf16, layouts);
  expect_layouts_equal(model, rows, RowType::kF32, {layouts[2], layouts[5], layouts[9]});
}

std::filesystem::path make_model(const test::TempDir& dir, int64_t hidden, int64_t intermediate) {
  test::write_small_model(dir.path(), hidden, intermediate);
  return dir.path();
}

// More rows per dispatch than one Partial carries.
TEST(SameBits, for_chunks_of_thousands_of_tokens) {
  const std::filesystem::path model = test::tests_dir() / "models/tiny-fp8";
  expect_layouts_equal(
      model, random_rows({1500, 700}, 3328), RowType::kBf16,
      {{.name = "chunks of 2100, 2 nodes", .nodes = 2, .threads = 2, .rows_max = 2100}});
}

TEST(SameBits, for_16_tiles_even_uneven_and_scattered) {
  const test::TempDir dir;
  const std::filesystem::path model = make_model(dir, 320, 2048);
  expect_layouts_equal(
      model, random_rows({40, 9}, 500), RowType::kBf16,
      {{.name = "7+5+3+1", .nodes = 4, .counts = {7, 5, 3, 1}},
       {.name = "4 equal", .nodes = 4, .transport = TransportKind::kTcp},
       {.name = "scattered",
        .nodes = 3,
        .scattered = {{0, 5, 6, 15}, {1, 2, 9, 14, 12}, {3, 4, 7, 8, 10, 11, 13}}}});
}

TEST(SameBits, for_11_tiles) {
  const test::TempDir dir;
  const std::filesystem::path model = make_model(dir, 320, 1408);
  expect_layouts_equal(model, random_rows({33}, 500), RowType::kBf16,
                       {{.name = "3 nodes", .nodes = 3},
                        {.name = "5+1+5", .nodes = 3, .counts = {5, 1, 5}, .threads = 2}});
}

TEST(SameBits, for_widths_that_are_no_multiple_of_128) {
  for (const int64_t intermediate : {400, 600}) {  // tiles of 112+112+112+64; 4 x 128 + 88
    SCOPED_TRACE(intermediate);
    const test::TempDir dir;
    const std::filesystem::path model = make_model(dir, 200, intermediate);
    expect_layouts_equal(model, random_rows({33}, 500), RowType::kBf16,
                         {{.name = "4 nodes", .nodes = 4}, {.name = "chunk 5", .rows_max = 5}});
  }
}

TEST(SameBits, whoever_shares_the_batch_and_with_ftz_forced_on_at_the_start) {
  const std::filesystem::path model = test::tests_dir() / "models/tiny-fp8";
  const Rows rows = random_rows({50, 20, 64}, 3328);
  const deployment::DeploymentOptions options = base_options(model);
  const std::vector<float> together = all_logits(options, rows);
  std::vector<float> alone;
  for (const std::vector<int32_t>& row : rows) {
    const std::vector<float> logits = all_logits(options, {row});
    alone.insert(alone.end(), logits.begin(), logits.end());
  }
  expect_same_bits(alone, together);

  ScopedStandardFpEnv put_back_at_the_end;
  force_flush_to_zero_for_test();
  expect_same_bits(all_logits(options, rows), together);
}

TEST(SameBits, when_a_node_is_killed_on_the_way) {
  const std::filesystem::path model = test::tests_dir() / "models/tiny-fp8";
  deployment::DeploymentOptions options = base_options(model);
  coordinator::GenerateRequest request;
  request.prompt = {0, 42, 699, 14, 262};
  request.max_tokens = 40;
  request.vocab_limit = 3328;
  request.sampling.temperature = 1.0f;
  request.sampling.seed = 11;
  const auto tokens = [&](int kill_at) {
    deployment::Deployment deployment(options);
    model::Sampler sampler;
    int count = 0;
    auto result = coordinator::generate(deployment.engine(), deployment.clock(), request, sampler,
                                        [&](int32_t) {
                                          if (++count == kill_at)
                                            kill(deployment.child_pids().at(1), SIGKILL);
                                        });
    EXPECT_TRUE(result) << (result ? "" : result.error().message);
    return result ? result->tokens : std::vector<int32_t>{};
  };
  const std::vector<int32_t> expected = tokens(0);
  ASSERT_EQ(expected.size(), 40u);
  options.nodes = 3;
  EXPECT_EQ(tokens(10), expected);
}

}  // namespace
}  // namespace atl
