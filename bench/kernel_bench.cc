#include "bench/kernel_bench.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/result.h"
#include "base/thread_team.h"
#include "base/units.h"
#include "bench/expert_runner.h"
#include "bench/repeats.h"
#include "kernels/cpu/dispatch.h"
#include "topology/machine_limit.h"
#include "topology/memory_bounds.h"

namespace atl::bench {
namespace {

using topology::MachineLimit;

// A repeat is at least this long, so that the clock and a thread's wake-up don't count.
constexpr double kRepeatSeconds = 0.2;
constexpr double kL2PassSeconds = 0.02;
constexpr int kL2Passes = 5;
// Experts in memory unless the user says how many: what no cache holds any of when their turn comes
// again.
constexpr uint64_t kExpertBytesMin = 512 * kMiB;

// Cycles of one core per weight of a tile that lies in its second level, and the core's clock.
void measure_l2(KernelFormat format, KernelCase* result) {
  ThreadTeam one(1);
  const ExpertMemory memory(one, l2_shape(format), 1);
  ExpertRunner runner(one, memory, result->rows);
  const int64_t count = runner.experts_for(kL2PassSeconds);
  std::vector<double> cycles, clocks, peaks;
  for (int pass = 0; pass < kL2Passes; ++pass) {
    const double clock_before = topology::cycles_per_second();
    const double seconds = runner.time(count);
    peaks.push_back(topology::thread_fma_flop_per_second());
    clocks.push_back((clock_before + topology::cycles_per_second()) / 2);
    cycles.push_back(seconds * clocks.back() / runner.weights_of(count));
  }
  result->cycles_per_weight_l2 = summarize(cycles).median;
  result->clock = summarize(clocks).median;
  result->core_fma = summarize(peaks).median;
}

KernelCase measure_case(const KernelBenchOptions& options, ThreadTeam& team,
                        const ExpertMemory& memory, topology::MachineProbe& probe,
                        KernelCase result, KernelReport* report) {
  const KernelFormat format = memory.shape().format;
  measure_l2(format, &result);

  ExpertRunner runner(team, memory, result.rows);
  const int64_t count = runner.experts_for(kRepeatSeconds);
  const double weights = runner.weights_of(count);
  const double bytes =
      static_cast<double>(count) * static_cast<double>(memory.shape().weight_bytes());
  const double operations = 2 * weights * static_cast<double>(result.rows);
  // Of one core, in processor time.
  const double compute_seconds = weights * result.cycles_per_weight_l2 / result.clock;
  TargetLimit& limits = report->limit(result.target);
  double seconds = 0;
  KernelCase counted = result, voided = result;
  const RepeatsDone repeats = run_repeats(
      options.repeats, SteadyClock(), [&] { return probe.measure(); },
      [&] { seconds = runner.time(count); },
      [&](const MachineLimit& limit, bool counts) {
        KernelCase& to = counts ? counted : voided;
        const double peak = format.activations == kernels::Activations::kI8
                                ? limit.int8_op_per_second
                                : limit.fma_flop_per_second;
        to.bytes_per_second.push_back(bytes / seconds);
        to.of_read.push_back(bytes / seconds / limit.read_bytes_per_second);
        to.op_per_second.push_back(operations / seconds);
        // The reference targets have no int8 instructions to compare with.
        if (peak > 0) to.of_peak.push_back(operations / seconds / peak);
        to.peak_op_per_second.push_back(peak);
        const double read_seconds = bytes / limit.read_bytes_per_second;
        // What all threads got of the cores: as many as there are on a machine of our own.
        const double cores = limit.fma_flop_per_second / result.core_fma;
        to.of_bound.push_back(std::max(read_seconds, compute_seconds / cores) / seconds);
        limits.read.push_back(limit.read_bytes_per_second);
        limits.fma.push_back(limit.fma_flop_per_second);
        limits.int8.push_back(limit.int8_op_per_second);
      });
  result = repeats.reliable() ? std::move(counted) : std::move(voided);
  result.repeats = repeats;
  return result;
}

double wall_seconds(const std::function<void()>& work) {
  const SteadyClock clock;
  const auto start = clock.now();
  work();
  return seconds_between(start, clock.now());
}

// Each member does `work` once, all at the same time.
void each_member(ThreadTeam& team, const std::function<void(int member)>& work) {
  std::atomic<int> here{0};
  team.parallel_for(team.num_threads(), 1, [&](int64_t, int64_t, int member) {
    // Until all have come, nobody can take a second turn.
    ++here;
    while (here < team.num_threads()) std::this_thread::yield();
    work(member);
  });
}

// A tile in one member's L2 and what runs it there.
struct OwnTile {
  explicit OwnTile(KernelFormat format)
      : memory(team, l2_shape(format), 1), runner(team, memory, 1) {}
  ThreadTeam team{1};
  ExpertMemory memory;
  ExpertRunner runner;
};

// One thread and all threads in turns, so that both see the same machine.
ScalingCase measure_scaling(const KernelBenchOptions& options, ThreadTeam& team,
                            const ExpertMemory& memory, topology::MachineProbe& probe,
                            ScalingCase result) {
  ThreadTeam one(1);
  ExpertRunner alone(one, memory, kKernelScalingRows), together(team, memory, kKernelScalingRows);
  const int64_t experts = alone.experts_for(kRepeatSeconds);

  std::vector<std::unique_ptr<OwnTile>> own(team.num_threads());
  each_member(team, [&](int member) {  // memory near the one who uses it
    own[member] = std::make_unique<OwnTile>(memory.shape().format);
  });
  const int64_t passes = own[0]->runner.experts_for(kRepeatSeconds);
  const double threads = team.num_threads();
  double core = 0, own_one = 0, own_all = 0, team_one = 0, team_all = 0;
  ScalingCase counted = result, voided = result;
  const RepeatsDone repeats = run_repeats(
      options.repeats, SteadyClock(), [&] { return probe.measure(); },
      [&] {
        core = topology::thread_fma_flop_per_second();
        own_one = wall_seconds([&] { own[0]->runner.run(passes); });
        own_all =
            wall_seconds([&] { each_member(team, [&](int m) { own[m]->runner.run(passes); }); });
        team_one = wall_seconds([&] { alone.run(experts); });
        team_all = wall_seconds([&] { together.run(experts); });
      },
      [&](const MachineLimit& limit, bool counts) {
        ScalingCase& to = counts ? counted : voided;
        to.own.push_back(threads * own_one / own_all);
        to.team.push_back(team_one / team_all);
        to.machine.push_back(limit.fma_flop_per_second / core);
      });
  result = repeats.reliable() ? std::move(counted) : std::move(voided);
  result.repeats = repeats;
  return result;
}

int64_t experts_in_memory(const KernelBenchOptions& options, const std::string& format,
                          const ExpertShape& shape) {
  const uint64_t wanted = std::max(kExpertBytesMin, 4 * topology::last_level_cache_bytes());
  const int64_t experts =
      options.experts_in_ram > 0
          ? options.experts_in_ram
          : std::max<int64_t>(2, ceil_div(static_cast<int64_t>(wanted),
                                          static_cast<int64_t>(shape.extent_bytes())));
  const auto bound =
      topology::tightest(topology::memory_bounds(), topology::MemoryBound::Of::kMachine);
  const double bytes = static_cast<double>(experts) * static_cast<double>(shape.extent_bytes());
  if (bound && bytes > static_cast<double>(bound->free_bytes)) {
    throw LoadError(fmt::format(
        "{} experts of {} in {} take {:.1f} GiB, {} of memory are available; give fewer "
        "--experts-in-ram",
        experts, format_bytes(shape.extent_bytes()), format, bytes / static_cast<double>(kGiB),
        format_bytes(bound->free_bytes)));
  }
  return experts;
}

// Measures one format on one target, which is in use when it returns.
void measure_format(const KernelBenchOptions& options, ThreadTeam& team,
                    topology::MachineProbe& probe, const ExpertMemory& memory,
                    const std::string& format, const std::string& target, KernelReport* report) {
  CHECK(kernels::use_cpu_target(target));
  for (const int64_t rows : options.rows) {
    KernelCase one;
    one.format = format;
    one.target = target;
    one.rows = rows;
    report->cases.push_back(measure_case(options, team, memory, probe, std::move(one), report));
  }
  if (!options.scaling) return;
  report->scaling.push_back(
      measure_scaling(options, team, memory, probe, ScalingCase{format, target, {}, {}, {}, {}}));
}

}  // namespace

KernelReport measure_kernels(const KernelBenchOptions& options) {
  KernelReport report;
  report.threads = topology::plan_team(topology::this_machine(),
                                       {.num_threads = options.threads, .pin = options.pin});
  log_debug("{}", topology::describe(report.threads));
  ThreadTeam team(report.threads.num_threads, report.threads.cpus);
  const std::unique_ptr<ScopedThreadPin> pin = team.pin_caller();
  topology::MachineProbe probe(team);
  report.probe_bytes = probe.read_bytes();
  const std::vector<std::string> targets =
      options.targets.empty() ? std::vector{kernels::cpu_targets().front()} : options.targets;
  for (const std::string& format : options.formats) {
    const ExpertShape shape =
        expert_shape(*parse_kernel_format(format), options.hidden, options.intermediate);
    const int64_t experts = experts_in_memory(options, format, shape);
    log_debug("{}: {} experts of {}", format, experts, format_bytes(shape.extent_bytes()));
    const ExpertMemory memory(team, shape, experts);
    for (const std::string& target : targets) {
      measure_format(options, team, probe, memory, format, target, &report);
    }
  }
  kernels::use_cpu_target("");
  return report;
}

}  // namespace atl::bench
