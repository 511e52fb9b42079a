// What `atoll synth` writes: the published shapes, cut to size, and a tokenizer to go with them.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string_view>

#include "model/config.h"

namespace atl::cli {

// What replaces the published value; absent: as published.
struct SynthShape {
  std::optional<int64_t> num_hidden_layers = {};
  std::optional<int64_t> first_k_dense_replace = {};
  std::optional<int64_t> n_routed_experts = {};
  std::optional<int64_t> vocab_size = {};
  std::optional<int64_t> hidden_size = {};
  std::optional<int64_t> moe_intermediate_size = {};  // dense layers keep their ratio to it
  std::optional<int64_t> num_attention_heads = {};
  bool mtp = false;  // one multi-token-prediction layer
};

// "deepseek-v3", "deepseek-v2-lite", "kimi-k2", "qwen2-1.5b" (R1-Distill-Qwen-1.5B) or "llama3-8b"
// (R1-Distill-Llama-8B) with these replacements. Groups of experts and
// experts per token shrink to what the number of experts allows; bos and eos are those of
// write_byte_tokenizer(). LoadError if the sizes don't go together. Source: docs/model.md 1.
model::ModelConfig synth_config(std::string_view like, const SynthShape& shape);

// Ids of the tokenizer below: begin, end and padding, then the 256 bytes.
inline constexpr int32_t kByteTokenizerBos = 0;
inline constexpr int32_t kByteTokenizerEos = 1;
inline constexpr int32_t kByteTokenizerPad = 2;
inline constexpr int32_t kByteTokenizerIdEnd = 3 + 256;

// tokenizer.json and tokenizer_config.json in `dir`: byte-level BPE without merges, so that every
// byte is a token, with DeepSeek-V3's pre-tokenizer. LoadError if a file can't be written.
void write_byte_tokenizer(const std::filesystem::path& dir);

}  // namespace atl::cli
