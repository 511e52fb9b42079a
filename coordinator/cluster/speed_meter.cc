#include "coordinator/cluster/speed_meter.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "base/check.h"

namespace atl::coordinator {
namespace {

double seconds_of(std::chrono::nanoseconds time) {
  return std::chrono::duration<double>(std::max(time, std::chrono::nanoseconds(1))).count();
}
size_t size_of(int64_t num_rows) {
  CHECK_GE(num_rows, 1);
  return std::min<size_t>(std::bit_width(static_cast<uint64_t>(num_rows)), 24) - 1;
}

}  // namespace

void SpeedMeter::add_dispatch(int64_t num_rows, const std::vector<Answer>& answers) {
  if (answers.size() < 2) return;
  double seconds = 0;
  int tiles = 0;
  for (const Answer& answer : answers) {
    CHECK_GE(answer.tiles, 1);
    seconds += seconds_of(answer.took);
    tiles += answer.tiles;
  }
  const double usual = seconds / tiles;
  for (const Answer& answer : answers) {
    node(answer.node).asked.add(seconds_of(answer.took) / answer.tiles, usual);
  }
  seconds_ += usual;
  ++dispatches_;
  last_[size_of(num_rows)] = usual;
}

void SpeedMeter::add_trial(int64_t num_rows, const Answer& answer) {
  const double usual = last_[size_of(num_rows)];
  if (usual == 0) return;
  node(answer.node).tried.add(seconds_of(answer.took), usual);
}

std::vector<NodeSpeed> SpeedMeter::take(size_t num_nodes) {
  std::vector<NodeSpeed> speeds(num_nodes);
  nodes_.resize(num_nodes);
  const double usual = dispatches_ == 0 ? 0 : seconds_ / static_cast<double>(dispatches_);
  for (size_t n = 0; n < num_nodes; ++n) {
    speeds[n].answers = nodes_[n].asked.count;
    speeds[n].seconds_per_tile = nodes_[n].asked.slowness() * usual;
    speeds[n].tried_seconds = nodes_[n].tried.slowness() * usual;
  }
  nodes_.assign(num_nodes, {});
  seconds_ = 0;
  dispatches_ = 0;
  return speeds;
}

}  // namespace atl::coordinator
