#include "tests/sim/scenario.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "tests/sim/coordinator.h"
#include "tests/sim/network.h"
#include "tests/sim/node.h"
#include "tests/sim/requests.h"
#include "tests/sim/world.h"
#include "topology/placement.h"

namespace atl::sim {
using namespace std::chrono_literals;
namespace {

using coordinator::GenerationEvent;
using coordinator::GenerationId;

// Simulated time that healing takes at most: the longest pause before a node is dialled again,
// calls that hang, loading, plans. Drawn options keep each of these below 8 s.
constexpr Duration kRecovery = 40s;
// So long it has to be well: whoever died before is known to be dead by then.
constexpr Duration kSettled = 1200ms;

enum class Fault : uint8_t {
  kKill,       // its process ends and is started again later
  kPower,      // its machine is gone for a while
  kPause,      // SIGSTOP, SIGCONT
  kPartition,  // nothing comes through, in one direction or both, on one plane or both
  kLossy,      // some data messages are lost, come late or twice
  kSlowLink,   // latency of a tenth of a second
  kSlowNode,   // computing takes a hundred times as long
  kSlowDisk,
  kBadDisk,  // reads fail or bring other bytes
  kDrain,    // and resume
  kPauseCoordinator,
  kDamage,  // some tiles lie wrong on its drive until it is replaced
  kReload,  // the file doesn't name it for a while
  kRestartCoordinator,
  kForeign,  // it comes back with another checkpoint, then with its own
};
constexpr int kNumFaults = 15;

class Scenario {
 public:
  Scenario(uint64_t seed, bool verbose) : world_(seed), network_(world_), model_(model_of(seed)) {
    world_.verbose = verbose;
  }
  Outcome run();

 private:
  static const Model& model_of(uint64_t seed);
  void draw_nodes();
  CoordinatorOptions draw_options();
  void draw_requests();
  void draw_faults();
  void inject(Fault fault, size_t node, Duration length);
  void cut(size_t node, Duration length);
  void harm(size_t node) { harmed_.insert(node); }
  void reload(size_t node, Duration length);
  void restart_coordinator(Duration length);
  void start_coordinator();
  void start_again(const std::string& why);
  void bring_foreign(size_t node, Duration length);
  void damage(size_t node);
  void submit(const Asked& asked);
  void take(std::vector<GenerationEvent> events);
  void look();
  void heal();
  std::string not_recovered();
  void ask_now_and_then();
  bool all_ended() const;
  Draw& draw() { return world_.draw(); }
  Direction& to(size_t node) { return network_.direction(SimCoordinator::kName, name_of(node)); }
  Direction& from(size_t node) { return network_.direction(name_of(node), SimCoordinator::kName); }
  static std::string name_of(size_t node) { return fmt::format("n{}", node); }

  struct Request {
    Asked asked;
    GenerationId id;
    size_t tokens = 0;
    bool ended = false, cancelled = false;
    std::string error;
  };

  World world_;
  Network network_;
  const Model& model_;
  std::vector<std::unique_ptr<SimNode>> nodes_;
  std::vector<std::vector<int>> owned_;
  std::unique_ptr<SimCoordinator> coordinator_;
  std::vector<std::unique_ptr<SimCoordinator>> former_;  // what is under way may know them
  CoordinatorOptions options_;
  std::map<GenerationId, Request> requests_;
  std::optional<size_t> spared_;  // a node that nothing happens to
  std::set<size_t> harmed_;
  std::set<std::string> draining_;
  bool is_reloading_ = false, had_foreign_ = false;
  Duration phase_{};
  Time next_ask_{}, healed_at_{};
  bool healed_ = false, recovered_ = false, stopping_ = false;
  Outcome outcome_;
};

const Model& Scenario::model_of(uint64_t seed) {
  static const Model small(32, 64);   // 4 tiles of 16
  static const Model wide(16, 1024);  // 8 tiles of 128
  return seed % 4 == 3 ? wide : small;
}

void Scenario::draw_nodes() {
  const auto n = static_cast<size_t>(draw().one_of({1, 2, 2, 3, 3, 3, 4, 4, 5, 6}));
  for (size_t node = 0; node < n; ++node) {
    nodes_.push_back(std::make_unique<SimNode>(world_, network_, model_, name_of(node)));
    SimNode& made = *nodes_.back();
    const Duration least = draw().one_of<Duration>({20us, 100us, 1ms, 5ms});
    to(node).latency_min = from(node).latency_min = least;
    to(node).latency_max = from(node).latency_max = least * draw().between(1, 5);
    made.disk.latency_min = draw().one_of<Duration>({20us, 200us, 1ms});
    made.disk.latency_max = made.disk.latency_min * draw().between(1, 10);
    if (draw().chance(0.3)) made.piece_bytes = 1 << 20;
    made.compute_min = draw().one_of<Duration>({10us, 100us, 1ms});
    made.compute_max = made.compute_min * draw().between(1, 5);
    if (draw().chance(0.3)) {
      const auto slots = static_cast<uint64_t>(draw().between(2 * model_.num_tiles(), 60));
      storage::TileStore probe(model_.pack(), model_.catalog());
      made.ram_bytes_max = probe.ram_bytes_min() + slots * model_.tile_bytes();
    }
  }
  if (n > 1 && draw().chance(0.75)) spared_ = static_cast<size_t>(draw().below(std::ssize(nodes_)));
}

CoordinatorOptions Scenario::draw_options() {
  CoordinatorOptions o;
  const int num_nodes = static_cast<int>(nodes_.size());
  o.placement = topology::equal_placement(model_.num_tiles(), num_nodes);
  if (draw().chance(0.3)) {  // scattered tiles
    std::vector<std::vector<int>> tiles(nodes_.size());
    for (int tile = 0; tile < model_.num_tiles(); ++tile) {
      tiles[static_cast<size_t>(draw().below(num_nodes))].push_back(tile);
    }
    o.placement = topology::placement_from_tiles(model_.num_tiles(), tiles);
  }
  owned_ = o.placement.tiles_of_node;
  if (num_nodes > 1 && draw().chance(0.5)) {
    o.cluster.redundancy = static_cast<int>(draw().between(2, 3));
    std::vector<int> room(nodes_.size(), topology::kRoomForAll);
    if (draw().chance(0.3)) {  // not everybody has room for all
      for (size_t node = 0; node < nodes_.size(); ++node) {
        room[node] = static_cast<int>(draw().between(std::ssize(owned_[node]), model_.num_tiles()));
      }
      o.cluster.room = room;
    }
    o.placement.standby_of_node = topology::standby_tiles(owned_, o.cluster.redundancy, room);
  }
  if (draw().chance(0.5)) {
    o.dispatcher.hedge_after = draw().one_of({1.5, 3.0});
    o.dispatcher.overdue_after_min = draw().one_of({20ms, 150ms});
  }
  if (draw().chance(0.3)) {
    o.cluster.follows_speed = true;
    o.dispatcher.measure_every = draw().one_of({100ms, 1000ms});
  }
  o.children = draw().chance(0.4);
  o.cluster.session = SessionId{draw().bits()};
  o.cluster.times.heartbeat = 100ms;
  o.cluster.times.backoff_min = draw().one_of({50ms, 250ms});
  o.cluster.times.backoff_max = draw().one_of({1000ms, 4000ms});
  o.cluster.times.settled_after = draw().one_of({2000ms, 60'000ms});
  o.cluster.times.redial = draw().one_of({100ms, 500ms});
  o.cluster.grace = draw().one_of({200ms, 1000ms, 4000ms, 10'000ms});
  o.cluster.load_patience = 4000ms;
  o.dispatcher.progress_deadline_min = draw().one_of({400ms, 1200ms});
  o.dispatcher.progress_deadline = draw().one_of({3000ms, 6000ms});
  o.dispatcher.return_patience = draw().one_of({0ms, 1000ms, 5000ms});
  o.engine.rows_max = kRowsMax;
  o.engine.cache_blocks = draw().between(2, 8);
  o.engine.prefetch =
      draw().chance(0.5) ? coordinator::Prefetch::kNextLayer : coordinator::Prefetch::kOff;
  o.engine.halves = draw().chance(0.4) ? coordinator::Halves::kOn : coordinator::Halves::kOff;
  o.scheduler.sequences_max = draw().between(1, 6);
  o.scheduler.queue_max = draw().between(2, 8);
  o.scheduler.prefix_cache = draw().chance(0.7);
  return o;
}

void Scenario::draw_requests() {
  const int64_t count = draw().between(3, 8);
  for (int64_t i = 0; i < count; ++i) {
    Asked asked;
    asked.number = static_cast<size_t>(draw().below(kNumRequests));
    asked.client = fmt::format("c{}", draw().below(3));
    if (draw().chance(0.1)) asked.cancelled_after = draw().between(1ms, 500ms);
    if (draw().chance(0.1)) asked.deadline = draw().between(1ms, 2s);
    world_.after(draw().between(0ns, phase_), [this, asked] { submit(asked); });
  }
}

void Scenario::draw_faults() {
  const int64_t count = draw().one_of({0, 1, 1, 2, 2, 3, 4, 5});
  std::string text;
  for (int64_t i = 0; i < count; ++i) {
    const auto fault = static_cast<Fault>(draw().below(kNumFaults));
    auto node = static_cast<size_t>(draw().below(std::ssize(nodes_)));
    if (spared_ == node) node = (node + 1) % nodes_.size();
    const Duration at = draw().between(0ns, phase_);
    const Duration length =
        draw().one_of<Duration>({20ms, 200ms, 500ms, 1500ms, 3s, 6s}) + draw().between(0ns, 100ms);
    text += fmt::format(" {}@{}", static_cast<int>(fault), node);
    ++outcome_.faults;
    world_.after(at, [this, fault, node, length] { inject(fault, node, length); });
  }
  outcome_.draw += " faults" + text;
}

void Scenario::inject(Fault fault, size_t n, Duration length) {
  if (healed_) return;
  SimNode& node = *nodes_[n];
  const bool is_coordinators = fault == Fault::kDrain || fault == Fault::kReload ||
                               fault == Fault::kPauseCoordinator ||
                               fault == Fault::kRestartCoordinator;
  if (is_coordinators && !coordinator_->is_running()) return;
  // Fibers that wait for their children can't be killed (World::join).
  const bool starts_children = options_.children && !coordinator_->is_serving();
  if (fault == Fault::kRestartCoordinator && starts_children) return;
  world_.trace([&] {
    return fmt::format("fault {} at {} for {} ms", static_cast<int>(fault), node.name(),
                       length.count() / 1'000'000);
  });
  const bool harms_nobody = fault == Fault::kPauseCoordinator || fault == Fault::kDrain ||
                            fault == Fault::kRestartCoordinator;
  if (!harms_nobody) harm(n);
  switch (fault) {
    case Fault::kKill:
    case Fault::kPower:
      node.kill(fault == Fault::kKill ? SimNode::Death::kProcess : SimNode::Death::kPower);
      if (options_.children) break;
      world_.after(length, [this, &node] {
        if (!healed_ && !node.is_running()) node.start();
      });
      break;
    case Fault::kPause:
      if (!node.is_running()) break;
      node.machine().pause();
      world_.after(length, [&machine = node.machine()] { machine.resume(); });
      break;
    case Fault::kPartition:
      cut(n, length);
      break;
    case Fault::kLossy: {
      Direction& direction = draw().chance(0.5) ? to(n) : from(n);
      direction.loss = draw().one_of({0.0, 0.01, 0.1});
      direction.duplicate = draw().one_of({0.0, 0.1, 0.5});
      direction.late = draw().one_of({0.0, 0.2, 0.5});
      direction.lateness = draw().one_of<Duration>({1ms, 50ms, 800ms});
      world_.after(length,
                   [&direction] { direction.loss = direction.duplicate = direction.late = 0; });
      break;
    }
    case Fault::kSlowLink:
      from(n).extra = 150ms;
      world_.after(length, [this, n] { from(n).extra = 0ns; });
      break;
    case Fault::kSlowNode:
      node.slowness = 20;
      world_.after(length, [&node] { node.slowness = 1; });
      break;
    case Fault::kSlowDisk:
      node.disk.slowness = 50;
      world_.after(length, [&node] { node.disk.slowness = 1; });
      break;
    case Fault::kBadDisk: {
      const double eio = draw().one_of({0.0, 0.1, 1.0}), flip = draw().one_of({0.0, 0.1, 0.6});
      node.disk.eio = eio;
      node.disk.flip = flip;
      world_.after(length, [&node] { node.disk.eio = node.disk.flip = 0; });
      break;
    }
    case Fault::kDrain:
      coordinator_->start([this, name = node.name(), length] {
        if (!coordinator_->is_serving()) return;
        if (!coordinator_->cluster().drain(name)) return;
        draining_.insert(name);
        world_.sleep(length);
        // It may not be in the file just now.
        while (!coordinator_->cluster().resume(name)) world_.sleep(100ms);
        draining_.erase(name);
      });
      break;
    case Fault::kDamage:
      damage(n);
      break;
    case Fault::kReload:
      reload(n, length);
      break;
    case Fault::kPauseCoordinator:
      coordinator_->machine().pause();
      world_.after(length, [&machine = coordinator_->machine()] { machine.resume(); });
      break;
    case Fault::kRestartCoordinator:
      restart_coordinator(length);
      break;
    case Fault::kForeign:
      bring_foreign(n, length);
      break;
  }
}

void Scenario::cut(size_t n, Duration length) {
  const bool data = draw().chance(0.7), control = !data || draw().chance(0.6);
  const int64_t which = draw().below(3);  // to it, from it, both
  const bool drops = draw().chance(0.3);
  for (Direction* direction : {which != 1 ? &to(n) : nullptr, which != 0 ? &from(n) : nullptr}) {
    if (direction == nullptr) continue;
    direction->data_closed = data;
    direction->control_closed = control;
    direction->drops = drops;
  }
  world_.after(length, [this, n] {
    for (Direction* direction : {&to(n), &from(n)}) {
      direction->data_closed = direction->control_closed = false;
    }
    network_.reopen();
  });
}

// Its requests end with it; their clients ask the next one again.
void Scenario::restart_coordinator(Duration length) {
  coordinator_->kill();
  ++outcome_.restarts;
  if (options_.children) {  // they die with who started them
    for (const auto& node : nodes_) node->kill(SimNode::Death::kProcess);
  }
  former_.push_back(std::move(coordinator_));
  draining_.clear();  // the next one knows of none
  is_reloading_ = false;
  std::vector<Asked> asked;
  for (const auto& [id, request] : requests_) {
    if (!request.ended && !request.cancelled) asked.push_back(request.asked);
  }
  requests_.clear();
  options_.cluster.session = SessionId{draw().bits()};
  start_coordinator();
  coordinator_->on_start_failed = [this](const std::string& why) { start_again(why); };
  coordinator_->machine().pause();  // starting takes so long
  world_.after(length, [&machine = coordinator_->machine()] { machine.resume(); });
  for (const Asked& again : asked) submit(again);
}

void Scenario::start_coordinator() {
  coordinator_ = std::make_unique<SimCoordinator>(
      world_, network_, model_, nodes_, options_,
      [this](std::vector<GenerationEvent> events) { take(std::move(events)); });
  coordinator_->look = [this] { look(); };
}

// A child that dies while the coordinator starts ends the start, and so does a node that doesn't
// fit and can't be done without. Who watches over services starts it again.
void Scenario::start_again(const std::string& why) {
  if (!options_.children && !had_foreign_) return world_.fail(why);
  world_.trace([&] { return why; });
  world_.after(500ms, [this] { restart_coordinator(0ns); });
}

void Scenario::bring_foreign(size_t n, Duration length) {
  if (options_.children) return;
  SimNode& node = *nodes_[n];
  node.kill(SimNode::Death::kProcess);
  node.foreign = had_foreign_ = true;
  node.start();
  world_.after(length, [&node] {
    node.foreign = false;
    if (!node.is_foreign()) return;
    node.kill(SimNode::Death::kProcess);
    node.start();
  });
}

// It shows when they are read the next time.
void Scenario::damage(size_t n) {
  const storage::PackGeometry& geometry = model_.pack().geometry();
  for (int64_t i = draw().between(1, 12); i > 0; --i) {
    const auto file = static_cast<size_t>(draw().below(std::ssize(model_.image())));
    const uint64_t offset = geometry.offset(draw().below(model_.config().n_routed_experts),
                                            static_cast<int>(draw().below(model_.num_tiles())));
    Disk& disk = nodes_[n]->disk;
    (draw().chance(0.7) ? disk.damaged : disk.unreadable).emplace(file, offset);
  }
  if (draw().chance(0.7) && nodes_[n]->is_running()) inject(Fault::kKill, n, 200ms);
}

// Without the node, and with it again, as `atoll cluster reload` does.
void Scenario::reload(size_t n, Duration length) {
  if (options_.children || nodes_.size() < 2 || is_reloading_) return;
  is_reloading_ = true;
  coordinator_->start([this, n, length] {
    const auto set = [this](const std::vector<std::vector<int>>& owned,
                            std::optional<size_t> gone) {
      std::vector<int> room = options_.cluster.room;
      room.resize(nodes_.size(), topology::kRoomForAll);
      const auto standby = topology::standby_tiles(owned, options_.cluster.redundancy, room);
      std::vector<coordinator::Cluster::Planned> planned;
      for (size_t node = 0; node < owned.size(); ++node) {
        planned.push_back({owned[node], gone == node, false, standby[node], room[node]});
      }
      world_.trace([&] { return "the file is read again"; });
      coordinator_->cluster().set_nodes(planned);
    };
    std::vector<std::vector<int>> owned = owned_;
    owned[n].clear();
    for (const int tile : owned_[n]) {
      std::vector<int>& heir = owned[(n + 1) % owned.size()];
      heir.insert(std::upper_bound(heir.begin(), heir.end(), tile), tile);
    }
    if (coordinator_->is_serving()) set(owned, n);
    world_.sleep(length);
    set(owned_, std::nullopt);
    is_reloading_ = false;
  });
}

// ---- Requests ----------------------------------------------------------------------------------

void Scenario::submit(const Asked& asked) {
  if (stopping_) return;
  if (!coordinator_->is_serving()) {
    world_.after(50ms, [this, asked] { submit(asked); });
    return;
  }
  coordinator::GenerationRequest request = request_of(asked.number, model_);
  request.client = asked.client;
  if (asked.deadline) request.deadline = world_.now() + *asked.deadline;
  const auto id = coordinator_->scheduler().submit(std::move(request));
  if (!id) {
    if (id.error().code != ErrorCode::kOverloaded) world_.fail("refused: " + id.error().message);
    world_.after(200ms, [this, asked] { submit(asked); });
    return;
  }
  ++outcome_.requests;
  requests_[*id] = {asked, *id, 0, false, false, ""};
  world_.trace([&] { return fmt::format("request {}: text {}", id->value, asked.number); });
  if (asked.cancelled_after) {
    world_.after(*asked.cancelled_after, [this, id = *id, whom = coordinator_.get()] {
      if (whom != coordinator_.get()) return;
      Request& cancelled = requests_.at(id);
      if (cancelled.ended) return;
      cancelled.cancelled = true;
      coordinator_->scheduler().cancel(id);
    });
  }
}

// The engine's thread.
void Scenario::take(std::vector<GenerationEvent> events) {
  std::set<GenerationId> seen;
  for (const GenerationEvent& event : events) {
    const auto found = requests_.find(event.id);
    if (found == requests_.end()) {
      return world_.fail(fmt::format("an event of request {}, which nobody made", event.id.value));
    }
    Request& request = found->second;
    const auto fail = [&](const std::string& what) {
      world_.fail(
          fmt::format("request {} (text {}): {}", event.id.value, request.asked.number, what));
    };
    if (!seen.insert(event.id).second) return fail("two events in one step");
    if (request.ended) return fail("answered after its end");
    const Text& text = expected_text(request.asked.number, model_);
    if (event.token) {
      ++outcome_.tokens;
      const size_t place = request.tokens++;
      if (place >= text.tokens.size()) return fail("more tokens than without faults");
      if (*event.token != text.tokens[place]) {
        return fail(fmt::format("token {} is {}, {} without faults", place, *event.token,
                                text.tokens[place]));
      }
    }
    if (event.finish) {
      request.ended = true;
      if (request.tokens != text.tokens.size() || *event.finish != text.finish) {
        return fail(fmt::format("ended after {} of {} tokens", request.tokens, text.tokens.size()));
      }
    }
    if (event.error) {
      request.ended = true;
      request.error = event.error->message;
      ++outcome_.errors;
      world_.trace(
          [&] { return fmt::format("request {}: {}", event.id.value, event.error->message); });
      const bool in_time = event.error->code == ErrorCode::kTimeout && request.asked.deadline;
      const bool all_harmed = harmed_.size() == nodes_.size();
      if (!in_time && (!all_harmed || recovered_)) fail("ended with: " + event.error->message);
    }
  }
}

// Bounds, after each step.
void Scenario::look() {
  const coordinator::GenerationStats stats = coordinator_->scheduler().stats();
  const auto& s = options_.scheduler;
  if (stats.running > s.sequences_max) world_.fail("more sequences in the batch than allowed");
  if (stats.cache_blocks_used + stats.cache_blocks_kept > stats.cache_blocks) {
    world_.fail("more blocks of the cache than there are");
  }
  const coordinator::PlacementView& view = coordinator_->dispatcher().placement();
  std::set<int> tiles;
  int count = 0;
  for (const auto& ranges : view.tiles_of_node) {
    for (const transport::TileRange& range : ranges) {
      for (int tile = range.begin; tile < range.end; ++tile) {
        tiles.insert(tile);
        ++count;
      }
    }
  }
  if (count != model_.num_tiles() || std::ssize(tiles) != count) {
    world_.fail("not every tile is at one node");
  }
  for (const auto& node : nodes_) {
    if (!node->is_running() || !node->ram_bytes_max || !node->tiles().is_planned()) continue;
    if (node->tiles().held_bytes() > *node->ram_bytes_max) {
      world_.fail(node->name() + " holds more tiles than its memory allows");
    }
  }
}

// ---- Healing -----------------------------------------------------------------------------------

void Scenario::heal() {
  world_.trace([] { return "healed"; });
  healed_ = true;
  healed_at_ = world_.now();
  network_.heal();
  coordinator_->machine().resume();
  for (size_t n = 0; n < nodes_.size(); ++n) {
    SimNode& node = *nodes_[n];
    node.disk.eio = node.disk.flip = 0;
    if (!spared_) {  // else there is somebody who has all of it
      node.disk.damaged.clear();
      node.disk.unreadable.clear();
    }
    node.disk.slowness = node.slowness = 1;
    node.foreign = false;
    if (node.is_foreign()) node.kill(SimNode::Death::kProcess);
    if (node.is_running()) {
      node.machine().resume();
      // Another drive: what was read wrong twice is not read again by the same process.
      if (!spared_ && node.tiles().stats().tiles_bad > 0) node.kill(SimNode::Death::kProcess);
    }
    if (!node.is_running() && !options_.children) node.start();
  }
}

// Who was late and is asked nothing shows only while others are waited for: an overdue node whose
// answer was lost is given up after progress_deadline of such waiting.
void Scenario::ask_now_and_then() {
  if (!coordinator_->is_serving() || !all_ended() || world_.now() < next_ask_) return;
  next_ask_ = world_.now() + 20ms;
  Asked asked;
  asked.number = static_cast<size_t>(draw().below(kNumRequests));
  submit(asked);
}

bool Scenario::all_ended() const {
  return std::all_of(requests_.begin(), requests_.end(), [](const auto& entry) {
    return entry.second.ended || entry.second.cancelled;
  });
}

// "": the cluster is as if nothing had been.
std::string Scenario::not_recovered() {
  if (!coordinator_->is_serving()) return "the coordinator does not serve yet";
  const coordinator::GenerationStats stats = coordinator_->scheduler().stats();
  if (!all_ended() || stats.running + stats.waiting > 0) return "requests that have not ended";
  if (!draining_.empty() || is_reloading_) return "nodes are drained or not in the file";
  const auto status = coordinator_->cluster().status();
  for (const auto& node : status) {
    if (node.state != coordinator::Member::State::kReady) {
      return fmt::format("{} is {}: {}", node.name, to_string(node.state), node.lost_because);
    }
  }
  const coordinator::PlacementView& view = coordinator_->dispatcher().placement();
  for (size_t n = 0; n < nodes_.size(); ++n) {
    if (!coordinator_->dispatcher().alive(n)) return nodes_[n]->name() + " is not asked";
    if (options_.cluster.follows_speed) continue;  // it moves tiles as it sees fit
    if (n >= view.tiles_of_node.size() ||
        view.tiles_of_node[n] != coordinator::to_ranges(owned_[n])) {
      return fmt::format("{} is not asked for the tiles that it owns", nodes_[n]->name());
    }
  }
  return "";
}

Outcome Scenario::run() {
  phase_ = draw().one_of<Duration>({500ms, 2s, 5s});
  draw_nodes();
  options_ = draw_options();
  outcome_.draw = fmt::format(
      "{} nodes{}, {} tiles{}{}{}{}, grace {} ms, {} sequences, spared {};", nodes_.size(),
      options_.children ? " of its own" : "", model_.num_tiles(),
      options_.cluster.redundancy > 1 ? fmt::format(" x {}", options_.cluster.redundancy) : "",
      options_.dispatcher.hedge_after > 0 ? ", hedging" : "",
      options_.cluster.follows_speed ? ", following speed" : "",
      options_.engine.halves == coordinator::Halves::kOn ? ", in halves" : "",
      options_.cluster.grace.count(), options_.scheduler.sequences_max,
      spared_ ? name_of(*spared_) : "none");
  if (!options_.children) {
    for (const auto& node : nodes_) {
      world_.after(draw().between(0ns, 300ms), [&node] {
        if (!node->is_running()) node->start();
      });
    }
  }
  start_coordinator();
  const bool serves =
      world_.run(world_.now() + kRecovery, [this] { return coordinator_->is_serving(); });
  if (!serves) world_.fail("the coordinator did not start");

  // Everybody: a node that owns no tile may come later.
  const bool all_there = world_.run(world_.now() + kRecovery, [this] {
    return coordinator_->dispatcher().num_living() == static_cast<int>(nodes_.size());
  });
  if (!all_there) world_.fail("not all nodes are asked before the first fault");

  draw_requests();
  draw_faults();
  world_.run(world_.now() + phase_, [] { return false; });
  heal();
  std::string missing;
  const bool recovered =
      world_.run(world_.now() + kRecovery,
                 [this, &missing, next = Time(), well_since = world_.now()]() mutable {
                   if (world_.now() < next) return false;
                   next = world_.now() + 20ms;
                   missing = not_recovered();
                   if (!missing.empty()) {
                     well_since = world_.now();
                     ask_now_and_then();
                   }
                   return world_.now() - well_since >= kSettled;
                 });
  if (!recovered) world_.fail("not recovered: " + missing);
  outcome_.recovery_s = seconds_between(healed_at_, world_.now()) - 1e-9 * kSettled.count();
  recovered_ = true;

  Asked last;
  last.number = static_cast<size_t>(draw().below(kNumRequests));
  if (world_.failure().empty()) submit(last);
  if (!world_.run(world_.now() + kRecovery, [this] { return all_ended(); })) {
    world_.fail("the last request has not ended");
  }
  for (const auto& [id, request] : requests_) {
    if (id.value == requests_.size() && !request.error.empty()) {
      world_.fail("the last request failed: " + request.error);
    }
  }
  if (spared_ && world_.failure().empty()) {
    const auto status = coordinator_->cluster().status()[*spared_];
    if (status.losses > 0) {
      world_.fail(fmt::format("{}, which was well all the time, was lost {} times: {}", status.name,
                              status.losses, status.lost_because));
    }
  }
  if (world_.failure().empty()) {
    for (const auto& status : coordinator_->cluster().status()) outcome_.losses += status.losses;
    outcome_.replans += coordinator_->dispatcher().placement().epoch.value - 1;
    outcome_.preempted += coordinator_->scheduler().stats().preempted;
    stopping_ = true;
    coordinator_->stop();
    if (!world_.run(world_.now() + kRecovery, [this] { return coordinator_->has_ended(); })) {
      world_.fail("the coordinator does not end");
    }
  }
  for (const auto& node : nodes_) {
    outcome_.reads_failed += node->disk.num_eio;
    outcome_.reads_flipped += node->disk.num_flipped;
  }
  outcome_.messages_lost = network_.num_lost;
  outcome_.messages_doubled = network_.num_doubled;
  outcome_.messages_held = network_.num_held;
  outcome_.failure = world_.failure();
  outcome_.fingerprint = world_.fingerprint();
  outcome_.events = world_.num_events();
  return outcome_;
}

}  // namespace

Outcome& Outcome::operator+=(const Outcome& other) {
  events += other.events;
  requests += other.requests;
  tokens += other.tokens;
  errors += other.errors;
  faults += other.faults;
  losses += other.losses;
  restarts += other.restarts;
  replans += other.replans;
  messages_lost += other.messages_lost;
  messages_doubled += other.messages_doubled;
  messages_held += other.messages_held;
  reads_failed += other.reads_failed;
  reads_flipped += other.reads_flipped;
  preempted += other.preempted;
  return *this;
}

// A world that failed is left as it is: what is in it may hang.
Outcome run_scenario(uint64_t seed, bool verbose) {
  auto scenario = std::make_unique<Scenario>(seed, verbose);
  const Outcome outcome = scenario->run();
  if (!outcome.failure.empty()) (void)scenario.release();
  return outcome;
}

}  // namespace atl::sim
