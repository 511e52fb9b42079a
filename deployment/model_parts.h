// What coordinator and node both make of an opened model and the user's options: its identity and
// the store of its experts' tiles.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "deployment/memory_options.h"
#include "model/open.h"
#include "storage/tiles/tile_store.h"
#include "transport/control/control.h"

namespace atl::deployment {

// Read from the checkpoint in steps of this size by each loading thread; at least one row of any
// matrix must fit (dense down_proj of V3: 18432 bytes).
inline constexpr size_t kStagingWindowBytes = size_t{8} << 20;

// How a node keeps its tiles.
struct TileStorePlan {
  MemoryOptions memory;
  uint64_t reserved_bytes = 0;  // of the budget, for what is not tiles
  int num_threads = 1;          // that read a checkpoint
  // TileStoreOptions::admit; may be empty.
  std::function<void(uint64_t ram_bytes)> admit;
};

// Both take a settled profile. Checkpoint and packs of it have the same identity.
transport::ModelIdentity identity_of(const model::OpenedModel& model,
                                     const model::NumericsProfile& numerics);
// Borrows the model. LoadError if it can't be kept as asked for.
std::unique_ptr<storage::TileStore> open_tiles(const model::OpenedModel& model,
                                               const model::NumericsProfile& numerics,
                                               const TileStorePlan& plan);

}  // namespace atl::deployment
