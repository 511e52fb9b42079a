// What the tests of the control connection share: a node that only remembers, and strangers.
#pragma once

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <future>
#include <map>
#include <mutex>
#include <thread>
#include <vector>

#include "transport/control/control.h"

namespace atl::transport {

inline constexpr std::chrono::seconds kPatience{30};

inline ModelIdentity test_identity() {
  return {"deepseek_v3 6 layers, 32 experts, hidden 256", "xxh3:0123456789abcdef",
          "f32/absorbed/wire-bf16/kv-bf16/experts-fp8"};
}

// A node that remembers what it was told.
class FakeNode final : public NodeControl {
 public:
  Result<HelloReply> hello(const Hello& hello) override {
    if (const Status same = check_identity(test_identity(), hello.identity); !same)
      return same.error();
    std::lock_guard lock(mutex);
    last_hello = hello;
    open[hello.session] = {};
    return HelloReply{"n1", 8, 64ull << 30, {std::byte{1}, std::byte{0}, std::byte{3}}};
  }
  Status apply_plan(SessionId session, const Plan& plan) override {
    std::lock_guard lock(mutex);
    if (plan.epoch.value == 666) return Error{ErrorCode::kCorrupt, "expert 3/1: checksum is wrong"};
    open[session] = plan;
    return {};
  }
  NodeState state(SessionId session) override {
    hold.wait();
    std::lock_guard lock(mutex);
    return {NodeState::Phase::kFailed, open[session].epoch, 5, 7, 1ull << 40, "disk full"};
  }
  NodeStats stats(SessionId) override {
    NodeStats stats;
    stats.dispatches = 1;
    stats.rows = 2;
    stats.expert_rows = 3;
    stats.bytes_in = 4;
    stats.bytes_out = 5;
    stats.tiles_computed = 6;
    stats.cache.misses = 7;
    stats.cache.read_latency[23] = 9;
    stats.cache.stall_seconds = {0.25, 0.5};
    stats.refused = 8;
    stats.compute_seconds = 0.125;
    stats.links = "posix";
    return stats;
  }
  Result<NodeTrace> trace(SessionId, const TraceAsk& ask) override {
    NodeTrace trace;
    trace.now_ns = ask.on ? 123 : 456;
    for (uint32_t i = 0; i < ask.events_max; ++i) {
      trace.events.push_back({1000 + i, 2000 + 2 * i, i, -1, 5, 0, 3});
    }
    trace.lost = uint64_t{1} << 40;
    return trace;
  }
  Result<std::string> inspect(const std::string& what) override { return "{\"" + what + "\":1}"; }
  void close_session(SessionId session) override {
    std::lock_guard lock(mutex);
    open.erase(session);
    closed.push_back(session);
    changed.notify_all();
  }
  void stop() override {
    std::lock_guard lock(mutex);
    is_stopped = true;
  }

  bool wait_until_closed(SessionId session) {
    std::unique_lock lock(mutex);
    return changed.wait_for(lock, kPatience, [&] {
      return std::find(closed.begin(), closed.end(), session) != closed.end();
    });
  }

  // state() waits for it: ready unless a test puts another one here.
  std::shared_future<void> hold = [] {
    std::promise<void> promise;
    promise.set_value();
    return promise.get_future().share();
  }();
  std::mutex mutex;
  std::condition_variable changed;
  Hello last_hello;
  std::map<SessionId, Plan> open;
  std::vector<SessionId> closed;
  bool is_stopped = false;
};

inline Hello test_hello(uint64_t session = 0xfedcba9876543210) {
  Hello hello;
  hello.coordinator = "coordinator on host a";
  hello.identity = test_identity();
  hello.limits = {512, 7168, 8, 61, 256, 16, WireRowType::kBf16};
  hello.session = SessionId(session);
  hello.data_address = {std::byte{0}, std::byte{255}, std::byte{7}};
  return hello;
}

inline bool eventually(const std::function<bool()>& holds) {
  const auto deadline = std::chrono::steady_clock::now() + kPatience;
  while (!holds() && std::chrono::steady_clock::now() < deadline) std::this_thread::yield();
  return holds();
}

// A stranger's socket to the server.
inline int stranger(uint16_t port) {
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(port);
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  EXPECT_EQ(::connect(fd, reinterpret_cast<sockaddr*>(&to), sizeof to), 0);
  return fd;
}

// True if the server drops it.
inline bool is_dropped(int fd) {
  char buffer[4096];
  for (;;) {
    pollfd ready{fd, POLLIN, 0};
    if (::poll(&ready, 1, 30000) != 1) return false;
    if (::recv(fd, buffer, sizeof buffer, 0) <= 0) return true;
  }
}

}  // namespace atl::transport
