// The tiles an expert node keeps in RAM, loaded from an unpacked checkpoint or an expert pack.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "base/ids.h"
#include "base/memory.h"
#include "base/progress.h"
#include "base/result.h"
#include "kernels/tile.h"
#include "storage/matrix_source.h"
#include "storage/tile_source.h"

namespace atl::storage {

// A tile that stays where it is while this lives. Move-only by intent: today resident tiles never
// move and cold ones are owned; a cache of slots unpins in the destructor.
class PinnedTile {
 public:
  PinnedTile(kernels::TileView view, HostBuffer owned) : view_(view), owned_(std::move(owned)) {}
  const kernels::TileView& view() const { return view_; }

 private:
  kernels::TileView view_;
  HostBuffer owned_;  // empty for resident tiles
};

// Thread-safe once load() has returned; pin() may be called from any thread.
class TileStore {
 public:
  // Checkpoint and catalog are borrowed and must outlive the store.
  TileStore(const Checkpoint& checkpoint, const ExpertCatalog& catalog, HeldFormat format = {});
  // Of a pack: no staging window, tiles are read to where they stay and checked against their
  // checksums. LoadError if the pack is of another shape or format.
  TileStore(const Pack& pack, const ExpertCatalog& catalog, HeldFormat format = {});
  TileStore(const TileStore&) = delete;
  TileStore& operator=(const TileStore&) = delete;

  const ExpertCatalog& catalog() const { return catalog_; }
  int num_tiles() const { return static_cast<int>(layouts_.size()); }
  const kernels::TileLayout& layout(int tile) const { return layouts_[tile]; }

  // Bytes in RAM for these tiles of every expert, and bytes that load() will read for them (of an
  // unpacked down all columns are read: a row of a tile is too short to read alone). As in load(),
  // the tiles are ascending and in range.
  uint64_t resident_bytes(std::span<const int> tiles) const;
  uint64_t read_bytes(std::span<const int> tiles) const;

  // Makes these tiles (ascending, in range) of every expert resident, in place of what was. Reads
  // experts in parallel, each thread with a staging window of window_bytes (at least one row of a
  // matrix): peak memory is tiles + windows. Starts `progress` with read_bytes(). LoadError names
  // file and tensor; no tile is resident then.
  void load(std::span<const int> tiles, int num_threads, size_t window_bytes, Progress& progress);
  std::span<const int> resident_tiles() const { return resident_; }

  // A resident tile, or one read now (counted; from a checkpoint it is re-laid: slow, said once in
  // the log). kInvalid for a layer, expert or tile that the model does not have; kUnavailable if a
  // pack leaves it out; kCorrupt with the loader's message if it can't be read or is damaged;
  // kOverloaded if there is no memory for it.
  Result<PinnedTile> pin(ExpertKey key, int tile);
  uint64_t cold_reads() const;

 private:
  TileStore(std::unique_ptr<TileSource> source, const ExpertCatalog& catalog);
  void check_tiles(std::span<const int> tiles) const;
  void require(std::span<const int> tiles) const;
  void place_tiles(std::span<const int> tiles);
  void read_experts(std::span<const int> tiles, int num_threads, size_t window_bytes,
                    Progress& progress);
  Status check_key(ExpertKey key, int tile) const;

  const std::unique_ptr<TileSource> source_;
  const ExpertCatalog& catalog_;
  const std::span<const kernels::TileLayout> layouts_;  // by tile, of source_
  std::vector<int> place_of_layer_;  // in catalog_.moe_layers, -1: no routed experts
  std::vector<int> resident_;
  std::vector<int64_t> offset_of_tile_;  // in an expert's extent, -1: not resident
  uint64_t expert_bytes_ = 0;            // resident tiles of one expert
  std::vector<HostBuffer> arenas_;       // by place of the layer: [expert][resident tile]
  std::atomic<uint64_t> cold_reads_{0};
};

}  // namespace atl::storage
