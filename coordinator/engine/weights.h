// The coordinator's weights in memory: everything but the routed experts, packed into panels.
#pragma once

#include <cstdint>
#include <optional>
#include <variant>
#include <vector>

#include "base/memory.h"
#include "base/progress.h"
#include "kernels/panel.h"
#include "model/config.h"
#include "model/weights_map.h"
#include "storage/checkpoint/matrix_source.h"
#include "storage/checkpoint/tensor_source.h"

namespace atl::coordinator {

// A weight matrix [outputs, k] as panels; empty if the model has none.
struct Linear {
  kernels::PanelMatrix matrix;
  explicit operator bool() const { return matrix.codes != nullptr; }
};

struct MlaWeights {
  Linear q_a_proj;                    // [q_lora_rank, hidden]; empty if q_lora_rank == 0
  std::vector<float> q_a_layernorm;   // [q_lora_rank]; empty likewise
  Linear q_proj;                      // [heads * (nope + rope), q_lora_rank or hidden]
  Linear kv_a_proj;                   // [kv_lora_rank + rope, hidden]
  std::vector<float> kv_a_layernorm;  // [kv_lora_rank]
  // kv_b_proj cut per head for the absorbed form (docs/model.md 3.2):
  std::vector<Linear> w_k;  // [heads] of [kv_lora_rank, nope]: q~ = q_nope Wk (transposed rows)
  std::vector<Linear> w_v;  // [heads] of [v_head_dim, kv_lora_rank]: o = o~ Wv^T
  Linear o_proj;            // [hidden, heads * v]
};

struct GqaWeights {
  Linear q_proj;                              // [heads * head_dim, hidden]
  Linear k_proj, v_proj;                      // [key-value heads * head_dim, hidden]
  Linear o_proj;                              // [hidden, heads * head_dim]
  std::vector<float> q_bias, k_bias, v_bias;  // empty: none
};
using AttentionWeights = std::variant<MlaWeights, GqaWeights>;  // the model's AttentionKind

struct FfnWeights {           // dense MLP, or the shared experts as one
  Linear gate_proj, up_proj;  // [intermediate, hidden]
  Linear down_proj;           // [hidden, intermediate]
  explicit operator bool() const { return static_cast<bool>(gate_proj); }
};

struct LayerWeights {
  std::vector<float> input_layernorm, post_attention_layernorm;  // [hidden]
  AttentionWeights attention;
  FfnWeights ffn;                              // of an MoE layer without shared experts: empty
  Linear router;                               // [n_routed_experts, hidden]; empty in dense layers
  std::vector<float> e_score_correction_bias;  // [n_routed_experts], noaux_tc only
};

// The next-token layer (docs/model.md 4). Head and embedding are the model's.
struct MtpWeights {
  std::vector<float> enorm, hnorm;  // [hidden]
  Linear of_embedding, of_hidden;   // [hidden, hidden]: the two halves of eh_proj
  LayerWeights layer;
  std::vector<float> norm;  // [hidden] before the head
};

// Immutable after load; read by any thread.
class Weights {
 public:
  // Reads and packs in parallel, linear layers in `format` (the router as it is, which is small and
  // decides who computes); each thread streams through a window of window_bytes, so peak
  // memory is weights + windows. Total bytes to read are told to progress first. LoadError names
  // file and tensor.
  static Weights load(const model::ModelConfig& config, const model::ModelTensors& tensors,
                      const storage::TensorSource& checkpoint, const storage::HeldFormat& format,
                      int num_threads, size_t window_bytes, Progress& progress);
  // What bytes() will be, without loading anything.
  static uint64_t held_bytes(const model::ModelConfig& config, const model::ModelTensors& tensors,
                             const storage::HeldFormat& format);
  // Bytes load() reads.
  static uint64_t read_bytes(const model::ModelTensors& tensors, const storage::HeldFormat& format);

  // FP32 embedding row of a token.
  void embed(int32_t token, float* out) const;

  const std::vector<LayerWeights>& layers() const { return layers_; }
  const MtpWeights* mtp() const { return mtp_ ? &*mtp_ : nullptr; }  // nullptr: none loaded
  const std::vector<float>& norm() const { return norm_; }
  const Linear& lm_head() const { return lm_head_; }
  uint64_t bytes() const;  // of matrices and embedding; norms and biases are some KB a layer

 private:
  Weights() = default;
  struct Builder;

  kernels::WeightFormat embed_format_ = kernels::WeightFormat::kBf16;
  int64_t hidden_size_ = 0;
  HostBuffer embed_tokens_;  // [vocab, hidden] as in the checkpoint; empty: the head has its rows
  std::vector<LayerWeights> layers_;
  std::optional<MtpWeights> mtp_;
  std::vector<float> norm_;
  Linear lm_head_;
  std::vector<HostBuffer> memory_;  // behind the Linears
};

}  // namespace atl::coordinator
