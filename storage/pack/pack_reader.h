// Packs of the same experts, on one drive or several, read together (docs/disk.md).
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "storage/checkpoint/matrix_source.h"
#include "storage/io/extent_queue.h"
#include "storage/pack/pack.h"
#include "storage/tiles/expert_reader.h"
#include "storage/tiles/tile_source.h"

namespace atl::storage {

// LoadError, in one line, unless all packs hold tiles of the same experts in the same form: made
// from the same checkpoint, of the same format, and of the shape that the catalog says. They may
// hold different layers and tiles, or the same ones. At least one pack.
void check_packs_fit(std::span<const Pack* const> packs, const ExpertCatalog& catalog);

// Reads tiles as ExpertReader says, each pack's by an ExtentQueue of its own: a pack is taken for a
// drive. Tiles that several packs hold are read from the one with the least to do. A tile that
// can't be read or is wrong is read once more, then from each other pack that holds it, then
// reported with file and offset. Only tiles that one of the packs holds may be asked for. Packs and
// catalog are borrowed and must outlive the reader. LoadError: see check_packs_fit().
std::unique_ptr<ExpertReader> make_pack_expert_reader(
    std::span<const Pack* const> packs, const ExpertCatalog& catalog,
    const ExtentQueueOptions& options = {}, const MakeExtentQueue& make_queue = make_extent_queue);

// The tiles that at least one of the packs holds. All are borrowed and must outlive the source.
// LoadError as check_packs_fit(), and for another format than asked for.
std::unique_ptr<TileSource> make_pack_tiles(std::span<const Pack* const> packs,
                                            const ExpertCatalog& catalog, HeldFormat format);

}  // namespace atl::storage
