// `atoll bench disk` as scripts see it. What is fast is never asked here.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
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

CommandResult bench_disk(const std::filesystem::path& dir, std::vector<std::string> more,
                         int repeats = 2) {
  std::vector<std::string> arguments = {"bench",
                                        "disk",
                                        dir.string(),
                                        "--seconds-per-case",
                                        "0.005",
                                        "--repeats",
                                        std::to_string(repeats),
                                        "--log-level",
                                        "warn"};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return atoll(arguments);
}

void expect_one_line_error(const CommandResult& result, int exit_code, const std::string& about) {
  EXPECT_EQ(result.exit_code, exit_code) << result.err;
  EXPECT_THAT(result.out, IsEmpty());
  EXPECT_THAT(result.err, AllOf(StartsWith("atoll: error: "), HasSubstr(about)));
}

bool positive(const json& summary) {
  return summary.is_object() && summary["low"] > 0 && summary["low"] <= summary["median"] &&
         summary["median"] <= summary["high"];
}

double median(const json& contender) { return contender["bytes_per_second"]["median"]; }

TEST(BenchDisk, measures_a_drive_and_the_reader_of_a_pack) {
  const test::TempDir dir;
  const std::string model = (dir / "model").string();
  ASSERT_EQ(atoll({"synth", "--like", "deepseek-v3", "--layers", "2", "--dense", "1", "--experts",
                   "8", "--vocab", "512", "--hidden", "256", "--intermediate", "512", "--heads",
                   "4", "--out", model})
                .exit_code,
            0);
  ASSERT_EQ(atoll({"pack", model, "--out", (dir / "pack").string()}).exit_code, 0);
  // A layer file has some 3 MiB: 8 MiB are left out.
  const CommandResult result =
      bench_disk(dir / "pack", {"--block", "16KiB,1MiB,8MiB", "--depth", "1,4", "--json"}, 1);
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const json report = json::parse(result.out);
  ASSERT_EQ(report["cases"].size(), 4u);
  EXPECT_EQ(report["cases"][3]["block_bytes"], 1 << 20);
  EXPECT_EQ(report["cases"][3]["depth"], 4);
  for (const json& one : report["cases"]) {
    EXPECT_TRUE(positive(one["bytes_per_second"])) << one;
    EXPECT_TRUE(positive(one["same_memory_bytes_per_second"])) << one;
    EXPECT_EQ(one["fio_bytes_per_second"].is_null(), report["fio"] != "used") << one;
  }
  EXPECT_TRUE(positive(report["drive"]["bytes_per_second"]));
  EXPECT_TRUE(positive(report["drive_same_memory"]["bytes_per_second"]));
  const json& reader = report["reader"];
  // 4 tiles of 3 x 128 x 256 FP8 codes, scales, up to 4 KiB.
  EXPECT_EQ(reader["expert_bytes"].get<int>() % (4 * 4096), 0);
  EXPECT_GE(reader["expert_bytes"], 4 * 3 * 128 * 256);
  for (const char* name : {"bytes_per_second", "of_drive", "of_best"}) {
    EXPECT_TRUE(positive(reader[name])) << name;
  }
  // Against the fastest of the three.
  json best = report["drive"];
  for (const char* name : {"drive_same_memory", "fio_best"}) {
    const json& other = report[name];
    if (other.is_object() && median(other) > median(best)) best = other;
  }
  EXPECT_NEAR(reader["of_best"]["median"], median(reader) / median(best), 1e-9);
  EXPECT_NEAR(reader["of_drive"]["median"], median(reader) / median(report["drive"]), 1e-9);

  const CommandResult text =
      bench_disk(dir / "pack", {"--block", "64KiB", "--depth", "2", "--no-fio"});
  ASSERT_EQ(text.exit_code, 0) << text.err;
  EXPECT_THAT(text.out, AllOf(HasSubstr("64.0 KiB"), HasSubstr("reader / drive: "),
                              HasSubstr("reader / best of all: "), HasSubstr("fio: not asked")));
  const CommandResult threads = bench_disk(dir / "pack", {"--no-fio", "--io", "threads"});
  EXPECT_THAT(threads.out, HasSubstr("4 threads with pread"));

  std::filesystem::resize_file(dir / "pack/layer-00001.tiles", 4096);
  expect_one_line_error(bench_disk(dir / "pack", {}), 1, "layer-00001.tiles: 4096 bytes, expected");
}

TEST(BenchDisk, makes_a_scratch_file_and_leaves_nothing) {
  const test::TempDir dir;
  const CommandResult result =
      bench_disk(dir.path(), {"--file-bytes", "8MiB", "--block", "64KiB", "--depth", "2"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.out, AllOf(HasSubstr("1 file of 8.00 MiB"), HasSubstr("no pack is here")));
  EXPECT_TRUE(std::filesystem::is_empty(dir.path()));
}

TEST(BenchDisk, tells_what_it_can_not_do) {
  const test::TempDir dir;
  expect_one_line_error(bench_disk(dir / "nowhere", {}), 2, "nowhere");
  expect_one_line_error(bench_disk(dir.path(), {"--block", "1000"}), 2,
                        "'1000' is no multiple of 4 KiB");
  expect_one_line_error(bench_disk(dir.path(), {"--file-bytes", "1MiB", "--block", "2MiB"}), 1,
                        "give a --block that fits");
  expect_one_line_error(bench_disk(dir.path(), {"--file-bytes", "512TiB"}), 1,
                        "the scratch file takes 512 TiB: give --file-bytes");
  EXPECT_TRUE(std::filesystem::is_empty(dir.path()));
}

}  // namespace
}  // namespace atl::cli
