// The options of a node's memory, as a command line says them and as they are passed on.
#include "cli/memory_options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <CLI/CLI.hpp>

namespace atl::cli {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

deployment::MemoryOptions parse(std::vector<std::string> arguments) {
  deployment::MemoryOptions options;
  CLI::App app;
  add_memory_options(app, &options);
  std::reverse(arguments.begin(), arguments.end());  // as CLI11 takes them
  app.parse(arguments);
  return options;
}

std::string error_of(std::vector<std::string> arguments) {
  try {
    parse(std::move(arguments));
  } catch (const CLI::ParseError& error) {
    return error.what();
  }
  return "no error";
}

TEST(MemoryOptions, ask_for_nothing_unless_given) {
  const deployment::MemoryOptions options = parse({});
  EXPECT_FALSE(options.ram_budget);
  EXPECT_EQ(options.evict, deployment::Evict::kLfu);
  EXPECT_TRUE(options.usage_file.empty());
  EXPECT_THAT(options.stripes, IsEmpty());
  EXPECT_EQ(options.io, storage::PackIo::kAuto);
}

TEST(MemoryOptions, take_sizes_with_units_or_plain_bytes) {
  EXPECT_EQ(parse({"--ram-budget", "8GiB"}).ram_budget, uint64_t{8} << 30);
  EXPECT_EQ(parse({"--ram-budget", "500MiB"}).ram_budget, uint64_t{500} << 20);
  EXPECT_EQ(parse({"--ram-budget", "1.5 GB"}).ram_budget, 1'500'000'000u);
  EXPECT_EQ(parse({"--ram-budget", "123456789"}).ram_budget, 123'456'789u);
  for (const char* bad : {"8Gb", "-1GiB", "", "much", "GiB", "8GiB!", "1e30"}) {
    EXPECT_THAT(error_of({"--ram-budget", bad}), HasSubstr("--ram-budget")) << bad;
  }
  EXPECT_THAT(error_of({"--ram-budget", "8Gb"}), HasSubstr("not a size: '8Gb'"));
}

TEST(MemoryOptions, refuse_unknown_words) {
  EXPECT_THAT(error_of({"--evict", "fifo"}), HasSubstr("fifo not in {lru,lfu}"));
  EXPECT_THAT(error_of({"--io", "aio"}), HasSubstr("aio not in {auto,registered,threads}"));
}

TEST(MemoryOptions, take_several_stripes_each_behind_its_own_option) {
  const deployment::MemoryOptions options = parse({"--stripe", "/a/p", "--stripe", "/b/p"});
  EXPECT_THAT(options.stripes, ElementsAre("/a/p", "/b/p"));
  EXPECT_THAT(error_of({"--stripe", "/a/p", "/b/p"}), HasSubstr("/b/p"));
}

TEST(MemoryOptions, are_the_same_after_being_passed_on) {
  const std::vector<std::vector<std::string>> kCases = {
      {},
      {"--ram-budget", "3GiB", "--evict", "lru", "--usage-file", "/u/file", "--io", "threads"},
      {"--io", "registered"},
      {"--usage", "/u/experts.json"},
      {"--stripe", "/a/p", "--stripe", "/b/p"}};
  for (const std::vector<std::string>& arguments : kCases) {
    const deployment::MemoryOptions options = parse(arguments);
    const deployment::MemoryOptions again = parse(options.arguments());
    EXPECT_EQ(again.ram_budget, options.ram_budget);
    EXPECT_EQ(again.evict, options.evict);
    EXPECT_EQ(again.usage_file, options.usage_file);
    EXPECT_EQ(again.first_usage, options.first_usage);
    EXPECT_EQ(again.stripes, options.stripes);
    EXPECT_EQ(again.io, options.io);
  }
}

TEST(MemoryOptions, of_each_node_have_a_usage_file_of_their_own) {
  const deployment::MemoryOptions options =
      parse({"--usage-file", "/u/file", "--ram-budget", "1GiB"});
  EXPECT_EQ(options.of_node("n0").usage_file, "/u/file.n0");
  EXPECT_EQ(options.of_node("n11").usage_file, "/u/file.n11");
  EXPECT_EQ(options.of_node("n0").ram_budget, options.ram_budget);
  EXPECT_TRUE(deployment::MemoryOptions{}.of_node("n0").usage_file.empty());
}

}  // namespace
}  // namespace atl::cli
