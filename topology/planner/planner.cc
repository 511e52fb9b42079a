#include "topology/planner/planner.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <numeric>
#include <optional>

#include "base/check.h"
#include "base/units.h"
#include "topology/placement.h"
#include "topology/planner/advice.h"

namespace atl::topology {
namespace {

constexpr std::array kSequences = {1, 2, 4, 8, 16, 32, 64};

// The most tiles that a node may own.
int tiles_max(const ModelShape& model, const PlannedMachine& node) {
  if (node.ram_bytes > 0 && node.ram_bytes < model.node_bytes_min) return 0;
  // What doesn't stay in RAM is read when it is wanted.
  if (node.drives() > 0) return model.num_tiles;
  return tiles_in_ram(model, node);
}

double resident_share(const ModelShape& model, const PlannedMachine& node, int tiles) {
  if (tiles == 0 || node.ram_bytes == 0) return 1;
  const uint64_t all = model.node_bytes[static_cast<size_t>(tiles)];
  if (all <= node.ram_bytes) return 1;
  const uint64_t none = model.node_bytes[0];
  if (node.ram_bytes <= none) return 0;
  return static_cast<double>(node.ram_bytes - none) / static_cast<double>(all - none);
}

Share share_of(const ModelShape& model, const PlannedMachine& node, int tiles) {
  return {tiles, 0, resident_share(model, node, tiles)};
}

// Shares that make the aim's step short.
class Sharing {
 public:
  explicit Sharing(const PlanRequest& request)
      : request_(request), cluster_(request.cluster), rows_(aim_rows(request)) {
    for (const PlannedMachine& node : cluster_.nodes) {
      max_.push_back(tiles_max(cluster_.model, node));
    }
  }

  // nullopt: RAM and drives are too little for all tiles.
  std::optional<std::vector<Share>> find() const {
    const bool fixed = std::any_of(request_.fixed_tiles.begin(), request_.fixed_tiles.end(),
                                   [](int tiles) { return tiles >= 0; });
    if (fixed) return as_told();
    if (std::accumulate(max_.begin(), max_.end(), 0) < cluster_.model.num_tiles) return {};
    // A node that is far behind is better left out: with it all wait.
    std::vector<bool> used(cluster_.nodes.size(), true);
    std::vector<Share> best = improved(greedy(used));
    double best_seconds = seconds(best);
    for (size_t left = cluster_.nodes.size(); left > owners_min(); --left) {
      const auto without = worst_left_out(used);
      if (!without) break;
      const std::vector<Share> shares = improved(greedy(used));
      if (seconds(shares) < best_seconds) {
        best_seconds = seconds(shares);
        best = shares;
      }
    }
    return best;
  }

 private:
  // Who owns no tile stands by for none, so that each tile's copies need as many owners.
  size_t owners_min() const {
    const auto most = static_cast<int>(cluster_.nodes.size());
    return static_cast<size_t>(
        std::clamp(std::min(request_.redundancy, cluster_.model.num_tiles), 1, std::max(1, most)));
  }
  bool may_lose_a_tile(const std::vector<Share>& shares, size_t node) const {
    if (shares[node].tiles != 1) return shares[node].tiles > 1;
    const auto owners = std::count_if(shares.begin(), shares.end(),
                                      [](const Share& share) { return share.tiles > 0; });
    return static_cast<size_t>(owners) > owners_min();
  }

  double seconds(const std::vector<Share>& shares) const {
    return step_time(cluster_, shares, rows_).total;
  }

  std::vector<Share> as_told() const {
    std::vector<Share> shares;
    for (size_t n = 0; n < cluster_.nodes.size(); ++n) {
      const int tiles = std::max(0, request_.fixed_tiles[n]);
      shares.push_back(share_of(cluster_.model, cluster_.nodes[n], tiles));
    }
    return shares;
  }

  // When a node would be done with so many tiles, and the other nodes of its machine with theirs.
  double done(const std::vector<Share>& shares, size_t node) const {
    return step_time(cluster_, shares, rows_).nodes[node].all;
  }

  std::vector<Share> greedy(const std::vector<bool>& used) const {
    std::vector<Share> shares(cluster_.nodes.size());
    for (int tile = 0; tile < cluster_.model.num_tiles; ++tile) {
      std::optional<size_t> first;
      double first_done = 0;
      for (size_t n = 0; n < shares.size(); ++n) {
        if (!used[n] || shares[n].tiles >= max_[n]) continue;
        if (shares[n].tiles > 0 && must_begin_another(shares, used, tile)) continue;
        const Share before = shares[n];
        shares[n] = share_of(cluster_.model, cluster_.nodes[n], before.tiles + 1);
        const double at = done(shares, n);
        // Of two alike the one with fewer tiles; of those the first.
        constexpr double kAlike = 1e-9;
        if (!first || at < first_done * (1 - kAlike) ||
            (at <= first_done * (1 + kAlike) && before.tiles < shares[*first].tiles)) {
          first = n;
          first_done = at;
        }
        shares[n] = before;
      }
      CHECK(first.has_value());
      shares[*first] = share_of(cluster_.model, cluster_.nodes[*first], shares[*first].tiles + 1);
    }
    return shares;
  }

  // That the tiles from this one on are just enough for the owners that are still wanted.
  bool must_begin_another(const std::vector<Share>& shares, const std::vector<bool>& used,
                          int tile) const {
    size_t owners = 0;
    bool another = false;
    for (size_t n = 0; n < shares.size(); ++n) {
      owners += shares[n].tiles > 0;
      another = another || (used[n] && shares[n].tiles == 0 && max_[n] > 0);
    }
    const auto left = static_cast<size_t>(cluster_.model.num_tiles - tile);
    return another && owners < owners_min() && left <= owners_min() - owners;
  }

  // Takes the node with the fewest tiles out of `used`, if the others can do without.
  std::optional<size_t> worst_left_out(std::vector<bool>& used) const {
    const std::vector<Share> shares = greedy(used);
    std::optional<size_t> worst;
    int room = 0;
    for (size_t n = 0; n < used.size(); ++n) {
      if (!used[n]) continue;
      room += max_[n];
      if (!worst || shares[n].tiles < shares[*worst].tiles) worst = n;
    }
    if (!worst || room - max_[*worst] < cluster_.model.num_tiles) return {};
    used[*worst] = false;
    return worst;
  }

  // Moves tiles, one at a time, while that makes the step shorter.
  std::vector<Share> improved(std::vector<Share> shares) const {
    double now = seconds(shares);
    for (bool moved = true; moved;) {
      moved = false;
      for (size_t from = 0; from < shares.size(); ++from) {
        for (size_t to = 0; to < shares.size(); ++to) {
          if (from == to || !may_lose_a_tile(shares, from) || shares[to].tiles >= max_[to])
            continue;
          std::vector<Share> other = shares;
          const auto& nodes = cluster_.nodes;
          other[from] = share_of(cluster_.model, nodes[from], shares[from].tiles - 1);
          other[to] = share_of(cluster_.model, nodes[to], shares[to].tiles + 1);
          const double then = seconds(other);
          if (then >= now * (1 - 1e-9)) continue;
          shares = other;
          now = then;
          moved = true;
        }
      }
    }
    return shares;
  }

  const PlanRequest& request_;
  const PlannedCluster& cluster_;
  const StepRows rows_;
  std::vector<int> max_;  // [node]
};

// Further copies where there is room, as the coordinator will place them. How many copies of tiles
// there is no RAM for is returned.
int add_standbys(const PlanRequest& request, std::vector<Share>* shares) {
  if (request.redundancy < 2) return 0;
  const ModelShape& model = request.cluster.model;
  std::vector<std::vector<int>> tiles_of_node;
  std::vector<int> room;
  int next = 0;
  for (size_t n = 0; n < shares->size(); ++n) {
    std::vector<int>& tiles = tiles_of_node.emplace_back((*shares)[n].tiles);
    std::iota(tiles.begin(), tiles.end(), next);
    next += (*shares)[n].tiles;
    room.push_back(tiles_in_ram(model, request.cluster.nodes[n]));
  }
  int lacking = (request.redundancy - 1) * next;
  const auto standbys = standby_tiles(tiles_of_node, request.redundancy, room);
  for (size_t n = 0; n < shares->size(); ++n) {
    (*shares)[n].standby = static_cast<int>(standbys[n].size());
    lacking -= (*shares)[n].standby;
  }
  return lacking;
}

uint64_t node_ram(const ModelShape& model, const PlannedMachine& node, const Share& share) {
  const auto kept = static_cast<size_t>(std::min(model.num_tiles, share.tiles + share.standby));
  const uint64_t all = model.node_bytes[kept];
  return (node.ram_bytes > 0 ? std::min(all, node.ram_bytes) : all) + model.program_bytes;
}

double load_seconds(const PlanRequest& request, const std::vector<NodePlan>& nodes) {
  const PlannedCluster& cluster = request.cluster;
  double longest = 0;
  if (cluster.coordinator.drive_bytes_per_second > 0) {
    longest = static_cast<double>(cluster.model.coordinator_read_bytes) /
              cluster.coordinator.drive_bytes_per_second;
  }
  for (size_t n = 0; n < nodes.size(); ++n) {
    const double rate = cluster.nodes[n].drives();
    if (rate > 0) longest = std::max(longest, static_cast<double>(nodes[n].read_bytes) / rate);
  }
  return longest;
}

void add_up(const StepTime& step, StepTime* sum) {
  const auto add = [&](double StepTime::*part) { sum->*part += step.*part; };
  for (const auto part :
       {&StepTime::projections, &StepTime::absorbed, &StepTime::core, &StepTime::router,
        &StepTime::shared, &StepTime::dense, &StepTime::head, &StepTime::overhead,
        &StepTime::experts, &StepTime::add_up, &StepTime::total}) {
    add(part);
  }
  sum->hit_rate = step.hit_rate;
  sum->slowest = step.slowest;
}

StepTime prompt_time(const PlannedCluster& cluster, const std::vector<Share>& shares,
                     double prompt) {
  StepTime sum;
  const double chunk = cluster.coordinator.rows_max;
  for (double begin = 0; begin < prompt; begin += chunk) {
    const double count = std::min(chunk, prompt - begin);
    add_up(step_time(cluster, shares, prompt_rows(begin, count, begin + count == prompt)), &sum);
  }
  return sum;
}

Prediction predict(const PlanRequest& request, const std::vector<Share>& shares) {
  const PlannedCluster& cluster = request.cluster;
  Prediction predicted;
  for (const int sequences : kSequences) {
    const StepTime step = step_time(cluster, shares, decode_rows(sequences, request.context));
    predicted.decode.push_back({sequences, sequences / step.total});
  }
  predicted.prefill = prompt_time(cluster, shares, request.prompt);
  predicted.prefill_tokens_per_second = request.prompt / predicted.prefill.total;
  predicted.first_token_seconds = predicted.prefill.total;
  predicted.aim = step_time(cluster, shares, aim_rows(request));
  return predicted;
}

void refuse(Plan* plan, std::string why) {
  plan->fits = false;
  plan->why_not = std::move(why);
}

// A GPU that is described and has room computes; one that was named has to.
void choose_device(PlanRequest* request, Plan* plan) {
  const PlannedCoordinator& coordinator = request->cluster.coordinator;
  const ModelShape& model = request->cluster.model;
  if (coordinator.device_memory_bytes == 0) return;
  if (model.device_bytes == 0) {
    plan->device_note =
        fmt::format("{} is not used: it has no kernels for rows in int8", coordinator.device_name);
  } else if (model.device_bytes > coordinator.device_memory_bytes) {
    plan->device_note = fmt::format("{} is not used: {} of its memory are needed, it has {}",
                                    coordinator.device_name, format_bytes(model.device_bytes),
                                    format_bytes(coordinator.device_memory_bytes));
  } else {
    request->cluster.on_device = true;
    plan->device_bytes = model.device_bytes;
    return;
  }
  if (request->device_is_required) refuse(plan, plan->device_note);
}

std::string tiles_missing(const PlanRequest& request, int room) {
  return fmt::format(
      "the nodes' RAM holds {} of the {} tiles of each expert ({} a tile of all layers)", room,
      request.cluster.model.num_tiles,
      format_bytes(request.cluster.model.node_bytes[1] - request.cluster.model.node_bytes[0]));
}

}  // namespace

int tiles_in_ram(const ModelShape& model, const PlannedMachine& node) {
  if (node.ram_bytes == 0) return model.num_tiles;
  int tiles = 0;
  while (tiles < model.num_tiles &&
         model.node_bytes[static_cast<size_t>(tiles) + 1] <= node.ram_bytes) {
    ++tiles;
  }
  return tiles;
}

StepRows aim_rows(const PlanRequest& request) {
  return decode_rows(request.aim == Aim::kLatency ? 1 : request.sequences, request.context);
}

double aim_tokens_per_second(const PlanRequest& request, const StepTime& step) {
  return aim_rows(request).rows / step.total;
}

Plan plan_shares(const PlanRequest& asked) {
  PlanRequest request = asked;
  const ModelShape& model = request.cluster.model;
  Plan plan;
  plan.fits = true;
  plan.rows_max = request.cluster.coordinator.rows_max;
  choose_device(&request, &plan);
  plan.coordinator_bytes = model.coordinator_bytes;
  const uint64_t coordinator_ram = request.cluster.coordinator.ram_bytes;
  if (coordinator_ram > 0 && plan.coordinator_bytes > coordinator_ram) {
    refuse(&plan, fmt::format("the coordinator needs {} of RAM, it has {}",
                              format_bytes(plan.coordinator_bytes), format_bytes(coordinator_ram)));
  }
  const auto num_nodes = static_cast<int>(request.cluster.nodes.size());
  if (plan.fits && request.redundancy > std::max(1, num_nodes)) {
    refuse(&plan, fmt::format("redundancy {} needs as many nodes, there are {}", request.redundancy,
                              num_nodes));
  }
  std::optional<std::vector<Share>> shares;
  if (model.moe_layers == 0 || num_nodes == 0) {
    shares.emplace(request.cluster.nodes.size());
  } else {
    shares = Sharing(request).find();
  }
  if (!shares) {
    int room = 0;
    for (const PlannedMachine& node : request.cluster.nodes) room += tiles_max(model, node);
    if (plan.fits) refuse(&plan, tiles_missing(request, room));
    for (const PlannedMachine& node : request.cluster.nodes) {
      const int tiles = tiles_in_ram(model, node);
      plan.nodes.push_back({node.name, {tiles, 0, 1}, node_ram(model, node, {tiles, 0, 1}), 0, 1});
    }
    return plan;
  }
  for (size_t n = 0; n < shares->size(); ++n) {
    const PlannedMachine& node = request.cluster.nodes[n];
    const Share& share = (*shares)[n];
    if (plan.fits && share.tiles > tiles_max(model, node)) {
      refuse(&plan, fmt::format("{} is to keep {} tiles ({}) and has room for {} in {}", node.name,
                                share.tiles,
                                format_bytes(model.node_bytes[static_cast<size_t>(share.tiles)]),
                                tiles_max(model, node), format_bytes(node.ram_bytes)));
    }
  }
  const int lacking = add_standbys(request, &*shares);
  if (plan.fits && lacking > 0) {
    refuse(&plan, fmt::format("redundancy {}: RAM for {} more tiles of each expert is missing "
                              "({} a tile)",
                              request.redundancy, lacking,
                              format_bytes(model.node_bytes[1] - model.node_bytes[0])));
  }
  plan.predicted = predict(request, *shares);
  for (size_t n = 0; n < shares->size(); ++n) {
    const PlannedMachine& node = request.cluster.nodes[n];
    const Share& share = (*shares)[n];
    NodePlan planned{node.name, share, node_ram(model, node, share), 0, 1};
    const auto kept = static_cast<size_t>(std::min(model.num_tiles, share.tiles + share.standby));
    planned.read_bytes =
        static_cast<uint64_t>(static_cast<double>(model.node_read_bytes[kept]) * share.resident);
    planned.hit_rate = distinct_experts(model, aim_rows(request).rows, share.resident).hit_rate();
    plan.nodes.push_back(planned);
  }
  plan.predicted.load_seconds = load_seconds(request, plan.nodes);
  if (request.cluster.local_node) {
    for (const NodePlan& node : plan.nodes) {
      plan.coordinator_bytes += node.ram_bytes - model.program_bytes;
    }
  }
  const Bottleneck bottleneck = bottleneck_of(request.cluster, *shares, aim_rows(request));
  plan.bottleneck = bottleneck.what;
  plan.bottleneck_share = bottleneck.share;
  return plan;
}

Plan make_plan(const PlanRequest& request, const std::vector<Alternative>& alternatives) {
  Plan plan = plan_shares(request);
  if (plan.fits) {
    plan.changes = best_changes(request, plan, alternatives);
  } else {
    plan.ways = ways_out(request, alternatives);
  }
  return plan;
}

}  // namespace atl::topology
