// Text to token ids and back: byte-level BPE as a Hugging Face tokenizer.json or a tiktoken.model
// describes it.
#pragma once

#include <cstdint>
#include <deque>
#include <filesystem>
#include <optional>
#include <span>
#include <stop_token>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/result.h"
#include "text/added_tokens.h"
#include "text/byte_pair_encoder.h"
#include "text/pre_tokenizer.h"
#include "text/tokenizer_file.h"
#include "text/utf8.h"

namespace atl::text {

struct EncodeOptions {
  bool add_bos = false;  // put bos_id() first
  // False: "<｜User｜>" in the text is text, not the token. For text of strangers.
  bool parse_added_tokens = true;
  std::stop_token stop = {};  // looked at every few thousand steps
};

enum class SpecialTokens { kKeep, kSkip };

// Immutable after load; any thread. Same ids as the Hugging Face tokenizers library on well-formed
// UTF-8; in other input each maximal invalid subpart is read as U+FFFD. Encoding takes
// O(n log n) time for n bytes with the published patterns, whatever the text.
class Tokenizer {
 public:
  // Reads tokenizer.json, or tiktoken.model where there is none, and, if there,
  // tokenizer_config.json of a model directory. Throws
  // LoadError: one line that names the file and what is wrong.
  static Tokenizer load(const std::filesystem::path& model_dir);
  // The same of the texts of the two files; `name` stands before the message of the LoadError.
  static Tokenizer parse(std::string_view tokenizer_json, std::string_view tokenizer_config_json,
                         const std::string& name);
  // `name` stands before the message of the LoadError, for a file that doesn't hold together.
  Tokenizer(const TokenizerFile& file, const TokenizerConfig& config, const std::string& name);

  // kInvalid: add_bos without a BOS token, text of 2 GiB or more, or a pattern that gave up.
  // kUnavailable: it was asked to stop.
  Result<std::vector<int32_t>> encode(std::string_view text, EncodeOptions options = {}) const;

  // Well-formed UTF-8; bytes that aren't become U+FFFD. Ids without a token give nothing.
  std::string decode(std::span<const int32_t> ids, SpecialTokens special) const;

  // The bytes that a token stands for (not always whole characters); empty without a token.
  std::string_view token_bytes(int32_t id) const;
  // An added token by its content, any other by its text in the byte alphabet.
  std::optional<int32_t> token_id(std::string_view content) const;
  bool has_token(int32_t id) const;
  bool is_special(int32_t id) const;
  // One of the file's added tokens, special or not: found before the text is cut into pieces.
  bool is_added(int32_t id) const;

  // One past the largest id with a token: a model's logits from here on belong to no token.
  int32_t id_end() const { return static_cast<int32_t>(tokens_.size()); }
  // How many ids have a token; less than id_end() if ids are missing in between.
  int32_t vocab_size() const { return vocab_size_; }

  // Whether a raw prompt starts with BOS (a chat template's output already does): what
  // tokenizer_config.json says, else whether tokenizer.json's post_processor puts a token first.
  // And the tokens that they name. No file or name: config.json's ids are the caller's.
  bool add_bos_token() const { return add_bos_token_; }
  std::optional<int32_t> bos_id() const { return bos_id_; }
  std::optional<int32_t> eos_id() const { return eos_id_; }

 private:
  struct Token {
    std::string bytes;
    bool present = false;
    bool special = false;
    bool added = false;
  };

  void add_token(int32_t id, std::string bytes, bool special);
  BytePairEncoder make_encoder(const TokenizerFile& file, const std::string& name) const;
  std::optional<int32_t> named_token(const std::string& content, const char* use,
                                     const std::string& name) const;
  // Views into `text` or into `normalized`, which gets what is not as in the text.
  std::vector<TextSegment> segments(std::string_view text, EncodeOptions options,
                                    std::deque<std::string>& normalized) const;

  std::vector<Token> tokens_;  // by id
  std::unordered_map<std::string, int32_t> id_of_text_;
  int32_t vocab_size_ = 0;
  bool ignore_merges_ = false;
  bool normalizes_nfc_ = false;
  std::unordered_map<std::string, int32_t> id_of_piece_;  // by bytes; only with ignore_merges_
  // The reference looks for tokens with normalized false first, for the others in what is left.
  AddedTokenMatcher first_pass_;
  AddedTokenMatcher second_pass_;
  PreTokenizer pre_tokenizer_;
  BytePairEncoder encoder_;
  bool add_bos_token_ = false;
  std::optional<int32_t> bos_id_;
  std::optional<int32_t> eos_id_;
};

// Decodes ids one by one as they are generated: what push() and flush() return, joined, is
// decode() of all ids. Holds at most 3 bytes back, the beginning of a character. Borrows the
// tokenizer. One thread at a time.
class StreamDecoder {
 public:
  StreamDecoder(const Tokenizer& tokenizer, SpecialTokens special)
      : tokenizer_(tokenizer), special_(special) {}

  // The text that `id` completes; often empty.
  std::string push(int32_t id);
  // No more ids: a character that is still incomplete becomes U+FFFD.
  std::string flush();

 private:
  const Tokenizer& tokenizer_;
  SpecialTokens special_;
  Utf8StreamRepairer repairer_;
};

}  // namespace atl::text
