#include "coordinator/cluster/dispatcher.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "base/log.h"
#include "base/units.h"
#include "kernels/ops.h"

namespace atl::coordinator {
namespace {

constexpr auto kWaitStep = std::chrono::milliseconds(100);
// A wait that took longer than this was not a wait: the process was stopped or its machine paused.
constexpr auto kStall = 10 * kWaitStep;
// Different refusals that are logged; a damaged file is met by every dispatch.
constexpr size_t kRefusalsLogged = 1000;

kernels::RowType kernel_row_type(transport::WireRowType type) {
  return type == transport::WireRowType::kBf16 ? kernels::RowType::kBf16 : kernels::RowType::kF32;
}

std::vector<std::vector<int>> owned_by(const std::vector<NodeLink>& nodes) {
  std::vector<std::vector<int>> owned;
  for (const NodeLink& node : nodes) owned.push_back(node.owned);
  return owned;
}

}  // namespace

Dispatcher::Dispatcher(transport::Transport& transport, ThreadTeam& team, const Clock& clock,
                       DispatcherOptions options, std::vector<NodeLink> nodes, NodeWatch* watch)
    : transport_(transport),
      team_(team),
      clock_(clock),
      options_(std::move(options)),
      nodes_(std::move(nodes)),
      watch_(watch),
      states_(nodes_.size()),
      placement_(options_.epoch, owned_by(nodes_)),
      traffic_(nodes_.size()) {
  in_flight_.reserve(kInFlightMax);
  idle_.reserve(kInFlightMax);
  for (size_t node = 0; node < nodes_.size(); ++node) {
    if (nodes_[node].is_there) continue;
    states_[node].alive = false;
    states_[node].life = 0;
    states_[node].last_loss = "it was not there yet";
  }
  place();
}

Result<Dispatcher::Ptr> Dispatcher::dispatch(int32_t layer, int64_t num_rows, const float* rows,
                                             const int32_t* ids, const float* weights) {
  CHECK_LT(in_flight_.size(), kInFlightMax);
  poll();
  const int64_t hidden = options_.limits.hidden_size, top_k = options_.limits.top_k;
  const transport::DispatchPayloadLayout layout =
      transport::dispatch_payload_layout(num_rows, hidden, top_k, options_.limits.row_type);
  transport::SharedBuffer payload = free_buffer(layout.bytes);
  std::byte* to = payload->data();
  std::memcpy(to + layout.ids, ids, num_rows * top_k * sizeof(int32_t));
  std::memcpy(to + layout.weights, weights, num_rows * top_k * sizeof(float));
  const size_t choices_end = layout.weights + num_rows * top_k * sizeof(float);
  std::memset(to + choices_end, 0, layout.rows - choices_end);
  const size_t row_bytes = hidden * transport::row_element_bytes(options_.limits.row_type);
  team_.parallel_for(num_rows, 8, [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      kernels::store_rounded(rows + row * hidden, hidden, kernel_row_type(options_.limits.row_type),
                             to + layout.rows + row * row_bytes);
    }
  });
  Ptr flight = begin(layer, num_rows, std::move(payload), layout.bytes);
  ask_for_the_rest(*flight);
  if (flight->failure()) return *flight->failure();
  return flight;
}

Dispatcher::Ptr Dispatcher::begin(int32_t layer, int64_t num_rows, transport::SharedBuffer payload,
                                  size_t payload_bytes) {
  if (idle_.empty()) idle_.push_back(std::make_unique<DispatchInFlight>(options_.limits));
  idle_.back()->begin(layer, num_rows, std::move(payload), payload_bytes, placement_.view());
  in_flight_.push_back(idle_.back().release());
  idle_.pop_back();
  return Ptr(in_flight_.back(), End{this});
}

// Throws nothing: there is room for all that are ever made.
void Dispatcher::end(DispatchInFlight* flight) {
  CHECK_EQ(std::erase(in_flight_, flight), 1u);
  flight->release_payload();
  idle_.emplace_back(flight);
}

// A buffer that no send is reading any more, of at least `bytes`.
transport::SharedBuffer Dispatcher::free_buffer(size_t bytes) {
  for (const transport::SharedBuffer& buffer : buffers_) {
    if (buffer.use_count() == 1 && buffer->size() >= bytes) return buffer;
  }
  std::erase_if(buffers_, [](const auto& buffer) { return buffer.use_count() == 1; });
  buffers_.push_back(std::make_shared<HostBuffer>(round_up(static_cast<int64_t>(bytes), 4096)));
  return buffers_.back();
}

void Dispatcher::hint(int32_t layer, std::span<const int32_t> experts) {
  if (experts.empty()) return;
  transport::SharedBuffer payload = free_buffer(experts.size_bytes());
  std::memcpy(payload->data(), experts.data(), experts.size_bytes());
  transport::Hint hint;
  const PlacementView& placement = placement_.view();
  hint.experts = experts;
  std::vector<std::byte> header;
  for (size_t node = 0; node < nodes_.size(); ++node) {
    const auto tiles = placement.tiles(layer, node);
    if (!alive(node) || tiles.empty()) continue;
    hint.names = {session_of(node), DispatchId{0}, placement.epoch, static_cast<uint32_t>(layer)};
    hint.tiles.assign(tiles.begin(), tiles.end());
    transport::encode_hint_header(hint, &header);
    // A node that is lost shows at the next poll, not here.
    const Status sent = transport_.send(nodes_[node].peer, header, payload, experts.size_bytes());
    if (sent.ok()) ++traffic_[node].hints;
  }
}

void Dispatcher::announce(const std::string& request_ids) {
  std::vector<std::byte> header;
  for (size_t node = 0; node < nodes_.size(); ++node) {
    if (!alive(node)) continue;
    transport::encode_step_note(
        {{session_of(node), DispatchId{next_id_}, placement_.view().epoch, 0}, request_ids},
        &header);
    (void)transport_.send(nodes_[node].peer, header, nullptr, 0);
  }
}

void Dispatcher::poll() {
  take_news();
  while (auto event = transport_.poll()) handle(std::move(*event));
}

Result<std::vector<RowFailure>> Dispatcher::combine(Ptr flight, float* out) {
  poll();
  excuse_silence();  // until now others had our time
  while (true) {
    for (size_t i = 0; i < in_flight_.size(); ++i) ask_for_the_rest(*in_flight_[i]);
    if (flight->failure()) return *flight->failure();
    if (flight->done()) return flight->finish(out, team_);
    await_answers();
  }
}

// Only who is silent while this process listens is given up: nodes that were stopped with it, or
// whose answers lie here unread, are not.
void Dispatcher::await_answers() {
  const auto start = clock_.now();
  transport_.wait(kWaitStep);
  poll();
  if (clock_.now() - start > kStall) excuse_silence();
  check_deadlines();
}

void Dispatcher::excuse_silence() {
  const auto now = clock_.now();
  for (NodeState& state : states_) state.last_progress = now;
}

int Dispatcher::num_living() const {
  return static_cast<int>(
      std::count_if(states_.begin(), states_.end(), [](const NodeState& s) { return s.alive; }));
}

// ---- Asking, and asking again ------------------------------------------------------------------

// Finds somebody for every share that nobody has been asked for, or not by the right one. With
// nobody left for one of them the flight fails: kUnavailable.
void Dispatcher::ask_for_the_rest(DispatchInFlight& flight) {
  for (Share& share : flight.shares()) {
    while (share.missing > 0 && !share.asked && !flight.failure()) {
      const std::optional<size_t> whom = whom_to_ask(share);
      if (!whom && await_return()) continue;
      if (!whom) {
        flight.fail({ErrorCode::kUnavailable,
                     fmt::format("no expert node is left to compute layer {}: node {}: {}{}",
                                 flight.layer(), nodes_[share.node].name,
                                 alive(share.node) ? share.refusal : last_loss(share.node),
                                 other_losses(share.node))});
        return;
      }
      if (*whom != share.node && share.refusal.empty()) {
        log_warn("tiles of node {} are asked from node {}, which reads them from disk",
                 nodes_[share.node].name, nodes_[*whom].name);
      }
      share.node = *whom;
      (void)ask(flight, share);  // a failure loses the node: the loop goes on
    }
  }
}

// "; lost n1: its process has ended": perhaps one of them has what is wanted.
std::string Dispatcher::other_losses(size_t than) const {
  std::string text;
  for (size_t node = 0; node < nodes_.size(); ++node) {
    if (node == than || alive(node)) continue;
    text += fmt::format("; lost {}: {}", nodes_[node].name, last_loss(node));
  }
  return text;
}

// Waits until one of the nodes is back, if all are lost and that may be hoped for.
bool Dispatcher::await_return() {
  if (!watch_ || num_living() > 0 || !watch_->brings_back()) return false;
  log_info("no node is left: waits up to {} ms for one to be back",
           options_.return_patience.count());
  const auto deadline = clock_.now() + options_.return_patience;
  while (num_living() == 0 && clock_.now() < deadline) {
    transport_.wait(kWaitStep);
    take_news();
  }
  return num_living() > 0;
}

// Who holds the tiles, if it may be asked; else who holds least, one that is not suspect first.
std::optional<size_t> Dispatcher::whom_to_ask(const Share& share) const {
  const auto may = [&](size_t node) {
    return alive(node) && std::find(share.refused_by.begin(), share.refused_by.end(), node) ==
                              share.refused_by.end();
  };
  const size_t holder = placement_.holder_of(share.tiles.front().begin);
  if (may(holder)) return holder;
  const auto burden = [&](size_t node) {
    return std::pair(is_better_left(node), placement().num_tiles(node));
  };
  std::optional<size_t> best;
  for (size_t node = 0; node < nodes_.size(); ++node) {
    if (may(node) && (!best || burden(node) < burden(*best))) best = node;
  }
  return best;
}

// Sends the share to its node under a fresh dispatch id. A node that can't be sent to is lost.
Status Dispatcher::ask(const DispatchInFlight& flight, Share& share) {
  const size_t node = share.node;
  CHECK(!share.asked && alive(node));
  transport::Dispatch dispatch;
  share.id = DispatchId{next_id_++};
  share.asked = true;
  share.sent = states_[node].last_progress = clock_.now();
  dispatch.names = {session_of(node), share.id, share.epoch, static_cast<uint32_t>(flight.layer())};
  dispatch.row_type = options_.limits.row_type;
  dispatch.num_rows = static_cast<uint32_t>(flight.num_rows());
  dispatch.hidden_size = options_.limits.hidden_size;
  dispatch.top_k = options_.limits.top_k;
  dispatch.tiles = share.tiles;
  std::vector<std::byte> header;
  transport::encode_dispatch_header(dispatch, &header);

  const auto deadline = clock_.now() + options_.progress_deadline;
  while (true) {
    const Status sent =
        transport_.send(nodes_[node].peer, header, flight.payload(), flight.payload_bytes());
    if (sent.ok()) break;
    if (sent.error().code != ErrorCode::kOverloaded || clock_.now() > deadline) {
      lose_node(node, sent.error().message);
      return sent;
    }
    if (auto event = transport_.poll()) {
      handle(std::move(*event));
    } else {
      transport_.wait(kWaitStep);
      take_news();
    }
    if (!share.asked) return Error{ErrorCode::kUnavailable, last_loss(node)};
  }
  NodeTraffic& traffic = traffic_[node];
  ++traffic.dispatches;
  traffic.rows += flight.num_rows();
  traffic.bytes_out += flight.payload_bytes();
  return {};
}

// How long its node may be silent.
std::chrono::nanoseconds Dispatcher::deadline_of(const Share& share, int64_t num_rows) const {
  const std::chrono::nanoseconds longest = options_.progress_deadline;
  const auto usual = states_[share.node].times.usual(num_rows);
  if (!usual || !placement_.owns(share.node, share.tiles)) return longest;
  return std::min(longest, std::max<std::chrono::nanoseconds>(options_.progress_deadline_min,
                                                              kUsualTimes * *usual));
}

void Dispatcher::check_deadlines() {
  const auto now = clock_.now();
  for (DispatchInFlight* flight : in_flight_) {
    for (const Share& share : flight->shares()) {
      if (share.missing == 0 || !share.asked) continue;
      const auto deadline = deadline_of(share, flight->num_rows());
      if (now - states_[share.node].last_progress <= deadline) continue;
      lose_node(
          share.node,
          fmt::format("timeout after {} ms without an answer",
                      std::chrono::duration_cast<std::chrono::milliseconds>(deadline).count()));
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
  state.alive = state.suspect = false;
  state.last_loss = why;
  place();
  transport_.close(nodes_[node].peer);
  for (DispatchInFlight* flight : in_flight_) {
    for (Share& share : flight->shares()) {
      if (share.node == node) share.asked = false;
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
      if (share.node != node || !share.asked || share.missing == 0) continue;
      const std::optional<size_t> other = whom_to_ask(share);
      if (other && !is_better_left(*other)) share.asked = false;
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
  std::vector<std::vector<int>> owned;
  for (size_t node = 0; node < plan.size(); ++node) {
    nodes_[node].owned = plan[node].tiles;
    states_[node].is_leaving = plan[node].is_leaving;
    owned.push_back(plan[node].tiles);
  }
  placement_.replan(std::move(owned));
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

// ---- Receiving ---------------------------------------------------------------------------------

std::optional<size_t> Dispatcher::node_of(transport::PeerId peer) const {
  for (size_t node = 0; node < nodes_.size(); ++node) {
    if (nodes_[node].peer == peer) return node;
  }
  return std::nullopt;
}

void Dispatcher::handle(transport::Event event) {
  const std::optional<size_t> node = node_of(event.peer);
  if (!node || !alive(*node)) return;  // late words of a node that was given up
  if (event.kind == transport::Event::Kind::kPeerLost) {
    return lose_node(*node, event.status.error().message);
  }
  auto frame = transport::decode_frame(*event.message, options_.limits);
  if (!frame) return lose_node(*node, "sent a bad frame: " + frame.error().message);
  if (frame->kind == transport::Frame::Kind::kDispatch ||
      frame->kind == transport::Frame::Kind::kHint ||
      frame->kind == transport::Frame::Kind::kStepNote) {
    return lose_node(*node, fmt::format("sent a frame of kind {}, expected a partial",
                                        static_cast<int>(frame->kind)));
  }
  const bool refused = frame->kind == transport::Frame::Kind::kRefusal;
  if (refused && frame->refusal.names.dispatch == transport::kUnreadableDispatch) {
    return lose_node(*node, "could not read a dispatch: " + frame->refusal.error.message);
  }
  const transport::DispatchNames& names = refused ? frame->refusal.names : frame->partial.names;
  for (DispatchInFlight* flight : in_flight_) {
    for (Share& share : flight->shares()) {
      if (share.node != *node || !share.asked || share.missing == 0 ||
          names != transport::DispatchNames{session_of(*node), share.id, share.epoch,
                                            static_cast<uint32_t>(flight->layer())}) {
        continue;
      }
      if (refused) return take_refusal(flight->layer(), share, frame->refusal.error);
      traffic_[*node].bytes_in += event.message->payload().size();
      return take_partial(*flight, share, frame->partial);
    }
  }
  // Late or double.
}

// A node without a tile can still compute others.
void Dispatcher::take_refusal(int32_t layer, Share& share, const Error& error) {
  const std::string why = "refused: " + error.message;
  const bool for_want_of_a_tile = error.code == ErrorCode::kUnavailable ||
                                  error.code == ErrorCode::kCorrupt ||
                                  error.code == ErrorCode::kOverloaded;
  if (!for_want_of_a_tile) return lose_node(share.node, why);
  const std::string line =
      fmt::format("node {} at layer {}: {}", nodes_[share.node].name, layer, why);
  if (logged_refusals_.size() < kRefusalsLogged && logged_refusals_.insert(line).second) {
    log_warn("{}; asked from another node (this is said once)", line);
  }
  share.refused_by.push_back(share.node);
  share.refusal = why;
  share.asked = false;
}

void Dispatcher::take_partial(DispatchInFlight& flight, Share& share,
                              const transport::Partial& partial) {
  const int64_t missing_before = share.missing;
  if (Status added = flight.add(share, partial, team_); !added) {
    return lose_node(share.node, added.error().message);
  }
  if (share.missing == missing_before) return;
  NodeState& state = states_[share.node];
  state.last_progress = clock_.now();
  if (share.missing == 0 && placement_.owns(share.node, share.tiles)) {
    state.times.observe(flight.num_rows(), state.last_progress - share.sent);
  }
}

}  // namespace atl::coordinator
