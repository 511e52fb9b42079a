// What is served from, opened: the one place that asks whether it is a checkpoint, an expert pack
// or a GGUF model. Who follows is handed what it needs of this.
#pragma once

#include <filesystem>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "model/config.h"
#include "model/numerics_profile.h"
#include "model/weights_map.h"
#include "storage/checkpoint/matrix_source.h"
#include "storage/checkpoint/tensor_source.h"
#include "storage/pack/pack.h"

namespace atl::model {

// Immutable; read by any thread. The catalog points into checkpoint or packs: it stays where it is.
struct OpenedModel {
  OpenedModel(ModelConfig config_in, std::optional<storage::Pack> pack_in,
              std::unique_ptr<const storage::TensorSource> source_in)
      : config(std::move(config_in)),
        pack(std::move(pack_in)),
        source(std::move(source_in)),
        checkpoint(*source) {}

  ModelConfig config;
  std::optional<storage::Pack> pack;
  std::vector<storage::Pack> stripes;  // further ones, on other drives
  const std::unique_ptr<const storage::TensorSource> source;
  const storage::TensorSource& checkpoint;  // *source; with a pack: all but the routed experts
  storage::ExpertCatalog catalog;
  bool has_mtp = false;    // the next-token layer is among tensors() and catalog
  std::string why_no_mtp;  // if it was asked for and isn't

  // The profile that the model runs with if this one is asked for: a pack decides the experts'
  // format, and quantized weights of a GGUF file are held in formats of their size unless another
  // is named (held_of_gguf()). LoadError if it can't be.
  NumericsProfile settle(const NumericsProfile& numerics) const;
  // Of the checkpoint's bytes, which are sampled at the first call; a pack of it has the same.
  const std::string& fingerprint() const;
  // What the coordinator loads.
  ModelTensors tensors() const;

 private:
  mutable std::once_flag sampled_;
  mutable std::string fingerprint_;
};

// Headers are read and checked, no weights. LoadError says what is missing or wrong.
//   model_dir    checkpoint (Hugging Face layout), expert pack, or a GGUF model's file
//   stripe_dirs  packs of the same experts on other drives, if model_dir is a pack
//   mtp          kFirst: with the next-token layer, if all of it is there
std::unique_ptr<OpenedModel> open(const std::filesystem::path& model_dir,
                                  std::span<const std::filesystem::path> stripe_dirs = {},
                                  MtpLayers mtp = MtpLayers::kLeaveOut);

}  // namespace atl::model
