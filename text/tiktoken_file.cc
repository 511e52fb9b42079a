#include "text/tiktoken_file.h"

#include <fmt/core.h>

#include <charconv>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <system_error>
#include <unordered_map>

#include "base/result.h"
#include "text/byte_alphabet.h"

namespace atl::text {
namespace {

constexpr uint64_t kTiktokenBytesMax = 64u << 20;
constexpr size_t kTokenBytesMax = 256;  // each way to cut one in two is a rule
constexpr int kReservedTokens = 256;

constexpr std::string_view kKimiPattern =
    R"([\p{Han}]+)"
    R"(|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*)"
    R"([\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?)"
    R"(|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+)"
    R"([\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?)"
    R"(|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

using IdOfBytes = std::unordered_map<std::string, int32_t>;

// Nothing if it is no base64 with its padding.
std::optional<std::string> from_base64(std::string_view text) {
  static constexpr std::string_view kDigits =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  if (text.empty() || text.size() % 4 != 0) return std::nullopt;
  const size_t padding = text.ends_with("==") ? 2 : text.ends_with("=") ? 1 : 0;
  std::string bytes;
  uint32_t bits = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const bool pads = i + padding >= text.size();
    const size_t digit = pads ? 0 : kDigits.find(text[i]);
    if (digit == kDigits.npos) return std::nullopt;
    bits = bits << 6 | static_cast<uint32_t>(digit);
    if (i % 4 != 3) continue;
    for (const int shift : {16, 8, 0}) bytes.push_back(static_cast<char>(bits >> shift & 0xFF));
    bits = 0;
  }
  bytes.resize(bytes.size() - padding);
  return bytes;
}

// One line: "base64 rank".
std::pair<std::string, int32_t> read_rank(std::string_view line, size_t number) {
  if (line.ends_with('\r')) line.remove_suffix(1);
  const size_t space = line.find(' ');
  int32_t rank = -1;
  auto bytes = from_base64(line.substr(0, space));
  if (space != line.npos) {
    const char* end = line.data() + line.size();
    const auto [at, error] = std::from_chars(line.data() + space + 1, end, rank);
    if (error != std::errc() || at != end) rank = -1;
  }
  if (!bytes || rank < 0 || rank >= kTokenIdEnd || bytes->size() > kTokenBytesMax) {
    throw LoadError(fmt::format(
        "line {}: expected a token of up to {} bytes in base64, a space and a rank below {}",
        number, kTokenBytesMax, kTokenIdEnd));
  }
  return {std::move(*bytes), rank};
}

IdOfBytes read_ranks(const std::filesystem::path& path) {
  std::error_code error;
  const uint64_t size = std::filesystem::file_size(path, error);
  if (error) throw LoadError(error.message());
  if (size > kTiktokenBytesMax) {
    throw LoadError(fmt::format("{} bytes, more than {}", size, kTiktokenBytesMax));
  }
  std::ifstream in(path, std::ios::binary);
  IdOfBytes ids;
  std::vector<bool> taken;
  size_t number = 0;
  for (std::string line; std::getline(in, line);) {
    ++number;
    if (line.empty()) continue;
    auto [bytes, rank] = read_rank(line, number);
    if (static_cast<size_t>(rank) >= taken.size()) taken.resize(static_cast<size_t>(rank) + 1);
    if (taken[rank] || !ids.emplace(std::move(bytes), rank).second) {
      throw LoadError(fmt::format("line {}: this token or rank {} is there twice", number, rank));
    }
    taken[rank] = true;
  }
  if (ids.empty()) throw LoadError("no tokens");
  return ids;
}

void add_rules(const IdOfBytes& ids, TokenizerFile& file) {
  for (const auto& [bytes, id] : ids) {
    for (size_t cut = 1; cut < bytes.size(); ++cut) {
      const auto left = ids.find(bytes.substr(0, cut));
      if (left == ids.end()) continue;
      const auto right = ids.find(bytes.substr(cut));
      if (right == ids.end()) continue;
      file.merges.push_back({left->second, right->second, id, id});
    }
  }
}

nlohmann::json read_tokenizer_class(const std::filesystem::path& path) {
  std::ifstream in(path);
  if (!in) throw LoadError("no such file; it names the special tokens of tiktoken.model");
  nlohmann::json config = nlohmann::json::parse(in, nullptr, false);
  if (!config.is_object()) throw LoadError("not a JSON object");
  const auto type = config.value("tokenizer_class", nlohmann::json());
  if (type != "TikTokenTokenizer") {
    throw LoadError(
        fmt::format("tokenizer_class {} isn't supported with tiktoken.model, only "
                    "TikTokenTokenizer (Kimi's) is",
                    type.dump().substr(0, 60)));
  }
  return config;
}

void add_special_tokens(const nlohmann::json& config, int32_t begin, TokenizerFile& file) {
  const auto named = config.value("added_tokens_decoder", nlohmann::json::object());
  if (!named.is_object()) throw LoadError("added_tokens_decoder: expected an object");
  std::vector<AddedToken> tokens(kReservedTokens);
  for (int32_t i = 0; i < kReservedTokens; ++i) {
    tokens[i] = {fmt::format("<|reserved_token_{}|>", begin + i), begin + i, false, false};
  }
  for (const auto& [key, token] : named.items()) {
    const std::string where = "added_tokens_decoder." + key.substr(0, 20);
    int32_t id = -1;
    const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), id);
    const bool fits = error == std::errc() && end == key.data() + key.size() && id >= begin &&
                      id < begin + kReservedTokens;
    if (!fits) {
      throw LoadError(fmt::format("{}: expected an id from {} to {}, the {} behind the ranks",
                                  where, begin, begin + kReservedTokens - 1, kReservedTokens));
    }
    const auto content = token.is_object() ? token.value("content", nlohmann::json()) : token;
    if (!content.is_string() || content.get_ref<const std::string&>().empty()) {
      throw LoadError(where + ".content: expected a text");
    }
    const auto special = token.value("special", nlohmann::json(false));
    tokens[id - begin] = {content.get<std::string>(), id, special == true, false};
  }
  std::unordered_map<std::string_view, int32_t> ids;
  for (const AddedToken& token : tokens) {
    if (!ids.emplace(token.content, token.id).second) {
      throw LoadError(fmt::format("added_tokens_decoder: \"{}\" is there twice", token.content));
    }
  }
  file.added_tokens = std::move(tokens);
}

template <typename Read>
auto in_file(const std::filesystem::path& path, Read read) {
  try {
    return read();
  } catch (const LoadError& error) {
    throw LoadError(fmt::format("{}: {}", path.string(), error.what()));
  }
}

}  // namespace

TokenizerFile read_tiktoken_file(const std::filesystem::path& model_dir) {
  const auto model = model_dir / "tiktoken.model", config = model_dir / "tokenizer_config.json";
  TokenizerFile file;
  file.ignore_merges = true;
  file.splits = {{SplitPattern::Kind::kRegex, std::string(kKimiPattern)}};
  const IdOfBytes ids = in_file(model, [&] { return read_ranks(model); });
  file.vocab.reserve(ids.size());
  for (const auto& [bytes, id] : ids) file.vocab.push_back({alphabet_text_of_bytes(bytes), id});
  add_rules(ids, file);
  in_file(config, [&] {
    add_special_tokens(read_tokenizer_class(config), static_cast<int32_t>(ids.size()), file);
  });
  for (const auto& [bytes, id] : ids) {
    if (id < static_cast<int32_t>(ids.size())) continue;
    throw LoadError(fmt::format("{}: rank {} of {} tokens: expected each from 0 on", model.string(),
                                id, ids.size()));
  }
  return file;
}

}  // namespace atl::text
