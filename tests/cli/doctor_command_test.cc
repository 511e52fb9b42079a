// atoll doctor on this machine: faults that can be planted here are found.
#include <arpa/inet.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/child_process.h"
#include "tests/support/command.h"
#include "tests/support/golden.h"
#include "tests/support/temp_dir.h"

namespace atl {
namespace {

using test::CommandResult;
using ::testing::HasSubstr;
using Json = nlohmann::json;

CommandResult doctor(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), {ATOLL_BINARY, "doctor"});
  return test::run_command(arguments);
}

Json find(const Json& report, const std::string& name) {
  for (const Json& check : report["checks"]) {
    if (check["name"] == name) return check;
  }
  return nullptr;
}

TEST(DoctorCommand, looks_at_this_machine) {
  const CommandResult result = doctor({"--json"});
  const Json report = Json::parse(result.out);
  EXPECT_GE(report["checks"].size(), 20u);
  EXPECT_EQ(result.exit_code, report["ok"] == true ? 0 : 1);
  EXPECT_EQ(find(report, "memory limit")["verdict"], "ok");
  const CommandResult text = doctor({"--all"});
  EXPECT_THAT(text.out, HasSubstr(" checks: "));
}

TEST(DoctorCommand, finds_a_taken_port_missing_model_open_keys_and_few_files) {
  const test::TempDir dir;
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof(address);
  ASSERT_EQ(bind(fd, reinterpret_cast<sockaddr*>(&address), length), 0);
  ASSERT_EQ(listen(fd, 1), 0);
  getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length);
  const std::string port = std::to_string(ntohs(address.sin_port));
  std::filesystem::create_directory(dir / "keys");
  std::filesystem::permissions(dir / "keys", std::filesystem::perms(0755));
  test::write_file(dir / "c.yaml",
                   "model: gone\nsecurity: {keys: keys}\nnodes: [{name: a, control: "
                   "'127.0.0.1:" +
                       port + "'}]\n");
  const CommandResult result = test::run_command(
      {"/bin/sh", "-c",
       "ulimit -n 128; exec " ATOLL_BINARY " doctor " + (dir / "c.yaml").string() + " --json"});
  close(fd);
  EXPECT_EQ(result.exit_code, 1) << result.err;
  const Json report = Json::parse(result.out);
  EXPECT_EQ(report["ok"], false);
  const Json taken = find(report, "port 127.0.0.1:" + port);
  EXPECT_EQ(taken["verdict"], "blocker");
  EXPECT_THAT(taken["what"].get<std::string>(), HasSubstr("already in use"));
  EXPECT_EQ(find(report, "model " + (dir / "gone").string())["verdict"], "blocker");
  EXPECT_EQ(find(report, "keys " + (dir / "keys").string())["verdict"], "warning");
  EXPECT_EQ(find(report, "open files")["verdict"], "blocker");
}

// A port that was free a moment ago.
uint16_t free_port() {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof(address);
  EXPECT_EQ(bind(fd, reinterpret_cast<sockaddr*>(&address), length), 0);
  getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length);
  close(fd);
  return ntohs(address.sin_port);
}

TEST(DoctorCommand, asks_the_nodes_that_run_and_says_which_do_not) {
  const test::TempDir dir;
  const std::string file = (dir / "c.yaml").string();
  test::write_file(dir / "c.yaml",
                   fmt::format("model: {}\nsecurity: {{secret_file: {}}}\nnodes:\n"
                               "  - {{name: a, control: '127.0.0.1:{}'}}\n"
                               "  - {{name: b, control: '127.0.0.1:{}'}}\n",
                               (test::tests_dir() / "models/tiny-fp8").string(),
                               (dir / "secret").string(), free_port(), free_port()));
  const Json before = Json::parse(doctor({file, "--json"}).out);
  EXPECT_THAT(find(before, "node a: reachable")["what"].get<std::string>(),
              HasSubstr("nothing was started yet"));
  EXPECT_FALSE(std::filesystem::exists(dir / "secret"));  // looking makes no secret
  ChildOptions child;
  child.argv = {ATOLL_BINARY, "node", "--config", file, "--name", "a", "--log-level", "warn"};
  child.pipe_stdout = true;
  ChildProcess node = ChildProcess::start(child);
  ASSERT_TRUE(node.read_line(std::chrono::seconds(60)));
  const Json report = Json::parse(doctor({file, "--json", "--running"}).out);
  for (const char* name : {"reachable", "version", "clock", "round trip"}) {
    EXPECT_NE(find(report, std::string("node a: ") + name), nullptr) << name;
  }
  EXPECT_EQ(find(report, "node a: version")["verdict"], "ok");
  EXPECT_EQ(find(report, "node a: memory limit")["verdict"], "ok");
  EXPECT_EQ(find(report, "node b: reachable")["verdict"], "warning");
  EXPECT_EQ(
      find(Json::parse(doctor({file, "--json", "--running", "--here"}).out), "node a: reachable"),
      nullptr);
  test::CommandOptions options;
  options.environment = {"XDG_CACHE_HOME=" + dir.path().string()};
  const CommandResult probes =
      test::run_command({ATOLL_BINARY, "probe", "--nodes-of", file}, options);
  const Json nodes = Json::parse(probes.out).at("nodes");
  ASSERT_EQ(nodes.size(), 2u) << probes.err;
  EXPECT_EQ(nodes[0]["name"], "a");
  EXPECT_TRUE(nodes[0].contains("probe") || nodes[0].contains("error"));
  EXPECT_TRUE(nodes[1].contains("error"));
}

}  // namespace
}  // namespace atl
