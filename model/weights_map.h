// Tensor names and shapes of the model: which checkpoint tensors each component is made of.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "model/config.h"
#include "storage/checkpoint/checkpoint.h"
#include "storage/checkpoint/matrix_source.h"
#include "storage/pack/pack.h"

namespace atl::model {

// A BF16, F32 or F16 vector or matrix that is used as it is (norms, embedding, bias).
struct PlainTensor {
  const storage::TensorInfo* tensor = nullptr;
};

struct MlaTensors {
  storage::MatrixSource q_a_proj;  // absent (weight == nullptr) if q_lora_rank == 0
  PlainTensor q_a_layernorm;       // absent likewise
  storage::MatrixSource q_proj;    // q_b_proj, or q_proj if q_lora_rank == 0
  storage::MatrixSource kv_a_proj_with_mqa;
  PlainTensor kv_a_layernorm;
  storage::MatrixSource kv_b_proj;
  storage::MatrixSource o_proj;
};
struct GqaTensors {
  storage::MatrixSource q_proj, k_proj, v_proj, o_proj;
  PlainTensor q_bias, k_bias, v_bias;  // absent unless has_qkv_bias()
};
using AttentionTensors = std::variant<MlaTensors, GqaTensors>;
// The matrices that are held as they are: all but MLA's kv_b_proj, which is cut by head. Absent
// ones are left out.
std::vector<const storage::MatrixSource*> whole_matrices(const AttentionTensors& attention);

struct FfnTensors {  // dense MLP or shared experts
  storage::MatrixSource gate_proj, up_proj, down_proj;
};
struct LayerTensors {
  PlainTensor input_layernorm, post_attention_layernorm;
  AttentionTensors attention;
  FfnTensors ffn;                       // dense MLP, or the shared experts of an MoE layer
  storage::MatrixSource router;         // mlp.gate.weight, BF16 or F32; absent in dense layers
  PlainTensor e_score_correction_bias;  // absent unless noaux_tc
};
// The layer that predicts the token after the next (docs/model.md 4). Its copies of embedding and
// head are the main ones' and are not looked at.
struct MtpTensors {
  PlainTensor enorm, hnorm;       // [hidden]
  storage::MatrixSource eh_proj;  // [hidden, 2 * hidden], the embedding's half first; BF16 or F32
  PlainTensor norm;               // shared_head.norm
  LayerTensors layer;
};
// Everything the coordinator loads.
struct ModelTensors {
  storage::MatrixSource embed_tokens;  // BF16 or F32
  PlainTensor norm;
  storage::MatrixSource lm_head;  // with tie_word_embeddings that of embed_tokens
  std::vector<LayerTensors> layers;
  std::optional<MtpTensors> mtp;  // if it was asked for
};

// The values as FP32 (the others converted exactly). LoadError if there are not `expected` of them
// or one is not finite.
std::vector<float> read_plain(const storage::TensorSource& checkpoint, const PlainTensor& plain,
                              int64_t expected);

// Whether the routed experts are among the checkpoint's tensors, or in the pack that carries it.
enum class RoutedExperts : uint8_t { kInCheckpoint, kInPack };

// Finds and checks every tensor the model needs (dtype, shape, scales; norms and biases in BF16 or
// F32; all in F16, too, of a model without experts); MTP layers (index >= num_hidden_layers) are
// recognised and left out but for the first one where `mtp` is not kLeaveOut, any other tensor that
// the model doesn't know is refused. LoadError: one line with file and tensor.
enum class MtpLayers : uint8_t { kLeaveOut, kFirst, kAll };
ModelTensors map_tensors(const ModelConfig& config, const storage::TensorSource& checkpoint,
                         RoutedExperts experts = RoutedExperts::kInCheckpoint,
                         MtpLayers mtp = MtpLayers::kLeaveOut);

// Why the first MTP layer can't be used: the checkpoint has none, or not all files of it. "": it
// can.
std::string why_no_mtp(const ModelConfig& config, const storage::TensorSource& checkpoint);

// The checkpoint of a model directory or GGUF file; a directory may lack files that hold nothing
// but MTP layers: then a log line says so.
std::unique_ptr<const storage::TensorSource> open_checkpoint(const std::filesystem::path& model_dir,
                                                             const ModelConfig& config);

// The routed experts; all must have one format. MTP layers follow the others if they are asked for
// and whole (and have routed experts). Errors as above, but other tensors are not looked at.
storage::ExpertCatalog map_experts(const ModelConfig& config,
                                   const storage::TensorSource& checkpoint,
                                   MtpLayers mtp = MtpLayers::kLeaveOut);
// The same of a pack, without sources: num_hidden_layers layers, whether or not the pack has them
// all, and the first MTP layer unless `mtp` is kLeaveOut.
storage::ExpertCatalog map_packed_experts(const ModelConfig& config, const storage::Pack& pack,
                                          MtpLayers mtp = MtpLayers::kLeaveOut);

enum class Component : uint8_t {
  kEmbedding,
  kHead,
  kAttention,
  kNorms,
  kDenseMlp,
  kSharedExperts,
  kRouter,
  kRoutedExperts,
  kMtp,    // layers with index >= num_hidden_layers, all of them
  kOther,  // buffers that are computed, not loaded (rotary_emb.inv_freq)
};
std::string_view to_string(Component component);

// Tensors of one component and dtype. FP8 scales count as bytes, not as parameters, of the
// component and of the dtype of their weight.
struct ComponentRow {
  Component component = Component::kOther;
  std::string dtype;  // as in the file
  uint64_t tensors = 0;
  uint64_t parameters = 0;
  uint64_t bytes = 0;
};
// What the checkpoint is made of, in the order of Component, then dtype. Needs only the headers.
std::vector<ComponentRow> component_table(const ModelConfig& config,
                                          const storage::TensorSource& checkpoint);

}  // namespace atl::model
