// An expert pack in place of its checkpoint: equal bits, one-line errors.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>

#include "cli/deployment.h"
#include "coordinator/evaluate.h"
#include "tests/support/command.h"
#include "tests/support/golden.h"
#include "tests/support/synthetic_model.h"
#include "tests/support/temp_dir.h"

namespace atl {
namespace {

namespace fs = std::filesystem;
using kernels::Activations;
using kernels::WeightFormat;
using test::CommandResult;
using test::TempDir;
using ::testing::HasSubstr;
using ::testing::StartsWith;

const fs::path kTinyFp8 = test::tests_dir() / "models/tiny-fp8";

CommandResult atoll(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), ATOLL_BINARY);
  return test::run_command(arguments);
}

void pack(const fs::path& from, const fs::path& out, std::vector<std::string> options = {}) {
  options.insert(options.begin(), {"pack", from.string(), "--out", out.string()});
  const CommandResult result = atoll(options);
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.out, StartsWith(out.string() + ": "));
}

cli::DeploymentOptions options_of(const fs::path& dir) {
  cli::DeploymentOptions options;
  options.model_dir = dir;
  options.cache_tokens = 256;
  options.chunk = 4;
  options.progress = false;
  options.node_program = ATOLL_BINARY;
  return options;
}

std::vector<float> logits(const cli::DeploymentOptions& options) {
  cli::Deployment deployment(options);
  const std::vector<std::vector<int32_t>> rows = {{0, 5, 400, 14, 262, 300, 9, 77, 18, 120, 6},
                                                  {0, 42, 199}};
  std::vector<float> all;
  coordinator::EvaluateOptions evaluate;
  evaluate.chunk = options.chunk;
  auto result = coordinator::evaluate(deployment.engine(), rows, evaluate,
                                      [&](size_t, size_t, std::span<const float> row) {
                                        all.insert(all.end(), row.begin(), row.end());
                                      });
  EXPECT_TRUE(result) << (result ? "" : result.error().message);
  return all;
}

void expect_same_bits(const std::vector<float>& found, const std::vector<float>& expected,
                      const std::string& what) {
  ASSERT_FALSE(expected.empty());
  ASSERT_EQ(found.size(), expected.size()) << what;
  EXPECT_EQ(std::memcmp(found.data(), expected.data(), found.size() * sizeof(float)), 0) << what;
}

// The bundled model, and one whose experts have five tiles, the last of them narrower.
class PackedModel : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    model_ = kTinyFp8;
    if (std::string(GetParam()) == "five_tiles") {
      model_ = dir_ / "model";
      test::write_small_model(model_, 192, 576);
    }
  }
  TempDir dir_;
  fs::path model_;
};

TEST_P(PackedModel, gives_the_bits_of_its_checkpoint) {
  pack(model_, dir_ / "pack");
  const std::vector<float> expected = logits(options_of(model_));
  cli::DeploymentOptions options = options_of(dir_ / "pack");
  expect_same_bits(logits(options), expected, "in this process");
  options.nodes = 2;
  expect_same_bits(logits(options), expected, "2 nodes");
}

TEST_P(PackedModel, in_int4_gives_the_bits_of_the_checkpoint_converted_at_load) {
  pack(model_, dir_ / "pack", {"--format", "int4", "--verify"});
  cli::DeploymentOptions converted = options_of(model_);
  converted.numerics.format = WeightFormat::kInt4;
  const std::vector<float> expected = logits(converted);
  cli::DeploymentOptions options = options_of(dir_ / "pack");
  expect_same_bits(logits(options), expected, "in this process");
  options.nodes = 2;
  expect_same_bits(logits(options), expected, "2 nodes");

  // Rows that are not rounded: the user says so, the bytes are the same.
  converted.numerics.activations = Activations::kF32;
  options = options_of(dir_ / "pack");
  options.numerics.activations = Activations::kF32;
  const std::vector<float> unrounded = logits(options);
  expect_same_bits(unrounded, logits(converted), "f32 rows");
  EXPECT_NE(std::memcmp(unrounded.data(), expected.data(), expected.size() * sizeof(float)), 0);
}

INSTANTIATE_TEST_SUITE_P(Pack, PackedModel, ::testing::Values("tiny_fp8", "five_tiles"),
                         [](const auto& info) { return std::string(info.param); });

// Nodes that have a pack and a coordinator that has the checkpoint are of one model.
TEST(Pack, has_the_identity_of_its_checkpoint) {
  const TempDir dir;
  pack(kTinyFp8, dir / "pack");
  pack(kTinyFp8, dir / "int4", {"--format", "int4"});
  const auto checkpoint = cli::LoadedModel::open(kTinyFp8);
  cli::NumericsProfile as_it_is, int4;
  int4.format = WeightFormat::kInt4;
  for (const auto& [name, asked] : {std::pair("pack", as_it_is), std::pair("int4", int4)}) {
    const auto packed = cli::LoadedModel::open(dir / name);
    const auto a = packed->identity(packed->settle({})), b = checkpoint->identity(asked);
    EXPECT_EQ(a.model, b.model);
    EXPECT_EQ(a.checkpoint_fingerprint, b.checkpoint_fingerprint);
    EXPECT_EQ(a.profile, b.profile);
  }
}

void expect_one_line(const CommandResult& result, const std::string& part) {
  EXPECT_EQ(result.exit_code, 1) << result.err;
  EXPECT_THAT(result.err, HasSubstr("atoll: error: "));
  EXPECT_THAT(result.err, HasSubstr(part));
}

TEST(Pack, commands_know_it) {
  const TempDir dir;
  const std::string path = (dir / "pack").string();
  pack(kTinyFp8, path, {"--tiles", "0-1"});
  EXPECT_EQ(atoll({"pack", path, "--verify"}).exit_code, 0);
  const CommandResult inspected = atoll({"inspect", path});
  EXPECT_EQ(inspected.exit_code, 0) << inspected.err;
  EXPECT_THAT(inspected.out, HasSubstr("expert pack\n"));
  EXPECT_THAT(inspected.out, HasSubstr("  layers          1-6\n"));
  EXPECT_THAT(inspected.out, HasSubstr("  tiles           0-1 of 4\n"));

  expect_one_line(atoll({"run", path, "--prompt", "x"}),
                  "the pack leaves out tile 2 (it has tiles 0-1)");
  expect_one_line(atoll({"run", path, "--prompt", "x", "--format", "int4"}),
                  "the pack holds experts in fp8, not in int4");
  expect_one_line(atoll({"pack", path, "--out", (dir / "again").string()}), "a pack already");
  expect_one_line(atoll({"pack", kTinyFp8.string(), "--out", path}), "a pack of other contents");
  EXPECT_EQ(atoll({"pack", kTinyFp8.string()}).exit_code, 2);
  EXPECT_EQ(atoll({"pack", kTinyFp8.string(), "--out", path, "--tiles", "2-1"}).exit_code, 2);

  std::string layer = test::read_file(dir / "pack/layer-00003.tiles");
  layer[layer.size() - 1] ^= 1;  // padding of the last tile
  test::write_file(dir / "pack/layer-00003.tiles", layer);
  expect_one_line(atoll({"pack", path, "--verify"}), "layer-00003.tiles: tile 1 of expert 3/31");
}

}  // namespace
}  // namespace atl
