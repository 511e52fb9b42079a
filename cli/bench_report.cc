#include "cli/bench_report.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <utility>

#include "base/check.h"
#include "cli/commands.h"

namespace atl::cli {
namespace {

using topology::MachineLimit;

MachineLimit mean(const MachineLimit& a, const MachineLimit& b) {
  return {.read_bytes_per_second = (a.read_bytes_per_second + b.read_bytes_per_second) / 2,
          .fma_flop_per_second = (a.fma_flop_per_second + b.fma_flop_per_second) / 2,
          .int8_op_per_second = (a.int8_op_per_second + b.int8_op_per_second) / 2};
}

}  // namespace

Summary summarize(std::vector<double> values) {
  CHECK(!values.empty());
  std::sort(values.begin(), values.end());
  const size_t middle = values.size() / 2;
  const double median =
      values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
  return {.median = median, .low = values.front(), .high = values.back()};
}

std::vector<double> in_giga(std::vector<double> values) {
  for (double& value : values) value *= 1e-9;
  return values;
}

std::string median_text(const std::vector<double>& values, const char* format) {
  if (values.empty()) return "-";
  return fmt::format(fmt::runtime(format), summarize(values).median);
}

std::string spread_text(const std::vector<double>& values) {
  if (values.empty()) return "";
  const Summary s = summarize(values);
  return fmt::format("+-{:.0f} %", s.median > 0 ? 50 * (s.high - s.low) / s.median : 0);
}

RepeatsDone run_repeats(const RepeatOptions& options, const Clock& clock,
                        const std::function<MachineLimit()>& measure_limit,
                        const std::function<void()>& work,
                        const std::function<void(const MachineLimit&, bool)>& keep) {
  RepeatsDone done;
  const Clock::TimePoint start = clock.now();
  const auto in_time = [&] {
    return options.seconds_max <= 0 || seconds_between(start, clock.now()) < options.seconds_max;
  };
  MachineLimit before = measure_limit();
  do {
    work();
    const MachineLimit after = measure_limit();
    const bool counts = !topology::limits_differ(before, after);
    ++(counts ? done.counted : done.voided);
    keep(mean(before, after), counts);
    before = after;
  } while (done.counted < options.wanted &&
           done.counted + done.voided < kTriesPerRepeat * options.wanted && in_time());
  return done;
}

std::string counted_text(const RepeatsDone& repeats) {
  return repeats.reliable() ? std::to_string(repeats.counted) : "none, unreliable";
}

void add_list_option(CLI::App& command, const std::string& name, const std::string& what,
                     int64_t low, int64_t high, std::vector<int64_t>* values) {
  command.add_option(name, *values, what)
      ->delimiter(',')
      ->check(CLI::Range(low, high))
      ->type_name("N,N,...")
      ->default_str(fmt::format("{}", fmt::join(*values, ",")));
}

void add_repeats_option(CLI::App& command, RepeatOptions* repeats) {
  command
      .add_option("--repeats", repeats->wanted,
                  "Repeats that must count; void ones are run again, up to 3 times as many")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  command
      .add_option("--seconds-max", repeats->seconds_max,
                  "Of each case: after so long no further repeat begins; 0: no bound")
      ->check(CLI::Range(0.0, 1e6))
      ->type_name("SECONDS")
      ->capture_default_str();
}

void add_bench_command(CLI::App& app, int* exit_code) {
  CLI::App* bench = app.add_subcommand(
      "bench",
      "Measure speed beside what this machine can do: kernels, decode, prefill, disk, serve, "
      "compare, net");
  bench->require_subcommand(1);
  add_bench_kernels_command(*bench, exit_code);
  add_bench_decode_command(*bench, exit_code);
  add_bench_prefill_command(*bench, exit_code);
  add_bench_disk_command(*bench, exit_code);
  add_bench_serve_command(*bench, exit_code);
  add_bench_compare_command(*bench, exit_code);
  add_bench_net_command(*bench, exit_code);
  // So that common options may stand behind these names, too.
  for (CLI::App* command : bench->get_subcommands({})) command->fallthrough();
  bench->footer(
      "What the figures mean: docs/benchmarks.md.\n\nExample:\n  atoll bench kernels --format fp8 "
      "--rows 1,16");
}

}  // namespace atl::cli
