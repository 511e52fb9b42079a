#include "cli/bench_report.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>

#include "cli/commands.h"

namespace atl::cli {
std::vector<double> in_giga(std::vector<double> values) {
  for (double& value : values) value *= 1e-9;
  return values;
}

std::string median_text(const std::vector<double>& values, const char* format) {
  if (values.empty()) return "-";
  return fmt::format(fmt::runtime(format), bench::summarize(values).median);
}

std::string spread_text(const std::vector<double>& values) {
  if (values.empty()) return "";
  const bench::Summary s = bench::summarize(values);
  return fmt::format("+-{:.0f} %", s.median > 0 ? 50 * (s.high - s.low) / s.median : 0);
}

std::string counted_text(const bench::RepeatsDone& repeats) {
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

void add_repeats_option(CLI::App& command, bench::RepeatOptions* repeats) {
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
