// The cluster's plans: who is to keep which tiles, as nodes come, go, are drained and become slow.
#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <utility>

#include "base/check.h"
#include "base/log.h"
#include "coordinator/cluster/cluster.h"

namespace atl::coordinator {
namespace {

constexpr auto kPlanPollInterval = std::chrono::milliseconds(50);

}  // namespace

std::vector<int> Cluster::together(const std::vector<int>& tiles, const std::vector<int>& standby) {
  return topology::Placement{Epoch{1}, {tiles}, {standby}}.kept_by_node().front();
}

// Under the lock: for all nodes, as they are there or not.
topology::Placement Cluster::whole_plan() const {
  topology::Placement plan;
  plan.epoch = epoch_;
  for (const auto& node : nodes_) {
    plan.tiles_of_node.push_back(node->owned);
    plan.standby_of_node.push_back(node->standby);
    if (node->has_no_room) plan.standby_of_node.back().clear();
  }
  return plan;
}

// Under the lock, likewise: tiles that they can keep.
std::vector<int> Cluster::rooms() const {
  std::vector<int> rooms;
  for (const auto& node : nodes_) {
    rooms.push_back(node->has_no_room ? static_cast<int>(node->owned.size()) : node->room);
  }
  return rooms;
}

// Under the lock: for those that are not gone.
topology::Placement Cluster::plan_of_equals() const {
  std::vector<bool> gone;
  for (const auto& node : nodes_) gone.push_back(node->gone);
  return topology::placement_without(whole_plan(), gone, options_.redundancy, rooms());
}

// Under the lock: who is to keep which tiles now. Those that stay are told and load; then the
// dispatcher is.
void Cluster::replan() {
  const auto now = clock_.now();
  for (const auto& node : nodes_) {
    const bool is_away = begun_ && node->lost_at && !node->member.is_there() &&
                         now - *node->lost_at >= options_.grace;
    node->gone = node->removed || node->draining || is_away;
  }
  const topology::Placement for_equal_nodes = plan_of_equals();
  const topology::Placement plan = by_speed(for_equal_nodes);
  const std::vector<std::vector<int>> kept = plan.kept_by_node();
  ++epoch_.value;
  std::string text;
  for (size_t n = 0; n < nodes_.size(); ++n) {
    Node& node = *nodes_[n];
    node.plan_due = node.control != nullptr && !node.removed && node.told != kept[n];
    node.warming = false;
    node.planned = plan.tiles_of_node[n];
    node.planned_standby = plan.standby_of_node[n];
    node.tried.clear();
    if (node.planned.size() < for_equal_nodes.tiles_of_node[n].size()) {
      node.tried = for_equal_nodes.tiles_of_node[n];
    }
    if (node.removed) continue;
    text += fmt::format("{}{} {}", n > 0 ? ", " : "", node.name, node.planned.size());
    if (options_.redundancy > 1) text += fmt::format("+{}", node.planned_standby.size());
  }
  if (options_.redundancy > 1) {
    const topology::Redundancy reached = topology::redundancy_of(plan, options_.redundancy);
    text += fmt::format("; {} of {} are kept by {} nodes", reached.num_full, reached.num_tiles,
                        options_.redundancy);
  }
  log_info("plan {}: tiles of each expert: {}", epoch_.value, text);
  planned_at_ = now;
  plan_told_ = false;
  changed_->notify_all();
}

// Under the lock: the plan with tiles where speed has moved them, from when it was another plan on
// nowhere. Nobody forgets what it keeps, so that they can go back at once.
topology::Placement Cluster::by_speed(const topology::Placement& plan) {
  topology::Placement result = plan;
  result.standby_of_node.resize(nodes_.size());
  if (!options_.follows_speed) return result;
  const std::vector<std::vector<int>> kept = plan.kept_by_node();
  if (plan.tiles_of_node != balanced_plan_.tiles_of_node || kept != balanced_plan_.kept_by_node()) {
    balanced_plan_ = plan;
    // With standbys tiles go to who keeps them, and nothing has to be loaded.
    balancer_.set_plan(plan.tiles_of_node, kept,
                       options_.redundancy > 1 ? std::vector<int>(nodes_.size(), 0) : rooms());
  }
  result.tiles_of_node = balancer_.tiles();
  for (size_t n = 0; n < nodes_.size(); ++n) {
    const std::vector<int>& tiles = result.tiles_of_node[n];
    std::vector<int>& standby = result.standby_of_node[n];
    standby.clear();
    std::set_difference(kept[n].begin(), kept[n].end(), tiles.begin(), tiles.end(),
                        std::back_inserter(standby));
  }
  return result;
}

// The dispatcher's thread. Only what is measured of the plan in force, with all of its nodes there,
// says whether another one would be better.
void Cluster::measured(const std::vector<NodeSpeed>& speeds) {
  const std::lock_guard lock(mutex_);
  const bool is_in_force = begun_ && plan_told_ && !plan_news_;
  if (!options_.follows_speed || !is_in_force || speeds.size() != nodes_.size()) return;
  if (balancer_.plan().size() != nodes_.size()) (void)by_speed(plan_of_equals());  // the first time
  std::vector<topology::MeasuredNode> nodes;
  for (size_t n = 0; n < nodes_.size(); ++n) {
    nodes.push_back({nodes_[n]->member.is_there(), speeds[n].answers, speeds[n].seconds_per_tile,
                     speeds[n].tried_seconds});
  }
  if (!balancer_.look(nodes)) return;
  log_info("shares follow the nodes' speed{}",
           balancer_.is_as_planned() ? ": all are as fast as planned again" : "");
  replan();
}

// The planner's thread. A node that hangs holds it up for a call's deadline, and then is lost.
void Cluster::tend_plan() {
  std::unique_lock lock(mutex_);
  while (!stopping_) {
    changed_->wait_until(lock, clock_.now() + kPlanPollInterval,
                         [this] { return stopping_ || (begun_ && !plan_told_); });
    if (stopping_ || plan_told_ || !begun_) continue;
    bool all_warm = true;
    for (size_t n = 0; n < nodes_.size() && !stopping_; ++n) {
      Node& node = *nodes_[n];
      if (!node.control || !node.member.is_there() || (!node.plan_due && !node.warming)) continue;
      const std::shared_ptr<transport::NodeClient> control = node.control;
      const SessionId session = node.session;
      const std::vector<int> kept = together(node.planned, node.planned_standby);
      const transport::Plan plan{epoch_, to_ranges(kept), to_ranges(node.planned_standby)};
      const bool due = node.plan_due;
      lock.unlock();
      Status planned;
      if (due) planned = control->apply_plan(session, plan);
      auto state = control->state(session);
      lock.lock();
      if (node.control != control || plan.epoch != epoch_) {  // lost, or planned anew meanwhile
        all_warm = false;
        continue;
      }
      if (due && planned) {
        node.plan_due = false;
        node.warming = true;
        node.told = kept;
      }
      if (due && !planned && planned.error().code != ErrorCode::kOverloaded) {
        log_warn("node {} did not take plan {}: {}", node.name, epoch_.value,
                 planned.error().message);
        node.plan_due = false;  // it reads when it is asked
      }
      if (!due && state && state->bytes_loaded >= state->bytes_total) node.warming = false;
      all_warm = all_warm && !node.plan_due && !node.warming;
    }
    if (all_warm || clock_.now() - planned_at_ > options_.load_patience) tell_plan();
    if (!plan_told_) {
      changed_->wait_until(lock, clock_.now() + kPlanPollInterval, [this] { return stopping_; });
    }
  }
}

// Under the lock.
void Cluster::tell_plan() {
  NodeNews news;
  news.kind = NodeNews::Kind::kPlan;
  for (const auto& node : nodes_) {
    news.plan.push_back({node->name, node->planned, node->draining || node->removed,
                         node->planned_standby, node->tried});
    node->is_new = false;
  }
  plan_news_ = std::move(news);
  plan_told_ = true;
  planned_at_ = clock_.now();
  transport_.wake();
}

Cluster::Node* Cluster::find(const std::string& name) {
  for (const auto& node : nodes_) {
    if (node->name == name && !node->removed) return node.get();
  }
  return nullptr;
}

size_t Cluster::place_of(const Node& node) const {
  for (size_t n = 0; n < nodes_.size(); ++n) {
    if (nodes_[n].get() == &node) return n;
  }
  CHECK(false);
  return 0;
}

Status Cluster::drain(const std::string& name) {
  const std::lock_guard lock(mutex_);
  Node* node = find(name);
  if (node == nullptr) {
    return Error{ErrorCode::kInvalid, fmt::format("there is no node {}", name)};
  }
  if (node->draining) return {};
  bool others = false;
  for (const auto& other : nodes_) {
    others = others || (other.get() != node && !other->removed && !other->draining &&
                        other->member.is_there() && !other->owned.empty());
  }
  if (!others) {
    return Error{ErrorCode::kInvalid,
                 fmt::format("node {} is the only one that could compute: no other one is there to "
                             "take its tiles",
                             name)};
  }
  log_info("node {} is drained", name);
  node->draining = true;
  replan();
  return {};
}

Status Cluster::resume(const std::string& name) {
  const std::lock_guard lock(mutex_);
  Node* node = find(name);
  if (node == nullptr) {
    return Error{ErrorCode::kInvalid, fmt::format("there is no node {}", name)};
  }
  if (!node->draining) return {};
  log_info("node {} is resumed", name);
  node->draining = false;
  replan();
  return {};
}

void Cluster::set_nodes(const std::vector<Planned>& planned) {
  const std::lock_guard lock(mutex_);
  CHECK(planned.size() >= nodes_.size());
  for (size_t n = 0; n < planned.size(); ++n) {
    const bool is_new = n == nodes_.size();
    if (is_new) {
      nodes_.push_back(std::make_unique<Node>(source_->name(static_cast<int>(n)), planned[n].tiles,
                                              planned[n].standby, planned[n].room, options_.times,
                                              clock_.now(), Member::First::kOrdered));
      nodes_[n]->planned.clear();
      nodes_[n]->planned_standby.clear();
      nodes_[n]->is_new = true;
      nodes_[n]->lost_at = clock_.now();
      nodes_[n]->session = options_.session;
    }
    Node& node = *nodes_[n];
    node.owned = planned[n].tiles;
    node.standby = planned[n].standby;
    node.room = planned[n].room;
    if (node.removed && !planned[n].is_removed) node.lost_at = clock_.now();
    node.removed = planned[n].is_removed;
    if (planned[n].is_moved) node.member.lost("it has another address now");
    if (is_new && watching_) start_keeper(n);
  }
  replan();
}

}  // namespace atl::coordinator
