// GGUF files of DeepSeek models, laid out as llama.cpp's converter does it.
#pragma once

#include <cstdint>
#include <filesystem>

namespace atl::test {

struct GgufModelSpec {
  uint32_t type = 0;         // of all matrices but router and embedding: 0 F32, 30 BF16, 8 Q8_0
  bool joined_kv_b = false;  // attn_kv_b, else attn_k_b and attn_v_b
  int splits = 1;            // more: OUT is the stem of their names
};

// Writes a GGUF of the model (BF16 or F32 safetensors of an MLA model, with a tokenizer or without,
// whose MTP layers are left out).
void write_gguf_model(const std::filesystem::path& model_dir, const std::filesystem::path& out,
                      const GgufModelSpec& spec);

// Writes the safetensors model, in F32 and without MTP layers, of the values that such a file has.
void write_dequantized_model(const std::filesystem::path& model_dir,
                             const std::filesystem::path& out, uint32_t type);

// A model of 2 layers and 8 experts in BF16 that has tiny-bf16's tokenizer.
void write_small_bf16_model(const std::filesystem::path& dir);

}  // namespace atl::test
