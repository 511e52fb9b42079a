// An expert pack in place of its checkpoint: equal bits, one-line errors.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>

#include "coordinator/engine/evaluate.h"
#include "deployment/deployment.h"
#include "storage/pack/pack.h"
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

deployment::DeploymentOptions options_of(const fs::path& dir) {
  deployment::DeploymentOptions options;
  options.model_dir = dir;
  options.cache_tokens = 256;
  options.rows_max = 4;
  options.node_program = ATOLL_BINARY;
  return options;
}

std::vector<float> logits(const deployment::DeploymentOptions& options,
                          std::vector<deployment::Deployment::NodeReport>* nodes = nullptr) {
  deployment::Deployment deployment(options);
  const std::vector<std::vector<int32_t>> rows = {{0, 5, 400, 14, 262, 300, 9, 77, 18, 120, 6},
                                                  {0, 42, 199}};
  std::vector<float> all;
  coordinator::EvaluateOptions evaluate;
  evaluate.rows_max = options.rows_max;
  auto result = coordinator::evaluate(deployment.engine(), rows, evaluate,
                                      [&](size_t, size_t, std::span<const float> row) {
                                        all.insert(all.end(), row.begin(), row.end());
                                      });
  EXPECT_TRUE(result) << (result ? "" : result.error().message);
  if (nodes != nullptr) *nodes = deployment.node_reports();
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
  deployment::DeploymentOptions options = options_of(dir_ / "pack");
  expect_same_bits(logits(options), expected, "in this process");
  options.nodes = 2;
  expect_same_bits(logits(options), expected, "2 nodes");
}

TEST_P(PackedModel, in_int4_gives_the_bits_of_the_checkpoint_converted_at_load) {
  pack(model_, dir_ / "pack", {"--format", "int4", "--verify"});
  deployment::DeploymentOptions converted = options_of(model_);
  converted.numerics.format = WeightFormat::kInt4;
  const std::vector<float> expected = logits(converted);
  deployment::DeploymentOptions options = options_of(dir_ / "pack");
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

// What the next-token layer proposes doesn't depend on who holds its experts, and a pack has them.
TEST(Pack, has_the_experts_of_the_next_token_layer) {
  const TempDir dir;
  pack(kTinyFp8, dir / "pack");
  pack(kTinyFp8, dir / "without", {"--layers", "1-5"});
  const auto drafts = [](const fs::path& model, int nodes) {
    deployment::DeploymentOptions options = options_of(model);
    options.rows_max = 64;
    options.nodes = nodes;
    options.next_token_layer = deployment::NextTokenLayer::kRequired;
    deployment::Deployment deployment(options);
    std::vector<int32_t> all;
    std::vector<int32_t> text = {0};
    while (text.size() < 30) text.push_back(static_cast<int32_t>(text.size() * 131 % 3000));
    coordinator::Sequence sequence;
    for (size_t begin = 0, end = 20; end < text.size(); begin = end++) {
      const coordinator::SequenceRows rows{&sequence, std::span(text).subspan(begin, end - begin),
                                           coordinator::WantLogits::kNone, 0};
      std::optional<Error> error;
      EXPECT_TRUE(deployment.engine().step(std::span(&rows, 1), {}, std::span(&error, 1)).ok());
      coordinator::DraftWork work{&sequence, std::span(text).first(end + 1), 3, {}};
      EXPECT_TRUE(deployment.engine().draft(std::span(&work, 1)).ok());
      all.insert(all.end(), work.draft.begin(), work.draft.end());
    }
    deployment.engine().release(sequence);
    EXPECT_EQ(all.size(), 30u);
    return all;
  };
  const std::vector<int32_t> expected = drafts(kTinyFp8, 0);
  EXPECT_EQ(drafts(kTinyFp8, 2), expected);
  EXPECT_EQ(drafts(dir / "pack", 2), expected);
  try {
    drafts(dir / "without", 0);
    FAIL() << "loaded";
  } catch (const LoadError& error) {
    EXPECT_EQ(std::string(error.what()),
              (dir / "without").string() +
                  ": --draft mtp: the pack has no experts of layer 6, the next-token layer; pack "
                  "the checkpoint again, all layers of it; expected --draft lookup, auto or off");
  }
}

// Nodes that have a pack and a coordinator that has the checkpoint are of one model.
TEST(Pack, has_the_identity_of_its_checkpoint) {
  const TempDir dir;
  pack(kTinyFp8, dir / "pack");
  pack(kTinyFp8, dir / "int4", {"--format", "int4"});
  const auto checkpoint = model::open(kTinyFp8);
  model::NumericsProfile as_it_is, int4;
  int4.format = WeightFormat::kInt4;
  for (const auto& [name, asked] : {std::pair("pack", as_it_is), std::pair("int4", int4)}) {
    const auto packed = model::open(dir / name);
    const auto a = deployment::identity_of(*packed, packed->settle({})),
               b = deployment::identity_of(*checkpoint, asked);
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

// Flips a bit of every tile of a layer.
void damage_layer(const fs::path& dir, size_t place) {
  const auto damaged = storage::Pack::open(dir);
  const storage::PackGeometry& geometry = damaged.geometry();
  std::string bytes = test::read_file(damaged.layer_file(place));
  for (int64_t expert = 0; expert < damaged.params().n_routed_experts; ++expert) {
    for (int tile = geometry.tile_begin(); tile < geometry.tile_end(); ++tile) {
      bytes[geometry.offset(expert, tile) + 100] ^= 2;
    }
  }
  test::write_file(damaged.layer_file(place), bytes);
}

// Starts node n1 with the other pack in place of the one that all have.
fs::path node_program_for(const TempDir& dir, const fs::path& pack_of_n1) {
  const fs::path script = dir / "node";
  test::write_file(script, "#!/bin/sh\ncase \"$*\" in *' --name n1 '*)\n  shift 2\n  exec '" +
                               std::string(ATOLL_BINARY) + "' node '" + pack_of_n1.string() +
                               "' \"$@\"\nesac\nexec '" + ATOLL_BINARY + "' \"$@\"\n");
  fs::permissions(script, fs::perms::owner_all);
  return script;
}

TEST(DamagedPack, of_one_node_has_its_tiles_asked_from_another_with_the_same_bits) {
  const TempDir dir;
  pack(kTinyFp8, dir / "pack");
  fs::copy(dir / "pack", dir / "damaged");
  damage_layer(dir / "damaged", 2);
  deployment::DeploymentOptions options = options_of(dir / "pack");
  const std::vector<float> expected = logits(options);
  options.nodes = 3;
  options.node_program = node_program_for(dir, dir / "damaged");
  std::vector<deployment::Deployment::NodeReport> nodes;
  expect_same_bits(logits(options, &nodes), expected, "3 nodes, one of them with a damaged pack");
  ASSERT_EQ(nodes.size(), 3u);
  EXPECT_GT(nodes[1].stats.cache.tiles_bad, 0u);
  // A refusal is about its expert: the others, and other layers, are still its own.
  EXPECT_EQ(nodes[1].num_tiles, 1);
  EXPECT_EQ(nodes[0].num_tiles + nodes[2].num_tiles, 3);
  EXPECT_EQ(nodes[0].stats.cache.tiles_bad + nodes[2].stats.cache.tiles_bad, 0u);
}

TEST(DamagedPack, of_every_node_ends_the_request_with_file_and_offset) {
  const TempDir dir;
  pack(kTinyFp8, dir / "pack");
  damage_layer(dir / "pack", 2);
  for (const char* nodes : {"0", "1", "3"}) {
    const CommandResult result =
        atoll({"run", (dir / "pack").string(), "--prompt", "x", "--nodes", nodes});
    expect_one_line(result, "no expert node is left to compute layer 3: ");
    const std::string line = result.err.substr(result.err.find("atoll: error: "));
    EXPECT_THAT(line, ::testing::ContainsRegex(
                          "/pack/layer-00003.tiles: tile [0-3] of expert 3/[0-9]+: checksum "
                          "[0-9a-f]+ of [0-9]+ bytes at offset [0-9]+, expected "));
    EXPECT_EQ(result.out, "\n") << nodes;  // no token
  }
}

}  // namespace
}  // namespace atl
