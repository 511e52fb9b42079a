// What can be seen of a server while it answers: expert load, traces, `atoll top`.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <set>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "base/child_process.h"
#include "http/http_client.h"
#include "tests/support/command.h"
#include "tests/support/golden.h"
#include "tests/support/temp_dir.h"

namespace atl::test {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

class BusyServer {
 public:
  explicit BusyServer(std::vector<std::string> options) {
    ChildOptions child;
    child.argv = {ATOLL_BINARY,  "serve", (tests_dir() / "models/tiny-fp8").string(), "--port", "0",
                  "--log-level", "warn"};
    child.argv.insert(child.argv.end(), options.begin(), options.end());
    child.pipe_stdout = true;
    child.own_process_group = true;
    process_ = ChildProcess::start(child);
    const auto line = process_.read_line(std::chrono::seconds(60));
    const std::string_view ready = "listening on ";
    if (!line || !line->starts_with(ready)) throw std::runtime_error("no server");
    url_ = line->substr(ready.size());
    asker_ = std::thread([this] { ask(); });
    while (answers_ == 0) std::this_thread::yield();
  }
  ~BusyServer() {
    done_ = true;
    asker_.join();
  }
  const std::string& url() const { return url_; }

 private:
  void ask() {
    http::HttpClient client(*http::parse_http_url(url_));
    for (int seed = 0; !done_; ++seed) {
      const json body = {{"prompt", "And God said,"}, {"max_tokens", 24}, {"seed", seed}};
      const auto answer =
          client.ask({.method = "POST", .path = "/v1/completions", .body = body.dump()});
      if (!answer || answer->status != 200) return ADD_FAILURE() << "no answer";
      ++answers_;
    }
  }

  ChildProcess process_;
  std::string url_;
  std::thread asker_;
  std::atomic<bool> done_ = false;
  std::atomic<int> answers_ = 0;
};

CommandResult atoll(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), ATOLL_BINARY);
  CommandResult result = run_command(arguments);
  EXPECT_EQ(result.exit_code, 0) << result.err;
  return result;
}

json read_json_file(const std::filesystem::path& path) {
  std::ostringstream text;
  text << std::ifstream(path).rdbuf();
  return json::parse(text.str());
}

class Profile : public testing::TestWithParam<int> {
 protected:
  Profile() : server_({"--nodes", std::to_string(GetParam())}) {}
  // The experts of `--nodes 0` are in the coordinator's process.
  static std::vector<std::string> nodes() {
    if (GetParam() == 0) return {"local"};
    return {"n0", "n1"};
  }
  BusyServer server_;
  TempDir dir_;
};

TEST_P(Profile, experts_are_dumped_plotted_and_begin_another_server) {
  const std::string file = (dir_ / "experts.json").string(), page = (dir_ / "page.html").string();
  EXPECT_THAT(atoll({"experts", "dump", server_.url(), "--out", file}).out,
              HasSubstr("5 layers of 32 experts"));
  const json experts = read_json_file(file);
  ASSERT_THAT(experts.at("layers"), SizeIs(5));
  for (const json& layer : experts.at("layers")) {
    const auto uses = layer.at("uses").get<std::vector<uint64_t>>();
    const uint64_t rows = layer.at("rows").get<uint64_t>();
    EXPECT_GT(rows, 0u);
    // Read while it counts: the rows of a layer are counted after its experts.
    const uint64_t pairs = std::accumulate(uses.begin(), uses.end(), uint64_t{0});
    EXPECT_GE(pairs, 4 * rows);
    EXPECT_LE(pairs, 4 * (rows + 512));
  }
  EXPECT_THAT(experts.at("windows"), testing::Not(IsEmpty()));
  EXPECT_THAT(experts.dump(), testing::Not(HasSubstr("God")));
  atoll({"experts", "plot", file, "--out", page});
  EXPECT_GT(std::filesystem::file_size(page), 10'000u);
  const CommandResult run =
      atoll({"run", (tests_dir() / "models/tiny-fp8").string(), "--prompt", "And", "--max-tokens",
             "2", "--nodes", std::to_string(GetParam()), "--usage", file, "--log-level", "warn"});
  EXPECT_THAT(run.err, testing::Not(HasSubstr("usage")));
}

TEST_P(Profile, a_trace_has_all_processes_on_one_clock_and_explains_the_time) {
  const std::string file = (dir_ / "trace.json").string();
  const CommandResult traced = atoll({"trace", server_.url(), "--seconds", "2", "--out", file});
  EXPECT_THAT(traced.out, HasSubstr("wrong by at most: " + nodes()[0] + " 0."));
  const json trace = read_json_file(file);
  std::map<int64_t, std::string> processes;
  std::map<std::string, std::set<std::string>> names;  // [process]
  std::map<uint64_t, std::pair<double, double>> shares;
  std::vector<json> dispatches;
  int arrows = 0;
  for (const json& event : trace.at("traceEvents")) {
    const std::string phase = event.at("ph"), name = event.at("name");
    if (name == "process_name") processes[event.at("pid")] = event.at("args").at("name");
    if (phase == "X") names[processes.at(event.at("pid"))].insert(name);
    if (phase == "s" && event.at("cat") == "flow") ++arrows;
    if (event.value("cat", "") != "share") {
      if (phase == "X" && name == "dispatch" && processes.at(event.at("pid")) != "coordinator") {
        dispatches.push_back(event);
      }
      continue;
    }
    auto& share = shares[event.at("id")];
    (phase == "b" ? share.first : share.second) = event.at("ts");
  }
  for (const char* name : {"turn", "step", "layer 3", "router", "dispatch", "combine", "head",
                           "shared_experts", "attention_core", "answers"}) {
    EXPECT_TRUE(names["coordinator"].contains(name)) << name;
  }
  EXPECT_EQ(names.size(), 1 + nodes().size());
  for (const std::string& node : nodes()) {
    for (const char* name : {"queue", "read", "gate_up", "down", "send", "dispatch"}) {
      EXPECT_TRUE(names[node].contains(name)) << node << ' ' << name;
    }
  }
  ASSERT_FALSE(dispatches.empty());
  int64_t error_ns = 0;
  for (const auto& [process, ns] : trace.at("otherData").at("clock_error_ns").items()) {
    error_ns = std::max(error_ns, ns.get<int64_t>());
  }
  const double slack_us = 1e-3 * static_cast<double>(error_ns) + 1;
  // What a node does with a dispatch lies between its sending and its answer.
  size_t seen = 0;
  for (const json& dispatch : dispatches) {
    const auto share = shares.find(dispatch.at("args").at("id").get<uint64_t>());
    if (share == shares.end() || share->second.second == 0) continue;  // before or after the trace
    ++seen;
    EXPECT_GE(dispatch.at("ts").get<double>(), share->second.first - slack_us);
  }
  EXPECT_GT(seen, dispatches.size() / 2);
  EXPECT_GT(arrows, static_cast<int>(seen));  // there and back

  const json explained = json::parse(atoll({"explain", file, "--json"}).out);
  EXPECT_GE(explained.at("steps"), 1);
  const double measured = explained.at("measured_seconds"), sum = explained.at("sum_seconds");
  EXPECT_NEAR(sum, measured, 0.05 * measured);
  const json& parts = explained.at("parts");
  EXPECT_TRUE(std::any_of(parts.begin(), parts.end(), [](const json& part) {
    return part.at("what").get<std::string>().starts_with("waiting for ");
  })) << parts.dump();
  EXPECT_THAT(atoll({"explain", server_.url(), "--seconds", "2"}).out, HasSubstr("together"));
}

TEST_P(Profile, top_tells_a_second_of_it) {
  json second;
  do {  // a busy machine may need more than a second for a token
    second = json::parse(atoll({"top", server_.url(), "--once", "--json"}).out);
    EXPECT_EQ(second.at("state"), "ready");
    ASSERT_THAT(second.at("nodes"), SizeIs(nodes().size()));
  } while (second.at("generated_tokens_per_second") == 0 ||
           second.at("nodes").at(0).at("rows_per_second") == 0);
  EXPECT_THAT(atoll({"top", server_.url(), "--once"}).out, HasSubstr("ready "));
}

INSTANTIATE_TEST_SUITE_P(Nodes, Profile, testing::Values(0, 2));

TEST(ProfileRoutes, refuse_what_cannot_be) {
  BusyServer server({"--nodes", "0", "--record-routing", "/dev/null"});
  http::HttpClient client(*http::parse_http_url(server.url()));
  const auto status = [&](const std::string& path) {
    const auto answer = client.ask({.path = path});
    return answer ? answer->status : 0;
  };
  EXPECT_EQ(status("/trace?seconds=0"), 400);
  EXPECT_EQ(status("/trace?seconds=61"), 400);
  EXPECT_EQ(status("/trace?seconds=x"), 400);
  // One at a time; a client that goes ends its trace, and the next one may have another.
  std::atomic<bool> begun = false;
  http::HttpClient first(*http::parse_http_url(server.url()));
  std::thread other([&] {
    first.start(
        {.path = "/trace?seconds=60"}, [&](std::string_view, Clock::TimePoint) { begun = true; },
        [](auto) {});
    first.run();
  });
  while (!begun) std::this_thread::yield();
  EXPECT_EQ(status("/trace?seconds=1"), 429);
  first.post([&] { first.cancel_all(); });
  other.join();
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(30);
  while (status("/trace?seconds=0.01") == 429) {
    ASSERT_LT(std::chrono::steady_clock::now(), deadline);
    std::this_thread::yield();
  }
  const CommandResult nobody = run_command({ATOLL_BINARY, "experts", "dump", "http://127.0.0.1:1"});
  EXPECT_EQ(nobody.exit_code, 1);
  EXPECT_THAT(nobody.err, HasSubstr("http://127.0.0.1:1/experts: "));
}

}  // namespace
}  // namespace atl::test
