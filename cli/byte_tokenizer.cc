#include <fmt/format.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "base/result.h"
#include "cli/synth.h"
#include "text/byte_alphabet.h"

namespace atl::cli {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kBosText = "<bos>";
constexpr const char* kEosText = "<eos>";
constexpr const char* kPadText = "<pad>";

Json special_token(int32_t id, const char* content) {
  return {{"id", id},        {"content", content},  {"single_word", false}, {"lstrip", false},
          {"rstrip", false}, {"normalized", false}, {"special", true}};
}

Json split(const char* pattern) {
  return {{"type", "Split"},
          {"pattern", {{"Regex", pattern}}},
          {"behavior", "Isolated"},
          {"invert", false}};
}

// Digits by threes, then CJK runs, then words, punctuation and white space; the same sequence as
// the published DeepSeek-V3 tokenizer.json.
Json pre_tokenizer() {
  const Json byte_level = {{"type", "ByteLevel"},
                           {"add_prefix_space", false},
                           {"trim_offsets", true},
                           {"use_regex", false}};
  return {{"type", "Sequence"},
          {"pretokenizers",
           {split("\\p{N}{1,3}"), split("[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"),
            split("[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|"
                  "[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|"
                  "\\s*[\r\n]+|\\s+(?!\\S)|\\s+"),
            byte_level}}};
}

Json tokenizer_json() {
  Json vocab = Json::object();
  for (int byte = 0; byte < 256; ++byte) {
    vocab[text::alphabet_text_of_bytes(std::string(1, static_cast<char>(byte)))] =
        kByteTokenizerPad + 1 + byte;
  }
  return {{"version", "1.0"},
          {"truncation", nullptr},
          {"padding", nullptr},
          {"added_tokens",
           {special_token(kByteTokenizerBos, kBosText), special_token(kByteTokenizerEos, kEosText),
            special_token(kByteTokenizerPad, kPadText)}},
          {"normalizer", nullptr},
          {"pre_tokenizer", pre_tokenizer()},
          {"post_processor", nullptr},
          {"decoder",
           {{"type", "ByteLevel"},
            {"add_prefix_space", true},
            {"trim_offsets", true},
            {"use_regex", true}}},
          {"model",
           {{"type", "BPE"},
            {"dropout", nullptr},
            {"unk_token", nullptr},
            {"continuing_subword_prefix", nullptr},
            {"end_of_word_suffix", nullptr},
            {"fuse_unk", false},
            {"byte_fallback", false},
            {"vocab", vocab},
            {"merges", Json::array()}}}};
}

void write_json(const std::filesystem::path& file, const Json& json) {
  std::ofstream out(file, std::ios::binary | std::ios::trunc);
  out << json.dump(1) << '\n';
  if (!out.flush()) throw LoadError(fmt::format("{}: cannot be written", file.string()));
}

}  // namespace

void write_byte_tokenizer(const std::filesystem::path& dir) {
  write_json(dir / "tokenizer.json", tokenizer_json());
  write_json(dir / "tokenizer_config.json", {{"add_bos_token", true},
                                             {"add_eos_token", false},
                                             {"bos_token", kBosText},
                                             {"eos_token", kEosText},
                                             {"pad_token", kPadText},
                                             {"tokenizer_class", "LlamaTokenizerFast"}});
}

}  // namespace atl::cli
