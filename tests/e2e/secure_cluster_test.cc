// A cluster with keys, from `atoll keys` to tokens: the same text over the encrypted link, over UCX
// and in one process, and nothing secret where others can read it.
#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <filesystem>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "base/child_process.h"
#include "http/http_client.h"
#include "tests/support/command.h"
#include "tests/support/golden.h"
#include "tests/support/temp_dir.h"

namespace atl::test {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;
using testing::Not;

constexpr auto kPatience = std::chrono::seconds(60);
const std::vector<std::string> kPrompt = {"--prompt", "Once", "--max-tokens", "12", "--ignore-eos"};

// Free when it was asked for; the test runs alone with its ports.
uint16_t free_port() {
  const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in at{};
  at.sin_family = AF_INET;
  at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof at;
  EXPECT_EQ(::bind(fd, reinterpret_cast<sockaddr*>(&at), size), 0);
  EXPECT_EQ(::getsockname(fd, reinterpret_cast<sockaddr*>(&at), &size), 0);
  ::close(fd);
  return ntohs(at.sin_port);
}

std::string model() { return (tests_dir() / "models/tiny-fp8").string(); }

struct Cluster {
  // security: lines of the file about network and security.
  explicit Cluster(const std::string& security) {
    write_file(file, "cluster: test\nmodel: " + model() + "\n" + security +
                         "coordinator: {listen: \"127.0.0.1:" + std::to_string(free_port()) +
                         "\"}\nnodes:\n" + node("n1") + node("n2"));
  }
  static std::string node(const std::string& name) {
    return "  - {name: " + name + ", control: \"127.0.0.1:" + std::to_string(free_port()) + "\"}\n";
  }

  void make_keys() {
    const CommandResult made =
        run_command({ATOLL_BINARY, "keys", file.string(), "--out", (temp / "keys").string()});
    ASSERT_EQ(made.exit_code, 0) << made.err;
  }
  void start_nodes() {
    for (const char* name : {"n1", "n2"}) {
      nodes.push_back(start({"node", "--config", file.string(), "--name", name}, name));
      const auto line = nodes.back().read_line(kPatience);
      ASSERT_TRUE(line.has_value()) << log(name);
      EXPECT_THAT(*line, HasSubstr("listening 127.0.0.1:"));
      EXPECT_THAT(*line, Not(HasSubstr("secret")));
    }
  }
  // At the level that says most, to the log of that name.
  ChildProcess start(const std::vector<std::string>& arguments, const std::string& name) {
    ChildOptions child;
    child.argv = {"/bin/sh", "-c",
                  "exec \"$0\" \"$@\" 2>'" + (temp / (name + ".log")).string() + "'", ATOLL_BINARY};
    child.argv.insert(child.argv.end(), arguments.begin(), arguments.end());
    child.argv.insert(child.argv.end(), {"--log-level", "trace"});
    child.pipe_stdout = true;
    return ChildProcess::start(child);
  }
  std::string log(const std::string& name) const { return read_file(temp / (name + ".log")); }

  CommandResult run() const {
    std::vector<std::string> argv = {ATOLL_BINARY, "run", "--config", file.string()};
    argv.insert(argv.end(), kPrompt.begin(), kPrompt.end());
    argv.insert(argv.end(), {"--log-level", "debug"});
    return run_command(argv);
  }

  TempDir temp;
  const fs::path file = temp / "cluster.yaml";
  std::vector<ChildProcess> nodes;
};

// What one process says.
std::string local_text() {
  std::vector<std::string> argv = {ATOLL_BINARY, "run", model()};
  argv.insert(argv.end(), kPrompt.begin(), kPrompt.end());
  const CommandResult result = run_command(argv);
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_FALSE(result.out.empty());
  return result.out;
}

constexpr const char* kEncrypted = "network: {trust: encrypted}\nsecurity: {keys: keys}\n";
constexpr const char* kTrusted = "network: {trust: trusted}\nsecurity: {keys: keys}\n";

TEST(SecureCluster, tokens_are_the_same_over_the_encrypted_link) {
  Cluster cluster(kEncrypted);
  cluster.make_keys();
  cluster.start_nodes();
  const CommandResult result = cluster.run();
  ASSERT_EQ(result.exit_code, 0) << result.err << cluster.log("n1");
  EXPECT_EQ(result.out, local_text());
  EXPECT_THAT(result.err, HasSubstr("is connected by tls/"));
}

TEST(SecureCluster, tokens_are_the_same_over_a_trusted_network_with_keys) {
  Cluster cluster(kTrusted);
  cluster.make_keys();
  cluster.start_nodes();
  const CommandResult result = cluster.run();
  ASSERT_EQ(result.exit_code, 0) << result.err << cluster.log("n1");
  EXPECT_EQ(result.out, local_text());
  EXPECT_THAT(result.err, Not(HasSubstr("tls/")));
}

// Without keys on loopback: the secret is in its file alone.
TEST(SecureCluster, the_secret_of_a_cluster_without_keys_is_not_told) {
  Cluster cluster("network: {trust: trusted}\n");
  cluster.start_nodes();
  const CommandResult result = cluster.run();
  ASSERT_EQ(result.exit_code, 0) << result.err << cluster.log("n1");
  EXPECT_EQ(result.out, local_text());
  std::string secret = read_file(cluster.temp / "cluster.yaml.secret");
  ASSERT_GE(secret.size(), 32u);
  secret.resize(32);
  std::vector<std::string> texts = {result.err};
  for (ChildProcess& node : cluster.nodes) {
    texts.push_back(read_file("/proc/" + std::to_string(node.pid()) + "/cmdline"));
    texts.push_back(read_file("/proc/" + std::to_string(node.pid()) + "/environ"));
    node.stop();
  }
  for (const char* name : {"n1", "n2"}) texts.push_back(cluster.log(name));
  for (const std::string& text : texts) EXPECT_EQ(text.find(secret), std::string::npos) << text;
}

// Every line of a key but its first and last.
std::vector<std::string> secrets_of(const fs::path& key) {
  std::vector<std::string> secrets;
  std::istringstream lines(read_file(key));
  for (std::string line; std::getline(lines, line);) {
    if (!line.starts_with("-----")) secrets.push_back(line);
  }
  return secrets;
}

TEST(SecureCluster, nothing_secret_is_told) {
  Cluster cluster(kEncrypted);
  cluster.make_keys();
  cluster.start_nodes();
  ChildProcess server = cluster.start({"serve", "--config", cluster.file.string()}, "serve");
  const auto line = server.read_line(kPatience);
  ASSERT_TRUE(line.has_value()) << cluster.log("serve");
  const std::string ready = "listening on ";
  ASSERT_TRUE(line->starts_with(ready)) << *line;
  http::HttpClient client(*http::parse_http_url(line->substr(ready.size())));
  const auto ask = [&](const std::string& method, const std::string& path,
                       const std::string& body) {
    auto answer = client.ask({.method = method, .path = path, .body = body});
    EXPECT_TRUE(answer.has_value()) << path;
    return answer ? answer->body : "";
  };
  const std::string prompt = "a prompt that nobody else reads";
  EXPECT_THAT(ask("POST", "/v1/completions",
                  R"({"prompt": ")" + prompt + R"(", "max_tokens": 4, "ignore_eos": true})"),
              HasSubstr("\"text\""));

  std::vector<std::pair<std::string, std::string>> texts;
  for (const char* path : {"/stats", "/metrics", "/version", "/ready", "/"})
    texts.emplace_back(path, ask("GET", path, ""));
  EXPECT_THAT(texts[0].second, HasSubstr("n1"));
  std::vector<pid_t> pids = {server.pid()};
  for (const ChildProcess& node : cluster.nodes) pids.push_back(node.pid());
  for (const pid_t pid : pids) {
    for (const char* name : {"cmdline", "environ"}) {
      const std::string text = read_file("/proc/" + std::to_string(pid) + "/" + name);
      EXPECT_FALSE(text.empty());
      texts.emplace_back(name, text);
    }
  }
  server.stop();
  for (ChildProcess& node : cluster.nodes) node.stop();
  for (const char* name : {"serve", "n1", "n2"}) texts.emplace_back(name, cluster.log(name));

  std::vector<std::string> secrets = {"PRIVATE KEY", prompt};
  for (const char* name : {"ca", "coordinator", "n1", "n2"}) {
    const auto more = secrets_of(cluster.temp / "keys" / (std::string(name) + ".key"));
    ASSERT_FALSE(more.empty());
    secrets.insert(secrets.end(), more.begin(), more.end());
  }
  for (const auto& [where, text] : texts) {
    for (const std::string& secret : secrets)
      EXPECT_EQ(text.find(secret), std::string::npos) << secret << " in " << where;
  }
}

}  // namespace
}  // namespace atl::test
