// MLA attention over the latent cache, beside what the machine can do.
//
//   atoll_attention_bench [--benchmark_filter=...]
//
// One thread, one row. Counters of each line: GFLOP/s and its share of the FMA peak, bytes of the
// cache per second, and of_bound: the longer of reading the cache once and doing 2 (2 C + rope)
// operations per head and position, by the time taken. Read rate and peak are measured before and
// after the timed loop on the same core; a run between which they changed by more than 10 % is
// void.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <string>
#include <vector>

#include "base/memory.h"
#include "base/rng.h"
#include "base/units.h"
#include "kernels/attention.h"
#include "kernels/cpu/dispatch.h"
#include "kernels/ops.h"
#include "topology/machine_limit.h"

namespace atl::bench {
namespace {

using kernels::LatentShape;
using kernels::RowType;
using topology::MachineLimit;
using topology::thread_seconds;

// The probe of the one thread that everything here runs in, for the named SIMD target.
MachineLimit measure_limit(const std::string& target) {
  static ThreadTeam team(1);
  static topology::MachineProbe probe(team);
  kernels::use_cpu_target(target);
  return probe.measure();
}

struct Config {
  std::string target;
  LatentShape shape;
  int64_t heads;
  int64_t positions;
};

std::vector<float> random_values(int64_t n) {
  std::vector<float> values(static_cast<size_t>(n));
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = static_cast<float>(uniform_f64(1, {.position = i}) - 0.5);
  }
  return values;
}

void report(benchmark::State& state, const Config& c, const MachineLimit& before, double seconds) {
  const MachineLimit after = measure_limit(c.target);
  if (limits_differ(before, after)) {
    state.SkipWithError("void: the machine's limits changed by more than 10 % meanwhile");
    return;
  }
  const double read = (before.read_bytes_per_second + after.read_bytes_per_second) / 2;
  const double fma = (before.fma_flop_per_second + after.fma_flop_per_second) / 2;
  const auto calls = static_cast<double>(state.iterations());
  const auto entries = calls * static_cast<double>(c.positions);
  const double bytes = entries * static_cast<double>(c.shape.width()) *
                       static_cast<double>(kernels::element_bytes(c.shape.cache_type));
  const double flop = entries * static_cast<double>(c.heads) * 2 *
                      static_cast<double>(c.shape.width() + c.shape.kv_lora_rank);
  state.counters["GFLOP/s"] = flop / seconds * 1e-9;
  state.counters["of_peak"] = flop / seconds / fma;
  state.counters["GB/s"] = bytes / seconds * 1e-9;
  state.counters["of_bound"] = std::max(bytes / read, flop / fma) / seconds;
  state.counters["read_GB/s"] = read * 1e-9;
  state.counters["peak_GFLOP/s"] = fma * 1e-9;
}

void run_attention(benchmark::State& state, const Config& c) {
  const int64_t num_blocks = ceil_div(c.positions, kernels::kAttentionBlock);
  const int64_t block_values = kernels::kAttentionBlock * c.shape.width();
  const size_t block_bytes =
      static_cast<size_t>(block_values) * kernels::element_bytes(c.shape.cache_type);
  HostBuffer cache(static_cast<size_t>(num_blocks) * block_bytes);
  const std::vector<float> entries = random_values(block_values);
  std::vector<const void*> blocks;
  for (int64_t b = 0; b < num_blocks; ++b) {
    std::byte* block = cache.data() + static_cast<size_t>(b) * block_bytes;
    kernels::store_rounded(entries.data(), block_values, c.shape.cache_type, block);
    blocks.push_back(block);
  }
  const std::vector<float> q = random_values(c.heads * c.shape.width());
  std::vector<float> out(static_cast<size_t>(c.heads * c.shape.kv_lora_rank));
  const auto attend = [&] {
    kernels::mla_attend(c.shape, c.heads, q.data(), blocks, c.positions, 0.1f, out.data());
  };

  const MachineLimit before = measure_limit(c.target);
  kernels::use_cpu_target(c.target);
  attend();
  const double start = thread_seconds();
  for (auto _ : state) attend();
  report(state, c, before, thread_seconds() - start);
  kernels::use_cpu_target("");
}

void add(const char* model, const Config& c) {
  const std::string name = std::string("attention/") + model + "/" +
                           std::string(kernels::to_string(c.shape.cache_type)) +
                           "/heads:" + std::to_string(c.heads) +
                           "/positions:" + std::to_string(c.positions) + "/" + c.target;
  benchmark::RegisterBenchmark(name.c_str(), [c](benchmark::State& state) {
    run_attention(state, c);
  })->MinTime(0.2);
}

void add_all() {
  const LatentShape bf16{512, 64, RowType::kBf16}, f32{512, 64, RowType::kF32};
  for (const std::string& target : kernels::cpu_targets()) {
    if (target == "SCALAR" || target == "EMU128") continue;  // the reference is not for speed
    for (int64_t positions : {1, 64, 1024, 4096, 16384}) {
      add("deepseek-v3", {target, bf16, 128, positions});
      add("deepseek-v2-lite", {target, bf16, 16, positions});
    }
    add("deepseek-v3", {target, f32, 128, 4096});
    add("deepseek-v3-share", {target, bf16, 4, 4096});  // of one of many threads
  }
}

}  // namespace
}  // namespace atl::bench

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  atl::bench::add_all();
  benchmark::RunSpecifiedBenchmarks();
}
