#include "storage/tiles/checkpoint_tiles.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "base/check.h"

namespace atl::storage {
namespace {

using kernels::TileLayout;

enum class Part { kGate, kUp, kDown };

const MatrixSource& part_of(const ExpertSource& expert, Part part) {
  return part == Part::kGate ? expert.gate : part == Part::kUp ? expert.up : expert.down;
}

PackTarget pack_target(const TileTarget& tile, Part part) {
  const TileLayout& layout = *tile.layout;
  const size_t codes = part == Part::kGate ? layout.gate_codes
                       : part == Part::kUp ? layout.up_codes
                                           : layout.down_codes;
  const size_t scales = part == Part::kGate ? layout.gate_scales
                        : part == Part::kUp ? layout.up_scales
                                            : layout.down_scales;
  PackTarget target;
  target.shape = part == Part::kDown ? layout.down : layout.gate_up;
  if (part == Part::kDown) {
    target.source.col_begin = layout.begin;
  } else {
    target.source.row_begin = layout.begin;
  }
  target.codes = tile.data + codes;
  target.scales = reinterpret_cast<float*>(tile.data + scales);
  return target;
}

// Rows of gate and up of tiles [first, last) of a list, which lie one after the other.
struct RowRange {
  size_t first = 0, last = 0;
  int64_t row_begin = 0, row_end = 0;
};

// Merges adjacent tiles, so that neighbours are one read.
template <typename LayoutOf>
std::vector<RowRange> merged_rows(size_t num_tiles, LayoutOf layout_of) {
  std::vector<RowRange> ranges;
  for (size_t i = 0; i < num_tiles; ++i) {
    const TileLayout& layout = layout_of(i);
    if (ranges.empty() || ranges.back().row_end != layout.begin) {
      ranges.push_back({i, i, layout.begin, layout.begin});
    }
    ranges.back().last = i + 1;
    ranges.back().row_end = layout.begin + layout.width;
  }
  return ranges;
}

// Reads one matrix of an expert and fills its part of all the tiles. Of down every row is read
// whole: a tile's 128 columns of a row are less than a page, so reading them alone would fetch
// nearly as much from the disk, by `hidden_size` calls.
void fill_part(const TensorSource& checkpoint, const MatrixSource& matrix, Part part,
               std::span<const TileTarget> tiles, std::span<std::byte> window, Progress& progress) {
  std::vector<PackTarget> targets;
  for (const TileTarget& tile : tiles) targets.push_back(pack_target(tile, part));
  if (part == Part::kDown) {
    pack_matrix(checkpoint, matrix, 0, matrix.rows, targets, window, progress);
    return;
  }
  const auto layout_of = [&](size_t i) -> const TileLayout& { return *tiles[i].layout; };
  for (const RowRange& range : merged_rows(tiles.size(), layout_of)) {
    pack_matrix(checkpoint, matrix, range.row_begin, range.row_end,
                std::span(targets).subspan(range.first, range.last - range.first), window,
                progress);
  }
}

uint64_t longest_row_bytes(const ExpertSource& expert) {
  return std::max({row_bytes(expert.gate), row_bytes(expert.up), row_bytes(expert.down)});
}

}  // namespace

CheckpointTiles::CheckpointTiles(const TensorSource& checkpoint, const ExpertCatalog& catalog,
                                 HeldFormat format)
    : checkpoint_(checkpoint), catalog_(catalog) {
  CHECK_EQ(catalog.moe_layers.size(), catalog.experts.size());
  const int count = kernels::num_tiles(catalog.moe_intermediate_size);
  for (int tile = 0; tile < count; ++tile) {
    layouts_.push_back(kernels::tile_layout(
        format.format_of(catalog.format), catalog.hidden_size, catalog.moe_intermediate_size, tile,
        format.activations_of(catalog.format), format.scales_of(catalog.format)));
  }
}

uint64_t CheckpointTiles::window_bytes_min() const {
  return catalog_.experts.empty() ? 0 : longest_row_bytes(catalog_.experts[0][0]);
}

void CheckpointTiles::read(size_t place, int64_t expert, std::span<const TileTarget> tiles,
                           std::span<std::byte> window, Progress& progress) const {
  const ExpertSource& source = catalog_.experts[place][static_cast<size_t>(expert)];
  for (const Part part : {Part::kGate, Part::kUp, Part::kDown}) {
    fill_part(checkpoint_, part_of(source, part), part, tiles, window, progress);
  }
}

std::unique_ptr<ExpertReader> CheckpointTiles::make_reader(const ReaderOptions& options) const {
  if (options.io == PackIo::kRegistered) {
    throw LoadError(
        "memory is registered with io_uring for packs only, and this is a checkpoint: make a pack "
        "of it "
        "(`atoll pack`) or leave '--io registered' out");
  }
  if (options.window_bytes < window_bytes_min()) {
    throw LoadError(
        fmt::format("a staging window of {} bytes is too small: one row of a matrix has {} bytes",
                    options.window_bytes, window_bytes_min()));
  }
  const auto read_expert = [this](size_t place, int64_t expert, std::span<const TileTarget> tiles,
                                  std::span<std::byte> window) {
    NoProgress progress;
    for (const TileTarget& tile : tiles) std::memset(tile.data, 0, tile.layout->bytes);
    read(place, expert, tiles, window, progress);
  };
  return make_threaded_expert_reader(read_expert, options.num_threads, options.window_bytes);
}

uint64_t CheckpointTiles::memory_bytes(const ReaderOptions& options) const {
  return options.window_bytes * static_cast<uint64_t>(options.num_threads);
}

uint64_t CheckpointTiles::read_bytes(std::span<const int> tiles) const {
  if (tiles.empty()) return 0;
  const auto layout_of = [&](size_t i) -> const TileLayout& {
    return layouts_[static_cast<size_t>(tiles[i])];
  };
  const std::vector<RowRange> ranges = merged_rows(tiles.size(), layout_of);
  uint64_t bytes = 0;
  for (const std::vector<ExpertSource>& layer : catalog_.experts) {
    for (const ExpertSource& expert : layer) {
      for (const RowRange& range : ranges) {
        bytes += source_bytes(expert.gate, range.row_begin, range.row_end);
        bytes += source_bytes(expert.up, range.row_begin, range.row_end);
      }
      bytes += source_bytes(expert.down, 0, expert.down.rows);
    }
  }
  return bytes;
}

}  // namespace atl::storage
