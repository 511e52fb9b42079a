// `atoll synth` and `atoll bench` as scripts see them. What is fast is never asked here.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/support/command.h"
#include "tests/support/temp_dir.h"

namespace atl::cli {
namespace {

using nlohmann::json;
using test::CommandResult;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::StartsWith;

CommandResult atoll(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), ATOLL_BINARY);
  return test::run_command(arguments);
}

void expect_one_line_error(const CommandResult& result, int exit_code, const std::string& about) {
  EXPECT_EQ(result.exit_code, exit_code) << result.err;
  EXPECT_THAT(result.out, IsEmpty());
  EXPECT_THAT(result.err, AllOf(StartsWith("atoll: error: "), HasSubstr(about)));
  EXPECT_EQ(result.err.find('\n'), result.err.size() - 1) << result.err;
}

std::vector<std::string> synth(const std::string& like, const std::string& out,
                               std::vector<std::string> more = {}) {
  std::vector<std::string> arguments = {
      "synth",     "--like",  like,      "--layers", "2",        "--dense", "1",
      "--experts", "8",       "--vocab", "512",      "--hidden", "256",     "--intermediate",
      "512",       "--heads", "4",       "--out",    out};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return arguments;
}

// A model of 2 layers that all cases below share.
class SmallModel : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    dir_ = new test::TempDir;
    const CommandResult result = atoll(synth("deepseek-v3", model()));
    ASSERT_EQ(result.exit_code, 0) << result.err;
  }
  static void TearDownTestSuite() { delete dir_; }
  static std::string model() { return (dir_->path() / "model").string(); }

  static inline test::TempDir* dir_ = nullptr;
};

bool positive(const json& summary) {
  return summary.is_object() && summary["median"] > 0 && summary["low"] <= summary["median"] &&
         summary["median"] <= summary["high"];
}

// A case has every figure, also where no repeat counted.
void expect_figures(const json& one, const std::vector<std::string>& names) {
  for (const std::string& name : names) {
    ASSERT_TRUE(one.contains(name)) << one;
    EXPECT_TRUE(positive(one[name])) << name << ": " << one[name];
  }
  EXPECT_EQ(one["reliable"], one["repeats"] > 0);
  EXPECT_GE(one["repeats"].get<int>() + one["voided"].get<int>(), 1);
}

TEST_F(SmallModel, is_inspected) {
  const CommandResult result = atoll({"inspect", model(), "--json"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const json facts = json::parse(result.out);
  EXPECT_EQ(facts["model"]["n_routed_experts"], 8);
  EXPECT_EQ(facts["model"]["tokenizer_tokens"], 259);
  EXPECT_EQ(facts["tiles"]["per_expert"], 4);
}

TEST_F(SmallModel, runs_and_is_evaluated) {
  const CommandResult run = atoll(
      {"run", model(), "--prompt", "Hello 123", "--max-tokens", "4", "--ignore-eos", "--json"});
  ASSERT_EQ(run.exit_code, 0) << run.err;
  EXPECT_EQ(json::parse(run.out)["generated_tokens"], 4);
  EXPECT_EQ(json::parse(run.out)["prompt_tokens"], 1 + 9);  // BOS and a token for each byte
  const json node = json::parse(run.out)["nodes"][0];
  EXPECT_EQ(node["cache"]["slots_used"], 8 * 4);  // all tiles of all experts
  EXPECT_EQ(node["cache"]["misses"], 0);
  EXPECT_EQ(node["cache"]["read_latency_log2_us"].size(), 24u);
  EXPECT_EQ(node["cache"]["stall_seconds_by_layer"].size(), 2u);
  EXPECT_EQ(json::parse(run.out)["prefetch"]["layers"], 0);

  const std::string text = (dir_->path() / "text").string();
  std::ofstream(text) << "Some text of forty letters, to be scored";
  const CommandResult eval =
      atoll({"eval", model(), "--text", text, "--row-length", "32", "--json"});
  ASSERT_EQ(eval.exit_code, 0) << eval.err;
  EXPECT_EQ(json::parse(eval.out)["tokens"], 40);
  EXPECT_GT(json::parse(eval.out)["nodes"][0]["cache"]["hits"], 0);
  // Random weights know nothing, but not less: about the log of 512 tokens.
  EXPECT_NEAR(json::parse(eval.out)["nll"].get<double>(), 6.24, 1.5);
}

// One row and step: 4 of 8 experts, each 3 x 512 x 256 FP8 codes in 4 tiles of 128 columns; a panel
// of 16 outputs has a scale of 4 bytes for each group of k: gate and up 8 panels x 2 groups, down
// 16 panels x 1.
constexpr int kExpertBytesPerStep = 4 * (3 * 512 * 256 + 4 * (2 * 8 * 2 + 16) * 4);

TEST_F(SmallModel, bench_decode_reports_every_part_and_its_floor) {
  const CommandResult result = atoll({"bench", "decode", model(), "--rows", "1,3", "--context",
                                      "0,65", "--steps", "2", "--repeats", "1", "--json"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const json report = json::parse(result.out);
  EXPECT_EQ(report["contexts"], json({0, 65}));
  ASSERT_EQ(report["cases"].size(), 4u);
  EXPECT_EQ(report["cases"][3]["rows"], 3);
  EXPECT_EQ(report["cases"][3]["context"], 65);
  for (const json& one : report["cases"]) {
    expect_figures(one, {"tokens_per_second", "seconds_per_step", "floor_seconds_per_step",
                         "expert_bytes_per_second", "experts_of_read", "of_floor"});
    EXPECT_EQ(one["part_seconds_per_step"].size(), 9u);
    EXPECT_EQ(one["attention_seconds_per_step"].size(), 3u);
    if (one["repeats"] == 0) continue;
    double parts = 0, details = 0, floors = 0;
    for (const json& part : one["part_seconds_per_step"]) parts += part["median"].get<double>();
    for (const json& part : one["attention_seconds_per_step"]) {
      details += part["median"].get<double>();
    }
    // With one repeat medians are its values, and parts add up to the step.
    EXPECT_NEAR(parts, one["seconds_per_step"]["median"].get<double>(), 1e-9);
    EXPECT_NEAR(details, one["part_seconds_per_step"]["attention"]["median"].get<double>(), 1e-9);
    for (const char* name :
         {"attention", "router", "shared_experts", "combine", "dense_ffn", "head"}) {
      ASSERT_TRUE(one["part_floors"].contains(name)) << name;
      floors += one["part_floors"][name]["seconds_per_step"]["median"].get<double>();
    }
    EXPECT_NEAR(floors, one["floor_seconds_per_step"]["median"].get<double>(), 1e-9);
    EXPECT_FALSE(one["part_floors"].contains("dispatch"));
  }
  const json& first = report["cases"][0];
  if (first["repeats"] > 0) {
    EXPECT_EQ(first["expert_bytes_per_step"]["median"], kExpertBytesPerStep);
  }
}

// 64 more positions are 64 times as much work for the core, and none for anything else.
TEST_F(SmallModel, bench_decode_floors_grow_with_the_context) {
  const CommandResult result = atoll({"bench", "decode", model(), "--rows", "1", "--context",
                                      "0,64", "--steps", "1", "--repeats", "3", "--json"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const json report = json::parse(result.out);
  const json &empty = report["cases"][0], &filled = report["cases"][1];
  if (empty["repeats"] == 0 || filled["repeats"] == 0)
    GTEST_SKIP() << "the machine is too unsteady";
  const auto core = [](const json& one) { return one["part_floors"]["core"]; };
  EXPECT_EQ(core(empty)["bound"], core(filled)["bound"]);
  const double growth = core(filled)["seconds_per_step"]["median"].get<double>() /
                        core(empty)["seconds_per_step"]["median"].get<double>();
  // 65 times the work, over a limit that differs from repeat to repeat on a machine with company.
  const json& fma = report["limit"]["fma_flop_per_second"];
  const double unsteady = fma["high"].get<double>() / fma["low"].get<double>();
  EXPECT_GT(growth, 55 / unsteady);
  EXPECT_LT(growth, 75 * unsteady);
}

TEST_F(SmallModel, bench_decode_prints_a_table_of_parts) {
  const CommandResult result = atoll({"bench", "decode", model(), "--rows", "2", "--context", "64",
                                      "--steps", "1", "--repeats", "1"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.out, HasSubstr("of floor"));
  EXPECT_THAT(result.out, HasSubstr("\n2 rows, context 64:\n"));
}

TEST_F(SmallModel, bench_decode_reads_the_same_bytes_over_nodes) {
  const CommandResult result = atoll({"bench", "decode", model(), "--rows", "1", "--context", "3",
                                      "--steps", "2", "--repeats", "1", "--nodes", "2", "--json"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const json report = json::parse(result.out);
  EXPECT_EQ(report["nodes"], 2);
  const json& one = report["cases"][0];
  if (one["repeats"] > 0) {
    EXPECT_EQ(one["expert_bytes_per_step"]["median"], kExpertBytesPerStep);
  }
}

// With everything in RAM nothing comes from the disk, and the bound is what RAM and coordinator
// take.
TEST_F(SmallModel, bench_decode_bounds_a_cold_tier) {
  const CommandResult result =
      atoll({"bench", "decode", model(), "--rows", "1", "--context", "3", "--steps", "2",
             "--repeats", "1", "--disk-rate", "2.5", "--json"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const json report = json::parse(result.out);
  EXPECT_EQ(report["limit"]["disk_bytes_per_second"], 2.5e9);
  const json& one = report["cases"][0];
  ASSERT_TRUE(one.contains("cold_tier"));
  if (one["repeats"] == 0) GTEST_SKIP() << "the machine is too unsteady";
  const auto median = [](const json& summary) { return summary["median"].get<double>(); };
  const json& cold = one["cold_tier"];
  EXPECT_EQ(median(cold["disk_bytes_per_step"]), 0);
  EXPECT_EQ(median(cold["resident_bytes_per_step"]), kExpertBytesPerStep);
  double coordinator = median(one["seconds_per_step"]);
  coordinator -= median(one["part_seconds_per_step"]["combine"]);
  EXPECT_NEAR(median(cold["coordinator_seconds_per_step"]), coordinator, 1e-9);
  // By the rate that was measured beside this repeat; the limit's is of those that were void, too.
  const json& read = report["limit"]["read_bytes_per_second"];
  const double bound = median(cold["bound_seconds_per_step"]) - coordinator;
  EXPECT_GE(bound, kExpertBytesPerStep / read["high"].get<double>() - 1e-9);
  EXPECT_LE(bound, kExpertBytesPerStep / read["low"].get<double>() + 1e-9);
  EXPECT_NEAR(median(cold["of_bound"]),
              median(cold["bound_seconds_per_step"]) / median(one["seconds_per_step"]), 1e-9);
}

TEST_F(SmallModel, bench_prefill_counts_its_tokens) {
  const CommandResult result = atoll(
      {"bench", "prefill", model(), "--tokens", "70", "--chunk", "32", "--repeats", "1", "--json"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const json report = json::parse(result.out);
  EXPECT_EQ(report["chunk"], 32);
  EXPECT_EQ(report["cases"][0]["tokens"], 70);
  expect_figures(report["cases"][0], {"tokens_per_second", "seconds_per_step", "of_floor"});
}

TEST_F(SmallModel, bench_refuses_a_context_that_the_model_does_not_have) {
  expect_one_line_error(atoll({"bench", "decode", model(), "--context", "163840"}), 1,
                        "the model has 163840");
  expect_one_line_error(atoll({"bench", "prefill", model(), "--tokens", "200000"}), 1,
                        "the model has 163840");
}

TEST(Synth, writes_every_kind_of_model) {
  const test::TempDir dir;
  const struct {
    const char* like;
    const char* format;
    const char* model_type;
  } kCases[] = {{"deepseek-v2-lite", "bf16", "deepseek_v2"},
                {"deepseek-v2-lite", "fp8", "deepseek_v2"},
                {"kimi-k2", "fp8", "kimi_k2"}};
  for (const auto& one : kCases) {
    const std::string out = (dir.path() / (std::string(one.like) + one.format)).string();
    const CommandResult result = atoll(synth(one.like, out, {"--format", one.format, "--mtp"}));
    ASSERT_EQ(result.exit_code, 0) << result.err;
    const CommandResult inspect = atoll({"inspect", out, "--json"});
    ASSERT_EQ(inspect.exit_code, 0) << inspect.err;
    EXPECT_EQ(json::parse(inspect.out)["model"]["architecture"], one.model_type);
    EXPECT_EQ(json::parse(inspect.out)["tiles"]["format"], one.format);
    EXPECT_EQ(atoll({"run", out, "--prompt", "x", "--max-tokens", "2"}).exit_code, 0);
  }
}

TEST(Synth, keeps_its_hands_off_a_directory_in_use) {
  const test::TempDir dir;
  std::ofstream(dir.path() / "file") << "mine";
  expect_one_line_error(atoll(synth("deepseek-v3", dir.path().string())), 1, "is not empty");
  expect_one_line_error(atoll(synth("deepseek-v3", (dir.path() / "file").string())), 1,
                        "is not a directory");
}

TEST(Synth, asks_for_room_before_it_writes) {
  const test::TempDir dir;
  const std::string out = (dir.path() / "huge").string();
  expect_one_line_error(atoll({"synth", "--like", "kimi-k2", "--layers", "400", "--out", out}), 1,
                        "the file system has");
  EXPECT_FALSE(std::filesystem::exists(out));
}

TEST(BenchKernels, reports_ratios_to_the_limits_of_the_run) {
  const CommandResult result =
      atoll({"bench", "kernels", "--format", "bf16,f32", "--rows", "1,3", "--hidden", "320",
             "--intermediate", "200", "--experts-in-ram", "3", "--repeats", "1", "--json"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const json report = json::parse(result.out);
  EXPECT_GT(report["read_over_bytes"], 0);
  EXPECT_EQ(report["limits"].size(), 1u);
  EXPECT_THAT(report["scaling"], IsEmpty());
  ASSERT_EQ(report["cases"].size(), 4u);
  EXPECT_EQ(report["cases"][3]["format"], "f32");
  EXPECT_EQ(report["cases"][3]["rows"], 3);
  for (const json& one : report["cases"]) {
    expect_figures(one, {"bytes_per_second", "of_read", "op_per_second", "of_peak", "of_bound"});
    EXPECT_GT(one["cycles_per_weight_l2"], 0);
    EXPECT_GT(one["clock_hz"], 1e8);
  }
}

TEST(BenchKernels, prints_a_table) {
  const CommandResult result =
      atoll({"bench", "kernels", "--format", "fp8", "--rows", "2", "--hidden", "128",
             "--intermediate", "64", "--experts-in-ram", "2", "--repeats", "1", "--threads", "1"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.out, HasSubstr("of read"));
  EXPECT_THAT(result.out, HasSubstr("1 thread, "));
  EXPECT_THAT(result.out, HasSubstr("\nfp8 "));
}

// Ragged on purpose: 176 is neither a multiple of a group of 64 nor of 128.
TEST(BenchKernels, runs_both_kinds_of_int4_beside_the_peak_that_each_has) {
  const CommandResult result =
      atoll({"bench", "kernels", "--format", "int4,int4-i8", "--rows", "1,5", "--hidden", "176",
             "--intermediate", "600", "--experts-in-ram", "2", "--repeats", "1", "--json"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const json report = json::parse(result.out);
  ASSERT_EQ(report["cases"].size(), 4u);
  const json& limit = report["limits"][0];
  for (const json& one : report["cases"]) {
    expect_figures(one, {"bytes_per_second", "of_read", "op_per_second", "of_bound"});
    const bool i8 = one["format"] == "int4-i8";
    const json& peak = limit[i8 ? "int8_op_per_second" : "fma_flop_per_second"];
    if (one["repeats"] == 0 || peak["high"] == 0) continue;
    const double own_peak = one["peak_op_per_second"]["median"];
    EXPECT_GE(own_peak, peak["low"].get<double>());
    EXPECT_LE(own_peak, peak["high"].get<double>());
    EXPECT_NEAR(one["of_peak"]["median"].get<double>() * own_peak /
                    one["op_per_second"]["median"].get<double>(),
                1, 1e-9);
  }
}

TEST(BenchKernels, measures_the_targets_that_are_named) {
  const CommandResult all =
      atoll({"bench", "kernels", "--targets", "no-such-target", "--format", "f32"});
  expect_one_line_error(all, 2, "'no-such-target' is none of those that this CPU and build have: ");
  const std::string names = all.err.substr(all.err.rfind("have: ") + 6);
  const std::string last = names.substr(names.rfind(", ", names.find(" (see")) + 2, 6);
  ASSERT_EQ(last, "SCALAR") << all.err;  // the reference is always there
  const CommandResult result = atoll({"bench", "kernels", "--targets", "scalar", "--format", "f32",
                                      "--rows", "1", "--hidden", "64", "--intermediate", "32",
                                      "--experts-in-ram", "2", "--repeats", "1", "--json"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const json report = json::parse(result.out);
  EXPECT_EQ(report["cases"][0]["target"], "SCALAR");
  EXPECT_EQ(report["limits"][0]["target"], "SCALAR");
}

TEST(BenchKernels, scaling_tells_what_more_threads_do) {
  const CommandResult result = atoll(
      {"bench", "kernels", "--format", "fp8", "--rows", "1", "--hidden", "256", "--intermediate",
       "512", "--experts-in-ram", "2", "--repeats", "1", "--threads", "2", "--scaling", "--json"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const json report = json::parse(result.out);
  ASSERT_EQ(report["scaling"].size(), 1u);
  expect_figures(report["scaling"][0], {"own_tiles", "one_expert", "fma_peak"});
  EXPECT_EQ(report["threads"], 2);
}

TEST(BenchCommandLine, mistakes_end_with_one_line_that_names_the_inner_command) {
  const struct {
    std::vector<std::string> arguments;
    std::string about;
  } kCases[] = {
      {{"bench"},
       "a command is required: one of kernels, decode, prefill, disk, serve, compare, net (see "
       "'atoll bench --help')"},
      {{"bench", "kernel"},
       "unknown command 'kernel'; did you mean 'kernels'? (see 'atoll bench --help')"},
      {{"bench", "kernels", "--row", "1"},
       "unknown option '--row'; did you mean '--rows'? (see 'atoll bench kernels --help')"},
      {{"bench", "kernels", "--format", "fp9"},
       "'fp9' is none of fp8, bf16, f32, int4, int4-i8, int8-i8"},
      {{"bench", "kernels", "--rows", "1,0"}, "--rows"},
      {{"bench", "kernels", "--rows", "x"}, "--rows"},
      {{"bench", "kernels", "--repeats", "0"}, "--repeats"},
      {{"bench", "decode"}, "is required (see 'atoll bench decode --help')"},
      {{"bench", "prefill", "x", "--tokens", "0"}, "--tokens"},
      {{"synth", "--like", "deepseek-v3"}, "--out is required (see 'atoll synth --help')"},
      {{"synth", "--like", "gpt-2", "--out", "x"}, "gpt-2"},
      {{"synth", "--like", "kimi-k2", "--vocab", "258", "--out", "x"}, "--vocab"},
  };
  for (const auto& one : kCases) expect_one_line_error(atoll(one.arguments), 2, one.about);
  expect_one_line_error(atoll({"bench", "decode", "/no/such/model"}), 1, "/no/such/model");
  expect_one_line_error(
      atoll({"bench", "kernels", "--format", "f32", "--experts-in-ram", "1048576"}), 1,
      "give fewer --experts-in-ram");
}

TEST(BenchCommandLine, every_command_has_help_with_an_example) {
  for (const std::string name : {"kernels", "decode", "prefill", "disk", "serve"}) {
    const CommandResult result = atoll({"bench", name, "--help"});
    EXPECT_EQ(result.exit_code, 0) << name;
    EXPECT_THAT(result.out, HasSubstr("Usage: atoll bench " + name));
    EXPECT_THAT(result.out, HasSubstr("Example:\n  atoll bench " + name));
  }
}

}  // namespace
}  // namespace atl::cli
