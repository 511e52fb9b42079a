// atoll topology: what this machine has and where threads would run.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "base/units.h"
#include "cli/commands.h"
#include "cli/output.h"
#include "cli/table.h"
#include "cli/thread_options.h"
#include "kernels/cpu/dispatch.h"
#include "topology/machine.h"
#include "topology/memory_bounds.h"

namespace atl::cli {
namespace {

using topology::Machine;
using topology::MemoryBound;
using topology::NumaNode;
using topology::TeamPlan;
using Json = nlohmann::ordered_json;

struct TopologyOptions {
  topology::TeamRequest threads;
  bool json = false;
};

std::string domain_text(const Machine& machine) {
  Table table({{"NUMA domain", Align::kRight},
               {"cores", Align::kRight},
               {"memory", Align::kRight},
               {"processors"}});
  for (const NumaNode& node : machine.numa_nodes) {
    std::string cpus;
    for (const topology::Core& core : machine.cores) {
      if (core.numa_node != node.id) continue;
      cpus += (cpus.empty() ? "" : ",") + std::to_string(core.cpu);
    }
    table.add_row({std::to_string(node.id), std::to_string(node.num_cores),
                   format_bytes(node.memory_bytes), cpus});
  }
  return table.to_string("");
}

std::string device_text(const Machine& machine) {
  Table table({{"device"}, {"kind"}, {"NUMA domain", Align::kRight}, {"model"}});
  for (const topology::Device& device : machine.devices) {
    table.add_row({device.name, std::string(topology::to_string(device.kind)),
                   device.numa_node < 0 ? "-" : std::to_string(device.numa_node), device.model});
  }
  return table.to_string("");
}

std::string memory_text(const std::vector<MemoryBound>& bounds) {
  Table table({{"memory bound"}, {"free", Align::kRight}, {"of", Align::kRight}, {"for"}});
  for (const MemoryBound& bound : bounds) {
    table.add_row({bound.name, format_bytes(bound.free_bytes), format_bytes(bound.limit_bytes),
                   bound.of == MemoryBound::Of::kMachine ? "all processes" : "each process"});
  }
  return table.to_string("");
}

std::string to_text(const Machine& machine, const TeamPlan& plan,
                    const std::vector<MemoryBound>& bounds) {
  std::string text = fmt::format("{} package{}, {} cores, {} can be used{}\n", machine.num_packages,
                                 machine.num_packages == 1 ? "" : "s", machine.cores.size(),
                                 machine.usable_cores, machine.has_quota ? " (CPU quota)" : "");
  for (const topology::CacheLevel& cache : machine.caches) {
    text += fmt::format("L{}: {} of {}\n", cache.level, cache.count, format_bytes(cache.bytes));
  }
  text += fmt::format("SIMD: {}\n", fmt::join(kernels::cpu_targets(), ", "));
  text += "\n" + memory_text(bounds) + "\n" + domain_text(machine);
  if (!machine.devices.empty()) text += "\n" + device_text(machine);
  return text + fmt::format("\nplan: {}\n", topology::describe(plan));
}

Json to_json(const Machine& machine, const TeamPlan& plan, const std::vector<MemoryBound>& bounds) {
  Json cores = Json::array(), nodes = Json::array(), caches = Json::array();
  Json devices = Json::array(), memory = Json::array();
  for (const MemoryBound& bound : bounds) {
    memory.push_back({{"name", bound.name},
                      {"of", bound.of == MemoryBound::Of::kMachine ? "machine" : "process"},
                      {"limit_bytes", bound.limit_bytes},
                      {"free_bytes", bound.free_bytes}});
  }
  for (const topology::Core& core : machine.cores) {
    cores.push_back({{"cpu", core.cpu},
                     {"hardware_threads", core.num_cpus},
                     {"package", core.package},
                     {"numa_node", core.numa_node},
                     {"cache_group", core.cache_group}});
  }
  for (const NumaNode& node : machine.numa_nodes) {
    nodes.push_back(
        {{"id", node.id}, {"cores", node.num_cores}, {"memory_bytes", node.memory_bytes}});
  }
  for (const topology::CacheLevel& cache : machine.caches) {
    caches.push_back({{"level", cache.level}, {"bytes", cache.bytes}, {"count", cache.count}});
  }
  for (const topology::Device& device : machine.devices) {
    devices.push_back({{"name", device.name},
                       {"kind", topology::to_string(device.kind)},
                       {"numa_node", device.numa_node},
                       {"model", device.model}});
  }
  return {{"packages", machine.num_packages},
          {"usable_cores", machine.usable_cores},
          {"has_quota", machine.has_quota},
          {"cores", cores},
          {"numa_nodes", nodes},
          {"caches", caches},
          {"simd_targets", kernels::cpu_targets()},
          {"memory_bounds", memory},
          {"devices", devices},
          {"plan",
           {{"threads", plan.num_threads}, {"pinned_to", plan.cpus}, {"text", describe(plan)}}}};
}

}  // namespace

void add_topology_command(CLI::App& app, int* exit_code) {
  auto options = std::make_shared<TopologyOptions>();
  CLI::App* command = app.add_subcommand(
      "topology", "What this process may use of the machine, and where its threads would run");
  add_threads_option(*command, "Threads to plan", &options->threads.num_threads);
  add_pin_option(*command, &options->threads.pin);
  command
      ->add_option("--numa-node", options->threads.numa_node,
                   "Plan for this NUMA domain (the kernel's number)")
      ->check(CLI::Range(0, 1 << 16))
      ->type_name("K");
  command->add_flag("--json", options->json, "One JSON object in place of the text");
  command->footer(
      "Memory of a domain is what the kernel tells now; guests may tell too little.\n\nExample:\n  "
      "atoll topology --threads 2 --pin on");
  command->callback([options, exit_code] {
    const Machine machine = topology::this_machine(topology::Devices::kFind);
    const TeamPlan plan = topology::plan_team(machine, options->threads);
    const std::vector<MemoryBound> bounds = topology::memory_bounds();
    write_stdout(options->json
                     ? to_json(machine, plan, bounds)
                               .dump(2, ' ', false, nlohmann::json::error_handler_t::replace) +
                           "\n"
                     : to_text(machine, plan, bounds));
    *exit_code = 0;
  });
}

}  // namespace atl::cli
