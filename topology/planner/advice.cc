#include "topology/planner/advice.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <map>
#include <optional>

#include "base/units.h"

namespace atl::topology {
namespace {

// A GPU that a buyer may think of.
constexpr uint64_t kGpuMemory = 24 * kGiB;
constexpr double kGpuRate = 1000e9;
constexpr double kDriveRate = 6e9;
constexpr size_t kChangesShown = 3;
// What helps less is not worth a line.
constexpr double kLeastGain = 1.01;

struct Candidate {
  std::string what;
  std::function<void(PlanRequest*)> apply;
};

// "97GiB": whole units, never less.
std::string whole_gib(uint64_t bytes) { return fmt::format("{}GiB", (bytes + kGiB - 1) / kGiB); }
uint64_t round_up_gib(uint64_t bytes) { return (bytes + kGiB - 1) / kGiB * kGiB; }

std::string other_rate(double bytes_per_second) { return format_rate(bytes_per_second); }

bool on_coordinator(const PlannedCluster& cluster, const PlannedMachine& node) {
  return !node.host.empty() && node.host == cluster.coordinator.host;
}

// The memory of a machine gets faster: of all that share it.
void set_read_rate(PlannedCluster* cluster, const std::string& host, size_t node, double rate) {
  const auto set = [&](MachineRates* rates) {
    const double factor = rate / rates->read_bytes_per_second;
    rates->read_bytes_per_second = rate;
    for (auto& points : rates->measured) {
      // As far as they were bound by reading.
      for (KernelPoint& point : points) {
        if (point.rows <= 2) point.seconds_per_weight /= factor;
      }
    }
  };
  if (host.empty()) return set(&cluster->nodes[node].rates);
  for (PlannedMachine& other : cluster->nodes) {
    if (other.host == host) set(&other.rates);
  }
  if (cluster->coordinator.host == host) set(&cluster->coordinator.rates);
}

void double_cores(MachineRates* rates) {
  rates->cores *= 2;
  rates->fma_flop_per_second *= 2;
  rates->int8_op_per_second *= 2;
  rates->attention_flop_per_second *= 2;
  for (auto& points : rates->measured) {
    for (KernelPoint& point : points) {
      if (point.rows > 2) point.seconds_per_weight /= 2;
    }
  }
}

class Candidates {
 public:
  Candidates(const PlanRequest& request, const Plan& plan) : request_(request), plan_(plan) {}

  std::vector<Candidate> all() {
    const auto& nodes = request_.cluster.nodes;
    for (size_t n = 0; n < nodes.size(); ++n) {
      // Of nodes that are alike in all but their names one stands for all.
      if (is_like_an_earlier_one(n)) continue;
      of_node(n);
    }
    of_all_nodes();
    of_coordinator();
    return std::move(found_);
  }

 private:
  void add(std::string what, std::function<void(PlanRequest*)> apply) {
    found_.push_back({std::move(what), std::move(apply)});
  }

  bool is_like_an_earlier_one(size_t n) const {
    const PlannedMachine& node = request_.cluster.nodes[n];
    for (size_t m = 0; m < n; ++m) {
      const PlannedMachine& other = request_.cluster.nodes[m];
      if (other.rates.read_bytes_per_second == node.rates.read_bytes_per_second &&
          other.rates.cores == node.rates.cores && other.ram_bytes == node.ram_bytes &&
          other.drive_bytes_per_second == node.drive_bytes_per_second &&
          other.nic_bytes_per_second == node.nic_bytes_per_second && other.host == node.host) {
        return true;
      }
    }
    return false;
  }

  void of_node(size_t n) {
    const PlannedMachine& node = request_.cluster.nodes[n];
    const NodePlan& planned = plan_.nodes[n];
    if (planned.share.resident < 1 && node.drives() > 0) {
      const double fastest =
          *std::max_element(node.drive_bytes_per_second.begin(), node.drive_bytes_per_second.end());
      add(fmt::format("one more drive of {} in {}", other_rate(fastest), node.name),
          [n, fastest](PlanRequest* r) {
            r->cluster.nodes[n].drive_bytes_per_second.push_back(fastest);
          });
      const uint64_t all =
          request_.cluster.model.node_bytes[static_cast<size_t>(planned.share.tiles)];
      const uint64_t ram = round_up_gib(all);
      add(fmt::format("RAM of {} in {} (has {})", whole_gib(ram), node.name,
                      format_bytes(node.ram_bytes)),
          [n, ram](PlanRequest* r) { r->cluster.nodes[n].ram_bytes = ram; });
    }
    const double rate = node.rates.read_bytes_per_second;
    add(fmt::format("memory of {} in {} (has {})", other_rate(2 * rate), node.name,
                    other_rate(rate)),
        [n, rate, host = node.host](PlanRequest* r) {
          set_read_rate(&r->cluster, host, n, 2 * rate);
        });
    add(fmt::format("{} cores in {} (has {})", 2 * node.rates.cores, node.name, node.rates.cores),
        [n](PlanRequest* r) { double_cores(&r->cluster.nodes[n].rates); });
  }

  void of_all_nodes() {
    const auto& nodes = request_.cluster.nodes;
    if (nodes.empty()) return;
    const auto best = std::max_element(
        nodes.begin(), nodes.end(), [](const PlannedMachine& a, const PlannedMachine& b) {
          return a.rates.read_bytes_per_second < b.rates.read_bytes_per_second;
        });
    const bool elsewhere = best->host.empty() || !on_coordinator(request_.cluster, *best);
    if (elsewhere) {
      add(fmt::format("one more node like {}", best->name), [more = *best](PlanRequest* r) {
        r->cluster.nodes.push_back(more);
        r->cluster.nodes.back().name = "one more";
        if (!more.host.empty()) r->cluster.nodes.back().host = "one more";
        if (!r->fixed_tiles.empty()) r->fixed_tiles.push_back(-1);
      });
    }
    if (nodes.size() > 1) {
      add("memory of twice the rate in all nodes", [](PlanRequest* r) {
        for (size_t n = 0; n < r->cluster.nodes.size(); ++n) {
          MachineRates& rates = r->cluster.nodes[n].rates;
          PlannedCluster alone;
          alone.nodes.push_back(r->cluster.nodes[n]);
          set_read_rate(&alone, "", 0, 2 * rates.read_bytes_per_second);
          rates = alone.nodes[0].rates;
        }
      });
      add("one more drive in each node", [](PlanRequest* r) {
        for (PlannedMachine& node : r->cluster.nodes) {
          const double rate = node.drive_bytes_per_second.empty()
                                  ? kDriveRate
                                  : node.drive_bytes_per_second.front();
          node.drive_bytes_per_second.push_back(rate);
        }
      });
    }
    const double nic = request_.cluster.coordinator.nic_bytes_per_second;
    if (nic > 0) {
      add(fmt::format("a network of {:.0f} Gbit/s everywhere (has {:.0f})", 10 * nic * 8e-9,
                      nic * 8e-9),
          [nic](PlanRequest* r) {
            r->cluster.coordinator.nic_bytes_per_second = 10 * nic;
            for (PlannedMachine& node : r->cluster.nodes) {
              if (node.nic_bytes_per_second > 0) node.nic_bytes_per_second = 10 * nic;
            }
          });
    }
  }

  void of_coordinator() {
    const PlannedCoordinator& coordinator = request_.cluster.coordinator;
    if (plan_.device_bytes > 0) {
      const double rate = coordinator.device.read_bytes_per_second;
      add(fmt::format("a GPU with memory of twice the rate of {}", coordinator.device_name),
          [rate](PlanRequest* r) {
            MachineRates& device = r->cluster.coordinator.device;
            device = described_device(2 * rate * kShareOfRead / kDeviceShareOfRead);
          });
      return;
    }
    const double rate = coordinator.rates.read_bytes_per_second;
    add(fmt::format("memory of {} in the coordinator (has {})", other_rate(2 * rate),
                    other_rate(rate)),
        [rate, host = coordinator.host](PlanRequest* r) {
          if (!host.empty()) return set_read_rate(&r->cluster, host, 0, 2 * rate);
          PlannedCluster alone;
          alone.coordinator = r->cluster.coordinator;
          alone.coordinator.host = "coordinator";
          set_read_rate(&alone, "coordinator", 0, 2 * rate);
          r->cluster.coordinator.rates = alone.coordinator.rates;
        });
    const uint64_t needed = request_.cluster.model.device_bytes;
    if (needed > 0) {
      const uint64_t memory = std::max(kGpuMemory, round_up_gib(needed));
      add(fmt::format("a GPU of {} at {} in the coordinator", whole_gib(memory),
                      other_rate(kGpuRate)),
          [memory](PlanRequest* r) {
            PlannedCoordinator& c = r->cluster.coordinator;
            c.device_name = "a GPU";
            c.device_memory_bytes = memory;
            c.device = described_device(kGpuRate);
          });
    }
  }

  const PlanRequest& request_;
  const Plan& plan_;
  std::vector<Candidate> found_;
};

// The least `bytes` of a range for which `fits` says yes, in whole GiB; nullopt if not even the
// largest.
std::optional<uint64_t> least_gib(uint64_t low, uint64_t high,
                                  const std::function<bool(uint64_t bytes)>& fits) {
  uint64_t no = low / kGiB, yes = (high + kGiB - 1) / kGiB;
  if (!fits(yes * kGiB)) return std::nullopt;
  while (yes - no > 1) {
    const uint64_t middle = no + (yes - no) / 2;
    (fits(middle * kGiB) ? yes : no) = middle;
  }
  return yes * kGiB;
}

bool fits(const PlanRequest& request) { return plan_shares(request).fits; }

// Changes of RAM, drives, nodes or numbers that make it fit.
std::vector<std::string> hardware_ways(const PlanRequest& request) {
  std::vector<std::string> ways;
  const ModelShape& model = request.cluster.model;
  const auto try_change = [&](std::string what, const std::function<void(PlanRequest*)>& apply) {
    PlanRequest other = request;
    apply(&other);
    if (!fits(other)) return false;
    ways.push_back(std::move(what));
    return true;
  };
  const PlannedCoordinator& coordinator = request.cluster.coordinator;
  if (coordinator.ram_bytes > 0 && model.coordinator_bytes > coordinator.ram_bytes) {
    const uint64_t ram = round_up_gib(model.coordinator_bytes);
    try_change(fmt::format("coordinator.ram {}", whole_gib(ram)),
               [ram](PlanRequest* r) { r->cluster.coordinator.ram_bytes = ram; });
  }
  if (request.device_is_required) {
    try_change("coordinator.device: cpu", [](PlanRequest* r) { r->device_is_required = false; });
  }
  const auto num_nodes = static_cast<int>(request.cluster.nodes.size());
  for (int redundancy = request.redundancy - 1; redundancy >= 1; --redundancy) {
    if (try_change(fmt::format("redundancy {}", redundancy),
                   [=](PlanRequest* r) { r->redundancy = redundancy; })) {
      break;
    }
  }
  if (num_nodes == 0) return ways;
  // More RAM in one node: the one that needs the least more.
  std::optional<std::pair<size_t, uint64_t>> least;
  const uint64_t all = model.node_bytes.back();
  for (size_t n = 0; n < request.cluster.nodes.size(); ++n) {
    const uint64_t has = request.cluster.nodes[n].ram_bytes;
    if (has == 0 || has >= all) continue;
    const auto ram = least_gib(has, all, [&](uint64_t bytes) {
      PlanRequest other = request;
      other.cluster.nodes[n].ram_bytes = bytes;
      return fits(other);
    });
    if (ram &&
        (!least || *ram - has < least->second - request.cluster.nodes[least->first].ram_bytes)) {
      least = {n, *ram};
    }
  }
  if (least) {
    const PlannedMachine& node = request.cluster.nodes[least->first];
    ways.push_back(fmt::format("ram {} in {} ({} more)", whole_gib(least->second), node.name,
                               format_bytes(least->second - node.ram_bytes)));
  } else {
    // The same in all.
    const auto ram = least_gib(0, all, [&](uint64_t bytes) {
      PlanRequest other = request;
      for (PlannedMachine& node : other.cluster.nodes) {
        if (node.ram_bytes > 0) node.ram_bytes = std::max(node.ram_bytes, bytes);
      }
      return fits(other);
    });
    if (ram) ways.push_back(fmt::format("ram {} in every node", whole_gib(*ram)));
  }
  for (int more = 1; more <= 16; ++more) {
    if (try_change(fmt::format("{} more node{} like {}", more, more == 1 ? "" : "s",
                               request.cluster.nodes[0].name),
                   [more](PlanRequest* r) {
                     for (int i = 0; i < more; ++i) {
                       r->cluster.nodes.push_back(r->cluster.nodes[0]);
                       r->cluster.nodes.back().host = fmt::format("more{}", i);
                       if (!r->fixed_tiles.empty()) r->fixed_tiles.clear();
                     }
                   })) {
      break;
    }
  }
  const bool any_without =
      std::any_of(request.cluster.nodes.begin(), request.cluster.nodes.end(),
                  [](const PlannedMachine& node) { return node.drives() == 0; });
  if (any_without) {
    try_change(fmt::format("drives with the experts in each node ({}: what RAM doesn't hold is "
                           "read when it is wanted)",
                           other_rate(kDriveRate)),
               [](PlanRequest* r) {
                 for (PlannedMachine& node : r->cluster.nodes) {
                   if (node.drives() == 0) node.drive_bytes_per_second = {kDriveRate};
                 }
               });
  }
  return ways;
}

}  // namespace

Bottleneck bottleneck_of(const PlannedCluster& cluster, const std::vector<Share>& shares,
                         const StepRows& rows) {
  const StepTime step = step_time(cluster, shares, rows);
  const ModelShape& model = cluster.model;
  const MachineRates& rates = cluster.coordinator_rates();
  std::map<std::string, double> seconds;
  const std::string where = cluster.on_device
                                ? fmt::format("coordinator: {}'s", cluster.coordinator.device_name)
                                : "coordinator:";
  const auto add = [&](const Work& work, double with_rows, double time) {
    seconds[where + (is_read_bound(rates, work, with_rows) ? " memory rate" : " arithmetic")] +=
        time;
  };
  add(model.projections, rows.rows, step.projections);
  add(model.absorbed, rows.rows, step.absorbed);
  add(model.router, rows.rows, step.router);
  add(model.shared, rows.rows, step.shared);
  add(model.dense_ffn, rows.rows, step.dense);
  add(model.head, rows.head_rows, step.head);
  seconds[where + " arithmetic"] += step.core;
  seconds["coordinator: memory rate"] += step.add_up;
  if (step.slowest >= 0 && step.experts > 0) {
    const auto n = static_cast<size_t>(step.slowest);
    const PlannedMachine& node = cluster.nodes[n];
    const NodeTime& spent = step.nodes[n];
    const double network = std::min(step.experts, model.moe_layers * spent.network);
    seconds["network"] += network;
    const DistinctExperts distinct = distinct_experts(model, rows.rows, shares[n].resident);
    const double rows_each = rows.rows * model.num_experts_per_tok / distinct.all;
    const char* what = spent.drive > spent.compute                          ? "drives"
                       : is_read_bound(node.rates, model.expert, rows_each) ? "memory rate"
                                                                            : "arithmetic";
    seconds[fmt::format("{}: {}", node.name, what)] += step.experts - network;
  }
  Bottleneck longest;
  for (const auto& [what, time] : seconds) {
    if (time / step.total > longest.share) longest = {what, time / step.total};
  }
  return longest;
}

std::vector<Change> best_changes(const PlanRequest& request, const Plan& plan,
                                 const std::vector<Alternative>& alternatives) {
  std::vector<Candidate> candidates = Candidates(request, plan).all();
  for (const Alternative& alternative : alternatives) {
    candidates.push_back(
        {alternative.what, [&](PlanRequest* r) { r->cluster.model = alternative.model; }});
  }
  const double before = aim_tokens_per_second(request, plan.predicted.aim);
  std::vector<Change> changes;
  for (const Candidate& candidate : candidates) {
    PlanRequest other = request;
    candidate.apply(&other);
    const Plan planned = plan_shares(other);
    if (!planned.fits) continue;
    const double after = aim_tokens_per_second(other, planned.predicted.aim);
    if (after > before * kLeastGain) changes.push_back({candidate.what, before, after});
  }
  std::stable_sort(changes.begin(), changes.end(),
                   [](const Change& a, const Change& b) { return a.after > b.after; });
  if (changes.size() > kChangesShown) changes.resize(kChangesShown);
  return changes;
}

std::vector<std::string> ways_out(const PlanRequest& request,
                                  const std::vector<Alternative>& alternatives) {
  std::vector<std::string> ways = hardware_ways(request);
  for (const Alternative& alternative : alternatives) {
    PlanRequest other = request;
    other.cluster.model = alternative.model;
    if (fits(other)) ways.push_back(alternative.what);
  }
  if (!ways.empty()) return ways;
  for (const Alternative& alternative : alternatives) {
    PlanRequest other = request;
    other.cluster.model = alternative.model;
    for (const std::string& way : hardware_ways(other)) {
      ways.push_back(fmt::format("{} and {}", alternative.what, way));
    }
  }
  return ways;
}

}  // namespace atl::topology
