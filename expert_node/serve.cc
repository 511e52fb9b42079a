#include "expert_node/serve.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <iterator>

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/units.h"

namespace atl::expert_node {
namespace {

// A coordinator that takes none of its answers for so long is given up.
constexpr auto kSendDeadline = std::chrono::seconds(30);
// And so is one for whom more than so many of the largest answers wait: it asks for the next layer
// when it has the last one's, and perhaps again for what another node owed.
constexpr size_t kAnswersWaiting = 3;
constexpr auto kIdleWait = std::chrono::milliseconds(500);
constexpr auto kWaitToSend = std::chrono::milliseconds(1);
constexpr int kMessagesPerRound = 64, kDispatchesPerRound = 64;
// Different refusals that are logged; a damaged file is met by every dispatch.
constexpr size_t kRefusalsLogged = 1000;
// Dispatches that have come in and are not computed yet, of each coordinator: what it asks for when
// all is well, and the most that are kept.
constexpr uint64_t kDispatchesWaiting = 2;
constexpr size_t kDispatchesQueued = 64;

StepLimits step_limits(const NodeOptions& options, const storage::ExpertCatalog& catalog) {
  return {options.rows_max, catalog.hidden_size, catalog.num_experts_per_tok,
          catalog.moe_intermediate_size};
}

}  // namespace

// Bytes read by the loader, seen by state().
class ExpertNode::LoadProgress final : public Progress {
 public:
  void start(uint64_t total_bytes) override {
    total_ = total_bytes;
    if (on_start) on_start();
  }
  void advance(uint64_t bytes) override { done_.fetch_add(bytes, std::memory_order_relaxed); }
  void finish() { done_ = total(); }
  uint64_t done() const { return done_.load(std::memory_order_relaxed); }
  uint64_t total() const { return total_.load(std::memory_order_relaxed); }

  std::function<void()> on_start;  // loader thread; total() is right from there on

 private:
  std::atomic<uint64_t> total_{0}, done_{0};
};

uint64_t node_buffer_bytes(const NodeOptions& options, const storage::ExpertCatalog& catalog,
                           int num_threads) {
  transport::WireLimits limits;
  limits.rows_max = options.rows_max;
  limits.hidden_size = static_cast<uint32_t>(catalog.hidden_size);
  limits.top_k = static_cast<uint32_t>(catalog.num_experts_per_tok);
  limits.row_type = options.row_type;
  // The transport's buffers are powers of two.
  return Executor::buffer_bytes(step_limits(options, catalog), num_threads) +
         kDispatchesWaiting * std::bit_ceil(limits.dispatch_payload_bytes_max()) +
         uint64_t{limits.rows_max} * limits.hidden_size * sizeof(int64_t);
}

// ---- The data plane: take, compute, send -----------------------------------------------------

void ExpertNode::serve_until_stopped(const std::function<void()>& each_round) {
  while (!stopping_) {
    const bool was_busy = serve_some();
    if (each_round) each_round();
    if (was_busy) continue;
    transport_.wait(send_waiting() ? kIdleWait : kWaitToSend);
  }
}

// What comes in while something is computed has its turn, too, before the next is chosen.
bool ExpertNode::serve_some() {
  bool was_busy = false;
  for (int round = 0; round < kDispatchesPerRound; ++round) {
    const bool has_taken = take_events();
    const bool has_computed = compute_next();
    was_busy |= has_taken || has_computed;
    if (!has_computed) break;
  }
  return was_busy;
}

bool ExpertNode::take_events() {
  connect_and_close_sessions();
  send_waiting();
  bool was_busy = false;
  for (int i = 0; i < kMessagesPerRound; ++i) {
    auto event = transport_.poll();
    if (!event) break;
    was_busy = true;
    if (event->kind == transport::Event::Kind::kMessage) {
      connect_and_close_sessions();  // a hello may have come in beside its first Dispatch
      take(event->peer, std::move(event->message));
    } else if (auto session = session_of(event->peer)) {
      log_info("coordinator {} gone: {}", session->coordinator, event->status.error().message);
      close_session(session->id);
    }
  }
  return was_busy;
}

void ExpertNode::take(transport::PeerId peer, std::unique_ptr<transport::Message> message) {
  const std::shared_ptr<Session> session = session_of(peer);
  if (!session) {
    log_warn("message of {} bytes from a peer without a session dropped",
             message->payload().size());
    return;
  }
  auto frame = transport::decode_frame(*message, session->limits);
  if (!frame) {
    // Its names can't be trusted, so the answer names no dispatch.
    return send_refusal(*session, {session->id, transport::kUnreadableDispatch, {}, 0},
                        frame.error());
  }
  if (frame->kind == transport::Frame::Kind::kHint) return take_hint(frame->hint);
  if (frame->kind == transport::Frame::Kind::kStepNote) return take_note(*session, frame->note);
  if (frame->kind != transport::Frame::Kind::kDispatch) {
    log_warn("frame from {} refused: a node takes only dispatches, hints and notes",
             session->coordinator);
    return;
  }
  if (frame->dispatch.names.session != session->id) {
    send_refusal(
        *session, frame->dispatch.names,
        {ErrorCode::kInvalid,
         fmt::format("session {:016x} is not open at {}, which has {:016x}",
                     frame->dispatch.names.session.value, options_.name, session->id.value)});
    return;
  }
  if (waiting_.size(session->id) >= kDispatchesQueued) {
    return send_refusal(*session, frame->dispatch.names,
                        {ErrorCode::kOverloaded,
                         fmt::format("{} has {} dispatches of this coordinator waiting already",
                                     options_.name, kDispatchesQueued)});
  }
  waiting_.push(session->id, {std::move(message), std::move(frame->dispatch),
                              trace_.is_on() ? clock_.now() : Clock::TimePoint()});
}

// False if nothing waits.
bool ExpertNode::compute_next() {
  if (waiting_.empty()) return false;
  const auto [id, waiting] = waiting_.pop();
  const auto start = clock_.now();
  if (const auto session = open_session(id)) compute(*session, waiting.dispatch, waiting.arrived);
  waiting_.charge(id, seconds_between(start, clock_.now()));
  return true;
}

// A hint is never needed: what can't be followed is left.
void ExpertNode::take_hint(const transport::Hint& hint) {
  if (!plan_is_loaded()) return;
  std::vector<int> tiles;
  for (const transport::TileRange& range : hint.tiles) {
    for (int tile = range.begin; tile < range.end; ++tile) tiles.push_back(tile);
  }
  tiles_.hint(static_cast<int32_t>(hint.names.layer), hint.experts, tiles);
}

void ExpertNode::take_note(Session& session, const transport::StepNote& note) {
  if (note.names.session != session.id) return;
  session.requests = note.text;
  log_debug("{}: dispatches from {} on are for requests {}", session.coordinator,
            note.names.dispatch.value, note.text);
}

void ExpertNode::compute(Session& session, const transport::Dispatch& dispatch,
                         Clock::TimePoint arrived) {
  if (!plan_is_loaded()) {
    return send_refusal(
        session, dispatch.names,
        {ErrorCode::kUnavailable, fmt::format("{} has no plan loaded yet", options_.name)});
  }
  const auto start = clock_.now();
  const auto trace = [&](transport::NodeWork work, Clock::TimePoint begin, Clock::TimePoint end) {
    trace_.add({trace_ns(begin), trace_ns(end), dispatch.names.dispatch.value,
                static_cast<int32_t>(dispatch.names.layer), dispatch.num_rows, 0,
                static_cast<uint8_t>(work)});
  };
  // Tracing may have begun since it was taken from the transport.
  if (arrived != Clock::TimePoint()) trace(transport::NodeWork::kQueue, arrived, start);
  uint64_t bytes_out = 0;
  auto counts = run(dispatch, [&](const Piece& piece) {
    const auto begin = trace_.is_on() ? clock_.now() : start;
    bytes_out += send_piece(session, dispatch, piece);
    if (trace_.is_on()) trace(transport::NodeWork::kSend, begin, clock_.now());
  });
  if (!counts) return send_refusal(session, dispatch.names, counts.error());

  const auto end = clock_.now();
  trace(transport::NodeWork::kDispatch, start, end);
  std::lock_guard lock(mutex_);
  transport::NodeStats& stats = session.stats;
  if (stats.links.empty()) stats.links = transport_.selected_links(*session.peer);
  ++stats.dispatches;
  stats.rows += dispatch.num_rows;
  stats.expert_rows += counts->expert_rows;
  stats.tiles_computed += counts->tiles;
  stats.bytes_in += transport::dispatch_payload_layout(dispatch.num_rows, dispatch.hidden_size,
                                                       dispatch.top_k, dispatch.row_type)
                        .bytes;
  stats.bytes_out += bytes_out;
  stats.compute_seconds += seconds_between(start, end);
}

// Memory that is short ends the dispatch, not the node: another one may have it.
Result<ExecutorCounts> ExpertNode::run(const transport::Dispatch& dispatch,
                                       const std::function<void(const Piece&)>& sink) {
  try {
    return executor_.run(dispatch, sink);
  } catch (const std::bad_alloc&) {
    return Error{ErrorCode::kOverloaded,
                 fmt::format("{} is out of memory for {} rows", options_.name, dispatch.num_rows)};
  }
}

bool ExpertNode::plan_is_loaded() {
  std::lock_guard lock(mutex_);
  return plan_state_.phase == transport::NodeState::Phase::kReady;
}

// Sends a piece as Partials of as many rows as one may carry. Returns the bytes of their payloads.
size_t ExpertNode::send_piece(Session& session, const transport::Dispatch& dispatch,
                              const Piece& piece) {
  size_t bytes = 0;
  for (uint32_t row = 0; row < dispatch.num_rows; row += transport::kPartialRowsMax) {
    const uint32_t rows = std::min(transport::kPartialRowsMax, dispatch.num_rows - row);
    bytes += send_partial(session, dispatch.names, piece, row, rows);
  }
  return bytes;
}

size_t ExpertNode::send_partial(Session& session, const transport::DispatchNames& names,
                                const Piece& piece, uint32_t row_begin, uint32_t num_rows) {
  const auto row_sums = [&](int64_t row) {
    return piece.sums.subspan((row_begin + row) * piece.sums_stride + piece.output_begin,
                              piece.num_outputs);
  };
  transport::Partial partial;
  partial.names = names;
  partial.row_begin = row_begin;
  partial.num_rows = num_rows;
  partial.output_begin = piece.output_begin;
  partial.num_outputs = piece.num_outputs;
  for (const transport::FailedRow& failed : piece.failed_rows) {
    if (failed.row >= row_begin && failed.row - row_begin < num_rows) {
      partial.failed_rows.push_back(failed);
    }
  }
  partial.element_bits = 48;
  for (uint32_t row = 0; row < num_rows && partial.element_bits == 48; ++row) {
    partial.element_bits = transport::narrowest_element_bits(row_sums(row));
  }
  const size_t row_bytes =
      transport::partial_elements_bytes(1, piece.num_outputs, partial.element_bits);
  const size_t bytes = row_bytes * num_rows;
  transport::SharedBuffer buffer = free_buffer(bytes);
  team_.parallel_for(num_rows, 16, [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      transport::pack_elements(row_sums(row), partial.element_bits,
                               buffer->data() + row * row_bytes);
    }
  });
  std::vector<std::byte> header;
  transport::encode_partial_header(partial, &header);
  send(session, header, std::move(buffer), bytes);
  return bytes;
}

void ExpertNode::send_refusal(Session& session, const transport::DispatchNames& names,
                              const Error& error) {
  if (logged_refusals_.size() < kRefusalsLogged && logged_refusals_.insert(error.message).second) {
    log_warn("dispatch {} of {}{}{} refused: {} (this is said once)", names.dispatch.value,
             session.coordinator, session.requests.empty() ? "" : " for requests ",
             session.requests, error.message);
  }
  {
    std::lock_guard lock(mutex_);
    ++session.stats.refused;
  }
  std::vector<std::byte> header;
  transport::encode_refusal({names, error}, &header);
  send(session, header, nullptr, 0);
}

// Sends, or keeps for later what the transport doesn't take: nobody waits for a coordinator that
// doesn't read.
void ExpertNode::send(Session& session, std::span<const std::byte> header,
                      transport::SharedBuffer payload, size_t payload_bytes) {
  if (session.is_given_up) return;
  if (send_waiting(session)) {
    const Status status = transport_.send(*session.peer, header, payload, payload_bytes);
    if (status.ok()) return;
    if (status.error().code != ErrorCode::kOverloaded) {
      log_warn("reply to {} not sent: {}", session.coordinator, status.error().message);
      return;
    }
    session.waiting_since = clock_.now();
  }
  session.outbox_bytes += header.size() + payload_bytes;
  session.outbox.push_back({{header.begin(), header.end()}, std::move(payload), payload_bytes});
  const size_t largest =
      transport::partial_elements_bytes(session.limits.rows_max, session.limits.hidden_size, 64);
  if (session.outbox_bytes > kAnswersWaiting * largest) {
    give_up(session, fmt::format("{} of answers wait for it", format_bytes(session.outbox_bytes)));
  }
}

// What waits of all sessions; true if nothing does any more.
bool ExpertNode::send_waiting() {
  std::vector<std::shared_ptr<Session>> all;
  {
    std::lock_guard lock(mutex_);
    for (const auto& [id, session] : sessions_) {
      if (!session->outbox.empty()) all.push_back(session);
    }
  }
  bool all_sent = true;
  for (const auto& session : all) all_sent = send_waiting(*session) && all_sent;
  return all_sent;
}

bool ExpertNode::send_waiting(Session& session) {
  while (!session.outbox.empty()) {
    Outgoing& first = session.outbox.front();
    const Status status =
        transport_.send(*session.peer, first.header, first.payload, first.payload_bytes);
    if (!status && status.error().code == ErrorCode::kOverloaded) {
      if (clock_.now() - session.waiting_since <= kSendDeadline) return false;
      give_up(session, fmt::format("it took no answer for {} s", kSendDeadline.count()));
      return true;
    }
    if (!status) log_warn("reply to {} not sent: {}", session.coordinator, status.error().message);
    session.outbox_bytes -= first.header.size() + first.payload_bytes;
    session.outbox.pop_front();
    session.waiting_since = clock_.now();
  }
  return true;
}

void ExpertNode::give_up(Session& session, const std::string& why) {
  log_warn("coordinator {} given up: {}", session.coordinator, why);
  session.is_given_up = true;
  session.outbox.clear();
  session.outbox_bytes = 0;
  close_session(session.id);
}

// A buffer that no send is reading any more, of at least `bytes`.
transport::SharedBuffer ExpertNode::free_buffer(size_t bytes) {
  for (transport::SharedBuffer& buffer : buffers_) {
    if (buffer.use_count() == 1 && buffer->size() >= bytes) return buffer;
  }
  std::erase_if(buffers_, [](const auto& buffer) { return buffer.use_count() == 1; });
  buffers_.push_back(std::make_shared<HostBuffer>(round_up(static_cast<int64_t>(bytes), 4096)));
  return buffers_.back();
}

// ---- Sessions: opened and closed by the control thread, connected by the data plane ------------

void ExpertNode::connect_and_close_sessions() {
  if (!sessions_changed_.exchange(false)) return;
  std::lock_guard lock(mutex_);
  // First of all: an end is connected once, and who is closed may be who opened another one.
  std::erase_if(sessions_, [this](const auto& entry) {
    const Session& session = *entry.second;
    if (!session.closing) return false;
    if (session.peer) transport_.close(*session.peer);
    waiting_.remove(session.id);
    return true;
  });
  for (auto it = sessions_.begin(); it != sessions_.end();) {
    Session& session = *it->second;
    if (!session.peer) {
      auto peer = transport_.connect(session.data_address, session.coordinator);
      if (!peer) {
        log_error("cannot connect back to coordinator {}: {}", session.coordinator,
                  peer.error().message);
        it = sessions_.erase(it);
        continue;
      }
      session.peer = *peer;
    }
    ++it;
  }
}

std::shared_ptr<ExpertNode::Session> ExpertNode::session_of(transport::PeerId peer) {
  std::lock_guard lock(mutex_);
  for (const auto& [id, session] : sessions_) {
    if (session->peer == peer && !session->closing) return session;
  }
  return nullptr;
}

std::shared_ptr<ExpertNode::Session> ExpertNode::open_session(SessionId id) {
  const std::lock_guard lock(mutex_);
  const auto found = sessions_.find(id);
  return found == sessions_.end() || found->second->closing ? nullptr : found->second;
}

// ---- Control -----------------------------------------------------------------------------------

ExpertNode::ExpertNode(NodeOptions options, ThreadTeam& team, storage::TileStore& tiles,
                       transport::Transport& transport)
    : options_(std::move(options)),
      team_(team),
      tiles_(tiles),
      transport_(transport),
      data_address_(transport.address()),
      clock_(options_.clock != nullptr ? *options_.clock : steady_clock_),
      executor_(team, tiles, options_.piece_bytes) {
  executor_.reserve(step_limits(options_, tiles.catalog()));
  executor_.set_trace(&trace_, &clock_);
}

ExpertNode::~ExpertNode() {
  stop();
  if (loader_) loader_->join();
}

Result<transport::HelloReply> ExpertNode::hello(const transport::Hello& hello) {
  if (Status same = transport::check_identity(options_.identity, hello.identity); !same) {
    return same.error();
  }
  const storage::ExpertCatalog& catalog = tiles_.catalog();
  const transport::WireLimits& limits = hello.limits;
  const auto differs = [this](std::string_view what, uint64_t ours, uint64_t theirs) {
    return Error{ErrorCode::kInvalid, fmt::format("{} differs: {} has {}, the coordinator {}", what,
                                                  options_.name, ours, theirs)};
  };
  if (limits.rows_max < 1 || limits.rows_max > options_.rows_max) {
    return Error{ErrorCode::kInvalid,
                 fmt::format("dispatches of up to {} rows: {} takes 1 to {}", limits.rows_max,
                             options_.name, options_.rows_max)};
  }
  if (limits.hidden_size != catalog.hidden_size)
    return differs("hidden_size", catalog.hidden_size, limits.hidden_size);
  if (limits.n_routed_experts != catalog.n_routed_experts)
    return differs("n_routed_experts", catalog.n_routed_experts, limits.n_routed_experts);
  if (limits.top_k != catalog.num_experts_per_tok)
    return differs("num_experts_per_tok", catalog.num_experts_per_tok, limits.top_k);
  // A coordinator may have no use for the next-token layers that are here.
  const auto least_layers = static_cast<uint32_t>(catalog.num_layers - catalog.num_mtp_layers);
  if (limits.num_layers > catalog.num_layers && limits.num_layers == least_layers + 1) {
    return Error{ErrorCode::kInvalid,
                 fmt::format("the coordinator drafts with the next-token layer (--draft mtp or "
                             "auto), which {} doesn't hold: start it with --mtp, or with a cluster "
                             "file that has this `draft`, on a checkpoint or pack with that layer",
                             options_.name)};
  }
  if (limits.num_layers > catalog.num_layers || limits.num_layers < least_layers)
    return differs("num_hidden_layers", catalog.num_layers, limits.num_layers);
  if (limits.num_tiles != static_cast<uint32_t>(tiles_.num_tiles()))
    return differs("number of tiles", tiles_.num_tiles(), limits.num_tiles);
  if (limits.row_type != options_.row_type)
    return differs("row type on the wire", static_cast<uint64_t>(options_.row_type),
                   static_cast<uint64_t>(limits.row_type));

  {
    std::lock_guard lock(mutex_);
    if (sessions_.contains(hello.session)) {
      return Error{ErrorCode::kInvalid, fmt::format("session {:016x} is already open at {}",
                                                    hello.session.value, options_.name)};
    }
    // A coordinator that dials again has given up what it had, though this end has not heard of it.
    for (const auto& [id, other] : sessions_) {
      if (other->data_address != hello.data_address || other->coordinator != hello.coordinator)
        continue;
      log_info("coordinator {} is here again: its session {:016x} is closed", hello.coordinator,
               id.value);
      other->closing = true;
    }
    auto session = std::make_shared<Session>();
    session->id = hello.session;
    session->coordinator = hello.coordinator;
    session->limits = limits;
    session->data_address = hello.data_address;
    sessions_[hello.session] = std::move(session);
  }
  sessions_changed_ = true;
  transport_.wake();
  transport::HelloReply reply;
  reply.node = options_.name;
  reply.num_threads = static_cast<uint32_t>(team_.num_threads());
  reply.data_address = data_address_;
  return reply;
}

namespace {

Result<std::vector<int>> tiles_of(const std::vector<transport::TileRange>& ranges, int num_tiles) {
  std::vector<int> tiles;
  for (const transport::TileRange& range : ranges) {
    if (range.begin >= range.end || range.end > num_tiles) {
      return Error{ErrorCode::kInvalid,
                   fmt::format("plan names tiles {}..{}, an expert of this model has {}",
                               range.begin, range.end, num_tiles)};
    }
    for (int tile = range.begin; tile < range.end; ++tile) tiles.push_back(tile);
  }
  if (!std::is_sorted(tiles.begin(), tiles.end()) ||
      std::adjacent_find(tiles.begin(), tiles.end()) != tiles.end()) {
    return Error{ErrorCode::kInvalid, "plan's tile ranges overlap or do not ascend"};
  }
  return tiles;
}

}  // namespace

Status ExpertNode::apply_plan(SessionId session, const transport::Plan& plan) {
  auto planned = tiles_of(plan.tiles, tiles_.num_tiles());
  if (!planned) return planned.error();
  const auto standby = tiles_of(plan.standby, tiles_.num_tiles());
  if (!standby) return standby.error();
  const std::vector<int> tiles = std::move(*planned);
  std::lock_guard lock(mutex_);
  const auto found = sessions_.find(session);
  if (found == sessions_.end()) {
    return Error{ErrorCode::kInvalid, fmt::format("session {:016x} is not open", session.value)};
  }
  const bool is_ready = plan_state_.phase == transport::NodeState::Phase::kReady;
  if (!is_ready && is_loading_) {
    if (tiles != plan_tiles_) return Error{ErrorCode::kOverloaded, "another plan is being loaded"};
    found->second->epoch = plan.epoch;  // another coordinator's, and the same: it waits with it
    return {};
  }
  if (is_ready) {
    if (tiles != plan_tiles_ && is_loading_) {
      return Error{ErrorCode::kOverloaded, "another plan is being loaded"};
    }
    found->second->epoch = plan.epoch;
    if (tiles == plan_tiles_) return {};
    log_info("plan epoch {}: what is here stays, new tiles are read into free memory",
             plan.epoch.value);
    plan_tiles_ = tiles;
    start_loader([this, epoch = plan.epoch, tiles] { load_more(epoch, tiles); });
    return {};
  }
  if (tiles.empty()) log_info("{} owns no tiles in plan epoch {}", options_.name, plan.epoch.value);
  found->second->epoch = plan.epoch;
  plan_state_ = {};
  plan_state_.phase = transport::NodeState::Phase::kLoading;
  plan_tiles_ = tiles;
  start_loader([this, tiles, also = *standby] { load(tiles, also); });
  return {};
}

// Under the lock; no loader works.
void ExpertNode::start_loader(std::function<void()> load) {
  CHECK(!is_loading_);
  if (loader_) loader_->join();  // its last words were under the lock
  load_progress_ = std::make_unique<LoadProgress>();
  is_loading_ = true;
  loader_ = options_.threads->start([this, load = std::move(load)] {
    load();
    const std::lock_guard lock(mutex_);
    is_loading_ = false;
  });
}

// Loader thread, while the node serves: the tiles of a later plan.
void ExpertNode::load_more(Epoch epoch, const std::vector<int>& tiles) {
  try {
    tiles_.fill_free(tiles, *load_progress_);
  } catch (const std::exception& failure) {
    log_warn("plan epoch {}: {}; the rest is read when it is asked for", epoch.value,
             failure.what());
  }
  load_progress_->finish();  // what has no room is not read
}

// Slots for these tiles, or without those that it would only stand by for.
void ExpertNode::take_slots(const std::vector<int>& tiles, const std::vector<int>& standby) {
  try {
    tiles_.plan(tiles);
  } catch (const LoadError& failure) {
    if (standby.empty()) throw;
    std::vector<int> own;
    std::set_difference(tiles.begin(), tiles.end(), standby.begin(), standby.end(),
                        std::back_inserter(own));
    tiles_.plan(own);
    log_warn("{} keeps no second copies of others' tiles: {}", options_.name, failure.what());
    const std::lock_guard lock(mutex_);
    plan_state_.standby_left_out = true;
  }
}

// Loader thread. What a pack holds can be computed before it is in RAM: the node is ready as soon
// as there are slots and it can say how much will be loaded. From a checkpoint it would take too
// long.
void ExpertNode::load(const std::vector<int>& tiles, const std::vector<int>& standby) {
  const auto settle = [&](const std::string& error) {
    const std::lock_guard lock(mutex_);
    plan_state_.error = error;
    plan_state_.phase =
        error.empty() ? transport::NodeState::Phase::kReady : transport::NodeState::Phase::kFailed;
  };
  bool is_ready = false;
  if (tiles_.reads_tiles_alone()) {
    load_progress_->on_start = [&] {
      settle("");
      is_ready = true;
    };
  }
  try {
    take_slots(tiles, standby);
    tiles_.fill(*load_progress_);
    if (!is_ready) settle("");
  } catch (const std::exception& failure) {
    if (is_ready) {
      log_error("{}: loading experts: {}", options_.name, failure.what());
    } else {
      settle(failure.what());
    }
  }
}

// Ready means: the plan is loaded and the data plane knows the coordinator. A Dispatch that came
// before that would be a stranger's.
transport::NodeState ExpertNode::state(SessionId session) {
  std::lock_guard lock(mutex_);
  transport::NodeState state = plan_state_;
  const auto found = sessions_.find(session);
  if (found != sessions_.end()) state.epoch = found->second->epoch;
  const bool connected = found != sessions_.end() && found->second->peer;
  if (state.phase == transport::NodeState::Phase::kReady && !connected) {
    state.phase = transport::NodeState::Phase::kLoading;
  }
  if (load_progress_) {
    state.bytes_loaded = load_progress_->done();
    state.bytes_total = load_progress_->total();
    // Not done before it has begun.
    if (is_loading_ && state.bytes_total == 0) state.bytes_total = 1;
  }
  if (plan_state_.phase == transport::NodeState::Phase::kReady) {
    state.resident_bytes = tiles_.held_bytes();
  }
  return state;
}

transport::NodeStats ExpertNode::stats(SessionId session) {
  std::lock_guard lock(mutex_);
  const auto found = sessions_.find(session);
  transport::NodeStats stats =
      found == sessions_.end() ? transport::NodeStats{} : found->second->stats;
  stats.cache = tiles_.stats();
  return stats;
}

Result<transport::NodeTrace> ExpertNode::trace(SessionId /*session*/,
                                               const transport::TraceAsk& ask) {
  transport::NodeTrace trace;
  trace.now_ns = trace_ns(clock_.now());
  if (ask.on) {
    trace_.start();
  } else {
    trace_.stop();
  }
  TraceRing::Taken taken = trace_.take(ask.events_max);
  trace.events = std::move(taken.events);
  trace.lost = taken.lost;
  return trace;
}

Result<std::string> ExpertNode::inspect(const std::string& what) {
  return options_.inspect ? options_.inspect(what) : NodeControl::inspect(what);
}

void ExpertNode::close_session(SessionId session) {
  {
    std::lock_guard lock(mutex_);
    const auto found = sessions_.find(session);
    if (found == sessions_.end()) return;
    found->second->closing = true;
  }
  sessions_changed_ = true;
  transport_.wake();
}

void ExpertNode::stop() {
  stopping_ = true;
  tiles_.stop_filling();
  transport_.wake();
}

}  // namespace atl::expert_node
