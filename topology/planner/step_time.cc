#include "topology/planner/step_time.h"

#include <algorithm>
#include <map>
#include <numeric>

#include "base/check.h"

namespace atl::topology {
namespace {

Work part_of(const Work& work, double share) {
  return {work.weights * share, work.bytes * share, work.kernel};
}

// One layer's attention over the cache.
double core_seconds(const ModelShape& model, const MachineRates& rates, const StepRows& rows) {
  const double flop = 2 * model.heads * (2 * model.kv_lora_rank + model.rope_dim) * rows.attended;
  return std::max(flop / rates.attention_flop_per_second,
                  model.cache_entry_bytes * rows.read / rates.read_bytes_per_second);
}

// What travels between coordinator and each node in one MoE layer, in bytes.
struct Traffic {
  double out = 0, back = 0;
};
Traffic traffic_of(const ModelShape& model, double rows) {
  return {rows * (model.hidden * model.wire_value_bytes + 8.0 * model.num_experts_per_tok),
          rows * model.hidden * kPartialValueBytes};
}

bool shares_machine(const PlannedCluster& cluster, const PlannedMachine& node) {
  return !node.host.empty() && node.host == cluster.coordinator.host;
}

double network_seconds(const PlannedCluster& cluster, const PlannedMachine& node,
                       const Traffic& traffic, int num_asked) {
  if (cluster.local_node) return 0;
  if (shares_machine(cluster, node)) {
    // Copied once each way, by processes that share the memory.
    return 2 * kSharedMemorySeconds +
           (traffic.out + traffic.back) * 2 / cluster.coordinator.rates.read_bytes_per_second;
  }
  const auto one_way = [&](double bytes) {
    double seconds = 0;
    if (node.nic_bytes_per_second > 0) seconds = bytes / node.nic_bytes_per_second;
    if (cluster.coordinator.nic_bytes_per_second > 0) {
      seconds = std::max(seconds, num_asked * bytes / cluster.coordinator.nic_bytes_per_second);
    }
    return kLinkSeconds + seconds;
  };
  return one_way(traffic.out) + one_way(traffic.back);
}

// Which share of its machine's cores a node has.
double share_of_cores(const PlannedMachine& node) {
  if (node.threads <= 0 || node.rates.cores <= 0) return 1;
  return std::min(1.0, static_cast<double>(node.threads) / node.rates.cores);
}

}  // namespace

double PlannedMachine::drives() const {
  return std::accumulate(drive_bytes_per_second.begin(), drive_bytes_per_second.end(), 0.0);
}

StepRows decode_rows(double sequences, double context) {
  return {sequences, sequences * (context + 1), sequences * (context + 1), sequences};
}

StepRows prompt_rows(double begin, double count, bool ends) {
  return {count, count * begin + count * (count + 1) / 2, begin + count, ends ? 1.0 : 0.0};
}

namespace {

// Some layers of each kind, all with the same rows; nodes' times are of one of them.
struct LayerCounts {
  int dense = 0, moe = 0;
  int all() const { return dense + moe; }
};

void add_nodes(const PlannedCluster& cluster, const std::vector<Share>& shares, double rows,
               double shared, int moe_layers, StepTime* time) {
  const ModelShape& model = cluster.model;
  int num_asked = 0;
  for (const Share& share : shares) num_asked += share.tiles > 0;
  const Traffic traffic = traffic_of(model, rows);
  std::map<std::string, double> busy;  // of each machine that is shared
  // The shared experts take the same cores, unless a GPU has them.
  if (!cluster.coordinator.host.empty() && !cluster.on_device) {
    busy[cluster.coordinator.host] = shared;
  }
  double wanted = 0, missing = 0;
  time->nodes.clear();
  for (size_t n = 0; n < shares.size(); ++n) {
    const PlannedMachine& node = cluster.nodes[n];
    NodeTime& spent = time->nodes.emplace_back();
    if (shares[n].tiles == 0 || model.moe_layers == 0 || rows <= 0) continue;
    const DistinctExperts distinct = distinct_experts(model, rows, shares[n].resident);
    const double part = static_cast<double>(shares[n].tiles) / model.num_tiles;
    const double rows_each = rows * model.num_experts_per_tok / distinct.all;
    const Work work = part_of(model.expert, part * distinct.all);
    const double full = seconds_of(node.rates, work, rows_each);
    spent.network = network_seconds(cluster, node, traffic, num_asked);
    spent.compute = full / share_of_cores(node);
    spent.drive_bytes = distinct.missing * shares[n].tiles * model.tile_bytes;
    if (spent.drive_bytes > 0 && node.drives() > 0) {
      spent.drive = spent.drive_bytes / node.drives();
    }
    spent.all = spent.network + std::max(spent.compute, spent.drive);
    if (!node.host.empty()) busy[node.host] += full;
    wanted += distinct.all * shares[n].tiles;
    missing += distinct.missing * shares[n].tiles;
  }
  double slowest = 0;
  for (size_t n = 0; n < shares.size(); ++n) {
    NodeTime& spent = time->nodes[n];
    if (shares[n].tiles == 0) continue;
    const std::string& host = cluster.nodes[n].host;
    if (!host.empty()) spent.all = std::max(spent.all, spent.network + busy[host]);
    if (spent.all <= slowest) continue;
    slowest = spent.all;
    time->slowest = static_cast<int>(n);
  }
  time->experts += moe_layers * std::max(0.0, slowest - shared);
  // Each sum is read and the total is read and written, 8 bytes a value.
  time->add_up += moe_layers * num_asked * rows * model.hidden * 8 * 3 /
                  cluster.coordinator.rates.read_bytes_per_second;
  time->hit_rate = wanted > 0 ? 1 - missing / wanted : 1;
}

void add_layers(const PlannedCluster& cluster, const std::vector<Share>& shares,
                const StepRows& rows, const LayerCounts& layers, StepTime* time) {
  const ModelShape& model = cluster.model;
  const MachineRates& rates = cluster.coordinator_rates();
  time->projections += layers.all() * seconds_of(rates, model.projections, rows.rows);
  time->absorbed += layers.all() * seconds_of(rates, model.absorbed, rows.rows);
  if (rows.rows > 0) time->core += layers.all() * core_seconds(model, rates, rows);
  time->router += layers.moe * seconds_of(rates, model.router, rows.rows);
  const double shared = seconds_of(rates, model.shared, rows.rows);
  time->shared += layers.moe * shared;
  time->dense += layers.dense * seconds_of(rates, model.dense_ffn, rows.rows);
  add_nodes(cluster, shares, rows.rows, shared, layers.moe, time);
}

}  // namespace

StepTime step_time(const PlannedCluster& cluster, const std::vector<Share>& shares,
                   const StepRows& rows) {
  CHECK_EQ(shares.size(), cluster.nodes.size());
  const ModelShape& model = cluster.model;
  const MachineRates& rates = cluster.coordinator_rates();
  StepTime time;
  LayerCounts others{model.dense_layers, model.moe_layers}, last;
  const bool cuts_rows = rows.head_rows < rows.rows && others.all() > 0;
  if (cuts_rows) {
    // In the last layer rows without logits are done once the cache has them.
    --(others.moe > 0 ? others.moe : others.dense);
    (others.moe < model.moe_layers ? last.moe : last.dense) = 1;
    const StepRows wanted{rows.head_rows, rows.head_rows * rows.read, rows.read, rows.head_rows};
    add_layers(cluster, shares, wanted, last, &time);
    time.projections += seconds_of(rates, model.kv_a, rows.rows - rows.head_rows);
  }
  add_layers(cluster, shares, rows, others, &time);  // whose nodes' times are told
  time.head = seconds_of(rates, model.head, rows.head_rows);
  time.overhead = (model.layers() + 1) * rates.step_overhead_seconds;
  time.total = time.projections + time.absorbed + time.core + time.router + time.shared +
               time.dense + time.head + time.overhead + time.experts + time.add_up;
  return time;
}

}  // namespace atl::topology
