#include "coordinator/cluster/cluster.h"

#include <fmt/format.h>

#include <utility>

#include "base/check.h"
#include "base/log.h"

namespace atl::coordinator {
namespace {

using transport::NodeState;

constexpr auto kLoadPollInterval = std::chrono::milliseconds(20);

}  // namespace

// ---- The first time ----------------------------------------------------------------------------

Cluster::Cluster(transport::Transport& transport, const Clock& clock, ClusterOptions options,
                 const topology::Placement& placement, std::unique_ptr<NodeSource> source)
    : transport_(transport),
      clock_(clock),
      options_(std::move(options)),
      placement_(placement),
      data_address_(transport.address()),
      source_(std::move(source)) {
  CHECK_EQ(placement.num_nodes(), source_->num_nodes());
  for (int n = 0; n < source_->num_nodes(); ++n) {
    nodes_.push_back(std::make_unique<Node>(source_->name(n), placement.tiles_of_node[n],
                                            options_.times, clock.now()));
  }
  // All at once: each may take as long as opening a checkpoint does.
  std::vector<std::optional<Result<Greeted>>> greeted(nodes_.size());
  {
    std::vector<std::jthread> openers;
    for (size_t n = 0; n < nodes_.size(); ++n) {
      openers.emplace_back([this, n, &greeted] { greeted[n] = greet(n); });
    }
  }
  for (size_t n = 0; n < nodes_.size(); ++n) {
    Node& node = *nodes_[n];
    const auto fail = [&node](const Error& error) -> LoadError {
      return LoadError(fmt::format("expert node {}: {}", node.name, error.message));
    };
    if (!*greeted[n]) throw fail(greeted[n]->error());
    node.control = (*greeted[n])->control;
    node.greeting = (*greeted[n])->reply;
    auto peer = transport.connect(node.greeting.data_address, node.name);
    if (!peer) throw fail(peer.error());
    node.peer = *peer;
    if (node.owned.empty()) {
      log_info("node {} owns no tiles: there are more nodes than tiles, or its count is 0",
               node.name);
    }
  }
}

Cluster::~Cluster() { close(Nodes::kKeep); }

// Opened, greeted and given its plan.
Result<Cluster::Greeted> Cluster::greet(size_t n) {
  auto opened = source_->open(static_cast<int>(n));
  if (!opened) return opened.error();
  Greeted greeted{std::move(*opened), {}};
  transport::Hello hello;
  hello.coordinator = options_.coordinator_name;
  hello.identity = options_.identity;
  hello.limits = options_.limits;
  hello.session = options_.session;
  hello.data_address = data_address_;
  auto reply = greeted.control->hello(hello);
  if (!reply) {
    const std::string end =
        reply.error().code == ErrorCode::kInvalid ? "" : source_->end(static_cast<int>(n));
    if (end.empty()) return reply.error();
    return Error{reply.error().code, fmt::format("it did not start: {}", end)};
  }
  greeted.reply = std::move(*reply);
  const transport::Plan plan{placement_.epoch, to_ranges(placement_.tiles_of_node[n])};
  if (Status planned = greeted.control->apply_plan(options_.session, plan); !planned) {
    return planned.error();
  }
  return greeted;
}

std::vector<NodeLink> Cluster::links() const {
  const std::lock_guard lock(mutex_);
  std::vector<NodeLink> links;
  for (const auto& node : nodes_) links.push_back({node->name, node->peer, node->owned});
  return links;
}

Cluster::LoadState Cluster::load_state() {
  LoadState sum;
  sum.ready = sum.warm = true;
  for (const auto& node : nodes_) {
    std::shared_ptr<transport::NodeClient> control;
    bool watching = false;
    {
      const std::lock_guard lock(mutex_);
      control = node->control;
      watching = watching_;
    }
    auto state = control ? control->state(options_.session)
                         : Result<NodeState>(Error{ErrorCode::kUnavailable, "it was lost"});
    if (!state || state->phase == NodeState::Phase::kFailed) {
      if (!watching) {
        throw LoadError(state ? fmt::format("expert node {}: {}", node->name, state->error)
                              : fmt::format("expert node {} while loading: {}", node->name,
                                            state.error().message));
      }
      sum.warm = false;  // it will be back, and others stand in for it
      continue;
    }
    sum.ready = sum.ready && state->phase == NodeState::Phase::kReady;
    sum.warm = sum.warm && sum.ready && state->bytes_loaded >= state->bytes_total;
    sum.bytes_loaded += state->bytes_loaded;
    sum.bytes_total += state->bytes_total;
    sum.resident_bytes += state->resident_bytes;
    sum.nodes.push_back({node->name, state->bytes_loaded, state->bytes_total});
  }
  return sum;
}

// ---- Keeping nodes alive -----------------------------------------------------------------------

void Cluster::watch() {
  const std::lock_guard lock(mutex_);
  CHECK(!watching_);
  watching_ = true;
  for (size_t n = 0; n < nodes_.size(); ++n) {
    Node& node = *nodes_[n];
    node.member.joined(clock_.now());
    if (!source_->reopens()) continue;
    node.control->send_heartbeats(options_.times.heartbeat);
    node.keeper = std::thread([this, n] { keep(n); });
  }
}

// A node's own thread: looks at it every heartbeat and does what is to be done about it.
void Cluster::keep(size_t n) {
  std::unique_lock lock(mutex_);
  Node& node = *nodes_[n];
  while (!stopping_) {
    observe(node);
    const Member::Order order = node.member.tick(clock_.now());
    if (order == Member::Order::kNone) {
      changed_.wait_for(lock, options_.times.heartbeat);
    } else {
      carry_out(order, n, lock);
    }
  }
}

void Cluster::observe(Node& node) {
  if (!node.control) return;
  const transport::NodeClient::Pulse pulse = node.control->pulse();
  if (pulse.heartbeats != node.heartbeats) node.member.heard();
  node.heartbeats = pulse.heartbeats;
  if (!pulse.connected) node.member.lost("its control connection broke");
}

void Cluster::carry_out(Member::Order order, size_t n, std::unique_lock<std::mutex>& lock) {
  Node& node = *nodes_[n];
  switch (order) {
    case Member::Order::kNone:
      return;
    case Member::Order::kSuspect:
      log_info("node {} is suspect: no heartbeat for {} ms", node.name,
               options_.times.suspect_after.count());
      return tell({NodeNews::Kind::kSuspect, n, node.member.life(), "no heartbeat", {}});
    case Member::Order::kTrust:
      log_info("node {} is heard again", node.name);
      return tell({NodeNews::Kind::kTrusted, n, node.member.life(), "", {}});
    case Member::Order::kDrop:
      return drop(n, lock);
    case Member::Order::kJoin:
      return bring_back(n, lock);
  }
}

// A hung process may hold on to anything but SIGKILL.
void Cluster::drop(size_t n, std::unique_lock<std::mutex>& lock) {
  Node& node = *nodes_[n];
  tell({NodeNews::Kind::kLost, n, node.member.life(), node.member.why(), {}});
  const std::shared_ptr<transport::NodeClient> control = std::exchange(node.control, nullptr);
  const std::string why = node.member.why();
  lock.unlock();
  const std::string end = source_->end(static_cast<int>(n));
  log_warn("node {} lost: {}{}{}", node.name, why, end.empty() ? "" : "; it ended: ", end);
  lock.lock();
}

void Cluster::bring_back(size_t n, std::unique_lock<std::mutex>& lock) {
  Node& node = *nodes_[n];
  const auto start = clock_.now();
  lock.unlock();
  auto joined = join(n);
  lock.lock();
  const auto now = clock_.now();
  if (!joined) {
    lock.unlock();
    source_->end(static_cast<int>(n));
    lock.lock();
    if (stopping_) return;
    node.member.join_failed(now, joined.error().message);
    log_warn("node {} could not be started again: {}; next try in {:.2g} s", node.name,
             joined.error().message, seconds_between(now, node.member.retry_at()));
    return;
  }
  node.control = joined->control;
  node.greeting = joined->reply;
  node.heartbeats = 0;
  node.control->send_heartbeats(options_.times.heartbeat);
  node.member.joined(now);
  log_info("node {} is back: started, greeted and loaded in {:.2g} s; restart {}", node.name,
           seconds_between(start, now), node.member.joins() - 1);
  tell({NodeNews::Kind::kJoined, n, node.member.life(), "", node.greeting.data_address});
}

Result<Cluster::Greeted> Cluster::join(size_t n) {
  auto greeted = greet(n);
  if (!greeted) return greeted;
  if (Status ready = await_ready(*greeted); !ready) return ready.error();
  return greeted;
}

Status Cluster::await_ready(const Greeted& greeted) {
  uint64_t loaded = 0;
  auto last_progress = clock_.now();
  while (true) {
    auto state = greeted.control->state(options_.session);
    if (!state) return state.error();
    if (state->phase == NodeState::Phase::kFailed) {
      return Error{ErrorCode::kUnavailable, state->error};
    }
    if (state->phase == NodeState::Phase::kReady) return {};
    if (state->bytes_loaded != loaded) last_progress = clock_.now();
    loaded = state->bytes_loaded;
    if (clock_.now() - last_progress > options_.load_patience) {
      return Error{ErrorCode::kTimeout, fmt::format("loading: no byte read for {} s",
                                                    options_.load_patience.count() / 1000)};
    }
    std::unique_lock lock(mutex_);
    if (changed_.wait_for(lock, kLoadPollInterval, [this] { return stopping_; })) {
      return Error{ErrorCode::kUnavailable, "the coordinator is ending"};
    }
  }
}

// ---- What the dispatcher hears and says --------------------------------------------------------

// Under the lock. A loss makes void what was said of that life before.
void Cluster::tell(NodeNews news) {
  Node& node = *nodes_[news.node];
  switch (news.kind) {
    case NodeNews::Kind::kLost:
      node.joined.reset();
      node.trust.reset();
      node.lost = std::move(news);
      break;
    case NodeNews::Kind::kJoined:
      node.joined = std::move(news);
      break;
    case NodeNews::Kind::kSuspect:
    case NodeNews::Kind::kTrusted:
      node.trust = std::move(news);
      break;
  }
  transport_.wake();
}

std::vector<NodeNews> Cluster::take_news() {
  const std::lock_guard lock(mutex_);
  std::vector<NodeNews> all;
  for (const auto& node : nodes_) {
    for (std::optional<NodeNews>* news : {&node->lost, &node->joined, &node->trust}) {
      if (*news) all.push_back(std::move(**news));
      news->reset();
    }
  }
  return all;
}

void Cluster::given_up(size_t n, uint64_t life, const std::string& why) {
  const std::lock_guard lock(mutex_);
  Node& node = *nodes_[n];
  if (node.member.life() != life) return;  // it has another one already
  node.member.lost(why);
  changed_.notify_all();
  if (node.keeper.joinable()) return;
  log_warn("node {} lost: {}", node.name, why);  // for good
  (void)node.member.tick(clock_.now());
}

bool Cluster::brings_back() const {
  const std::lock_guard lock(mutex_);
  return watching_ && !stopping_ && source_->reopens();
}

// ---- What is shown, and the end ----------------------------------------------------------------

std::vector<Cluster::NodeStatus> Cluster::status() const {
  const std::lock_guard lock(mutex_);
  std::vector<NodeStatus> all;
  for (const auto& node : nodes_) {
    const Member& member = node->member;
    all.push_back({node->name, member.state(), member.losses(),
                   member.joins() > 0 ? member.joins() - 1 : 0, member.why()});
  }
  return all;
}

std::vector<Cluster::NamedStats> Cluster::stats() {
  std::vector<NamedStats> all;
  for (const auto& node : nodes_) {
    std::shared_ptr<transport::NodeClient> control;
    uint32_t num_threads = 0;
    {
      const std::lock_guard lock(mutex_);
      control = node->control;
      num_threads = node->greeting.num_threads;
    }
    if (!control) continue;
    auto stats = control->stats(options_.session);
    const std::lock_guard lock(mutex_);
    if (node->control != control) continue;  // lost meanwhile
    if (!stats && !node->is_silent) {
      log_warn("no statistics from node {}: {}", node->name, stats.error().message);
    }
    node->is_silent = !stats;
    if (stats) all.push_back({node->name, num_threads, std::move(*stats)});
  }
  return all;
}

void Cluster::close(Nodes nodes) {
  {
    const std::lock_guard lock(mutex_);
    if (std::exchange(stopping_, true)) return;
  }
  changed_.notify_all();
  for (size_t n = 0; n < nodes_.size(); ++n) {
    Node& node = *nodes_[n];
    if (!node.keeper.joinable()) continue;
    // One that is being joined may hang: its calls end with it.
    std::unique_lock lock(mutex_);
    const bool is_there = node.control != nullptr;
    lock.unlock();
    if (!is_there) source_->end(static_cast<int>(n));
    node.keeper.join();
  }
  for (const auto& node : nodes_) {
    if (!node->control) continue;
    Status closed = node->control->close_session(options_.session);
    if (closed && nodes == Nodes::kStop) closed = node->control->stop();
    if (!closed) log_debug("closing node {}: {}", node->name, closed.error().message);
  }
}

}  // namespace atl::coordinator
