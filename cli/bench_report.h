// What the commands of `atoll bench` share: how figures are written, and options of several of
// them. docs/benchmarks.md explains the figures to the reader.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "bench/repeats.h"

namespace CLI {
class App;
}

namespace atl::cli {

// {"median":..,"low":..,"high":..}; null without values.
template <typename Json>
Json summary_json(const std::vector<double>& values) {
  if (values.empty()) return nullptr;
  const bench::Summary s = bench::summarize(values);
  return {{"median", s.median}, {"low", s.low}, {"high", s.high}};
}
// Values in units of 1e9.
std::vector<double> in_giga(std::vector<double> values);
// The median by `format`, a fmt format of one double such as "{:.2f}"; "-" without values.
std::string median_text(const std::vector<double>& values, const char* format);
// "+-4 %": half the distance of the ends by the median; "" without values.
std::string spread_text(const std::vector<double>& values);

inline constexpr const char* kUnreliableNote =
    "unreliable: read rate or peak changed by more than 10 % during every repeat; figures are "
    "medians of those\n";

// The cell of how many repeats counted: "5", or "none, unreliable".
std::string counted_text(const bench::RepeatsDone& repeats);
// A line that says what unreliable means, if any of the cases is; else "".
template <typename Cases>
std::string unreliable_note(const Cases& cases) {
  for (const auto& one : cases) {
    if (!one.repeats.reliable()) return kUnreliableNote;
  }
  return "";
}

// "--rows 1,2,4": a comma-separated list of numbers.
void add_list_option(CLI::App& command, const std::string& name, const std::string& what,
                     int64_t low, int64_t high, std::vector<int64_t>* values);
void add_repeats_option(CLI::App& command, bench::RepeatOptions* repeats);

// The commands of the group, described to `atoll bench`.
void add_bench_kernels_command(CLI::App& bench, int* exit_code);
void add_bench_decode_command(CLI::App& bench, int* exit_code);
void add_bench_prefill_command(CLI::App& bench, int* exit_code);
void add_bench_disk_command(CLI::App& bench, int* exit_code);
void add_bench_serve_command(CLI::App& bench, int* exit_code);
void add_bench_compare_command(CLI::App& bench, int* exit_code);
void add_bench_net_command(CLI::App& bench, int* exit_code);

}  // namespace atl::cli
