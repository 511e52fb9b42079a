#include "topology/planner/rates.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace atl::topology {
namespace {

// Cycles of one core per weight with one row, weights in its L2; share of the peak with many rows.
// Measured: docs/benchmarks.md, section 5.
struct KernelConstants {
  double cycles_one_row, share_of_peak;
};
KernelConstants constants_of(Kernel kernel) {
  switch (kernel) {
    case Kernel::kF32:
      return {0.10, 0.80};
    case Kernel::kBf16:
      return {0.121, 0.79};
    case Kernel::kFp8:
      return {0.151, 0.78};
    case Kernel::kInt4:
      return {0.245, 0.65};
    case Kernel::kInt4I8:
      return {0.076, 0.45};
    case Kernel::kInt8I8:
      return {0.076, 0.50};
  }
  CHECK(false);
}

bool has_int8_rows(Kernel kernel) { return kernel == Kernel::kInt4I8 || kernel == Kernel::kInt8I8; }

double read_seconds(const MachineRates& machine, const Work& work) {
  return work.bytes / machine.read_bytes_per_second;
}

// Between measured numbers of rows a straight line, beyond the last one in proportion.
double measured_seconds(const std::vector<KernelPoint>& points, double rows) {
  if (rows <= points.front().rows) return points.front().seconds_per_weight;
  for (size_t i = 1; i < points.size(); ++i) {
    if (rows > points[i].rows) continue;
    const KernelPoint &a = points[i - 1], &b = points[i];
    const double part = (rows - a.rows) / (b.rows - a.rows);
    return a.seconds_per_weight + part * (b.seconds_per_weight - a.seconds_per_weight);
  }
  return points.back().seconds_per_weight * rows / points.back().rows;
}

}  // namespace

std::string_view to_string(Kernel kernel) {
  switch (kernel) {
    case Kernel::kF32:
      return "f32";
    case Kernel::kBf16:
      return "bf16";
    case Kernel::kFp8:
      return "fp8";
    case Kernel::kInt4:
      return "int4";
    case Kernel::kInt4I8:
      return "int4-i8";
    case Kernel::kInt8I8:
      return "int8-i8";
  }
  CHECK(false);
}

DistinctExperts distinct_experts(const ModelShape& model, double rows, double resident) {
  DistinctExperts distinct;
  if (model.moe_layers == 0 || rows <= 0) return distinct;
  const double pairs = static_cast<double>(model.moe_layers) * model.n_routed_experts;
  std::vector<UsageClass> classes = model.classes;
  if (classes.empty()) {
    classes = {{static_cast<double>(model.num_experts_per_tok) / model.n_routed_experts, pairs}};
  }
  std::stable_sort(classes.begin(), classes.end(), [](const UsageClass& a, const UsageClass& b) {
    return a.probability > b.probability;
  });
  double kept = std::clamp(resident, 0.0, 1.0) * pairs;
  for (const UsageClass& one : classes) {
    const double chosen = 1 - std::pow(1 - std::min(one.probability, 1.0), rows);
    const double here = std::min(kept, one.count);
    kept -= here;
    distinct.all += one.count * chosen;
    distinct.missing += (one.count - here) * chosen;
  }
  distinct.all /= model.moe_layers;
  distinct.missing /= model.moe_layers;
  return distinct;
}

MachineRates described_machine(double read_bytes_per_second, int cores) {
  MachineRates machine;
  machine.cores = cores;
  machine.read_bytes_per_second = read_bytes_per_second;
  machine.fma_flop_per_second = cores * kClock * kFmaFlopPerCycle;
  machine.int8_op_per_second = cores * kClock * kInt8OpPerCycle;
  machine.attention_flop_per_second = kAttentionShareOfFma * machine.fma_flop_per_second;
  machine.step_overhead_seconds = kLayerOverheadSeconds;
  return machine;
}

MachineRates described_device(double read_bytes_per_second) {
  MachineRates device;
  const double flop = read_bytes_per_second * kDeviceFlopPerByte;
  device.read_bytes_per_second = read_bytes_per_second * kDeviceShareOfRead / kShareOfRead;
  device.fma_flop_per_second = flop;
  device.int8_op_per_second = flop;
  device.attention_flop_per_second = flop * kDeviceShareOfRead;
  device.step_overhead_seconds = kDeviceLayerOverheadSeconds;
  return device;
}

double seconds_of(const MachineRates& machine, const Work& work, double rows) {
  if (work.weights == 0 || rows <= 0) return 0;
  const auto& points = machine.measured[static_cast<size_t>(work.kernel)];
  if (!points.empty()) return work.weights * measured_seconds(points, rows);
  const KernelConstants constants = constants_of(work.kernel);
  const double peak =
      has_int8_rows(work.kernel) ? machine.int8_op_per_second : machine.fma_flop_per_second;
  const double compute = 2 * rows * work.weights / (peak * constants.share_of_peak);
  // Decoding a weight takes its cycles however few rows there are; a GPU hides that.
  const double decode =
      machine.cores > 0 ? work.weights * constants.cycles_one_row / (machine.cores * kClock) : 0;
  return std::max({read_seconds(machine, work) / kShareOfRead, compute, decode});
}

bool is_read_bound(const MachineRates& machine, const Work& work, double rows) {
  return read_seconds(machine, work) >= 0.5 * seconds_of(machine, work, rows);
}

}  // namespace atl::topology
