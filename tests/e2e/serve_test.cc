// `atoll serve` as a process: the tokens of `atoll run`, nodes that die, signals.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <nlohmann/json.hpp>
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

using http::HttpAnswer;
using http::HttpClient;
using http::HttpClientRequest;
using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

constexpr auto kStartTimeout = std::chrono::seconds(60);
constexpr auto kEndTimeout = std::chrono::seconds(60);

std::string model() { return (tests_dir() / "models/tiny-fp8").string(); }

class Server {
 public:
  // The log goes to `log_file` if there is one.
  explicit Server(std::vector<std::string> options, const std::string& log_file = "") {
    ChildOptions child;
    if (!log_file.empty()) {
      child.argv = {"/bin/sh", "-c", "exec \"$0\" \"$@\" 2>'" + log_file + "'"};
    }
    child.argv.insert(child.argv.end(), {ATOLL_BINARY, "serve", model(), "--port", "0"});
    if (log_file.empty()) options.insert(options.end(), {"--log-level", "warn"});
    child.argv.insert(child.argv.end(), options.begin(), options.end());
    child.pipe_stdout = true;
    child.own_process_group = true;  // as a job of a shell
    process_ = ChildProcess::start(child);
    const auto line = process_.read_line(kStartTimeout);
    const std::string_view ready = "listening on ";
    if (!line || !line->starts_with(ready)) {
      throw std::runtime_error("no server: " + (line ? *line : line.error().message));
    }
    url_ = line->substr(ready.size());
  }
  ChildProcess& process() { return process_; }
  std::unique_ptr<HttpClient> client() const {
    return std::make_unique<HttpClient>(*http::parse_http_url(url_));
  }
  HttpAnswer ask(const HttpClientRequest& request) const {
    auto answer = client()->ask(request);
    if (!answer) throw std::runtime_error(answer.error().message);
    return *answer;
  }

 private:
  ChildProcess process_;
  std::string url_;
};

HttpClientRequest completion(const json& body) {
  return {.method = "POST", .path = "/v1/completions", .body = body.dump()};
}
std::string text_of(const HttpAnswer& answer) {
  if (answer.status != 200) return "status " + std::to_string(answer.status) + ": " + answer.body;
  return json::parse(answer.body)["choices"][0]["text"];
}

// What `atoll run` writes for the same request.
std::string text_of_run(const json& body) {
  std::vector<std::string> argv = {ATOLL_BINARY, "run", model(), "--json"};
  const auto add = [&](const char* option, const char* key) {
    if (!body.contains(key)) return;
    argv.push_back(option);
    argv.push_back(body[key].is_string() ? body[key].get<std::string>() : body[key].dump());
  };
  add("--prompt", "prompt");
  add("--max-tokens", "max_tokens");
  add("--temperature", "temperature");
  add("--top-p", "top_p");
  add("--seed", "seed");
  const CommandResult result = run_command(argv);
  EXPECT_EQ(result.exit_code, 0) << result.err;
  return json::parse(result.out)["text"];
}

std::vector<json> requests() {
  return {
      {{"prompt", "And God said,"}, {"max_tokens", 40}, {"temperature", 0}},
      {{"prompt", "Call me Ishmael."},
       {"max_tokens", 60},
       {"temperature", 0.8},
       {"top_p", 1},
       {"seed", 7}},
      {{"prompt", "My fellow citizens, the state of the Union"},
       {"max_tokens", 50},
       {"temperature", 1.2},
       {"top_p", 0.9},
       {"seed", 123456789}},
      {{"prompt", "The whale"}, {"max_tokens", 1}, {"temperature", 0}},
  };
}

std::vector<pid_t> children_of(pid_t parent) {
  std::vector<pid_t> children;
  for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
    const std::string name = entry.path().filename();
    if (name.find_first_not_of("0123456789") != std::string::npos) continue;
    std::ifstream stat(entry.path() / "stat");
    std::string text((std::istreambuf_iterator<char>(stat)), {});
    const size_t after_name = text.rfind(')');
    if (after_name == std::string::npos) continue;
    char state = 0;
    pid_t ppid = 0;
    if (std::sscanf(text.c_str() + after_name + 1, " %c %d", &state, &ppid) == 2 &&
        ppid == parent) {
      children.push_back(std::stoi(name));
    }
  }
  return children;
}

TEST(Serve, gives_the_texts_of_run_one_by_one_and_together_on_any_layout) {
  std::vector<std::string> expected;
  for (const json& body : requests()) expected.push_back(text_of_run(body));
  std::set<std::string> fingerprints;
  using Layout = std::pair<const char*, const char*>;
  for (const auto& [nodes, draft] :
       {Layout{"0", "off"}, Layout{"3", "off"}, Layout{"0", "auto"}, Layout{"2", "mtp"}}) {
    SCOPED_TRACE(std::string(nodes) + " nodes, drafts " + draft);
    Server server({"--nodes", nodes, "--chunk", "16", "--draft", draft});
    for (size_t r = 0; r < expected.size(); ++r) {
      EXPECT_EQ(text_of(server.ask(completion(requests()[r]))), expected[r]);
    }
    auto client = server.client();
    std::vector<std::string> texts(expected.size() * 4);
    for (size_t i = 0; i < texts.size(); ++i) {
      client->start(completion(requests()[i % expected.size()]), {}, [&, i](Result<HttpAnswer> a) {
        texts[i] = a ? text_of(*a) : a.error().message;
      });
    }
    client->run();
    for (size_t i = 0; i < texts.size(); ++i) EXPECT_EQ(texts[i], expected[i % expected.size()]);
    const json answer = json::parse(server.ask(completion(requests()[3])).body);
    fingerprints.insert(answer["system_fingerprint"].get<std::string>());
    const json version = json::parse(server.ask({.path = "/version"}).body);
    EXPECT_EQ(version["system_fingerprint"], answer["system_fingerprint"]);
    EXPECT_THAT(version["weights_and_numerics"].get<std::string>(),
                HasSubstr("wire bf16, kv bf16, experts fp8"));
    const json stats = json::parse(server.ask({.path = "/stats"}).body);
    EXPECT_EQ(stats["tokens"]["mtp_seconds"] > 0, std::string(draft) != "off");
  }
  EXPECT_THAT(fingerprints, ElementsAre(testing::MatchesRegex("[0-9a-f]{12}")));
}

// Streams of the requests, four of each, which all have to end well with these texts. `act` is
// called once, in the middle.
void expect_texts_in_streams(const Server& server, const std::vector<std::string>& expected,
                             const std::function<void()>& act) {
  auto client = server.client();
  std::vector<std::string> texts(4 * expected.size());
  size_t events = 0;
  for (size_t i = 0; i < texts.size(); ++i) {
    json body = requests()[i % expected.size()];
    body["stream"] = true;
    client->start(
        completion(body),
        [&, i](std::string_view data, Clock::TimePoint) {
          if (data == "[DONE]") return;
          const json event = json::parse(data);
          ASSERT_TRUE(event.contains("choices")) << event;
          for (const json& choice : event["choices"]) texts[i] += choice["text"];
          if (++events == 10 * texts.size()) act();
        },
        [&](Result<HttpAnswer> answer) { EXPECT_TRUE(answer && answer->status == 200); });
  }
  client->run();
  EXPECT_GE(events, 10 * texts.size());
  for (size_t i = 0; i < texts.size(); ++i) EXPECT_EQ(texts[i], expected[i % expected.size()]);
}

// Until node n was brought back so often, n by n, and all are ready.
json stats_after_restarts(const Server& server, const std::vector<int>& restarts) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (true) {
    const json nodes = json::parse(server.ask({.path = "/stats"}).body)["nodes"];
    bool done = nodes.size() == restarts.size();
    for (size_t n = 0; done && n < nodes.size(); ++n) {
      done = nodes[n]["restarts"] == restarts[n] && nodes[n]["state"] == "ready";
    }
    if (done) return nodes;
    if (std::chrono::steady_clock::now() > deadline)
      throw std::runtime_error("not in time: " + nodes.dump());
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
}

// Inodes of sockets that listen on a TCP port of this network namespace.
std::set<std::string> listening_sockets() {
  std::set<std::string> inodes;
  for (const char* path : {"/proc/net/tcp", "/proc/net/tcp6"}) {
    std::ifstream table(path);
    std::string line;
    std::getline(table, line);  // titles
    while (std::getline(table, line)) {
      std::istringstream fields(line);
      std::vector<std::string> all{std::istream_iterator<std::string>(fields), {}};
      if (all.size() > 9 && all[3] == "0A") inodes.insert(all[9]);
    }
  }
  return inodes;
}
int num_listening(pid_t pid) {
  const std::set<std::string> listening = listening_sockets();
  int count = 0;
  for (const auto& fd :
       std::filesystem::directory_iterator("/proc/" + std::to_string(pid) + "/fd")) {
    std::error_code gone;
    const std::string target = std::filesystem::read_symlink(fd.path(), gone).string();
    if (!target.starts_with("socket:[")) continue;
    count += static_cast<int>(listening.count(target.substr(8, target.size() - 9)));
  }
  return count;
}

TEST(Serve, listens_for_http_and_its_child_nodes_listen_nowhere) {
  Server server({"--nodes", "2"});
  EXPECT_EQ(num_listening(server.process().pid()), 1);
  const std::vector<pid_t> nodes = children_of(server.process().pid());
  ASSERT_THAT(nodes, SizeIs(2));
  for (const pid_t node : nodes) EXPECT_EQ(num_listening(node), 0);
}

class ServeLoses : public testing::TestWithParam<int> {};

TEST_P(ServeLoses, a_node_which_ends_no_request_changes_no_token_and_comes_back) {
  std::vector<std::string> expected;
  for (const json& body : requests()) expected.push_back(text_of_run(body));
  Server server({"--nodes", "3"});
  std::vector<pid_t> nodes = children_of(server.process().pid());
  ASSERT_THAT(nodes, SizeIs(3));
  std::sort(nodes.begin(), nodes.end());
  expect_texts_in_streams(server, expected, [&] { ::kill(nodes[1], GetParam()); });
  // Which of them it was depends on who was started first.
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (true) {
    const std::vector<pid_t> now = children_of(server.process().pid());
    if (now.size() == 3 && std::find(now.begin(), now.end(), nodes[1]) == now.end()) break;
    ASSERT_LT(std::chrono::steady_clock::now(), deadline) << "it was not ended";
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  int restarts = 0;
  while (restarts == 0) {
    restarts = 0;
    const json all = json::parse(server.ask({.path = "/stats"}).body)["nodes"];
    for (const json& node : all) restarts += node["restarts"].get<int>();
    ASSERT_LT(std::chrono::steady_clock::now(), deadline) << all;
  }
  EXPECT_EQ(restarts, 1);
  expect_texts_in_streams(server, expected, [] {});
  for (const json& node : json::parse(server.ask({.path = "/stats"}).body)["nodes"]) {
    EXPECT_TRUE(node["alive"].get<bool>());
    EXPECT_GE(node["tiles"], 1);  // its own again
  }
  EXPECT_EQ(server.ask({.path = "/ready"}).status, 200);
}

INSTANTIATE_TEST_SUITE_P(Signals, ServeLoses, testing::Values(SIGKILL, SIGSTOP, SIGTERM),
                         [](const auto& info) {
                           return info.param == SIGKILL   ? "killed"
                                  : info.param == SIGSTOP ? "stopped"
                                                          : "ended";
                         });

TEST(Serve, all_nodes_may_die_at_once_and_again) {
  std::vector<std::string> expected;
  for (const json& body : requests()) expected.push_back(text_of_run(body));
  Server server({"--nodes", "2"});
  const auto kill_all = [&] {
    for (const pid_t node : children_of(server.process().pid())) ::kill(node, SIGKILL);
  };
  expect_texts_in_streams(server, expected, kill_all);
  stats_after_restarts(server, {1, 1});
  kill_all();  // with nobody there to notice
  stats_after_restarts(server, {2, 2});
  expect_texts_in_streams(server, expected, [] {});
}

class ServeDrains : public testing::TestWithParam<int> {};

TEST_P(ServeDrains, what_is_under_way_and_takes_nothing_new) {
  // However slow the machine is.
  Server server({"--nodes", "2", "--drain-timeout", "600"});
  auto client = server.client();
  json body = requests()[1];
  body["max_tokens"] = 300;
  body["ignore_eos"] = true;
  body["stream"] = true;
  std::string last;
  int64_t events = 0;
  std::optional<int> refused;
  client->start(
      completion(body),
      [&](std::string_view data, Clock::TimePoint) {
        last = data;
        if (++events != 3) return;
        // A terminal sends Ctrl-C to all of a job, and so to the nodes.
        const pid_t job = server.process().pid();
        ASSERT_EQ(::kill(GetParam() == SIGINT ? -job : job, GetParam()), 0);
        // The signal takes a moment; what comes after it is refused.
        const auto again = [&](const auto& self) -> void {
          client->start(completion(requests()[3]), {}, [&, self](Result<HttpAnswer> answer) {
            if (answer && answer->status == 200) return self(self);
            refused = answer ? answer->status : 0;
          });
        };
        again(again);
      },
      [&](Result<HttpAnswer> answer) { EXPECT_TRUE(answer && answer->status == 200); });
  client->run();
  EXPECT_EQ(last, "[DONE]");
  EXPECT_GT(events, 100);
  ASSERT_TRUE(refused);
  EXPECT_EQ(*refused, 503);
  const auto ended = server.process().wait(kEndTimeout);
  ASSERT_TRUE(ended) << ended.error().message;
  EXPECT_EQ(*ended, "exit code 0");
}

INSTANTIATE_TEST_SUITE_P(Signals, ServeDrains, testing::Values(SIGTERM, SIGINT, SIGHUP),
                         [](const auto& info) { return std::to_string(info.param); });

TEST(Serve, draining_has_a_limit_and_a_second_signal_ends_it) {
  for (const bool by_signal : {false, true}) {
    SCOPED_TRACE(by_signal);
    Server server({"--drain-timeout", by_signal ? "600" : "0.2"});
    auto client = server.client();
    json body = requests()[1];
    body["max_tokens"] = 1900;
    body["ignore_eos"] = true;
    body["stream"] = true;
    std::string last;
    int64_t events = 0;
    client->start(
        completion(body),
        [&](std::string_view data, Clock::TimePoint) {
          last = data;
          ++events;
          // Two signals of a kind that are not taken yet are one; so more than one of the second.
          if (events == 3 || (by_signal && events >= 5)) server.process().send_signal(SIGTERM);
        },
        [](Result<HttpAnswer>) {});
    client->run();
    EXPECT_THAT(last, HasSubstr("\"error\""));
    const auto ended = server.process().wait(kEndTimeout);
    ASSERT_TRUE(ended) << ended.error().message;
    EXPECT_EQ(*ended, "exit code 0");
  }
}

TEST(Serve, killing_the_coordinator_leaves_no_node_behind) {
  Server server({"--nodes", "3"});
  const std::vector<pid_t> nodes = children_of(server.process().pid());
  ASSERT_THAT(nodes, SizeIs(3));
  auto client = server.client();
  json body = requests()[1];
  body["max_tokens"] = 1900;
  body["stream"] = true;
  bool killed = false;
  client->start(
      completion(body),
      [&](std::string_view, Clock::TimePoint) {
        if (!killed) server.process().send_signal(SIGKILL);
        killed = true;
      },
      [](Result<HttpAnswer> answer) { EXPECT_FALSE(answer); });
  client->run();
  ASSERT_TRUE(server.process().wait(kEndTimeout));
  const auto give_up = std::chrono::steady_clock::now() + kEndTimeout;
  for (const pid_t node : nodes) {
    while (::kill(node, 0) == 0 && std::chrono::steady_clock::now() < give_up) {
      std::this_thread::yield();
    }
    EXPECT_NE(::kill(node, 0), 0) << "node " << node << " is still there";
  }
}

TEST(Serve, one_request_id_goes_from_the_header_to_the_nodes_logs) {
  TempDir dir;
  const std::string log = (dir / "log").string();
  {
    Server server({"--nodes", "2", "--log-level", "debug"}, log);
    HttpClientRequest request = completion(requests()[0]);
    request.headers = {{"X-Request-Id", "trace-me-4711"}};
    const HttpAnswer answer = server.ask(request);
    EXPECT_EQ(answer.status, 200);
    EXPECT_EQ(answer.header("x-request-id"), "trace-me-4711");
  }
  std::ifstream file(log);
  const std::string text((std::istreambuf_iterator<char>(file)), {});
  for (const char* node : {"n0", "n1"}) {
    EXPECT_THAT(text, testing::ContainsRegex("debug node " + std::string(node) +
                                             ": .*for requests trace-me-4711"));
  }
  EXPECT_THAT(text, testing::ContainsRegex("debug atoll: .*trace-me-4711"));
}

TEST(Serve, a_client_that_goes_away_frees_its_place) {
  Server server({});
  auto client = server.client();
  json body = requests()[1];
  body["max_tokens"] = 1900;
  body["ignore_eos"] = true;
  body["stream"] = true;
  bool gone = false;
  HttpClient::RequestId id = 0;
  id = client->start(
      completion(body),
      [&](std::string_view, Clock::TimePoint) {
        if (!gone) client->cancel(id);
        gone = true;
      },
      [](Result<HttpAnswer> answer) { EXPECT_FALSE(answer); });
  client->run();
  EXPECT_TRUE(gone);
  json stats;
  const auto give_up = std::chrono::steady_clock::now() + kEndTimeout;
  do {
    stats = json::parse(server.ask({.path = "/stats"}).body);
  } while (stats["requests"]["running"] != 0 && std::chrono::steady_clock::now() < give_up);
  EXPECT_EQ(stats["requests"]["running"], 0);
  EXPECT_EQ(stats["requests"]["cancelled"], 1);
  EXPECT_LT(stats["tokens"]["generated"], 1000);
}

TEST(Serve, says_in_one_line_why_it_cannot_start) {
  Server server({});
  const json stats = json::parse(server.ask({.path = "/stats"}).body);
  const auto failure = [](std::vector<std::string> options) {
    options.insert(options.begin(), {ATOLL_BINARY, "serve"});
    const CommandResult result = run_command(options);
    EXPECT_NE(result.exit_code, 0);
    EXPECT_THAT(result.out, IsEmpty());
    return result.err;
  };
  EXPECT_THAT(failure({model(), "--port", "99999"}), HasSubstr("--port"));
  EXPECT_THAT(failure({model(), "--host", "no.such.address.invalid"}),
              HasSubstr("no.such.address.invalid"));
  EXPECT_THAT(failure({model(), "--port", "0", "--kv-cache", "1KiB"}),
              HasSubstr("two blocks of 64 positions"));
  EXPECT_THAT(failure({model(), "--port", "0", "--kv-cache", "1MiB", "--context", "2000"}),
              HasSubstr("--context 2000: the KV cache holds"));
  EXPECT_THAT(failure({model(), "--port", "0", "--api-key-file", "/no/such/file"}),
              HasSubstr("/no/such/file"));
}

}  // namespace
}  // namespace atl::test
