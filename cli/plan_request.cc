#include "cli/plan_request.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <optional>

#include "base/units.h"
#include "config/keys.h"

namespace atl::cli {
namespace {

using config::ClusterConfig;
using config::MachineConfig;
using config::NodeConfig;
using topology::PlannedCoordinator;
using topology::PlannedMachine;
using topology::PlanRequest;

// What nobody said of a described machine. A core for each 5 GB/s is what servers have (EPYC 9004:
// 460 GB/s, 96 cores).
constexpr double kBytesPerSecondPerCore = 5e9;
constexpr double kNic = 10e9 / 8;
constexpr double kDrive = 1e9;

const char* const kHere = "this machine";

class SubjectBuilder {
 public:
  SubjectBuilder(const ClusterConfig& config, int64_t max_positions,
                 const std::function<MachineFacts()>& probe)
      : config_(config), max_positions_(max_positions), probe_(probe) {}

  PlanSubject build() {
    PlanRequest& request = subject_.request;
    for (const NodeConfig& node : config_.nodes) request.cluster.nodes.push_back(machine_of(node));
    request.cluster.coordinator = coordinator();
    if (config_.nodes.empty()) add_local_node();
    bound_memory();
    request.redundancy = config_.redundancy;
    const config::PlanConfig& plan = config_.plan;
    request.aim = plan.for_throughput ? topology::Aim::kThroughput : topology::Aim::kLatency;
    request.sequences = plan.sequences;
    int64_t context = plan.context > 0 ? plan.context : config_.coordinator.context;
    if (context == 0) context = kPlanContext;
    request.context = static_cast<double>(std::min(context, max_positions_));
    request.prompt = static_cast<double>(std::min(plan.prompt, max_positions_));
    request.device_is_required = config_.coordinator.device.starts_with("cuda");
    return std::move(subject_);
  }

 private:
  void assume(std::string what) { subject_.assumed.push_back(std::move(what)); }
  const MachineFacts& here() {
    if (!here_) here_ = probe_();
    return *here_;
  }

  static bool is_described(const MachineConfig& machine) {
    return machine.memory_bytes_per_second > 0;
  }

  topology::MachineRates described(const std::string& who, const MachineConfig& machine) {
    int cores = machine.cores;
    if (cores == 0) {
      cores =
          std::max(1, static_cast<int>(machine.memory_bytes_per_second / kBytesPerSecondPerCore));
      assume(fmt::format("{}: {} cores, one for each 5 GB/s of its memory", who, cores));
    }
    return topology::described_machine(machine.memory_bytes_per_second, cores);
  }

  PlannedMachine machine_of(const NodeConfig& node) {
    PlannedMachine planned;
    planned.name = node.name;
    planned.threads = node.threads;
    planned.ram_bytes = node.ram_bytes.value_or(node.machine.ram_bytes);
    planned.drive_bytes_per_second = node.machine.drive_bytes_per_second;
    planned.nic_bytes_per_second = node.machine.nic_bytes_per_second;
    subject_.request.fixed_tiles.push_back(-1);
    const bool is_near = node.control.port != 0 && node.control.is_loopback();
    if (is_described(node.machine)) {
      planned.rates = described(node.name, node.machine);
      if (is_near) planned.host = kHere;
    } else if (is_near) {
      planned.rates = here().measured.rates;
      planned.host = kHere;
      if (planned.drive_bytes_per_second.empty()) planned.drive_bytes_per_second = drive_here();
    } else {
      throw LoadError(fmt::format(
          "{}: node {}: the rate of its memory isn't known: say `mem_bw: 250GB/s` there, or run "
          "`atoll probe --describe {}` on it and give the file with --describe",
          config_.file.filename().string(), node.name, node.name));
    }
    if (!is_near && planned.nic_bytes_per_second == 0) {
      planned.nic_bytes_per_second = kNic;
      assume(fmt::format("{}: a network of 10 Gbit/s", node.name));
    }
    if (planned.ram_bytes == 0 && planned.host.empty()) {
      assume(fmt::format("{}: as much RAM as it needs", node.name));
    }
    return planned;
  }

  PlannedCoordinator coordinator() {
    const config::CoordinatorConfig& from = config_.coordinator;
    PlannedCoordinator planned;
    planned.rows_max = static_cast<int>(from.rows_max);
    planned.ram_bytes = from.machine.ram_bytes;
    planned.nic_bytes_per_second = from.machine.nic_bytes_per_second;
    const auto& nodes = subject_.request.cluster.nodes;
    const bool with_nodes_here = std::any_of(
        nodes.begin(), nodes.end(), [](const PlannedMachine& node) { return node.host == kHere; });
    if (is_described(from.machine)) {
      planned.rates = described("coordinator", from.machine);
      if (with_nodes_here || nodes.empty()) planned.host = kHere;
    } else if (with_nodes_here || nodes.empty()) {
      planned.host = kHere;
      planned.rates = with_nodes_here ? first_node_here().rates : here().measured.rates;
      if (here_) planned.drive_bytes_per_second = drive_here().front();
    } else {
      const auto best = std::max_element(
          nodes.begin(), nodes.end(), [](const PlannedMachine& a, const PlannedMachine& b) {
            return a.rates.read_bytes_per_second < b.rates.read_bytes_per_second;
          });
      planned.rates = best->rates;
      if (planned.nic_bytes_per_second == 0) {
        planned.nic_bytes_per_second = best->nic_bytes_per_second;
      }
      planned.drive_bytes_per_second = best->drives();
      assume(fmt::format("coordinator: a machine of its own, like {}, with as much RAM as it needs",
                         best->name));
    }
    if (planned.nic_bytes_per_second == 0 && planned.host.empty()) {
      planned.nic_bytes_per_second = kNic;
      assume("coordinator: a network of 10 Gbit/s");
    }
    if (planned.drive_bytes_per_second == 0) {
      planned.drive_bytes_per_second = kDrive;
      assume("coordinator: a drive of 1 GB/s to load from");
    }
    add_device(from, &planned);
    subject_.coordinator_threads = from.threads > 0 ? from.threads : planned.rates.cores;
    return planned;
  }

  void add_device(const config::CoordinatorConfig& from, PlannedCoordinator* planned) {
    const config::DeviceConfig& device = from.described_device;
    if (!device.is_described() || from.device == "cpu") return;
    if (device.memory_bytes == 0 || device.memory_bytes_per_second == 0) {
      throw LoadError(fmt::format("{}: coordinator.device: expected both `memory` and `mem_bw`",
                                  config_.file.filename().string()));
    }
    planned->device_name = device.name.empty() ? "the GPU" : device.name;
    planned->device_memory_bytes = device.memory_bytes;
    planned->device = topology::described_device(device.memory_bytes_per_second);
    assume(
        fmt::format("{}: {:.3g} TFLOP/s in FP32, {:.0f} per byte of its memory's rate; no GPU "
                    "has been measured yet",
                    planned->device_name, planned->device.fma_flop_per_second * 1e-12,
                    topology::kDeviceFlopPerByte));
  }

  const PlannedMachine& first_node_here() const {
    const auto& nodes = subject_.request.cluster.nodes;
    return *std::find_if(nodes.begin(), nodes.end(),
                         [](const PlannedMachine& node) { return node.host == kHere; });
  }

  // No nodes: the experts are in the coordinator's process.
  void add_local_node() {
    PlanRequest& request = subject_.request;
    PlannedMachine node;
    node.name = config_.coordinator.name;
    node.host = kHere;
    node.rates = request.cluster.coordinator.rates;
    if (here_) node.drive_bytes_per_second = drive_here();
    request.cluster.nodes.push_back(node);
    request.cluster.local_node = true;
    request.fixed_tiles.push_back(-1);
  }

  // What is free here is shared by all processes that are planned here.
  void bound_memory() {
    auto& cluster = subject_.request.cluster;
    for (size_t n = 0; n < cluster.nodes.size(); ++n) {
      const PlannedMachine& node = cluster.nodes[n];
      if (node.host == kHere && node.ram_bytes == 0) subject_.unbounded.push_back(n);
      subject_.node_threads =
          std::max(subject_.node_threads, node.threads > 0 ? node.threads : node.rates.cores);
    }
    if (cluster.coordinator.ram_bytes > 0 && cluster.local_node) {
      subject_.free_here_bytes = cluster.coordinator.ram_bytes;
      return;
    }
    if (!here_ || cluster.coordinator.ram_bytes > 0) return;
    const auto bound = topology::tightest(here_->bounds, topology::MemoryBound::Of::kMachine);
    if (!bound) return;
    subject_.free_here_bytes = bound->free_bytes;
    cluster.coordinator.ram_bytes = bound->free_bytes;
  }

  std::vector<double> drive_here() {
    if (here().measured.drive) return {here().measured.drive->bytes_per_second};
    if (!drive_is_assumed_) {
      assume("this machine: a drive of 1 GB/s; `atoll probe --drive DIR` measures it");
    }
    drive_is_assumed_ = true;
    return {kDrive};
  }

  const ClusterConfig& config_;
  const int64_t max_positions_;
  const std::function<MachineFacts()>& probe_;
  std::optional<MachineFacts> here_;
  bool drive_is_assumed_ = false;
  PlanSubject subject_;
};

}  // namespace

PlanSubject plan_subject(const ClusterConfig& config, int64_t max_positions,
                         const std::function<MachineFacts()>& probe) {
  return SubjectBuilder(config, max_positions, probe).build();
}

void share_memory_here(PlanSubject* subject) {
  topology::PlannedCluster& cluster = subject->request.cluster;
  if (subject->free_here_bytes == 0 || subject->unbounded.empty()) return;
  uint64_t taken = cluster.model.coordinator_bytes;
  for (const PlannedMachine& node : cluster.nodes) {
    if (node.host == kHere && node.ram_bytes > 0) {
      taken += node.ram_bytes + cluster.model.program_bytes;
    }
  }
  const uint64_t left = subject->free_here_bytes - std::min(subject->free_here_bytes, taken);
  const uint64_t each = left / subject->unbounded.size();
  const uint64_t program = cluster.local_node ? 0 : cluster.model.program_bytes;
  for (const size_t n : subject->unbounded) {
    // 1 byte: bounded, and too little.
    cluster.nodes[n].ram_bytes = std::max<uint64_t>(1, each - std::min(each, program));
  }
}

std::vector<std::string> described_flags(const std::filesystem::path& file) {
  const config::Settings settings = config::Settings::read(file, {});
  std::vector<std::string> names, flags;
  for (int n = 0; n < settings.num_nodes(); ++n) {
    names.push_back(settings.at(fmt::format("nodes[{}].name", n)).text());
  }
  for (const auto& [path, setting] : settings.all()) {
    if (setting.origin != config::Origin::kFile || path.ends_with("].name")) continue;
    std::string key = path;
    if (path.starts_with("nodes[")) {
      const size_t n = std::stoul(path.substr(6));
      key = fmt::format("nodes.{}.{}", names[n], path.substr(path.find("].") + 2));
    }
    flags.push_back(fmt::format("{}={}", key, fmt::join(setting.items, ",")));
  }
  return flags;
}

}  // namespace atl::cli
