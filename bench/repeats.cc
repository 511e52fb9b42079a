#include "bench/repeats.h"

#include <algorithm>

#include "base/check.h"

namespace atl::bench {
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

}  // namespace atl::bench
