#include "text/tokenizer_file.h"

#include <fmt/core.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <string_view>
#include <system_error>
#include <unordered_map>
#include <unordered_set>

#include "base/result.h"

namespace atl::text {
namespace {

using Json = nlohmann::json;

// The largest published tokenizer.json files have about 33 MiB.
constexpr uint64_t kFileBytesMax = 64u << 20;
constexpr int kJsonDepthMax = 64;
// Matching costs up to this many steps per byte of text.
constexpr size_t kAddedTokenBytesMax = 1024;

// GPT-2's pattern, which ByteLevel with use_regex applies. Source: tokenizers, byte_level.rs.
constexpr std::string_view kByteLevelPattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

// Text of the file for an error line: short, on one line.
std::string in_quotes(std::string_view text) {
  std::string out = "\"";
  for (char c : text.substr(0, 60)) out += static_cast<unsigned char>(c) < 0x20 ? '?' : c;
  return out + (text.size() > 60 ? "...\"" : "\"");
}

std::string read_tokenizer_text(const std::filesystem::path& path) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error)) {
    if (std::filesystem::exists(path.parent_path() / "tokenizer.model", error)) {
      throw LoadError(
          "no such file, and tokenizer.model is of another kind: expected the tokenizer.json of a "
          "fast tokenizer (transformers), or a tiktoken.model");
    }
    throw LoadError("no such file");
  }
  const uint64_t bytes = std::filesystem::file_size(path, error);
  if (error) throw LoadError(error.message());
  if (bytes > kFileBytesMax) {
    throw LoadError(fmt::format("{} bytes, more than {}", bytes, kFileBytesMax));
  }
  std::ifstream in(path, std::ios::binary);
  std::string text(bytes, '\0');
  if (!in.read(text.data(), static_cast<std::streamsize>(bytes))) {
    throw LoadError(fmt::format("can't be read: got {} of {} bytes", in.gcount(), bytes));
  }
  return text;
}

Json parse_object(std::string_view text) {
  const auto limit_depth = [](int depth, Json::parse_event_t, Json&) {
    if (depth > kJsonDepthMax) {
      throw LoadError(fmt::format("JSON nested deeper than {} levels", kJsonDepthMax));
    }
    return true;
  };
  try {
    Json json = Json::parse(text, limit_depth);
    if (!json.is_object()) throw LoadError("not a JSON object");
    return json;
  } catch (const Json::exception& error) {
    std::string what = error.what();
    for (char& c : what) c = c == '\n' || c == '\r' ? ' ' : c;
    throw LoadError("not JSON: " + what.substr(0, 300));
  }
}

// The member, or null where it is absent or null.
const Json& member(const Json& object, const char* key) {
  static const Json null;
  const auto found = object.find(key);
  return found == object.end() ? null : *found;
}

[[noreturn]] void refuse_type(std::string_view where, std::string_view expected,
                              const Json& found) {
  throw LoadError(fmt::format("{}: expected {}, found {}", where, expected, found.type_name()));
}

const std::string& string_of(const Json& value, std::string_view where) {
  if (!value.is_string()) refuse_type(where, "a string", value);
  return value.get_ref<const std::string&>();
}

bool bool_of(const Json& object, const char* key, bool absent, std::string_view where) {
  const Json& value = member(object, key);
  if (value.is_null()) return absent;
  if (!value.is_boolean()) refuse_type(fmt::format("{}.{}", where, key), "true or false", value);
  return value.get<bool>();
}

int32_t id_of(const Json& value, std::string_view where) {
  if (!value.is_number_integer()) refuse_type(where, "an id", value);
  const bool fits =
      value.is_number_unsigned() && value.get<uint64_t>() < static_cast<uint64_t>(kTokenIdEnd);
  if (!fits) {
    throw LoadError(fmt::format("{}: id {} is not in 0..{}", where, value.dump(), kTokenIdEnd - 1));
  }
  return static_cast<int32_t>(value.get<uint64_t>());
}

std::string type_of(const Json& object, std::string_view where) {
  if (!object.is_object()) refuse_type(where, "an object", object);
  return string_of(member(object, "type"), fmt::format("{}.type", where));
}

void refuse_if_true(const Json& object, const char* key, std::string_view where) {
  if (bool_of(object, key, false, where)) {
    throw LoadError(fmt::format("{}.{} true isn't supported", where, key));
  }
}

void refuse_unless_empty(const Json& object, const char* key, std::string_view where) {
  const Json& value = member(object, key);
  const bool empty = value.is_null() || (value.is_string() && value.get<std::string>().empty()) ||
                     (value.is_number() && value.get<double>() == 0);
  if (!empty)
    throw LoadError(fmt::format("{}.{} {} isn't supported", where, key, in_quotes(value.dump())));
}

// Whether it is NFC; other normalizers are refused.
bool read_normalizer(const Json& normalizer) {
  if (normalizer.is_null()) return false;
  const std::string type = type_of(normalizer, "normalizer");
  if (type == "NFC") return true;
  if (type != "Sequence") {
    throw LoadError(fmt::format("normalizer {} isn't supported, only NFC is", in_quotes(type)));
  }
  const Json& steps = member(normalizer, "normalizers");
  if (!steps.is_array()) refuse_type("normalizer.normalizers", "an array", steps);
  bool nfc = false;
  for (const Json& step : steps) nfc = read_normalizer(step) || nfc;
  return nfc;
}

// The token that a TemplateProcessing puts before the text; "" if it puts none there.
std::string first_token_of(const Json& processor) {
  if (!processor.is_object()) return "";
  const Json& type = member(processor, "type");
  if (type == "Sequence") {
    for (const Json& step : member(processor, "processors")) {
      if (std::string token = first_token_of(step); !token.empty()) return token;
    }
    return "";
  }
  const Json& single = member(processor, "single");
  if (type != "TemplateProcessing" || !single.is_array() || single.empty()) return "";
  const Json& first = single[0];
  if (!first.is_object() || !first.contains("SpecialToken")) return "";
  const Json& token = first["SpecialToken"];
  constexpr const char* kWhere = "post_processor.single[0].SpecialToken";
  if (!token.is_object()) refuse_type(kWhere, "an object", token);
  return string_of(member(token, "id"), fmt::format("{}.id", kWhere));
}

// --- pre_tokenizer -----------------------------------------------------------------------------

SplitPattern read_split(const Json& step, std::string_view where) {
  const std::string behavior =
      string_of(member(step, "behavior"), fmt::format("{}.behavior", where));
  if (behavior != "Isolated") {
    throw LoadError(fmt::format("{}.behavior {} isn't supported, only Isolated is", where,
                                in_quotes(behavior)));
  }
  bool_of(step, "invert", false, where);  // makes no difference to Isolated
  const Json& pattern = member(step, "pattern");
  const std::string name = fmt::format("{}.pattern", where);
  if (!pattern.is_object() || pattern.size() != 1) {
    refuse_type(name, R"({"Regex": ..} or {"String": ..})", pattern);
  }
  const std::string& kind = pattern.begin().key();
  if (kind != "Regex" && kind != "String") {
    throw LoadError(
        fmt::format("{} {} isn't supported, only Regex and String are", name, in_quotes(kind)));
  }
  return {kind == "Regex" ? SplitPattern::Kind::kRegex : SplitPattern::Kind::kLiteral,
          string_of(pattern.begin().value(), name)};
}

// Appends the splits of one step; true if it is ByteLevel, after which nothing may come.
bool read_pre_tokenizer_step(const Json& step, std::string_view where,
                             std::vector<SplitPattern>& splits) {
  const std::string type = type_of(step, where);
  if (type == "Split") {
    splits.push_back(read_split(step, where));
    return false;
  }
  if (type == "Digits") {
    const bool individual = bool_of(step, "individual_digits", false, where);
    splits.push_back({SplitPattern::Kind::kRegex, individual ? "\\p{N}" : "\\p{N}+"});
    return false;
  }
  if (type != "ByteLevel") {
    throw LoadError(fmt::format("{} {} isn't supported", where, in_quotes(type)));
  }
  if (bool_of(step, "add_prefix_space", true, where)) {
    throw LoadError(fmt::format("{}.add_prefix_space true isn't supported", where));
  }
  if (bool_of(step, "use_regex", true, where)) {
    splits.push_back({SplitPattern::Kind::kRegex, std::string(kByteLevelPattern)});
  }
  return true;
}

std::vector<SplitPattern> read_pre_tokenizer(const Json& pre_tokenizer) {
  std::vector<SplitPattern> splits;
  if (pre_tokenizer.is_null()) throw LoadError("pre_tokenizer: none; ByteLevel is needed");
  if (type_of(pre_tokenizer, "pre_tokenizer") != "Sequence") {
    if (!read_pre_tokenizer_step(pre_tokenizer, "pre_tokenizer", splits)) {
      throw LoadError("pre_tokenizer: no ByteLevel step");
    }
    return splits;
  }
  const Json& steps = member(pre_tokenizer, "pretokenizers");
  if (!steps.is_array()) refuse_type("pre_tokenizer.pretokenizers", "an array", steps);
  bool byte_level = false;
  for (size_t i = 0; i < steps.size(); ++i) {
    const std::string where = fmt::format("pre_tokenizer.pretokenizers[{}]", i);
    if (byte_level)
      throw LoadError(fmt::format("{}: a step after ByteLevel isn't supported", where));
    byte_level = read_pre_tokenizer_step(steps[i], where, splits);
  }
  if (!byte_level) throw LoadError("pre_tokenizer: no ByteLevel step");
  return splits;
}

void check_decoder(const Json& decoder) {
  std::string type = type_of(decoder, "decoder");
  if (type == "Sequence") {
    const Json& steps = member(decoder, "decoders");
    if (steps.is_array() && steps.size() == 1) type = type_of(steps[0], "decoder.decoders[0]");
  }
  if (type != "ByteLevel") {
    throw LoadError(fmt::format("decoder {} isn't supported, only ByteLevel is", in_quotes(type)));
  }
}

// --- model and added tokens --------------------------------------------------------------------

using IdOfText = std::unordered_map<std::string_view, int32_t>;

void read_vocab(const Json& vocab, TokenizerFile& file) {
  if (!vocab.is_object()) refuse_type("model.vocab", "an object", vocab);
  if (vocab.empty()) throw LoadError("model.vocab: empty");
  file.vocab.reserve(vocab.size());
  std::unordered_map<int32_t, std::string_view> text_of_id;
  text_of_id.reserve(vocab.size());
  for (auto entry = vocab.begin(); entry != vocab.end(); ++entry) {
    const std::string& text = entry.key();
    const std::string where = "model.vocab." + in_quotes(text);
    const int32_t id = id_of(entry.value(), where);
    const auto [other, inserted] = text_of_id.emplace(id, text);
    if (!inserted) {
      throw LoadError(
          fmt::format("{}: id {} is also that of {}", where, id, in_quotes(other->second)));
    }
    file.vocab.push_back({text, id});
  }
}

// The two halves of a merge: "left right", or ["left", "right"].
std::pair<std::string_view, std::string_view> read_merge(const Json& merge,
                                                         std::string_view where) {
  if (merge.is_array() && merge.size() == 2) {
    return {string_of(merge[0], where), string_of(merge[1], where)};
  }
  if (!merge.is_string()) refuse_type(where, "\"left right\" or [\"left\", \"right\"]", merge);
  const std::string_view text = merge.get_ref<const std::string&>();
  const size_t space = text.find(' ');
  if (space == std::string_view::npos || text.find(' ', space + 1) != std::string_view::npos) {
    throw LoadError(fmt::format("{}: {} isn't two tokens", where, in_quotes(text)));
  }
  return {text.substr(0, space), text.substr(space + 1)};
}

void read_merges(const Json& merges, const IdOfText& id_of_text, TokenizerFile& file) {
  if (!merges.is_array()) refuse_type("model.merges", "an array", merges);
  const auto id = [&](std::string_view text, size_t i) {
    const auto found = id_of_text.find(text);
    if (found == id_of_text.end()) {
      throw LoadError(fmt::format("model.merges[{}]: {} isn't in the vocab", i, in_quotes(text)));
    }
    return found->second;
  };
  file.merges.reserve(merges.size());
  for (size_t i = 0; i < merges.size(); ++i) {
    const bool is_header =
        merges[i].is_string() && merges[i].get_ref<const std::string&>().starts_with("#version");
    if (is_header) continue;
    const auto [left, right] = read_merge(merges[i], fmt::format("model.merges[{}]", i));
    file.merges.push_back(
        {id(left, i), id(right, i), id(std::string(left) + std::string(right), i)});
  }
}

IdOfText read_model(const Json& model, TokenizerFile& file) {
  const std::string type = type_of(model, "model");
  if (type != "BPE")
    throw LoadError(fmt::format("model {} isn't supported, only BPE is", in_quotes(type)));
  for (const char* key : {"dropout", "continuing_subword_prefix", "end_of_word_suffix"}) {
    refuse_unless_empty(model, key, "model");
  }
  refuse_if_true(model, "byte_fallback", "model");
  file.ignore_merges = bool_of(model, "ignore_merges", false, "model");
  read_vocab(member(model, "vocab"), file);
  IdOfText id_of_text;
  id_of_text.reserve(file.vocab.size());
  for (const VocabEntry& entry : file.vocab) id_of_text.emplace(entry.text, entry.id);
  read_merges(member(model, "merges"), id_of_text, file);
  return id_of_text;
}

AddedToken read_added_token(const Json& token, const std::string& where) {
  if (!token.is_object()) refuse_type(where, "an object", token);
  for (const char* key : {"lstrip", "rstrip", "single_word"}) refuse_if_true(token, key, where);
  const std::string& content = string_of(member(token, "content"), where + ".content");
  if (content.empty() || content.size() > kAddedTokenBytesMax) {
    throw LoadError(fmt::format("{}.content: {} bytes, expected 1..{}", where, content.size(),
                                kAddedTokenBytesMax));
  }
  const bool special = bool_of(token, "special", false, where);
  return {content, id_of(member(token, "id"), where + ".id"), special,
          bool_of(token, "normalized", !special, where)};
}

void read_added_tokens(const Json& tokens, const IdOfText& id_of_text, TokenizerFile& file) {
  if (tokens.is_null()) return;
  if (!tokens.is_array()) refuse_type("added_tokens", "an array", tokens);
  std::unordered_map<int32_t, std::string_view> text_of_id;
  text_of_id.reserve(id_of_text.size() + tokens.size());
  for (const auto& [text, id] : id_of_text) text_of_id.emplace(id, text);
  std::unordered_set<std::string> contents;
  for (size_t i = 0; i < tokens.size(); ++i) {
    const std::string where = fmt::format("added_tokens[{}]", i);
    AddedToken token = read_added_token(tokens[i], where);
    if (!contents.insert(token.content).second) {
      throw LoadError(fmt::format("{}: {} is there twice", where, in_quotes(token.content)));
    }
    const auto in_vocab = id_of_text.find(token.content);
    if (in_vocab != id_of_text.end() && in_vocab->second != token.id) {
      throw LoadError(fmt::format("{}: {} has id {}, in the vocab {}", where,
                                  in_quotes(token.content), token.id, in_vocab->second));
    }
    const std::string_view view = *contents.find(token.content);
    const auto [other, inserted] = text_of_id.emplace(token.id, view);
    if (!inserted && other->second != token.content) {
      throw LoadError(fmt::format("{}: id {} of {} is also that of {}", where, token.id,
                                  in_quotes(token.content), in_quotes(other->second)));
    }
    file.added_tokens.push_back(std::move(token));
  }
}

// A token's content: "text", {"content": "text"}, or nothing.
std::string read_token_content(const Json& config, const char* key) {
  const Json& value = member(config, key);
  if (value.is_null()) return "";
  if (value.is_object()) return string_of(member(value, "content"), fmt::format("{}.content", key));
  return string_of(value, key);
}

// Puts the file's name before whatever `read` throws.
template <typename Read>
auto naming_file(const std::filesystem::path& path, Read read) {
  try {
    return read();
  } catch (const LoadError& error) {
    throw LoadError(fmt::format("{}: {}", path.string(), error.what()));
  }
}

}  // namespace

TokenizerFile parse_tokenizer_file(std::string_view text) {
  const Json json = parse_object(text);
  TokenizerFile file;
  file.normalizes_nfc = read_normalizer(member(json, "normalizer"));
  file.splits = read_pre_tokenizer(member(json, "pre_tokenizer"));
  check_decoder(member(json, "decoder"));
  const IdOfText id_of_text = read_model(member(json, "model"), file);
  read_added_tokens(member(json, "added_tokens"), id_of_text, file);
  file.first_token = first_token_of(member(json, "post_processor"));
  return file;
}

TokenizerConfig parse_tokenizer_config(std::string_view text) {
  const Json json = parse_object(text);
  TokenizerConfig config;
  if (!member(json, "add_bos_token").is_null()) {
    config.add_bos_token = bool_of(json, "add_bos_token", false, "tokenizer_config");
  }
  config.bos_token = read_token_content(json, "bos_token");
  config.eos_token = read_token_content(json, "eos_token");
  return config;
}

TokenizerFile read_tokenizer_file(const std::filesystem::path& path) {
  return naming_file(path, [&] { return parse_tokenizer_file(read_tokenizer_text(path)); });
}

TokenizerConfig read_tokenizer_config(const std::filesystem::path& path) {
  std::error_code error;
  if (!std::filesystem::exists(path, error)) return {};
  return naming_file(path, [&] { return parse_tokenizer_config(read_tokenizer_text(path)); });
}

}  // namespace atl::text
