// What the encrypted link keeps out, beside the suite that every transport passes
// (transport_test.cc).
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <openssl/ssl.h>
#include <sys/socket.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <functional>
#include <mutex>
#include <thread>

#include "tests/support/temp_dir.h"
#include "tests/transport/fake_node.h"
#include "tests/transport/test_keys.h"
#include "transport/data/end_address.h"
#include "transport/data/transport.h"
#include "transport/tls/make_keys.h"

namespace atl::transport {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;
using testing::AllOf;
using testing::HasSubstr;
using Clock = std::chrono::steady_clock;

struct Folders {
  test::TempDir temp;
  fs::path ours = temp.path() / "ours", theirs = temp.path() / "theirs";
  Folders() {
    make_keys({ours, {"n1", "n2"}, {"coordinator", "other"}, 365});
    make_keys({theirs, {"n1"}, {"coordinator"}, 365});
  }
};
const Folders& folders() {
  static const Folders made;
  return made;
}

TlsOptions dialling(const fs::path& dir = folders().ours, const std::string& name = "coordinator") {
  TlsOptions options;
  options.keys = TlsKeys::load(dir, name);
  return options;
}
TlsOptions listening(const fs::path& dir = folders().ours, const std::string& name = "n1") {
  TlsOptions options = dialling(dir, name);
  options.listen = "127.0.0.1:0";
  return options;
}

TlsAddress tls_address(const Transport& end) {
  return *decode_tls_address(decode_address(end.address(), EndAddress::Kind::kTls)->native);
}
// The end's address, changed.
std::vector<std::byte> changed(const Transport& end, const std::function<void(TlsAddress&)>& edit) {
  EndAddress address = *decode_address(end.address(), EndAddress::Kind::kTls);
  TlsAddress tls = *decode_tls_address(address.native);
  edit(tls);
  address.native = encode_tls_address(tls);
  return encode_address(address);
}

// A dialling end, a listening one, and what came of polling both.
struct Link {
  std::unique_ptr<Transport> coordinator, node;
  PeerId to_node, to_coordinator;
  std::vector<std::vector<std::byte>> at_coordinator, at_node;  // payloads
  std::vector<Error> lost_node, lost_coordinator;  // what the coordinator and the node say of it

  explicit Link(const TlsOptions& dials = dialling(), const TlsOptions& listens = listening())
      : coordinator(make_tls_transport(dials)), node(make_tls_transport(listens)) {}

  void connect(const std::vector<std::byte>& address, const std::string& node_name = "n1",
               const std::string& coordinator_name = "coordinator") {
    auto there = coordinator->connect(address, node_name);
    auto back = node->connect(coordinator->address(), coordinator_name);
    ASSERT_TRUE(there.has_value() && back.has_value());
    to_node = *there;
    to_coordinator = *back;
  }
  void connect() { connect(node->address()); }

  bool run_until(const std::function<bool()>& done) {
    const auto deadline = Clock::now() + kPatience;
    while (!done()) {
      if (Clock::now() > deadline) return false;
      bool idle = true;
      for (Transport* end : {coordinator.get(), node.get()}) {
        while (auto event = end->poll()) {
          idle = false;
          const bool here = end == coordinator.get();
          if (event->kind == Event::Kind::kPeerLost) {
            (here ? lost_node : lost_coordinator).push_back(event->status.error());
          } else {
            const auto payload = event->message->payload();
            (here ? at_coordinator : at_node).emplace_back(payload.begin(), payload.end());
          }
        }
      }
      if (idle) coordinator->wait(100us);
    }
    return true;
  }
};

SharedBuffer buffer_of(const std::string& text) {
  auto buffer = std::make_shared<HostBuffer>(text.size());
  std::memcpy(buffer->data(), text.data(), text.size());
  return buffer;
}
Status send_text(Transport& end, PeerId peer, const std::string& text) {
  return end.send(peer, std::as_bytes(std::span("a header", 8)), buffer_of(text), text.size());
}

std::string repeated(const std::string& text, size_t bytes) {
  std::string all;
  while (all.size() < bytes) all += text;
  all.resize(bytes);
  return all;
}

TEST(TlsTransport, answers_both_ways_and_names_its_cipher) {
  Link link;
  link.connect();
  ASSERT_TRUE(send_text(*link.coordinator, link.to_node, "there").ok());
  ASSERT_TRUE(link.run_until([&] { return link.at_node.size() == 1; }));
  ASSERT_TRUE(send_text(*link.node, link.to_coordinator, "back").ok());
  ASSERT_TRUE(link.run_until([&] { return link.at_coordinator.size() == 1; }));
  EXPECT_THAT(link.coordinator->selected_links(link.to_node), HasSubstr("tls/"));
}

TEST(TlsTransport, one_end_listens_and_one_dials) {
  auto a = make_tls_transport(dialling()), b = make_tls_transport(dialling());
  auto peer = a->connect(b->address(), "n1");
  ASSERT_FALSE(peer.has_value());
  EXPECT_EQ(peer.error().code, ErrorCode::kInvalid);
  EXPECT_THAT(peer.error().message, HasSubstr("neither end listens"));
  auto c = make_tls_transport(listening()), d = make_tls_transport(listening());
  peer = c->connect(d->address(), "n1");
  ASSERT_FALSE(peer.has_value());
  EXPECT_THAT(peer.error().message, HasSubstr("both ends listen"));
}

TEST(TlsTransport, the_control_connections_host_is_put_in) {
  TlsOptions everywhere = listening();
  everywhere.listen = "0.0.0.0:0";
  Link link(dialling(), everywhere);
  EXPECT_EQ(tls_address(*link.node).host, "");
  link.connect(with_host(link.node->address(), "127.0.0.1"));
  ASSERT_TRUE(send_text(*link.coordinator, link.to_node, "x").ok());
  EXPECT_TRUE(link.run_until([&] { return link.at_node.size() == 1; }));
  // What is there already stays.
  const auto address = link.coordinator->address();
  EXPECT_EQ(with_host(address, "10.0.0.1"), address);
  const std::vector<std::byte> garbage(100, std::byte{7});
  EXPECT_EQ(with_host(garbage, "10.0.0.1"), garbage);
}

TEST(TlsTransport, keys_are_changed_under_way) {
  TlsOptions dials = dialling(), listens = listening();
  dials.records_per_key = 3;
  listens.records_per_key = 2;
  Link link(dials, listens);
  link.connect();
  const std::string large = repeated("0123456789abcdef", 300'000);
  int there = 0, back = 0;
  ASSERT_TRUE(link.run_until([&] {
    if (there < 40 && send_text(*link.coordinator, link.to_node, large).ok()) ++there;
    if (back < 40 && send_text(*link.node, link.to_coordinator, large).ok()) ++back;
    return link.at_node.size() == 40 && link.at_coordinator.size() == 40;
  })) << link.at_node.size()
      << " " << link.at_coordinator.size();
  for (const auto* got : {&link.at_node, &link.at_coordinator}) {
    for (const auto& payload : *got)
      ASSERT_TRUE(payload.size() == large.size() &&
                  std::memcmp(payload.data(), large.data(), large.size()) == 0);
  }
}

// ---- On the way

// Carries one connection and keeps, or changes, what goes by.
class Relay {
 public:
  // change: gets every piece that comes, with its place in its direction's stream (0: towards the
  // target), and may change it; false ends both sides.
  using Change = std::function<bool(int direction, size_t place, std::span<char> piece)>;
  Relay(uint16_t target, Change change) : change_(std::move(change)) {
    listener_ = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in at{};
    at.sin_family = AF_INET;
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof at;
    EXPECT_EQ(::bind(listener_, reinterpret_cast<sockaddr*>(&at), size), 0);
    EXPECT_EQ(::listen(listener_, 1), 0);
    EXPECT_EQ(::getsockname(listener_, reinterpret_cast<sockaddr*>(&at), &size), 0);
    port_ = ntohs(at.sin_port);
    thread_ = std::thread([this, target] { carry(::accept(listener_, nullptr, nullptr), target); });
  }
  ~Relay() {
    stop_ = true;
    ::shutdown(listener_, SHUT_RDWR);
    thread_.join();
    ::close(listener_);
  }
  uint16_t port() const { return port_; }
  std::string seen() {
    const std::lock_guard lock(mutex_);
    return seen_;
  }

 private:
  void carry(int from, uint16_t target) {
    if (from < 0) return;
    const int fds[2] = {from, stranger(target)};
    size_t places[2] = {0, 0};
    std::vector<char> piece(65536);
    for (bool open = true; open && !stop_;) {
      pollfd waits[2] = {{fds[0], POLLIN, 0}, {fds[1], POLLIN, 0}};
      ::poll(waits, 2, 10);
      for (int i = 0; i < 2 && open; ++i) {
        if (waits[i].revents == 0) continue;
        const ssize_t got = ::recv(fds[i], piece.data(), piece.size(), 0);
        if (got <= 0) {
          open = false;
          break;
        }
        const std::span bytes(piece.data(), static_cast<size_t>(got));
        open = change_(i, places[i], bytes);
        places[i] += bytes.size();
        {
          const std::lock_guard lock(mutex_);
          seen_.append(bytes.data(), bytes.size());
        }
        for (size_t done = 0; open && done < bytes.size();) {
          const ssize_t sent =
              ::send(fds[1 - i], bytes.data() + done, bytes.size() - done, MSG_NOSIGNAL);
          if (sent <= 0) open = false;
          done += static_cast<size_t>(std::max<ssize_t>(sent, 0));
        }
      }
    }
    ::close(fds[0]);
    ::close(fds[1]);
  }

  const Change change_;
  int listener_ = -1;
  uint16_t port_ = 0;
  std::atomic<bool> stop_ = false;
  std::mutex mutex_;
  std::string seen_;
  std::thread thread_;
};

void connect_through(Link& link, const Relay& relay) {
  link.connect(changed(*link.node, [&](TlsAddress& address) { address.port = relay.port(); }));
}

TEST(TlsTransport, nothing_of_a_message_can_be_read_on_its_way) {
  Link link;
  Relay relay(tls_address(*link.node).port, [](int, size_t, std::span<char>) { return true; });
  connect_through(link, relay);
  const std::string secret = "the rows of somebody's prompt";
  const std::string text = repeated(secret, 100'000);
  ASSERT_TRUE(send_text(*link.coordinator, link.to_node, text).ok());
  ASSERT_TRUE(send_text(*link.node, link.to_coordinator, text).ok());
  ASSERT_TRUE(
      link.run_until([&] { return link.at_node.size() == 1 && link.at_coordinator.size() == 1; }));
  const std::string seen = relay.seen();
  EXPECT_GT(seen.size(), 2 * text.size());
  const TlsAddress address = tls_address(*link.node);
  const std::string token(reinterpret_cast<const char*>(address.token.data()),
                          address.token.size());
  for (const std::string& part : {secret, std::string("a header"), std::string("ALM1"), token,
                                  std::string("coordinator"), std::string("n1.pem")})
    EXPECT_EQ(seen.find(part), std::string::npos) << part;
}

TEST(TlsTransport, a_byte_changed_on_its_way_ends_the_connection) {
  for (const int direction : {0, 1}) {
    Link link;
    Relay relay(tls_address(*link.node).port,
                [&](int towards, size_t place, std::span<char> piece) {
                  constexpr size_t kPlace = 50'000;  // behind the handshake
                  if (towards == direction && place <= kPlace && kPlace < place + piece.size())
                    piece[kPlace - place] = static_cast<char>(piece[kPlace - place] ^ 1);
                  return true;
                });
    connect_through(link, relay);
    const std::string text = repeated("rows", 100'000);
    ASSERT_TRUE(send_text(*link.coordinator, link.to_node, text).ok());
    ASSERT_TRUE(send_text(*link.node, link.to_coordinator, text).ok());
    ASSERT_TRUE(link.run_until(
        [&] { return link.lost_node.size() == 1 && link.lost_coordinator.size() == 1; }));
    EXPECT_TRUE((direction == 0 ? link.at_node : link.at_coordinator).empty());
    EXPECT_EQ((direction == 0 ? link.lost_coordinator : link.lost_node)[0].code,
              ErrorCode::kInvalid);
  }
}

TEST(TlsTransport, a_connection_cut_in_a_message_gives_no_message) {
  Link link;
  Relay relay(tls_address(*link.node).port, [](int direction, size_t place, std::span<char>) {
    return direction != 0 || place < 50'000;
  });
  connect_through(link, relay);
  ASSERT_TRUE(send_text(*link.coordinator, link.to_node, repeated("rows", 5'000'000)).ok());
  ASSERT_TRUE(link.run_until(
      [&] { return link.lost_node.size() == 1 && link.lost_coordinator.size() == 1; }));
  EXPECT_TRUE(link.at_node.empty());
  EXPECT_EQ(link.lost_coordinator[0].code, ErrorCode::kUnavailable);
}

// ---- Who is let in

// Connects and expects that the dialling end is told why not, in these words.
void expect_refused(Link& link, const std::string& words, ErrorCode code = ErrorCode::kInvalid) {
  ASSERT_TRUE(link.run_until([&] { return !link.lost_node.empty(); }));
  EXPECT_EQ(link.lost_node[0].code, code) << link.lost_node[0].message;
  EXPECT_THAT(link.lost_node[0].message, HasSubstr(words));
  EXPECT_TRUE(link.at_node.empty());
}

TEST(TlsTransport, another_node_than_the_expected_one_is_refused) {
  Link link;
  link.connect(link.node->address(), "n2");
  expect_refused(link, "it is of n1, expected n2");
}

TEST(TlsTransport, whoever_is_none_of_the_peers_is_refused) {
  Link link(dialling(folders().ours, "other"));
  link.connect();
  expect_refused(link, "it refuses our certificate: our name");
}

TEST(TlsTransport, another_authority_is_refused) {
  Link link(dialling(folders().theirs));
  link.connect();
  expect_refused(link, "no authority in ca.pem");
}

TEST(TlsTransport, a_connection_without_the_token_is_refused) {
  Link link;
  link.connect(changed(*link.node, [](TlsAddress& address) { address.token[3] ^= std::byte{1}; }));
  expect_refused(link, "dial", ErrorCode::kUnavailable);
}

TEST(TlsTransport, a_closed_port_is_unavailable) {
  Link link;
  const auto address = link.node->address();
  link.connect(changed(*link.node, [](TlsAddress& address) { address.port = 1; }));
  expect_refused(link, "refused", ErrorCode::kUnavailable);
}

// The session was opened by one coordinator and the connection comes from another: whoever has a
// certificate can't take over what is somebody else's.
TEST(TlsTransport, a_connection_of_another_than_the_sessions_coordinator_is_dropped) {
  TlsOptions both = listening();
  both.peers = {"coordinator", "other"};
  Link link(dialling(), both);
  link.connect(link.node->address(), "n1", "other");
  ASSERT_TRUE(send_text(*link.coordinator, link.to_node, "x").ok());
  expect_refused(link, "lost n1", ErrorCode::kUnavailable);
}

// ---- Peers that are not ours

struct Raw {
  explicit Raw(uint16_t port, const std::string& name = "coordinator",
               const std::string& protocol = "atoll-data") {
    fd = stranger(port);
    context = SSL_CTX_new(TLS_client_method());
    if (!name.empty()) {
      const fs::path& dir = folders().ours;
      CHECK(SSL_CTX_use_certificate_chain_file(context, (dir / (name + ".pem")).c_str()) == 1);
      CHECK(SSL_CTX_use_PrivateKey_file(context, (dir / (name + ".key")).c_str(),
                                        SSL_FILETYPE_PEM) == 1);
    }
    ssl = SSL_new(context);
    std::string list(1, static_cast<char>(protocol.size()));
    list += protocol;
    SSL_set_alpn_protos(ssl, reinterpret_cast<const unsigned char*>(list.data()),
                        static_cast<unsigned>(list.size()));
    SSL_set_fd(ssl, fd);
  }
  ~Raw() {
    SSL_free(ssl);
    SSL_CTX_free(context);
    ::close(fd);
  }
  // As the greeting in docs/wire.md.
  void greet(uint64_t end_id, const TlsAddress& address) {
    std::string greeting = "ALK1";
    greeting.append(4, '\0');
    greeting.append(reinterpret_cast<const char*>(&end_id), sizeof end_id);
    greeting.append(reinterpret_cast<const char*>(address.token.data()), address.token.size());
    say(greeting);
  }
  void say(const std::string& bytes) {
    SSL_write(ssl, bytes.data(), static_cast<int>(bytes.size()));
  }
  bool hear(size_t bytes) {
    std::string got(bytes, '\0');
    return SSL_read(ssl, got.data(), static_cast<int>(bytes)) == static_cast<int>(bytes);
  }
  int fd = -1;
  SSL_CTX* context = nullptr;
  SSL* ssl = nullptr;
};

TEST(TlsTransport, what_is_no_message_ends_the_peer) {
  const auto prefix = [](const char* magic, uint32_t header, uint64_t payload) {
    std::string bytes(magic, 4);
    bytes.append(reinterpret_cast<const char*>(&header), sizeof header);
    bytes.append(reinterpret_cast<const char*>(&payload), sizeof payload);
    return bytes;
  };
  TlsOptions options = listening();
  options.message_bytes_max = 1000;
  auto node = make_tls_transport(options);
  struct Bad {
    std::string bytes, words;
  };
  for (const Bad& bad :
       {Bad{prefix("XLM1", 8, 8), "expected"}, Bad{prefix("ALM1", 4097, 0), "4097"},
        Bad{prefix("ALM1", 0, 1001), "1001"}, Bad{prefix("ALM1", 0, UINT64_MAX), "at most 1000"}}) {
    auto coordinator = make_tls_transport(dialling());  // for its address alone
    auto peer = node->connect(coordinator->address(), "coordinator");
    ASSERT_TRUE(peer.has_value());
    Raw raw(tls_address(*node).port);
    ASSERT_EQ(SSL_connect(raw.ssl), 1);
    raw.greet(decode_address(coordinator->address(), EndAddress::Kind::kTls)->end_id,
              tls_address(*node));
    ASSERT_TRUE(raw.hear(16));
    raw.say(bad.bytes);
    std::optional<Event> event;
    ASSERT_TRUE(eventually([&] {
      if (!event) event = node->poll();
      return event.has_value();
    }));
    ASSERT_EQ(event->kind, Event::Kind::kPeerLost);
    EXPECT_EQ(event->status.error().code, ErrorCode::kInvalid);
    EXPECT_THAT(event->status.error().message, HasSubstr(bad.words));
    EXPECT_TRUE(is_dropped(raw.fd));
  }
}

TEST(TlsTransport, strangers_are_dropped_and_cost_nobody_a_place) {
  TlsOptions patient = listening();
  patient.handshake_time = 1h;
  Link link(dialling(), patient);
  const uint16_t port = tls_address(*link.node).port;
  {
    Raw nobody(port, "");
    char byte;
    SSL_connect(nobody.ssl);
    EXPECT_LE(SSL_read(nobody.ssl, &byte, 1), 0);
    Raw node(port, "n2");  // a node's certificate doesn't dial
    SSL_connect(node.ssl);
    EXPECT_LE(SSL_read(node.ssl, &byte, 1), 0);
    Raw control(port, "coordinator", "atoll-control");
    EXPECT_LE(SSL_connect(control.ssl), 0);
    Raw without_token(port);
    ASSERT_EQ(SSL_connect(without_token.ssl), 1);
    without_token.greet(7, TlsAddress{});
    EXPECT_FALSE(without_token.hear(16));
  }
  for (const std::string& garbage :
       {std::string("GET / HTTP/1.1\r\n\r\n"), std::string(100'000, '\xff')}) {
    const int fd = stranger(port);
    [[maybe_unused]] auto sent = ::send(fd, garbage.data(), garbage.size(), MSG_NOSIGNAL);
    EXPECT_TRUE(is_dropped(fd));
    ::close(fd);
  }
  std::vector<int> mute;
  for (int i = 0; i < 100; ++i) mute.push_back(stranger(port));
  for (int i = 0; i < 100 - 32; ++i) EXPECT_TRUE(is_dropped(mute[i])) << i;
  link.connect();
  ASSERT_TRUE(send_text(*link.coordinator, link.to_node, "x").ok());
  EXPECT_TRUE(link.run_until([&] { return link.at_node.size() == 1; }));
  for (const int fd : mute) ::close(fd);
}

TEST(TlsTransport, a_slow_handshake_is_dropped_and_a_mute_node_given_up) {
  TlsOptions impatient = listening();
  impatient.handshake_time = 50ms;
  auto node = make_tls_transport(impatient);
  const int mute = stranger(tls_address(*node).port);
  EXPECT_TRUE(is_dropped(mute));
  ::close(mute);

  const int listener = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in at{};
  at.sin_family = AF_INET;
  at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof at;
  ASSERT_EQ(::bind(listener, reinterpret_cast<sockaddr*>(&at), size), 0);
  ASSERT_EQ(::listen(listener, 1), 0);
  ASSERT_EQ(::getsockname(listener, reinterpret_cast<sockaddr*>(&at), &size), 0);
  TlsOptions dials = dialling();
  dials.handshake_time = 50ms;
  Link link(dials);
  link.connect(
      changed(*link.node, [&](TlsAddress& address) { address.port = ntohs(at.sin_port); }));
  expect_refused(link, "no handshake within 50 ms", ErrorCode::kUnavailable);
  ::close(listener);
}

TEST(TlsTransport, a_port_that_is_taken_is_told) {
  auto node = make_tls_transport(listening());
  TlsOptions second = listening();
  second.listen = "127.0.0.1:" + std::to_string(tls_address(*node).port);
  try {
    make_tls_transport(second);
    ADD_FAILURE() << "listened twice";
  } catch (const LoadError& error) {
    EXPECT_THAT(error.what(), AllOf(HasSubstr(second.listen), HasSubstr("in use")));
  }
}

TEST(TlsTransport, listens_on_a_port_of_its_range) {
  const auto first = make_tls_transport(listening());
  const uint16_t taken = tls_address(*first).port;
  TlsOptions options = listening();
  options.ports = {taken, static_cast<uint16_t>(std::min(taken + 40, 65535))};
  const auto second = make_tls_transport(options);
  EXPECT_GT(tls_address(*second).port, taken);
  EXPECT_LE(tls_address(*second).port, options.ports.last);
  options.ports.last = taken;
  try {
    make_tls_transport(options);
    ADD_FAILURE() << "listened twice";
  } catch (const LoadError& error) {
    EXPECT_THAT(error.what(), HasSubstr(fmt::format("all ports of {0} to {0} are in use", taken)));
  }
}

}  // namespace
}  // namespace atl::transport
