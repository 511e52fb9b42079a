// The node's side of the control protocol: one kj thread, one NodeServer for each connection.
#include <capnp/rpc-twoparty.h>
#include <fmt/core.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <optional>
#include <set>

#include "base/log.h"
#include "transport/control/control.h"
#include "transport/control/control_convert.h"
#include "transport/control/control_loop.h"

namespace atl::transport {

namespace {

// Larger than any plan (65536 ranges are 512 KiB); bounds what a stranger can make us read.
constexpr uint64_t kMessageWordsMax = (8u << 20) / 8;
constexpr int kNestingMax = 16;
constexpr int kConnectionsMax = 64;
constexpr auto kHelloTimeMax = 10 * kj::SECONDS;

capnp::ReaderOptions reader_options() {
  capnp::ReaderOptions options;
  options.traversalLimitInWords = kMessageWordsMax;
  options.nestingLimit = kNestingMax;
  return options;
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

// What all connections share; loop thread only.
struct Shared {
  NodeControl& node;
  std::set<SessionId> sessions;  // open ones
  int num_connections = 0;
};

// The methods of one connection. Its sessions end with it.
class NodeServer final : public schema::Node::Server {
 public:
  explicit NodeServer(Shared& shared) : shared_(shared) {}
  ~NodeServer() noexcept(false) {
    for (const SessionId session : own_) close(session);
  }

  bool has_said_hello() const { return has_said_hello_; }

  kj::Promise<void> hello(HelloContext context) override {
    auto hello = read_hello(context.getParams().getHello());
    auto reply = hello ? open(*hello) : Result<HelloReply>(hello.error());
    if (reply)
      write_reply(context.getResults().initReply(), *reply);
    else
      write_error(context.getResults().initError(), reply.error());
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

  kj::Promise<void> ping(PingContext) override { return kj::READY_NOW; }

  kj::Promise<void> stop(StopContext context) override {
    if (own_.empty())
      write_error(context.getResults().initError(),
                  {ErrorCode::kInvalid, "stop is for a connection with an open session"});
    else
      shared_.node.stop();
    return kj::READY_NOW;
  }

 private:
  Result<HelloReply> open(const Hello& hello) {
    if (shared_.sessions.contains(hello.session))
      return Error{ErrorCode::kInvalid,
                   fmt::format("session {:016x} is open already", hello.session.value)};
    auto reply = shared_.node.hello(hello);
    if (!reply) return reply;
    shared_.sessions.insert(hello.session);
    own_.insert(hello.session);
    has_said_hello_ = true;
    return reply;
  }

  Status check(SessionId session) const {
    if (own_.contains(session)) return {};
    return Error{ErrorCode::kInvalid,
                 fmt::format("session {:016x} was not opened on this connection", session.value)};
  }

  void close(SessionId session) noexcept {
    shared_.sessions.erase(session);
    shared_.node.close_session(session);
  }

  Shared& shared_;
  std::set<SessionId> own_;
  bool has_said_hello_ = false;
};

struct Connection {
  Connection(Shared& shared, kj::Own<kj::AsyncIoStream> stream_in)
      : shared(shared),
        stream(kj::mv(stream_in)),
        network(*stream, capnp::rpc::twoparty::Side::SERVER, reader_options()) {
    auto server_own = kj::heap<NodeServer>(shared);
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
  Acceptor(NodeControl& node, kj::ConnectionReceiver& receiver, kj::Timer& timer)
      : shared_{node, {}, 0}, receiver_(receiver), timer_(timer), tasks_(*this) {
    tasks_.add(accept());
  }

 private:
  kj::Promise<void> accept() {
    return receiver_.accept()
        .then(
            [this](kj::Own<kj::AsyncIoStream>&& stream) -> kj::Promise<void> {
              serve(kj::mv(stream));
              return kj::READY_NOW;
            },
            [this](kj::Exception&& e) -> kj::Promise<void> {
              // Out of descriptors, say: some will be closed.
              log_warn("control: accept: {}", e.getDescription().cStr());
              return timer_.afterDelay(100 * kj::MILLISECONDS);
            })
        .then([this] { return accept(); });
  }

  void serve(kj::Own<kj::AsyncIoStream> stream) {
    if (shared_.num_connections >= kConnectionsMax) {
      log_warn("control: {} connections are open, dropped one more", shared_.num_connections);
      return;
    }
    set_keepalive(*stream);
    auto connection = kj::heap<Connection>(shared_, kj::mv(stream));
    Connection& c = *connection;
    auto silence = timer_.afterDelay(kHelloTimeMax).then([&c]() -> kj::Promise<void> {
      if (c.server->has_said_hello()) return kj::NEVER_DONE;
      log_warn("control: dropped a connection that said no hello in 10 s");
      return kj::READY_NOW;
    });
    tasks_.add(c.network.onDisconnect().exclusiveJoin(kj::mv(silence)).attach(kj::mv(connection)));
  }

  void taskFailed(kj::Exception&& e) override {
    log_warn("control: dropped a connection: {}", e.getDescription().cStr());
  }

  Shared shared_;
  kj::ConnectionReceiver& receiver_;
  kj::Timer& timer_;
  kj::TaskSet tasks_;
};

class Server final : public ControlServer {
 public:
  Server(const std::string& listen, NodeControl& node)
      : loop_([this, &listen, &node](kj::AsyncIoContext& io, kj::Promise<void> stopped,
                                     const std::function<void()>& ready) {
          auto address = io.provider->getNetwork().parseAddress(listen).wait(io.waitScope);
          auto receiver = address->listen();
          port_ = static_cast<uint16_t>(receiver->getPort());
          Acceptor acceptor(node, *receiver, io.provider->getTimer());
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
          Shared shared{node, {}, 0};
          std::optional<Connection> connection;
          connection.emplace(shared, io.lowLevelProvider->wrapSocketFd(
                                         fd, kj::LowLevelAsyncIoProvider::TAKE_OWNERSHIP));
          ready();
          auto ended = connection->network.onDisconnect().then(
              [] {}, [](kj::Exception&& e) { log_debug("control: {}", e.getDescription().cStr()); });
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

std::unique_ptr<ControlServer> serve_control(const std::string& listen, NodeControl& node) {
  try {
    return std::make_unique<Server>(listen, node);
  } catch (const std::exception& e) {
    throw LoadError(
        fmt::format("cannot listen on {}: {}; choose another address or port", listen, e.what()));
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
