// Reads a Hugging Face tokenizer.json and tokenizer_config.json into plain, checked data.
//
// What is read: model BPE with vocab, merges and ignore_merges; added_tokens; normalizer NFC;
// pre_tokenizer of Split (Isolated), Digits and ByteLevel; decoder ByteLevel. Whatever would change
// ids or text and isn't built (another model type or normalizer, dropout, lstrip, ...) is refused
// by name. Format: the JSON of the Hugging Face tokenizers library. Of its post_processor the token
// that a template puts first is read: the caller decides about BOS.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "text/byte_pair_encoder.h"
#include "text/pre_tokenizer.h"

namespace atl::text {

// Ids end below this: it bounds the memory of a hostile file. The largest published vocabularies
// have about 2^18 entries.
inline constexpr int64_t kTokenIdEnd = int64_t{1} << 22;

struct VocabEntry {
  std::string text;  // in the byte alphabet
  int32_t id = 0;
};

struct AddedToken {
  std::string content;
  int32_t id = 0;
  bool special = false;     // dropped by decode when special tokens are to be skipped
  bool normalized = false;  // searched for in a second pass
};

struct TokenizerFile {
  std::vector<VocabEntry> vocab;  // ids and texts unique
  std::vector<MergeRule> merges;
  bool ignore_merges = false;            // a piece that is a token by itself is not merged
  std::vector<AddedToken> added_tokens;  // contents unique; agree with vocab where both name one
  std::vector<SplitPattern> splits;
  bool normalizes_nfc = false;
  std::string first_token;  // that the post_processor puts before a text; empty: none
};

struct TokenizerConfig {
  std::optional<bool> add_bos_token;  // none: the post_processor says it
  std::string bos_token;              // empty: the file names none
  std::string eos_token;
};

// Throws LoadError, one line that names the file and what is wrong in it.
TokenizerFile read_tokenizer_file(const std::filesystem::path& path);
// The same of a text, without a file's name.
TokenizerFile parse_tokenizer_file(std::string_view json);
TokenizerConfig parse_tokenizer_config(std::string_view json);
// As read_tokenizer_file(); a file that doesn't exist gives the defaults.
TokenizerConfig read_tokenizer_config(const std::filesystem::path& path);

}  // namespace atl::text
