#include "topology/thread_plan.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <map>
#include <set>

#include "base/check.h"

namespace atl::topology {
namespace {

std::vector<Core> cores_of(const Machine& machine, std::optional<int> numa_node) {
  std::vector<Core> cores;
  for (const Core& core : machine.cores) {
    if (!numa_node || core.numa_node == *numa_node) cores.push_back(core);
  }
  return cores;
}

std::vector<NumaNode> domains_with_cores(const Machine& machine) {
  std::vector<NumaNode> domains;
  for (const NumaNode& node : machine.numa_nodes) {
    if (node.num_cores > 0) domains.push_back(node);
  }
  return domains;
}

// One core of each last-level cache in turn, so that few threads have all caches and their links.
std::vector<Core> spread_over_caches(const std::vector<Core>& cores) {
  std::map<int, std::vector<Core>> groups;
  for (const Core& core : cores) groups[core.cache_group].push_back(core);
  std::vector<Core> spread;
  for (size_t round = 0; spread.size() < cores.size(); ++round) {
    for (const auto& [group, members] : groups) {
      if (round < members.size()) spread.push_back(members[round]);
    }
  }
  return spread;
}

// The cores in the order in which `num_threads` threads take them.
std::vector<Core> in_order_of_use(const Machine& machine, const std::vector<Core>& cores,
                                  int num_threads) {
  std::vector<Core> order;
  for (const NumaNode& node : machine.numa_nodes) {
    std::vector<Core> domain;
    std::copy_if(cores.begin(), cores.end(), std::back_inserter(domain),
                 [&](const Core& core) { return core.numa_node == node.id; });
    domain = spread_over_caches(domain);
    const bool holds_all = static_cast<int>(domain.size()) >= num_threads;
    if (holds_all) return domain;
    order.insert(order.end(), domain.begin(), domain.end());
  }
  return order;
}

std::vector<int> first_cpus(const Machine& machine, const std::vector<Core>& cores,
                            int num_threads) {
  if (num_threads > static_cast<int>(cores.size())) return {};
  const std::vector<Core> order = in_order_of_use(machine, cores, num_threads);
  std::vector<int> cpus;
  for (int i = 0; i < num_threads; ++i) cpus.push_back(order[i].cpu);
  return cpus;
}

void check_domain(const Machine& machine, int numa_node) {
  const NumaNode* found = machine.find_numa_node(numa_node);
  if (found != nullptr && found->num_cores > 0) return;
  std::vector<int> ids;
  for (const NumaNode& node : domains_with_cores(machine)) ids.push_back(node.id);
  throw LoadError(fmt::format("NUMA domain {} {}; give one of {}", numa_node,
                              found ? "has no core that this process may use" : "does not exist",
                              fmt::join(ids, ", ")));
}

// Why a team of this size is not pinned; "" if it is.
std::string reason_not_to_pin(const Machine& machine, const TeamRequest& request, int num_threads,
                              int num_cores) {
  if (request.pin == PinMode::kOff) return "as asked";
  if (!machine.is_this_system) return "the machine's cores are not known";
  if (num_threads > num_cores) return fmt::format("more threads than the {} cores", num_cores);
  if (request.pin == PinMode::kOn) return "";
  if (machine.has_quota) return "the CPU quota is below the cores, which others use as well";
  if (num_threads < num_cores) {
    return fmt::format("fewer threads than the {} cores, which others may use as well", num_cores);
  }
  return "";
}

int default_threads(const Machine& machine, int num_cores) {
  return std::max(1, std::min(num_cores, machine.usable_cores));
}

// Threads and domains of the nodes, none pinned yet.
std::vector<TeamPlan> spread_nodes(const Machine& machine, int num_nodes) {
  const std::vector<NumaNode> domains = domains_with_cores(machine);
  const int num_domains = std::max<int>(1, static_cast<int>(domains.size()));
  std::vector<TeamPlan> nodes(num_nodes);
  for (int n = 0; n < num_nodes; ++n) {
    const int place = n % num_domains;
    const int sharing = num_nodes / num_domains + (place < num_nodes % num_domains ? 1 : 0);
    const int cores =
        num_domains > 1 ? domains[place].num_cores : default_threads(machine, machine.usable_cores);
    nodes[n].num_threads = std::max(1, cores / sharing);
    if (machine.has_quota) {
      nodes[n].num_threads =
          std::min(nodes[n].num_threads, std::max(1, machine.usable_cores / num_nodes));
    }
    if (num_domains > 1) nodes[n].numa_node = domains[place].id;
  }
  return nodes;
}

// Takes cores for a team out of `free`; false, and nothing taken, if there are too few.
bool take_cores(const Machine& machine, std::vector<Core>* free, TeamPlan* plan) {
  std::vector<Core> mine;
  for (const Core& core : *free) {
    if (!plan->numa_node || core.numa_node == *plan->numa_node) mine.push_back(core);
  }
  plan->cpus = first_cpus(machine, mine, plan->num_threads);
  if (plan->cpus.empty()) return false;
  const std::set<int> taken(plan->cpus.begin(), plan->cpus.end());
  std::erase_if(*free, [&](const Core& core) { return taken.contains(core.cpu); });
  return true;
}

}  // namespace

std::vector<int> thread_cpus(const Machine& machine, int num_threads,
                             std::optional<int> numa_node) {
  CHECK_GE(num_threads, 1);
  return first_cpus(machine, cores_of(machine, numa_node), num_threads);
}

std::string_view to_string(PinMode mode) {
  switch (mode) {
    case PinMode::kAuto:
      return "auto";
    case PinMode::kOn:
      return "on";
    case PinMode::kOff:
      return "off";
  }
  return "?";
}

TeamPlan plan_team(const Machine& machine, const TeamRequest& request) {
  if (request.numa_node) check_domain(machine, *request.numa_node);
  const std::vector<Core> cores = cores_of(machine, request.numa_node);
  const int num_cores = static_cast<int>(cores.size());
  TeamPlan plan;
  plan.numa_node = request.numa_node;
  plan.num_threads =
      request.num_threads > 0 ? request.num_threads : default_threads(machine, num_cores);
  plan.reason = reason_not_to_pin(machine, request, plan.num_threads, num_cores);
  if (plan.reason.empty()) plan.cpus = first_cpus(machine, cores, plan.num_threads);
  return plan;
}

std::string describe(const TeamPlan& plan) {
  const std::string domain =
      plan.numa_node ? fmt::format(" in NUMA domain {}", *plan.numa_node) : "";
  return fmt::format(
      "{} thread{}{}, {}", plan.num_threads, plan.num_threads == 1 ? "" : "s", domain,
      plan.cpus.empty() ? "not pinned: " + plan.reason
                        : fmt::format("on processor{} {}", plan.cpus.size() == 1 ? "" : "s",
                                      fmt::join(plan.cpus, ",")));
}

SharedPlan plan_shared(const Machine& machine, int num_nodes, const TeamRequest& coordinator) {
  SharedPlan plan;
  plan.coordinator.num_threads = coordinator.num_threads > 0
                                     ? coordinator.num_threads
                                     : default_threads(machine, machine.usable_cores);
  plan.nodes = spread_nodes(machine, num_nodes);
  int num_threads = plan.coordinator.num_threads;
  for (const TeamPlan& node : plan.nodes) num_threads += node.num_threads;
  plan.cores_suffice = num_threads <= machine.usable_cores;

  // One team of all threads is pinned or not; its cores are then dealt out.
  const std::string reason =
      reason_not_to_pin(machine, coordinator, num_threads, static_cast<int>(machine.cores.size()));
  std::vector<Core> free = machine.cores;
  bool pinned = reason.empty();
  for (TeamPlan& node : plan.nodes) pinned = pinned && take_cores(machine, &free, &node);
  pinned = pinned && take_cores(machine, &free, &plan.coordinator);
  if (pinned) return plan;
  const std::string said = reason.empty() ? "a domain has more threads than cores" : reason;
  for (TeamPlan& node : plan.nodes) node.cpus.clear(), node.reason = said;
  plan.coordinator.cpus.clear();
  plan.coordinator.reason = said;
  return plan;
}

}  // namespace atl::topology
