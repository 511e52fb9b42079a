#include "model/open.h"

#include <fmt/format.h>

#include <utility>

#include "base/result.h"
#include "model/conversion_loss.h"
#include "model/gguf_source.h"
#include "storage/checkpoint/checkpoint.h"

namespace atl::model {

namespace {

std::string why_no_mtp_of(const OpenedModel& model) {
  const int64_t layer = model.config.num_hidden_layers;
  std::string why = why_no_mtp(model.config, model.checkpoint);
  if (!why.empty() || !model.pack || model.pack->find_layer(static_cast<int32_t>(layer))) {
    return why;
  }
  return fmt::format(
      "the pack has no experts of layer {}, the next-token layer; pack the "
      "checkpoint again, all layers of it",
      layer);
}

}  // namespace

std::unique_ptr<OpenedModel> open(const std::filesystem::path& model_dir,
                                  std::span<const std::filesystem::path> stripe_dirs,
                                  MtpLayers mtp) {
  std::optional<storage::Pack> pack;
  if (storage::Pack::is_pack(model_dir)) pack = storage::Pack::open(model_dir);
  if (!pack && !stripe_dirs.empty()) {
    throw LoadError(
        fmt::format("{}: not an expert pack: --stripe adds packs to a pack", model_dir.string()));
  }
  ModelConfig config = load_config(model_dir);
  std::unique_ptr<const storage::TensorSource> source =
      pack ? std::make_unique<storage::Checkpoint>(storage::Checkpoint::open(*pack))
           : open_checkpoint(model_dir, config);
  auto opened =
      std::make_unique<OpenedModel>(std::move(config), std::move(pack), std::move(source));
  for (const auto& dir : stripe_dirs) opened->stripes.push_back(storage::Pack::open(dir));
  if (mtp != MtpLayers::kLeaveOut) {
    opened->why_no_mtp = why_no_mtp_of(*opened);
    opened->has_mtp = opened->why_no_mtp.empty();
    if (!opened->has_mtp) mtp = MtpLayers::kLeaveOut;
  }
  opened->catalog = opened->pack ? map_packed_experts(opened->config, *opened->pack, mtp)
                                 : map_experts(opened->config, opened->checkpoint, mtp);
  return opened;
}

NumericsProfile OpenedModel::settle(const NumericsProfile& numerics) const {
  if (pack) return numerics.with_pack(*pack);
  NumericsProfile profile = numerics;
  if (const auto* gguf = dynamic_cast<const GgufSource*>(source.get())) {
    profile = held_of_gguf(gguf->summary(), numerics);
  }
  profile.check();
  return profile;
}

const std::string& OpenedModel::fingerprint() const {
  if (pack) return pack->params().source_fingerprint;
  // 16 reads a shard: 2,608 for DeepSeek-V3.
  std::call_once(sampled_, [this] { fingerprint_ = checkpoint.fingerprint(); });
  return fingerprint_;
}

ModelTensors OpenedModel::tensors() const {
  return map_tensors(config, checkpoint,
                     pack ? RoutedExperts::kInPack : RoutedExperts::kInCheckpoint,
                     has_mtp ? MtpLayers::kFirst : MtpLayers::kLeaveOut);
}

}  // namespace atl::model
