// Where the tiles of a model come from: an unpacked checkpoint, which is re-laid at each read, or
// expert packs, which hold them as they lie in memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "base/result.h"
#include "kernels/tile.h"
#include "storage/io/extent_queue.h"
#include "storage/tiles/expert_reader.h"

namespace atl::storage {

struct ReaderOptions {
  MakeExtentQueue make_queue = make_extent_queue;  // for packs
  PackIo io = PackIo::kAuto;                       // for packs
  // For checkpoints: threads that read, each with a window of this many bytes (at least one row of
  // a matrix).
  int num_threads = 1;
  size_t window_bytes = 8 << 20;
};

// Immutable; any thread.
class TileSource {
 public:
  virtual ~TileSource() = default;

  // Of all tiles of an expert, in order.
  virtual std::span<const kernels::TileLayout> layouts() const = 0;
  // kUnavailable if the source leaves the tile of this layer (place in the catalog's moe_layers)
  // out.
  virtual Status has(size_t place, int tile) const = 0;
  // What has to be read for these ascending tiles of every expert.
  virtual uint64_t read_bytes(std::span<const int> tiles) const = 0;
  // Reading one tile takes about as long as its bytes do.
  virtual bool reads_tiles_alone() const = 0;

  // The source must outlive the reader. LoadError if the options can't be.
  virtual std::unique_ptr<ExpertReader> make_reader(const ReaderOptions& options) const = 0;
  // RAM that source and reader take.
  virtual uint64_t memory_bytes(const ReaderOptions& options) const = 0;
};

}  // namespace atl::storage
