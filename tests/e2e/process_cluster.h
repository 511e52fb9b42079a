// A coordinator and nodes as processes of one cluster file, with eight clients whose texts are
// compared.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "base/child_process.h"
#include "http/http_client.h"
#include "tests/support/command.h"
#include "tests/support/golden.h"
#include "tests/support/temp_dir.h"

namespace atl::test {

inline constexpr auto kPatience = std::chrono::seconds(90);
inline constexpr int kStreams = 8;

inline std::string model(const char* name = "tiny-fp8") {
  return (tests_dir() / "models" / name).string();
}

// A port of this machine that nobody has now.
inline int free_port() {
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  if (::bind(fd, reinterpret_cast<sockaddr*>(&address), size) != 0 ||
      ::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size) != 0) {
    throw std::runtime_error("no port");
  }
  ::close(fd);
  return ntohs(address.sin_port);
}

// The place of a program in a network namespace, if there is one.
inline std::vector<std::string> in_namespace(const std::string& name) {
  if (name.empty()) return {};
  return {"/usr/sbin/ip", "netns", "exec", name, "/usr/bin/unshare", "--ipc"};
}

class ClusterOfProcesses : public testing::Test {
 protected:
  using HttpAnswer = http::HttpAnswer;
  using HttpClient = http::HttpClient;
  using HttpClientRequest = http::HttpClientRequest;
  using json = nlohmann::json;

  ClusterOfProcesses() {
    for (const char* name : {"n1", "n2", "n3"}) addresses_[name] = local(free_port());
    listen_ = local(free_port());
    admin_ = local(free_port());
    write();
  }
  ~ClusterOfProcesses() override {
    for (auto& [name, node] : nodes_) node.send_signal(SIGCONT);
  }

  static std::string local(int port) { return "127.0.0.1:" + std::to_string(port); }

  void write(const std::vector<std::string>& names = {"n1", "n2", "n3"}) {
    std::string text =
        "model: " + model_ + "\ncoordinator: {listen: \"" + listen_ + "\", admin: \"" + admin_ +
        "\", threads: 1}\ntimeouts: {grace: 1s, comeback: 300ms}\nbalance: " + balance_ + "\n" +
        more_ + "node_defaults: {threads: 1}\nnodes:\n";
    for (const std::string& name : names) {
      text += "  - {name: " + name + ", control: \"" + addresses_.at(name) + "\"}\n";
    }
    write_file(file_, text);
  }

  ChildProcess start(std::vector<std::string> arguments, const std::string& log,
                     const std::string& netns = "") {
    ChildOptions child;
    child.argv = {"/bin/sh", "-c", "exec \"$0\" \"$@\" 2>>'" + (dir_.path() / log).string() + "'"};
    for (const std::string& word : in_namespace(netns)) child.argv.push_back(word);
    child.argv.push_back(ATOLL_BINARY);
    child.argv.insert(child.argv.end(), arguments.begin(), arguments.end());
    child.pipe_stdout = true;
    return ChildProcess::start(child);
  }
  // Returns when it listens.
  void start_node(const std::string& name, const std::string& model_dir = "") {
    std::vector<std::string> arguments = {"node", "--config", file_.string(), "--name", name};
    if (!model_dir.empty()) arguments.push_back(model_dir);
    nodes_[name] = start(arguments, name + ".log", netns_of_node_);
    const auto line = nodes_[name].read_line(kPatience);
    ASSERT_TRUE(line && *line == "listening " + addresses_.at(name))
        << (line ? *line : line.error().message) << log(name + ".log");
  }
  void start_serve() {
    serve_ = start({"serve", "--config", file_.string()}, "serve.log", netns_of_serve_);
  }
  void await_serve() {
    const auto line = serve_.read_line(kPatience);
    ASSERT_TRUE(line && *line == "listening on http://" + listen_)
        << (line ? *line : line.error().message) << log("serve.log");
  }
  void start_all() {
    start_serve();
    for (const char* name : {"n2", "n3", "n1"}) start_node(name);
    await_serve();
  }
  std::string log(const std::string& name) const { return read_file(dir_.path() / name); }

  CommandResult cluster(std::vector<std::string> arguments) const {
    arguments.insert(arguments.begin(), {ATOLL_BINARY, "cluster"});
    arguments.insert(arguments.end(), {"--config", file_.string(), "--json"});
    arguments.insert(arguments.end(), flags_.begin(), flags_.end());
    return run_command(arguments);
  }
  json status() const {
    const CommandResult result = cluster({"status"});
    if (result.exit_code != 0) throw std::runtime_error(result.err);
    return json::parse(result.out);
  }
  json node(const std::string& name) const {
    const json all = status();
    for (const json& one : all["nodes"]) {
      if (one["name"] == name) return one;
    }
    return {};
  }
  bool eventually(const std::function<bool()>& holds) const {
    const auto deadline = std::chrono::steady_clock::now() + kPatience;
    while (std::chrono::steady_clock::now() < deadline) {
      if (holds()) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    return holds();
  }
  bool is_whole() const {
    const json all = status();
    int tiles = 0;
    for (const json& one : all["nodes"]) {
      if (one["state"] != "ready") return false;
      tiles += one["tiles"].get<int>();
    }
    return tiles == 4 && node("n1")["tiles"] == 2;
  }

  std::unique_ptr<HttpClient> client() const {
    return std::make_unique<HttpClient>(*http::parse_http_url("http://" + listen_));
  }
  HttpAnswer ask(const HttpClientRequest& request) const {
    auto answer = client()->ask(request);
    if (!answer) throw std::runtime_error(answer.error().message);
    return *answer;
  }
  static HttpClientRequest completion(int stream, bool is_stream, int max_tokens = 120) {
    const char* prompts[] = {"And God said,", "Call me Ishmael.", "The whale",
                             "My fellow citizens,"};
    const json body = {{"prompt", prompts[stream % 4]},
                       {"max_tokens", max_tokens},
                       {"temperature", stream < 4 ? 0.0 : 0.9},
                       {"seed", stream},
                       {"ignore_eos", true},
                       {"stream", is_stream}};
    return {.method = "POST", .path = "/v1/completions", .body = body.dump()};
  }
  std::vector<std::string> texts_alone() const {
    std::vector<std::string> texts;
    for (int i = 0; i < kStreams; ++i) {
      const HttpAnswer answer = ask(completion(i, false));
      EXPECT_EQ(answer.status, 200) << answer.body;
      texts.push_back(json::parse(answer.body)["choices"][0]["text"]);
    }
    return texts;
  }
  // Streams that all have to end well with these texts, again and again until `act`, which runs
  // beside them, has returned.
  void expect_texts_while(const std::vector<std::string>& expected,
                          const std::function<void()>& act) const {
    std::atomic<bool> done = false;
    std::atomic<int> begun = 0;
    std::jthread actor([&] {
      while (begun < kStreams) std::this_thread::yield();
      act();
      done = true;
    });
    auto http = client();
    std::vector<std::string> texts(kStreams);
    int rounds = 0;
    const std::function<void(int)> begin = [&](int i) {
      texts[i].clear();
      http->start(
          completion(i, true),
          [&, i](std::string_view data, Clock::TimePoint) {
            if (data == "[DONE]") return;
            const json event = json::parse(data);
            ASSERT_TRUE(event.contains("choices")) << event;
            if (texts[i].empty()) ++begun;
            for (const json& choice : event["choices"]) texts[i] += choice["text"];
          },
          [&, i](Result<HttpAnswer> answer) {
            EXPECT_TRUE(answer && answer->status == 200)
                << (answer ? answer->body : answer.error().message);
            EXPECT_EQ(texts[i], expected[static_cast<size_t>(i)]);
            ++rounds;
            if (!done && !HasFailure()) begin(i);
          });
    };
    for (int i = 0; i < kStreams; ++i) begin(i);
    http->run();
    EXPECT_GE(rounds, kStreams);
  }

  TempDir dir_;
  const std::filesystem::path file_ = dir_.path() / "cluster.yaml";
  std::string model_ = model(), more_, balance_ = "off";
  std::vector<std::string> flags_;  // of `atoll cluster`
  std::map<std::string, std::string> addresses_;
  std::string listen_, admin_, netns_of_node_, netns_of_serve_;
  std::map<std::string, ChildProcess> nodes_;
  ChildProcess serve_;
};

}  // namespace atl::test
