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
constexpr auto kShortestWait = std::chrono::microseconds(50);
// A wait that took longer than this was not a wait: the process was stopped or its machine paused.
constexpr auto kStall = 10 * kWaitStep;
// Different refusals that are logged; a damaged file is met by every dispatch.
constexpr size_t kRefusalsLogged = 1000;

kernels::RowType kernel_row_type(transport::WireRowType type) {
  return type == transport::WireRowType::kBf16 ? kernels::RowType::kBf16 : kernels::RowType::kF32;
}

}  // namespace

std::vector<std::vector<int>> Dispatcher::all_of(const std::vector<NodeLink>& nodes,
                                                 std::vector<int> NodeLink::*tiles) {
  std::vector<std::vector<int>> all;
  for (const NodeLink& node : nodes) all.push_back(node.*tiles);
  return all;
}

Dispatcher::Dispatcher(transport::Transport& transport, ThreadTeam& team, const Clock& clock,
                       DispatcherOptions options, std::vector<NodeLink> nodes, NodeWatch* watch)
    : transport_(transport),
      team_(team),
      clock_(clock),
      options_(std::move(options)),
      nodes_(std::move(nodes)),
      watch_(watch),
      states_(nodes_.size()),
      placement_(options_.epoch, all_of(nodes_, &NodeLink::owned),
                 all_of(nodes_, &NodeLink::standby)),
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
  try_nodes(*flight);
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
    if (flight->done()) {
      measure(*flight);
      return flight->finish(out, team_);
    }
    await_answers();
  }
}

// Only who is silent while this process listens is given up: nodes that were stopped with it, or
// whose answers lie here unread, are not.
void Dispatcher::await_answers() {
  const auto start = clock_.now();
  const auto until_late =
      std::chrono::duration_cast<std::chrono::microseconds>(check_late() - start);
  transport_.wait(std::clamp<std::chrono::microseconds>(until_late, kShortestWait, kWaitStep));
  poll();
  const auto waited = clock_.now() - start;
  if (waited > kStall) excuse_silence();
  for (NodeState& state : states_) {
    state.overdue_silence += std::min<std::chrono::nanoseconds>(waited, kWaitStep);
  }
  check_deadlines();
}

void Dispatcher::excuse_silence() {
  listening_since_ = clock_.now();
  for (NodeState& state : states_) state.last_progress = listening_since_;
}

int Dispatcher::num_living() const {
  return static_cast<int>(
      std::count_if(states_.begin(), states_.end(), [](const NodeState& s) { return s.alive; }));
}

// ---- Asking, and asking again ------------------------------------------------------------------

// Finds somebody for every share that nobody has been asked for, or not by the right one. With
// nobody left for one of them the flight fails: kUnavailable.
void Dispatcher::ask_for_the_rest(DispatchInFlight& flight) {
  for (size_t at = 0; at < flight.shares().size(); ++at) {  // a split adds some at the end
    while (true) {
      Share& share = flight.shares()[at];
      if (share.missing == 0 || share.asked || !share.second.empty() || flight.failure()) break;
      const std::vector<Part> parts = whom_to_ask(share);
      if (parts.empty() && await_return()) continue;
      if (parts.empty()) {
        flight.fail({ErrorCode::kUnavailable,
                     fmt::format("no expert node is left to compute layer {}: node {}: {}{}",
                                 flight.layer(), nodes_[share.node].name,
                                 alive(share.node) ? share.refusal : last_loss(share.node),
                                 other_losses(share.node))});
        return;
      }
      if (parts.size() > 1) {
        std::vector<std::vector<transport::TileRange>> tiles;
        for (const Part& part : parts) tiles.push_back(part.tiles);
        flight.split(at, tiles);
        for (size_t part = 1; part < parts.size(); ++part) {
          flight.shares()[flight.shares().size() - parts.size() + part].node = parts[part].node;
        }
      }
      Share& first = flight.shares()[at];
      if (parts.front().node != first.node && first.refusal.empty() &&
          !placement_.keeps(parts.front().node, first.tiles)) {
        log_warn("tiles of node {} are asked from node {}, which reads them from disk",
                 nodes_[first.node].name, nodes_[parts.front().node].name);
      }
      first.node = parts.front().node;
      (void)ask(flight, first);  // a failure loses the node: the loop goes on
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

// For each tile who holds it, if that one may be asked; else who keeps it in RAM; else, all of
// these tiles together, whoever holds least. Nobody who is better left if there is another one.
// Empty if nobody is left for one of them.
std::vector<Dispatcher::Part> Dispatcher::whom_to_ask(const Share& share, Readers readers,
                                                      std::optional<size_t> but) const {
  std::vector<std::vector<int>> asked(nodes_.size());  // [node]
  std::vector<int> rest;
  const auto best = [&](const auto& suits) {
    const auto burden = [&](size_t node) {
      return std::pair(is_better_left(node),
                       placement().num_tiles(node) + static_cast<int>(asked[node].size()));
    };
    std::optional<size_t> best;
    for (size_t node = 0; node < nodes_.size(); ++node) {
      const bool may = node != but && alive(node) &&
                       std::find(share.refused_by.begin(), share.refused_by.end(), node) ==
                           share.refused_by.end();
      if (may && suits(node) && (!best || burden(node) < burden(*best))) best = node;
    }
    return best;
  };
  for (const transport::TileRange& range : share.tiles) {
    for (int tile = range.begin; tile < range.end; ++tile) {
      const size_t holder = placement_.holder_of(tile);
      auto node = best([&](size_t n) { return n == holder; });
      if (!node) node = best([&](size_t n) { return placement_.keeps(n, tile); });
      if (node) {
        asked[*node].push_back(tile);
      } else {
        rest.push_back(tile);
      }
    }
  }
  if (!rest.empty()) {
    const auto node = best([&](size_t) { return readers == Readers::kYes; });
    if (!node) return {};
    asked[*node].insert(asked[*node].end(), rest.begin(), rest.end());
    std::sort(asked[*node].begin(), asked[*node].end());
  }
  std::vector<Part> parts;
  for (size_t node = 0; node < nodes_.size(); ++node) {
    if (!asked[node].empty()) parts.push_back({node, to_ranges(asked[node])});
  }
  return parts;
}

// Sends the share to its node under a fresh dispatch id. A node that can't be sent to is lost.
Status Dispatcher::ask(const DispatchInFlight& flight, Share& share) {
  const size_t node = share.node;
  CHECK(!share.asked && alive(node));
  share.id = DispatchId{next_id_++};
  share.asked = true;
  share.sent = states_[node].last_progress = clock_.now();
  const auto deadline = clock_.now() + options_.progress_deadline;
  while (true) {
    const Status sent = send_dispatch(flight, node, share.id, share.epoch, share.tiles);
    if (sent.ok()) return {};
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
}

// Once; kOverloaded: not now.
Status Dispatcher::send_dispatch(const DispatchInFlight& flight, size_t node, DispatchId id,
                                 Epoch epoch, const std::vector<transport::TileRange>& tiles) {
  transport::Dispatch dispatch;
  dispatch.names = {session_of(node), id, epoch, static_cast<uint32_t>(flight.layer())};
  dispatch.row_type = options_.limits.row_type;
  dispatch.num_rows = static_cast<uint32_t>(flight.num_rows());
  dispatch.hidden_size = options_.limits.hidden_size;
  dispatch.top_k = options_.limits.top_k;
  dispatch.tiles = tiles;
  std::vector<std::byte> header;
  transport::encode_dispatch_header(dispatch, &header);
  const Status sent =
      transport_.send(nodes_[node].peer, header, flight.payload(), flight.payload_bytes());
  if (!sent.ok()) return sent;
  NodeTraffic& traffic = traffic_[node];
  ++traffic.dispatches;
  traffic.rows += flight.num_rows();
  traffic.bytes_out += flight.payload_bytes();
  return {};
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
  if (states_[*node].overdue) {  // late, and well
    states_[*node].overdue = false;
    place();
  }
  const transport::DispatchNames& names = refused ? frame->refusal.names : frame->partial.names;
  for (DispatchInFlight* flight : in_flight_) {
    for (Share& share : flight->shares()) {
      if (share.missing == 0) continue;
      const auto is_about = [&](size_t asked, DispatchId id) {
        return asked == *node &&
               names == transport::DispatchNames{session_of(*node), id, share.epoch,
                                                 static_cast<uint32_t>(flight->layer())};
      };
      if (share.asked && is_about(share.node, share.id)) {
        if (refused) {
          if (note_refusal(flight->layer(), *node, share, frame->refusal.error))
            share.asked = false;
          return;
        }
        traffic_[*node].bytes_in += event.message->payload().size();
        return take_partial(*flight, share, frame->partial);
      }
      for (size_t leg = 0; leg < share.second.size(); ++leg) {
        if (!is_about(share.second[leg].node, share.second[leg].id)) continue;
        if (refused) {
          if (note_refusal(flight->layer(), *node, share, frame->refusal.error)) {
            flight->end_second(share);
          }
          return;
        }
        traffic_[*node].bytes_in += event.message->payload().size();
        return take_second(*flight, share, leg, frame->partial);
      }
    }
  }
  if (!refused) take_trial(*node, frame->partial);
  // Late or double.
}

// A node without a tile can still compute others: true. Otherwise it is lost, with what it owes.
bool Dispatcher::note_refusal(int32_t layer, size_t node, Share& share, const Error& error) {
  const std::string why = "refused: " + error.message;
  const bool for_want_of_a_tile = error.code == ErrorCode::kUnavailable ||
                                  error.code == ErrorCode::kCorrupt ||
                                  error.code == ErrorCode::kOverloaded;
  if (!for_want_of_a_tile) {
    lose_node(node, why);
    return false;
  }
  const std::string line = fmt::format("node {} at layer {}: {}", nodes_[node].name, layer, why);
  if (logged_refusals_.size() < kRefusalsLogged && logged_refusals_.insert(line).second) {
    log_warn("{}; asked from another node (this is said once)", line);
  }
  share.refused_by.push_back(node);
  share.refusal = why;
  return true;
}

void Dispatcher::take_partial(DispatchInFlight& flight, Share& share,
                              const transport::Partial& partial) {
  const int64_t missing_before = share.missing;
  if (Status added = flight.add(share, partial, team_); !added) {
    return lose_node(share.node, added.error().message);
  }
  if (share.missing == missing_before) return;
  states_[share.node].last_progress = clock_.now();
  if (share.missing == 0) end_share(flight, share);
}

void Dispatcher::take_second(DispatchInFlight& flight, Share& share, size_t leg,
                             const transport::Partial& partial) {
  const size_t node = share.second[leg].node;
  const int64_t missing_before = share.second[leg].missing;
  if (Status added = flight.add_second(share, share.second[leg], partial, team_); !added) {
    return lose_node(node, added.error().message);
  }
  if (share.second[leg].missing == missing_before) return;
  states_[node].last_progress = clock_.now();
  if (share.missing > 0) return;
  ++traffic_[share.node].hedges_won;
  end_share(flight, share);
}

// All of it is here. The other way's answers, if there is one, are nobody's from now on. Of a node
// that was overtaken it is known that it takes no less than this.
void Dispatcher::end_share(DispatchInFlight& flight, Share& share) {
  flight.end_second(share);
  const auto now = clock_.now();
  share.took = now - share.sent;
  if (trace_ && trace_->is_on()) {
    trace_->add({trace_ns(share.sent), trace_ns(now), share.id.value, flight.layer(),
                 static_cast<uint32_t>(flight.num_rows()), static_cast<uint16_t>(share.node),
                 trace_kind_});
  }
  if (share.asked && placement_.keeps(share.node, share.tiles)) {
    states_[share.node].times.observe(flight.num_rows(), count_tiles(share.tiles), share.took);
  }
}

}  // namespace atl::coordinator
