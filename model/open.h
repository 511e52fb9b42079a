// A directory that is served from, opened: the one place that asks whether it is a checkpoint or an
// expert pack. Who follows is handed what it needs of this.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "model/config.h"
#include "model/numerics_profile.h"
#include "model/weights_map.h"
#include "storage/checkpoint/checkpoint.h"
#include "storage/checkpoint/matrix_source.h"
#include "storage/pack/pack.h"

namespace atl::model {

// Immutable; read by any thread. The catalog points into checkpoint or packs: it stays where it is.
struct OpenedModel {
  ModelConfig config;
  std::optional<storage::Pack> pack;
  std::vector<storage::Pack> stripes;  // further ones, on other drives
  storage::Checkpoint checkpoint;      // with a pack: all but the routed experts
  storage::ExpertCatalog catalog;

  // The profile that the model runs with if this one is asked for. LoadError if it can't be.
  NumericsProfile settle(const NumericsProfile& numerics) const;
  // Of the checkpoint's bytes; a pack of it has the same.
  std::string fingerprint() const;
  // What the coordinator loads.
  ModelTensors tensors() const;
};

// Headers are read and checked, no weights. LoadError says what is missing or wrong.
//   model_dir    checkpoint (Hugging Face layout) or expert pack
//   stripe_dirs  packs of the same experts on other drives, if model_dir is a pack
std::unique_ptr<OpenedModel> open(const std::filesystem::path& model_dir,
                                  std::span<const std::filesystem::path> stripe_dirs = {});

}  // namespace atl::model
