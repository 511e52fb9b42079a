// Where the tiles of a model come from: an unpacked checkpoint, which is re-laid at each read, or
// an expert pack, which holds them as they lie in memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/progress.h"
#include "base/result.h"
#include "kernels/tile.h"
#include "storage/matrix_source.h"

namespace atl::storage {

class Pack;

// One tile of one expert that is to be filled.
struct TileTarget {
  const kernels::TileLayout* layout = nullptr;
  std::byte* data = nullptr;  // the tile's extent, zero-filled, on kernels::kTileAlign
};

// Immutable; any thread may read.
class TileSource {
 public:
  virtual ~TileSource() = default;

  // Of all tiles of an expert, in order.
  virtual std::span<const kernels::TileLayout> layouts() const = 0;
  // kUnavailable if the source leaves the tile of this layer (place in the catalog's moe_layers)
  // out.
  virtual Status has(size_t place, int tile) const = 0;
  // What read() reads for these ascending tiles of every expert.
  virtual uint64_t read_bytes(std::span<const int> tiles) const = 0;
  // Pieces of an expert that threads may read at the same time into the same tiles.
  virtual int64_t pieces_per_expert() const = 0;
  // The least window that read() needs; 0: none.
  virtual uint64_t window_bytes_min() const = 0;
  // Fills one piece of the targets, ascending tiles of one expert. LoadError with file and place.
  virtual void read(size_t place, int64_t expert, int64_t piece, std::span<const TileTarget> tiles,
                    std::span<std::byte> window, Progress& progress) const = 0;
  // Reading one tile takes about as long as its bytes do.
  virtual bool reads_tiles_alone() const = 0;
};

// Both are borrowed and must outlive the source.
std::unique_ptr<TileSource> make_checkpoint_tiles(const Checkpoint& checkpoint,
                                                  const ExpertCatalog& catalog, HeldFormat format);

}  // namespace atl::storage
