// Child nodes end with their parent, however it ends.
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <thread>

#include "base/child_process.h"
#include "tests/support/golden.h"

namespace atl {
namespace {

constexpr auto kPatience = std::chrono::seconds(30);
constexpr int kNodes = 3;

// Processes whose parent is `parent`: field 4 of /proc/PID/stat, behind the name in parentheses.
std::vector<pid_t> children_of(pid_t parent) {
  std::vector<pid_t> children;
  for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
    const std::string name = entry.path().filename();
    if (name.find_first_not_of("0123456789") != std::string::npos) continue;
    std::ifstream in(entry.path() / "stat");
    std::string line;
    if (!std::getline(in, line)) continue;  // it ended meanwhile
    std::istringstream rest(line.substr(line.rfind(')') + 1));
    std::string state;
    pid_t ppid = 0;
    if (rest >> state >> ppid && ppid == parent) children.push_back(std::stoi(name));
  }
  return children;
}

class ChildNodesEnd : public testing::TestWithParam<int> {};

TEST_P(ChildNodesEnd, when_the_coordinator_is_ended_by_a_signal) {
  ChildOptions options;
  options.pipe_stdout = true;
  options.argv = {ATOLL_BINARY,
                  "run",
                  (test::tests_dir() / "models/tiny-fp8").string(),
                  "--prompt",
                  "x",
                  "--nodes",
                  std::to_string(kNodes),
                  "--max-tokens",
                  "2000",
                  "--ignore-eos"};
  ChildProcess coordinator = ChildProcess::start(options);
  std::vector<pid_t> nodes;
  const auto deadline = std::chrono::steady_clock::now() + kPatience;
  while (nodes.size() < kNodes && std::chrono::steady_clock::now() < deadline) {
    nodes = children_of(coordinator.pid());
    std::this_thread::yield();
  }
  ASSERT_EQ(nodes.size(), static_cast<size_t>(kNodes));
  std::vector<pollfd> ends;
  for (const pid_t node : nodes) {
    const int fd = static_cast<int>(syscall(SYS_pidfd_open, node, 0));
    ASSERT_GE(fd, 0);
    ends.push_back({fd, POLLIN, 0});
  }
  coordinator.send_signal(GetParam());
  for (pollfd& end : ends) {
    EXPECT_EQ(poll(&end, 1, std::chrono::milliseconds(kPatience).count()), 1)
        << "a node is still running";
    close(end.fd);
  }
}

INSTANTIATE_TEST_SUITE_P(Signals, ChildNodesEnd, testing::Values(SIGKILL, SIGTERM, SIGINT, SIGHUP),
                         [](const auto& info) { return std::to_string(info.param); });

}  // namespace
}  // namespace atl
