#include "text/tokenizer.h"

#include <fmt/core.h>

#include "text/byte_alphabet.h"
#include "text/nfc.h"
#include "text/tiktoken_file.h"

namespace atl::text {
namespace {

constexpr size_t kTextBytesMax = (size_t{1} << 31) - 1;

PreTokenizer make_pre_tokenizer(const TokenizerFile& file, const std::string& name) {
  try {
    return PreTokenizer(file.splits);
  } catch (const LoadError& error) {
    throw LoadError(fmt::format("{}: pre_tokenizer: {}", name, error.what()));
  }
}

std::unordered_map<std::string, int32_t> ids_by_text(const TokenizerFile& file) {
  std::unordered_map<std::string, int32_t> ids;
  ids.reserve(file.vocab.size() + file.added_tokens.size());
  for (const VocabEntry& entry : file.vocab) ids.emplace(entry.text, entry.id);
  for (const AddedToken& token : file.added_tokens) ids.emplace(token.content, token.id);
  return ids;
}

Error stopped() { return {ErrorCode::kUnavailable, "tokenizing was stopped"}; }

}  // namespace

Tokenizer Tokenizer::load(const std::filesystem::path& model_dir) {
  const std::filesystem::path path = model_dir / "tokenizer.json";
  const std::filesystem::path tiktoken = model_dir / "tiktoken.model";
  const bool is_tiktoken = !std::filesystem::exists(path) && std::filesystem::exists(tiktoken);
  const TokenizerFile file =
      is_tiktoken ? read_tiktoken_file(model_dir) : read_tokenizer_file(path);
  return Tokenizer(file, read_tokenizer_config(model_dir / "tokenizer_config.json"),
                   (is_tiktoken ? tiktoken : path).string());
}

Tokenizer Tokenizer::parse(std::string_view tokenizer_json, std::string_view tokenizer_config_json,
                           const std::string& name) {
  try {
    const TokenizerFile file = parse_tokenizer_file(tokenizer_json);
    return Tokenizer(file, parse_tokenizer_config(tokenizer_config_json), "tokenizer");
  } catch (const LoadError& error) {
    throw LoadError(fmt::format("{}: {}", name, error.what()));
  }
}

Tokenizer::Tokenizer(const TokenizerFile& file, const TokenizerConfig& config,
                     const std::string& name)
    : id_of_text_(ids_by_text(file)),
      ignore_merges_(file.ignore_merges),
      normalizes_nfc_(file.normalizes_nfc),
      pre_tokenizer_(make_pre_tokenizer(file, name)),
      encoder_(make_encoder(file, name)),
      add_bos_token_(config.add_bos_token.value_or(!file.first_token.empty())),
      bos_id_(
          config.bos_token.empty()
              ? named_token(file.first_token, "the post_processor puts first", name)
              : named_token(config.bos_token, "tokenizer_config.json names as bos_token", name)),
      eos_id_(named_token(config.eos_token, "tokenizer_config.json names as eos_token", name)) {
  for (const VocabEntry& entry : file.vocab) {
    // Text outside of the alphabet stands for itself, as in the reference's decoder.
    std::string bytes = bytes_of_alphabet_text(entry.text).value_or(entry.text);
    if (ignore_merges_) id_of_piece_.emplace(bytes, entry.id);
    add_token(entry.id, std::move(bytes), false);
  }
  for (const AddedToken& token : file.added_tokens) {
    add_token(token.id, token.content, token.special);
    tokens_[token.id].added = true;
    (token.normalized ? second_pass_ : first_pass_).add(token.content, token.id);
  }
}

void Tokenizer::add_token(int32_t id, std::string bytes, bool special) {
  if (id >= id_end()) tokens_.resize(static_cast<size_t>(id) + 1);
  if (!tokens_[id].present) ++vocab_size_;
  tokens_[id] = {std::move(bytes), true, special, false};
}

BytePairEncoder Tokenizer::make_encoder(const TokenizerFile& file, const std::string& name) const {
  std::array<int32_t, 256> byte_ids{};
  for (int byte = 0; byte < 256; ++byte) {
    const char as_char = static_cast<char>(byte);
    const auto found = id_of_text_.find(alphabet_text_of_bytes({&as_char, 1}));
    if (found == id_of_text_.end()) {
      throw LoadError(fmt::format("{}: model.vocab has no token for byte 0x{:02X}", name, byte));
    }
    byte_ids[byte] = found->second;
  }
  return BytePairEncoder(byte_ids, file.merges);
}

std::optional<int32_t> Tokenizer::named_token(const std::string& content, const char* use,
                                              const std::string& name) const {
  if (content.empty()) return std::nullopt;
  const std::optional<int32_t> id = token_id(content);
  if (!id) {
    throw LoadError(fmt::format("{}: no token \"{}\", which {}", name, content.substr(0, 60), use));
  }
  return id;
}

std::vector<TextSegment> Tokenizer::segments(std::string_view text, EncodeOptions options,
                                             std::deque<std::string>& normalized) const {
  const auto normal = [&](std::string_view segment) -> std::string_view {
    if (!normalizes_nfc_) return segment;
    return normalized.emplace_back(to_nfc(segment));
  };
  if (!options.parse_added_tokens) return {{normal(text), -1}};
  std::vector<TextSegment> first;
  first_pass_.split(text, first);
  std::vector<TextSegment> second;
  for (const TextSegment& segment : first) {
    if (segment.id >= 0) {
      second.push_back(segment);
    } else {
      second_pass_.split(normal(segment.text), second);
    }
  }
  return second;
}

Result<std::vector<int32_t>> Tokenizer::encode(std::string_view text, EncodeOptions options) const {
  std::vector<int32_t> ids;
  if (text.size() > kTextBytesMax) {
    return Error{ErrorCode::kInvalid, fmt::format("text of {} bytes: at most {} can be tokenized",
                                                  text.size(), kTextBytesMax)};
  }
  if (options.add_bos) {
    if (!bos_id_) return Error{ErrorCode::kInvalid, "the tokenizer names no BOS token to add"};
    ids.push_back(*bos_id_);
  }
  std::string repaired;
  if (!is_valid_utf8(text)) text = repaired = repair_utf8(text);
  BytePairEncoder::Scratch scratch;
  scratch.stop = options.stop;
  std::deque<std::string> normalized;
  for (const TextSegment& segment : segments(text, options, normalized)) {
    if (segment.id >= 0) {
      ids.push_back(segment.id);
      continue;
    }
    const auto pieces = pre_tokenizer_.split(segment.text, options.stop);
    if (!pieces) return pieces.error();
    for (std::string_view piece : *pieces) {
      if (scratch.stopped || !scratch.goes_on()) return stopped();
      const auto whole =
          ignore_merges_ ? id_of_piece_.find(std::string(piece)) : id_of_piece_.end();
      if (whole != id_of_piece_.end()) {
        ids.push_back(whole->second);
      } else {
        encoder_.encode(piece, scratch, ids);
      }
    }
  }
  if (scratch.stopped) return stopped();
  return ids;
}

std::string Tokenizer::decode(std::span<const int32_t> ids, SpecialTokens special) const {
  std::string bytes;
  for (int32_t id : ids) {
    if (special == SpecialTokens::kSkip && is_special(id)) continue;
    bytes += token_bytes(id);
  }
  return repair_utf8(bytes);
}

std::string_view Tokenizer::token_bytes(int32_t id) const {
  return has_token(id) ? std::string_view(tokens_[id].bytes) : std::string_view();
}

std::optional<int32_t> Tokenizer::token_id(std::string_view content) const {
  const auto found = id_of_text_.find(std::string(content));
  if (found == id_of_text_.end()) return std::nullopt;
  return found->second;
}

bool Tokenizer::has_token(int32_t id) const {
  return id >= 0 && id < id_end() && tokens_[id].present;
}

bool Tokenizer::is_special(int32_t id) const { return has_token(id) && tokens_[id].special; }

bool Tokenizer::is_added(int32_t id) const { return has_token(id) && tokens_[id].added; }

std::string StreamDecoder::push(int32_t id) {
  std::string out;
  if (special_ == SpecialTokens::kSkip && tokenizer_.is_special(id)) return out;
  repairer_.push(tokenizer_.token_bytes(id), out);
  return out;
}

std::string StreamDecoder::flush() {
  std::string out;
  repairer_.flush(out);
  return out;
}

}  // namespace atl::text
