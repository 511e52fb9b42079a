// The tiles of an unpacked checkpoint: read tensor by tensor and re-laid.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/progress.h"
#include "kernels/tile.h"
#include "storage/checkpoint/matrix_source.h"
#include "storage/tiles/tile_source.h"

namespace atl::storage {

class CheckpointTiles final : public TileSource {
 public:
  // Both are borrowed and must outlive the source.
  CheckpointTiles(const TensorSource& checkpoint, const ExpertCatalog& catalog, HeldFormat format);

  std::span<const kernels::TileLayout> layouts() const override { return layouts_; }
  Status has(size_t, int) const override { return {}; }
  // Of an unpacked down all columns are read: a row of a tile is too short to read alone.
  uint64_t read_bytes(std::span<const int> tiles) const override;
  bool reads_tiles_alone() const override { return false; }
  std::unique_ptr<ExpertReader> make_reader(const ReaderOptions& options) const override;
  uint64_t memory_bytes(const ReaderOptions& options) const override;

  // The least window that read() needs: the longest row of a matrix.
  uint64_t window_bytes_min() const;
  // Fills ascending tiles of one expert, whose memory is zero. LoadError with file and place.
  void read(size_t place, int64_t expert, std::span<const TileTarget> tiles,
            std::span<std::byte> window, Progress& progress) const;

 private:
  const TensorSource& checkpoint_;
  const ExpertCatalog& catalog_;
  std::vector<kernels::TileLayout> layouts_;  // by tile
};

}  // namespace atl::storage
