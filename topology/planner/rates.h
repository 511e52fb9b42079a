// How fast a machine is, measured by `atoll probe` or described by its owner, and how long work
// takes there. Plain values and pure functions.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "topology/planner/model_shape.h"

namespace atl::topology {

// Of one kernel: all threads, weights out of memory, some rows at once.
struct KernelPoint {
  double rows = 0;
  double seconds_per_weight = 0;
};

struct MachineRates {
  int cores = 0;
  double read_bytes_per_second = 0;      // memory, all cores
  double fma_flop_per_second = 0;        // FP32, all cores
  double int8_op_per_second = 0;         // all cores
  double attention_flop_per_second = 0;  // of attention's core, all cores
  double step_overhead_seconds = 0;      // of one layer: norms, starting threads, bookkeeping
  // [kernel] ascending rows; empty: it is derived from the rates.
  std::array<std::vector<KernelPoint>, kNumKernels> measured;
};

// A machine of which only memory's rate and the cores are known. What kernels make of them was
// measured on Zen 4 (docs/planning.md, "Constants").
MachineRates described_machine(double read_bytes_per_second, int cores);
// A GPU of which only memory's rate is known: FP32 operations follow as kDeviceFlopPerByte.
MachineRates described_device(double read_bytes_per_second);

// Seconds that all threads need to bring `rows` rows through matrices: the longer of reading the
// weights once and of the operations, as far as the kernel is able to.
double seconds_of(const MachineRates& machine, const Work& work, double rows);
// Whether reading is the longer of the two.
bool is_read_bound(const MachineRates& machine, const Work& work, double rows);

// Constants of described machines.
inline constexpr double kShareOfRead = 0.8;             // one row: 0.64 to 0.94 measured
inline constexpr double kClock = 2.8e9;                 // Hz, all cores at work
inline constexpr double kFmaFlopPerCycle = 32;          // AVX2 with two units, AVX-512 with one
inline constexpr double kInt8OpPerCycle = 128;          // VNNI
inline constexpr double kAttentionShareOfFma = 0.8;     // core of attention: 0.79 to 0.89 measured
inline constexpr double kLayerOverheadSeconds = 60e-6;  // 0.2 to 0.4 % of a step of V3's layers
inline constexpr double kDeviceFlopPerByte = 20;        // H100 SXM: 67 TFLOP/s, 3.35 TB/s
inline constexpr double kDeviceShareOfRead = 0.7;       // no device has been measured yet
inline constexpr double kDeviceLayerOverheadSeconds = 100e-6;  // some twenty launches, two waits

}  // namespace atl::topology
