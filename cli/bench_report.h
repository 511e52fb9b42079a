// What the benchmarks share: repeats that count only while the machine stands still, and how their
// figures are written. docs/benchmarks.md explains them to the reader.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "topology/machine_limit.h"

namespace CLI {
class App;
}

namespace atl::cli {

// The middle and the ends of some values.
struct Summary {
  double median = 0;  // of an even number: the mean of the two in the middle
  double low = 0;
  double high = 0;
};
// `values` is not empty.
Summary summarize(std::vector<double> values);
// {"median":..,"low":..,"high":..}; null without values.
template <typename Json>
Json summary_json(const std::vector<double>& values) {
  if (values.empty()) return nullptr;
  const Summary s = summarize(values);
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

// Tries up to three times for each wanted repeat: more, and the machine is too unsteady to measure.
inline constexpr int kTriesPerRepeat = 3;

struct RepeatOptions {
  int wanted = 5;           // repeats that count, >= 1
  double seconds_max = 60;  // after so long no other begins, whatever was wanted; 0: no bound
};
struct RepeatsDone {
  int counted = 0, voided = 0;
  bool reliable() const { return counted > 0; }
};

// Runs `work` until `wanted` runs were between two equal limits (topology::limits_differ()), at
// most kTriesPerRepeat * wanted times and within the time, but once at least. After each run `keep`
// gets the mean of the two limits and whether they were equal: runs that don't count are what is
// reported, as unreliable, where none does.
RepeatsDone run_repeats(const RepeatOptions& options, const Clock& clock,
                        const std::function<topology::MachineLimit()>& measure_limit,
                        const std::function<void()>& work,
                        const std::function<void(const topology::MachineLimit&, bool)>& keep);

// The cell of how many repeats counted: "5", or "none, unreliable".
std::string counted_text(const RepeatsDone& repeats);
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
void add_repeats_option(CLI::App& command, RepeatOptions* repeats);

// The commands of the group, described to `atoll bench`.
void add_bench_kernels_command(CLI::App& bench, int* exit_code);
void add_bench_decode_command(CLI::App& bench, int* exit_code);
void add_bench_prefill_command(CLI::App& bench, int* exit_code);
void add_bench_disk_command(CLI::App& bench, int* exit_code);
void add_bench_serve_command(CLI::App& bench, int* exit_code);
void add_bench_compare_command(CLI::App& bench, int* exit_code);
void add_bench_net_command(CLI::App& bench, int* exit_code);

}  // namespace atl::cli
