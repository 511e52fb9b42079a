// A GGUF model seen as the checkpoint that it was made from: tensors under the names, and in the
// shapes, of Hugging Face, read as numbers that lose nothing; and its small files, which are made
// of the metadata.
//
//   type in the file        read as
//   F32, BF16               themselves
//   F16                     F16; of a model with experts F32
//   Q8_0, Q4_K, ...         F32: the values of the format's definition
//
// Experts are cut out of their stack. kv_b_proj is put together of attn_k_b (which is transposed)
// and attn_v_b where a file has those. Rows of llama's q and k go back to where they were.
// docs/gguf.md has the tables.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "storage/checkpoint/tensor_source.h"

namespace atl::model {

// Quantized matrices that are neither experts nor embedding, which a pack carries as they are read.
enum class QuantizedDense : uint8_t {
  kExact,  // read as F32
  kBf16,   // read as F32 rounded to BF16
};

struct GgufSummary {
  bool quantized_experts = false, quantized_dense = false;
  double expert_bits = 0;    // per weight in the file, on average
  std::string expert_types;  // "Q4_K, Q6_K"
  std::string dense_types;
  // A model of V3's shape whose metadata don't say that experts are chosen by groups.
  bool groups_are_missing = false;
};

class GgufSource : public storage::TensorSource {
 public:
  // What it is made of; by the path of one of its files, or of a directory with nothing else
  // (storage::find_gguf). LoadError: one line with file, and key or tensor.
  static std::unique_ptr<const GgufSource> open(const std::filesystem::path& path,
                                                QuantizedDense dense = QuantizedDense::kExact);
  virtual const GgufSummary& summary() const = 0;
  // Whether the metadata, or files beside it, have one.
  virtual bool has_tokenizer() const = 0;
  // The file that has the metadata, for messages.
  virtual const std::filesystem::path& file() const = 0;
};

}  // namespace atl::model
