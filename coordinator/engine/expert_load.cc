#include "coordinator/engine/expert_load.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace atl::coordinator {
namespace {

LayerLoad difference(const LayerLoad& later, const LayerLoad& earlier) {
  LayerLoad load = later;
  load.steps -= earlier.steps;
  load.rows -= earlier.rows;
  load.distinct -= earlier.distinct;
  load.small_steps -= earlier.small_steps;
  load.small_rows -= earlier.small_rows;
  load.small_distinct -= earlier.small_distinct;
  for (size_t expert = 0; expert < load.uses.size(); ++expert) {
    load.uses[expert] -= earlier.uses[expert];
  }
  return load;
}

std::vector<LayerLoad> difference(const std::vector<LayerLoad>& later,
                                  const std::vector<LayerLoad>& earlier) {
  std::vector<LayerLoad> layers;
  for (size_t place = 0; place < later.size(); ++place) {
    layers.push_back(difference(later[place], earlier[place]));
  }
  return layers;
}

}  // namespace

ExpertLoad::ExpertLoad(const model::ModelConfig& config, const Clock& clock)
    : clock_(clock),
      began_(clock.now()),
      num_layers_(config.num_hidden_layers),
      num_experts_(static_cast<size_t>(config.n_routed_experts)),
      top_k_(static_cast<size_t>(config.num_experts_per_tok)),
      place_of_layer_(static_cast<size_t>(config.num_hidden_layers), -1),
      seen_(num_experts_, 0),
      window_end_(began_ + kWindow) {
  for (int64_t layer = 0; layer < num_layers_; ++layer) {
    if (!config.is_moe_layer(layer)) continue;
    place_of_layer_[static_cast<size_t>(layer)] = static_cast<int>(layers_.size());
    layer_ids_.push_back(layer);
    layers_.push_back(std::make_unique<Layer>());
    layers_.back()->uses = std::vector<Counter<uint64_t>>(num_experts_);
    if (layer + 1 == num_layers_) continue;
    layers_.back()->pairs = std::vector<Counter<uint32_t>>(num_experts_ * num_experts_);
  }
  marks_.push_back({began_, totals()});
}

uint64_t ExpertLoad::bytes(const model::ModelConfig& config) {
  const auto experts = static_cast<uint64_t>(config.n_routed_experts);
  uint64_t bytes = 0;
  for (int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    if (!config.is_moe_layer(layer)) continue;
    bytes += sizeof(uint64_t) * experts * (kWindowsMax + 2);
    if (layer + 1 < config.num_hidden_layers) bytes += sizeof(uint32_t) * experts * experts;
  }
  return bytes;
}

void ExpertLoad::begin_step() {
  place_before_ = -1;
  counts_pairs_ = steps_++ % kPairEvery == 0;
  const Clock::TimePoint now = clock_.now();
  if (now < window_end_) return;
  window_end_ = now + kWindow;
  Mark mark{now, totals()};
  const std::lock_guard lock(mutex_);
  marks_.push_back(std::move(mark));
  if (marks_.size() > kWindowsMax) marks_.pop_front();
}

void ExpertLoad::count(int64_t layer, std::span<const int32_t> ids) {
  const int place = place_of_layer_[static_cast<size_t>(layer)];
  CHECK_GE(place, 0);
  Layer& to = *layers_[static_cast<size_t>(place)];
  const size_t rows = ids.size() / top_k_;
  ++visit_;
  uint64_t distinct = 0;
  for (const int32_t id : ids) {
    if (id < 0) continue;
    const auto expert = static_cast<size_t>(id);
    to.uses[expert].add(1);
    if (std::exchange(seen_[expert], visit_) != visit_) ++distinct;
  }
  to.steps.add(1);
  to.rows.add(rows);
  to.distinct.add(distinct);
  if (rows <= static_cast<size_t>(kSmallStepRows)) {
    to.small_steps.add(1);
    to.small_rows.add(rows);
    to.small_distinct.add(distinct);
  }
  if (!counts_pairs_) return;
  // The last layer may have fewer rows: those that get logits.
  if (place_before_ >= 0 && place_before_ + 1 == place && before_.size() == ids.size()) {
    count_pairs(*layers_[static_cast<size_t>(place_before_)], ids);
  }
  before_.assign(ids.begin(), ids.end());
  place_before_ = place;
}

void ExpertLoad::count_pairs(Layer& before, std::span<const int32_t> ids) {
  const size_t rows = ids.size() / top_k_;
  const size_t stride = std::max<size_t>(1, rows / static_cast<size_t>(kPairRowsMax));
  const size_t end = std::min(rows, stride * static_cast<size_t>(kPairRowsMax));
  for (size_t row = 0; row < end; row += stride) {
    for (const int32_t from : std::span(before_).subspan(row * top_k_, top_k_)) {
      if (from < 0) continue;
      Counter<uint32_t>* const pairs = &before.pairs[static_cast<size_t>(from) * num_experts_];
      for (const int32_t to : ids.subspan(row * top_k_, top_k_)) {
        if (to >= 0) pairs[to].add(1);
      }
    }
  }
}

std::vector<LayerLoad> ExpertLoad::totals() const {
  std::vector<LayerLoad> totals;
  for (const auto& layer : layers_) {
    LayerLoad load{layer->steps.get(),
                   layer->rows.get(),
                   layer->distinct.get(),
                   layer->small_steps.get(),
                   layer->small_rows.get(),
                   layer->small_distinct.get(),
                   std::vector<uint64_t>(num_experts_)};
    for (size_t expert = 0; expert < num_experts_; ++expert) {
      load.uses[expert] = layer->uses[expert].get();
    }
    totals.push_back(std::move(load));
  }
  return totals;
}

ExpertLoadSnapshot ExpertLoad::snapshot(With with) const {
  ExpertLoadSnapshot snapshot;
  snapshot.layer_ids = layer_ids_;
  std::deque<Mark> marks;
  {
    const std::lock_guard lock(mutex_);  // marks first: sums only grow
    if (with == With::kAll) marks = marks_;
  }
  snapshot.layers = totals();
  const Clock::TimePoint now = clock_.now();
  snapshot.seconds = seconds_between(began_, now);
  for (size_t i = 0; i < marks.size(); ++i) {
    const bool is_open = i + 1 == marks.size();
    const Clock::TimePoint end = is_open ? now : marks[i + 1].at;
    snapshot.windows.push_back(
        {seconds_between(began_, marks[i].at), seconds_between(marks[i].at, end),
         difference(is_open ? snapshot.layers : marks[i + 1].layers, marks[i].layers)});
  }
  if (with == With::kTotals) return snapshot;
  for (size_t place = 0; place + 1 < layers_.size(); ++place) {
    snapshot.followers.push_back(followers_of(*layers_[place]));
  }
  return snapshot;
}

std::vector<Followers> ExpertLoad::followers_of(const Layer& layer) const {
  using Follower = Followers::Follower;
  std::vector<Followers> all(num_experts_);
  const auto is_more = [](const Follower& a, const Follower& b) { return a.rows > b.rows; };
  for (size_t expert = 0; expert < num_experts_; ++expert) {
    std::vector<Follower>& best = all[expert].best;
    for (size_t next = 0; next < num_experts_; ++next) {
      const uint32_t rows = layer.pairs[expert * num_experts_ + next].get();
      all[expert].pairs += rows;
      if (rows == 0 || (best.size() == kFollowers && rows <= best.back().rows)) continue;
      if (best.size() == kFollowers) best.pop_back();
      const Follower follower{static_cast<int32_t>(next), rows};
      best.insert(std::upper_bound(best.begin(), best.end(), follower, is_more), follower);
    }
  }
  return all;
}

std::vector<std::vector<uint64_t>> ExpertLoad::rows_of_experts() const {
  std::vector<std::vector<uint64_t>> rows(static_cast<size_t>(num_layers_));
  for (size_t place = 0; place < layers_.size(); ++place) {
    std::vector<uint64_t>& to = rows[static_cast<size_t>(layer_ids_[place])];
    for (const Counter<uint64_t>& uses : layers_[place]->uses) to.push_back(uses.get());
  }
  return rows;
}

}  // namespace atl::coordinator
