#include "tests/sim/control.h"

#include <fmt/format.h>

#include <utility>

namespace atl::sim {
using namespace std::chrono_literals;
namespace {

using Plane = Network::Plane;

constexpr Duration kCallTimeout = 5s;

// Fibers that wait for something to happen.
class Waiters {
 public:
  explicit Waiters(World& world) : world_(world) {}
  void park(Time until) {
    waiting_.emplace_back(world_.current(), world_.next_ticket());
    world_.park(until);
  }
  void notify() {
    for (const auto& [fiber, ticket] : std::exchange(waiting_, {})) world_.wake(*fiber, ticket);
  }

 private:
  World& world_;
  std::vector<std::pair<Fiber*, uint64_t>> waiting_;
};

// What both sides share of one connection.
struct Connection {
  Connection(World& world, Network& network, Machine& coordinator, SimNode& node)
      : world(world), network(network), coordinator(coordinator), node(node), life(node.life()) {}

  World& world;
  Network& network;
  Machine& coordinator;
  SimNode& node;
  const uint64_t life;                                     // of the node that it leads to
  bool connected = true;                                   // as the client knows
  bool closed = false;                                     // as the node knows
  std::set<SessionId> sessions;                            // opened over it, at the node
  std::shared_ptr<Time> there = std::make_shared<Time>();  // order of what is sent
  std::shared_ptr<Time> back = std::make_shared<Time>();
  uint64_t heartbeats = 0;
  bool open = true;  // the client lives
  Waiters waiters{world};

  // Runs `action` at the node, on its control thread, unless that process is gone by then.
  void at_node(const std::shared_ptr<Connection>& self, std::function<void()> action) {
    network.deliver(
        Plane::kControl, coordinator.name(), node.name(),
        [self, action = std::move(action)] {
          if (self->node.life() != self->life || !self->node.is_running()) {
            return self->node_is_gone(self);
          }
          self->node.machine().when_running([self, action] {
            if (self->node.life() == self->life && !self->closed) action();
          });
        },
        there);
  }
  void at_client(const std::shared_ptr<Connection>& self, std::function<void()> action) {
    network.deliver(
        Plane::kControl, node.name(), coordinator.name(),
        [self, action = std::move(action)] { self->coordinator.when_running(action); }, back);
  }
  // A process that is gone answers with a reset, unless its machine is gone, too.
  void node_is_gone(const std::shared_ptr<Connection>& self) {
    if (node.is_silent_when_gone()) return;
    at_client(self, [self] {
      self->connected = false;
      self->waiters.notify();
    });
  }
  void ping(const std::shared_ptr<Connection>& self, Duration every) {
    if (!open || !connected) return;
    at_node(self, [self, every] {
      self->at_client(self, [self, every] {
        ++self->heartbeats;
        self->world.after(every, [self, every] {
          self->coordinator.when_running([self, every] { self->ping(self, every); });
        });
      });
    });
  }
};

class SimClient final : public transport::NodeClient {
 public:
  explicit SimClient(std::shared_ptr<Connection> connection) : c_(std::move(connection)) {}
  // The node sees it end, as soon as something gets through.
  ~SimClient() override {
    c_->open = false;
    c_->at_node(c_, [c = c_] {
      c->closed = true;
      for (const SessionId session : c->sessions) c->node.control().close_session(session);
    });
  }

  Result<transport::HelloReply> hello(const transport::Hello& hello) override {
    return call<transport::HelloReply>([c = c_, hello]() -> Result<transport::HelloReply> {
      auto reply = c->node.control().hello(hello);
      if (reply) c->sessions.insert(hello.session);
      return reply;
    });
  }
  Status apply_plan(SessionId session, const transport::Plan& plan) override {
    auto done = call<bool>([c = c_, session, plan]() -> Result<bool> {
      if (!c->sessions.contains(session)) return stranger();
      if (Status status = c->node.control().apply_plan(session, plan); !status) {
        return status.error();
      }
      return true;
    });
    return done ? Status{} : Status(done.error());
  }
  Result<transport::NodeState> state(SessionId session) override {
    return call<transport::NodeState>([c = c_, session]() -> Result<transport::NodeState> {
      if (!c->sessions.contains(session)) return stranger();
      return c->node.control().state(session);
    });
  }
  Result<transport::NodeStats> stats(SessionId session) override {
    return call<transport::NodeStats>([c = c_, session]() -> Result<transport::NodeStats> {
      if (!c->sessions.contains(session)) return stranger();
      return c->node.control().stats(session);
    });
  }
  Status close_session(SessionId session) override {
    auto done = call<bool>([c = c_, session]() -> Result<bool> {
      if (!c->sessions.contains(session)) return stranger();
      c->sessions.erase(session);
      c->node.control().close_session(session);
      return true;
    });
    return done ? Status{} : Status(done.error());
  }
  Status stop() override {
    auto done = call<bool>([c = c_]() -> Result<bool> {
      c->node.control().stop();
      return true;
    });
    return done ? Status{} : Status(done.error());
  }
  void send_heartbeats(std::chrono::milliseconds every) override { c_->ping(c_, every); }
  Pulse pulse() const override { return {c_->heartbeats, c_->connected}; }

 private:
  static Error stranger() {
    return {ErrorCode::kInvalid, "the session was not opened on this connection"};
  }
  // Blocks the fiber until the answer is there, the connection is broken or time is over.
  template <typename R>
  Result<R> call(std::function<Result<R>()> action) {
    if (c_->coordinator.is_dead()) return Error{ErrorCode::kUnavailable, "whoever asks is gone"};
    const auto answer = std::make_shared<std::optional<Result<R>>>();
    c_->at_node(c_, [c = c_, action = std::move(action), answer] {
      auto result = std::make_shared<Result<R>>(action());
      c->at_client(c, [c, answer, result] {
        *answer = std::move(*result);
        c->waiters.notify();
      });
    });
    World& world = c_->world;
    const Time deadline = world.now() + kCallTimeout;
    while (!*answer) {
      if (!c_->connected) {
        return Error{ErrorCode::kUnavailable, c_->node.name() + ": the connection is lost"};
      }
      if (world.now() >= deadline) {
        return Error{ErrorCode::kTimeout, c_->node.name() + ": no answer within 5000 ms"};
      }
      c_->waiters.park(deadline);
    }
    return std::move(**answer);
  }

  const std::shared_ptr<Connection> c_;
};

}  // namespace

Result<std::unique_ptr<transport::NodeClient>> SimSource::open(int index) {
  SimNode& node = *nodes_[static_cast<size_t>(index)];
  if (children_) {
    world_.sleep(world_.draw().between(1ms, 50ms));
    if (!node.is_running()) node.start();
  }
  // What comes of it. Shared with what is under way when time is over.
  struct Dialled {
    std::shared_ptr<Connection> connection;
    bool refused = false;
    Waiters waiters;
  };
  const auto dialled = std::make_shared<Dialled>(Dialled{nullptr, false, Waiters(world_)});
  // This may be gone when it comes.
  World& world = world_;
  Network& network = network_;
  Machine& coordinator = coordinator_;
  const auto answer = [&network, &coordinator, &node, dialled](std::function<void()> what) {
    network.deliver(Plane::kControl, node.name(), coordinator.name(),
                    [dialled, what = std::move(what)] {
                      what();
                      dialled->waiters.notify();
                    });
  };
  network_.deliver(
      Plane::kControl, coordinator_.name(), node.name(),
      [&world, &network, &coordinator, &node, dialled, answer] {
        if (!node.is_running()) {
          if (node.is_silent_when_gone()) return;
          return answer([dialled] { dialled->refused = true; });
        }
        node.machine().when_running([&world, &network, &coordinator, &node, dialled, answer] {
          auto connection = std::make_shared<Connection>(world, network, coordinator, node);
          answer([dialled, connection] { dialled->connection = connection; });
        });
      });
  const Time deadline = world_.now() + kCallTimeout;
  while (!dialled->connection && !dialled->refused && world_.now() < deadline) {
    dialled->waiters.park(deadline);
  }
  if (dialled->connection) {
    return std::unique_ptr<transport::NodeClient>(std::make_unique<SimClient>(dialled->connection));
  }
  if (dialled->refused) {
    return Error{ErrorCode::kUnavailable, node.name() + ": connection refused"};
  }
  return Error{ErrorCode::kTimeout, node.name() + ": no connection within 5000 ms"};
}

std::string SimSource::end(int index) {
  SimNode& node = *nodes_[static_cast<size_t>(index)];
  if (!children_ || node.life() == 0) return "";
  const bool by_itself = !node.is_running();
  node.kill(SimNode::Death::kProcess);
  return by_itself ? "exit code 1" : "";
}

}  // namespace atl::sim
