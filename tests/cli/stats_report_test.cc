// What is said about caches and hints.
#include "cli/stats_report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <sstream>

namespace atl::cli {
namespace {

using ::testing::HasSubstr;

TEST(ReadLatency, is_the_upper_end_of_the_bucket_that_holds_the_share) {
  ExpertCacheStats stats;
  EXPECT_FALSE(read_latency(stats, 0.5));
  stats.read_latency[0] = 1;    // below 2 us
  stats.read_latency[10] = 98;  // 1024 to 2047 us
  stats.read_latency[12] = 1;   // 4096 to 8191 us
  EXPECT_EQ(read_latency(stats, 0.01)->seconds, 2e-6);
  EXPECT_EQ(read_latency(stats, 0.011)->seconds, std::ldexp(1e-6, 11));
  EXPECT_EQ(read_latency(stats, 0.5)->seconds, std::ldexp(1e-6, 11));
  EXPECT_EQ(read_latency(stats, 0.99)->seconds, std::ldexp(1e-6, 11));
  EXPECT_EQ(read_latency(stats, 1)->seconds, std::ldexp(1e-6, 13));
  EXPECT_FALSE(read_latency(stats, 1)->at_least);
}

TEST(ReadLatency, has_no_upper_end_in_the_last_bucket) {
  ExpertCacheStats stats;
  stats.read_latency[ExpertCacheStats::kLatencyBuckets - 1] = 3;
  EXPECT_TRUE(read_latency(stats, 0.5)->at_least);
  EXPECT_EQ(read_latency(stats, 0.5)->seconds, std::ldexp(1e-6, 23));
}

std::vector<deployment::Deployment::NodeReport> two_nodes() {
  std::vector<deployment::Deployment::NodeReport> nodes(2);
  nodes[0].name = "n0";
  ExpertCacheStats& cache = nodes[0].stats.cache;
  cache.slots = 400;
  cache.slots_used = 398;
  cache.hits = 750;
  cache.misses = 250;
  cache.late = 17;
  cache.evictions = 1234;
  cache.bytes_read = uint64_t{3} << 30;
  cache.read_latency[14] = 250;
  cache.stall_seconds = {0, 0.5, 0.3};
  nodes[1].name = "n1";
  return nodes;
}

TEST(CacheText, has_a_row_for_each_node) {
  const std::string text = cache_text(two_nodes(), {}, 100);
  EXPECT_THAT(text, HasSubstr("\nn0              400   398   750     250    17    75.0 %\n"));
  EXPECT_THAT(text,
              HasSubstr("\nn0            3.00 GiB  < 32.8 ms  < 32.8 ms     8.00 ms    1,234\n"));
  EXPECT_THAT(text, HasSubstr("\nn1 "));
  EXPECT_EQ(text.find("prefetch"), std::string::npos);
  EXPECT_EQ(text.find("wrong"), std::string::npos);
}

TEST(CacheText, is_silent_where_nothing_was_asked_for) {
  std::vector<deployment::Deployment::NodeReport> nodes(1);
  nodes[0].stats.cache.slots = 4;
  EXPECT_EQ(cache_text(nodes, {}, 10), "");
}

// A million steps of a large deployment.
TEST(StatsText, fits_80_columns) {
  std::vector<deployment::Deployment::NodeReport> nodes(17);
  for (size_t n = 0; n < nodes.size(); ++n) {
    nodes[n].name = "n" + std::to_string(n);
    nodes[n].num_tiles = 16;
    nodes[n].num_threads = 128;
    transport::NodeStats& stats = nodes[n].stats;
    stats.links = "sysv/memory, tcp/eth0";
    stats.dispatches = 58'000'000;
    stats.rows = 29'696'000'000;
    stats.expert_rows = 237'568'000'000;
    stats.bytes_in = stats.bytes_out = uint64_t{123} << 40;
    stats.compute_seconds = 359'999;
    ExpertCacheStats& cache = stats.cache;
    cache.slots = cache.slots_used = 237'568;
    cache.hits = 3'712'000'000;
    cache.misses = 371'200'000;
    cache.late = cache.evictions = 37'120'000;
    cache.bytes_read = uint64_t{123} << 40;
    cache.read_latency[20] = 100;
    cache.stall_seconds = {86'400};
  }
  const std::string text =
      nodes_text(nodes) + cache_text(nodes, {.layers = 1, .hinted = 1, .chosen = 1}, 1'000'000);
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) EXPECT_LE(line.size(), 80u) << line;
}

TEST(CacheText, tells_what_hints_were_worth_and_what_was_damaged) {
  std::vector<deployment::Deployment::NodeReport> nodes = two_nodes();
  nodes[1].stats.cache.hinted = 40;
  nodes[1].stats.cache.hints_used = 30;
  nodes[1].stats.cache.hints_wasted = 5;
  nodes[1].stats.cache.tiles_reread = 3;
  nodes[1].stats.cache.tiles_bad = 2;
  const std::string text =
      cache_text(nodes, {.layers = 9, .hinted = 80, .chosen = 64, .foretold = 48}, 10);
  EXPECT_THAT(text, HasSubstr("n1: 40 experts read ahead, 30 of them wanted in time, 5 evicted"));
  EXPECT_THAT(text, HasSubstr("n1: 3 tiles were read again because they were wrong, 2 stayed so"));
  EXPECT_THAT(text, HasSubstr("75.0 % of the experts that the routers chose were foretold,\n"
                              "  40.0 % of those foretold were not chosen"));
}

}  // namespace
}  // namespace atl::cli
