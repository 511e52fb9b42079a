#include "storage/tile_store.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <mutex>

#include "base/check.h"
#include "base/log.h"
#include "base/units.h"
#include "storage/unit_queue.h"

namespace atl::storage {
namespace {

using kernels::TileLayout;

// A cold tile is read through a window of this size, or of one row if that is more.
constexpr uint64_t kColdWindowBytes = 1 * kMiB;

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
    : TileStore(make_checkpoint_tiles(checkpoint, catalog, format), catalog) {}

TileStore::TileStore(const Pack& pack, const ExpertCatalog& catalog, HeldFormat format)
    : TileStore(make_pack_tiles(pack, catalog, format), catalog) {}

TileStore::TileStore(std::unique_ptr<TileSource> source, const ExpertCatalog& catalog)
    : source_(std::move(source)), catalog_(catalog), layouts_(source_->layouts()) {
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
  return source_->read_bytes(tiles);
}

void TileStore::load(std::span<const int> tiles, int num_threads, size_t window_bytes,
                     Progress& progress) {
  CHECK_GE(num_threads, 1);
  progress.start(read_bytes(tiles));
  try {
    require(tiles);
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
  for (size_t place = 0; place < catalog_.moe_layers.size(); ++place) {
    arenas_.emplace_back(static_cast<size_t>(catalog_.n_routed_experts) * expert_bytes_);
  }
}

void TileStore::read_experts(std::span<const int> tiles, int num_threads, size_t window_bytes,
                             Progress& progress) {
  const int64_t pieces = source_->pieces_per_expert();
  const int64_t experts = catalog_.n_routed_experts;
  const auto num_layers = static_cast<int64_t>(catalog_.moe_layers.size());
  const uint64_t least = source_->window_bytes_min();
  if (window_bytes < least) {
    throw LoadError(
        fmt::format("a staging window of {} bytes is too small: one row of a matrix has "
                    "{} bytes",
                    window_bytes, least));
  }
  const auto fill = [&](int64_t unit, std::span<std::byte> window) {
    const int64_t expert = unit / pieces % experts;
    const auto place = static_cast<size_t>(unit / pieces / experts);
    std::byte* const extent = arenas_[place].data() + static_cast<uint64_t>(expert) * expert_bytes_;
    std::vector<TileTarget> targets;
    for (const int tile : tiles) {
      const auto index = static_cast<size_t>(tile);
      targets.push_back({&layouts_[index], extent + offset_of_tile_[index]});
    }
    source_->read(place, expert, unit % pieces, targets, window, progress);
  };
  run_units(num_layers * experts * pieces, num_threads, [&]() -> UnitWorker {
    const auto window = std::make_shared<HostBuffer>(least == 0 ? 0 : window_bytes);
    return [&fill, window](int64_t unit) { fill(unit, window->span()); };
  });
}

// Before any memory is taken: what the source leaves out can't be loaded.
void TileStore::require(std::span<const int> tiles) const {
  for (size_t place = 0; place < catalog_.moe_layers.size(); ++place) {
    for (const int tile : tiles) {
      if (const Status status = source_->has(place, tile); !status) {
        throw LoadError(status.error().message);
      }
    }
  }
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

  if (const Status status = source_->has(place, tile); !status) return status.error();
  if (!source_->reads_tiles_alone()) warn_once_about_cold_reads();
  cold_reads_.fetch_add(1, std::memory_order_relaxed);
  const uint64_t least = source_->window_bytes_min();
  HostBuffer extent, window;
  try {
    extent = HostBuffer(layout.bytes);
    if (least > 0) window = HostBuffer(std::max(kColdWindowBytes, least));
  } catch (const LoadError& error) {
    return Error{ErrorCode::kOverloaded, error.what()};
  }
  try {
    const TileTarget target{&layout, extent.data()};
    NoProgress progress;
    for (int64_t piece = 0; piece < source_->pieces_per_expert(); ++piece) {
      source_->read(place, key.expert, piece, std::span(&target, 1), window.span(), progress);
    }
  } catch (const LoadError& error) {
    return Error{ErrorCode::kCorrupt, error.what()};
  }
  const std::byte* data = extent.data();
  return PinnedTile(kernels::TileView{&layout, data}, std::move(extent));
}

uint64_t TileStore::cold_reads() const { return cold_reads_.load(std::memory_order_relaxed); }

}  // namespace atl::storage
