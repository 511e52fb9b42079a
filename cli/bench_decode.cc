// atoll bench decode, atoll bench prefill: what bench/engine_bench.h measures, as options and text.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <array>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "base/units.h"
#include "bench/engine_bench.h"
#include "cli/bench_report.h"
#include "cli/deployment_options.h"
#include "cli/help_formatter.h"
#include "cli/output.h"
#include "cli/table.h"

namespace atl::cli {
namespace {

using bench::EngineBenchOptions;
using bench::EngineCase;
using bench::EngineReport;
using bench::is_detail;
using bench::kNumEngineParts;
using bench::summarize;
using Json = nlohmann::ordered_json;

// A part's name in the table and in JSON.
struct PartName {
  const char* name;
  const char* key;
};
constexpr std::array<PartName, kNumEngineParts> kParts = {{
    {"attention", "attention"},
    {"- projections", "projections"},
    {"- kv_b by head", "absorbed"},
    {"- core", "core"},
    {"router", "router"},
    {"hand-off", "dispatch"},
    {"shared", "shared_experts"},
    {"experts", "combine"},
    {"dense", "dense_ffn"},
    {"head", "head"},
    {"prefetch", "prefetch"},
    {"others", "others"},
}};

std::string ms(std::vector<double> values) {
  for (double& value : values) value *= 1e3;
  return median_text(values, "{:.3g}");
}

// Where one case's time goes, part by part.
std::string parts_text(const EngineCase& c) {
  Table table({{"part", Align::kLeft},
               {"ms/step", Align::kRight},
               {"of step", Align::kRight},
               {"floor ms", Align::kRight},
               {"bound", Align::kLeft},
               {"of floor", Align::kRight}});
  const double step = summarize(c.seconds_per_step).median;
  for (size_t i = 0; i < kNumEngineParts; ++i) {
    const EngineCase::PartFigures& part = c.parts[i];
    const bool has_floor = !part.of_floor.empty();
    table.add_row({kParts[i].name, ms(part.seconds),
                   fmt::format("{:.3f}", summarize(part.seconds).median / step),
                   has_floor ? ms(part.floor) : "-", has_floor ? part.bound : "-",
                   has_floor ? median_text(part.of_floor, "{:.3f}") : "-"});
  }
  return table.to_string("  ");
}

// What bounds a case with a cold tier, in one line.
std::string cold_text(const EngineCase& c, double disk_bytes_per_second) {
  const double disk = summarize(c.cold.disk_bytes).median;
  const double resident = summarize(c.cold.resident_bytes).median;
  const double bound = summarize(c.cold.bound_seconds).median;
  return fmt::format(
      "  cold tier: {} a step from disk at {} = {}; {} from RAM; coordinator {}; bound {}, {:.4g} "
      "tokens/s; of bound {}\n",
      format_bytes(static_cast<uint64_t>(disk)), format_rate(disk_bytes_per_second),
      format_duration(disk / disk_bytes_per_second), format_bytes(static_cast<uint64_t>(resident)),
      format_duration(summarize(c.cold.coordinator_seconds).median), format_duration(bound),
      summarize(c.tokens_per_second).median / summarize(c.cold.of_bound).median,
      median_text(c.cold.of_bound, "{:.3f}"));
}

// `heading` of the rows (decode) or tokens (prefill), with a column for the context in decode.
std::string to_text(const EngineReport& report, const char* heading, bool with_context) {
  std::vector<Table::Column> columns;
  if (with_context) columns.push_back({"context", Align::kRight});
  for (const char* name : {heading, "tokens/s", "spread", "ms/step", "floor ms", "of floor",
                           "expert GB/s", "of read", "counted", "void"}) {
    columns.push_back({name, Align::kRight});
  }
  Table table(std::move(columns));
  std::string parts;
  for (const EngineCase& c : report.cases) {
    std::vector<std::string> cells;
    if (with_context) cells.push_back(std::to_string(c.context));
    for (std::string cell : {std::to_string(c.rows), median_text(c.tokens_per_second, "{:.4g}"),
                             spread_text(c.tokens_per_second), ms(c.seconds_per_step),
                             ms(c.floor_per_step), median_text(c.of_floor, "{:.3f}"),
                             median_text(in_giga(c.expert_bytes_per_second), "{:.2f}"),
                             median_text(c.experts_of_read, "{:.3f}"), counted_text(c.repeats),
                             std::to_string(c.repeats.voided)}) {
      cells.push_back(std::move(cell));
    }
    table.add_row(std::move(cells));
    if (c.of_floor.empty()) continue;
    parts += with_context ? fmt::format("\n{} {}, context {}:\n", c.rows, heading, c.context)
                          : fmt::format("\n{} {}:\n", c.rows, heading);
    parts += parts_text(c);
    if (!c.cold.of_bound.empty()) parts += cold_text(c, report.disk_bytes_per_second);
  }
  return fmt::format("limits: read {} GB/s, FMA {} GFLOP/s, int8 {} Gop/s\n",
                     median_text(in_giga(report.read), "{:.2f}"),
                     median_text(in_giga(report.fma), "{:.1f}"),
                     median_text(in_giga(report.int8), "{:.1f}")) +
         table.to_string("") + unreliable_note(report.cases) + parts;
}

Json cold_json(const EngineCase& c) {
  return {{"disk_bytes_per_step", summary_json<Json>(c.cold.disk_bytes)},
          {"resident_bytes_per_step", summary_json<Json>(c.cold.resident_bytes)},
          {"coordinator_seconds_per_step", summary_json<Json>(c.cold.coordinator_seconds)},
          {"bound_seconds_per_step", summary_json<Json>(c.cold.bound_seconds)},
          {"of_bound", summary_json<Json>(c.cold.of_bound)}};
}

Json case_json(const EngineCase& c, const char* rows_key) {
  Json seconds = Json::object(), details = Json::object(), floors = Json::object();
  for (size_t i = 0; i < kNumEngineParts; ++i) {
    const EngineCase::PartFigures& part = c.parts[i];
    (is_detail(i) ? details : seconds)[kParts[i].key] = summary_json<Json>(part.seconds);
    if (part.of_floor.empty()) continue;
    floors[kParts[i].key] = {{"bound", part.bound},
                             {"seconds_per_step", summary_json<Json>(part.floor)},
                             {"of_floor", summary_json<Json>(part.of_floor)}};
  }
  return {{rows_key, c.rows},
          {"tokens_per_second", summary_json<Json>(c.tokens_per_second)},
          {"seconds_per_step", summary_json<Json>(c.seconds_per_step)},
          {"floor_seconds_per_step", summary_json<Json>(c.floor_per_step)},
          {"of_floor", summary_json<Json>(c.of_floor)},
          {"part_seconds_per_step", seconds},
          {"attention_seconds_per_step", details},
          {"part_floors", floors},
          {"expert_bytes_per_step", summary_json<Json>(c.expert_bytes_per_step)},
          {"expert_bytes_per_second", summary_json<Json>(c.expert_bytes_per_second)},
          {"experts_of_read", summary_json<Json>(c.experts_of_read)},
          {"repeats", c.repeats.counted},
          {"voided", c.repeats.voided},
          {"reliable", c.repeats.reliable()}};
}

Json to_json(const EngineBenchOptions& options, const EngineReport& report, const char* rows_key,
             bool with_context) {
  Json cases = Json::array();
  for (const EngineCase& c : report.cases) {
    cases.push_back(case_json(c, rows_key));
    if (with_context) cases.back()["context"] = c.context;
    if (report.disk_bytes_per_second > 0) cases.back()["cold_tier"] = cold_json(c);
  }
  return {{"nodes", options.deployment.nodes},
          {"chunk", options.deployment.rows_max},
          {"limit",
           {{"read_bytes_per_second", summary_json<Json>(report.read)},
            {"fma_flop_per_second", summary_json<Json>(report.fma)},
            {"int8_op_per_second", summary_json<Json>(report.int8)},
            {"disk_bytes_per_second", report.disk_bytes_per_second}}},
          {"cases", cases}};
}

void add_shared_options(CLI::App& command, EngineBenchOptions* options) {
  add_deployment_options(command, &options->deployment);
  add_repeats_option(command, &options->repeats);
  add_cold_start_option(command, &options->cold_start);
  command
      .add_option("--disk-rate", options->disk_gb_per_second,
                  "Rate of the drives, for the bound of a cold tier; with --ram-budget and a pack "
                  "it is measured before unless given")
      ->check(CLI::Range(1e-3, 1e6))
      ->type_name("GB/s");
  command.add_option("--seed", options->seed, "Of the random tokens")->capture_default_str();
  command.add_flag("--json", options->json, "One JSON object in place of the table");
  group_options(command, "Memory", {"--cold-start", "--disk-rate"});
  group_options(command, "Report", {"--repeats", "--seconds-max", "--json"});
}

}  // namespace

void add_bench_decode_command(CLI::App& bench, int* exit_code) {
  auto options = std::make_shared<EngineBenchOptions>();
  CLI::App* command =
      bench.add_subcommand("decode", "Steps of one token per sequence: tokens/s, time per part");
  add_shared_options(*command, options.get());
  add_list_option(*command, "--rows", "Sequences that are stepped together", 1, 512,
                  &options->rows);
  add_list_option(*command, "--context", "Tokens in each cache before, made up", 0,
                  int64_t{1} << 30, &options->contexts);
  command->add_option("--steps", options->steps, "Steps of one repeat")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str();
  command->footer(
      "Example:\n  atoll bench decode tests/models/tiny-fp8 --rows 1,4 --context 0,4096");
  command->callback([options, exit_code] {
    const EngineReport report = bench::measure_decode(*options);
    Json json = to_json(*options, report, "rows", true);
    json["contexts"] = options->contexts;
    json["steps"] = options->steps;
    write_stdout(options->json ? json.dump(2) + "\n" : to_text(report, "rows", true));
    *exit_code = 0;
  });
}

void add_bench_prefill_command(CLI::App& bench, int* exit_code) {
  auto options = std::make_shared<EngineBenchOptions>();
  CLI::App* command =
      bench.add_subcommand("prefill", "One prompt of random tokens in chunks: tokens/s, parts");
  add_shared_options(*command, options.get());
  command->add_option("--tokens", options->tokens, "Tokens of the prompt")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 30))
      ->capture_default_str();
  command->footer(
      "Example:\n  atoll bench prefill tests/models/tiny-fp8 --tokens 1024 --chunk 256");
  command->callback([options, exit_code] {
    const EngineReport report = bench::measure_prefill(*options);
    write_stdout(options->json ? to_json(*options, report, "tokens", false).dump(2) + "\n"
                               : to_text(report, "tokens", false));
    *exit_code = 0;
  });
}

}  // namespace atl::cli
