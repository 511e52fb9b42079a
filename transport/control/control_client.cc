// The coordinator's side of the control protocol: a kj thread for each node, blocking calls.
#include <capnp/message.h>
#include <capnp/rpc-twoparty.h>
#include <fmt/core.h>
#include <netdb.h>
#include <sys/socket.h>

#include <atomic>
#include <optional>

#include "transport/control/control.h"
#include "transport/control/control_convert.h"
#include "transport/control/control_loop.h"
#include "transport/control/tls_stream.h"
#include "transport/data/end_address.h"

namespace atl::transport {

namespace {

using std::chrono::milliseconds;

capnp::ReaderOptions reader_options() {
  capnp::ReaderOptions options;
  options.traversalLimitInWords = (8u << 20) / 8;
  options.nestingLimit = 16;
  return options;
}

// The open connection; lives and dies on the loop's thread.
struct Connection {
  explicit Connection(kj::Own<kj::AsyncIoStream> stream_in)
      : stream(kj::mv(stream_in)),
        network(*stream, capnp::rpc::twoparty::Side::CLIENT, reader_options()),
        rpc(capnp::makeRpcClient(network)),
        node(bootstrap()) {}

  schema::Node::Client bootstrap() {
    capnp::MallocMessageBuilder message;
    auto server = message.initRoot<capnp::rpc::twoparty::VatId>();
    server.setSide(capnp::rpc::twoparty::Side::SERVER);
    return rpc.bootstrap(server).castAs<schema::Node>();
  }

  kj::Own<kj::AsyncIoStream> stream;
  capnp::TwoPartyVatNetwork network;
  capnp::RpcSystem<capnp::rpc::twoparty::VatId> rpc;
  schema::Node::Client node;
};

class Client final : public NodeClient {
 public:
  // name: of the node; address stands in errors.
  Client(std::string address, std::string name, ControlSecurity security, milliseconds timeout,
         std::shared_ptr<const std::atomic<bool>> given_up)
      : address_(std::move(address)),
        name_(std::move(name)),
        security_(std::move(security)),
        timeout_(timeout),
        given_up_(std::move(given_up)),
        loop_([this](kj::AsyncIoContext& io, kj::Promise<void> stopped,
                     const std::function<void()>& ready) {
          timer_ = &io.provider->getTimer();
          network_ = &io.provider->getNetwork();
          low_level_ = io.lowLevelProvider;
          ready();
          stopped.wait(io.waitScope);
          heart_ = nullptr;
          ending_ = nullptr;
          connection_.reset();
        }) {}

  ~Client() noexcept override = default;

  Status connect() {
    return status_of(run<bool>("connect", [this]() -> kj::Promise<Result<bool>> {
      return network_->parseAddress(address_)
          .then([](kj::Own<kj::NetworkAddress>&& address) {
            return address->connect().attach(kj::mv(address));
          })
          .then([this](kj::Own<kj::AsyncIoStream>&& stream) -> kj::Promise<Result<bool>> {
            if (!security_.keys) return take(kj::mv(stream));
            return tls_connect(kj::mv(stream), *security_.keys, name_)
                .then([this](TlsStream&& tls) { return take(kj::mv(tls.stream)); },
                      [](kj::Exception&& e) -> Result<bool> {
                        const bool refused = e.getType() == kj::Exception::Type::FAILED;
                        return Error{refused ? ErrorCode::kInvalid : ErrorCode::kUnavailable,
                                     e.getDescription().cStr()};
                      });
          });
    }));
  }

  Status connect_over(int fd) {
    return status_of(run<bool>("connect", [this, fd]() -> kj::Promise<Result<bool>> {
      return take(low_level_->wrapSocketFd(fd, kj::LowLevelAsyncIoProvider::TAKE_OWNERSHIP));
    }));
  }

  Result<HelloReply> hello(const Hello& hello) override {
    return run<HelloReply>("hello to", [&]() -> kj::Promise<Result<HelloReply>> {
      auto request = connection_->node.helloRequest();
      auto out = request.initHello();
      write_hello(out, hello);
      out.setSecret(security_.secret.c_str());
      return request.send().then([this](auto&& response) -> Result<HelloReply> {
        if (response.hasError()) return read_error(response.getError());
        auto reply = read_reply(response.getReply());
        if (reply && security_.keys && reply->node != name_)
          return Error{
              ErrorCode::kInvalid,
              fmt::format("it calls itself {}, and its certificate {}", reply->node, name_)};
        return reply;
      });
    });
  }

  Status apply_plan(SessionId session, const Plan& plan) override {
    return status_of(run<bool>("plan for", [&] {
      auto request = connection_->node.applyPlanRequest();
      request.setSession(session.value);
      write_plan(request.initPlan(), plan);
      return outcome_of(request.send());
    }));
  }

  Result<NodeState> state(SessionId session) override {
    return run<NodeState>("state of", [&]() -> kj::Promise<Result<NodeState>> {
      auto request = connection_->node.stateRequest();
      request.setSession(session.value);
      return request.send().then([](auto&& response) -> Result<NodeState> {
        if (response.hasError()) return read_error(response.getError());
        return read_state(response.getState());
      });
    });
  }

  Result<NodeStats> stats(SessionId session) override {
    return run<NodeStats>("stats of", [&]() -> kj::Promise<Result<NodeStats>> {
      auto request = connection_->node.statsRequest();
      request.setSession(session.value);
      return request.send().then([](auto&& response) -> Result<NodeStats> {
        if (response.hasError()) return read_error(response.getError());
        return read_stats(response.getStats());
      });
    });
  }

  Result<std::string> inspect(const std::string& what) override {
    return run<std::string>("looking at", [&]() -> kj::Promise<Result<std::string>> {
      auto request = connection_->node.inspectRequest();
      request.setSecret(security_.secret.c_str());
      request.setWhat(what.c_str());
      return request.send().then([](auto&& response) -> Result<std::string> {
        if (response.hasError()) return read_error(response.getError());
        const auto answer = response.getAnswer();
        return std::string(answer.begin(), answer.size());
      });
    });
  }

  Result<NodeTrace> trace(SessionId session, const TraceAsk& ask) override {
    return run<NodeTrace>("trace of", [&]() -> kj::Promise<Result<NodeTrace>> {
      auto request = connection_->node.traceRequest();
      request.setSession(session.value);
      request.setOn(ask.on);
      request.setEventsMax(ask.events_max);
      return request.send().then([](auto&& response) -> Result<NodeTrace> {
        if (response.hasError()) return read_error(response.getError());
        return read_trace(response.getTrace());
      });
    });
  }

  Status close_session(SessionId session) override {
    return status_of(run<bool>("close session at", [&] {
      auto request = connection_->node.closeSessionRequest();
      request.setSession(session.value);
      return outcome_of(request.send());
    }));
  }

  Status stop() override {
    return status_of(
        run<bool>("stop", [&] { return outcome_of(connection_->node.stopRequest().send()); }));
  }

  void send_heartbeats(milliseconds every) override {
    loop_.executor().executeSync([this, every] {
      heart_ = beat(every.count() * kj::MILLISECONDS).eagerlyEvaluate([this](kj::Exception&&) {
        connected_ = false;
      });
    });
  }

  Pulse pulse() const override { return {heartbeats_, connected_}; }

 private:
  // The loop's thread.
  Result<bool> take(kj::Own<kj::AsyncIoStream> stream) {
    connection_.emplace(kj::mv(stream));
    ending_ =
        connection_->network.onDisconnect()
            .then([this] { connected_ = false; }, [this](kj::Exception&&) { connected_ = false; })
            .eagerlyEvaluate(nullptr);
    return true;
  }

  // Numeric, without the port; "" over a pair of sockets.
  std::string peer_host() {
    sockaddr_storage address{};
    kj::uint bytes = sizeof address;
    connection_->stream->getpeername(reinterpret_cast<sockaddr*>(&address), &bytes);
    char host[NI_MAXHOST];
    const bool known = (address.ss_family == AF_INET || address.ss_family == AF_INET6) &&
                       ::getnameinfo(reinterpret_cast<sockaddr*>(&address), bytes, host,
                                     sizeof host, nullptr, 0, NI_NUMERICHOST) == 0;
    return known ? host : "";
  }

  kj::Promise<void> beat(kj::Duration every) {
    return connection_->node.pingRequest()
        .send()
        .then([this, every](auto&&) {
          ++heartbeats_;
          return timer_->afterDelay(every);
        })
        .then([this, every] { return beat(every); });
  }

  kj::Promise<void> until_given_up() {
    if (given_up_ == nullptr) return kj::NEVER_DONE;
    if (given_up_->load(std::memory_order_relaxed)) return kj::READY_NOW;
    return timer_->afterDelay(kGiveUpLook.count() * kj::MILLISECONDS).then([this] {
      return until_given_up();
    });
  }

  // For methods whose results hold an error or nothing.
  template <typename Response>
  static kj::Promise<Result<bool>> outcome_of(Response&& promise) {
    return promise.then([](auto&& response) -> Result<bool> {
      if (response.hasError()) return read_error(response.getError());
      return true;
    });
  }

  static Status status_of(const Result<bool>& result) {
    return result ? Status() : Status(result.error());
  }

  // Runs start() on the loop's thread and waits for its promise until the deadline. `what` and the
  // node's address stand before every error. The call, then the result change threads by an atomic
  // of ours, too, which the thread sanitizer sees: kj's lock is in a library built without it.
  template <typename T, typename Start>
  Result<T> run(const char* what, Start start) {
    try {
      std::optional<Result<T>> result;
      std::atomic<bool> handed_over{false};
      handed_over.store(true, std::memory_order_release);
      loop_.executor().executeSync([&]() -> kj::Promise<void> {
        CHECK(handed_over.exchange(false, std::memory_order_acquire));
        auto late =
            timer_->afterDelay(timeout_.count() * kj::MILLISECONDS).then([this]() -> Result<T> {
              return Error{ErrorCode::kTimeout,
                           fmt::format("no answer within {} ms", timeout_.count())};
            });
        auto given_up = until_given_up().then([]() -> Result<T> {
          return Error{ErrorCode::kUnavailable, "given up"};
        });
        return start()
            .exclusiveJoin(kj::mv(late))
            .exclusiveJoin(kj::mv(given_up))
            .then([&](Result<T>&& r) {
              result.emplace(std::move(r));
              handed_over.store(true, std::memory_order_release);
            });
      });
      CHECK(handed_over.exchange(false, std::memory_order_acquire));
      if (*result) return *std::move(result);
      return Error{result->error().code,
                   fmt::format("{} {}: {}", what, address_, result->error().message)};
    } catch (const kj::Exception& e) {
      return error_of(e, what, address_);
    }
  }

  const std::string address_;
  const std::string name_;
  const ControlSecurity security_;
  const milliseconds timeout_;
  const std::shared_ptr<const std::atomic<bool>> given_up_;
  std::atomic<uint64_t> heartbeats_{0};
  std::atomic<bool> connected_{true};
  // Below: set and used on the loop's thread.
  kj::Timer* timer_ = nullptr;
  kj::Network* network_ = nullptr;
  kj::LowLevelAsyncIoProvider* low_level_ = nullptr;
  std::optional<Connection> connection_;
  kj::Promise<void> heart_ = nullptr, ending_ = nullptr;
  ControlLoop loop_;
};

}  // namespace

Result<std::unique_ptr<NodeClient>> dial_node(const std::string& address, const std::string& name,
                                              const ControlSecurity& security, milliseconds timeout,
                                              std::shared_ptr<const std::atomic<bool>> given_up) {
  CHECK(security.keys == nullptr || security.secret.empty());
  auto client = std::make_unique<Client>(address, name, security, timeout, std::move(given_up));
  if (const Status status = client->connect(); !status) return status.error();
  return std::unique_ptr<NodeClient>(std::move(client));
}

Result<std::unique_ptr<NodeClient>> control_over(int fd, const std::string& name,
                                                 milliseconds timeout) {
  auto client = std::make_unique<Client>(name, name, ControlSecurity{}, timeout, nullptr);
  if (const Status status = client->connect_over(fd); !status) return status.error();
  return std::unique_ptr<NodeClient>(std::move(client));
}

}  // namespace atl::transport
