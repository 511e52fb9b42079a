// One suite over every Transport: in-process, UCX shared memory (posix, sysv), UCX tcp and TLS.
// Both ends live in this thread unless a test says otherwise.
#include "transport/data/transport.h"

#include <fmt/core.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <thread>
#include <vector>

#include "base/child_process.h"
#include "tests/support/temp_dir.h"
#include "transport/tls/make_keys.h"

namespace atl::transport {
namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

constexpr auto kPatience = 30s;  // for machines with more work than cores; never waited out
constexpr size_t kMessageMax = 16u << 20;

// Sets an environment variable for the length of a scope.
class ScopedVariable {
 public:
  ScopedVariable(const char* name, const char* value) : name_(name) {
    if (name_) ::setenv(name_, value, 1);
  }
  ~ScopedVariable() {
    if (name_) ::unsetenv(name_);
  }
  ScopedVariable(const ScopedVariable&) = delete;

 private:
  const char* name_;
};

struct Case {
  const char* name;
  bool in_process;
  TransportKind kind;
  const char* user_tls;  // UCX_TLS that the user sets, or null
  const char* links;     // that the active messages may use, as in "posix sysv"
  bool spin = false;
  bool tls = false;
};

constexpr const char* kTlsLinks = "tls/aes-128-gcm tls/chacha20-poly1305";

// What both ends of TLS are known by, and where an echoing child finds it.
constexpr const char* kKeysVariable = "ATOLL_TEST_KEYS";
const std::filesystem::path& keys_dir() {
  static const test::TempDir temp;
  static const std::filesystem::path dir = [] {
    if (const char* given = std::getenv(kKeysVariable)) return std::filesystem::path(given);
    make_keys({temp.path() / "keys", {"b", "echo"}, {"a", "parent", "c"}, 365});
    return temp.path() / "keys";
  }();
  return dir;
}
TlsOptions tls_options(const std::string& name, bool listens) {
  TlsOptions options;
  options.keys = TlsKeys::load(keys_dir(), name);
  if (listens) options.listen = "127.0.0.1:0";
  options.peers = {"a", "parent"};
  return options;
}

std::ostream& operator<<(std::ostream& os, const Case& c) { return os << c.name; }

InProcessPair make_pair_of(const Case& c, size_t message_bytes_max = kMessageMax) {
  if (c.in_process) return make_in_process_pair(message_bytes_max);
  if (c.tls) {
    TlsOptions near = tls_options("a", false), far = tls_options("b", true);
    near.spin = far.spin = c.spin;
    near.message_bytes_max = far.message_bytes_max = message_bytes_max;
    return {make_tls_transport(near), make_tls_transport(far)};
  }
  ScopedVariable tls(c.user_tls ? "UCX_TLS" : nullptr, c.user_tls);
  UcxOptions options;
  options.kind = c.kind;
  options.spin = c.spin;
  options.message_bytes_max = message_bytes_max;
  return {make_ucx_transport(options), make_ucx_transport(options)};
}

// The byte at `i` of the payload of message `id` from `origin`: a misrouted message shows by value.
std::byte byte_of(uint32_t origin, uint32_t id, size_t i) {
  return static_cast<std::byte>((origin * 131 + id * 29 + i * 7 + (i >> 8)) & 0xff);
}

// The bytes from 256 * row on, 256 of them.
constexpr size_t kRowBytes = 256;
const std::byte* row_of(uint32_t origin, uint32_t id, size_t row) {
  static const auto rows = [] {
    std::vector<std::array<std::byte, kRowBytes>> made(256);
    for (uint32_t first = 0; first < 256; ++first) {
      for (size_t i = 0; i < kRowBytes; ++i) {
        made[first][i] = static_cast<std::byte>((first + i * 7) & 0xff);
      }
    }
    return made;
  }();
  return rows[(origin * 131 + id * 29 + row) & 0xff].data();
}

struct TestHeader {
  uint32_t origin = 0;
  uint32_t id = 0;
  uint64_t bytes = 0;
};

SharedBuffer buffer_of(uint32_t origin, uint32_t id, size_t bytes) {
  auto buffer = std::make_shared<HostBuffer>(std::max<size_t>(bytes, 1));
  for (size_t i = 0; i < bytes; i += kRowBytes) {
    std::memcpy(buffer->data() + i, row_of(origin, id, i / kRowBytes),
                std::min(kRowBytes, bytes - i));
  }
  return buffer;
}

std::vector<std::byte> header_of(uint32_t origin, uint32_t id, size_t bytes,
                                 size_t header_bytes = sizeof(TestHeader)) {
  const TestHeader fields{origin, id, bytes};
  std::vector<std::byte> header(header_bytes);
  std::memcpy(header.data(), &fields, sizeof fields);
  for (size_t i = sizeof fields; i < header_bytes; ++i) header[i] = byte_of(origin, id, i);
  return header;
}

// Reads the header and checks every byte and the alignment.
TestHeader check_message(const Message& message) {
  TestHeader fields;
  EXPECT_GE(message.header().size(), sizeof fields);
  if (message.header().size() < sizeof fields) return fields;
  std::memcpy(&fields, message.header().data(), sizeof fields);
  for (size_t i = sizeof fields; i < message.header().size(); ++i)
    if (message.header()[i] != byte_of(fields.origin, fields.id, i)) {
      ADD_FAILURE() << "header byte " << i << " of message " << fields.id;
      break;
    }
  EXPECT_EQ(message.payload().size(), fields.bytes);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(message.payload().data()) % 64, 0u);
  const std::span<const std::byte> payload = message.payload();
  for (size_t i = 0; i < payload.size(); i += kRowBytes) {
    const size_t bytes = std::min(kRowBytes, payload.size() - i);
    if (std::memcmp(&payload[i], row_of(fields.origin, fields.id, i / kRowBytes), bytes) != 0) {
      ADD_FAILURE() << "payload bytes " << i << " to " << i + bytes << " of message " << fields.id
                    << " from " << fields.origin;
      break;
    }
  }
  return fields;
}

class TransportTest : public testing::TestWithParam<Case> {
 protected:
  // Two ends that know each other.
  struct Pair {
    std::unique_ptr<Transport> a, b;
    PeerId b_at_a, a_at_b;
  };
  Pair connected_pair(size_t message_bytes_max = kMessageMax) {
    InProcessPair ends = make_pair_of(GetParam(), message_bytes_max);
    Pair pair{std::move(ends.near_end), std::move(ends.far_end), {}, {}};
    auto b_at_a = pair.a->connect(pair.b->address(), "b");
    auto a_at_b = pair.b->connect(pair.a->address(), "a");
    EXPECT_TRUE(b_at_a.has_value()) << (b_at_a ? "" : b_at_a.error().message);
    EXPECT_TRUE(a_at_b.has_value()) << (a_at_b ? "" : a_at_b.error().message);
    pair.b_at_a = *b_at_a;
    pair.a_at_b = *a_at_b;
    return pair;
  }
};

// Polls both ends, hands their events over and returns when done() says so; false if it never did.
bool run(Transport& a, Transport& b, const std::function<void(Transport&, Event)>& on_event,
         const std::function<bool()>& done) {
  const auto deadline = Clock::now() + kPatience;
  while (!done()) {
    bool idle = true;
    for (Transport* end : {&a, &b})
      while (auto event = end->poll()) {
        idle = false;
        on_event(*end, std::move(*event));
      }
    if (Clock::now() > deadline) return false;
    if (idle && !done()) a.wait(100us);
  }
  return true;
}

void expect_sent(const Status& status) {
  EXPECT_TRUE(status.ok()) << (status ? "" : status.error().message);
}

TEST_P(TransportTest, carries_messages_of_every_size_both_ways) {
  auto [a, b, b_at_a, a_at_b] = connected_pair();
  const size_t kSizes[] = {
      0, 1, 64, 8 << 10, 14 << 10, 57 << 10, 256 << 10, (256 << 10) + 1, 1u << 20, 7u << 20};
  uint32_t id = 0;
  for (const size_t bytes : kSizes) {
    ++id;
    SharedBuffer from_a = buffer_of(1, id, bytes), from_b = buffer_of(2, id, bytes);
    expect_sent(a->send(b_at_a, header_of(1, id, bytes), from_a, bytes));
    expect_sent(b->send(a_at_b, header_of(2, id, bytes), from_b, bytes));
    int got = 0;
    ASSERT_TRUE(run(
        *a, *b,
        [&](Transport& end, Event event) {
          ASSERT_EQ(event.kind, Event::Kind::kMessage);
          const TestHeader fields = check_message(*event.message);
          EXPECT_EQ(fields.origin, &end == a.get() ? 2u : 1u);
          EXPECT_EQ(event.peer, &end == a.get() ? b_at_a : a_at_b);
          EXPECT_EQ(fields.id, id);
          EXPECT_EQ(event.message->payload().size(), bytes);
          ++got;
        },
        [&] { return got == 2 && from_a.use_count() == 1 && from_b.use_count() == 1; }))
        << bytes << " bytes: " << got << " of 2 messages, use counts " << from_a.use_count() << " "
        << from_b.use_count();
  }
}

TEST_P(TransportTest, carries_headers_up_to_the_limit) {
  auto [a, b, b_at_a, a_at_b] = connected_pair();
  uint32_t id = 0, got = 0;
  for (const size_t header_bytes : {sizeof(TestHeader), size_t{17}, size_t{1000}, kHeaderBytesMax})
    for (const size_t bytes : {size_t{0}, size_t{100}, size_t{14336}, size_t{600000}}) {
      ++id;
      expect_sent(
          a->send(b_at_a, header_of(1, id, bytes, header_bytes), buffer_of(1, id, bytes), bytes));
    }
  std::set<uint32_t> seen;
  ASSERT_TRUE(run(
      *a, *b,
      [&](Transport&, Event event) {
        ASSERT_EQ(event.kind, Event::Kind::kMessage);
        seen.insert(check_message(*event.message).id);
        ++got;
      },
      [&] { return got == id; }));
  EXPECT_EQ(seen.size(), id);
}

TEST_P(TransportTest, sends_a_part_of_a_buffer_without_payload_or_header) {
  auto [a, b, b_at_a, a_at_b] = connected_pair();
  SharedBuffer buffer = buffer_of(1, 1, 5000);
  expect_sent(a->send(b_at_a, header_of(1, 1, 100), buffer, 100));
  expect_sent(a->send(b_at_a, {}, nullptr, 0));
  int got = 0;
  ASSERT_TRUE(run(
      *a, *b,
      [&](Transport&, Event event) {
        ASSERT_EQ(event.kind, Event::Kind::kMessage);
        if (!event.message->header().empty()) check_message(*event.message);
        ++got;
      },
      [&] { return got == 2; }));
}

TEST_P(TransportTest, keeps_many_messages_in_flight_both_ways) {
  auto [a, b, b_at_a, a_at_b] = connected_pair();
  constexpr uint32_t kNum = 600;
  uint32_t sent[2] = {0, 0}, got[2] = {0, 0};
  std::set<uint32_t> seen[2];
  const auto bytes_of = [](uint32_t id) {
    return size_t{id % 13} * 3001 + (id % 50 == 0 ? 300000 : 0);
  };
  const auto send_more = [&] {
    for (int end = 0; end < 2; ++end)
      while (sent[end] < kNum) {
        const uint32_t id = sent[end];
        const Status status =
            (end == 0 ? a : b)
                ->send(end == 0 ? b_at_a : a_at_b, header_of(end, id, bytes_of(id)),
                       buffer_of(end, id, bytes_of(id)), bytes_of(id));
        if (!status) {
          ASSERT_EQ(status.error().code, ErrorCode::kOverloaded) << status.error().message;
          break;
        }
        ++sent[end];
      }
  };
  ASSERT_TRUE(run(
      *a, *b,
      [&](Transport& end, Event event) {
        ASSERT_EQ(event.kind, Event::Kind::kMessage) << event.status.error().message;
        const int at = &end == a.get() ? 0 : 1;
        const TestHeader fields = check_message(*event.message);
        EXPECT_EQ(fields.origin, at == 0 ? 1u : 0u);
        seen[at].insert(fields.id);
        ++got[at];
      },
      [&] {
        send_more();
        return got[0] == kNum && got[1] == kNum;
      }));
  EXPECT_EQ(seen[0].size(), kNum);
  EXPECT_EQ(seen[1].size(), kNum);
}

TEST_P(TransportTest, bounds_the_sends_under_way) {
  auto [a, b, b_at_a, a_at_b] = connected_pair();
  // b doesn't look: large messages can't be done.
  SharedBuffer buffer = buffer_of(1, 0, 300000);
  Status status;
  int sent = 0;
  while (status.ok() && sent < 100000) {
    status = a->send(b_at_a, header_of(1, 0, 300000), buffer, 300000);
    sent += status.ok();
  }
  ASSERT_FALSE(status.ok()) << sent << " sends taken";
  EXPECT_EQ(status.error().code, ErrorCode::kOverloaded) << status.error().message;
  EXPECT_NE(status.error().message.find("b"), std::string::npos);
  // What was taken arrives, and then there is room again.
  int got = 0;
  ASSERT_TRUE(run(
      *a, *b, [&](Transport&, Event) { ++got; },
      [&] { return got == sent && buffer.use_count() == 1; }))
      << got << " of " << sent;
  expect_sent(a->send(b_at_a, header_of(1, 1, 0), nullptr, 0));
}

TEST_P(TransportTest, close_releases_the_buffers_of_sends_in_flight) {
  auto [a, b, b_at_a, a_at_b] = connected_pair();
  std::vector<SharedBuffer> buffers;
  for (uint32_t id = 0; id < 20; ++id) {
    buffers.push_back(buffer_of(1, id, 7u << 20));
    expect_sent(a->send(b_at_a, header_of(1, id, 7u << 20), buffers.back(), 7u << 20));
  }
  a->close(b_at_a);
  for (const auto& buffer : buffers) EXPECT_EQ(buffer.use_count(), 1);
  const Status status = a->send(b_at_a, {}, nullptr, 0);
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().code, ErrorCode::kUnavailable);
  a->close(b_at_a);  // does nothing
}

TEST_P(TransportTest, close_is_seen_as_a_lost_peer_and_a_new_connection_works) {
  auto [a, b, b_at_a, a_at_b] = connected_pair();
  expect_sent(a->send(b_at_a, header_of(1, 1, 0), nullptr, 0));
  expect_sent(b->send(a_at_b, header_of(2, 1, 0), nullptr, 0));
  int got = 0, lost = 0;
  const auto on_event = [&](Transport& end, Event event) {
    if (event.kind == Event::Kind::kMessage) {
      ++got;
      return;
    }
    ++lost;
    EXPECT_EQ(&end, b.get());
    EXPECT_EQ(event.peer, a_at_b);
    EXPECT_EQ(event.status.error().code, ErrorCode::kUnavailable);
    EXPECT_NE(event.status.error().message.find("lost a"), std::string::npos)
        << event.status.error().message;
  };
  ASSERT_TRUE(run(*a, *b, on_event, [&] { return got == 2; }));
  a->close(b_at_a);
  ASSERT_TRUE(run(*a, *b, on_event, [&] { return lost == 1; }));
  const Status status = b->send(a_at_b, {}, nullptr, 0);
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().code, ErrorCode::kUnavailable);
  b->close(a_at_b);

  auto again_at_a = a->connect(b->address(), "b");
  auto again_at_b = b->connect(a->address(), "a");
  ASSERT_TRUE(again_at_a.has_value() && again_at_b.has_value());
  EXPECT_NE(*again_at_a, b_at_a);
  EXPECT_NE(*again_at_b, a_at_b);
  expect_sent(a->send(*again_at_a, header_of(1, 2, 57000), buffer_of(1, 2, 57000), 57000));
  expect_sent(b->send(*again_at_b, header_of(2, 2, 57000), buffer_of(2, 2, 57000), 57000));
  got = 0;
  EXPECT_TRUE(run(*a, *b, on_event, [&] { return got == 2; })) << got;
  EXPECT_EQ(lost, 1);
}

TEST_P(TransportTest, destruction_of_an_end_is_one_lost_event) {
  auto [a, b, b_at_a, a_at_b] = connected_pair();
  int got = 0, lost = 0;
  expect_sent(b->send(a_at_b, header_of(2, 1, 0), nullptr, 0));
  expect_sent(a->send(b_at_a, header_of(1, 1, 0), nullptr, 0));
  ASSERT_TRUE(run(
      *a, *b, [&](Transport&, Event) { ++got; }, [&] { return got == 2; }));
  b.reset();
  const auto deadline = Clock::now() + kPatience;
  while (lost == 0 && Clock::now() < deadline) {
    if (auto event = a->poll()) {
      ASSERT_EQ(event->kind, Event::Kind::kPeerLost);
      EXPECT_EQ(event->peer, b_at_a);
      EXPECT_EQ(event->status.error().code, ErrorCode::kUnavailable);
      ++lost;
    } else {
      a->wait(1ms);
    }
  }
  EXPECT_EQ(lost, 1);
  for (int i = 0; i < 100; ++i) EXPECT_FALSE(a->poll().has_value());
  const Status status = a->send(b_at_a, {}, nullptr, 0);
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().code, ErrorCode::kUnavailable);
  EXPECT_NE(status.error().message.find("b"), std::string::npos);
}

TEST_P(TransportTest, refuses_a_message_above_the_limit_and_its_sender) {
  auto [a, b, b_at_a, a_at_b] = connected_pair(/*message_bytes_max=*/100000);
  for (const size_t bytes : {size_t{100000}, size_t{100001}})
    expect_sent(a->send(b_at_a, header_of(1, 1, bytes), buffer_of(1, 1, bytes), bytes));
  int got = 0, lost_at_b = 0, lost_at_a = 0;
  std::string reason;
  ASSERT_TRUE(run(
      *a, *b,
      [&](Transport& end, Event event) {
        if (event.kind == Event::Kind::kMessage) {
          EXPECT_EQ(event.message->payload().size(), 100000u);
          ++got;
        } else if (&end == b.get()) {
          ++lost_at_b;
          EXPECT_EQ(event.status.error().code, ErrorCode::kInvalid);
          reason = event.status.error().message;
        } else {
          ++lost_at_a;
        }
      },
      [&] { return lost_at_b == 1 && lost_at_a == 1; }))
      << got << " " << lost_at_b << " " << lost_at_a;
  EXPECT_LE(got, 1);
  EXPECT_NE(reason.find("100001"), std::string::npos) << reason;
  EXPECT_NE(reason.find("100000"), std::string::npos) << reason;
}

TEST_P(TransportTest, drops_messages_of_ends_that_are_not_connected_here) {
  InProcessPair ends = make_pair_of(GetParam());
  auto b_at_a = ends.near_end->connect(ends.far_end->address(), "b");
  ASSERT_TRUE(b_at_a.has_value());
  SharedBuffer small = buffer_of(1, 1, 100), large = buffer_of(1, 2, 2u << 20);
  expect_sent(ends.near_end->send(*b_at_a, header_of(1, 1, 100), small, 100));
  expect_sent(ends.near_end->send(*b_at_a, header_of(1, 2, 2u << 20), large, 2u << 20));
  int got = 0;
  EXPECT_TRUE(run(
      *ends.near_end, *ends.far_end, [&](Transport&, Event) { ++got; },
      [&] { return small.use_count() == 1 && large.use_count() == 1; }));
  EXPECT_EQ(got, 0);
}

TEST_P(TransportTest, refuses_what_is_not_an_address) {
  InProcessPair ends = make_pair_of(GetParam());
  const auto good = ends.far_end->address();
  EXPECT_LT(good.size(), 4096u);
  const auto expect_invalid = [&](std::span<const std::byte> bytes, const char* what) {
    auto peer = ends.near_end->connect(bytes, "n7");
    ASSERT_FALSE(peer.has_value()) << what;
    EXPECT_EQ(peer.error().code, ErrorCode::kInvalid) << what << ": " << peer.error().message;
    EXPECT_NE(peer.error().message.find("n7"), std::string::npos) << peer.error().message;
  };
  expect_invalid({}, "empty");
  for (size_t bytes = 1; bytes < good.size(); ++bytes)
    expect_invalid(std::span(good).first(bytes), "truncated");
  for (size_t i = 0; i < good.size(); ++i) {
    auto bad = good;
    bad[i] ^= std::byte{0x41};
    expect_invalid(bad, "a byte changed");
  }
  auto longer = good;
  longer.push_back(std::byte{0});
  expect_invalid(longer, "a byte more");
  expect_invalid(std::vector<std::byte>(5000, std::byte{0xff}), "garbage");
  expect_invalid(ends.near_end->address(), "own address");
  ASSERT_TRUE(ends.near_end->connect(good, "n7").has_value());
  expect_invalid(good, "connected already");
}

// A node that is started again and again is a new peer each time.
TEST_P(TransportTest, peers_that_were_closed_long_ago_are_forgotten_and_stay_closed) {
  InProcessPair ends = make_pair_of(GetParam());
  std::vector<PeerId> peers;
  for (int i = 0; i < 5; ++i) {
    auto peer = ends.near_end->connect(ends.far_end->address(), "n7");
    ASSERT_TRUE(peer.has_value());
    EXPECT_TRUE(std::find(peers.begin(), peers.end(), *peer) == peers.end());
    peers.push_back(*peer);
    ends.near_end->close(*peer);
  }
  for (const PeerId peer : peers) {
    const Status sent = ends.near_end->send(peer, header_of(1, 1, 0), nullptr, 0);
    ASSERT_FALSE(sent.ok());
    EXPECT_EQ(sent.error().code, ErrorCode::kUnavailable);
    ends.near_end->close(peer);
    EXPECT_NE(ends.near_end->selected_links(peer), "");
  }
}

TEST_P(TransportTest, refuses_the_address_of_another_kind) {
  InProcessPair ends = make_pair_of(GetParam());
  Case other{"other", !GetParam().in_process, TransportKind::kTcp, nullptr, ""};
  InProcessPair others = make_pair_of(other);
  auto peer = ends.near_end->connect(others.near_end->address(), "n7");
  ASSERT_FALSE(peer.has_value());
  EXPECT_EQ(peer.error().code, ErrorCode::kInvalid);
}

// How often this thread has gone to sleep.
int64_t thread_sleeps() {
  rusage usage{};
  ::getrusage(RUSAGE_THREAD, &usage);
  return usage.ru_nvcsw;
}

// Also after a conversation, whose last signals may come when their messages have been seen.
TEST_P(TransportTest, wait_ends_when_a_message_arrives_and_sleeps_until_then) {
  auto [a, b, b_at_a, a_at_b] = connected_pair();
  std::atomic<bool> done = false;
  // b's thread answers each message that it gets while a sleeps.
  std::thread far([&, b = b.get(), a_at_b = a_at_b] {
    while (!done) {
      while (auto event = b->poll()) {
        if (event->kind != Event::Kind::kMessage) continue;
        const TestHeader fields = check_message(*event->message);
        expect_sent(
            b->send(a_at_b, header_of(2, fields.id, 14336), buffer_of(2, fields.id, 14336), 14336));
      }
      b->wait(kPatience);
    }
  });
  const auto start = Clock::now();
  for (uint32_t id = 0; id < 50; ++id) {
    expect_sent(a->send(b_at_a, header_of(1, id, 14336), buffer_of(1, id, 14336), 14336));
    std::optional<Event> event;
    while (!event && Clock::now() - start < kPatience) {
      event = a->poll();
      if (!event) a->wait(kPatience);
    }
    ASSERT_TRUE(event.has_value());
    EXPECT_EQ(check_message(*event->message).id, id);
  }
  // One wait that slept until its timeout would show here.
  EXPECT_LT(Clock::now() - start, kPatience);
  const int64_t sleeps = thread_sleeps();
  a->wait(300ms);
  EXPECT_LT(thread_sleeps() - sleeps, 100);
  done = true;
  b->wake();
  far.join();
}

TEST_P(TransportTest, wake_ends_the_wait_in_progress_and_the_next_one) {
  auto [a, b, b_at_a, a_at_b] = connected_pair();
  const auto start = Clock::now();
  a->wake();
  a->wake();
  a->wait(kPatience);  // the next one
  std::atomic<bool> woken = false;
  std::thread waker([&, a = a.get()] {
    woken = true;
    a->wake();
  });
  while (!woken) a->wait(kPatience);  // in progress, or the next one
  waker.join();
  EXPECT_LT(Clock::now() - start, kPatience);
}

TEST_P(TransportTest, wait_returns_after_its_timeout) {
  auto [a, b, b_at_a, a_at_b] = connected_pair();
  const auto start = Clock::now();
  while (Clock::now() - start < 20ms) a->wait(5ms);
  EXPECT_LT(Clock::now() - start, kPatience);
}

// CPU time of this thread, so that a loaded machine doesn't change the result.
std::chrono::nanoseconds thread_cpu_time() {
  timespec time{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return std::chrono::seconds(time.tv_sec) + std::chrono::nanoseconds(time.tv_nsec);
}

TEST_P(TransportTest, waiting_sleeps) {
  auto [a, b, b_at_a, a_at_b] = connected_pair();
  expect_sent(a->send(b_at_a, header_of(1, 1, 14336), buffer_of(1, 1, 14336), 14336));
  int got = 0;
  ASSERT_TRUE(run(
      *a, *b, [&](Transport&, Event) { ++got; }, [&] { return got == 1; }));
  const auto start = Clock::now();
  const auto cpu_start = thread_cpu_time();
  while (Clock::now() - start < 200ms) {
    a->wait(100ms);
    while (a->poll()) {
    }
  }
  EXPECT_LT(thread_cpu_time() - cpu_start, 50ms);
}

TEST_P(TransportTest, tells_the_links_that_were_really_selected) {
  auto [a, b, b_at_a, a_at_b] = connected_pair();
  expect_sent(a->send(b_at_a, header_of(1, 1, 14336), buffer_of(1, 1, 14336), 14336));
  int got = 0;
  ASSERT_TRUE(run(
      *a, *b, [&](Transport&, Event) { ++got; }, [&] { return got == 1; }));
  // The active messages' lane stands first.
  const std::string links = a->selected_links(b_at_a);
  const std::string link = links.substr(0, links.find(','));
  EXPECT_FALSE(link.empty());
  EXPECT_NE((std::string(" ") + GetParam().links + " ").find(" " + link + " "), std::string::npos)
      << links << " where one of " << GetParam().links << " was expected";
  EXPECT_EQ(b->selected_links(a_at_b), links);
  EXPECT_EQ(links.find("eth"), std::string::npos) << links;
}

// ---- a peer in a process of its own

std::string hex_of(const std::vector<std::byte>& bytes) {
  std::string text;
  for (const std::byte b : bytes) text += fmt::format("{:02x}", static_cast<unsigned>(b));
  return text;
}

std::vector<std::byte> bytes_of(const std::string& hex) {
  std::vector<std::byte> bytes;
  for (size_t i = 0; i + 1 < hex.size(); i += 2)
    bytes.push_back(static_cast<std::byte>(std::stoi(hex.substr(i, 2), nullptr, 16)));
  return bytes;
}

// Echoes whatever comes; argument: kind and address of the other end. Prints its own address.
int echo_process(const std::string& kind, const std::string& other) {
  UcxOptions options;
  options.kind = kind == "tcp" ? TransportKind::kTcp : TransportKind::kShm;
  auto transport =
      kind == "tls" ? make_tls_transport(tls_options("echo", true)) : make_ucx_transport(options);
  auto peer = transport->connect(bytes_of(other), "parent");
  if (!peer) return 1;
  std::printf("%s\n", hex_of(transport->address()).c_str());
  std::fflush(stdout);
  for (;;) {
    while (auto event = transport->poll()) {
      if (event->kind == Event::Kind::kPeerLost) return 0;
      const auto payload = event->message->payload();
      auto copy = std::make_shared<HostBuffer>(std::max<size_t>(payload.size(), 1));
      std::copy(payload.begin(), payload.end(), copy->data());
      if (!transport->send(*peer, event->message->header(), copy, payload.size())) return 2;
    }
    transport->wait(1s);
  }
}

// A transport and an echoing child process that know each other.
struct WithChild {
  explicit WithChild(const Case& c) {
    UcxOptions options;
    options.kind = c.kind;
    transport =
        c.tls ? make_tls_transport(tls_options("parent", false)) : make_ucx_transport(options);
    ChildOptions child_options;
    child_options.argv = {"/proc/self/exe",
                          c.tls                           ? "--echo=tls"
                          : c.kind == TransportKind::kTcp ? "--echo=tcp"
                                                          : "--echo=shm",
                          hex_of(transport->address())};
    if (c.tls) child_options.env = {{kKeysVariable, keys_dir().string()}};
    child_options.name = "echo";
    child_options.pipe_stdout = true;
    child = ChildProcess::start(child_options);
    auto line = child.read_line(kPatience);
    if (!line) throw LoadError(line.error().message);
    address = bytes_of(*line);
    auto connected = transport->connect(address, "echo");
    if (!connected) throw LoadError(connected.error().message);
    peer = *connected;
  }
  std::optional<Event> next_event() {
    const auto deadline = Clock::now() + kPatience;
    while (Clock::now() < deadline) {
      if (auto event = transport->poll()) return event;
      transport->wait(kPatience);
    }
    return std::nullopt;
  }

  std::unique_ptr<Transport> transport;
  ChildProcess child;
  std::vector<std::byte> address;
  PeerId peer;
};

class TransportProcessTest : public testing::TestWithParam<Case> {};

TEST_P(TransportProcessTest, a_killed_process_is_one_lost_event_and_releases_buffers) {
  WithChild with(GetParam());
  Transport& transport = *with.transport;
  uint32_t id = 0;
  for (const size_t bytes : {size_t{0}, size_t{14336}, size_t{7} << 20}) {
    ++id;
    SharedBuffer buffer = buffer_of(1, id, bytes);
    expect_sent(transport.send(with.peer, header_of(1, id, bytes), buffer, bytes));
    auto event = with.next_event();
    ASSERT_TRUE(event.has_value()) << bytes;
    ASSERT_EQ(event->kind, Event::Kind::kMessage) << event->status.error().message;
    EXPECT_EQ(event->peer, with.peer);
    EXPECT_EQ(check_message(*event->message).id, id);
  }
  const std::string links = transport.selected_links(with.peer);
  EXPECT_NE((std::string(" ") + GetParam().links + " ").find(" " + links + " "), std::string::npos)
      << links;

  // Stopped, so that sends are under way when it dies.
  with.child.send_signal(SIGSTOP);
  std::vector<SharedBuffer> buffers;
  for (int i = 0; i < 10; ++i) {
    buffers.push_back(buffer_of(1, 100, 7u << 20));
    expect_sent(transport.send(with.peer, header_of(1, 100, 7u << 20), buffers.back(), 7u << 20));
  }
  with.child.send_signal(SIGKILL);
  const auto start = Clock::now();
  auto event = with.next_event();
  ASSERT_TRUE(event.has_value());
  EXPECT_EQ(event->kind, Event::Kind::kPeerLost);
  EXPECT_EQ(event->peer, with.peer);
  EXPECT_EQ(event->status.error().code, ErrorCode::kUnavailable);
  EXPECT_NE(event->status.error().message.find("echo"), std::string::npos)
      << event->status.error().message;
  RecordProperty("noticed_after_ms", std::to_string((Clock::now() - start) / 1ms));
  for (const auto& buffer : buffers) EXPECT_EQ(buffer.use_count(), 1);
  const Status status = transport.send(with.peer, {}, nullptr, 0);
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().code, ErrorCode::kUnavailable);
  EXPECT_FALSE(transport.poll().has_value());
  transport.close(with.peer);

  ASSERT_TRUE(with.child.wait(kPatience).has_value());
  auto again = transport.connect(with.address, "echo");
  ASSERT_FALSE(again.has_value());
  EXPECT_EQ(again.error().code, ErrorCode::kUnavailable) << again.error().message;
}

TEST_P(TransportProcessTest, close_releases_the_buffers_of_sends_to_a_stopped_process) {
  WithChild with(GetParam());
  with.child.send_signal(SIGSTOP);
  std::vector<SharedBuffer> buffers;
  Status status;
  while (status.ok()) {
    buffers.push_back(buffer_of(1, 100, 100000));
    status = with.transport->send(with.peer, header_of(1, 100, 100000), buffers.back(), 100000);
  }
  EXPECT_EQ(status.error().code, ErrorCode::kOverloaded) << status.error().message;
  // Waiting sleeps although UCX has sends that it can't get rid of.
  const auto start = Clock::now();
  const auto cpu_start = thread_cpu_time();
  while (Clock::now() - start < 200ms) {
    with.transport->wait(100ms);
    while (with.transport->poll()) {
    }
  }
  EXPECT_LT(thread_cpu_time() - cpu_start, 100ms);
  with.transport->close(with.peer);
  for (const auto& buffer : buffers) EXPECT_EQ(buffer.use_count(), 1);
  with.child.send_signal(SIGKILL);
}

TEST_P(TransportProcessTest, the_child_sees_its_peer_leave) {
  WithChild with(GetParam());
  expect_sent(with.transport->send(with.peer, header_of(1, 1, 0), nullptr, 0));
  ASSERT_TRUE(with.next_event().has_value());
  with.transport->close(with.peer);
  auto end = with.child.wait(kPatience);
  ASSERT_TRUE(end.has_value()) << end.error().message;
  EXPECT_EQ(*end, "exit code 0");
}

// A long answer: 2048 rows of DeepSeek-V3 leave an expert node in 270 pieces.
TEST(InProcessTransport, a_pump_may_send_more_than_a_queue_takes) {
  constexpr uint32_t kPieces = 10000;
  InProcessPair ends = make_in_process_pair();
  const auto far = ends.near_end->connect(ends.far_end->address(), "far");
  const auto near = ends.far_end->connect(ends.near_end->address(), "near");
  ASSERT_TRUE(far && near);
  set_in_process_pump(*ends.near_end, [&] {
    while (const auto event = ends.far_end->poll()) {
      for (uint32_t piece = 0; piece < kPieces; ++piece) {
        expect_sent(ends.far_end->send(*near, header_of(2, piece, 0), nullptr, 0));
      }
    }
  });
  expect_sent(ends.near_end->send(*far, header_of(1, 0, 0), nullptr, 0));
  uint32_t got = 0;
  while (const auto event = ends.near_end->poll()) {
    EXPECT_EQ(check_message(*event->message).id, got++);
  }
  EXPECT_EQ(got, kPieces);
}

INSTANTIATE_TEST_SUITE_P(
    All, TransportProcessTest,
    testing::Values(Case{"ucx_shm", false, TransportKind::kShm, nullptr, "posix"},
                    Case{"ucx_tcp", false, TransportKind::kTcp, nullptr, "tcp/lo"},
                    Case{"tls", false, TransportKind::kAuto, nullptr, kTlsLinks, false, true}),
    [](const auto& info) { return info.param.name; });

INSTANTIATE_TEST_SUITE_P(
    All, TransportTest,
    testing::Values(Case{"in_process", true, TransportKind::kAuto, nullptr, "in-process"},
                    Case{"ucx_auto", false, TransportKind::kAuto, nullptr, "posix sysv"},
                    Case{"ucx_shm", false, TransportKind::kShm, nullptr, "posix"},
                    Case{"ucx_shm_spin", false, TransportKind::kShm, nullptr, "posix", true},
                    Case{"ucx_shm_user_wants_posix", false, TransportKind::kShm, "posix,cma",
                         "posix"},
                    Case{"ucx_shm_user_wants_sysv", false, TransportKind::kShm, "sysv,cma", "sysv"},
                    Case{"ucx_shm_user_wants_tcp", false, TransportKind::kShm, "tcp", "tcp/lo"},
                    Case{"ucx_tcp", false, TransportKind::kTcp, nullptr, "tcp/lo"},
                    Case{"tls", false, TransportKind::kAuto, nullptr, kTlsLinks, false, true},
                    Case{"tls_spin", false, TransportKind::kAuto, nullptr, kTlsLinks, true, true}),
    [](const auto& info) { return info.param.name; });

// Of this network namespace, where somebody listens over IPv4.
std::set<int> listening_ports() {
  std::set<int> ports;
  std::ifstream table("/proc/self/net/tcp");
  std::string line;
  std::getline(table, line);
  while (std::getline(table, line)) {
    unsigned port = 0, state = 0;
    if (std::sscanf(line.c_str(), "%*d: %*8x:%4x %*8x:%*4x %2x", &port, &state) == 2 &&
        state == 0x0a) {
      ports.insert(static_cast<int>(port));
    }
  }
  return ports;
}

TEST(UcxTransport, listens_on_ports_of_its_range_alone) {
  UcxOptions options;
  options.kind = TransportKind::kTcp;
  options.ports = {24'100, 24'139};
  const std::set<int> before = listening_ports();
  const auto end = make_ucx_transport(options);
  int ours = 0;
  for (const int port : listening_ports()) {
    if (port >= options.ports.first && port <= options.ports.last && !before.contains(port)) ++ours;
  }
  EXPECT_GE(ours, 1);
}

}  // namespace

int run_echo(const std::string& kind, const std::string& other) {
  return echo_process(kind, other);
}

}  // namespace atl::transport

int main(int argc, char** argv) {
  if (argc == 3 && std::strncmp(argv[1], "--echo=", 7) == 0)
    return atl::transport::run_echo(argv[1] + 7, argv[2]);
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
