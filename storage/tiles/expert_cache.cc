#include "storage/tiles/expert_cache.h"

#include <cmath>

#include "base/check.h"

namespace atl::storage {
namespace {

constexpr double kWeightMax = 1e100;
// A node of queue_: two words of payload, four of the tree.
constexpr uint64_t kQueueNodeBytes = 48 + 16;

}  // namespace

ExpertCache::ExpertCache(size_t num_experts, int num_tiles, size_t num_slots, Eviction eviction,
                         double half_life)
    : num_tiles_(num_tiles),
      num_slots_(num_slots),
      eviction_(eviction),
      growth_(std::exp2(1 / half_life)),
      experts_(num_experts),
      states_(num_experts * static_cast<size_t>(num_tiles), TileState::kAbsent),
      slots_(num_experts * static_cast<size_t>(num_tiles), -1) {
  CHECK_LT(num_slots, size_t{1} << 31);
  CHECK_GT(num_tiles, 0);
  CHECK_GT(half_life, 0);
  free_.reserve(num_slots);
  for (size_t slot = num_slots; slot > 0; --slot) free_.push_back(static_cast<int32_t>(slot - 1));
}

uint64_t ExpertCache::table_bytes(size_t num_experts, int num_tiles, size_t num_slots) {
  const uint64_t tiles = num_experts * static_cast<uint64_t>(num_tiles);
  return num_experts * (sizeof(Expert) + kQueueNodeBytes) +
         tiles * (sizeof(TileState) + sizeof(int32_t)) + num_slots * sizeof(int32_t);
}

template <typename Change>
void ExpertCache::change(size_t expert, Change change) {
  Expert& e = experts_[expert];
  if (may_go(e)) {
    CHECK_EQ(queue_.erase({e.order, expert}), 1u);
    evictable_slots_ -= static_cast<size_t>(e.held);
  }
  change(e);
  CHECK(e.pins >= 0 && e.reading >= 0 && e.reading <= e.held && e.held <= num_tiles_);
  if (may_go(e)) {
    queue_.insert({e.order, expert});
    evictable_slots_ += static_cast<size_t>(e.held);
  }
}

void ExpertCache::tick() {
  ticks_ += 1;
  weight_ *= growth_;
  if (weight_ > kWeightMax) renormalise();
}

// Keeps the weights finite; ratios and order stay.
void ExpertCache::renormalise() {
  for (size_t expert = 0; expert < experts_.size(); ++expert) {
    change(expert, [this](Expert& e) {
      e.uses /= weight_;
      if (eviction_ == Eviction::kLfu) e.order = e.uses;
    });
  }
  weight_ = 1;
}

void ExpertCache::use(size_t expert) {
  change(expert, [this](Expert& e) {
    e.uses += weight_;
    e.order = eviction_ == Eviction::kLfu ? e.uses : ticks_;
  });
}

void ExpertCache::set_uses(size_t expert, double uses) {
  change(expert, [&](Expert& e) {
    e.uses = uses * weight_;
    if (eviction_ == Eviction::kLfu) e.order = e.uses;
  });
}

void ExpertCache::pin(size_t expert) {
  change(expert, [](Expert& e) { ++e.pins; });
}

void ExpertCache::unpin(size_t expert) {
  change(expert, [](Expert& e) {
    CHECK_GT(e.pins, 0);
    --e.pins;
  });
}

bool ExpertCache::make_room(size_t slots, std::vector<size_t>* evicted) {
  if (free_.size() + evictable_slots_ < slots) return false;
  while (free_.size() < slots) {
    CHECK(!queue_.empty());
    const size_t expert = queue_.begin()->second;
    evict(expert);
    evicted->push_back(expert);
  }
  return true;
}

void ExpertCache::evict(size_t expert) {
  change(expert, [&](Expert& e) {
    for (int tile = 0; tile < num_tiles_; ++tile) {
      int32_t& slot = slots_[index(expert, tile)];
      if (slot < 0) continue;
      free_.push_back(slot);
      slot = -1;
      states_[index(expert, tile)] = TileState::kAbsent;
    }
    e.held = 0;
  });
  CHECK_LE(free_.size(), num_slots_);
  ++evictions_;
}

int32_t ExpertCache::start_reading(size_t expert, int tile) {
  CHECK(state(expert, tile) == TileState::kAbsent);
  CHECK(!free_.empty());
  const int32_t slot = free_.back();
  free_.pop_back();
  change(expert, [&](Expert& e) {
    ++e.reading;
    ++e.held;
  });
  slots_[index(expert, tile)] = slot;
  states_[index(expert, tile)] = TileState::kReading;
  return slot;
}

void ExpertCache::end_reading(size_t expert, int tile, TileState outcome) {
  CHECK(state(expert, tile) == TileState::kReading);
  CHECK(outcome != TileState::kReading);
  const size_t at = index(expert, tile);
  change(expert, [&](Expert& e) {
    --e.reading;
    if (outcome != TileState::kHere) --e.held;
  });
  states_[at] = outcome;
  if (outcome == TileState::kHere) return;
  free_.push_back(slots_[at]);
  slots_[at] = -1;
}

}  // namespace atl::storage
