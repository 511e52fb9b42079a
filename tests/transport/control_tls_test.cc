// Control over TLS: who gets in, who is told what, and what strangers can do.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <openssl/err.h>

#include <filesystem>
#include <fstream>
#include <thread>

#include "tests/support/temp_dir.h"
#include "tests/transport/fake_node.h"
#include "tests/transport/test_keys.h"
#include "transport/control/control.h"
#include "transport/tls/make_keys.h"
#include "transport/tls/tls_keys.h"

namespace atl::transport {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;
using testing::AllOf;
using testing::HasSubstr;

// Made once: two clusters that know nothing of each other.
struct Folders {
  test::TempDir temp;
  fs::path ours = temp.path() / "ours", theirs = temp.path() / "theirs";
  // Of theirs, with both authorities: trusts ours and is not trusted.
  fs::path trusting = temp.path() / "trusting";
  Folders() {
    make_keys({ours, {"n1", "n2"}, {"coordinator", "other", "late"}, 365});
    make_keys({theirs, {"n1"}, {"coordinator"}, 365});
    fs::copy(theirs, trusting);
    std::ofstream(trusting / "ca.pem", std::ios::app) << test::read_file(ours / "ca.pem");
  }
};
const Folders& folders() {
  static const Folders made;
  return made;
}

ControlSecurity security_of(const fs::path& dir, const std::string& name) {
  ControlSecurity security;
  security.keys = TlsKeys::load(dir, name);
  return security;
}

class ControlTls : public testing::Test {
 protected:
  void serve(ControlSecurity security = security_of(folders().ours, "n1")) {
    server = serve_control("127.0.0.1:0", security, node);
  }
  std::string address() const { return "127.0.0.1:" + std::to_string(server->port()); }
  Result<std::unique_ptr<NodeClient>> dial(const fs::path& dir, const std::string& own,
                                           const std::string& name = "n1") {
    return dial_node(address(), name, security_of(dir, own), kPatience);
  }
  // The error of a dial that must not succeed.
  Error refusal(const fs::path& dir, const std::string& own, const std::string& name = "n1") {
    auto client = dial(dir, own, name);
    EXPECT_FALSE(client.has_value());
    return client ? Error{} : client.error();
  }
  void expect_serves() {
    auto client = dial(folders().ours, "coordinator");
    ASSERT_TRUE(client.has_value()) << client.error().message;
    EXPECT_TRUE((*client)->hello(test_hello(next_session++)).has_value());
  }

  FakeNode node;
  std::unique_ptr<ControlServer> server;
  uint64_t next_session = 100;
};

TEST_F(ControlTls, a_session_from_hello_to_stop) {
  serve();
  auto client = dial(folders().ours, "coordinator");
  ASSERT_TRUE(client.has_value()) << client.error().message;
  const Hello hello = test_hello();
  auto reply = (*client)->hello(hello);
  ASSERT_TRUE(reply.has_value()) << reply.error().message;
  EXPECT_EQ(reply->node, "n1");
  // More than one record.
  Plan plan{Epoch(3), {}};
  for (uint16_t tile = 0; tile < 10000; tile += 2)
    plan.tiles.push_back({tile, static_cast<uint16_t>(tile + 1)});
  const Status applied = (*client)->apply_plan(hello.session, plan);
  ASSERT_TRUE(applied.ok()) << applied.error().message;
  {
    const std::lock_guard lock(node.mutex);
    EXPECT_EQ(node.open[hello.session].tiles, plan.tiles);
    // Not what it calls itself.
    EXPECT_EQ(node.last_hello.coordinator, "coordinator");
    EXPECT_EQ(node.last_hello.identity, hello.identity);
  }
  (*client)->send_heartbeats(1ms);
  EXPECT_TRUE(eventually([&] { return (*client)->pulse().heartbeats >= 5; }));
  EXPECT_TRUE((*client)->stop().ok());
  EXPECT_TRUE(eventually([&] {
    const std::lock_guard lock(node.mutex);
    return node.is_stopped;
  }));
  client->reset();
  EXPECT_TRUE(node.wait_until_closed(hello.session));
}

TEST_F(ControlTls, an_end_is_noticed_on_the_other_side) {
  serve();
  auto client = dial(folders().ours, "coordinator");
  ASSERT_TRUE(client.has_value());
  server.reset();
  EXPECT_TRUE(eventually([&] { return !(*client)->pulse().connected; }));
  const auto reply = (*client)->hello(test_hello());
  ASSERT_FALSE(reply.has_value());
  EXPECT_EQ(reply.error().code, ErrorCode::kUnavailable);
}

TEST_F(ControlTls, a_node_of_another_authority_is_refused) {
  serve();
  const Error error = refusal(folders().theirs, "coordinator");
  EXPECT_EQ(error.code, ErrorCode::kInvalid);
  EXPECT_THAT(error.message, AllOf(HasSubstr(address()), HasSubstr("its certificate is refused"),
                                   HasSubstr("no authority in ca.pem")));
  expect_serves();
}

TEST_F(ControlTls, a_coordinator_of_another_authority_is_refused_and_told) {
  serve();
  const Error error = refusal(folders().trusting, "coordinator");
  EXPECT_EQ(error.code, ErrorCode::kInvalid);
  EXPECT_THAT(error.message, HasSubstr("it refuses our certificate: our authority"));
  {
    const std::lock_guard lock(node.mutex);
    EXPECT_TRUE(node.open.empty());
  }
  expect_serves();
}

TEST_F(ControlTls, another_node_than_the_expected_one_is_refused) {
  serve();
  const Error error = refusal(folders().ours, "coordinator", "n2");
  EXPECT_EQ(error.code, ErrorCode::kInvalid);
  EXPECT_THAT(error.message, HasSubstr("it is of n1, expected n2"));
  // Names are not patterns.
  EXPECT_FALSE(dial(folders().ours, "coordinator", "*").has_value());
}

TEST_F(ControlTls, a_name_that_is_none_of_the_coordinators_is_refused) {
  serve();
  const Error error = refusal(folders().ours, "other");
  EXPECT_EQ(error.code, ErrorCode::kInvalid);
  EXPECT_THAT(error.message, HasSubstr("it refuses our certificate: our name"));

  ControlSecurity both = security_of(folders().ours, "n1");
  both.coordinators = {"coordinator", "other"};
  serve(both);
  auto client = dial(folders().ours, "other");
  ASSERT_TRUE(client.has_value()) << client.error().message;
  ASSERT_TRUE((*client)->hello(test_hello()).has_value());
  {
    const std::lock_guard lock(node.mutex);
    EXPECT_EQ(node.last_hello.coordinator, "other");
  }
  expect_serves();
}

// Whoever breaks into a node can't command the others, even where the names allowed it.
TEST_F(ControlTls, a_nodes_certificate_is_no_coordinators) {
  ControlSecurity careless = security_of(folders().ours, "n1");
  careless.coordinators = {"coordinator", "n2"};
  serve(careless);
  EXPECT_EQ(refusal(folders().ours, "n2").code, ErrorCode::kInvalid);
  expect_serves();
}

TEST_F(ControlTls, a_coordinators_certificate_is_no_nodes) {
  serve(security_of(folders().ours, "other"));
  const Error error = refusal(folders().ours, "coordinator", "other");
  EXPECT_EQ(error.code, ErrorCode::kInvalid);
  EXPECT_THAT(error.message, HasSubstr("not made for this side"));
}

TEST_F(ControlTls, a_node_that_calls_itself_otherwise_is_refused) {
  serve(security_of(folders().ours, "n2"));  // whose FakeNode says n1
  auto client = dial(folders().ours, "coordinator", "n2");
  ASSERT_TRUE(client.has_value()) << client.error().message;
  const auto reply = (*client)->hello(test_hello());
  ASSERT_FALSE(reply.has_value());
  EXPECT_THAT(reply.error().message, AllOf(HasSubstr("n1"), HasSubstr("n2")));
}

// While the node runs: a new authority beside the old one, then the node's new certificate, then
// the old authority is taken away. What can't be used changes nothing.
TEST_F(ControlTls, certificates_are_renewed_while_all_goes_on) {
  const fs::path dir = folders().temp.path() / "renewed";
  fs::copy(folders().ours, dir);
  serve(security_of(dir, "n1"));
  expect_serves();

  const auto dial_theirs = [&] { return dial(folders().trusting, "coordinator").has_value(); };
  EXPECT_FALSE(dial_theirs());
  test::write_file(dir / "ca.pem", test::read_file(folders().ours / "ca.pem") +
                                       test::read_file(folders().theirs / "ca.pem"));
  EXPECT_TRUE(eventually(dial_theirs));
  expect_serves();

  test::write_file(dir / "n1.pem", "half a file");
  EXPECT_TRUE(dial_theirs());
  std::this_thread::sleep_for(1100ms);  // it has looked
  EXPECT_TRUE(dial_theirs());
  expect_serves();

  for (const char* file : {"ca.pem", "n1.pem", "n1.key"})
    fs::copy_file(folders().theirs / file, dir / file, fs::copy_options::overwrite_existing);
  EXPECT_TRUE(eventually([&] { return dial(folders().theirs, "coordinator").has_value(); }));
  EXPECT_FALSE(dial(folders().ours, "coordinator").has_value());
}

TEST_F(ControlTls, needs_keys_beyond_this_machine) {
  ControlSecurity in_the_clear;
  in_the_clear.secret = random_secret();
  try {
    serve_control("0.0.0.0:0", in_the_clear, node);
    ADD_FAILURE() << "listens to everybody without keys";
  } catch (const LoadError& error) {
    EXPECT_THAT(error.what(), AllOf(HasSubstr("0.0.0.0"), HasSubstr("atoll keys")));
  }
  server = serve_control("0.0.0.0:0", security_of(folders().ours, "n1"), node);
  expect_serves();
}

// ---- Peers that are not ours: OpenSSL by hand, or no TLS at all

// A client that can be as bad as it likes. "" for dir: without a certificate.
class RawClient {
 public:
  RawClient(uint16_t port, const fs::path& dir, const std::string& name, int version) {
    fd_ = stranger(port);
    context_ = SSL_CTX_new(TLS_client_method());
    SSL_CTX_set_min_proto_version(context_, version);
    SSL_CTX_set_max_proto_version(context_, version);
    if (!name.empty()) {
      CHECK(SSL_CTX_use_certificate_chain_file(context_, (dir / (name + ".pem")).c_str()) == 1);
      CHECK(SSL_CTX_use_PrivateKey_file(context_, (dir / (name + ".key")).c_str(),
                                        SSL_FILETYPE_PEM) == 1);
    }
    ssl_ = SSL_new(context_);
    static constexpr unsigned char kProtocols[] =
        "\x0d"
        "atoll-control";
    SSL_set_alpn_protos(ssl_, kProtocols, sizeof kProtocols - 1);
    SSL_set_fd(ssl_, fd_);
  }
  ~RawClient() {
    SSL_free(ssl_);
    SSL_CTX_free(context_);
    ::close(fd_);
  }

  // What is heard after the handshake; "welcome" for the server's byte, else OpenSSL's reason.
  std::string outcome() {
    ERR_clear_error();
    char byte = 0;
    if (SSL_connect(ssl_) == 1 && SSL_read(ssl_, &byte, 1) == 1) return "welcome";
    const unsigned long code = ERR_peek_error();
    const char* reason = code ? ERR_reason_error_string(code) : nullptr;
    return reason ? reason : "ended";
  }
  int fd() const { return fd_; }
  SSL* ssl() { return ssl_; }

 private:
  int fd_ = -1;
  SSL_CTX* context_ = nullptr;
  SSL* ssl_ = nullptr;
};

TEST_F(ControlTls, a_raw_client_with_good_papers_gets_in) {
  serve();
  RawClient client(server->port(), folders().ours, "coordinator", TLS1_3_VERSION);
  EXPECT_EQ(client.outcome(), "welcome");
  // And is dropped for what is no RPC.
  std::string garbage(100000, '\xff');
  SSL_write(client.ssl(), garbage.data(), static_cast<int>(garbage.size()));
  EXPECT_TRUE(is_dropped(client.fd()));
  expect_serves();
}

TEST_F(ControlTls, a_client_without_a_certificate_is_refused) {
  serve();
  RawClient client(server->port(), "", "", TLS1_3_VERSION);
  EXPECT_THAT(client.outcome(), HasSubstr("certificate required"));
  EXPECT_TRUE(is_dropped(client.fd()));
  expect_serves();
}

TEST_F(ControlTls, an_expired_certificate_is_refused) {
  ControlSecurity with_late = security_of(folders().ours, "n1");
  with_late.coordinators = {"coordinator", "late"};
  serve(with_late);
  let_expire(folders().ours, "late");
  RawClient client(server->port(), folders().ours, "late", TLS1_3_VERSION);
  EXPECT_THAT(client.outcome(), HasSubstr("certificate expired"));
  EXPECT_TRUE(is_dropped(client.fd()));
  expect_serves();
}

TEST_F(ControlTls, an_older_tls_is_refused) {
  serve();
  RawClient client(server->port(), folders().ours, "coordinator", TLS1_2_VERSION);
  EXPECT_THAT(client.outcome(), HasSubstr("protocol version"));
  EXPECT_TRUE(is_dropped(client.fd()));
  expect_serves();
}

// A server by hand, of one connection; what the dialling side says of it.
Error dial_raw_server(const std::function<void(int fd)>& serve_one) {
  const int listener = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in at{};
  at.sin_family = AF_INET;
  at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof at;
  EXPECT_EQ(::bind(listener, reinterpret_cast<sockaddr*>(&at), size), 0);
  EXPECT_EQ(::listen(listener, 1), 0);
  EXPECT_EQ(::getsockname(listener, reinterpret_cast<sockaddr*>(&at), &size), 0);
  std::thread server([&] {
    const int fd = ::accept(listener, nullptr, nullptr);
    serve_one(fd);
    ::close(fd);
  });
  auto client = dial_node("127.0.0.1:" + std::to_string(ntohs(at.sin_port)), "n1",
                          security_of(folders().ours, "coordinator"), kPatience);
  EXPECT_FALSE(client.has_value());
  server.join();
  ::close(listener);
  return client ? Error{} : client.error();
}

TEST_F(ControlTls, a_node_with_an_expired_certificate_is_refused) {
  const fs::path dir = folders().temp.path() / "expired";
  if (!fs::exists(dir)) fs::copy(folders().ours, dir);
  let_expire(dir, "n1");
  const Error error = dial_raw_server([&](int fd) {
    SSL_CTX* context = SSL_CTX_new(TLS_server_method());
    SSL_CTX_use_certificate_chain_file(context, (dir / "n1.pem").c_str());
    SSL_CTX_use_PrivateKey_file(context, (dir / "n1.key").c_str(), SSL_FILETYPE_PEM);
    SSL* ssl = SSL_new(context);
    SSL_set_fd(ssl, fd);
    SSL_accept(ssl);
    SSL_free(ssl);
    SSL_CTX_free(context);
  });
  EXPECT_EQ(error.code, ErrorCode::kInvalid);
  EXPECT_THAT(error.message,
              AllOf(HasSubstr("its certificate is refused: it expired on"), HasSubstr("clock")));
}

TEST_F(ControlTls, a_peer_that_speaks_no_tls_is_told_from_one_that_ends) {
  const Error plain = dial_raw_server([](int fd) {
    const std::string text = "HTTP/1.1 400 Bad Request\r\n\r\n";
    [[maybe_unused]] auto sent = ::send(fd, text.data(), text.size(), MSG_NOSIGNAL);
    EXPECT_TRUE(is_dropped(fd));
  });
  EXPECT_EQ(plain.code, ErrorCode::kInvalid);
  EXPECT_THAT(plain.message, HasSubstr("it speaks no TLS"));
  const Error mute = dial_raw_server([](int fd) { ::shutdown(fd, SHUT_RDWR); });
  EXPECT_EQ(mute.code, ErrorCode::kUnavailable);
  EXPECT_THAT(mute.message, HasSubstr("in the middle of the handshake"));
}

TEST_F(ControlTls, a_node_in_the_clear_and_a_coordinator_with_keys_don_t_meet) {
  ControlSecurity in_the_clear;
  in_the_clear.secret = random_secret();
  server = serve_control("127.0.0.1:0", in_the_clear, node);
  const Error error = refusal(folders().ours, "coordinator");
  EXPECT_THAT(error.message, AnyOf(HasSubstr("--keys"), HasSubstr("no TLS")));
}

TEST_F(ControlTls, a_coordinator_without_keys_gets_nothing_from_a_node_with_them) {
  serve();
  ControlSecurity in_the_clear;
  in_the_clear.secret = random_secret();
  auto client = dial_node(address(), "n1", in_the_clear, kPatience);
  ASSERT_TRUE(client.has_value());
  const auto reply = (*client)->hello(test_hello());
  ASSERT_FALSE(reply.has_value());
  EXPECT_EQ(reply.error().code, ErrorCode::kUnavailable);
  {
    const std::lock_guard lock(node.mutex);
    EXPECT_TRUE(node.open.empty());
  }
  expect_serves();
}

TEST_F(ControlTls, garbage_is_dropped) {
  serve();
  std::string hello_of_2_gib = "\x16\x03\x01\xff\xff\x01\x7f\xff\xff";
  for (const std::string& garbage :
       {std::string("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"), std::string(100000, '\xff'),
        std::string(100, '\0'), hello_of_2_gib + std::string(70000, 'x')}) {
    const int fd = stranger(server->port());
    [[maybe_unused]] auto sent = ::send(fd, garbage.data(), garbage.size(), MSG_NOSIGNAL);
    ::shutdown(fd, SHUT_WR);
    EXPECT_TRUE(is_dropped(fd)) << garbage.size() << " bytes";
    ::close(fd);
  }
  expect_serves();
}

TEST_F(ControlTls, a_slow_handshake_is_dropped) {
  ControlSecurity impatient = security_of(folders().ours, "n1");
  impatient.handshake_time = 50ms;
  serve(impatient);
  const int mute = stranger(server->port()), slow = stranger(server->port());
  EXPECT_EQ(::send(slow, "\x16\x03\x01\x02", 4, MSG_NOSIGNAL), 4);
  EXPECT_TRUE(is_dropped(mute));
  EXPECT_TRUE(is_dropped(slow));
  ::close(mute);
  ::close(slow);
}

// They have no more than 32 places, and one with keys always finds one.
TEST_F(ControlTls, many_handshakes_keep_nobody_out) {
  ControlSecurity patient = security_of(folders().ours, "n1");
  patient.handshake_time = 1h;
  serve(patient);
  std::vector<int> strangers;
  for (int i = 0; i < 200; ++i) strangers.push_back(stranger(server->port()));
  // The first ones had to go.
  for (int i = 0; i < 200 - 32; ++i) EXPECT_TRUE(is_dropped(strangers[i])) << i;
  expect_serves();
  expect_serves();
  for (const int fd : strangers) ::close(fd);
}

}  // namespace
}  // namespace atl::transport
