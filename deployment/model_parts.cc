#include "deployment/model_parts.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/result.h"
#include "base/units.h"

namespace atl::deployment {

transport::ModelIdentity identity_of(const model::OpenedModel& model,
                                     const model::NumericsProfile& numerics) {
  transport::ModelIdentity identity;
  identity.checkpoint_fingerprint = model.fingerprint();
  if (!model.config.has_experts()) {
    identity.model = fmt::format("{}, {} layers, hidden {}", model.config.model_type,
                                 model.config.num_hidden_layers, model.config.hidden_size);
    identity.profile = "f32 arithmetic, grouped attention, " + numerics.describe_dense();
    return identity;
  }
  identity.model =
      fmt::format("{}, {} layers, hidden {}, {} experts of {}", model.config.model_type,
                  model.config.num_hidden_layers, model.config.hidden_size,
                  model.config.n_routed_experts, model.config.moe_intermediate_size);
  identity.profile =
      "f32 arithmetic, absorbed attention, " + numerics.describe(model.catalog.format);
  return identity;
}

std::unique_ptr<storage::TileStore> open_tiles(const model::OpenedModel& model,
                                               const model::NumericsProfile& numerics,
                                               const TileStorePlan& plan) {
  const MemoryOptions& memory = plan.memory;
  storage::TileStoreOptions options;
  if (memory.ram_budget) {
    options.ram_bytes_max = *memory.ram_budget - std::min(*memory.ram_budget, plan.reserved_bytes);
  }
  options.eviction =
      memory.evict == Evict::kLru ? storage::Eviction::kLru : storage::Eviction::kLfu;
  options.usage_file = memory.usage_file;
  options.first_usage = memory.first_usage;
  options.checkpoint_fingerprint = model.fingerprint();
  options.reader.io = memory.io;
  options.reader.num_threads = plan.num_threads;
  options.reader.window_bytes = kStagingWindowBytes;
  options.admit = plan.admit;
  std::unique_ptr<storage::TileStore> tiles;
  if (model.pack) {
    std::vector<const storage::Pack*> packs = {&*model.pack};
    for (const storage::Pack& stripe : model.stripes) packs.push_back(&stripe);
    tiles = std::make_unique<storage::TileStore>(packs, model.catalog, numerics.experts(), options);
  } else {
    tiles = std::make_unique<storage::TileStore>(model.checkpoint, model.catalog,
                                                 numerics.experts(), options);
  }
  const uint64_t least = plan.reserved_bytes + tiles->ram_bytes_min();
  if (memory.ram_budget && *memory.ram_budget < least) {
    throw LoadError(fmt::format(
        "RAM budget of {} (--ram-budget, or `ram` of the cluster file): expected at least {}: {} "
        "for "
        "the buffers of a step, {} for tables, "
        "reading and two tiles; fewer rows per step need less (--chunk, or --rows-max of a node)",
        format_bytes(*memory.ram_budget), format_bytes(least), format_bytes(plan.reserved_bytes),
        format_bytes(tiles->ram_bytes_min())));
  }
  return tiles;
}

}  // namespace atl::deployment
