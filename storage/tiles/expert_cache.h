// Which tiles lie in which slots, and which expert goes when room is needed.
//
// A slot holds one tile; tiles come one by one, but leave by whole experts of a layer, as a
// Dispatch that misses one tile of an expert waits as long as one that misses all. Bookkeeping
// only: no memory of tiles, no reading, no lock.
#pragma once

#include <cstddef>
#include <cstdint>
#include <set>
#include <span>
#include <utility>
#include <vector>

namespace atl::storage {

enum class Eviction : uint8_t {
  kLru,  // the expert whose last use is longest ago
  kLfu,  // the one with the fewest uses, where older uses count less and less
};

class ExpertCache {
 public:
  enum class TileState : uint8_t { kAbsent, kReading, kHere, kBad };

  // Experts of all layers are numbered from 0. Uses lose half of their weight in half_life ticks.
  ExpertCache(size_t num_experts, int num_tiles, size_t num_slots, Eviction eviction,
              double half_life);

  size_t num_slots() const { return num_slots_; }
  size_t free_slots() const { return free_.size(); }
  uint64_t evictions() const { return evictions_; }
  // RAM of the tables for so many experts and tiles and slots.
  static uint64_t table_bytes(size_t num_experts, int num_tiles, size_t num_slots);

  TileState state(size_t expert, int tile) const { return states_[index(expert, tile)]; }
  int32_t slot(size_t expert, int tile) const { return slots_[index(expert, tile)]; }
  bool is_reading(size_t expert) const { return experts_[expert].reading > 0; }

  // A Dispatch has come: uses from here on weigh more.
  void tick();
  // Counts a use of the expert.
  void use(size_t expert);
  // Uses, weighed by age: 1 for one just now.
  double uses(size_t expert) const { return experts_[expert].uses / weight_; }
  // Before any use: what an earlier run has counted.
  void set_uses(size_t expert, double uses);

  // A pinned expert, or one that is being read, is not evicted.
  void pin(size_t expert);
  void unpin(size_t expert);

  // Evicts until so many slots are free; appends who went. False: pinned experts leave too little
  // room, and nothing was evicted.
  bool make_room(size_t slots, std::vector<size_t>* evicted);
  // Gives an absent tile a slot; there must be a free one.
  int32_t start_reading(size_t expert, int tile);
  // kHere keeps the slot; kAbsent (not read) and kBad (never to be read again) free it.
  void end_reading(size_t expert, int tile, TileState outcome);
  // Of all experts that may go.
  size_t evictable_slots() const { return evictable_slots_; }

 private:
  struct Expert {
    double uses = 0;   // in units of weight_
    double order = 0;  // least goes first
    int32_t pins = 0, reading = 0, held = 0;
  };
  size_t index(size_t expert, int tile) const {
    return expert * static_cast<size_t>(num_tiles_) + static_cast<size_t>(tile);
  }
  bool may_go(const Expert& e) const { return e.pins == 0 && e.reading == 0 && e.held > 0; }
  // Changes an expert; keeps queue_ and evictable_slots_ in step.
  template <typename Change>
  void change(size_t expert, Change change);
  void evict(size_t expert);
  void renormalise();

  const int num_tiles_;
  const size_t num_slots_;
  const Eviction eviction_;
  const double growth_;  // of weight_ with each tick
  double weight_ = 1;    // of a use now
  double ticks_ = 0;
  std::vector<Expert> experts_;
  std::vector<TileState> states_;  // [experts, tiles]
  std::vector<int32_t> slots_;     // [experts, tiles], -1: none
  std::vector<int32_t> free_;
  std::set<std::pair<double, size_t>> queue_;  // (order, expert) of those that may go
  size_t evictable_slots_ = 0;
  uint64_t evictions_ = 0;
};

}  // namespace atl::storage
