// The published tokenizer of DeepSeek-R1, and with other names V3's and V3.1's, against the
// reference's ids.
#include <gtest/gtest.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>

#include "tests/support/published_tokenizer.h"
#include "text/byte_alphabet.h"
#include "text/tokenizer.h"

namespace atl::text {
namespace {

using Json = nlohmann::json;
using Ids = std::vector<int32_t>;

const std::filesystem::path kGolden = std::filesystem::path(ATOLL_SOURCE_DIR) / "tests/golden";
const std::filesystem::path kIds = kGolden / "deepseek-tokenizer";
// Ids that checkpoints name otherwise: place holders in V3.
using Names = std::map<int, std::string>;
const Names kV3 = {{128798, "<｜place▁holder▁no▁798｜>"}, {128799, "<｜place▁holder▁no▁799｜>"}};
const Names kR1 = {};
const Names kV31 = {{128796, "<｜search▁begin｜>"}, {128797, "<｜search▁end｜>"}};

std::string unzipped(const std::filesystem::path& path) {
  const std::string command = "gzip -dc '" + path.string() + "'";
  FILE* pipe = popen(command.c_str(), "r");
  std::string out;
  char buffer[65536];
  while (size_t bytes = fread(buffer, 1, sizeof buffer, pipe)) out.append(buffer, bytes);
  EXPECT_EQ(pclose(pipe), 0) << command;
  return out;
}

std::vector<Json> json_lines(std::istream& in) {
  std::vector<Json> lines;
  for (std::string line; std::getline(in, line);) lines.push_back(Json::parse(line));
  return lines;
}

std::string text_of(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  EXPECT_TRUE(in) << path;
  return {std::istreambuf_iterator<char>(in), {}};
}

// With other names. What is a place holder is special, what is none isn't.
std::string renamed(const std::string& tokenizer_json, const Names& names) {
  Json json = Json::parse(tokenizer_json);
  for (Json& token : json.at("added_tokens")) {
    const auto name = names.find(token.at("id").get<int>());
    if (name == names.end()) continue;
    token["content"] = name->second;
    token["special"] = name->second.find("place") != std::string::npos;
  }
  return json.dump();
}

class DeepseekTokenizer : public testing::Test {
 protected:
  void SetUp() override {
    if (!test::has_published_tokenizer()) GTEST_SKIP() << test::kNoPublishedTokenizer;
  }

  static Tokenizer load(const Names& names) {
    const auto dir = std::filesystem::temp_directory_path() /
                     ("atoll-deepseek-tokenizer-" + std::to_string(getpid()));
    std::filesystem::create_directories(dir);
    const std::filesystem::path published = test::published_tokenizer();
    std::ofstream(dir / "tokenizer.json", std::ios::binary)
        << renamed(text_of(published / "tokenizer.json"), names);
    std::filesystem::copy_file(published / "tokenizer_config.json", dir / "tokenizer_config.json",
                               std::filesystem::copy_options::overwrite_existing);
    Tokenizer tokenizer = Tokenizer::load(dir);
    std::filesystem::remove_all(dir);
    return tokenizer;
  }
};

void expect_ids(const Tokenizer& tokenizer, const std::string& text, const Ids& expected) {
  const auto ids = tokenizer.encode(text);
  ASSERT_TRUE(ids) << ids.error().message;
  EXPECT_EQ(*ids, expected) << Json(text);
  EXPECT_EQ(tokenizer.decode(*ids, SpecialTokens::kKeep), text);
}

TEST_F(DeepseekTokenizer, has_the_published_ids) {
  const Tokenizer tokenizer = load(kV3);
  EXPECT_EQ(tokenizer.id_end(), 128815);
  EXPECT_EQ(tokenizer.vocab_size(), 128815);
  EXPECT_EQ(tokenizer.bos_id(), 0);
  EXPECT_EQ(tokenizer.eos_id(), 1);
  EXPECT_EQ(tokenizer.token_id("<｜User｜>"), 128803);
  EXPECT_FALSE(tokenizer.is_special(128803));
}

TEST_F(DeepseekTokenizer, golden_texts) {
  const Tokenizer tokenizer = load(kV3);
  std::ifstream in(kIds / "golden.jsonl");
  const auto lines = json_lines(in);
  ASSERT_EQ(lines.size(), 305u);
  for (const Json& line : lines) {
    const Ids ids = line.at("ids");
    expect_ids(tokenizer, line.at("text"), ids);
    const std::string skipped = line.at("decoded_skip_special");
    EXPECT_EQ(tokenizer.decode(ids, SpecialTokens::kSkip), skipped) << line.at("id");
    StreamDecoder decoder(tokenizer, SpecialTokens::kSkip);
    std::string streamed;
    for (int32_t id : ids) streamed += decoder.push(id);
    EXPECT_EQ(streamed + decoder.flush(), skipped) << line.at("id");
  }
}

TEST_F(DeepseekTokenizer, golden_pieces) {
  const PreTokenizer pre_tokenizer(
      read_tokenizer_file(test::published_tokenizer() / "tokenizer.json").splits);
  std::ifstream in(kIds / "golden.jsonl");
  int compared = 0;
  for (const Json& line : json_lines(in)) {
    if (!line.contains("pieces")) continue;
    const std::string text = line.at("text");
    const auto pieces = pre_tokenizer.split(text);
    ASSERT_TRUE(pieces);
    std::vector<std::string> in_alphabet;
    for (std::string_view piece : *pieces) in_alphabet.push_back(alphabet_text_of_bytes(piece));
    EXPECT_EQ(in_alphabet, line.at("pieces").get<std::vector<std::string>>()) << line.at("id");
    ++compared;
  }
  EXPECT_GT(compared, 250);
}

TEST_F(DeepseekTokenizer, fuzzed_texts) {
  const Tokenizer tokenizer = load(kV3);
  std::istringstream in(unzipped(kIds / "fuzz-golden.jsonl.gz"));
  const auto lines = json_lines(in);
  ASSERT_EQ(lines.size(), 6000u);
  for (const Json& line : lines) expect_ids(tokenizer, line.at(0), line.at(1));
}

TEST_F(DeepseekTokenizer, rendered_chats) {
  std::map<std::string, Tokenizer> tokenizers;
  tokenizers.emplace("deepseek-v3", load(kV3));
  tokenizers.emplace("deepseek-r1", load(kR1));
  tokenizers.emplace("deepseek-v3.1", load(kV31));
  std::ifstream in(kGolden / "chat/golden-chat.jsonl");
  const auto lines = json_lines(in);
  ASSERT_EQ(lines.size(), 143u);
  for (const Json& line : lines) {
    expect_ids(tokenizers.at(line.at("template")), line.at("rendered"), line.at("ids"));
  }
}

// Class of each code point by the table, against the patterns that the tokenizer's split uses.
TEST_F(DeepseekTokenizer, code_point_classes) {
  std::ifstream in(kIds / "unicode-classes.tsv");
  std::map<std::string, std::vector<bool>> in_class;
  for (const char* name : {"LM", "N", "PS", "WS"}) in_class[name].resize(0x110000);
  for (std::string line; std::getline(in, line);) {
    if (line.starts_with('#')) continue;
    std::istringstream fields(line);
    std::string name;
    uint32_t first = 0;
    uint32_t last = 0;
    fields >> name >> std::hex >> first >> last;
    ASSERT_TRUE(fields) << line;
    for (uint32_t c = first; c <= last; ++c) in_class.at(name).at(c) = true;
  }
  const std::map<std::string, std::string> patterns = {
      {"LM", "[\\p{L}\\p{M}]"}, {"N", "\\p{N}"}, {"PS", "[\\p{P}\\p{S}]"}, {"WS", "\\s"}};
  // Each code point is followed by U+0001, which is in no class; a match is a piece without it.
  std::string text;
  for (uint32_t c = 0; c < 0x110000; ++c) {
    if (c >= 0xD800 && c < 0xE000) continue;
    append_utf8(c, text);
    text += '\x01';
  }
  for (const auto& [name, pattern] : patterns) {
    const PreTokenizer pre_tokenizer({{SplitPattern::Kind::kRegex, pattern + "(?=\\x01)"}});
    const auto pieces = pre_tokenizer.split(text);
    ASSERT_TRUE(pieces);
    std::vector<bool> matched(0x110000);
    for (std::string_view piece : *pieces) {
      if (piece.find('\x01') != std::string_view::npos) continue;
      matched.at(next_utf8_unit(piece).code_point) = true;
    }
    for (uint32_t c = 0; c < 0x110000; ++c) {
      ASSERT_EQ(matched[c], in_class.at(name)[c]) << name << " U+" << std::hex << c;
    }
  }
}

}  // namespace
}  // namespace atl::text
