#include <fmt/format.h>

#include <algorithm>

#include "base/check.h"
#include "base/result.h"
#include "base/units.h"
#include "storage/pack/pack.h"
#include "storage/pack/pack_reader.h"
#include "storage/tiles/tile_source.h"

namespace atl::storage {
namespace {

using kernels::TileLayout;

// Rings, and what stands for the reads under way, of each drive.
constexpr uint64_t kReaderBytes = 1 * kMiB;

void check_shape(const Pack& pack, const ExpertCatalog& catalog) {
  const PackParams& params = pack.params();
  const auto check = [&](const char* name, int64_t found, int64_t expected) {
    if (found == expected) return;
    throw LoadError(fmt::format("{}: {} of the pack is {}, config.json says {}",
                                pack.directory().string(), name, found, expected));
  };
  check("hidden_size", params.hidden_size, catalog.hidden_size);
  check("moe_intermediate_size", params.moe_intermediate_size, catalog.moe_intermediate_size);
  check("n_routed_experts", params.n_routed_experts, catalog.n_routed_experts);
}

// Two packs of the same tiles in the same form may leave out different ones.
void check_same_form(const Pack& pack, const Pack& first) {
  PackParams params = pack.params();
  params.layers = first.params().layers;
  params.tile_begin = first.params().tile_begin;
  params.tile_end = first.params().tile_end;
  const std::string differs = difference(params, first.params());
  if (differs.empty()) return;
  throw LoadError(fmt::format("{}: can't be read together with {}: {}", pack.directory().string(),
                              first.directory().string(), differs));
}

class PackTiles final : public TileSource {
 public:
  PackTiles(std::span<const Pack* const> packs, const ExpertCatalog& catalog, HeldFormat format)
      : packs_(packs.begin(), packs.end()), catalog_(catalog) {
    check_packs_fit(packs, catalog);
    const Pack& first = *packs_.front();
    check_format(first, format);
    for (const Pack* pack : packs_) {
      auto& places = places_.emplace_back();
      for (const int32_t layer : catalog.moe_layers) places.push_back(pack->find_layer(layer));
    }
    PackParams params = first.params();
    if (params.format == kernels::WeightFormat::kInt4) params.activations = format.activations;
    const PackGeometry geometry(params);
    layouts_.assign(geometry.layouts().begin(), geometry.layouts().end());
  }

  std::span<const TileLayout> layouts() const override { return layouts_; }
  Status has(size_t place, int tile) const override {
    bool layer_here = false;
    for (size_t p = 0; p < packs_.size(); ++p) {
      if (holds(p, place, tile)) return {};
      layer_here = layer_here || places_[p][place].has_value();
    }
    if (!layer_here) return missing(fmt::format("layer {}", catalog_.moe_layers[place]));
    std::string tiles;
    for (const Pack* pack : packs_) {
      tiles += fmt::format("{}{}-{}", tiles.empty() ? "" : ", ", pack->geometry().tile_begin(),
                           pack->geometry().tile_end() - 1);
    }
    return missing(fmt::format("tile {} (it has tiles {})", tile, tiles));
  }
  uint64_t read_bytes(std::span<const int> tiles) const override {
    uint64_t bytes = 0;
    for (const int tile : tiles) bytes += layouts_[static_cast<size_t>(tile)].bytes;
    return bytes * catalog_.moe_layers.size() * static_cast<uint64_t>(catalog_.n_routed_experts);
  }
  bool reads_tiles_alone() const override { return true; }
  std::unique_ptr<ExpertReader> make_reader(const ReaderOptions& options) const override {
    ExtentQueueOptions queue;
    queue.io = options.io;
    return make_pack_expert_reader(packs_, catalog_, queue, options.make_queue);
  }
  uint64_t memory_bytes(const ReaderOptions&) const override {
    uint64_t bytes = 0;
    for (const Pack* pack : packs_) {
      bytes += kReaderBytes + pack->params().layers.size() * pack->geometry().head_bytes();
    }
    return bytes;
  }

 private:
  bool holds(size_t p, size_t place, int tile) const {
    const PackGeometry& geometry = packs_[p]->geometry();
    return places_[p][place] && tile >= geometry.tile_begin() && tile < geometry.tile_end();
  }
  Status missing(const std::string& what) const {
    std::string directories;
    for (const Pack* pack : packs_) {
      directories += (directories.empty() ? "" : ", ") + pack->directory().string();
    }
    return Error{ErrorCode::kUnavailable,
                 fmt::format("{}: the pack leaves out {}: pack it, too, or use a pack that has it",
                             directories, what)};
  }
  static void check_format(const Pack& pack, HeldFormat format) {
    const kernels::WeightFormat held = pack.params().format;
    if (format.format_of(held) == held) return;
    throw LoadError(fmt::format(
        "{}: the pack holds experts in {}, not in {}: leave --format out, or pack again with it",
        pack.directory().string(), to_string(held), to_string(*format.weights)));
  }

  const std::vector<const Pack*> packs_;
  const ExpertCatalog& catalog_;
  std::vector<std::vector<std::optional<size_t>>> places_;  // by pack, then by place in the catalog
  std::vector<TileLayout> layouts_;
};

}  // namespace

void check_packs_fit(std::span<const Pack* const> packs, const ExpertCatalog& catalog) {
  CHECK(!packs.empty());
  for (const Pack* pack : packs) {
    check_shape(*pack, catalog);
    check_same_form(*pack, *packs.front());
  }
}

std::unique_ptr<TileSource> make_pack_tiles(std::span<const Pack* const> packs,
                                            const ExpertCatalog& catalog, HeldFormat format) {
  return std::make_unique<PackTiles>(packs, catalog, format);
}

}  // namespace atl::storage
