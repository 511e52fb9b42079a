// Tensor names and shapes of the model: which checkpoint tensors each component is made of.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/config.h"
#include "storage/checkpoint.h"
#include "storage/matrix_source.h"

namespace atl::model {

// A BF16 or F32 vector or matrix that is used as it is (norms, embedding, bias).
struct PlainTensor {
  const storage::TensorInfo* tensor = nullptr;
};

struct AttentionTensors {
  storage::MatrixSource q_a_proj;        // absent (weight == nullptr) if q_lora_rank == 0
  PlainTensor q_a_layernorm;             // absent likewise
  storage::MatrixSource q_proj;          // q_b_proj, or q_proj if q_lora_rank == 0
  storage::MatrixSource kv_a_proj_with_mqa;
  PlainTensor kv_a_layernorm;
  storage::MatrixSource kv_b_proj;
  storage::MatrixSource o_proj;
};
struct FfnTensors {  // dense MLP or shared experts
  storage::MatrixSource gate_proj, up_proj, down_proj;
};
struct LayerTensors {
  PlainTensor input_layernorm, post_attention_layernorm;
  AttentionTensors attention;
  FfnTensors ffn;                        // dense MLP, or the shared experts of an MoE layer
  storage::MatrixSource router;          // mlp.gate.weight, BF16 or F32; absent in dense layers
  PlainTensor e_score_correction_bias;   // absent unless noaux_tc
};
// Everything the coordinator loads.
struct ModelTensors {
  storage::MatrixSource embed_tokens;  // BF16 or F32
  PlainTensor norm;
  storage::MatrixSource lm_head;
  std::vector<LayerTensors> layers;
};

// Finds and checks every tensor the model needs (dtype, shape, scales; norms and biases in BF16 or
// F32); MTP layers (index >= num_hidden_layers) are recognised and left out, any other tensor that
// the model doesn't know is refused. LoadError: one line with file and tensor.
ModelTensors map_tensors(const ModelConfig& config, const storage::Checkpoint& checkpoint);
storage::ExpertCatalog map_experts(const ModelConfig& config, const storage::Checkpoint& checkpoint);

}  // namespace atl::model
