// Repeats of a measurement that count only while the machine stands still, and what their values
// come to. docs/benchmarks.md explains them to the reader.
#pragma once

#include <functional>
#include <vector>

#include "base/clock.h"
#include "topology/machine_limit.h"

namespace atl::bench {

// The middle and the ends of some values.
struct Summary {
  double median = 0;  // of an even number: the mean of the two in the middle
  double low = 0;
  double high = 0;
};
// `values` is not empty.
Summary summarize(std::vector<double> values);
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

}  // namespace atl::bench
