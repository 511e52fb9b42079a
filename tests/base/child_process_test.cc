#include "base/child_process.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <thread>

namespace atl {
namespace {

using namespace std::chrono_literals;
constexpr auto kPatience = 30s;

// This program in one of the roles of main() below.
ChildOptions role(const std::string& name, bool pipe_stdout = true) {
  ChildOptions options;
  options.argv = {"/proc/self/exe", "--role=" + name};
  options.name = name;
  options.pipe_stdout = pipe_stdout;
  return options;
}

// ---- the roles

[[noreturn]] void hang() {
  std::printf("pid %d\n", ::getpid());
  std::fflush(stdout);
  for (;;) ::pause();
}

[[noreturn]] void hang_and_ignore_sigterm() {
  ::signal(SIGTERM, SIG_IGN);
  hang();
}

// Starts a child on a thread that ends; the child holds our stdout open. Says so when the kernel is
// done with the thread.
[[noreturn]] void be_in_the_middle() {
  ChildProcess child;
  std::string task;
  std::thread([&] {
    task = "/proc/self/task/" + std::to_string(::gettid());
    child = ChildProcess::start(role("hang_and_ignore_sigterm", false));
  }).join();
  while (::access(task.c_str(), F_OK) == 0) std::this_thread::yield();
  std::printf("the thread is gone\n");
  std::fflush(stdout);
  for (;;) ::pause();
}

[[noreturn]] void tell_what_was_inherited() {
  int num_open = 0;
  for (int fd = 3; fd < 1024; ++fd) num_open += ::fcntl(fd, F_GETFD) >= 0;
  sigset_t blocked;
  ::sigprocmask(SIG_BLOCK, nullptr, &blocked);
  struct sigaction pipe_action {};
  ::sigaction(SIGPIPE, nullptr, &pipe_action);
  const char* variable = std::getenv("ATOLL_TEST_VARIABLE");
  std::printf("open %d stdin %d variable %s blocked %d sigpipe_ignored %d\n", num_open,
              std::getchar(), variable ? variable : "-", ::sigismember(&blocked, SIGUSR2),
              pipe_action.sa_handler == SIG_IGN);
  std::exit(3);
}

// Says what it reads from the descriptor that it was given, and whether it has any other.
[[noreturn]] void read_the_inherited_descriptor() {
  char byte = 0;
  const bool is_read = ::read(kInheritedFd, &byte, 1) == 1;
  int num_open = 0;
  for (int fd = kInheritedFd + 1; fd < 1024; ++fd) num_open += ::fcntl(fd, F_GETFD) >= 0;
  const std::string answer =
      is_read ? std::string(1, byte) + " and " + std::to_string(num_open) + " others" : "nothing";
  [[maybe_unused]] auto written = ::write(kInheritedFd, answer.data(), answer.size());
  std::exit(0);
}

// ---- the tests

bool is_running(pid_t pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
  std::string line;
  if (!std::getline(file, line)) return false;
  const char state = line[line.rfind(')') + 2];
  return state != 'Z' && state != 'X';
}

TEST(ChildProcess, tells_lines_and_exit_code) {
  ChildOptions options;
  options.argv = {"/bin/sh", "-c", "echo one; echo; printf 'no end'; exit 7"};
  options.pipe_stdout = true;
  auto child = ChildProcess::start(options);
  EXPECT_EQ(*child.read_line(kPatience), "one");
  EXPECT_EQ(*child.read_line(kPatience), "");
  auto line = child.read_line(kPatience);
  ASSERT_FALSE(line.has_value());
  EXPECT_EQ(line.error().code, ErrorCode::kUnavailable);
  EXPECT_EQ(*child.wait(kPatience), "exit code 7");
  EXPECT_FALSE(child.has_child());
  EXPECT_EQ(child.wait(kPatience).error().code, ErrorCode::kUnavailable);
}

TEST(ChildProcess, inherits_only_what_it_should) {
  ASSERT_EQ(::dup2(STDERR_FILENO, 77), 77);  // without close-on-exec
  sigset_t block;
  ::sigemptyset(&block);
  ::sigaddset(&block, SIGUSR2);
  ::sigprocmask(SIG_BLOCK, &block, nullptr);
  const auto old_action = ::signal(SIGPIPE, SIG_IGN);
  ::setenv("ATOLL_TEST_VARIABLE", "parent's", 1);
  ChildOptions options = role("tell_what_was_inherited");
  options.env = {{"ATOLL_TEST_VARIABLE", "child's"}};
  auto child = ChildProcess::start(options);
  EXPECT_EQ(*child.read_line(kPatience),
            "open 0 stdin -1 variable child's blocked 0 sigpipe_ignored 0");
  EXPECT_EQ(*child.wait(kPatience), "exit code 3");
  ::close(77);
  ::sigprocmask(SIG_UNBLOCK, &block, nullptr);
  ::signal(SIGPIPE, old_action);
}

TEST(ChildProcess, has_a_process_group_of_its_own_where_asked) {
  ChildOptions options = role("hang");
  auto with_us = ChildProcess::start(options);
  EXPECT_EQ(::getpgid(with_us.pid()), ::getpgrp());
  options.own_process_group = true;
  auto alone = ChildProcess::start(options);
  EXPECT_EQ(::getpgid(alone.pid()), alone.pid());
}

TEST(ChildProcess, a_program_that_is_not_there_is_one_line) {
  ChildOptions options;
  options.argv = {"/no/such/program"};
  options.name = "node n1";
  try {
    ChildProcess::start(options);
    ADD_FAILURE() << "started";
  } catch (const LoadError& e) {
    EXPECT_STREQ(e.what(), "cannot start node n1: /no/such/program: No such file or directory");
  }
}

TEST(ChildProcess, waits_no_longer_than_told) {
  auto child = ChildProcess::start(role("hang"));
  ASSERT_TRUE(child.read_line(kPatience).has_value());
  auto line = child.read_line(1ms);
  ASSERT_FALSE(line.has_value());
  EXPECT_EQ(line.error().code, ErrorCode::kTimeout);
  auto end = child.wait(1ms);
  ASSERT_FALSE(end.has_value());
  EXPECT_EQ(end.error().code, ErrorCode::kTimeout);
  child.send_signal(SIGKILL);
  EXPECT_EQ(*child.wait(kPatience), "signal 9 (Killed)");
}

TEST(ChildProcess, destructor_asks_and_then_kills) {
  for (const char* name : {"hang", "hang_and_ignore_sigterm"}) {
    auto child = ChildProcess::start(role(name));
    ASSERT_TRUE(child.read_line(kPatience).has_value());
    const pid_t pid = child.pid();
    child.stop(name == std::string("hang") ? std::chrono::milliseconds(kPatience) : 20ms);
    EXPECT_FALSE(child.has_child());
    EXPECT_NE(::kill(pid, 0), 0) << name;
  }
  pid_t pid = 0;
  {
    auto child = ChildProcess::start(role("hang"));
    ASSERT_TRUE(child.read_line(kPatience).has_value());
    pid = child.pid();
    ChildProcess other = std::move(child);
    EXPECT_FALSE(child.has_child());
    EXPECT_EQ(other.pid(), pid);
  }
  EXPECT_NE(::kill(pid, 0), 0);
}

TEST(ChildProcess, outlives_the_thread_that_started_it_and_ends_with_a_killed_parent) {
  auto middle = ChildProcess::start(role("be_in_the_middle"));
  pid_t grandchild = 0;
  bool thread_is_gone = false;
  while (grandchild == 0 || !thread_is_gone) {
    auto line = middle.read_line(kPatience);
    ASSERT_TRUE(line.has_value()) << line.error().message;
    if (line->starts_with("pid "))
      grandchild = std::stoi(line->substr(4));
    else
      thread_is_gone = *line == "the thread is gone";
  }
  EXPECT_NE(grandchild, middle.pid());
  // A process that was killed is gone or a zombie of the middle: read its state.
  EXPECT_TRUE(is_running(grandchild));

  // The grandchild ignores SIGTERM and holds the pipe: it ends only if the kernel kills it.
  middle.send_signal(SIGKILL);
  auto end = middle.read_line(kPatience);
  ASSERT_FALSE(end.has_value());
  EXPECT_EQ(end.error().code, ErrorCode::kUnavailable) << "the grandchild lives on";
  EXPECT_EQ(*middle.wait(kPatience), "signal 9 (Killed)");
  if (end.error().code == ErrorCode::kTimeout) ::kill(grandchild, SIGKILL);
}

// Whatever its number is here, that of the pipes for errors and output included.
TEST(ChildProcess, a_child_inherits_one_descriptor_if_it_is_told_to) {
  std::vector<int> taken;
  for (int i = 0; i < 8; ++i) {
    int pair[2];
    ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    ChildOptions options = role("read_the_inherited_descriptor", false);
    options.silent_stdout = true;
    options.inherited_fd = pair[1];
    ChildProcess child = ChildProcess::start(options);
    ::close(pair[1]);
    ASSERT_EQ(::write(pair[0], "x", 1), 1);
    char answer[64] = {};
    EXPECT_GT(::read(pair[0], answer, sizeof answer - 1), 0);
    EXPECT_STREQ(answer, "x and 0 others");
    EXPECT_EQ(*child.wait(kPatience), "exit code 0");
    ::close(pair[0]);
    taken.push_back(::open("/dev/null", O_RDONLY | O_CLOEXEC));  // the next pair has other numbers
  }
  for (const int fd : taken) ::close(fd);
}

}  // namespace

int run_role(const std::string& name) {
  if (name == "read_the_inherited_descriptor") read_the_inherited_descriptor();
  if (name == "hang") hang();
  if (name == "hang_and_ignore_sigterm") hang_and_ignore_sigterm();
  if (name == "be_in_the_middle") be_in_the_middle();
  if (name == "tell_what_was_inherited") tell_what_was_inherited();
  return 1;
}

}  // namespace atl

int main(int argc, char** argv) {
  if (argc == 2 && std::strncmp(argv[1], "--role=", 7) == 0) return atl::run_role(argv[1] + 7);
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
