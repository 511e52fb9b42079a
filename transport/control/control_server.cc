// The node's side of the control protocol: one kj thread, one NodeServer for each connection.
#include <arpa/inet.h>
#include <capnp/rpc-twoparty.h>
#include <fmt/core.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <algorithm>
#include <map>
#include <optional>
#include <random>
#include <set>

#include "base/check.h"
#include "base/log.h"
#include "transport/control/control.h"
#include "transport/control/control_convert.h"
#include "transport/control/control_loop.h"
#include "transport/control/tls_stream.h"
#include "transport/tls/stranger_log.h"

namespace atl::transport {

namespace {

// Larger than any plan (65536 ranges are 512 KiB); bounds what a stranger can make us read.
constexpr uint64_t kMessageWordsMax = (8u << 20) / 8;
constexpr int kNestingMax = 16;
constexpr int kConnectionsMax = 64;
// In their handshake: nobody yet, and cheap to be. More than coordinators ever are at once.
constexpr size_t kHandshakesMax = 32;
// New connections that are taken at once, and then one so often. Who connects over and over waits
// in the kernel's queue: the thread that takes them also answers heartbeats.
constexpr int kAcceptedAtOnce = 32;
constexpr auto kAcceptEvery = 10 * kj::MILLISECONDS;
constexpr auto kHelloTimeMax = 10 * kj::SECONDS;
// A coordinator pings all the time; TCP alone would hold the sessions of one that hangs for ever.
constexpr auto kSilenceMax = 60 * kj::SECONDS;
constexpr auto kSilenceLook = 5 * kj::SECONDS;
constexpr size_t kSessionsMax = 16;  // of a connection

capnp::ReaderOptions reader_options() {
  capnp::ReaderOptions options;
  options.traversalLimitInWords = kMessageWordsMax;
  options.nestingLimit = kNestingMax;
  return options;
}

std::string address_of_peer(kj::AsyncIoStream& stream) {
  sockaddr_storage address{};
  kj::uint bytes = sizeof address;
  stream.getpeername(reinterpret_cast<sockaddr*>(&address), &bytes);
  return text_of_address(&address, bytes);
}

// A coordinator's machine that vanishes without a word is noticed in about 11 s.
void set_keepalive(kj::AsyncIoStream& stream) {
  const auto set = [&](int level, int option, int value) {
    stream.setsockopt(level, option, &value, sizeof value);
  };
  set(SOL_SOCKET, SO_KEEPALIVE, 1);
  set(IPPROTO_TCP, TCP_KEEPIDLE, 5);
  set(IPPROTO_TCP, TCP_KEEPINTVL, 2);
  set(IPPROTO_TCP, TCP_KEEPCNT, 3);
}

constexpr size_t kInspectBytesMax = 64;  // of what is asked for

// Takes as long wherever they differ.
bool is_same(std::string_view ours, std::string_view theirs) {
  if (ours.size() != theirs.size()) return false;
  unsigned difference = 0;
  for (size_t i = 0; i < ours.size(); ++i) {
    difference |= static_cast<unsigned char>(ours[i]) ^ static_cast<unsigned char>(theirs[i]);
  }
  return difference == 0;
}

// What all connections share; loop thread only.
struct Shared {
  NodeControl& node;
  ControlSecurity security;      // neither keys nor secret: whoever is connected is known
  std::set<SessionId> sessions;  // open ones
  int num_connections = 0;
  std::string last_refusal;  // of a hello; "": the last one was taken
};

// The methods of one connection. Its sessions end with it.
class NodeServer final : public schema::Node::Server {
 public:
  // peer: by its certificate; "" without one.
  NodeServer(Shared& shared, std::string peer) : shared_(shared), peer_(std::move(peer)) {}
  ~NodeServer() noexcept(false) {
    for (const SessionId session : own_) close(session);
  }

  bool has_said_hello() const { return has_said_hello_; }
  uint64_t calls() const { return calls_; }

  // Before anything else is looked at: the secret.
  kj::Promise<void> hello(HelloContext context) override {
    const schema::Hello::Reader told = context.getParams().getHello();
    if (!knows_secret("a hello", told.getSecret())) {
      write_error(context.getResults().initError(), {ErrorCode::kInvalid, "refused"});
      return kj::READY_NOW;
    }
    ++calls_;
    auto hello = read_hello(told);
    if (hello && !peer_.empty()) hello->coordinator = peer_;
    auto reply = hello ? open(*hello) : Result<HelloReply>(hello.error());
    if (reply)
      write_reply(context.getResults().initReply(), *reply);
    else
      write_error(context.getResults().initError(), reply.error());
    log_refusal(hello ? hello->coordinator : peer_, reply ? "" : reply.error().message);
    return kj::READY_NOW;
  }

  kj::Promise<void> applyPlan(ApplyPlanContext context) override {
    auto plan = read_plan(context.getParams().getPlan());
    const SessionId session(context.getParams().getSession());
    Status status = check(session);
    if (status) status = plan ? shared_.node.apply_plan(session, *plan) : Status(plan.error());
    if (!status) write_error(context.getResults().initError(), status.error());
    return kj::READY_NOW;
  }

  kj::Promise<void> state(StateContext context) override {
    const SessionId session(context.getParams().getSession());
    if (const Status status = check(session); !status)
      write_error(context.getResults().initError(), status.error());
    else
      write_state(context.getResults().initState(), shared_.node.state(session));
    return kj::READY_NOW;
  }

  kj::Promise<void> stats(StatsContext context) override {
    const SessionId session(context.getParams().getSession());
    if (const Status status = check(session); !status)
      write_error(context.getResults().initError(), status.error());
    else
      write_stats(context.getResults().initStats(), shared_.node.stats(session));
    return kj::READY_NOW;
  }

  kj::Promise<void> inspect(InspectContext context) override {
    const auto params = context.getParams();
    if (!knows_secret("a look", params.getSecret())) {
      write_error(context.getResults().initError(), {ErrorCode::kInvalid, "refused"});
      return kj::READY_NOW;
    }
    ++calls_;
    const auto what = params.getWhat();
    const auto answer = what.size() > kInspectBytesMax
                            ? Result<std::string>(Error{ErrorCode::kInvalid, "too long"})
                            : shared_.node.inspect(std::string(what.begin(), what.size()));
    if (answer)
      context.getResults().setAnswer(answer->c_str());
    else
      write_error(context.getResults().initError(), answer.error());
    return kj::READY_NOW;
  }

  kj::Promise<void> trace(TraceContext context) override {
    const auto params = context.getParams();
    const SessionId session(params.getSession());
    const TraceAsk ask{params.getOn(), std::min(params.getEventsMax(), kTraceEventsMax)};
    const Status status = check(session);
    const auto trace =
        status ? shared_.node.trace(session, ask) : Result<NodeTrace>(status.error());
    if (trace)
      write_trace(context.getResults().initTrace(), *trace);
    else
      write_error(context.getResults().initError(), trace.error());
    return kj::READY_NOW;
  }

  kj::Promise<void> closeSession(CloseSessionContext context) override {
    const SessionId session(context.getParams().getSession());
    if (const Status status = check(session); !status) {
      write_error(context.getResults().initError(), status.error());
    } else {
      own_.erase(session);
      close(session);
    }
    return kj::READY_NOW;
  }

  kj::Promise<void> ping(PingContext) override {
    ++calls_;
    return kj::READY_NOW;
  }

  kj::Promise<void> stop(StopContext context) override {
    if (own_.empty())
      write_error(context.getResults().initError(),
                  {ErrorCode::kInvalid, "stop is for a connection with an open session"});
    else if (own_.size() < shared_.sessions.size())
      write_error(context.getResults().initError(),
                  {ErrorCode::kInvalid, "another coordinator has a session here: not stopped"});
    else
      shared_.node.stop();
    return kj::READY_NOW;
  }

 private:
  // On this machine, too, it is to be seen why a node does nothing. A coordinator dials again and
  // again: what is the same is said once.
  void log_refusal(const std::string& peer, const std::string& why) {
    if (why != shared_.last_refusal && !why.empty()) {
      log_warn("control: refused coordinator {}: {}", peer, why);
    }
    shared_.last_refusal = why;
  }

  // Whoever has a certificate of the right name needs none.
  bool knows_secret(const char* asking, capnp::Text::Reader theirs) const {
    const std::string& ours = shared_.security.secret;
    if (ours.empty() || is_same(ours, {theirs.begin(), theirs.size()})) return true;
    log_warn("control: refused {} that {} secret", asking,
             theirs.size() ? "has another" : "has no");
    return false;
  }
  Result<HelloReply> open(const Hello& hello) {
    if (shared_.sessions.contains(hello.session))
      return Error{ErrorCode::kInvalid,
                   fmt::format("session {:016x} is open already", hello.session.value)};
    if (own_.size() >= kSessionsMax)
      return Error{ErrorCode::kOverloaded,
                   fmt::format("{} sessions are open on this connection, at most {}", own_.size(),
                               kSessionsMax)};
    auto reply = shared_.node.hello(hello);
    if (!reply) return reply;
    shared_.sessions.insert(hello.session);
    own_.insert(hello.session);
    has_said_hello_ = true;
    return reply;
  }

  Status check(SessionId session) {
    ++calls_;
    if (own_.contains(session)) return {};
    return Error{ErrorCode::kInvalid,
                 fmt::format("session {:016x} was not opened on this connection", session.value)};
  }

  void close(SessionId session) noexcept {
    shared_.sessions.erase(session);
    shared_.node.close_session(session);
  }

  Shared& shared_;
  const std::string peer_;
  std::set<SessionId> own_;
  bool has_said_hello_ = false;
  uint64_t calls_ = 0;
};

struct Connection {
  Connection(Shared& shared, kj::Own<kj::AsyncIoStream> stream_in, std::string peer)
      : shared(shared),
        stream(kj::mv(stream_in)),
        network(*stream, capnp::rpc::twoparty::Side::SERVER, reader_options()) {
    auto server_own = kj::heap<NodeServer>(shared, std::move(peer));
    server = server_own.get();
    rpc.emplace(capnp::makeRpcServer(network, schema::Node::Client(kj::mv(server_own))));
    ++shared.num_connections;
  }
  ~Connection() { --shared.num_connections; }

  Shared& shared;
  kj::Own<kj::AsyncIoStream> stream;
  capnp::TwoPartyVatNetwork network;
  NodeServer* server = nullptr;  // lives as long as rpc
  std::optional<capnp::RpcSystem<capnp::rpc::twoparty::VatId>> rpc;
};

// Accepts until it is destroyed.
class Acceptor final : private kj::TaskSet::ErrorHandler {
 public:
  Acceptor(NodeControl& node, const ControlSecurity& security, kj::ConnectionReceiver& receiver,
           kj::Timer& timer)
      : shared_{node, security, {}, 0, {}}, receiver_(receiver), timer_(timer), tasks_(*this) {
    tasks_.add(accept());
  }

 private:
  kj::Promise<void> accept() {
    return receiver_.accept()
        .then(
            [this](kj::Own<kj::AsyncIoStream>&& stream) -> kj::Promise<void> {
              set_keepalive(*stream);
              if (shared_.security.keys)
                tasks_.add(greet(kj::mv(stream)));
              else
                serve(kj::mv(stream), "");
              return kj::READY_NOW;
            },
            [this](kj::Exception&& e) -> kj::Promise<void> {
              // Out of descriptors, say: some will be closed.
              log_warn("control: accept: {}", e.getDescription().cStr());
              return timer_.afterDelay(100 * kj::MILLISECONDS);
            })
        .then([this] { return paced(); })
        .then([this] { return accept(); });
  }

  // Resolves when another connection may be taken.
  kj::Promise<void> paced() {
    const kj::TimePoint now = timer_.now();
    paid_until_ = kj::max(paid_until_, now) + kAcceptEvery;
    const kj::TimePoint due = paid_until_ - kAcceptedAtOnce * kAcceptEvery;
    if (due <= now) return kj::READY_NOW;
    return timer_.atTime(due);
  }

  // From TLS's handshake on; ends early when its time is over or newer ones need its place.
  kj::Promise<void> greet(kj::Own<kj::AsyncIoStream> stream) {
    const std::string who = address_of_peer(*stream);
    if (handshakes_.size() >= kHandshakesMax) {
      strangers_.tell("the oldest one", "too many are in their handshake");
      handshakes_.begin()->second->fulfill();
      handshakes_.erase(handshakes_.begin());
    }
    auto drop = kj::newPromiseAndFulfiller<void>();
    const uint64_t number = next_handshake_++;
    handshakes_.emplace(number, kj::mv(drop.fulfiller));
    const auto time = shared_.security.handshake_time;
    auto late = timer_.afterDelay(time.count() * kj::MILLISECONDS).then([this, who, time] {
      strangers_.tell(who, fmt::format("no handshake within {} ms", time.count()));
    });
    return tls_accept(kj::mv(stream), *shared_.security.keys, shared_.security.coordinators)
        .then([this](TlsStream&& accepted) { serve(kj::mv(accepted.stream), accepted.peer); },
              [this, who](kj::Exception&& e) { strangers_.tell(who, e.getDescription().cStr()); })
        .exclusiveJoin(kj::mv(late))
        .exclusiveJoin(kj::mv(drop.promise))
        .then([this, number] { handshakes_.erase(number); });
  }

  void serve(kj::Own<kj::AsyncIoStream> stream, std::string peer) {
    if (shared_.num_connections >= kConnectionsMax) {
      log_warn("control: {} connections are open, dropped one more", shared_.num_connections);
      return;
    }
    auto connection = kj::heap<Connection>(shared_, kj::mv(stream), std::move(peer));
    Connection& c = *connection;
    auto silence = timer_.afterDelay(kHelloTimeMax).then([this, &c]() -> kj::Promise<void> {
      if (c.server->has_said_hello()) return await_silence(c, c.server->calls(), 0 * kj::SECONDS);
      log_warn("control: dropped a connection that said no good hello in 10 s");
      return kj::READY_NOW;
    });
    tasks_.add(c.network.onDisconnect().exclusiveJoin(kj::mv(silence)).attach(kj::mv(connection)));
  }

  // Resolves when no call has come for long.
  kj::Promise<void> await_silence(Connection& c, uint64_t calls, kj::Duration silence) {
    if (silence >= kSilenceMax) {
      log_warn("control: dropped a connection that said nothing for a minute");
      return kj::READY_NOW;
    }
    return timer_.afterDelay(kSilenceLook).then([this, &c, calls, silence] {
      const uint64_t now = c.server->calls();
      return await_silence(c, now, now == calls ? silence + kSilenceLook : 0 * kj::SECONDS);
    });
  }

  void taskFailed(kj::Exception&& e) override {
    log_warn("control: dropped a connection: {}", e.getDescription().cStr());
  }

  Shared shared_;
  kj::ConnectionReceiver& receiver_;
  kj::Timer& timer_;
  kj::TimePoint paid_until_ = timer_.now();  // one kAcceptEvery for each that was taken
  uint64_t next_handshake_ = 0;
  std::map<uint64_t, kj::Own<kj::PromiseFulfiller<void>>> handshakes_;  // each ends its own
  StrangerLog strangers_{"control"};
  kj::TaskSet tasks_;
};

class Server final : public ControlServer {
 public:
  Server(const std::string& listen, const ControlSecurity& security, NodeControl& node)
      : loop_([this, &listen, &security, &node](kj::AsyncIoContext& io, kj::Promise<void> stopped,
                                                const std::function<void()>& ready) {
          auto address = io.provider->getNetwork().parseAddress(listen).wait(io.waitScope);
          auto receiver = address->listen();
          port_ = static_cast<uint16_t>(receiver->getPort());
          Acceptor acceptor(node, security, *receiver, io.provider->getTimer());
          ready();
          stopped.wait(io.waitScope);
        }) {}

  ~Server() noexcept override = default;

  uint16_t port() const override { return port_; }

 private:
  uint16_t port_ = 0;
  ControlLoop loop_;
};

// One connection, whose end is the node's, too.
class PairServer final : public ControlServer {
 public:
  PairServer(int fd, NodeControl& node)
      : loop_([fd, &node](kj::AsyncIoContext& io, kj::Promise<void> stopped,
                          const std::function<void()>& ready) {
          Shared shared{node, {}, {}, 0, {}};
          std::optional<Connection> connection;
          connection.emplace(
              shared,
              io.lowLevelProvider->wrapSocketFd(fd, kj::LowLevelAsyncIoProvider::TAKE_OWNERSHIP),
              "");
          ready();
          auto ended = connection->network.onDisconnect().then(
              [] {},
              [](kj::Exception&& e) { log_debug("control: {}", e.getDescription().cStr()); });
          auto stop_node = ended.then([&]() -> kj::Promise<void> {
            log_debug("control: the coordinator has gone: this node ends");
            node.stop();
            return kj::NEVER_DONE;
          });
          stopped.exclusiveJoin(kj::mv(stop_node)).wait(io.waitScope);
        }) {}

  ~PairServer() noexcept override = default;

  uint16_t port() const override { return 0; }

 private:
  ControlLoop loop_;
};

}  // namespace

std::string random_secret() {
  std::random_device random;
  std::string secret;
  for (int i = 0; i < 4; ++i) secret += fmt::format("{:08x}", random());
  return secret;
}

bool is_loopback(std::string_view host) {
  if (host == "localhost" || host == "::1" || host == "[::1]") return true;
  in_addr address;
  return inet_pton(AF_INET, std::string(host).c_str(), &address) == 1 &&
         ntohl(address.s_addr) >> 24 == 127;
}

namespace {

// Of kj's "bind(sockfd, &addr.generic, addrlen): Address already in use; toString() = ..." what the
// system said.
std::string reason_of_call(std::string_view text) {
  const size_t call = text.find("): ");
  if (call == std::string_view::npos) return std::string(text);
  const std::string_view said = text.substr(call + 3);
  return std::string(said.substr(0, said.find(';')));
}

}  // namespace

std::unique_ptr<ControlServer> serve_control(const std::string& listen,
                                             const ControlSecurity& security, NodeControl& node) {
  CHECK(security.keys != nullptr || !security.secret.empty());
  if (!security.keys && !is_loopback(std::string_view(listen).substr(0, listen.rfind(':'))))
    throw LoadError(
        fmt::format("cannot listen on {}: other machines can reach it, and without keys anybody "
                    "could command this node; expected keys ('atoll keys' makes them) or an "
                    "address of this machine alone, 127.x.x.x, [::1] or localhost",
                    listen));
  try {
    return std::make_unique<Server>(listen, security, node);
  } catch (const std::exception& e) {
    throw LoadError(fmt::format("cannot listen on {}: {}; choose another address or port", listen,
                                reason_of_call(e.what())));
  }
}

std::unique_ptr<ControlServer> serve_control_over(int fd, NodeControl& node) {
  try {
    return std::make_unique<PairServer>(fd, node);
  } catch (const std::exception& e) {
    throw LoadError(
        fmt::format("cannot be controlled over descriptor {}: {}; expected a connected "
                    "stream socket",
                    fd, e.what()));
  }
}

}  // namespace atl::transport
