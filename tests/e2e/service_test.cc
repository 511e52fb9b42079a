// `atoll serve` and `atoll node` as services of systemd: what they tell it, and the socket that it
// keeps open for them. The test is the service manager.
#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <csignal>
#include <string>
#include <thread>
#include <vector>

#include "base/child_process.h"
#include "http/http_client.h"
#include "tests/support/command.h"
#include "tests/support/golden.h"
#include "tests/support/temp_dir.h"

namespace atl {
namespace {

using std::chrono::milliseconds;
using testing::Contains;
using testing::HasSubstr;
using testing::StartsWith;

constexpr milliseconds kStartTimeout{60'000}, kEndTimeout{30'000};

// Hears what services tell.
class Manager {
 public:
  Manager() : path_(dir_.path() / "notify") {
    fd_ = ::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    path_.copy(address.sun_path, sizeof address.sun_path - 1);
    EXPECT_EQ(::bind(fd_, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  }
  ~Manager() { ::close(fd_); }

  // Of a program that was not started by a service manager, these variables would be missing.
  ChildProcess start(const std::vector<std::string>& arguments, int listener = -1) const {
    std::string script = "export NOTIFY_SOCKET=" + path_ + " WATCHDOG_USEC=400000 WATCHDOG_PID=$$";
    if (listener >= 0) script += " LISTEN_FDS=1 LISTEN_PID=$$";
    ChildOptions child;
    child.argv = {"/bin/sh", "-c", script + "; exec \"$0\" \"$@\"", ATOLL_BINARY};
    child.argv.insert(child.argv.end(), arguments.begin(), arguments.end());
    child.pipe_stdout = true;
    child.inherited_fd = listener;
    return ChildProcess::start(child);
  }
  // Until one begins with `last`: all messages, or what there was when time was up.
  std::vector<std::string> hear(const std::string& last) const {
    std::vector<std::string> all;
    pollfd one{fd_, POLLIN, 0};
    while (::poll(&one, 1, static_cast<int>(kStartTimeout.count())) == 1) {
      char buffer[4096];
      const ssize_t bytes = ::recv(fd_, buffer, sizeof buffer, 0);
      all.emplace_back(buffer, bytes > 0 ? static_cast<size_t>(bytes) : 0);
      if (all.back().starts_with(last)) break;
    }
    return all;
  }

 private:
  test::TempDir dir_;
  std::string path_;
  int fd_ = -1;
};

class Listener {
 public:
  Listener() {
    fd_ = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t bytes = sizeof address;
    EXPECT_EQ(::bind(fd_, reinterpret_cast<sockaddr*>(&address), bytes), 0);
    EXPECT_EQ(::listen(fd_, 64), 0);
    EXPECT_EQ(::getsockname(fd_, reinterpret_cast<sockaddr*>(&address), &bytes), 0);
    url_ = "http://127.0.0.1:" + std::to_string(ntohs(address.sin_port));
  }
  ~Listener() { ::close(fd_); }
  int fd() const { return fd_; }

  // Waits for whoever serves the port next.
  Result<http::HttpAnswer> ask(const std::string& path) const {
    return http::HttpClient(*http::parse_http_url(url_)).ask({.path = path});
  }

 private:
  int fd_ = -1;
  std::string url_;
};

std::string model() { return (test::tests_dir() / "models/tiny-fp8").string(); }

void end(ChildProcess& process) {
  process.send_signal(SIGTERM);
  const auto ended = process.wait(kEndTimeout);
  ASSERT_TRUE(ended) << ended.error().message;
  EXPECT_EQ(*ended, "exit code 0");
}

TEST(Service, serve_tells_when_it_is_ready_alive_and_stopping) {
  const Manager manager;
  ChildProcess process = manager.start({"serve", model(), "--port", "0", "--log-level", "warn"});
  const auto told = manager.hear("READY=1");
  EXPECT_THAT(told, Contains(StartsWith("STATUS=loading")));
  EXPECT_THAT(told.back(), HasSubstr("STATUS=serving tiny-fp8 on http://127.0.0.1:"));
  for (int i = 0; i < 3; ++i) EXPECT_EQ(manager.hear("WATCHDOG=1").back(), "WATCHDOG=1");
  end(process);
  EXPECT_THAT(manager.hear("STOPPING=1").back(), HasSubstr("STATUS="));
}

TEST(Service, node_tells_when_it_is_ready_and_alive_while_it_has_nothing_to_do) {
  const Manager manager;
  ChildProcess process =
      manager.start({"node", model(), "--name", "n1", "--listen", "127.0.0.1:0"});
  EXPECT_THAT(manager.hear("READY=1").back(), HasSubstr("STATUS=waits for a coordinator"));
  for (int i = 0; i < 3; ++i) EXPECT_EQ(manager.hear("WATCHDOG=1").back(), "WATCHDOG=1");
  end(process);
}

TEST(Service, the_port_stays_open_while_one_coordinator_follows_another) {
  const Manager manager;
  const Listener listener;
  for (int run = 0; run < 2; ++run) {
    // Before anybody serves: the client's connection waits in the socket.
    Result<http::HttpAnswer> early = Error{};
    std::thread client([&] { early = listener.ask("/version"); });
    ChildProcess process = manager.start({"serve", model(), "--log-level", "warn"}, listener.fd());
    manager.hear("READY=1");
    client.join();
    ASSERT_TRUE(early) << early.error().message;
    const auto models = listener.ask("/v1/models");
    ASSERT_TRUE(models) << models.error().message;
    EXPECT_EQ(models->status, 200) << models->body;
    end(process);
  }
}

TEST(Service, what_is_handed_over_has_to_listen_on_tcp) {
  const test::CommandResult result = test::run_command(
      {"/bin/bash", "-c",
       "export LISTEN_FDS=1 LISTEN_PID=$$; exec \"$0\" serve \"$1\" --port 0 3</dev/null",
       ATOLL_BINARY, model()});
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.err, HasSubstr("is none that listens on TCP"));
}

TEST(Service, two_sockets_are_one_too_many) {
  const test::CommandResult result = test::run_command(
      {"/bin/bash", "-c",
       "export LISTEN_FDS=2 LISTEN_PID=$$; exec \"$0\" serve \"$1\" 3</dev/null 4</dev/null",
       ATOLL_BINARY, model()});
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.err, HasSubstr("LISTEN_FDS=2: expected one socket"));
}

}  // namespace
}  // namespace atl
