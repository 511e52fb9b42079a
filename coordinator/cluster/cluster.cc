#include "coordinator/cluster/cluster.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <set>
#include <utility>

#include "base/check.h"
#include "base/log.h"

namespace atl::coordinator {
namespace {

using transport::NodeState;

constexpr auto kLoadPollInterval = std::chrono::milliseconds(20);
// What a node that is let go still owes comes within this time, or is asked from another one.
constexpr auto kLetGoAfter = std::chrono::seconds(1);

// A name of its own for each life: what belongs to an earlier one is a stranger's.
SessionId session_of_life(SessionId first, uint64_t life) {
  return SessionId{first.value + (life - 1) * 0x9e3779b97f4a7c15};
}

}  // namespace

// ---- The first time ----------------------------------------------------------------------------

Cluster::Cluster(transport::Transport& transport, const Clock& clock, ClusterOptions options,
                 const topology::Placement& placement, std::unique_ptr<NodeSource> source)
    : transport_(transport),
      clock_(clock),
      options_(std::move(options)),
      placement_(placement),
      data_address_(transport.address()),
      source_(std::move(source)),
      changed_(options_.threads->make_condition()) {
  CHECK_EQ(placement.num_nodes(), source_->num_nodes());
  epoch_ = placement.epoch;
  const auto first = source_->waits() ? Member::First::kOrdered : Member::First::kUnderWay;
  for (int n = 0; n < source_->num_nodes(); ++n) {
    const auto at = static_cast<size_t>(n);
    nodes_.push_back(std::make_unique<Node>(
        source_->name(n), placement.tiles_of_node[at],
        at < placement.standby_of_node.size() ? placement.standby_of_node[at] : std::vector<int>{},
        at < options_.room.size() ? options_.room[at] : topology::kRoomForAll, options_.times,
        clock.now(), first));
    nodes_.back()->session = options_.session;
  }
  if (source_->waits()) return;
  // All at once: each may take as long as opening a checkpoint does.
  std::vector<std::optional<Result<Greeted>>> greeted(nodes_.size());
  {
    std::vector<std::unique_ptr<Thread>> openers;
    for (size_t n = 0; n < nodes_.size(); ++n) {
      openers.push_back(options_.threads->start([this, n, &greeted] { greeted[n] = greet(n); }));
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
Result<Cluster::Greeted> Cluster::greet(size_t n, Reached* reached) {
  auto opened = source_->open(static_cast<int>(n));
  if (!opened) return opened.error();
  if (reached != nullptr) *reached = Reached::kYes;
  Greeted greeted{std::move(*opened), {}};
  transport::Hello hello;
  hello.coordinator = options_.coordinator_name;
  hello.identity = options_.identity;
  hello.limits = options_.limits;
  hello.data_address = data_address_;
  transport::Plan plan;
  {
    const std::lock_guard lock(mutex_);
    Node& node = *nodes_[n];
    node.member.opened();
    hello.session = node.session = session_of_life(options_.session, node.member.life());
    node.told = together(node.owned, node.standby);
    plan = {epoch_, to_ranges(node.told), to_ranges(node.standby)};
  }
  auto reply = greeted.control->hello(hello);
  if (!reply) {
    const std::string end =
        reply.error().code == ErrorCode::kInvalid ? "" : source_->end(static_cast<int>(n));
    if (end.empty()) return reply.error();
    return Error{reply.error().code, fmt::format("it did not start: {}", end)};
  }
  greeted.reply = std::move(*reply);
  if (source_->waits() && greeted.reply.node != nodes_[n]->name) {
    return Error{ErrorCode::kInvalid, fmt::format("at its address is node {}, not {}",
                                                  greeted.reply.node, nodes_[n]->name)};
  }
  if (Status planned = greeted.control->apply_plan(hello.session, plan); !planned) {
    return planned.error();
  }
  const std::lock_guard lock(mutex_);
  nodes_[n]->member.greeted();
  return greeted;
}

std::vector<NodeLink> Cluster::links() const {
  const std::lock_guard lock(mutex_);
  std::vector<NodeLink> links;
  for (const auto& node : nodes_) {
    links.push_back(
        {node->name, node->peer, node->owned, node->session, !source_->waits(), node->standby});
  }
  return links;
}

Cluster::LoadState Cluster::load_state() {
  LoadState sum;
  sum.ready = sum.warm = true;
  size_t num_nodes = 0;
  {
    const std::lock_guard lock(mutex_);
    num_nodes = nodes_.size();
    if (source_->waits()) sum.ready = is_covered();
  }
  for (size_t n = 0; n < num_nodes; ++n) {
    std::shared_ptr<transport::NodeClient> control;
    bool watching = false;
    SessionId session;
    std::string name;
    {
      const std::lock_guard lock(mutex_);
      const Node& node = *nodes_[n];
      if (node.removed) continue;
      control = node.control;
      session = node.session;
      watching = watching_;
      name = node.name;
      // Unless the others are enough, waiting helps nobody.
      if (!begun_ && node.refused && coverage([](const Node& other) {
                                       return !other.refused;
                                     }).anybody < options_.min_coverage) {
        throw LoadError(fmt::format("expert node {}: {}", name, node.member.why()));
      }
    }
    auto state = control ? control->state(session)
                         : Result<NodeState>(Error{ErrorCode::kUnavailable, "it was lost"});
    if (!state || state->phase == NodeState::Phase::kFailed) {
      if (!watching) {
        throw LoadError(
            state ? fmt::format("expert node {}: {}", name, state->error)
                  : fmt::format("expert node {} while loading: {}", name, state.error().message));
      }
      // It will be back, and others stand in for it; who was never there is not waited for.
      if (!source_->waits()) sum.warm = false;
      continue;
    }
    if (!source_->waits()) sum.ready = sum.ready && state->phase == NodeState::Phase::kReady;
    sum.warm = sum.warm && sum.ready && state->bytes_loaded >= state->bytes_total;
    sum.bytes_loaded += state->bytes_loaded;
    sum.bytes_total += state->bytes_total;
    sum.resident_bytes += state->resident_bytes;
    sum.nodes.push_back({name, state->bytes_loaded, state->bytes_total});
  }
  sum.warm = sum.warm && sum.ready;
  return sum;
}

// Under the lock: the share of all tiles whose owner is there, or an owner or a standby.
template <typename IsThere>
Cluster::Coverage Cluster::coverage(const IsThere& is_there) const {
  std::set<int> all, owners, anybody;
  for (const auto& node : nodes_) {
    if (node->removed) continue;
    all.insert(node->owned.begin(), node->owned.end());
    if (!is_there(*node)) continue;
    owners.insert(node->owned.begin(), node->owned.end());
    anybody.insert(node->owned.begin(), node->owned.end());
    anybody.insert(node->standby.begin(), node->standby.end());
  }
  if (all.empty()) return {};
  const auto n = static_cast<double>(all.size());
  return {static_cast<double>(owners.size()) / n, static_cast<double>(anybody.size()) / n};
}

// Under the lock. Who stands by begins alone only if the owners don't come.
bool Cluster::is_covered() {
  const auto now = clock_.now();
  const Coverage there = coverage([](const Node& node) { return node.member.is_there(); });
  if (there.anybody < options_.min_coverage) covered_since_.reset();
  if (there.anybody >= options_.min_coverage && !covered_since_) covered_since_ = now;
  return there.owners >= options_.min_coverage ||
         (covered_since_ && now - *covered_since_ >= options_.owners_patience);
}

std::vector<std::string> Cluster::missing() const {
  const std::lock_guard lock(mutex_);
  std::vector<std::string> missing;
  for (size_t n = 0; n < nodes_.size(); ++n) {
    const Node& node = *nodes_[n];
    if (node.removed || node.member.is_there()) continue;
    const std::string why =
        node.member.why().empty() ? std::string(to_string(node.member.state())) : node.member.why();
    missing.push_back(fmt::format("{} ({})", node.name, why));
  }
  return missing;
}

// ---- Keeping nodes alive -----------------------------------------------------------------------

void Cluster::watch() {
  const std::lock_guard lock(mutex_);
  CHECK(!watching_);
  watching_ = true;
  for (size_t n = 0; n < nodes_.size(); ++n) {
    Node& node = *nodes_[n];
    if (!source_->waits()) {
      node.member.joined(clock_.now());
      if (!source_->reopens()) continue;
      node.control->send_heartbeats(options_.times.heartbeat);
    }
    start_keeper(n);
  }
  if (source_->reopens()) planner_ = options_.threads->start([this] { tend_plan(); });
}

void Cluster::start_keeper(size_t n) {
  nodes_[n]->keeper = options_.threads->start([this, n] { keep(n); });
}

void Cluster::begin() {
  const std::lock_guard lock(mutex_);
  begun_ = true;
  for (const auto& node : nodes_) {
    if (!node->member.is_there() && !node->lost_at) node->lost_at = clock_.now();
  }
}

// A node's own thread: looks at it every heartbeat and does what is to be done about it.
void Cluster::keep(size_t n) {
  std::unique_lock lock(mutex_);
  Node& node = *nodes_[n];
  while (!stopping_) {
    if (node.removed) {
      if (node.control) let_go(node, lock);
      changed_->wait_for(lock, options_.times.heartbeat);
      continue;
    }
    observe(node);
    const Member::Order order = node.member.tick(clock_.now());
    if (order == Member::Order::kNone) {
      const bool is_over = begun_ && node.lost_at && !node.member.is_there() && !node.gone &&
                           clock_.now() - *node.lost_at >= options_.grace;
      if (is_over) replan();
      changed_->wait_for(lock, options_.times.heartbeat);
    } else {
      carry_out(order, n, lock);
    }
  }
}

// Closed when the dispatcher asks others, and what was under way has come.
void Cluster::let_go(Node& node, std::unique_lock<std::mutex>& lock) {
  if (!plan_told_ || plan_news_ || clock_.now() - planned_at_ < kLetGoAfter) return;
  const std::shared_ptr<transport::NodeClient> control = std::exchange(node.control, nullptr);
  const SessionId session = node.session;
  log_info("node {} is let go", node.name);
  node.member.lost("it is not in the cluster's file any more");
  (void)node.member.tick(clock_.now());
  tell({NodeNews::Kind::kLost, place_of(node), node.member.life(), {}, node.member.why(), {}, {}});
  lock.unlock();
  (void)control->close_session(session);
  lock.lock();
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
      return tell({NodeNews::Kind::kSuspect, n, node.member.life(), {}, "no heartbeat", {}, {}});
    case Member::Order::kTrust:
      log_info("node {} is heard again", node.name);
      return tell({NodeNews::Kind::kTrusted, n, node.member.life(), {}, "", {}, {}});
    case Member::Order::kDrop:
      return drop(n, lock);
    case Member::Order::kJoin:
      return bring_back(n, lock);
  }
}

// A hung process may hold on to anything but SIGKILL.
void Cluster::drop(size_t n, std::unique_lock<std::mutex>& lock) {
  Node& node = *nodes_[n];
  tell({NodeNews::Kind::kLost, n, node.member.life(), {}, node.member.why(), {}, {}});
  const std::shared_ptr<transport::NodeClient> control = std::exchange(node.control, nullptr);
  const std::string why = node.member.why();
  node.lost_at = clock_.now();
  node.plan_due = node.warming = false;
  lock.unlock();
  const std::string end = source_->end(static_cast<int>(n));
  log_warn("node {} lost: {}{}{}", node.name, why, end.empty() ? "" : "; it ended: ", end);
  lock.lock();
}

void Cluster::bring_back(size_t n, std::unique_lock<std::mutex>& lock) {
  Node& node = *nodes_[n];
  const auto start = clock_.now();
  const bool is_first = node.member.joins() == 0;
  Reached reached = Reached::kNo;
  lock.unlock();
  auto joined = join(n, &reached);
  lock.lock();
  const auto now = clock_.now();
  if (!joined) {
    lock.unlock();
    source_->end(static_cast<int>(n));
    lock.lock();
    if (!stopping_) fail_join(node, joined.error(), reached);
    return;
  }
  node.control = joined->control;
  node.greeting = joined->reply;
  node.heartbeats = 0;
  node.lost_at.reset();
  node.logged.clear();
  node.refused = false;
  node.control->send_heartbeats(options_.times.heartbeat);
  node.member.joined(now);
  if (is_first) {
    log_info("node {} is there: greeted and loaded in {:.2g} s", node.name,
             seconds_between(start, now));
  } else {
    log_info("node {} is back: {}greeted and loaded in {:.2g} s; restart {}", node.name,
             source_->waits() ? "" : "started, ", seconds_between(start, now),
             node.member.joins() - 1);
  }
  tell({NodeNews::Kind::kJoined,
        n,
        node.member.life(),
        node.session,
        "",
        node.greeting.data_address,
        {}});
  if (node.gone || together(node.planned, node.planned_standby) != node.told ||
      (node.has_no_room && !node.planned_standby.empty())) {
    replan();
  }
}

// Under the lock. What was said once is not said again: a node may be away for days.
void Cluster::fail_join(Node& node, const Error& error, Reached reached) {
  const auto now = clock_.now();
  node.refused = false;
  const bool is_known = node.logged == error.message;
  node.logged = error.message;
  if (reached == Reached::kNo && source_->waits()) {
    node.member.unreachable(now, error.message);
    if (!is_known)
      log_info("node {} cannot be reached: {}; dialled again", node.name, error.message);
    return;
  }
  if (error.code == ErrorCode::kInvalid && source_->waits()) {
    node.refused = true;
    node.member.refused(now, error.message);
    if (!is_known) {
      log_warn("node {} does not fit: {}; next try in {:.2g} s", node.name, error.message,
               seconds_between(now, node.member.retry_at()));
    }
    return;
  }
  node.member.join_failed(now, error.message);
  log_warn("node {} could not be started again: {}; next try in {:.2g} s", node.name, error.message,
           seconds_between(now, node.member.retry_at()));
}

Result<Cluster::Greeted> Cluster::join(size_t n, Reached* reached) {
  auto greeted = greet(n, reached);
  if (!greeted) return greeted;
  SessionId session;
  {
    const std::lock_guard lock(mutex_);
    session = nodes_[n]->session;
  }
  if (Status ready = await_ready(n, *greeted, session); !ready) return ready.error();
  return greeted;
}

Status Cluster::await_ready(size_t n, const Greeted& greeted, SessionId session) {
  uint64_t loaded = 0;
  auto last_progress = clock_.now();
  while (true) {
    auto state = greeted.control->state(session);
    if (!state) return state.error();
    if (state->phase == NodeState::Phase::kFailed) {
      return Error{ErrorCode::kUnavailable, state->error};
    }
    if (state->phase == NodeState::Phase::kReady) {
      const std::lock_guard lock(mutex_);
      nodes_[n]->has_no_room = state->standby_left_out;
      return {};
    }
    if (state->bytes_loaded != loaded) last_progress = clock_.now();
    loaded = state->bytes_loaded;
    if (clock_.now() - last_progress > options_.load_patience) {
      return Error{ErrorCode::kTimeout, fmt::format("loading: no byte read for {} s",
                                                    options_.load_patience.count() / 1000)};
    }
    std::unique_lock lock(mutex_);
    const auto stopping = [this] { return stopping_; };
    if (changed_->wait_until(lock, clock_.now() + kLoadPollInterval, stopping)) {
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
    case NodeNews::Kind::kPlan:
      CHECK(false);  // tell_plan()
  }
  transport_.wake();
}

std::vector<NodeNews> Cluster::take_news() {
  const std::lock_guard lock(mutex_);
  std::vector<NodeNews> all;
  if (plan_news_)
    all.push_back(std::move(*plan_news_));  // it may name nodes that the rest is about
  plan_news_.reset();
  for (const auto& node : nodes_) {
    if (node->is_new) continue;
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
  changed_->notify_all();
  if (node.keeper) return;
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
    all.push_back({node->name, member.state(), node->draining, node->removed, member.losses(),
                   member.joins() > 0 ? member.joins() - 1 : 0, member.why()});
  }
  return all;
}

std::vector<Cluster::Control> Cluster::controls() const {
  const std::lock_guard lock(mutex_);
  std::vector<Control> all;
  for (const auto& node : nodes_) {
    if (node->control) all.push_back({node->name, node->control, node->session});
  }
  return all;
}

std::vector<std::string> Cluster::node_names() const {
  const std::lock_guard lock(mutex_);
  std::vector<std::string> names;
  for (const auto& node : nodes_) names.push_back(node->name);
  return names;
}

std::vector<Cluster::NamedStats> Cluster::stats() {
  std::vector<NamedStats> all;
  size_t num_nodes = 0;
  {
    const std::lock_guard lock(mutex_);
    num_nodes = nodes_.size();
  }
  for (size_t n = 0; n < num_nodes; ++n) {
    std::shared_ptr<transport::NodeClient> control;
    uint32_t num_threads = 0;
    SessionId session;
    Node* node = nullptr;
    {
      const std::lock_guard lock(mutex_);
      node = nodes_[n].get();
      control = node->control;
      session = node->session;
      num_threads = node->greeting.num_threads;
    }
    if (!control) continue;
    auto stats = control->stats(session);
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
  changed_->notify_all();
  if (planner_) planner_->join();
  for (size_t n = 0; n < nodes_.size(); ++n) {
    Node& node = *nodes_[n];
    if (!node.keeper) continue;
    // One that is being joined, or that others start and is not heard, may hang: its calls end
    // here.
    std::unique_lock lock(mutex_);
    const bool hangs = node.member.state() == Member::State::kSuspect && source_->waits();
    const bool is_there = node.control != nullptr && !hangs;
    lock.unlock();
    if (!is_there) source_->end(static_cast<int>(n));
    node.keeper->join();
  }
  for (const auto& node : nodes_) {
    if (!node->control) continue;
    Status closed = node->control->close_session(node->session);
    if (closed && nodes == Nodes::kStop) closed = node->control->stop();
    if (!closed) log_debug("closing node {}: {}", node->name, closed.error().message);
  }
}

}  // namespace atl::coordinator
