// The experts of a node: slots in RAM for as many tiles as there is memory, the rest on disk.
//
// Tiles come from an unpacked checkpoint or an expert pack. What a Dispatch wants and is not here
// is read into slots while the rest is computed, in place of the experts that were used least.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "base/cache_stats.h"
#include "base/clock.h"
#include "base/ids.h"
#include "base/memory.h"
#include "base/progress.h"
#include "base/result.h"
#include "base/threads.h"
#include "kernels/tile.h"
#include "storage/checkpoint/matrix_source.h"
#include "storage/tiles/expert_cache.h"
#include "storage/tiles/expert_reader.h"
#include "storage/tiles/tile_source.h"

namespace atl::storage {

class Pack;

struct TileStoreOptions {
  // RAM for slots, tables and reading; unset: all tiles of the plan, and kSpareSlotBytes for
  // others.
  std::optional<uint64_t> ram_bytes_max;
  Eviction eviction = Eviction::kLfu;
  // How often each expert was used: read when the plan comes, so that the most used are loaded
  // first, and written by save_usage(). Empty: none.
  std::filesystem::path usage_file;
  // Read in its place while there is none, never written: what `atoll experts dump` saved. Empty:
  // none.
  std::filesystem::path first_usage;
  std::string checkpoint_fingerprint;  // whose experts the usage files count
  ReaderOptions reader;
  // Called by plan() with ram_bytes() before it takes any; throws LoadError where that is too much.
  // May be empty.
  std::function<void(uint64_t ram_bytes)> admit;
  const Clock* clock = nullptr;          // of the statistics, borrowed; nullptr: a steady one
  Threads* threads = &system_threads();  // what waits for tiles; borrowed
};
// Room for tiles that are not of the plan (another node's that has gone) where RAM is not limited.
inline constexpr uint64_t kSpareSlotBytes = 256 << 20;

class TileStore;

// Tiles of some experts of one layer that a Dispatch wants. While it lives none of what it has
// handed out and not released leaves its slot. Not thread-safe; must not outlive the store.
class TileBatch {
 public:
  TileBatch(TileBatch&&) noexcept;
  TileBatch& operator=(TileBatch&&) = delete;
  ~TileBatch();

  // Waits until all wanted tiles of an expert that was not handed out yet are here, and hands out
  // all such experts: their places in the list of the request. Empty once all were handed out.
  // kCorrupt or kUnavailable, with file and place, if a tile can't be had; kOverloaded if the slots
  // are too few for one expert beside what is not released.
  Result<std::vector<size_t>> next();
  bool all_handed_out() const { return num_handed_out_ == experts_.size(); }
  // A tile of one that was handed out; both by their places in the request.
  kernels::TileView tile(size_t expert, size_t tile) const;
  // What was handed out so far may leave its slot.
  void release();

 private:
  friend class TileStore;
  enum class Phase : uint8_t { kWaiting, kHandedOut, kReleased };
  struct Expert {
    size_t index;  // in the cache
    Phase phase = Phase::kWaiting;
    bool started = false;  // pinned; what was not here is being read
  };
  TileBatch(TileStore& store, int32_t layer, std::span<const int> tiles)
      : store_(&store), layer_(layer), tiles_(tiles.begin(), tiles.end()) {}

  TileStore* store_;
  int32_t layer_;
  std::vector<int> tiles_;
  std::vector<Expert> experts_;
  size_t num_handed_out_ = 0;
};

// One tile, pinned.
class PinnedTile {
 public:
  const kernels::TileView& view() const { return view_; }

 private:
  friend class TileStore;
  PinnedTile(TileBatch batch, kernels::TileView view) : batch_(std::move(batch)), view_(view) {}
  TileBatch batch_;
  kernels::TileView view_;
};

// plan() first; from then on all other methods from any thread.
class TileStore {
 public:
  // Checkpoint and catalog are borrowed and must outlive the store.
  TileStore(const TensorSource& checkpoint, const ExpertCatalog& catalog, HeldFormat format = {},
            TileStoreOptions options = {});
  // Of packs, each on a drive of its own: tiles are read to where they stay and checked against
  // their checksums. LoadError if a pack is of another shape or format, or of other experts than
  // the first one. The packs are borrowed and must outlive the store.
  TileStore(std::span<const Pack* const> packs, const ExpertCatalog& catalog,
            HeldFormat format = {}, TileStoreOptions options = {});
  TileStore(const Pack& pack, const ExpertCatalog& catalog, HeldFormat format = {},
            TileStoreOptions options = {});
  TileStore(std::unique_ptr<TileSource> source, const ExpertCatalog& catalog,
            TileStoreOptions options);
  ~TileStore();
  TileStore(const TileStore&) = delete;
  TileStore& operator=(const TileStore&) = delete;

  const ExpertCatalog& catalog() const { return catalog_; }
  int num_tiles() const { return static_cast<int>(layouts_.size()); }
  const kernels::TileLayout& layout(int tile) const { return layouts_[static_cast<size_t>(tile)]; }
  // Reading a tile when it is needed takes about as long as its bytes do: a pack.
  bool reads_tiles_alone() const { return source_->reads_tiles_alone(); }

  // Bytes of these tiles of every expert, and bytes that have to be read for them (of an unpacked
  // down all columns are read: a row of a tile is too short to read alone). As in plan(), the tiles
  // are ascending and in range.
  uint64_t resident_bytes(std::span<const int> tiles) const;
  uint64_t read_bytes(std::span<const int> tiles) const;
  // The least that ram_bytes_max can be: two tiles, tables, and what reading takes.
  uint64_t ram_bytes_min() const { return overhead_bytes(2) + 2 * slot_bytes_; }
  // What plan() of these tiles takes in all: slots, spare ones too, tables, and what reading takes.
  // LoadError if ram_bytes_max is less than the least.
  uint64_t ram_bytes(std::span<const int> tiles) const;
  // How many tiles of every expert have room then, all its slots used. LoadError likewise.
  int room(std::span<const int> tiles) const;

  // Takes slots for these tiles (ascending, in range) of every expert, in place of what was: all is
  // empty then. LoadError if the source leaves one of them out, if the usage file is of another
  // model, or if there is no memory.
  void plan(std::span<const int> tiles);
  bool is_planned() const { return reader_ != nullptr; }
  std::span<const int> planned_tiles() const { return planned_; }
  // Fills slots with planned tiles, the most used experts first, until they are full or
  // stop_filling() is called. Starts `progress` with the bytes that will be read. LoadError with
  // the first tile that can't be had, at the end: the others are here.
  void fill(Progress& progress);
  // The same with other tiles, in slots that are free: what was planned stays.
  void fill_free(std::span<const int> tiles, Progress& progress);
  void stop_filling();

  // Tiles, ascending, of distinct experts of a layer, which are read in this order. kInvalid for a
  // layer, expert or tile that the model does not have; kUnavailable if the source leaves it out.
  Result<TileBatch> request(int32_t layer, std::span<const int32_t> experts,
                            std::span<const int> tiles);
  Result<PinnedTile> pin(ExpertKey key, int tile);
  // How many tiles of an expert may be asked for at once, so that reading and computing overlap.
  int tiles_at_once() const;
  // Starts to read what is likely to be wanted soon, where there is room. Never waits; what the
  // model does not have is left out.
  void hint(int32_t layer, std::span<const int32_t> experts, std::span<const int> tiles);
  // Empties all slots that nobody uses.
  void evict_all();

  ExpertCacheStats stats() const;
  uint64_t held_bytes() const;  // of tiles that are here
  // Writes the usage file, if there is one; what goes wrong is said in the log.
  void save_usage() const;

 private:
  friend class TileBatch;
  // A read under way, of one expert.
  struct Reading {
    uint64_t ticket = 0;
    Clock::TimePoint start;
    bool hint = false;
  };

  void check_tiles(std::span<const int> tiles) const;
  void require(std::span<const int> tiles) const;
  uint64_t overhead_bytes(uint64_t slots) const;
  size_t num_slots(std::span<const int> tiles) const;
  Status check_request(int32_t layer, std::span<const int32_t> experts,
                       std::span<const int> tiles) const;
  size_t cache_index(size_t place, int32_t expert) const {
    return place * static_cast<size_t>(catalog_.n_routed_experts) + static_cast<size_t>(expert);
  }
  int32_t layer_of(size_t index) const;
  int32_t expert_of(size_t index) const;
  void load_usage();
  void bound_uses(std::vector<double>& uses) const;
  std::vector<size_t> fill_order() const;
  void fill(const std::vector<size_t>& order, size_t fitting, std::span<const int> tiles,
            Progress& progress);
  std::vector<std::jthread> populate_ahead(size_t num_slots);

  // With mutex_ held:
  std::vector<int> absent_tiles(size_t index, std::span<const int> tiles) const;
  bool all_here(size_t index, std::span<const int> tiles) const;
  bool try_start(size_t index, std::span<const int> tiles, ReadUrgency urgency, bool may_evict);
  void start_waiting(TileBatch& batch);
  void count_request(size_t index, std::span<const int> tiles);
  const Error* error_of(size_t index, std::span<const int> tiles) const;
  // On a thread of the reader's:
  void tile_done(size_t index, int tile, const Status& status);

  void release(TileBatch& batch);
  void close(TileBatch& batch);
  std::byte* slot_data(int32_t slot) {
    return arena_.data() + static_cast<size_t>(slot) * slot_bytes_;
  }

  const std::unique_ptr<TileSource> source_;
  const ExpertCatalog& catalog_;
  const TileStoreOptions options_;
  const std::span<const kernels::TileLayout> layouts_;  // by tile, of source_
  const SteadyClock steady_clock_;
  const Clock& clock_;
  uint64_t slot_bytes_ = 0;
  std::vector<int> place_of_layer_;  // in catalog_.moe_layers, -1: no routed experts
  std::vector<int> planned_;
  std::atomic<bool> stop_filling_{false};

  mutable std::mutex mutex_;
  const std::unique_ptr<Condition> changed_;  // a tile has come, or slots became free
  std::optional<ExpertCache> cache_;
  std::map<size_t, Reading> reading_;               // by expert in the cache
  std::map<std::pair<size_t, int>, Error> errors_;  // of tiles that could not be had
  std::vector<bool> hinted_;                        // [experts] read for a hint, not used yet
  ExpertCacheStats stats_;
  HostBuffer arena_;                      // slots
  std::unique_ptr<ExpertReader> reader_;  // its threads end before the slots go
};

}  // namespace atl::storage
