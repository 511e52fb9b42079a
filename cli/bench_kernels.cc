// atoll bench kernels: whole experts out of memory, beside the machine's read rate and FMA peak.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <cctype>
#include <fstream>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/result.h"
#include "base/thread_team.h"
#include "base/units.h"
#include "cli/bench_report.h"
#include "cli/expert_runner.h"
#include "cli/output.h"
#include "cli/table.h"
#include "cli/thread_options.h"
#include "kernels/cpu/dispatch.h"
#include "topology/machine_limit.h"
#include "topology/memory_bounds.h"

namespace atl::cli {
namespace {

using topology::MachineLimit;
using Json = nlohmann::ordered_json;

// A repeat is at least this long, so that the clock and a thread's wake-up don't count.
constexpr double kRepeatSeconds = 0.2;
constexpr double kL2PassSeconds = 0.02;
constexpr int kL2Passes = 5;
// Enough operations per weight that no format is bound by memory.
constexpr int64_t kScalingRows = 16;
// Experts in memory unless the user says how many: what no cache holds any of when their turn comes
// again.
constexpr uint64_t kExpertBytesMin = 512 * kMiB;

struct KernelOptions {
  std::vector<std::string> formats{"fp8", "bf16"};
  std::vector<int64_t> rows{1, 2, 4, 8, 16, 64, 256};
  std::vector<std::string> targets;  // empty: the best
  bool scaling = false;
  int threads = 0;  // 0: all usable cores
  topology::PinMode pin = topology::PinMode::kAuto;
  int64_t hidden = 7168;
  int64_t intermediate = 2048;
  int64_t experts_in_ram = 0;  // 0: see kExpertBytesMin
  RepeatOptions repeats;
  bool json = false;
};

// A format, a SIMD target and a number of rows. A value of each counted repeat, or of each void one
// where none counted.
struct KernelCase {
  std::string format, target;
  int64_t rows = 0;
  std::vector<double> bytes_per_second, of_read;
  std::vector<double> op_per_second, peak_op_per_second, of_peak;
  std::vector<double> of_bound;
  double cycles_per_weight_l2 = 0;
  double clock = 0;     // Hz
  double core_fma = 0;  // operations per second of one core, in its processor time
  RepeatsDone repeats;
};

// How much more all threads do than one, where memory is not the limit.
struct ScalingCase {
  std::string format, target;
  std::vector<double> own;      // each on a tile of its own in its L2, 1 row
  std::vector<double> team;     // all on one expert, kScalingRows rows
  std::vector<double> machine;  // FMA peak: what more there is to have
  RepeatsDone repeats;
};

struct TargetLimit {
  std::string target;
  std::vector<double> read, fma, int8;  // of all repeats
};

struct KernelReport {
  topology::TeamPlan threads;
  uint64_t probe_bytes = 0;
  std::vector<TargetLimit> limits;
  std::vector<KernelCase> cases;
  std::vector<ScalingCase> scaling;

  TargetLimit& limit(const std::string& target) {
    for (TargetLimit& known : limits) {
      if (known.target == target) return known;
    }
    return limits.emplace_back(TargetLimit{target, {}, {}, {}});
  }
};

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

KernelCase measure_case(const KernelOptions& options, ThreadTeam& team, const ExpertMemory& memory,
                        topology::MachineProbe& probe, KernelCase result, KernelReport* report) {
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
ScalingCase measure_scaling(const KernelOptions& options, ThreadTeam& team,
                            const ExpertMemory& memory, topology::MachineProbe& probe,
                            ScalingCase result) {
  ThreadTeam one(1);
  ExpertRunner alone(one, memory, kScalingRows), together(team, memory, kScalingRows);
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

int64_t experts_in_memory(const KernelOptions& options, const std::string& format,
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
void measure_format(const KernelOptions& options, ThreadTeam& team, topology::MachineProbe& probe,
                    const ExpertMemory& memory, const std::string& format,
                    const std::string& target, KernelReport* report) {
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

KernelReport measure(const KernelOptions& options) {
  KernelReport report;
  report.threads = plan_threads({.num_threads = options.threads, .pin = options.pin});
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

std::string giga(const std::vector<double>& values, const char* format = "{:.2f}") {
  return median_text(in_giga(values), format);
}

std::string case_table(const KernelReport& report) {
  Table table({{"format"},
               {"target"},
               {"rows", Align::kRight},
               {"GB/s", Align::kRight},
               {"of read", Align::kRight},
               {"Gop/s", Align::kRight},
               {"of peak", Align::kRight},
               {"of bound", Align::kRight},
               {"spread", Align::kRight},
               {"cycles/weight in L2", Align::kRight},
               {"counted", Align::kRight},
               {"void", Align::kRight}});
  for (const KernelCase& c : report.cases) {
    table.add_row({c.format, c.target, std::to_string(c.rows), giga(c.bytes_per_second),
                   median_text(c.of_read, "{:.3f}"), giga(c.op_per_second, "{:.1f}"),
                   median_text(c.of_peak, "{:.3f}"), median_text(c.of_bound, "{:.3f}"),
                   spread_text(c.bytes_per_second), fmt::format("{:.3f}", c.cycles_per_weight_l2),
                   counted_text(c.repeats), std::to_string(c.repeats.voided)});
  }
  return table.to_string("");
}

std::string scaling_table(const KernelReport& report) {
  Table table({{"format"},
               {"target"},
               {"own tiles in L2, 1 row", Align::kRight},
               {fmt::format("one expert, {} rows", kScalingRows), Align::kRight},
               {"FMA peak", Align::kRight},
               {"counted", Align::kRight},
               {"void", Align::kRight}});
  for (const ScalingCase& c : report.scaling) {
    table.add_row({c.format, c.target, median_text(c.own, "{:.2f}"), median_text(c.team, "{:.2f}"),
                   median_text(c.machine, "{:.2f}"), counted_text(c.repeats),
                   std::to_string(c.repeats.voided)});
  }
  return fmt::format("\n{} threads do so many times as much as one:\n",
                     report.threads.num_threads) +
         table.to_string("");
}

std::string to_text(const KernelOptions& options, const KernelReport& report) {
  std::string text = fmt::format("expert of [{}, {}]; {}; clock {:.2f} GHz\n", options.intermediate,
                                 options.hidden, topology::describe(report.threads),
                                 report.cases.front().clock * 1e-9);
  for (const TargetLimit& limit : report.limits) {
    text += fmt::format(
        "{}: limits by all threads: read {} GB/s (over {}), FMA {} GFLOP/s, int8 {} Gop/s\n",
        limit.target, giga(limit.read), format_bytes(report.probe_bytes), giga(limit.fma, "{:.1f}"),
        giga(limit.int8, "{:.1f}"));
  }
  text += case_table(report);
  if (!report.scaling.empty()) text += scaling_table(report);
  const std::string note = unreliable_note(report.cases);
  return text + (note.empty() ? unreliable_note(report.scaling) : note);
}

Json to_json(const KernelOptions& options, const KernelReport& report) {
  Json limits = Json::array(), cases = Json::array(), scaling = Json::array();
  for (const TargetLimit& limit : report.limits) {
    limits.push_back({{"target", limit.target},
                      {"read_bytes_per_second", summary_json<Json>(limit.read)},
                      {"fma_flop_per_second", summary_json<Json>(limit.fma)},
                      {"int8_op_per_second", summary_json<Json>(limit.int8)}});
  }
  for (const KernelCase& c : report.cases) {
    cases.push_back({{"format", c.format},
                     {"target", c.target},
                     {"rows", c.rows},
                     {"bytes_per_second", summary_json<Json>(c.bytes_per_second)},
                     {"of_read", summary_json<Json>(c.of_read)},
                     {"op_per_second", summary_json<Json>(c.op_per_second)},
                     {"peak_op_per_second", summary_json<Json>(c.peak_op_per_second)},
                     {"of_peak", summary_json<Json>(c.of_peak)},
                     {"of_bound", summary_json<Json>(c.of_bound)},
                     {"cycles_per_weight_l2", c.cycles_per_weight_l2},
                     {"clock_hz", c.clock},
                     {"repeats", c.repeats.counted},
                     {"voided", c.repeats.voided},
                     {"reliable", c.repeats.reliable()}});
  }
  for (const ScalingCase& c : report.scaling) {
    scaling.push_back({{"format", c.format},
                       {"target", c.target},
                       {"own_tiles", summary_json<Json>(c.own)},
                       {"one_expert", summary_json<Json>(c.team)},
                       {"one_expert_rows", kScalingRows},
                       {"fma_peak", summary_json<Json>(c.machine)},
                       {"repeats", c.repeats.counted},
                       {"voided", c.repeats.voided},
                       {"reliable", c.repeats.reliable()}});
  }
  return {{"hidden", options.hidden},
          {"intermediate", options.intermediate},
          {"threads", report.threads.num_threads},
          {"pinned_to", report.threads.cpus},
          {"read_over_bytes", report.probe_bytes},
          {"limits", limits},
          {"cases", cases},
          {"scaling", scaling}};
}

// "" for a name of kKernelFormats, else why not.
std::string refuse_format(const std::string& name) {
  if (parse_kernel_format(name)) return "";
  return fmt::format("'{}' is none of {}", name, fmt::join(kKernelFormats, ", "));
}

// "avx2" to "AVX2", the name that the kernels know; the same text where they don't.
std::string target_name(std::string text) {
  for (char& c : text) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  return text;
}
std::string refuse_target(const std::string& name) {
  const std::vector<std::string> targets = kernels::cpu_targets();
  if (std::find(targets.begin(), targets.end(), target_name(name)) != targets.end()) return "";
  return fmt::format("'{}' is none of those that this CPU and build have: {}", name,
                     fmt::join(targets, ", "));
}

}  // namespace

void add_bench_kernels_command(CLI::App& bench, int* exit_code) {
  auto options = std::make_shared<KernelOptions>();
  CLI::App* command = bench.add_subcommand(
      "kernels", "Whole experts out of memory: share of read rate and FMA peak");
  command
      ->add_option("--format", options->formats,
                   fmt::format("Weight formats: {}; -i8: rows are rounded to int8",
                               fmt::join(kKernelFormats, ", ")))
      ->delimiter(',')
      ->check(
          CLI::Validator([](const std::string& name) { return refuse_format(name); }, "", "format"))
      ->type_name("F,F,...")
      ->default_str("fp8,bf16");
  add_list_option(*command, "--rows", "Rows that go through each expert at once", 1, 8192,
                  &options->rows);
  command
      ->add_option_function<std::vector<std::string>>(
          "--targets",
          [options](const std::vector<std::string>& names) {
            for (const std::string& name : names) options->targets.push_back(target_name(name));
          },
          "SIMD targets, such as avx2,avx3 (AVX-512); the best of this CPU unless given")
      ->delimiter(',')
      ->check(
          CLI::Validator([](const std::string& name) { return refuse_target(name); }, "", "target"))
      ->type_name("T,T,...");
  command->add_flag("--scaling", options->scaling,
                    "Also how much more all threads do than one where memory is not the limit");
  add_threads_option(*command, "Threads", &options->threads);
  add_pin_option(*command, &options->pin);
  command->add_option("--hidden", options->hidden, "Width of a row")
      ->check(CLI::Range(16, 65536))
      ->capture_default_str();
  command->add_option("--intermediate", options->intermediate, "Width of an expert")
      ->check(CLI::Range(16, 65536))
      ->capture_default_str();
  command
      ->add_option("--experts-in-ram", options->experts_in_ram,
                   "Different experts in memory, used in turn; 0: 512 MiB or four times the caches")
      ->check(CLI::Range(0, 1 << 20))
      ->capture_default_str();
  add_repeats_option(*command, &options->repeats);
  command->add_flag("--json", options->json, "One JSON object in place of the table");
  command->footer(
      "Example:\n  atoll bench kernels --format fp8,int4-i8 --rows 1,16,256 --targets avx2");
  command->callback([options, exit_code] {
    const KernelReport report = measure(*options);
    write_stdout(options->json ? to_json(*options, report).dump(2) + "\n"
                               : to_text(*options, report));
    *exit_code = 0;
  });
}

}  // namespace atl::cli
