#include "coordinator/engine/halves.h"

#include <algorithm>
#include <bit>

namespace atl::coordinator {
namespace {

constexpr int kTriesMin = 2;                        // of each way, before one is chosen
constexpr int64_t kRetryMin = 16, kRetryMax = 512;  // steps; doubled each time that nothing changes
constexpr int64_t kRetrySoon = 1;
constexpr double kNewest = 0.3;    // what a step counts beside those before
constexpr double kGainMin = 0.02;  // less is noise, and whole steps are the simpler ones

}  // namespace

int HalvesGate::size_of(int64_t rows) {
  return std::min<int>(std::bit_width(static_cast<uint64_t>(rows)), kSizes - 1);
}

bool HalvesGate::Size::is_better_halved() const {
  return ways[1].seconds_per_row < (1 - kGainMin) * ways[0].seconds_per_row;
}

bool HalvesGate::halves(int64_t rows) {
  if (mode_ != Halves::kAuto) return mode_ == Halves::kOn && rows > 1;
  if (rows < kRowsMin) return false;
  Size& size = sizes_[static_cast<size_t>(size_of(rows))];
  for (const bool halved : {false, true}) {
    if (size.ways[halved].tried < kTriesMin) return halved;
  }
  if (++size.steps <= size.retry_after) return size.is_better_halved();
  size.steps = 0;
  return !size.is_better_halved();
}

void HalvesGate::took(int64_t rows, bool halved, double seconds) {
  if (mode_ != Halves::kAuto || rows < kRowsMin) return;
  Size& size = sizes_[static_cast<size_t>(size_of(rows))];
  const bool before = size.is_better_halved();
  Size::Way& way = size.ways[halved];
  const double now = seconds / static_cast<double>(rows);
  // The first one warms caches and buffers up.
  way.seconds_per_row =
      way.tried < kTriesMin ? now : (1 - kNewest) * way.seconds_per_row + kNewest * now;
  ++way.tried;
  if (size.ways[0].tried < kTriesMin || size.ways[1].tried < kTriesMin) return;
  if (size.is_better_halved() != before) {
    size.retry_after = kRetryMin;
  } else if (halved != before && now < size.ways[before].seconds_per_row) {
    size.retry_after = kRetrySoon;  // once may be chance
  } else if (halved != before) {
    size.retry_after = std::clamp(2 * size.retry_after, kRetryMin, kRetryMax);
  }
}

}  // namespace atl::coordinator
