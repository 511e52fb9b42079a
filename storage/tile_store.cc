#include "storage/tile_store.h"

#include <fmt/format.h>

#include <algorithm>
#include <exception>
#include <mutex>
#include <thread>

#include "base/check.h"
#include "base/log.h"
#include "base/units.h"

namespace atl::storage {
namespace {

using kernels::TileLayout;

// A cold tile is read through a window of this size, or of one row if that is more.
constexpr uint64_t kColdWindowBytes = 1 * kMiB;

enum class Part { kGate, kUp, kDown };
constexpr int kNumParts = 3;

// One tile of one expert that is to be filled.
struct TileTarget {
  const TileLayout* layout = nullptr;
  std::byte* data = nullptr;  // the tile's extent, zero-filled
};

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
void fill_part(const Checkpoint& checkpoint, const MatrixSource& matrix, Part part,
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

// Hands out units 0 .. num_units - 1 to threads and keeps the first exception: the others stop
// after their unit.
class UnitQueue {
 public:
  explicit UnitQueue(int64_t num_units) : num_units_(num_units) {}

  template <typename Work>
  void run(Work work) {
    try {
      while (!failed_.load(std::memory_order_relaxed)) {
        const int64_t unit = next_.fetch_add(1, std::memory_order_relaxed);
        if (unit >= num_units_) return;
        work(unit);
      }
    } catch (...) {
      keep(std::current_exception());
    }
  }
  void keep(std::exception_ptr error) {
    const std::lock_guard lock(mutex_);
    failed_ = true;
    if (!error_) error_ = std::move(error);
  }
  void rethrow() {
    if (error_) std::rethrow_exception(error_);
  }

 private:
  const int64_t num_units_;
  std::atomic<int64_t> next_{0};
  std::atomic<bool> failed_{false};
  std::mutex mutex_;
  std::exception_ptr error_;
};

void warn_once_about_cold_reads() {
  static std::once_flag warned;
  std::call_once(warned, [] {
    log_warn(
        "expert tiles that are not in RAM are read from an unpacked checkpoint and re-laid at "
        "each use: slow; keep more tiles in RAM");
  });
}

}  // namespace

TileStore::TileStore(const Checkpoint& checkpoint, const ExpertCatalog& catalog, HeldFormat format)
    : checkpoint_(checkpoint), catalog_(catalog) {
  CHECK_EQ(catalog.moe_layers.size(), catalog.experts.size());
  const int count = kernels::num_tiles(catalog.moe_intermediate_size);
  for (int tile = 0; tile < count; ++tile) {
    layouts_.push_back(kernels::tile_layout(
        format.format_of(catalog.format), catalog.hidden_size, catalog.moe_intermediate_size, tile,
        format.activations_of(catalog.format), format.scales_of(catalog.format)));
  }
  offset_of_tile_.assign(layouts_.size(), -1);
  place_of_layer_.assign(static_cast<size_t>(catalog.num_layers), -1);
  for (size_t place = 0; place < catalog.moe_layers.size(); ++place) {
    place_of_layer_.at(static_cast<size_t>(catalog.moe_layers[place])) = static_cast<int>(place);
  }
}

uint64_t TileStore::resident_bytes(std::span<const int> tiles) const {
  check_tiles(tiles);
  uint64_t bytes = 0;
  for (const int tile : tiles) bytes += layouts_[static_cast<size_t>(tile)].bytes;
  return bytes * catalog_.moe_layers.size() * static_cast<uint64_t>(catalog_.n_routed_experts);
}

uint64_t TileStore::read_bytes(std::span<const int> tiles) const {
  check_tiles(tiles);
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

void TileStore::load(std::span<const int> tiles, int num_threads, size_t window_bytes,
                     Progress& progress) {
  CHECK_GE(num_threads, 1);
  progress.start(read_bytes(tiles));
  try {
    place_tiles(tiles);
    if (!tiles.empty()) read_experts(tiles, num_threads, window_bytes, progress);
  } catch (...) {
    place_tiles({});
    throw;
  }
}

void TileStore::check_tiles(std::span<const int> tiles) const {
  for (size_t i = 0; i < tiles.size(); ++i) {
    const bool ascending = i == 0 || tiles[i - 1] < tiles[i];
    if (!ascending || tiles[i] < 0 || tiles[i] >= num_tiles()) {
      throw LoadError(fmt::format("tile {} in a tile list: expected ascending tiles from 0 to {}",
                                  tiles[i], num_tiles() - 1));
    }
  }
}

// Frees what was resident before it takes memory for the new tiles.
void TileStore::place_tiles(std::span<const int> tiles) {
  arenas_.clear();
  resident_.clear();
  offset_of_tile_.assign(layouts_.size(), -1);
  expert_bytes_ = 0;
  for (const int tile : tiles) {
    resident_.push_back(tile);
    offset_of_tile_[static_cast<size_t>(tile)] = static_cast<int64_t>(expert_bytes_);
    expert_bytes_ += layouts_[static_cast<size_t>(tile)].bytes;
  }
  if (tiles.empty()) return;
  for (const std::vector<ExpertSource>& layer : catalog_.experts) {
    arenas_.emplace_back(layer.size() * expert_bytes_);
  }
}

void TileStore::read_experts(std::span<const int> tiles, int num_threads, size_t window_bytes,
                             Progress& progress) {
  // A unit is one matrix of one expert: three threads may fill one tile, each its own bytes.
  const int64_t experts = catalog_.n_routed_experts;
  const int64_t num_units = static_cast<int64_t>(catalog_.experts.size()) * experts * kNumParts;
  if (num_units == 0) return;
  const uint64_t row = longest_row_bytes(catalog_.experts[0][0]);
  if (window_bytes < row) {
    throw LoadError(
        fmt::format("a staging window of {} bytes is too small: one row of a matrix has "
                    "{} bytes",
                    window_bytes, row));
  }
  const auto fill = [&](int64_t unit, std::span<std::byte> window) {
    const auto part = static_cast<Part>(unit % kNumParts);
    const auto expert = static_cast<size_t>(unit / kNumParts % experts);
    const auto place = static_cast<size_t>(unit / kNumParts / experts);
    std::vector<TileTarget> targets;
    for (const int tile : tiles) {
      targets.push_back(
          {&layouts_[static_cast<size_t>(tile)], arenas_[place].data() + expert * expert_bytes_ +
                                                     offset_of_tile_[static_cast<size_t>(tile)]});
    }
    fill_part(checkpoint_, part_of(catalog_.experts[place][expert], part), part, targets, window,
              progress);
  };

  UnitQueue queue(num_units);
  const auto member = [&] {
    try {
      HostBuffer window(window_bytes);
      queue.run([&](int64_t unit) { fill(unit, window.span()); });
    } catch (...) {
      queue.keep(std::current_exception());
    }
  };
  std::vector<std::thread> threads;
  const auto started = std::min<int64_t>(num_threads, num_units) - 1;
  try {
    for (int64_t i = 0; i < started; ++i) threads.emplace_back(member);
  } catch (const std::system_error& error) {
    // The system refuses more threads: those that are there do the work.
    log_warn("loading with {} threads instead of {}: {}", threads.size() + 1, started + 1,
             error.what());
  }
  member();
  for (std::thread& thread : threads) thread.join();
  queue.rethrow();
}

Status TileStore::check_key(ExpertKey key, int tile) const {
  const bool known_layer = key.layer >= 0 && key.layer < catalog_.num_layers &&
                           place_of_layer_[static_cast<size_t>(key.layer)] >= 0;
  if (!known_layer) {
    return Error{ErrorCode::kInvalid, fmt::format("layer {} has no routed experts", key.layer)};
  }
  if (key.expert < 0 || key.expert >= catalog_.n_routed_experts) {
    return Error{ErrorCode::kInvalid,
                 fmt::format("expert {}/{}: expected an expert from 0 to {}", key.layer, key.expert,
                             catalog_.n_routed_experts - 1)};
  }
  if (tile < 0 || tile >= num_tiles()) {
    return Error{ErrorCode::kInvalid,
                 fmt::format("tile {} of expert {}/{}: expected a tile from 0 to {}", tile,
                             key.layer, key.expert, num_tiles() - 1)};
  }
  return {};
}

Result<PinnedTile> TileStore::pin(ExpertKey key, int tile) {
  if (const Status status = check_key(key, tile); !status) return status.error();
  const auto place = static_cast<size_t>(place_of_layer_[static_cast<size_t>(key.layer)]);
  const auto expert_index = static_cast<size_t>(key.expert);
  const TileLayout& layout = layouts_[static_cast<size_t>(tile)];
  const int64_t offset = offset_of_tile_[static_cast<size_t>(tile)];
  if (offset >= 0) {
    const std::byte* data = arenas_[place].data() + expert_index * expert_bytes_ + offset;
    return PinnedTile(kernels::TileView{&layout, data}, HostBuffer());
  }

  warn_once_about_cold_reads();
  cold_reads_.fetch_add(1, std::memory_order_relaxed);
  const ExpertSource& expert = catalog_.experts[place][expert_index];
  HostBuffer extent, window;
  try {
    extent = HostBuffer(layout.bytes);
    window = HostBuffer(std::max(kColdWindowBytes, longest_row_bytes(expert)));
  } catch (const LoadError& error) {
    return Error{ErrorCode::kOverloaded, error.what()};
  }
  try {
    const TileTarget target{&layout, extent.data()};
    NoProgress progress;
    for (const Part part : {Part::kGate, Part::kUp, Part::kDown}) {
      fill_part(checkpoint_, part_of(expert, part), part, std::span(&target, 1), window.span(),
                progress);
    }
  } catch (const LoadError& error) {
    return Error{ErrorCode::kCorrupt, error.what()};
  }
  const std::byte* data = extent.data();
  return PinnedTile(kernels::TileView{&layout, data}, std::move(extent));
}

uint64_t TileStore::cold_reads() const { return cold_reads_.load(std::memory_order_relaxed); }

}  // namespace atl::storage
