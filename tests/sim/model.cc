#include "tests/sim/model.h"

#include <algorithm>

#include "model/synthetic.h"
#include "storage/pack/pack_writer.h"

namespace atl::sim {
namespace {

model::SyntheticSpec spec_of(int64_t hidden_size, int64_t moe_intermediate_size,
                             int64_t num_layers) {
  model::SyntheticSpec spec;
  model::ModelConfig& c = spec.config;
  c.architecture = model::Architecture::kDeepseekV3;
  c.model_type = "deepseek_v3";
  c.vocab_size = 96;
  c.hidden_size = hidden_size;
  c.intermediate_size = 48;
  c.moe_intermediate_size = moe_intermediate_size;
  c.num_hidden_layers = num_layers;
  c.first_k_dense_replace = 1;
  c.num_attention_heads = 2;
  c.q_lora_rank = 16;
  c.kv_lora_rank = 16;
  c.qk_nope_head_dim = 8;
  c.qk_rope_head_dim = 8;
  c.v_head_dim = 8;
  c.n_routed_experts = 8;
  c.n_shared_experts = 1;
  c.num_experts_per_tok = 3;
  c.n_group = 2;
  c.topk_group = 2;
  c.routed_scaling_factor = 2.5;
  c.rope_theta = 10000;
  c.max_position_embeddings = 512;
  c.bos_token_id = 0;
  c.eos_token_ids = {1};
  spec.seed = 7;
  return spec;
}

}  // namespace

Model::Model(int64_t hidden_size, int64_t moe_intermediate_size, int64_t num_layers)
    : team_(std::make_unique<ThreadTeam>(1)) {
  const auto checkpoint = dir_ / "checkpoint", pack = dir_ / "pack";
  model::write_synthetic_checkpoint(checkpoint,
                                    spec_of(hidden_size, moe_intermediate_size, num_layers));
  checkpoint_ = model::open(checkpoint);
  NoProgress silent;
  storage::write_pack(checkpoint_->checkpoint, checkpoint_->catalog, pack, {}, silent);
  packed_ = model::open(pack);
  for (size_t place = 0; place < packed_->pack->params().layers.size(); ++place) {
    image_.push_back(test::read_file(packed_->pack->layer_file(place)));
  }
  weights_ = coordinator::Weights::load(config(), checkpoint_->tensors(), checkpoint_->checkpoint,
                                        {}, 1, size_t{1} << 20, silent);
}

int Model::num_tiles() const { return kernels::num_tiles(config().moe_intermediate_size); }

uint64_t Model::tile_bytes() const {
  uint64_t most = 0;
  for (const auto& layout : pack().geometry().layouts()) {
    most = std::max<uint64_t>(most, layout.bytes);
  }
  return most;
}

transport::ModelIdentity Model::identity() const {
  return {"simulated", checkpoint_->fingerprint(), "f32"};
}

transport::WireLimits Model::limits() const {
  transport::WireLimits limits;
  limits.rows_max = kRowsMax;
  limits.hidden_size = static_cast<uint32_t>(config().hidden_size);
  limits.top_k = static_cast<uint32_t>(config().num_experts_per_tok);
  limits.num_layers = static_cast<uint32_t>(config().num_hidden_layers);
  limits.n_routed_experts = static_cast<uint32_t>(config().n_routed_experts);
  limits.num_tiles = static_cast<uint32_t>(num_tiles());
  return limits;
}

}  // namespace atl::sim
