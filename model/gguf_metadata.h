// The hyperparameters of a GGUF file's metadata, as the config.json that they were made from.
//
// Read are the architectures deepseek2 (DeepSeek-V2, V3, R1, Kimi K2), qwen2 and llama; others are
// refused by name. docs/gguf.md has the table of keys. Source: the key names of the `gguf` package
// (0.19.0); what llama.cpp's converter writes under them.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "storage/gguf/gguf_header.h"

namespace atl::model {

// Metadata by key; every complaint names file and key. Borrows both.
class GgufMetadata {
 public:
  GgufMetadata(const storage::GgufHeader& header, const std::filesystem::path& file)
      : header_(header), file_(file) {}

  bool has(std::string_view key) const { return header_.find(key) != nullptr; }
  std::string text(std::string_view key) const;
  std::string text_or(std::string_view key, std::string otherwise) const;
  int64_t integer(std::string_view key) const;
  int64_t integer_or(std::string_view key, int64_t otherwise) const;
  // A file has FP32 where config.json had a decimal: the shortest decimal that is this FP32.
  double number(std::string_view key) const;
  double number_or(std::string_view key, double otherwise) const;
  bool boolean_or(std::string_view key, bool otherwise) const;
  const storage::GgufArray* array(std::string_view key) const;  // nullptr if absent

  // "FILE: key KEY: WHAT".
  [[noreturn]] void refuse(std::string_view key, std::string_view what) const;
  const std::filesystem::path& file() const { return file_; }

 private:
  const storage::GgufValue& require(std::string_view key) const;
  [[noreturn]] void wrong(std::string_view key, std::string_view expected) const;

  const storage::GgufHeader& header_;
  const std::filesystem::path& file_;
};

// What the tensors say that the metadata don't.
struct GgufTensorFacts {
  bool has_head = false;  // output.weight; without it the head is the embedding
  // The factors that llama3's rope scaling has in place of its four numbers; empty: none.
  std::vector<float> rope_factors;
};

// The text of a config.json for load_config()'s rules.
std::string gguf_config_json(const GgufMetadata& metadata, const GgufTensorFacts& facts);

// general.architecture: deepseek2, qwen2 or llama; LoadError for others.
std::string gguf_architecture(const GgufMetadata& metadata);

}  // namespace atl::model
