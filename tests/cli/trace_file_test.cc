#include "cli/trace_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "base/result.h"

namespace atl::cli {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::SizeIs;
using Json = nlohmann::json;

constexpr const char* kFirst =
    R"({"atoll_trace":1,"coordinator_ns":1000000,"stages":["other","attention_core","combine"],)"
    R"("nodes":["n0","n1"]})";
// n1's clock is a million ahead, and drifts by 1000 in the time of the trace.
constexpr const char* kLast =
    R"({"end":true,"clocks":[{"process":"n1","at_ns":2000000,"ahead_ns":1000000,"error_ns":40},)"
    R"({"process":"n1","at_ns":4000000,"ahead_ns":1001000,"error_ns":60}]})";

// kind, begin, length, layer, rows, id, peer. A turn of 10000 ns with a step of 9000: 1000 other,
// 2000 attention and 6000 in which n1 is waited for during 5000.
constexpr const char* kEngine =
    R"({"process":"coordinator","thread":"engine","lost":2,"events":[)"
    R"([0,2000000,1000,-1,0,0,0],[1,2001000,2000,3,0,0,0],[66,2003000,5000,3,1,77,1],)"
    R"([2,2003000,6000,3,0,0,0],[65,2000000,9000,-1,1,0,0],[64,1999500,10000,-1,0,0,0]]})";
// By the coordinator's clock, 2003500: read 2000 ns, gate_up 1000 ns.
constexpr const char* kNode =
    R"({"process":"n1","thread":"data plane","lost":0,"base_ns":3000000,"events":[)"
    R"([1,4501,2000,3,1,77,0],[2,6502,1000,3,1,77,0],[5,4501,3500,3,1,77,0]]})";

Trace whole_trace() {
  TraceLines lines;
  for (const char* line : {kFirst, kEngine, kNode, kLast}) lines.take(line);
  return lines.finish();
}

std::string error_of(const std::function<void()>& work) {
  try {
    work();
  } catch (const LoadError& error) {
    return error.what();
  }
  return "none";
}

TEST(TraceFile, sets_all_clocks_to_the_coordinators) {
  const Trace trace = whole_trace();
  const Trace::Thread* engine = trace.find("coordinator", "engine");
  ASSERT_NE(engine, nullptr);
  EXPECT_EQ(engine->events.front().what, "turn");
  EXPECT_EQ(engine->events.front().begin, 999'500);
  const Trace::Thread* node = trace.find("n1", "data plane");
  ASSERT_NE(node, nullptr);
  ASSERT_THAT(node->events, SizeIs(3));
  // The longest first, since it encloses the others; the drift is taken by its part: 3004501 is
  // half of the way from 2000000 to 4000000, so that the clock is 1000502 ahead.
  EXPECT_EQ(node->events[0].what, "dispatch");
  EXPECT_EQ(node->events[0].begin, 3'004'501 - 1'000'502 - 1'000'000);
  EXPECT_EQ(node->events[1].what, "read");
  EXPECT_EQ(trace.clock_error.at("n1"), 60);
  EXPECT_EQ(trace.lost, 2u);
}

TEST(TraceFile, chromes_json_comes_back_as_it_was_and_has_arrows_there_and_back) {
  const Trace trace = whole_trace();
  const std::string text = chrome_trace(trace);
  const Json json = Json::parse(text);
  std::map<std::string, int> arrows;
  bool has_layer = false;
  for (const Json& event : json.at("traceEvents")) {
    if (event.value("cat", "") == "flow") ++arrows[event.at("name").get<std::string>()];
    has_layer = has_layer || event.at("name") == "layer 3";
  }
  EXPECT_EQ(arrows, (std::map<std::string, int>{{"answer", 2}, {"dispatch", 2}}));
  EXPECT_TRUE(has_layer);
  const Trace again = read_chrome_trace(text, "f");
  EXPECT_EQ(again.clock_error, trace.clock_error);
  EXPECT_EQ(again.lost, trace.lost);
  ASSERT_EQ(again.threads.size(), trace.threads.size());
  for (const Trace::Thread& thread : trace.threads) {
    const Trace::Thread* same = again.find(thread.process, thread.thread);
    ASSERT_NE(same, nullptr);
    ASSERT_EQ(same->events.size(), thread.events.size());
    for (size_t i = 0; i < thread.events.size(); ++i) {
      const Trace::Event &a = thread.events[i], &b = same->events[i];
      EXPECT_EQ(std::tie(a.what, a.begin, a.length, a.layer, a.rows, a.id, a.node),
                std::tie(b.what, b.begin, b.length, b.layer, b.rows, b.id, b.node));
    }
  }
}

TEST(TraceFile, explains_where_a_steps_time_went) {
  const Explanation explanation = explain(whole_trace());
  EXPECT_EQ(explanation.steps, 1u);
  EXPECT_EQ(explanation.rows, 1u);
  EXPECT_NEAR(explanation.measured_seconds, 10e-6, 1e-12);
  EXPECT_NEAR(explanation.sum(), explanation.measured_seconds, 1e-12);
  ASSERT_THAT(explanation.parts, SizeIs(5));
  const Explanation::Part& waiting = explanation.parts[0];
  EXPECT_EQ(waiting.what, "waiting for n1");
  EXPECT_NEAR(waiting.seconds, 5e-6, 1e-12);
  ASSERT_THAT(waiting.of, SizeIs(3));
  EXPECT_NEAR(waiting.of[0].seconds + waiting.of[1].seconds + waiting.of[2].seconds, 5e-6, 1e-12);
  for (const Explanation::Part& part : waiting.of) {
    if (part.what == "gate_up") {
      EXPECT_NEAR(part.seconds, 1e-6, 1e-12);
    }
    if (part.what == "read") {
      EXPECT_NEAR(part.seconds, 2e-6, 1e-12);
    }
  }
  EXPECT_EQ(explanation.parts[1].what, "attention");
  EXPECT_THAT(explanation_text(explanation), HasSubstr(" 50.0 %      0.005 ms  waiting for n1"));
  EXPECT_THAT(explanation_text(explanation), HasSubstr("100.0 %"));
  const Json json = Json::parse(explanation_json(explanation));
  EXPECT_EQ(json.at("parts").size(), 5u);
  EXPECT_EQ(json.at("events_lost"), 2);
}

TEST(TraceFile, a_turn_whose_beginning_was_not_seen_is_left_out) {
  TraceLines lines;
  lines.take(kFirst);
  lines.take(
      R"({"process":"coordinator","thread":"engine","lost":0,"events":[)"
      R"([2,1500000,6000,3,0,0,0],[65,1400000,106000,-1,1,0,0],[64,1399500,110000,-1,0,0,0]]})");
  lines.take(kEngine);
  lines.take(kNode);
  lines.take(kLast);
  EXPECT_EQ(explain(lines.finish()).steps, 1u);
}

TEST(TraceFile, says_what_is_wrong) {
  EXPECT_THAT(error_of([] { TraceLines().take("[1]"); }), HasSubstr("no JSON object"));
  EXPECT_THAT(error_of([] { TraceLines().take("{}"); }), HasSubstr("\"atoll_trace\": 1"));
  EXPECT_THAT(error_of([] {
                TraceLines lines;
                lines.take(kFirst);
                lines.take(R"({"process":"n1","thread":"t","events":[[1,2,"x",4,5,6,7]]})");
              }),
              HasSubstr("an event that isn't seven whole numbers"));
  EXPECT_THAT(error_of([] {
                TraceLines lines;
                lines.take(kFirst);
                lines.finish();
              }),
              HasSubstr("broke off before its end"));
  EXPECT_THAT(error_of([] {
                TraceLines lines;
                for (const char* line : {kFirst, kNode, R"({"end":true,"clocks":[]})"}) {
                  lines.take(line);
                }
                lines.finish();
              }),
              HasSubstr("how the clock of n1 stands"));
  EXPECT_THAT(error_of([] { explain(Trace{}); }), HasSubstr("nothing of the coordinator's engine"));
  EXPECT_THAT(error_of([] { read_chrome_trace("{}", "f.json"); }),
              HasSubstr("f.json: no file of `atoll trace`"));
}

}  // namespace
}  // namespace atl::cli
