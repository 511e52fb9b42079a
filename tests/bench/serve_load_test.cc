// The load generator against a scripted server: what it sends, and what it makes of the answers.

#include "bench/serve_load.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <numeric>
#include <set>

#include "tests/cli/scripted_api.h"

namespace atl::bench {
namespace {

using nlohmann::json;
using std::chrono::milliseconds;
using test::ScriptedApi;
using testing::Each;
using testing::Ge;
using testing::HasSubstr;
using testing::Lt;
using Exchange = ScriptedApi::Exchange;

std::string text_event(bool last) {
  return json{{"choices", {{{"text", "x"}, {"finish_reason", last ? json("length") : json()}}}}}
      .dump();
}
std::string usage_event(int64_t prompt_tokens, int64_t output_tokens) {
  return json{{"choices", json::array()},
              {"usage",
               {{"prompt_tokens", prompt_tokens},
                {"completion_tokens", output_tokens},
                {"prompt_tokens_details", {{"cached_tokens", 2}}}}}}
      .dump();
}

// The tokens that were asked for, at once.
void answer_at_once(const Exchange& exchange, const json& body) {
  const int64_t tokens = body["max_tokens"];
  exchange->begin_events();
  for (int64_t i = 0; i < tokens; ++i) exchange->send_event(text_event(i + 1 == tokens));
  exchange->send_event(usage_event(static_cast<int64_t>(body["prompt"].size()), tokens));
  exchange->send_event("[DONE]");
  exchange->end();
}

ServeLoadOptions options_for(const ScriptedApi& api) {
  ServeLoadOptions options;
  options.url = {"127.0.0.1", api.port(), "/v1"};
  options.prompt_tokens = 12;
  options.output_tokens = 4;
  return options;
}

TEST(Percentile, lies_between_the_nearest_two) {
  EXPECT_EQ(percentile({1, 2, 3, 4, 5}, 0.5), 3);
  EXPECT_EQ(percentile({1, 2}, 0.5), 1.5);
  EXPECT_EQ(percentile({0, 10}, 0.9), 9);
  EXPECT_EQ(percentile({7}, 0.99), 7);
  EXPECT_EQ(percentile({1, 2, 3}, 1), 3);
}

TEST(ServeLoad, asks_for_exact_lengths_with_prompts_that_differ_behind_the_shared_prefix) {
  ScriptedApi api("/v1/completions", answer_at_once);
  ServeLoadOptions options = options_for(api);
  options.shared_prefix = 5;
  options.api_key = "sesame";
  ServeLoad load(options);
  EXPECT_EQ(load.model(), "toy");
  const LoadResult result = load.run({.concurrency = 3, .requests = 7});
  EXPECT_EQ(result.ok, 7);
  EXPECT_EQ(result.refused + result.failed + result.other_length, 0);
  EXPECT_EQ(result.prompt_tokens, 7 * 12);
  EXPECT_EQ(result.cached_tokens, 7 * 2);
  EXPECT_EQ(result.output_tokens, 7 * 4);
  EXPECT_EQ(result.ttft.size(), 7u);
  EXPECT_EQ(result.tpot.size(), 7u);
  EXPECT_EQ(result.itl.size(), 7u * 3);
  EXPECT_EQ(result.within_slo, 7);
  EXPECT_EQ(api.authorization(), "Bearer sesame");

  const std::vector<json> bodies = api.bodies();
  ASSERT_EQ(bodies.size(), 8u);  // one before, uncounted
  std::set<json> prefixes, rests;
  for (const json& body : bodies) {
    EXPECT_EQ(body["model"], "toy");
    EXPECT_EQ(body["max_tokens"], 4);
    EXPECT_EQ(body["min_tokens"], 4);
    EXPECT_EQ(body["ignore_eos"], true);
    EXPECT_EQ(body["stream"], true);
    EXPECT_EQ(body["stream_options"]["include_usage"], true);
    const std::vector<int> prompt = body["prompt"];
    ASSERT_EQ(prompt.size(), 12u);
    EXPECT_THAT(prompt, Each(testing::AllOf(Ge(10), Lt(30))));
    prefixes.insert(json(std::vector<int>(prompt.begin(), prompt.begin() + 5)));
    rests.insert(json(std::vector<int>(prompt.begin() + 5, prompt.end())));
  }
  EXPECT_EQ(prefixes.size(), 1u);
  EXPECT_EQ(rests.size(), 8u);
}

TEST(ServeLoad, a_seed_gives_the_same_prompts_again) {
  ScriptedApi api("/v1/completions", answer_at_once);
  ServeLoadOptions options = options_for(api);
  options.seed = 5;
  { ServeLoad once(options); }
  { ServeLoad again(options); }
  options.seed = 6;
  { ServeLoad other(options); }
  const auto bodies = api.bodies();
  EXPECT_EQ(bodies[0]["prompt"], bodies[1]["prompt"]);
  EXPECT_NE(bodies[0]["prompt"], bodies[2]["prompt"]);
}

TEST(ServeLoad, keeps_as_many_under_way_as_asked_and_no_more) {
  std::atomic<int> under_way = 0, most = 0;
  ScriptedApi* server = nullptr;
  ScriptedApi api("/v1/completions", [&](const Exchange& exchange, const json& body) {
    most = std::max(most.load(), ++under_way);
    server->server().post_after(milliseconds(5), [&under_way, exchange, body] {
      --under_way;
      answer_at_once(exchange, body);
    });
  });
  server = &api;
  ServeLoad load(options_for(api));
  EXPECT_EQ(load.run({.concurrency = 4, .requests = 20}).ok, 20);
  EXPECT_EQ(most, 4);
}

TEST(ServeLoad, measures_first_token_and_gaps_from_when_events_arrive) {
  ScriptedApi* server = nullptr;
  ScriptedApi api("/v1/completions", [&](const Exchange& exchange, const json& body) {
    exchange->begin_events();
    const int64_t tokens = body["max_tokens"];
    for (int64_t i = 0; i < tokens; ++i) {
      server->server().post_after(milliseconds(30 + 10 * i), [exchange, i, tokens] {
        exchange->send_event(text_event(i + 1 == tokens));
        if (i + 1 < tokens) return;
        exchange->send_event(usage_event(12, tokens));
        exchange->end();
      });
    }
  });
  server = &api;
  ServeLoadOptions options = options_for(api);
  options.slo_ttft_ms = 1;  // not reached
  ServeLoad load(options);
  const LoadResult result = load.run({.concurrency = 1, .requests = 3});
  ASSERT_EQ(result.ok, 3) << result.first_failure;
  ASSERT_EQ(result.ttft.size(), 3u);
  ASSERT_EQ(result.tpot.size(), 3u);
  ASSERT_EQ(result.itl.size(), 9u);
  const auto sum = [](const std::vector<double>& seconds) {
    return std::accumulate(seconds.begin(), seconds.end(), 0.0);
  };
  const double answering = sum(result.ttft) + sum(result.itl);
  EXPECT_THAT(result.ttft, Each(Ge(0.030)));
  EXPECT_NEAR(3 * sum(result.tpot), sum(result.itl), 1e-6);
  EXPECT_GE(answering, 3 * 0.060);
  EXPECT_LE(answering, result.seconds);  // gaps don't count from the request
  EXPECT_EQ(result.within_slo, 0);
}

TEST(ServeLoad, counts_what_was_refused_and_what_failed) {
  int count = 0;
  ScriptedApi api("/v1/completions", [&](const Exchange& exchange, const json& body) {
    switch (count++ % 6) {
      case 1:
        return exchange->respond({.status = 503, .body = "{}"});
      case 2:
        return exchange->respond({.status = 400, .body = R"({"error":{"message":"bad thing"}})"});
      case 3:  // an error in the middle
        exchange->begin_events();
        exchange->send_event(text_event(false));
        exchange->send_event(R"({"error":{"message":"lost a node"}})");
        return exchange->end();
      case 4:  // cut short
        exchange->begin_events();
        exchange->send_event(text_event(false));
        return exchange->end();
      case 5:  // not what JSON is
        exchange->begin_events();
        exchange->send_event("{");
        return exchange->end();
      default:
        return answer_at_once(exchange, body);
    }
  });
  ServeLoad load(options_for(api));
  const LoadResult result = load.run({.concurrency = 1, .requests = 6});
  EXPECT_EQ(result.ok, 1);
  EXPECT_EQ(result.refused, 1);
  EXPECT_EQ(result.failed, 4);
  EXPECT_THAT(result.first_failure, HasSubstr("status 400: bad thing"));
}

TEST(ServeLoad, notices_answers_of_another_length) {
  ScriptedApi api("/v1/completions", [&](const Exchange& exchange, json body) {
    body["max_tokens"] = 2;
    answer_at_once(exchange, body);
  });
  ServeLoad load(options_for(api));
  EXPECT_EQ(load.run({.concurrency = 1, .requests = 2}).other_length, 2);
}

TEST(ServeLoad, an_open_loop_does_not_wait_for_answers) {
  ScriptedApi* server = nullptr;
  std::atomic<int> under_way = 0, most = 0;
  ScriptedApi api("/v1/completions", [&](const Exchange& exchange, const json& body) {
    most = std::max(most.load(), ++under_way);
    const bool first = server == nullptr;  // the uncounted one
    if (first) return --under_way, answer_at_once(exchange, body);
    server->server().post_after(milliseconds(200), [&under_way, exchange, body] {
      --under_way;
      answer_at_once(exchange, body);
    });
  });
  ServeLoad load(options_for(api));
  server = &api;
  const LoadResult all = load.run({.rate = 500, .requests = 40});
  EXPECT_EQ(all.ok, 40);
  EXPECT_GT(most, 10);  // a closed loop of one would show 1
  // With a bound, what waits counts from when it was due.
  most = 0;
  const LoadResult bounded = load.run({.concurrency = 2, .rate = 500, .requests = 6});
  EXPECT_EQ(bounded.ok, 6);
  EXPECT_EQ(most, 2);
  EXPECT_GT(bounded.ttft.back(), 0.4);
}

TEST(ServeLoad, stops_to_start_when_the_time_is_over) {
  ScriptedApi api("/v1/completions", answer_at_once);
  ServeLoad load(options_for(api));
  const LoadResult result = load.run({.concurrency = 2, .seconds = 0.05});
  EXPECT_GE(result.ok, 2);
  EXPECT_GE(result.seconds, 0.04);
}

TEST(ServeLoad, a_server_that_refuses_to_talk_is_an_error_with_its_words) {
  ScriptedApi api("/v1/completions", [](const Exchange& exchange, const json&) {
    exchange->respond({.status = 401, .body = R"({"error":{"message":"wrong key"}})"});
  });
  try {
    ServeLoad load(options_for(api));
    FAIL() << "no error";
  } catch (const LoadError& e) {
    EXPECT_THAT(e.what(), HasSubstr("401: wrong key"));
  }
}

TEST(Bystanders, stay_connected_beside_the_load) {
  ScriptedApi api("/v1/completions", answer_at_once);
  const Bystanders bystanders({"127.0.0.1", api.port(), ""}, 20, 3);
  ServeLoad load(options_for(api));
  EXPECT_EQ(load.run({.concurrency = 2, .requests = 10}).ok, 10);
  EXPECT_GE(api.server().stats().connections, 23);
  EXPECT_EQ(bystanders.closed(), 0);
  api.stop();
  EXPECT_GE(bystanders.closed(), 20);  // to the slow ones the end comes behind what they don't read
}

}  // namespace
}  // namespace atl::bench
