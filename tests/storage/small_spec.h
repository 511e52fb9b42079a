// A checkpoint of a few hundred kilobytes whose experts have the shape that a test wants.
#pragma once

#include <cstdint>

#include "model/synthetic.h"

namespace atl::storage {

// A V3 model of `layers` layers, the first one dense, and `mtp_layers` behind them; shards of 1
// MiB.
inline model::SyntheticSpec small_spec(int64_t intermediate, int64_t hidden, int64_t experts,
                                       int64_t layers, int64_t mtp_layers) {
  model::SyntheticSpec spec;
  model::ModelConfig& c = spec.config;
  c.vocab_size = 64;
  c.hidden_size = hidden;
  c.intermediate_size = 96;
  c.moe_intermediate_size = intermediate;
  c.num_hidden_layers = layers;
  c.first_k_dense_replace = 1;
  c.num_nextn_predict_layers = mtp_layers;
  c.num_attention_heads = 2;
  c.q_lora_rank = 24;
  c.kv_lora_rank = 32;
  c.qk_nope_head_dim = 16;
  c.qk_rope_head_dim = 8;
  c.v_head_dim = 16;
  c.n_routed_experts = experts;
  c.n_shared_experts = 1;
  c.num_experts_per_tok = 2;
  c.max_position_embeddings = 128;
  spec.shard_bytes = 1 << 20;
  return spec;
}

}  // namespace atl::storage
