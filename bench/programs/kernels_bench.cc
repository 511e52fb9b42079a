// The panel micro-kernel at the shapes of a DeepSeek-V3 expert, beside what the machine can do.
//
//   atoll_kernels_bench [--benchmark_filter=...]
//
// Counters of each line: weight bytes per second (GB/s) and its share of the read rate, GFLOP/s
// (or, for rows rounded to int8, Gop/s) and its share of the FMA (int8) peak, cycles per weight.
// Read rate and peak are measured before and after the timed loop on the same core; a run between
// which they changed by more than 10 % is void.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <random>
#include <vector>

#include "base/memory.h"
#include "base/units.h"
#include "kernels/cpu/dispatch.h"
#include "kernels/linear.h"
#include "topology/machine_limit.h"

namespace atl::bench {
namespace {

using kernels::Activations;
using kernels::PanelMatrix;
using kernels::PanelShape;
using kernels::WeightFormat;
using topology::MachineLimit;
using topology::thread_seconds;

// The probe of the one thread that everything here runs in, for the named SIMD target.
MachineLimit measure_limit(const std::string& target) {
  static ThreadTeam team(1);
  static topology::MachineProbe probe(team);
  kernels::use_cpu_target(target);
  return probe.measure();
}

// Random finite weights of `bytes` bytes at least, so that no two calls find them in a cache; or,
// if bytes is small, so that they always do.
struct Weights {
  PanelShape shape;
  HostBuffer codes;
  std::vector<float> scales;
  int64_t num_parts;  // of shape.outputs / num_parts outputs each

  PanelMatrix matrix() const { return {shape, codes.data(), scales.data()}; }
};

struct Config {
  std::string target;
  WeightFormat format;
  Activations activations;
  int64_t outputs;
  int64_t k;
  int64_t rows;
  size_t bytes;
};

Weights make_weights(const Config& c) {
  const PanelShape one = kernels::panel_shape(c.format, c.outputs, c.k, {}, c.activations);
  Weights w;
  w.num_parts = std::max<int64_t>(1, static_cast<int64_t>(c.bytes / one.total_code_bytes()));
  w.shape = one;
  w.shape.outputs = c.outputs * w.num_parts;
  w.codes = HostBuffer(w.shape.total_code_bytes());
  w.scales.assign(w.shape.total_scale_bytes() / sizeof(float), 0.01f);
  std::mt19937_64 rng(1);
  auto* words = w.codes.as<uint64_t>();
  for (size_t i = 0; i < w.codes.size() / 8; ++i) {
    // Exponents below the largest in every format (BF16's too among int4's scales): no NaN, no
    // infinity.
    words[i] = rng() & (c.format == WeightFormat::kFp8E4m3 ? 0xb7b7b7b7b7b7b7b7u
                        : c.format == WeightFormat::kF32   ? 0xbfffffffbfffffffu
                                                           : 0xbfffbfffbfffbfffu);
  }
  return w;
}

void report(benchmark::State& state, const Config& c, const MachineLimit& before, double seconds) {
  const MachineLimit after = measure_limit(c.target);
  if (limits_differ(before, after)) {
    state.SkipWithError("void: the machine's limits changed by more than 10 % meanwhile");
    return;
  }
  const double weights = static_cast<double>(state.iterations() * c.outputs * c.k);
  const PanelShape shape = kernels::panel_shape(c.format, c.outputs, c.k, {}, c.activations);
  const double bytes = static_cast<double>(state.iterations()) *
                       static_cast<double>(shape.total_code_bytes() + shape.total_scale_bytes());
  const double flop = 2 * weights * static_cast<double>(c.rows);
  const double read = (before.read_bytes_per_second + after.read_bytes_per_second) / 2;
  const double peak = c.activations == Activations::kI8
                          ? (before.int8_op_per_second + after.int8_op_per_second) / 2
                          : (before.fma_flop_per_second + after.fma_flop_per_second) / 2;
  state.counters["GB/s"] = bytes / seconds * 1e-9;
  state.counters["of_read"] = bytes / seconds / read;
  state.counters["Gop/s"] = flop / seconds * 1e-9;
  state.counters["of_peak"] = flop / seconds / peak;
  state.counters["cyc/weight"] = seconds * topology::cycles_per_second() / weights;
  state.counters["read_GB/s"] = read * 1e-9;
  state.counters["peak_G/s"] = peak * 1e-9;
}

void run_linear(benchmark::State& state, const Config& c) {
  const Weights w = make_weights(c);
  std::vector<float> x(static_cast<size_t>(c.rows * c.k), 0.5f);
  std::vector<float> y(static_cast<size_t>(c.rows * w.shape.outputs));
  std::vector<const float*> x_rows;
  std::vector<float*> y_rows;
  for (int64_t r = 0; r < c.rows; ++r) {
    x_rows.push_back(x.data() + r * c.k);
    y_rows.push_back(y.data() + r * w.shape.outputs);
  }
  const int64_t panels = w.shape.num_panels() / w.num_parts;
  const PanelMatrix matrix = w.matrix();
  const MachineLimit before = measure_limit(c.target);
  kernels::use_cpu_target(c.target);
  kernels::linear_panels(matrix, 0, panels, x_rows, y_rows);
  int64_t part = 0;
  const double start = thread_seconds();
  for (auto _ : state) {
    kernels::linear_panels(matrix, part * panels, (part + 1) * panels, x_rows, y_rows);
    part = (part + 1) % w.num_parts;
  }
  report(state, c, before, thread_seconds() - start);
  kernels::use_cpu_target("");
}

void add(const char* place, const Config& c) {
  const std::string name = "linear/" + std::string(kernels::to_string(c.format)) +
                           (c.activations == Activations::kI8 ? "-i8/" : "/") + place + "/[" +
                           std::to_string(c.outputs) + "," + std::to_string(c.k) +
                           "]/rows:" + std::to_string(c.rows) + "/" + c.target;
  benchmark::RegisterBenchmark(name.c_str(), [c](benchmark::State& state) {
    run_linear(state, c);
  })->MinTime(0.2);
}

void add_all_of(const std::string& target, WeightFormat format, Activations activations) {
  for (int64_t rows : {1, 4, 16, 64, 256}) {
    add("gate", {target, format, activations, 2048, 7168, rows, 117 * kMiB});
    add("down", {target, format, activations, 7168, 2048, rows, 117 * kMiB});
  }
  // One tile, and a piece of a matrix that stays in L2: 448 KiB.
  add("tile_down", {target, format, activations, 7168, 128, 1, 117 * kMiB});
  const int64_t l2 = 3584 * 8 / kernels::code_bits(format);
  for (int64_t rows : {1, 2, 4, 8, 16, 256}) {
    add("L2", {target, format, activations, 128, l2, rows, 1});
  }
  add("L2_tile_down", {target, format, activations, l2, 128, 1, 1});
}

void add_all() {
  for (const std::string& target : kernels::cpu_targets()) {
    if (target == "SCALAR" || target == "EMU128") continue;  // the reference is not for speed
    for (WeightFormat format : {WeightFormat::kFp8E4m3, WeightFormat::kBf16, WeightFormat::kF32}) {
      add_all_of(target, format, Activations::kF32);
    }
    add_all_of(target, WeightFormat::kInt4, Activations::kF32);
    add_all_of(target, WeightFormat::kInt4, Activations::kI8);
    add_all_of(target, WeightFormat::kInt8, Activations::kI8);
  }
}

}  // namespace
}  // namespace atl::bench

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  atl::bench::add_all();
  benchmark::RunSpecifiedBenchmarks();
}
