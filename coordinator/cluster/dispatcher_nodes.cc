// The dispatcher's nodes: which of them are late, overdue, suspect, lost, back.
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/log.h"
#include "coordinator/cluster/dispatcher.h"

namespace atl::coordinator {
namespace {

constexpr int kTrialsPerMeasure = 4;
// So many times as long as the others took for the same dispatch, and so long at least, is late
// even if it is usual: a node whose drive or processor became slow would soon count as usually
// slow.
constexpr int kTimesTheOthers = 8;
constexpr auto kLateAtLeast = std::chrono::milliseconds(10);

// What is late for the last of a dispatch's shares, from the time that the others took; nothing is
// while fewer than half of them are there.
std::chrono::nanoseconds late_for_the_last(const std::vector<DispatchInFlight::Share>& shares) {
  size_t done = 0;
  std::chrono::nanoseconds longest{};
  for (const DispatchInFlight::Share& share : shares) {
    if (share.missing > 0 || share.took.count() == 0) continue;
    ++done;
    longest = std::max(longest, share.took);
  }
  if (2 * done < shares.size() || done == 0) return std::chrono::nanoseconds::max();
  return std::max<std::chrono::nanoseconds>(kLateAtLeast, kTimesTheOthers * longest);
}

}  // namespace
// ---- What is late ------------------------------------------------------------------------------

// From others than its node, none of whom is better left; false if there are no such. What can't be
// sent at once is not waited for: the first node may still answer.
bool Dispatcher::ask_a_second_time(DispatchInFlight& flight, size_t at, Readers readers) {
  const size_t first = flight.shares()[at].node;
  const std::vector<Part> parts = whom_to_ask(flight.shares()[at], readers, first);
  const bool any_bad = std::any_of(parts.begin(), parts.end(),
                                   [&](const Part& part) { return is_better_left(part.node); });
  if (parts.empty() || any_bad) return false;
  const auto now = clock_.now();
  std::vector<Leg> legs;
  for (const Part& part : parts) {
    legs.push_back({DispatchId{next_id_++}, part.node, part.tiles, {}, 0, now});
  }
  flight.begin_second(flight.shares()[at], std::move(legs));
  ++traffic_[first].hedged;
  for (size_t leg = 0; leg < parts.size(); ++leg) {
    Share& share = flight.shares()[at];
    if (share.second.empty()) break;  // one of the nodes was lost
    const Leg& to = share.second[leg];
    const Status sent = send_dispatch(flight, to.node, to.id, share.epoch, to.tiles);
    if (sent.ok()) continue;
    if (sent.error().code == ErrorCode::kOverloaded) {
      flight.end_second(share);
    } else {
      lose_node(to.node, sent.error().message);
    }
  }
  return true;
}

Clock::TimePoint Dispatcher::check_late() {
  const auto now = clock_.now();
  auto next = Clock::TimePoint::max();
  if (options_.hedge_after == 0 && options_.overdue_after_min.count() == 0) return next;
  for (DispatchInFlight* flight : in_flight_) {
    const auto late_for_all = options_.hedge_after > 0 ? late_for_the_last(flight->shares())
                                                       : std::chrono::nanoseconds::max();
    for (size_t at = 0; at < flight->shares().size(); ++at) {
      const Share& share = flight->shares()[at];
      if (share.missing == 0 || !share.asked || !placement_.keeps(share.node, share.tiles))
        continue;
      const size_t node = share.node;
      const auto usual = states_[node].times.usual(flight->num_rows(), count_tiles(share.tiles));
      if (!usual) continue;
      if (options_.hedge_after > 0 && !share.was_doubled) {
        const std::chrono::nanoseconds unusual = std::max(
            usual->p99, std::chrono::nanoseconds(static_cast<int64_t>(
                            options_.hedge_after * static_cast<double>(usual->mean.count()))));
        const auto late = std::min(unusual, late_for_all);
        // What lies unread would have come within a part of that.
        const auto due = std::max(share.sent + late, listening_since_ + late / 4);
        if (now < due) {
          next = std::min(next, due);
        } else {
          (void)ask_a_second_time(*flight, at, Readers::kNo);
        }
      }
      if (options_.overdue_after_min.count() > 0 && !is_better_left(node)) {
        const std::chrono::nanoseconds late = std::max<std::chrono::nanoseconds>(
            options_.overdue_after_min, kUsualTimes * usual->p99);
        const NodeState& state = states_[node];
        const auto due = std::max({share.sent, state.last_progress, state.alone_at}) + late;
        if (now < due) {
          next = std::min(next, due);
        } else {
          overdue_node(node);
        }
      }
    }
  }
  return next;
}

// All that it owes is asked from others, too, if there is anybody. It is not lost: what it answers
// first still counts.
void Dispatcher::overdue_node(size_t node) {
  NodeState& state = states_[node];
  state.overdue = true;
  state.overdue_silence = {};
  bool any_other = false;
  for (DispatchInFlight* flight : in_flight_) {
    for (size_t at = 0; at < flight->shares().size(); ++at) {
      const Share& share = flight->shares()[at];
      if (share.node != node || !share.asked || share.missing == 0) continue;
      any_other =
          !share.second.empty() || ask_a_second_time(*flight, at, Readers::kYes) || any_other;
    }
  }
  if (!any_other) {
    state.overdue = false;  // there is nobody else: looked at again later
    state.alone_at = clock_.now();
    return;
  }
  ++traffic_[node].overdue;
  log_debug("node {} is overdue: asked nothing until it answers", nodes_[node].name);
  place();
}

// ---- How fast nodes are ------------------------------------------------------------------------

// A node that has fewer tiles than it might is sent the dispatch, too, now and then.
void Dispatcher::try_nodes(const DispatchInFlight& flight) {
  if (options_.measure_every.count() == 0) return;
  const auto now = clock_.now();
  for (size_t node = 0; node < nodes_.size(); ++node) {
    NodeState& state = states_[node];
    if (nodes_[node].tried.empty() || !alive(node) || is_better_left(node) || state.trial ||
        now < state.next_trial) {
      continue;
    }
    state.next_trial = now + options_.measure_every / kTrialsPerMeasure;
    const DispatchId id{next_id_++};
    const Status sent =
        send_dispatch(flight, node, id, placement().epoch, to_ranges(nodes_[node].tried));
    if (!sent) continue;  // a node that is lost shows at the next poll
    ++traffic_[node].tried;
    state.trial = {id, flight.num_rows(), flight.num_rows() * options_.limits.hidden_size, now};
  }
}

// A piece may come twice, which makes it look a little faster.
void Dispatcher::take_trial(size_t node, const transport::Partial& partial) {
  auto& trial = states_[node].trial;
  if (!trial || partial.names.dispatch != trial->id) return;
  trial->missing -= int64_t{partial.num_rows} * partial.num_outputs;
  if (trial->missing > 0) return;
  speeds_.add_trial(trial->num_rows, {node, static_cast<int>(nodes_[node].tried.size()),
                                      clock_.now() - trial->sent});
  trial.reset();
}

// Only dispatches that went as planned say how fast nodes are.
void Dispatcher::measure(DispatchInFlight& flight) {
  if (options_.measure_every.count() == 0 || watch_ == nullptr) return;
  std::vector<SpeedMeter::Answer> answers;
  for (const Share& share : flight.shares()) {
    if (!share.asked || !placement_.keeps(share.node, share.tiles)) return;
    answers.push_back({share.node, count_tiles(share.tiles), share.took});
  }
  speeds_.add_dispatch(flight.num_rows(), answers);
  const auto now = clock_.now();
  if (now - measured_at_ < options_.measure_every || !speeds_.has_any()) return;
  measured_at_ = now;
  watch_->measured(speeds_.take(nodes_.size()));
}

// How long a node may be silent.
std::chrono::nanoseconds Dispatcher::deadline_of(size_t node,
                                                 std::span<const transport::TileRange> tiles,
                                                 int64_t num_rows) const {
  const std::chrono::nanoseconds longest = options_.progress_deadline;
  const auto usual = states_[node].times.usual(num_rows, count_tiles(tiles));
  if (!usual || !placement_.keeps(node, tiles)) return longest;
  return std::min(longest, std::max<std::chrono::nanoseconds>(options_.progress_deadline_min,
                                                              kUsualTimes * usual->mean));
}

void Dispatcher::check_deadlines() {
  const auto now = clock_.now();
  const auto give_up = [&](size_t node, std::chrono::nanoseconds deadline) {
    lose_node(node,
              fmt::format("timeout after {} ms without an answer",
                          std::chrono::duration_cast<std::chrono::milliseconds>(deadline).count()));
  };
  for (size_t node = 0; node < nodes_.size(); ++node) {
    const NodeState& state = states_[node];
    if (!alive(node) || !state.overdue) continue;
    const auto usual = state.times.usual(1, 1);
    const auto deadline = std::max<std::chrono::nanoseconds>(
        options_.progress_deadline_min,
        usual ? kUsualTimes * usual->mean : std::chrono::nanoseconds(0));
    if (state.overdue_silence > deadline) give_up(node, deadline);
  }
  for (DispatchInFlight* flight : in_flight_) {
    for (Share& share : flight->shares()) {
      if (share.missing == 0) continue;
      if (share.asked) {
        const auto deadline = deadline_of(share.node, share.tiles, flight->num_rows());
        if (now - states_[share.node].last_progress > deadline) give_up(share.node, deadline);
      }
      for (size_t leg = 0; leg < share.second.size(); ++leg) {  // ends with a loss
        const size_t node = share.second[leg].node;
        if (share.second[leg].missing == 0) continue;
        const auto deadline = deadline_of(node, share.second[leg].tiles, flight->num_rows());
        const auto since = std::max(states_[node].last_progress, share.second[leg].sent);
        if (now - since > deadline) give_up(node, deadline);
      }
    }
  }
}

// ---- Nodes that go and come --------------------------------------------------------------------

// Asked are the living but suspects and those that are leaving, or all of them if there are no
// others: the fault of all suspects is hardly theirs.
void Dispatcher::place() {
  bool any_good = false;
  for (size_t node = 0; node < nodes_.size(); ++node) {
    any_good = any_good || (alive(node) && !is_better_left(node));
  }
  const auto is_asked = [&](size_t node) {
    return alive(node) && (!any_good || !is_better_left(node));
  };
  for (size_t node = 0; node < nodes_.size(); ++node) {
    if (is_asked(node)) placement_.put_back(node);
  }
  for (size_t node = 0; node < nodes_.size(); ++node) {
    if (!is_asked(node)) placement_.take_out(node);
  }
}

// What it still owes and its tiles are asked from others from now on.
void Dispatcher::drop_node(size_t node, const std::string& why) {
  NodeState& state = states_[node];
  CHECK(state.alive);
  state.alive = state.suspect = state.overdue = false;
  state.trial.reset();
  state.last_loss = why;
  place();
  transport_.close(nodes_[node].peer);
  for (DispatchInFlight* flight : in_flight_) {
    for (Share& share : flight->shares()) {
      if (share.node == node) share.asked = false;
      for (const Leg& leg : share.second) {
        if (leg.node != node) continue;
        flight->end_second(share);
        break;
      }
    }
  }
}

void Dispatcher::lose_node(size_t node, const std::string& why) {
  if (!alive(node)) return;
  drop_node(node, why);
  if (watch_) return watch_->given_up(node, states_[node].life, why);
  log_warn("node {} lost: {}; {} of {} nodes left", nodes_[node].name, why, num_living(),
           nodes_.size());
}

// What it owes is asked from somebody whom nobody suspects, if there is one.
void Dispatcher::suspect_node(size_t node) {
  states_[node].suspect = true;
  place();
  for (DispatchInFlight* flight : in_flight_) {
    for (Share& share : flight->shares()) {
      for (const Leg& leg : share.second) {
        if (leg.node != node) continue;
        flight->end_second(share);
        break;
      }
      const bool owes = share.node == node && share.asked && share.missing > 0;
      if (!owes || !share.second.empty()) continue;
      const std::vector<Part> others = whom_to_ask(share);
      const bool is_better = std::none_of(others.begin(), others.end(), [&](const Part& part) {
        return is_better_left(part.node);
      });
      if (!others.empty() && is_better) share.asked = false;
    }
  }
}

void Dispatcher::join_node(const NodeNews& news) {
  CHECK_LT(news.node, states_.size());
  NodeState& state = states_[news.node];
  CHECK_GT(news.life, state.life);  // a life begins once
  if (state.alive) drop_node(news.node, "it began anew");
  state.life = news.life;
  auto peer = transport_.connect(news.data_address, nodes_[news.node].name);
  if (!peer) {
    state.last_loss = peer.error().message;
    return watch_->given_up(news.node, news.life, state.last_loss);
  }
  nodes_[news.node].peer = *peer;
  nodes_[news.node].session = news.session;
  state.alive = true;
  state.last_loss.clear();
  state.times = {};
  place();
}

// What is in flight goes on as it was asked: any node computes any tile.
void Dispatcher::take_plan(const std::vector<NodeNews::Owner>& plan) {
  CHECK(plan.size() >= nodes_.size());
  for (size_t node = nodes_.size(); node < plan.size(); ++node) {
    nodes_.push_back({plan[node].name, {}, {}, {}, false});
    states_.emplace_back().alive = false;
    states_.back().life = 0;
    states_.back().last_loss = "it was not there yet";
    traffic_.emplace_back();
  }
  for (size_t node = 0; node < plan.size(); ++node) {
    nodes_[node].owned = plan[node].tiles;
    nodes_[node].standby = plan[node].standby;
    nodes_[node].tried = plan[node].tried;
    states_[node].is_leaving = plan[node].is_leaving;
  }
  (void)speeds_.take(nodes_.size());  // of another plan
  measured_at_ = clock_.now();
  placement_.replan(all_of(nodes_, &NodeLink::owned), all_of(nodes_, &NodeLink::standby));
  place();
}

void Dispatcher::take_news() {
  if (!watch_) return;
  for (const NodeNews& news : watch_->take_news()) {
    if (news.kind == NodeNews::Kind::kPlan) {
      take_plan(news.plan);
      continue;
    }
    const bool is_alive = alive(news.node);
    switch (news.kind) {
      case NodeNews::Kind::kSuspect:
        if (is_alive) suspect_node(news.node);
        break;
      case NodeNews::Kind::kTrusted:
        if (!is_alive) break;
        states_[news.node].suspect = false;
        place();
        break;
      case NodeNews::Kind::kLost:
        if (is_alive) drop_node(news.node, news.why);
        break;
      case NodeNews::Kind::kJoined:
        join_node(news);
        break;
      case NodeNews::Kind::kPlan:
        break;
    }
  }
}

}  // namespace atl::coordinator
