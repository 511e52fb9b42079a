// `atoll bench serve` as scripts see it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <mutex>
#include <nlohmann/json.hpp>

#include "tests/cli/scripted_api.h"
#include "tests/support/command.h"

namespace atl::cli {
namespace {

using nlohmann::json;
using test::CommandResult;
using test::ScriptedApi;
using ::testing::HasSubstr;

CommandResult bench_serve(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), {ATOLL_BINARY, "bench", "serve"});
  test::CommandOptions options;
  options.environment = {"ATOLL_API_KEY=from-environment"};
  return test::run_command(arguments, options);
}

void answer(const ScriptedApi::Exchange& exchange, const json& body) {
  const int64_t tokens = body["max_tokens"];
  exchange->begin_events();
  for (int64_t i = 0; i < tokens; ++i) {
    exchange->send_event(i + 1 < tokens ? R"({"choices":[{"text":"x","finish_reason":null}]})"
                                        : R"({"choices":[{"text":"x","finish_reason":"length"}]})");
  }
  exchange->send_event(
      json{{"choices", json::array()},
           {"usage", {{"prompt_tokens", body["prompt"].size()}, {"completion_tokens", tokens}}}}
          .dump());
  exchange->send_event("[DONE]");
  exchange->end();
}

TEST(BenchServe, tells_a_row_for_each_concurrency_as_json) {
  ScriptedApi api("/v1/completions", answer);
  const CommandResult result =
      bench_serve({api.url() + "/v1", "--concurrency", "1,3", "--requests", "6", "--prompt-tokens",
                   "5", "--output-tokens", "3", "--slo-ttft", "10000", "--idle-connections", "10",
                   "--slow-readers", "2", "--json"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const json report = json::parse(result.out);
  EXPECT_EQ(report["model"], "toy");
  EXPECT_EQ(report["bystanders_closed"], 0);
  ASSERT_EQ(report["cases"].size(), 2u);
  const json& last = report["cases"][1];
  EXPECT_EQ(last["concurrency"], 3);
  EXPECT_EQ(last["ok"], 6);
  EXPECT_EQ(last["output_tokens"], 18);
  EXPECT_EQ(last["prompt_tokens"], 30);
  EXPECT_LE(last["ttft_ms"]["p50"], last["ttft_ms"]["p99"]);
  EXPECT_GT(last["goodput_per_second"], 0);
  EXPECT_EQ(api.authorization(), "Bearer from-environment");
}

TEST(BenchServe, prints_a_table_with_the_first_failure_below) {
  int count = 0;
  ScriptedApi api("/v1/completions", [&](const ScriptedApi::Exchange& exchange, const json& body) {
    if (count++ < 3) return answer(exchange, body);
    exchange->respond({.status = 500, .body = R"({"error":{"message":"out of luck"}})"});
  });
  const CommandResult result =
      bench_serve({api.url(), "--rate", "200", "--requests", "5", "--output-tokens", "2"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_THAT(result.out, HasSubstr("toy, 128 prompt tokens, 2 output tokens"));
  EXPECT_THAT(result.out, HasSubstr("200 req/s"));
  EXPECT_THAT(result.out, HasSubstr("first failure: status 500: out of luck"));
}

TEST(BenchServe, what_can_not_be_measured_is_one_line) {
  const auto error_of = [](std::vector<std::string> arguments) {
    const CommandResult result = bench_serve(std::move(arguments));
    EXPECT_NE(result.exit_code, 0);
    EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
    return result.err;
  };
  EXPECT_THAT(error_of({"https://127.0.0.1"}), HasSubstr("https is not supported"));
  EXPECT_THAT(error_of({"127.0.0.1:80"}), HasSubstr("http://127.0.0.1:8080"));
  EXPECT_THAT(error_of({"http://127.0.0.1:1"}), HasSubstr("refused"));
  EXPECT_THAT(error_of({"http://127.0.0.1:1", "--prompt-tokens", "4", "--shared-prefix", "5"}),
              HasSubstr("--shared-prefix 5"));
}

CommandResult bench_compare(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), {ATOLL_BINARY, "bench", "compare"});
  return test::run_command(arguments, {});
}

TEST(BenchCompare, asks_both_servers_the_same_in_turns) {
  std::mutex mutex;
  std::string order;
  const auto told_by = [&](char name) {
    return [&, name](const ScriptedApi::Exchange& exchange, const json& body) {
      {
        const std::lock_guard lock(mutex);
        order += name;
      }
      answer(exchange, body);
    };
  };
  ScriptedApi first("/v1/completions", told_by('a'));
  ScriptedApi second("/v1/completions", told_by('b'));
  const CommandResult result =
      bench_compare({first.url(), second.url() + "/v1", "--concurrency", "1", "--requests", "2",
                     "--rounds", "2", "--prompt-tokens", "5", "--output-tokens", "3", "--json"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(order, "abaabbaabb");  // one each that isn't counted before
  ASSERT_EQ(first.bodies().size(), second.bodies().size());
  for (size_t i = 0; i < first.bodies().size(); ++i) {
    EXPECT_EQ(first.bodies()[i]["prompt"], second.bodies()[i]["prompt"]);
  }
  const json report = json::parse(result.out);
  ASSERT_EQ(report["cases"].size(), 1u);
  const json& one = report["cases"][0];
  EXPECT_EQ(one["failed"]["first"], 0);
  for (const char* figure : {"output_tokens_per_second", "ttft_ms_p50"}) {
    EXPECT_GT(one[figure]["first"]["median"], 0) << figure;
    EXPECT_GT(one[figure]["second"]["median"], 0) << figure;
  }
  EXPECT_TRUE(one["itl_ms_p99"]["first"]["median"].is_number());  // 0: all events came at once
  // Of each round's ratio, and above 1 where the first has the better of it.
  const json& rate = one["output_tokens_per_second"];
  const json& ratio = rate["first_better_by"];
  EXPECT_LE(ratio["low"],
            rate["first"]["high"].get<double>() / rate["second"]["low"].get<double>());
  EXPECT_GE(ratio["high"],
            rate["first"]["low"].get<double>() / rate["second"]["high"].get<double>());
}

TEST(BenchCompare, a_server_that_answers_nothing_fails_it_and_is_named) {
  ScriptedApi first("/v1/completions", answer);
  int count = 0;
  ScriptedApi second("/v1/completions", [&](const ScriptedApi::Exchange& exchange, const json& b) {
    if (count++ == 0) return answer(exchange, b);  // the one before
    exchange->respond({.status = 500, .body = R"({"error":{"message":"out of luck"}})"});
  });
  const CommandResult result = bench_compare(
      {first.url(), second.url(), "--concurrency", "1", "--requests", "1", "--output-tokens", "2"});
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.out, HasSubstr("first better by"));
  EXPECT_THAT(result.out, HasSubstr("1, second server: 1 failed, first: status 500: out of luck"));
}

}  // namespace
}  // namespace atl::cli
