#include "transport/control/control.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <future>
#include <map>
#include <random>
#include <thread>

#include "tests/transport/fake_node.h"

namespace atl::transport {
namespace {

using namespace std::chrono_literals;
const ControlSecurity kInTheClear{nullptr, kCoordinatorNames, random_secret()};
const std::string& kSecret = kInTheClear.secret;

class ControlTest : public testing::Test {
 protected:
  std::string address() const { return "127.0.0.1:" + std::to_string(server->port()); }
  std::unique_ptr<NodeClient> dial(std::chrono::milliseconds timeout = kPatience) {
    auto client = dial_node(address(), "n1", kInTheClear, timeout);
    EXPECT_TRUE(client.has_value()) << (client ? "" : client.error().message);
    return client ? std::move(*client) : nullptr;
  }
  void expect_contains(const Error& error, std::initializer_list<std::string> parts) {
    for (const auto& part : parts)
      EXPECT_NE(error.message.find(part), std::string::npos) << part << " in: " << error.message;
  }

  FakeNode node;
  std::unique_ptr<ControlServer> server = serve_control("127.0.0.1:0", kInTheClear, node);
};

TEST_F(ControlTest, a_session_from_hello_to_stop) {
  auto client = dial();
  const Hello hello = test_hello();
  auto reply = client->hello(hello);
  ASSERT_TRUE(reply.has_value()) << reply.error().message;
  EXPECT_EQ(reply->node, "n1");
  EXPECT_EQ(reply->num_threads, 8u);
  EXPECT_EQ(reply->memory_total_bytes, 64ull << 30);
  EXPECT_EQ(reply->data_address, (std::vector{std::byte{1}, std::byte{0}, std::byte{3}}));
  EXPECT_EQ(node.last_hello.version, kControlVersion);
  EXPECT_EQ(node.last_hello.coordinator, hello.coordinator);
  EXPECT_EQ(node.last_hello.identity, hello.identity);
  EXPECT_EQ(node.last_hello.session, hello.session);
  EXPECT_EQ(node.last_hello.data_address, hello.data_address);
  EXPECT_EQ(node.last_hello.limits.rows_max, 512u);
  EXPECT_EQ(node.last_hello.limits.hidden_size, 7168u);
  EXPECT_EQ(node.last_hello.limits.top_k, 8u);
  EXPECT_EQ(node.last_hello.limits.num_layers, 61u);
  EXPECT_EQ(node.last_hello.limits.n_routed_experts, 256u);
  EXPECT_EQ(node.last_hello.limits.num_tiles, 16u);
  EXPECT_EQ(node.last_hello.limits.row_type, WireRowType::kBf16);

  const Plan plan{Epoch(3), {{0, 4}, {4, 5}, {9, 16}}};
  const Status applied = client->apply_plan(hello.session, plan);
  ASSERT_TRUE(applied.ok()) << applied.error().message;
  EXPECT_EQ(node.open[hello.session].tiles, plan.tiles);

  auto state = client->state(hello.session);
  ASSERT_TRUE(state.has_value()) << state.error().message;
  EXPECT_EQ(state->phase, NodeState::Phase::kFailed);
  EXPECT_EQ(state->epoch, Epoch(3));
  EXPECT_EQ(state->bytes_loaded, 5u);
  EXPECT_EQ(state->bytes_total, 7u);
  EXPECT_EQ(state->resident_bytes, 1ull << 40);
  EXPECT_EQ(state->error, "disk full");

  auto stats = client->stats(hello.session);
  ASSERT_TRUE(stats.has_value()) << stats.error().message;
  EXPECT_EQ(stats->dispatches, 1u);
  EXPECT_EQ(stats->rows, 2u);
  EXPECT_EQ(stats->expert_rows, 3u);
  EXPECT_EQ(stats->bytes_in, 4u);
  EXPECT_EQ(stats->bytes_out, 5u);
  EXPECT_EQ(stats->tiles_computed, 6u);
  EXPECT_EQ(stats->cache, node.stats(hello.session).cache);
  EXPECT_EQ(stats->refused, 8u);
  EXPECT_EQ(stats->compute_seconds, 0.125);
  EXPECT_EQ(stats->links, "posix");

  auto trace = client->trace(hello.session, {.on = true, .events_max = 1'000'000});
  ASSERT_TRUE(trace.has_value()) << trace.error().message;
  EXPECT_EQ(trace->now_ns, 123);
  EXPECT_EQ(trace->lost, uint64_t{1} << 40);
  ASSERT_EQ(trace->events.size(), kTraceEventsMax);  // whatever is asked for
  EXPECT_EQ(trace->events[7], (TraceEvent{1007, 2014, 7, -1, 5, 0, 3}));
  EXPECT_EQ(client->trace(hello.session, {})->now_ns, 456);
  EXPECT_FALSE(client->trace(SessionId(1), {}).has_value());

  EXPECT_TRUE(client->stop().ok());
  EXPECT_TRUE(node.is_stopped);
  EXPECT_TRUE(client->close_session(hello.session).ok());
  EXPECT_TRUE(node.open.empty());
  client.reset();
  server.reset();
  EXPECT_EQ(node.closed.size(), 1u);  // not closed twice
}

TEST_F(ControlTest, a_refusal_is_said_on_the_nodes_machine_too_and_once) {
  Hello hello = test_hello();
  hello.identity.profile = "another";
  testing::internal::CaptureStderr();
  for (int i = 0; i < 3; ++i) EXPECT_FALSE(dial()->hello(hello).has_value());
  EXPECT_TRUE(dial()->hello(test_hello()).has_value());
  EXPECT_FALSE(dial()->hello(hello).has_value());
  const std::string log = testing::internal::GetCapturedStderr();
  const std::string line = "refused coordinator " + hello.coordinator + ": numerics profile: ";
  const size_t first = log.find(line), second = log.find(line, first + 1);
  EXPECT_NE(second, std::string::npos) << log;
  EXPECT_EQ(log.find(line, second + 1), std::string::npos) << log;
}

TEST_F(ControlTest, a_look_needs_no_hello_but_the_secret) {
  const auto told = dial()->inspect("doctor");
  ASSERT_TRUE(told.has_value()) << told.error().message;
  EXPECT_EQ(*told, "{\"doctor\":1}");
}

TEST_F(ControlTest, refuses_whoever_differs_and_names_both_values) {
  auto client = dial();
  Hello hello = test_hello();
  hello.version = 7;
  auto reply = client->hello(hello);
  ASSERT_FALSE(reply.has_value());
  EXPECT_EQ(reply.error().code, ErrorCode::kInvalid);
  expect_contains(reply.error(), {"version", "7", std::to_string(kControlVersion), address()});

  struct Field {
    const char* what;
    std::string ModelIdentity::*member;
  };
  for (const Field& field : {Field{"model", &ModelIdentity::model},
                             Field{"fingerprint", &ModelIdentity::checkpoint_fingerprint},
                             Field{"profile", &ModelIdentity::profile}}) {
    hello = test_hello();
    hello.identity.*field.member = "something else";
    reply = client->hello(hello);
    ASSERT_FALSE(reply.has_value()) << field.what;
    EXPECT_EQ(reply.error().code, ErrorCode::kInvalid);
    expect_contains(reply.error(),
                    {field.what, "something else", test_identity().*field.member, address()});
  }
  EXPECT_TRUE(node.open.empty());
  EXPECT_TRUE(client->hello(test_hello()).has_value());
}

// Whatever else is wrong with what it says.
TEST_F(ControlTest, tells_nothing_to_whoever_does_not_know_the_secret) {
  Hello other_model = test_hello();
  other_model.identity.model = "another";
  Hello other_version = test_hello();
  other_version.version = 1;
  Hello absurd = test_hello();
  absurd.limits.hidden_size = 0;
  std::string almost = kSecret;
  almost.back() = almost.back() == '0' ? '1' : '0';
  for (const std::string& secret : {std::string(), almost, kSecret + "0", std::string(5000, 'x')}) {
    for (const Hello& hello : {test_hello(), other_model, other_version, absurd}) {
      auto client = dial_node(address(), "n1", ControlSecurity{nullptr, {}, secret}, kPatience);
      ASSERT_TRUE(client.has_value());
      const auto reply = (*client)->hello(hello);
      ASSERT_FALSE(reply.has_value());
      EXPECT_EQ(reply.error().code, ErrorCode::kInvalid);
      EXPECT_EQ(reply.error().message, "hello to " + address() + ": refused");
      EXPECT_FALSE((*client)->stop().ok());
    }
  }
  EXPECT_TRUE(node.open.empty());
  EXPECT_TRUE(dial()->hello(test_hello()).has_value());
}

TEST_F(ControlTest, a_connection_has_a_bounded_number_of_sessions) {
  auto client = dial();
  uint64_t session = 1;
  while (client->hello(test_hello(session)).has_value()) ASSERT_LT(++session, 1000u);
  EXPECT_EQ(session, 17u);
  EXPECT_TRUE(client->close_session(SessionId(1)).ok());
  EXPECT_TRUE(client->hello(test_hello(session)).has_value());
}

TEST_F(ControlTest, a_node_is_not_stopped_while_another_connection_has_a_session) {
  auto first = dial(), second = dial();
  ASSERT_TRUE(first->hello(test_hello(1)).has_value());
  ASSERT_TRUE(second->hello(test_hello(2)).has_value());
  const Status refused = second->stop();
  ASSERT_FALSE(refused.ok());
  expect_contains(refused.error(), {"another coordinator has a session"});
  EXPECT_FALSE(node.is_stopped);
  ASSERT_TRUE(first->close_session(SessionId(1)).ok());
  EXPECT_TRUE(second->stop().ok());
  EXPECT_TRUE(node.is_stopped);
}

TEST_F(ControlTest, refuses_absurd_limits_texts_addresses_and_plans) {
  auto client = dial();
  const auto expect_refused = [&](const Hello& hello, const char* part) {
    auto reply = client->hello(hello);
    ASSERT_FALSE(reply.has_value()) << part;
    EXPECT_EQ(reply.error().code, ErrorCode::kInvalid) << reply.error().message;
    expect_contains(reply.error(), {part, address()});
  };
  for (const auto& [name, member] : std::map<const char*, uint32_t WireLimits::*>{
           {"rows_max", &WireLimits::rows_max},
           {"hidden_size", &WireLimits::hidden_size},
           {"top_k", &WireLimits::top_k},
           {"num_layers", &WireLimits::num_layers},
           {"n_routed_experts", &WireLimits::n_routed_experts},
           {"num_tiles", &WireLimits::num_tiles}})
    for (const uint32_t value : {0u, UINT32_MAX}) {
      Hello hello = test_hello();
      hello.limits.*member = value;
      expect_refused(hello, name);
    }
  Hello hello = test_hello();
  hello.limits.row_type = static_cast<WireRowType>(9);
  expect_refused(hello, "row type is 9");
  hello = test_hello();
  hello.data_address.resize(5000);
  expect_refused(hello, "5000");
  hello = test_hello();
  hello.identity.model.assign(5000, 'm');
  expect_refused(hello, "5000");
  EXPECT_TRUE(node.open.empty());

  ASSERT_TRUE(client->hello(test_hello()).has_value());
  const SessionId session = test_hello().session;
  for (const auto& tiles : std::vector<std::vector<TileRange>>{
           {{4, 4}}, {{5, 4}}, {{0, 4}, {3, 5}}, {{4, 6}, {0, 2}}}) {
    const Status status = client->apply_plan(session, {Epoch(1), tiles});
    ASSERT_FALSE(status.ok());
    EXPECT_EQ(status.error().code, ErrorCode::kInvalid);
  }
  EXPECT_TRUE(client->apply_plan(session, {Epoch(2), {}}).ok());
}

TEST_F(ControlTest, passes_the_nodes_own_error_on) {
  auto client = dial();
  ASSERT_TRUE(client->hello(test_hello()).has_value());
  const Status status = client->apply_plan(test_hello().session, {Epoch(666), {}});
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().code, ErrorCode::kCorrupt);
  expect_contains(status.error(), {"expert 3/1: checksum is wrong", address()});
}

TEST_F(ControlTest, a_session_belongs_to_its_connection) {
  auto first = dial(), second = dial();
  ASSERT_TRUE(first->hello(test_hello()).has_value());
  const SessionId session = test_hello().session;
  for (const Status& status :
       {second->apply_plan(session, {}), second->close_session(session), second->stop()}) {
    ASSERT_FALSE(status.ok());
    EXPECT_EQ(status.error().code, ErrorCode::kInvalid);
  }
  EXPECT_FALSE(second->state(session).has_value());
  EXPECT_FALSE(second->stats(session).has_value());
  EXPECT_FALSE(second->hello(test_hello()).has_value());  // the key is taken
  EXPECT_FALSE(node.is_stopped);
  EXPECT_TRUE(second->hello(test_hello(5)).has_value());
  EXPECT_TRUE(first->state(session).has_value());
}

TEST_F(ControlTest, a_broken_connection_closes_its_sessions_only) {
  auto first = dial(), second = dial();
  ASSERT_TRUE(first->hello(test_hello(1)).has_value());
  ASSERT_TRUE(first->hello(test_hello(2)).has_value());
  ASSERT_TRUE(second->hello(test_hello(3)).has_value());
  first.reset();
  EXPECT_TRUE(node.wait_until_closed(SessionId(1)));
  EXPECT_TRUE(node.wait_until_closed(SessionId(2)));
  EXPECT_TRUE(second->state(SessionId(3)).has_value());
  EXPECT_EQ(node.open.size(), 1u);
  server.reset();
  EXPECT_TRUE(node.open.empty());
}

TEST_F(ControlTest, a_node_that_goes_away_is_unavailable) {
  auto client = dial();
  ASSERT_TRUE(client->hello(test_hello()).has_value());
  const std::string where = address();
  server.reset();
  auto state = client->state(test_hello().session);
  ASSERT_FALSE(state.has_value());
  EXPECT_EQ(state.error().code, ErrorCode::kUnavailable) << state.error().message;
  expect_contains(state.error(), {where});
  auto again = dial_node(where, "n1", kInTheClear, kPatience);
  ASSERT_FALSE(again.has_value());
  EXPECT_EQ(again.error().code, ErrorCode::kUnavailable);
  expect_contains(again.error(), {where, "refused"});
}

TEST_F(ControlTest, a_node_that_does_not_answer_is_a_timeout) {
  std::promise<void> hold;
  node.hold = hold.get_future().share();
  auto client = dial(100ms);
  ASSERT_TRUE(client->hello(test_hello()).has_value());
  auto state = client->state(test_hello().session);
  ASSERT_FALSE(state.has_value());
  EXPECT_EQ(state.error().code, ErrorCode::kTimeout) << state.error().message;
  expect_contains(state.error(), {address(), "100 ms"});
  hold.set_value();
  EXPECT_TRUE(client->stats(test_hello().session).has_value());
}

TEST_F(ControlTest, heartbeats_count_up_until_the_connection_breaks) {
  auto client = dial();
  EXPECT_EQ(client->pulse().heartbeats, 0u);
  EXPECT_TRUE(client->pulse().connected);
  client->send_heartbeats(1ms);
  EXPECT_TRUE(eventually([&] { return client->pulse().heartbeats >= 5; }));
  server.reset();
  EXPECT_TRUE(eventually([&] { return !client->pulse().connected; }));
}

// The thread of control answers them: it must not wait for one that computes.
TEST_F(ControlTest, heartbeats_stop_while_the_thread_of_control_hangs) {
  std::promise<void> hold;
  node.hold = hold.get_future().share();
  auto client = dial(100ms);
  ASSERT_TRUE(client->hello(test_hello()).has_value());
  client->send_heartbeats(1ms);
  EXPECT_TRUE(eventually([&] { return client->pulse().heartbeats > 0; }));
  ASSERT_FALSE(client->state(test_hello().session).has_value());
  const uint64_t before = client->pulse().heartbeats;
  std::this_thread::sleep_for(20ms);
  EXPECT_LE(client->pulse().heartbeats, before + 1);
  EXPECT_TRUE(client->pulse().connected);
  hold.set_value();
  EXPECT_TRUE(eventually([&] { return client->pulse().heartbeats > before + 1; }));
}

class ControlPairTest : public ControlTest {
 protected:
  void SetUp() override {
    ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    server = serve_control_over(fds[1], node);
    auto connected = control_over(fds[0], "n1", kPatience);
    ASSERT_TRUE(connected.has_value());
    client = std::move(*connected);
  }
  bool node_is_stopped() {
    std::lock_guard lock(node.mutex);
    return node.is_stopped;
  }

  int fds[2] = {-1, -1};
  std::unique_ptr<NodeClient> client;
};

TEST_F(ControlPairTest, a_session_over_a_pair_of_sockets) {
  client->send_heartbeats(1ms);
  ASSERT_TRUE(client->hello(test_hello()).has_value());
  EXPECT_TRUE(client->state(test_hello().session).has_value());
  EXPECT_TRUE(eventually([&] { return client->pulse().heartbeats > 0; }));
  EXPECT_FALSE(node_is_stopped());
}

TEST_F(ControlPairTest, the_node_ends_with_the_other_end) {
  ASSERT_TRUE(client->hello(test_hello()).has_value());
  client.reset();
  EXPECT_TRUE(eventually([&] { return node_is_stopped(); }));
  server.reset();
  EXPECT_TRUE(node.open.empty());
}

TEST_F(ControlPairTest, errors_name_the_node_and_its_end_is_noticed) {
  ASSERT_TRUE(client->hello(test_hello()).has_value());
  server.reset();
  EXPECT_TRUE(eventually([&] { return !client->pulse().connected; }));
  auto state = client->state(test_hello().session);
  ASSERT_FALSE(state.has_value());
  EXPECT_EQ(state.error().code, ErrorCode::kUnavailable);
  expect_contains(state.error(), {"state of n1"});
}

// What a process that ends must not wait for: a peer that takes the connection and says nothing.
TEST_F(ControlTest, what_is_under_way_ends_when_it_is_given_up) {
  const int mute = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in at{};
  at.sin_family = AF_INET;
  at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t bytes = sizeof at;
  ASSERT_EQ(bind(mute, reinterpret_cast<sockaddr*>(&at), sizeof at), 0);
  ASSERT_EQ(listen(mute, 1), 0);
  ASSERT_EQ(getsockname(mute, reinterpret_cast<sockaddr*>(&at), &bytes), 0);
  const auto given_up = std::make_shared<std::atomic<bool>>(false);
  auto client = dial_node("127.0.0.1:" + std::to_string(ntohs(at.sin_port)), "n1", kInTheClear,
                          kPatience, given_up);
  ASSERT_TRUE(client.has_value()) << client.error().message;
  std::thread ending([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    *given_up = true;
  });
  const auto reply = (*client)->hello(test_hello());
  ending.join();
  ASSERT_FALSE(reply.has_value());
  EXPECT_EQ(reply.error().code, ErrorCode::kUnavailable);
  expect_contains(reply.error(), {"given up"});
  close(mute);
}

TEST_F(ControlTest, bad_addresses_are_one_line) {
  for (const char* bad : {"", "no.such.host.invalid:1", "127.0.0.1:notaport", "[::"}) {
    auto client = dial_node(bad, "n1", kInTheClear, kPatience);
    ASSERT_FALSE(client.has_value()) << bad;
    EXPECT_EQ(client.error().message.find('\n'), std::string::npos) << client.error().message;
    expect_contains(client.error(), {bad});
  }
  FakeNode other;
  try {
    serve_control(address(), kInTheClear, other);  // taken
    ADD_FAILURE() << "listened twice on " << address();
  } catch (const LoadError& e) {
    EXPECT_EQ(e.what(), "cannot listen on " + address() +
                            ": Address already in use; choose another address or port");
  }
}

TEST_F(ControlTest, a_strangers_garbage_is_dropped_and_the_server_lives) {
  auto client = dial();
  ASSERT_TRUE(client->hello(test_hello()).has_value());
  std::vector<std::string> garbages = {
      "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
      std::string(100000, '\xff'),
      // One segment of 2^31 words.
      std::string("\x00\x00\x00\x00\x00\x00\x00\x80", 8) + std::string(64, 'x'),
      // 2^32 - 1 segments.
      std::string("\xfe\xff\xff\xff\xff\xff\xff\xff", 8) + std::string(64, '\xff'),
  };
  std::mt19937 random(1);
  for (int i = 0; i < 30; ++i) {
    std::string bytes(8 + random() % 300, '\0');
    for (char& c : bytes) c = static_cast<char>(random());
    garbages.push_back(bytes);
    // A well-formed envelope around garbage.
    const auto words = static_cast<char>(bytes.size() / 8);
    bytes = std::string("\x00\x00\x00\x00", 4) + words + std::string("\x00\x00\x00", 3) + bytes;
    garbages.push_back(bytes);
  }
  for (const auto& garbage : garbages) {
    const int fd = stranger(server->port());
    [[maybe_unused]] auto sent = ::send(fd, garbage.data(), garbage.size(), MSG_NOSIGNAL);
    ::shutdown(fd, SHUT_WR);
    EXPECT_TRUE(is_dropped(fd)) << garbage.size() << " bytes";
    ::close(fd);
  }
  auto state = client->state(test_hello().session);
  EXPECT_TRUE(state.has_value()) << state.error().message;
  EXPECT_NE(dial(), nullptr);
}

// The thread that takes them answers heartbeats, too: 32 at once, then one each 10 ms.
TEST_F(ControlTest, who_connects_over_and_over_is_taken_slowly) {
  const auto start = std::chrono::steady_clock::now();
  std::vector<int> strangers;
  for (int i = 0; i < 80; ++i) strangers.push_back(stranger(server->port()));
  EXPECT_TRUE(is_dropped(strangers.back()));  // all have been taken, and it was too many
  EXPECT_GE(std::chrono::steady_clock::now() - start, std::chrono::milliseconds((79 - 32) * 10));
  for (const int fd : strangers) ::close(fd);
}

TEST_F(ControlTest, more_connections_than_the_limit_are_dropped_and_room_comes_back) {
  auto client = dial();
  ASSERT_TRUE(client->hello(test_hello()).has_value());
  std::vector<int> strangers;
  for (int i = 0; i < 63; ++i) strangers.push_back(stranger(server->port()));
  // Connections are accepted in order, so this is the 65th.
  const int one_more = stranger(server->port());
  EXPECT_TRUE(is_dropped(one_more));
  ::close(one_more);
  EXPECT_TRUE(client->state(test_hello().session).has_value());
  for (const int fd : strangers) ::close(fd);
  const auto deadline = std::chrono::steady_clock::now() + kPatience;
  bool is_back = false;
  while (!is_back && std::chrono::steady_clock::now() < deadline) {
    auto again = dial_node(address(), "n1", kInTheClear, kPatience);
    is_back = again && (*again)->hello(test_hello(9)).has_value();
  }
  EXPECT_TRUE(is_back);
}

}  // namespace
}  // namespace atl::transport
