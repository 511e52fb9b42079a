#include "model/gguf_tokenizer.h"

#include <fmt/format.h>

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/result.h"
#include "storage/io/printable.h"

namespace atl::model {
namespace {

using Json = nlohmann::json;
using storage::GgufArray;

constexpr std::string_view kTokens = "tokenizer.ggml.tokens";
constexpr std::string_view kTypes = "tokenizer.ggml.token_type";
constexpr std::string_view kMerges = "tokenizer.ggml.merges";
constexpr std::string_view kPre = "tokenizer.ggml.pre";
constexpr uint64_t kVocabMax = 1 << 22;

// tokenizer.ggml.token_type. Source: the `gguf` package, TokenType.
enum TokenType : int64_t { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5 };

// How a text is cut before merging: what the published tokenizer.json of each name has.
struct Splits {
  std::string_view name;  // tokenizer.ggml.pre
  std::vector<std::string_view> expressions;
  bool nfc = false;
  bool ignore_merges = false;
  bool add_bos = false;  // unless the file says it
};

constexpr std::string_view kQwen2 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kLlama3 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kKimiK2 =
    R"([\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kDeepseekV3Words =
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]"
    "+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+";

const std::vector<Splits>& known_splits() {
  static const std::vector<Splits> known = {
      {"deepseek-v3",
       {R"(\p{N}{1,3})", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+", kDeepseekV3Words},
       false,
       false,
       true},
      {"deepseek-r1-qwen", {kQwen2}, true, false, true},
      {"qwen2", {kQwen2}, true, false, false},
      {"llama-bpe", {kLlama3}, false, true, true},
      {"kimi-k2", {kKimiK2}, false, false, false},
  };
  return known;
}

const Splits& splits_of(const GgufMetadata& metadata) {
  constexpr std::string_view kModel = "tokenizer.ggml.model";
  if (const std::string model = metadata.text(kModel); model != "gpt2") {
    metadata.refuse(kModel, fmt::format("tokenizer {} isn't supported, only gpt2 (byte-level BPE) "
                                        "is; a tokenizer.json beside the file is taken instead",
                                        storage::printable(model)));
  }
  const std::string pre = metadata.text_or(kPre, "default");
  std::string names;
  for (const Splits& splits : known_splits()) {
    if (splits.name == pre) return splits;
    names += fmt::format("{}{}", names.empty() ? "" : ", ", splits.name);
  }
  metadata.refuse(kPre, fmt::format("{} isn't known, expected one of {}; put the model's own "
                                    "tokenizer.json and tokenizer_config.json beside the file",
                                    storage::printable(pre), names));
}

const GgufArray& require_array(const GgufMetadata& metadata, std::string_view key) {
  const GgufArray* array = metadata.array(key);
  if (array == nullptr) metadata.refuse(key, "missing");
  return *array;
}

// Names file and key of what `read` throws.
template <typename Read>
auto of_key(const GgufMetadata& metadata, std::string_view key, Read read) {
  try {
    return read();
  } catch (const LoadError& error) {
    metadata.refuse(key, error.what());
  }
}

std::vector<std::string_view> read_tokens(const GgufMetadata& metadata) {
  const GgufArray& array = require_array(metadata, kTokens);
  if (array.count > kVocabMax) {
    metadata.refuse(kTokens, fmt::format("{} tokens, expected at most {}", array.count, kVocabMax));
  }
  return of_key(metadata, kTokens, [&] { return array.strings(); });
}

std::vector<int64_t> read_types(const GgufMetadata& metadata, size_t tokens) {
  const GgufArray& array = require_array(metadata, kTypes);
  if (array.count != tokens) {
    metadata.refuse(kTypes, fmt::format("{} of {} tokens", array.count, tokens));
  }
  return of_key(metadata, kTypes, [&] { return array.integers(); });
}

// The two halves of "left right"; a file's own error if there aren't two.
std::pair<std::string_view, std::string_view> halves(const GgufMetadata& metadata,
                                                     std::string_view merge) {
  const size_t space = merge.find(' ', 1);
  if (space == merge.npos || space + 1 == merge.size()) {
    metadata.refuse(kMerges, fmt::format("{} isn't two tokens", storage::printable(merge)));
  }
  return {merge.substr(0, space), merge.substr(space + 1)};
}

Json split_step(std::string_view expression) {
  return {{"type", "Split"},
          {"pattern", {{"Regex", expression}}},
          {"behavior", "Isolated"},
          {"invert", false}};
}

Json pre_tokenizer_json(const Splits& splits) {
  Json steps = Json::array();
  for (const std::string_view expression : splits.expressions) {
    steps.push_back(split_step(expression));
  }
  steps.push_back({{"type", "ByteLevel"},
                   {"add_prefix_space", false},
                   {"trim_offsets", true},
                   {"use_regex", false}});
  return {{"type", "Sequence"}, {"pretokenizers", steps}};
}

std::string dump(const GgufMetadata& metadata, const Json& json) {
  try {
    return json.dump();
  } catch (const Json::exception&) {
    metadata.refuse(kTokens, "text that isn't UTF-8");
  }
}

std::string token_text(const GgufMetadata& metadata, std::string_view key) {
  const std::vector<std::string_view> tokens = read_tokens(metadata);
  const int64_t id = metadata.integer(key);
  if (id < 0 || static_cast<size_t>(id) >= tokens.size()) {
    metadata.refuse(key, fmt::format("{}, expected an id below {}", id, tokens.size()));
  }
  return std::string(tokens[static_cast<size_t>(id)]);
}

}  // namespace

std::string gguf_tokenizer_json(const GgufMetadata& metadata) {
  const Splits& splits = splits_of(metadata);
  const std::vector<std::string_view> tokens = read_tokens(metadata);
  const std::vector<int64_t> types = read_types(metadata, tokens.size());
  std::unordered_map<std::string_view, size_t> ids;
  ids.reserve(tokens.size());
  Json vocab = Json::object(), added = Json::array(), merges = Json::array();
  for (size_t id = 0; id < tokens.size(); ++id) {
    const std::string text(tokens[id]);
    if (types[id] == kUnused || text.empty()) continue;  // an id of the head without a token
    if (!ids.emplace(tokens[id], id).second) {
      metadata.refuse(kTokens, fmt::format("{} is there twice", storage::printable(text)));
    }
    if (types[id] != kControl && types[id] != kUserDefined) {
      vocab[text] = id;
      continue;
    }
    added.push_back({{"id", id},
                     {"content", text},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", types[id] == kUserDefined},
                     {"special", types[id] == kControl}});
  }
  const GgufArray& merge_array = require_array(metadata, kMerges);
  for (const std::string_view merge :
       of_key(metadata, kMerges, [&] { return merge_array.strings(); })) {
    const auto [left, right] = halves(metadata, merge);
    const std::string whole = std::string(left) + std::string(right);
    // A token that merges make is one of the vocabulary, whatever else it is.
    for (const std::string_view part : {left, right, std::string_view(whole)}) {
      const auto found = ids.find(part);
      if (found != ids.end()) vocab[std::string(part)] = found->second;
    }
    merges.push_back({left, right});
  }
  Json json;
  json["added_tokens"] = std::move(added);
  json["normalizer"] = splits.nfc ? Json{{"type", "NFC"}} : Json();
  json["pre_tokenizer"] = pre_tokenizer_json(splits);
  json["decoder"] = {{"type", "ByteLevel"}};
  json["model"] = {{"type", "BPE"},
                   {"ignore_merges", splits.ignore_merges},
                   {"vocab", std::move(vocab)},
                   {"merges", std::move(merges)}};
  return dump(metadata, json);
}

std::string gguf_tokenizer_config_json(const GgufMetadata& metadata) {
  constexpr std::string_view kBos = "tokenizer.ggml.bos_token_id";
  constexpr std::string_view kEos = "tokenizer.ggml.eos_token_id";
  constexpr std::string_view kTemplate = "tokenizer.chat_template";
  Json json;
  json["add_bos_token"] =
      metadata.boolean_or("tokenizer.ggml.add_bos_token", splits_of(metadata).add_bos);
  if (metadata.has(kBos)) json["bos_token"] = token_text(metadata, kBos);
  if (metadata.has(kEos)) json["eos_token"] = token_text(metadata, kEos);
  if (metadata.has(kTemplate)) json["chat_template"] = metadata.text(kTemplate);
  return dump(metadata, json);
}

}  // namespace atl::model
