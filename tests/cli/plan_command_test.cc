// atoll plan, from the command line: DeepSeek-V3 as headers alone on machines that are described.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "cli/synth.h"
#include "model/synthetic.h"
#include "storage/checkpoint/safetensors_writer.h"
#include "tests/support/command.h"
#include "tests/support/temp_dir.h"

namespace atl {
namespace {

using test::CommandResult;
using test::TempDir;
using ::testing::HasSubstr;
using ::testing::SizeIs;
using Json = nlohmann::json;

constexpr int kShards = 163;

// All 671 billion weights and the next-token layer, as headers; the data is holes.
class PlanCommand : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    dir_ = new TempDir();
    model::SyntheticSpec spec;
    spec.config = cli::synth_config("deepseek-v3", {});
    spec.config.num_nextn_predict_layers = 1;
    const auto tensors = model::synthetic_tensors(spec);
    // As many shards as published ones.
    uint64_t bytes = 0;
    for (const auto& tensor : tensors) {
      uint64_t size = storage::dtype_bytes(tensor.dtype);
      for (const int64_t n : tensor.shape) size *= static_cast<uint64_t>(n);
      bytes += size;
    }
    std::filesystem::create_directories(dir_->path() / "v3");
    const storage::CheckpointWriter writer(dir_->path() / "v3", tensors,
                                           bytes / kShards + (bytes / kShards) / 200);
    num_shards_ = writer.shards().size();
    model::write_config(dir_->path() / "v3", spec);
  }
  static void TearDownTestSuite() {
    delete dir_;
    dir_ = nullptr;
  }

  static std::filesystem::path write(const std::string& name, const std::string& text) {
    const auto path = dir_->path() / name;
    std::ofstream(path) << text;
    return path;
  }
  static std::string read(const std::filesystem::path& path) {
    std::ostringstream text;
    text << std::ifstream(path).rdbuf();
    return text.str();
  }
  static CommandResult plan(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), {ATOLL_BINARY, "plan"});
    return test::run_command(arguments);
  }
  static Json plan_json(std::vector<std::string> arguments, int exit_code = 0) {
    arguments.push_back("--json");
    const CommandResult result = plan(arguments);
    EXPECT_EQ(result.exit_code, exit_code) << result.err;
    return Json::parse(result.out);
  }

  static TempDir* dir_;
  static size_t num_shards_;
};
TempDir* PlanCommand::dir_ = nullptr;
size_t PlanCommand::num_shards_ = 0;

constexpr const char* kFourBoxes = R"(# R1 in FP8 on four boxes with one GPU.
model: v3
coordinator: {device: {name: rtx4090, memory: 24GiB, mem_bw: 1008GB/s}}
node_defaults: {mem_bw: 250GB/s, cores: 48, drives: [{rate: 6GB/s}], nic: 100Gbit/s}
nodes:
  - {name: n1, ram: 192GiB}   # the first
  - {name: n2, ram: 192GiB}
  - {name: n3, ram: 192GiB}
  - {name: n4, ram: 192GiB}
)";

TEST_F(PlanCommand, four_boxes_and_a_gpu_from_headers_alone) {
  EXPECT_NEAR(static_cast<double>(num_shards_), kShards, 1);
  const auto file = write("four.yaml", kFourBoxes);
  const Json plan = plan_json({file.string()});
  EXPECT_EQ(plan["fits"], true);
  EXPECT_EQ(plan["why_not"], nullptr);
  ASSERT_THAT(plan["nodes"], SizeIs(4));
  for (const Json& node : plan["nodes"]) {
    EXPECT_EQ(node["tiles"], 4);
    // A quarter of 654 GB.
    EXPECT_NEAR(node["ram_bytes"].get<double>(), 164.5e9, 1.5e9);
  }
  EXPECT_NEAR(plan["coordinator"]["device_bytes"].get<double>(), 17.6e9, 1.5e9);
  EXPECT_GT(plan["coordinator"]["ram_bytes"], 17'000'000'000);
  const Json& predicted = plan["predicted"];
  ASSERT_THAT(predicted["decode"], SizeIs(7));
  EXPECT_EQ(predicted["decode"][6]["sequences"], 64);
  // 5.1 GB of experts a token at 250 GB/s, beside 15 GB of the GPU's at 1008: 36 ms at the least.
  EXPECT_GT(predicted["decode"][0]["tokens_per_second"], 8);
  EXPECT_LT(predicted["decode"][0]["tokens_per_second"], 28);
  EXPECT_GT(predicted["decode"][6]["tokens_per_second"],
            predicted["decode"][0]["tokens_per_second"]);
  EXPECT_GT(predicted["prefill_tokens_per_second"], 50);
  EXPECT_GT(predicted["load_seconds"], 27);
  EXPECT_NE(plan["bottleneck"], "");
  EXPECT_THAT(plan["changes"], SizeIs(3));
}

// Its experts, 11.3 GB, are spread like the others'; the rest of it, 0.44 GB, is on the
// coordinator.
TEST_F(PlanCommand, counts_the_next_token_layer_that_drafts) {
  const auto file = write("drafts.yaml", kFourBoxes);
  const Json without = plan_json({file.string()});
  const Json with = plan_json({file.string(), "--what-if", "coordinator.draft=mtp"});
  const auto more = [&](const Json& a, const Json& b) {
    return a["ram_bytes"].get<double>() - b["ram_bytes"].get<double>();
  };
  for (int node = 0; node < 4; ++node) {
    EXPECT_NEAR(more(with["nodes"][node], without["nodes"][node]), 11.28e9 / 4, 0.1e9);
  }
  EXPECT_NEAR(more(with["coordinator"], without["coordinator"]), 0.5e9, 0.1e9);
}

TEST_F(PlanCommand, eight_uneven_nodes) {
  std::string text = "model: v3\nnodes:\n";
  for (int n = 0; n < 8; ++n) {
    text += fmt::format(
        "  - {{name: n{}, ram: {}GiB, mem_bw: {}GB/s, cores: {}, drives: [{{rate: 6GB/s}}], nic: "
        "100Gbit/s}}\n",
        n, 64 + 32 * n, 80 + 40 * n, 16 + 8 * n);
  }
  const Json plan = plan_json({write("eight.yaml", text).string()});
  EXPECT_EQ(plan["fits"], true);
  int sum = 0, last = 0;
  for (const Json& node : plan["nodes"]) {
    sum += node["tiles"].get<int>();
    EXPECT_GE(node["tiles"].get<int>(), last);  // each is better than the one before
    last = node["tiles"];
  }
  EXPECT_EQ(sum, 16);
  EXPECT_LT(plan["plan_seconds"], 5);
}

TEST_F(PlanCommand, the_impossible_is_refused_with_what_would_do) {
  const auto file =
      write("small.yaml",
            "model: v3\nnodes:\n  - {name: a, ram: 256GiB, mem_bw: 250GB/s, nic: "
            "100Gbit/s}\n  - {name: b, ram: 256GiB, mem_bw: 250GB/s, nic: 100Gbit/s}\n");
  const Json plan = plan_json({file.string()}, 1);
  EXPECT_EQ(plan["fits"], false);
  EXPECT_THAT(plan["why_not"].get<std::string>(), HasSubstr("of the 16 tiles"));
  ASSERT_FALSE(plan["ways"].empty());
  // What it says does.
  bool tried = false;
  for (const Json& way : plan["ways"]) {
    if (way != "numerics.format int4") continue;
    tried = true;
    EXPECT_EQ(plan_json({file.string(), "--what-if", "numerics.format=int4"})["fits"], true);
  }
  EXPECT_TRUE(tried) << plan["ways"];
  const CommandResult text = PlanCommand::plan({file.string()});
  EXPECT_EQ(text.exit_code, 1);
  EXPECT_THAT(text.out, HasSubstr("does not fit: "));
}

TEST_F(PlanCommand, what_if_compares_and_describe_is_stronger) {
  const auto file = write("boxes.yaml", kFourBoxes);
  const Json plan = plan_json({file.string(), "--what-if", "nodes.n3.ram=64GiB", "sequences=16"});
  EXPECT_LT(plan["nodes"][2]["tiles"], 4);  // the others have RAM for what it can't keep
  EXPECT_LT(plan["predicted"]["decode"][0]["tokens_per_second"],
            plan["without_what_if"]["predicted"]["decode"][0]["tokens_per_second"]);
  EXPECT_EQ(plan["sequences"], 16);
  const auto described =
      write("machines.yaml", "nodes:\n  - {name: n2, mem_bw: 500GB/s, cores: 96}\n");
  EXPECT_GT(plan_json({file.string(), "--describe", described.string()})["nodes"][1]["tiles"], 4);
  const CommandResult unknown = PlanCommand::plan(
      {write("unknown.yaml", "model: v3\nnodes: [{name: a, ram: 1GiB}]\n").string()});
  EXPECT_EQ(unknown.exit_code, 1);
  EXPECT_THAT(unknown.err, HasSubstr("node a: the rate of its memory isn't known"));
}

TEST_F(PlanCommand, write_puts_tiles_into_the_file_and_lines_are_short) {
  const auto file = write("written.yaml", kFourBoxes);
  const CommandResult result = plan({file.string(), "--write"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(read(file), HasSubstr("  - {name: n1, tiles: 4, ram: 192GiB}   # the first\n"));
  std::istringstream lines(result.out);
  int bars = 0;
  for (std::string line; std::getline(lines, line);) {
    EXPECT_LE(line.size(), 80u) << line;
    bars += line.find(" |#") != std::string::npos;
  }
  EXPECT_EQ(bars, 4);
}

}  // namespace
}  // namespace atl
