#include <fmt/format.h>

#include "base/result.h"
#include "storage/pack.h"
#include "storage/tile_source.h"

namespace atl::storage {
namespace {

using kernels::TileLayout;

class PackTiles final : public TileSource {
 public:
  PackTiles(const Pack& pack, const ExpertCatalog& catalog, HeldFormat format)
      : pack_(pack), catalog_(catalog) {
    check_shape();
    check_format(format);
    for (const int32_t layer : catalog.moe_layers) places_.push_back(pack.find_layer(layer));
    PackParams params = pack.params();
    if (params.format == kernels::WeightFormat::kInt4) params.activations = format.activations;
    const PackGeometry geometry(params);
    layouts_.assign(geometry.layouts().begin(), geometry.layouts().end());
  }

  std::span<const TileLayout> layouts() const override { return layouts_; }
  Status has(size_t place, int tile) const override {
    const PackGeometry& geometry = pack_.geometry();
    if (!places_[place]) return missing(fmt::format("layer {}", catalog_.moe_layers[place]));
    if (tile < geometry.tile_begin() || tile >= geometry.tile_end()) {
      return missing(fmt::format("tile {} (it has tiles {}-{})", tile, geometry.tile_begin(),
                                 geometry.tile_end() - 1));
    }
    return {};
  }
  uint64_t read_bytes(std::span<const int> tiles) const override {
    uint64_t bytes = 0;
    for (const int tile : tiles) bytes += layouts_[static_cast<size_t>(tile)].bytes;
    return bytes * catalog_.moe_layers.size() * static_cast<uint64_t>(catalog_.n_routed_experts);
  }
  int64_t pieces_per_expert() const override { return 1; }
  uint64_t window_bytes_min() const override { return 0; }
  bool reads_tiles_alone() const override { return true; }

  // Neighbours in the file that are neighbours in memory are one read.
  void read(size_t place, int64_t expert, int64_t, std::span<const TileTarget> tiles,
            std::span<std::byte>, Progress& progress) const override {
    while (!tiles.empty()) {
      size_t count = 1;
      size_t bytes = tiles[0].layout->bytes;
      while (count < tiles.size() && tiles[count].data == tiles[0].data + bytes &&
             tiles[count].layout->tile == tiles[count - 1].layout->tile + 1) {
        bytes += tiles[count++].layout->bytes;
      }
      const Status status = pack_.read_tiles(*places_[place], expert, tiles[0].layout->tile,
                                             static_cast<int>(count), {tiles[0].data, bytes});
      if (!status) throw LoadError(status.error().message);
      progress.advance(bytes);
      tiles = tiles.subspan(count);
    }
  }

 private:
  Status missing(const std::string& what) const {
    return Error{ErrorCode::kUnavailable,
                 fmt::format("{}: the pack leaves out {}: pack it, too, or use a pack that has it",
                             pack_.directory().string(), what)};
  }
  void check_shape() const {
    const PackParams& params = pack_.params();
    const auto check = [&](const char* name, int64_t found, int64_t expected) {
      if (found == expected) return;
      throw LoadError(fmt::format("{}: {} of the pack is {}, config.json says {}",
                                  pack_.directory().string(), name, found, expected));
    };
    check("hidden_size", params.hidden_size, catalog_.hidden_size);
    check("moe_intermediate_size", params.moe_intermediate_size, catalog_.moe_intermediate_size);
    check("n_routed_experts", params.n_routed_experts, catalog_.n_routed_experts);
  }
  void check_format(HeldFormat format) const {
    if (format.format_of(pack_.params().format) == pack_.params().format) return;
    throw LoadError(fmt::format(
        "{}: the pack holds experts in {}, not in {}: leave --format out, or pack again with it",
        pack_.directory().string(), to_string(pack_.params().format), to_string(*format.weights)));
  }

  const Pack& pack_;
  const ExpertCatalog& catalog_;
  std::vector<std::optional<size_t>> places_;  // by place in the catalog
  std::vector<TileLayout> layouts_;
};

}  // namespace

std::unique_ptr<TileSource> make_pack_tiles(const Pack& pack, const ExpertCatalog& catalog,
                                            HeldFormat format) {
  return std::make_unique<PackTiles>(pack, catalog, format);
}

}  // namespace atl::storage
