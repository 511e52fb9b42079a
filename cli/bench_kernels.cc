// atoll bench kernels: what bench/kernel_bench.h measures, as options and text.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cctype>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/units.h"
#include "bench/expert_runner.h"
#include "bench/kernel_bench.h"
#include "cli/bench_report.h"
#include "cli/output.h"
#include "cli/table.h"
#include "cli/thread_options.h"
#include "kernels/cpu/dispatch.h"

namespace atl::cli {
namespace {

using bench::KernelBenchOptions;
using bench::KernelCase;
using bench::KernelReport;
using bench::kKernelFormats;
using bench::kKernelScalingRows;
using bench::parse_kernel_format;
using bench::ScalingCase;
using bench::TargetLimit;
using Json = nlohmann::ordered_json;

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
               {fmt::format("one expert, {} rows", kKernelScalingRows), Align::kRight},
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

std::string to_text(const KernelBenchOptions& options, const KernelReport& report) {
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

Json to_json(const KernelBenchOptions& options, const KernelReport& report) {
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
                       {"one_expert_rows", kKernelScalingRows},
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
  auto options = std::make_shared<KernelBenchOptions>();
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
    const KernelReport report = bench::measure_kernels(*options);
    write_stdout(options->json ? to_json(*options, report).dump(2) + "\n"
                               : to_text(*options, report));
    *exit_code = 0;
  });
}

}  // namespace atl::cli
