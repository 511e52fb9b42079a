#include "cli/top_view.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "base/result.h"

namespace atl::cli {
namespace {

using testing::Each;
using testing::HasSubstr;
using testing::SizeIs;
using Json = nlohmann::ordered_json;

TopSample two_nodes(double at) {
  TopSample sample;
  sample.at = at;
  sample.model = "tiny";
  sample.state = "ready";
  sample.blocks = 100;
  for (const char* name : {"n2", "n1"}) {
    TopSample::Node& node = sample.nodes.emplace_back();
    node.name = name;
    node.state = "ready";
    node.tiles = 8;
    node.slot_bytes = 1'000'000;
  }
  return sample;
}

TopRates busy_second() {
  const TopSample before = two_nodes(10);
  TopSample now = two_nodes(12);
  now.generated_tokens = 50;
  now.first_token_sum = 3;
  now.first_token_count = 6;
  now.blocks_used = 34;
  now.nodes[0].rows = 400;
  now.nodes[0].compute_seconds = 0.5;
  now.nodes[0].tiles_computed = 5'000;
  now.nodes[0].hits = 3;
  now.nodes[0].misses = 1;
  now.nodes[0].bytes_read = 6'000'000'000;
  now.nodes[1].compute_seconds = 1.5;
  now.nodes[1].losses = 2;
  return top_rates(before, now, {{"n2", 20e9}});
}

TEST(TopView, makes_rates_of_two_looks) {
  const TopRates rates = busy_second();
  EXPECT_EQ(rates.generated, 25);
  EXPECT_EQ(rates.first_token, 0.5);
  EXPECT_FALSE(rates.next_token.has_value());
  EXPECT_EQ(rates.nodes[0].rows, 200);
  EXPECT_EQ(rates.nodes[0].busy, 0.25);
  EXPECT_EQ(rates.nodes[0].memory, 1e10);  // of the time that it computed
  EXPECT_EQ(rates.nodes[0].memory_limit, 2e10);
  EXPECT_EQ(rates.nodes[0].hit_rate, 0.75);
  EXPECT_EQ(rates.nodes[0].drive, 3e9);
  EXPECT_FALSE(rates.nodes[1].hit_rate.has_value());
  EXPECT_FALSE(rates.nodes[1].memory_limit.has_value());
}

TEST(TopView, a_server_that_began_anew_counts_from_zero) {
  TopSample before = two_nodes(1), now = two_nodes(2);
  before.generated_tokens = 1'000;
  before.first_token_count = 10;
  now.generated_tokens = 7;
  const TopRates rates = top_rates(before, now, {});
  EXPECT_EQ(rates.generated, 7);
  EXPECT_FALSE(rates.first_token.has_value());
}

TEST(TopView, fits_80_by_24_whatever_there_is) {
  TopRates rates = busy_second();
  for (int i = 0; i < 100; ++i) {
    rates.nodes.push_back(rates.nodes[0]);
    rates.nodes.back().now.name = "a-node-with-a-long-name-" + std::to_string(i);
    rates.nodes.back().now.lost_because = std::string(500, 'x');
  }
  for (const size_t selected : {size_t{0}, size_t{50}, size_t{101}, size_t{9999}}) {
    TopScreen screen;
    screen.selected = selected;
    screen.message = std::string(300, 'm');
    const std::vector<std::string> lines = top_lines(rates, screen);
    ASSERT_THAT(lines, SizeIs(24));
    for (const std::string& line : lines) EXPECT_LE(line.size(), 80u) << line;
    EXPECT_TRUE(std::any_of(lines.begin(), lines.end(),
                            [](const std::string& line) { return line.starts_with("> "); }));
  }
  TopScreen tiny;
  tiny.width = 10;
  tiny.height = 3;
  EXPECT_THAT(top_lines(rates, tiny), SizeIs(3));
}

TEST(TopView, shows_a_line_for_each_node) {
  const std::vector<std::string> lines = top_lines(busy_second(), {});
  EXPECT_THAT(lines[1], HasSubstr("tokens/s 25.0 generated"));
  EXPECT_THAT(lines[2], HasSubstr("first token 500.0 ms, next -    KV cache 34 % used"));
  EXPECT_EQ(lines[5],
            "> n2       ready        8    200   25%   10/20   75%   3.0G      0      0      0");
  EXPECT_EQ(lines[6],
            "  n1       ready        8      0   75%       -     -      0      0      0      2");
}

TEST(TopView, sorts_by_what_is_asked_for) {
  TopRates rates = busy_second();
  const auto first = [&](TopSort sort) {
    sort_nodes(rates, sort);
    return rates.nodes[0].now.name;
  };
  EXPECT_EQ(first(TopSort::kName), "n1");
  EXPECT_EQ(first(TopSort::kRows), "n2");
  EXPECT_EQ(first(TopSort::kBusy), "n1");
  EXPECT_EQ(first(TopSort::kDrive), "n2");
  EXPECT_EQ(first(TopSort::kHits), "n2");
}

TEST(TopView, reads_a_server_and_says_what_is_missing) {
  const Json stats =
      Json::parse(R"({"model":{"name":"m"},"server":{"state":"ready"},"requests":{"running":2},)"
                  R"("tokens":{"generated":9},"cache":{"blocks":4},)"
                  R"("nodes":[{"name":"n1","alive":false,"state":"lost","compute_seconds":1.5}]})");
  const std::string metrics =
      "# HELP atoll_inter_token_latency_seconds_sum no\n"
      "atoll_inter_token_latency_seconds_sum 2.5\n"
      "atoll_inter_token_latency_seconds_count{a=\"1\"} 4\n"
      "atoll_inter_token_latency_seconds_count{a=\"2\"} 6\n";
  const TopSample sample = top_sample(stats, metrics, 7);
  EXPECT_EQ(sample.next_token_sum, 2.5);
  EXPECT_EQ(sample.next_token_count, 10);
  EXPECT_EQ(sample.running, 2);
  ASSERT_THAT(sample.nodes, SizeIs(1));
  EXPECT_FALSE(sample.nodes[0].is_alive);
  EXPECT_EQ(sample.nodes[0].compute_seconds, 1.5);
  try {
    (void)top_sample(Json::object(), metrics, 7);
    ADD_FAILURE() << "an answer without anything was taken";
  } catch (const LoadError& error) {
    EXPECT_STREQ(error.what(), "/stats has no \"server\"");
  }
}

TEST(TopView, one_line_and_json_say_the_same) {
  const TopRates rates = busy_second();
  EXPECT_EQ(top_line(rates),
            "ready 25.0 tokens/s, prompt 0.0; first token 500.0 ms, next -; 0 running, 0 waiting; "
            "2 of 2 nodes, n1 busy 75 %\n");
  const Json json = Json::parse(top_json(rates));
  EXPECT_EQ(json.at("generated_tokens_per_second"), 25);
  EXPECT_TRUE(json.at("next_token_seconds").is_null());
  EXPECT_EQ(json.at("nodes").at(0).at("memory_limit_bytes_per_second"), 2e10);
}

}  // namespace
}  // namespace atl::cli
