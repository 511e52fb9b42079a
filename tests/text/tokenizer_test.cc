#include "text/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>

#include "text/nfc.h"

namespace atl::text {
namespace {

using Json = nlohmann::json;
using Ids = std::vector<int32_t>;
const std::filesystem::path kSourceDir = ATOLL_SOURCE_DIR;

const Tokenizer& tiny() {
  static const Tokenizer tokenizer = Tokenizer::load(kSourceDir / "tests/models/tiny-fp8");
  return tokenizer;
}

Ids encode(const Tokenizer& tokenizer, std::string_view text, EncodeOptions options = {}) {
  const auto ids = tokenizer.encode(text, options);
  EXPECT_TRUE(ids) << ids.error().message;
  return ids ? *ids : Ids{};
}

std::string decode(const Tokenizer& tokenizer, const Ids& ids) {
  return tokenizer.decode(ids, SpecialTokens::kKeep);
}

// Decodes byte by byte of what tokens give, as a client of a stream sees it.
std::string decode_as_stream(const Tokenizer& tokenizer, const Ids& ids) {
  StreamDecoder decoder(tokenizer, SpecialTokens::kKeep);
  std::string out;
  for (int32_t id : ids) {
    const std::string part = decoder.push(id);
    EXPECT_TRUE(is_valid_utf8(part));
    out += part;
  }
  return out + decoder.flush();
}

TEST(Tokenizer, gives_the_reference_ids_of_the_golden_texts) {
  std::ifstream in(kSourceDir / "tests/golden/index.json");
  const Json golden = Json::parse(in).at("tokenizer");
  ASSERT_EQ(golden.size(), 20u);
  for (const Json& entry : golden) {
    const std::string text = entry.at("text");
    EXPECT_EQ(encode(tiny(), text), entry.at("ids").get<Ids>()) << text;
    EXPECT_EQ(decode(tiny(), encode(tiny(), text)), text);
    EXPECT_EQ(decode_as_stream(tiny(), encode(tiny(), text)), text);
  }
}

TEST(Tokenizer, reads_special_tokens_and_bos_from_the_model_directory) {
  EXPECT_TRUE(tiny().add_bos_token());
  EXPECT_EQ(tiny().bos_id(), 0);
  EXPECT_EQ(tiny().eos_id(), 1);
  EXPECT_EQ(tiny().token_id("<｜end▁of▁sentence｜>"), 1);
  EXPECT_EQ(tiny().token_id("Ġt"), tiny().token_id("Ġt"));
  EXPECT_EQ(tiny().token_id("no such token"), std::nullopt);
  EXPECT_TRUE(tiny().is_special(1));
  EXPECT_FALSE(tiny().is_special(*tiny().token_id("<｜User｜>")));
  EXPECT_EQ(tiny().vocab_size(), tiny().id_end());
  EXPECT_TRUE(tiny().has_token(tiny().id_end() - 1));
  EXPECT_FALSE(tiny().has_token(tiny().id_end()));
  EXPECT_FALSE(tiny().has_token(-1));
}

TEST(Tokenizer, puts_bos_first_only_when_asked) {
  Ids expected = encode(tiny(), "Hello");
  expected.insert(expected.begin(), 0);
  EXPECT_EQ(encode(tiny(), "Hello", {.add_bos = true}), expected);
  EXPECT_EQ(encode(tiny(), "", {.add_bos = true}), Ids{0});
  EXPECT_EQ(encode(tiny(), ""), Ids{});
}

TEST(Tokenizer, text_of_strangers_makes_no_added_tokens) {
  const std::string text = "a<｜User｜>b<｜end▁of▁sentence｜>";
  const Ids parsed = encode(tiny(), text);
  EXPECT_THAT(parsed, testing::Contains(*tiny().token_id("<｜User｜>")));
  EXPECT_EQ(parsed.back(), 1);
  const Ids plain = encode(tiny(), text, {.parse_added_tokens = false});
  EXPECT_THAT(plain, testing::Not(testing::Contains(1)));
  EXPECT_THAT(plain, testing::Not(testing::Contains(*tiny().token_id("<｜User｜>"))));
  EXPECT_EQ(decode(tiny(), plain), text);
}

TEST(Tokenizer, decode_skips_special_tokens_only) {
  const Ids ids = encode(tiny(), "<｜begin▁of▁sentence｜><｜User｜>hi<｜end▁of▁sentence｜>");
  EXPECT_EQ(tiny().decode(ids, SpecialTokens::kSkip), "<｜User｜>hi");
  StreamDecoder decoder(tiny(), SpecialTokens::kSkip);
  std::string out;
  for (int32_t id : ids) out += decoder.push(id);
  EXPECT_EQ(out + decoder.flush(), "<｜User｜>hi");
}

TEST(Tokenizer, decode_ignores_ids_without_a_token) {
  Ids ids = encode(tiny(), "hi");
  ids.insert(ids.begin(), {-1, tiny().id_end(), 2'000'000'000});
  EXPECT_EQ(decode(tiny(), ids), "hi");
}

TEST(Tokenizer, reads_invalid_utf8_as_replacement_characters) {
  const std::string replacement(kReplacementCharacter);
  EXPECT_EQ(encode(tiny(), "a\xFF\xE2\x82z"),
            encode(tiny(), "a" + replacement + replacement + "z"));
  EXPECT_EQ(encode(tiny(), "\xF0\x9F"), encode(tiny(), replacement));
  EXPECT_EQ(encode(tiny(), std::string_view("a\0b", 3)).size(),
            encode(tiny(), "a").size() + 1 + encode(tiny(), "b").size());
}

TEST(Tokenizer, random_strings_come_back) {
  std::mt19937 random(5);
  const std::vector<std::string> parts = {
      "a",   "Zeb", " ",      "  ",     "\n",     "\r\n",   "\t",          "1", "2345",       "é",
      "ß",   "中",  "文字",   "カ",     "・",     "😀",      "👩‍💻", "़",  "<｜User｜>", "<｜",
      "｜>", "'s",  "\u00A0", "\u2028", "\u200D", "\u1734", "{}",          "٣", "Ⅷ"};
  for (int i = 0; i < 2000; ++i) {
    std::string text;
    for (uint32_t n = random() % 20; n > 0; --n) text += parts[random() % parts.size()];
    const Ids ids = encode(tiny(), text);
    EXPECT_EQ(decode(tiny(), ids), text);
    EXPECT_EQ(decode_as_stream(tiny(), ids), text);
  }
}

// The single-byte tokens, in the order of their bytes.
Ids byte_tokens(std::string_view bytes) {
  Ids ids;
  for (char byte : bytes) {
    for (int32_t id = 3; id < 259; ++id) {
      if (tiny().token_bytes(id) == std::string_view(&byte, 1)) ids.push_back(id);
    }
  }
  return ids;
}

TEST(StreamDecoder, holds_back_an_incomplete_character_and_nothing_more) {
  StreamDecoder decoder(tiny(), SpecialTokens::kKeep);
  const Ids ids = byte_tokens("x😀y");
  ASSERT_EQ(ids.size(), 6u);
  const std::vector<std::string> expected = {"x", "", "", "", "😀", "y"};
  for (size_t i = 0; i < ids.size(); ++i) EXPECT_EQ(decoder.push(ids[i]), expected[i]);
  EXPECT_EQ(decoder.flush(), "");
}

TEST(StreamDecoder, replaces_what_cannot_become_a_character) {
  const std::string bytes =
      "\xE2\x82"
      "A\xF0\x9F\x98\xC3\xA9\x80\xED\xA0\x80\xF0\x9F";
  const std::string repaired = repair_utf8(bytes);
  EXPECT_EQ(decode(tiny(), byte_tokens(bytes)), repaired);
  EXPECT_EQ(decode_as_stream(tiny(), byte_tokens(bytes)), repaired);
  // One per maximal subpart: E2 82 | F0 9F 98 | 80 | ED | A0 | 80 | F0 9F.
  const std::string r(kReplacementCharacter);
  EXPECT_EQ(repaired, r + "A" + r + "é" + r + r + r + r + r);
}

// --- small tokenizer files made here -----------------------------------------------------------

// A tokenizer of the 256 bytes (id = byte) and `merges`, whose results get ids from 256 on.
Json small_file(const std::vector<std::pair<std::string, std::string>>& merges = {}) {
  Json vocab = Json::object();
  for (int byte = 0; byte < 256; ++byte) {
    std::string text;
    static const auto self = [](int b) {
      return (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
    };
    int others = 0;
    for (int b = 0; b < byte; ++b) others += self(b) ? 0 : 1;
    append_utf8(static_cast<uint32_t>(self(byte) ? byte : 0x100 + others), text);
    vocab[text] = byte;
  }
  Json rules = Json::array();
  int next = 256;
  for (const auto& [left, right] : merges) {
    rules.push_back(left + " " + right);
    if (!vocab.contains(left + right)) vocab[left + right] = next++;
  }
  return {
      {"added_tokens", Json::array()},
      {"normalizer", nullptr},
      {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}},
      {"decoder", {{"type", "ByteLevel"}}},
      {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", rules}}}};
}

Json split_step(const std::string& regex) {
  return {{"type", "Split"},
          {"pattern", {{"Regex", regex}}},
          {"behavior", "Isolated"},
          {"invert", false}};
}

class SmallTokenizer : public testing::Test {
 protected:
  SmallTokenizer() {
    dir_ = std::filesystem::temp_directory_path() /
           ("atoll-tokenizer-" + std::to_string(getpid()) + "-" +
            testing::UnitTest::GetInstance()->current_test_info()->name());
    std::filesystem::create_directories(dir_);
  }
  ~SmallTokenizer() override { std::filesystem::remove_all(dir_); }

  void write(const std::string& text, const std::string& name = "tokenizer.json") {
    std::ofstream(dir_ / name, std::ios::binary) << text;
  }
  Tokenizer load(const Json& json) {
    write(json.dump());
    return Tokenizer::load(dir_);
  }
  // The one line that loading ends with.
  std::string refusal() {
    try {
      Tokenizer::load(dir_);
    } catch (const LoadError& error) {
      const std::string what = error.what();
      EXPECT_EQ(what.find('\n'), std::string::npos) << what;
      EXPECT_THAT(what, testing::HasSubstr(dir_.string()));
      EXPECT_LT(what.size(), 600u);
      return what;
    }
    ADD_FAILURE() << "loaded";
    return "";
  }
  std::string refusal(const Json& json) {
    write(json.dump());
    return refusal();
  }

  std::filesystem::path dir_;
};

TEST_F(SmallTokenizer, merges_lowest_rank_first_and_leftmost_of_equals) {
  const Tokenizer tokenizer = load(small_file({{"b", "c"}, {"a", "b"}, {"a", "a"}, {"aa", "a"}}));
  EXPECT_EQ(encode(tokenizer, "abc"), (Ids{'a', 256}));
  EXPECT_EQ(encode(tokenizer, "aaab"), (Ids{258, 257}));
  EXPECT_EQ(encode(tokenizer, "aaa"), (Ids{259}));
  EXPECT_EQ(encode(tokenizer, "aaaaa"), (Ids{258, 259}));
}

TEST_F(SmallTokenizer, accepts_merges_as_pairs_and_a_version_line) {
  Json json = small_file({{"a", "b"}, {"ab", "c"}});
  json["model"]["merges"] = Json::parse(R"([["a", "b"], ["ab", "c"]])");
  EXPECT_EQ(encode(load(json), "abc"), Ids{257});
  json["model"]["merges"] = {"#version: 0.2", "a b", "ab c"};
  EXPECT_EQ(encode(load(json), "abc"), Ids{257});
}

TEST_F(SmallTokenizer, ignore_merges_takes_a_whole_piece_that_is_a_token) {
  Json json = small_file({{"a", "b"}, {"c", "d"}});
  json["model"]["vocab"]["abcd"] = 400;
  EXPECT_EQ(encode(load(json), "abcd"), (Ids{256, 257}));
  json["model"]["ignore_merges"] = true;
  const Tokenizer tokenizer = load(json);
  EXPECT_EQ(encode(tokenizer, "abcd"), Ids{400});
  EXPECT_EQ(encode(tokenizer, "abcde"), (Ids{256, 257, 'e'}));
  EXPECT_EQ(tokenizer.id_end(), 401);
  EXPECT_EQ(tokenizer.vocab_size(), 259);
  EXPECT_FALSE(tokenizer.has_token(300));
}

TEST_F(SmallTokenizer, added_tokens_leftmost_longest_in_two_passes) {
  Json json = small_file();
  const auto add = [&](const char* content, int id, bool normalized) {
    json["added_tokens"].push_back(
        {{"content", content}, {"id", id}, {"special", false}, {"normalized", normalized}});
  };
  add("<a", 300, false);
  add("<a><b>", 301, false);
  add("x<a", 302, true);  // the first pass has taken its "<a" away already
  add(">>", 303, true);
  const Tokenizer tokenizer = load(json);
  EXPECT_EQ(encode(tokenizer, "<a><b>"), Ids{301});
  EXPECT_EQ(encode(tokenizer, "<a><b"), (Ids{300, '>', '<', 'b'}));
  EXPECT_EQ(encode(tokenizer, "x<a>>"), (Ids{'x', 300, 303}));
  EXPECT_EQ(encode(tokenizer, "x<>>>"), (Ids{'x', '<', 303, '>'}));
}

TEST_F(SmallTokenizer, splits_are_applied_to_each_piece_on_its_own) {
  Json json = small_file({{"a", "b"}, {"1", "2"}, {"Ġ", "Ġ"}});
  json["pre_tokenizer"] = {
      {"type", "Sequence"},
      {"pretokenizers",
       {split_step("\\p{N}"),
        split_step("\\s+(?!\\S)|\\s+"),
        {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}}}};
  const Tokenizer tokenizer = load(json);
  EXPECT_EQ(encode(tokenizer, "12"), (Ids{'1', '2'}));
  EXPECT_EQ(encode(tokenizer, "ab  ab"), (Ids{256, ' ', ' ', 256}));  // the last space stays apart
  EXPECT_EQ(encode(tokenizer, "ab  1"), (Ids{256, 258, '1'}));  // look-ahead sees the piece's end
}

TEST_F(SmallTokenizer, byte_level_with_regex_uses_the_gpt2_pattern) {
  Json json = small_file({{"'", "s"}, {"Ġ", "a"}, {"s", "Ġ"}});
  json["pre_tokenizer"]["use_regex"] = true;
  const Tokenizer tokenizer = load(json);
  EXPECT_EQ(encode(tokenizer, "a's a"), (Ids{'a', 256, 257}));
}

TEST_F(SmallTokenizer, literal_patterns_and_digits) {
  Json json = small_file({{".", "."}, {"1", "2"}});
  Json step = split_step("");
  step["pattern"] = {{"String", "."}};
  const Json byte_level = json["pre_tokenizer"];
  json["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", {step, byte_level}}};
  EXPECT_EQ(encode(load(json), "..12"), (Ids{'.', '.', 257}));
  json["pre_tokenizer"]["pretokenizers"][0] = {{"type", "Digits"}, {"individual_digits", true}};
  EXPECT_EQ(encode(load(json), "..12"), (Ids{256, '1', '2'}));
  json["pre_tokenizer"]["pretokenizers"][0] = {{"type", "Digits"}, {"individual_digits", false}};
  EXPECT_EQ(encode(load(json), "..12"), (Ids{256, 257}));
}

TEST_F(SmallTokenizer, a_pattern_that_backtracks_without_end_is_an_error_not_lost_text) {
  Json json = small_file();
  json["pre_tokenizer"] = {{"type", "Sequence"},
                           {"pretokenizers", {split_step("(a+)+$"), json["pre_tokenizer"]}}};
  const auto ids = load(json).encode(std::string(64, 'a') + "b");
  ASSERT_FALSE(ids);
  EXPECT_EQ(ids.error().code, ErrorCode::kInvalid);
  EXPECT_THAT(ids.error().message, testing::HasSubstr("split 0"));
}

TEST_F(SmallTokenizer, bos_comes_from_the_config_in_either_form_or_not_at_all) {
  const Json json = small_file();
  EXPECT_EQ(load(json).bos_id(), std::nullopt);
  EXPECT_FALSE(load(json).add_bos_token());
  EXPECT_FALSE(load(json).encode("a", {.add_bos = true}));
  write(R"({"add_bos_token": true, "bos_token": "a", "eos_token": {"content": "b"}})",
        "tokenizer_config.json");
  EXPECT_EQ(load(json).bos_id(), 'a');
  EXPECT_EQ(load(json).eos_id(), 'b');
  EXPECT_TRUE(load(json).add_bos_token());
  write(R"({"bos_token": "nowhere"})", "tokenizer_config.json");
  EXPECT_THAT(refusal(), testing::HasSubstr("\"nowhere\""));
  write(R"({"add_bos_token": 1})", "tokenizer_config.json");
  EXPECT_THAT(refusal(), testing::HasSubstr("add_bos_token"));
  write("[", "tokenizer_config.json");
  EXPECT_THAT(refusal(), testing::HasSubstr("not JSON"));
}

// --- hostile files -----------------------------------------------------------------------------

struct Damage {
  const char* pointer;  // where in the file
  Json value;           // what is put there
  const char* named;    // what the refusal must say
};

TEST_F(SmallTokenizer, refuses_each_damaged_field_by_name) {
  const Json added = {{"content", "<x>"}, {"id", 300}};
  const auto added_with = [&](const char* key, const Json& value) {
    Json token = added;
    token[key] = value;
    return Json::array({token});
  };
  const std::vector<Damage> all = {
      {"/model", nullptr, "model: expected an object"},
      {"/model/type", "Unigram", "Unigram"},
      {"/model/type", 3, "model.type: expected a string"},
      {"/model/dropout", 0.1, "model.dropout"},
      {"/model/byte_fallback", true, "model.byte_fallback"},
      {"/model/continuing_subword_prefix", "##", "continuing_subword_prefix"},
      {"/model/ignore_merges", "yes", "model.ignore_merges"},
      {"/model/vocab", Json::array(), "model.vocab: expected an object"},
      {"/model/vocab", Json::object(), "model.vocab: empty"},
      {"/model/vocab/a", -1, "model.vocab.\"a\": id -1"},
      {"/model/vocab/a", 98, "id 98 is also that of"},
      {"/model/vocab/a", 97.5, "model.vocab.\"a\": expected an id"},
      {"/model/vocab/a", "97", "model.vocab.\"a\": expected an id"},
      {"/model/vocab/a", 2147483648u, "id 2147483648"},
      {"/model/vocab/a", 18446744073709551615u, "id 18446744073709551615"},
      {"/model/vocab/a", 4194304, "id 4194304"},
      {"/model/merges", "a b", "model.merges: expected an array"},
      {"/model/merges", {"a bb"}, "model.merges[0]: \"bb\" isn't in the vocab"},
      {"/model/merges", {"a c"}, "model.merges[0]: \"ac\" isn't in the vocab"},
      {"/model/merges", {"a b", "ab"}, "model.merges[1]: \"ab\" isn't two tokens"},
      {"/model/merges", {"a b c"}, "isn't two tokens"},
      {"/model/merges", {{"a", "b", "c"}}, "model.merges[0]: expected"},
      {"/model/merges", Json::parse(R"([["a", 1]])"), "model.merges[0]: expected a string"},
      {"/model/merges", {7}, "model.merges[0]: expected"},
      {"/added_tokens", "x", "added_tokens: expected an array"},
      {"/added_tokens", {1}, "added_tokens[0]: expected an object"},
      {"/added_tokens", added_with("id", -5), "added_tokens[0].id: id -5"},
      {"/added_tokens", added_with("id", nullptr), "added_tokens[0].id"},
      {"/added_tokens", added_with("id", 98), "id 98 of \"<x>\" is also that of \"b\""},
      {"/added_tokens", added_with("content", ""), "added_tokens[0].content: 0 bytes"},
      {"/added_tokens", added_with("content", std::string(1025, 'x')), "1025 bytes"},
      {"/added_tokens", added_with("content", "a"), "\"a\" has id 300, in the vocab 97"},
      {"/added_tokens", added_with("lstrip", true), "added_tokens[0].lstrip true"},
      {"/added_tokens", added_with("rstrip", true), "added_tokens[0].rstrip true"},
      {"/added_tokens", added_with("single_word", true), "added_tokens[0].single_word true"},
      {"/added_tokens", added_with("special", 1), "added_tokens[0].special"},
      {"/added_tokens", {added, added}, "added_tokens[1]: \"<x>\" is there twice"},
      {"/normalizer", {{"type", "NFKC"}}, "normalizer \"NFKC\" isn't supported, only NFC is"},
      {"/post_processor",
       {{"type", "TemplateProcessing"}, {"single", {{{"SpecialToken", 1}}}}},
       "SpecialToken: expected an object"},
      {"/post_processor",
       {{"type", "TemplateProcessing"}, {"single", {{{"SpecialToken", {{"id", "<s>"}}}}}}},
       "no token \"<s>\", which the post_processor puts first"},
      {"/normalizer",
       {{"type", "Sequence"}, {"normalizers", {{{"type", "Lowercase"}}}}},
       "Lowercase"},
      {"/normalizer", {{"type", "Sequence"}}, "normalizer.normalizers"},
      {"/decoder", nullptr, "decoder"},
      {"/decoder/type", "Metaspace", "decoder \"Metaspace\""},
      {"/pre_tokenizer", nullptr, "ByteLevel is needed"},
      {"/pre_tokenizer/type", "Whitespace", "Whitespace"},
      {"/pre_tokenizer/add_prefix_space", true, "add_prefix_space"},
      {"/pre_tokenizer/use_regex", 0, "use_regex"},
      {"/pre_tokenizer", split_step("a"), "no ByteLevel"},
      {"/pre_tokenizer", {{"type", "Sequence"}, {"pretokenizers", Json::array()}}, "no ByteLevel"},
      {"/pre_tokenizer", {{"type", "Sequence"}, {"pretokenizers", 1}}, "pretokenizers"},
  };
  for (const Damage& damage : all) {
    Json json = small_file({{"a", "b"}});
    json[Json::json_pointer(damage.pointer)] = damage.value;
    EXPECT_THAT(refusal(json), testing::HasSubstr(damage.named)) << damage.pointer;
  }
}

TEST_F(SmallTokenizer, refuses_patterns_that_it_cannot_run_as_the_reference_does) {
  const std::vector<std::pair<std::string, std::string>> all = {
      {"(", "parenthes"},
      {"[a", "character class"},
      {"a**b)", ""},
      {"\\p{Thai}", "property Thai"},
      {"\\p{L", "\\p"},
      {"\\w+", "escape \\w"},
      {"\\bx", "escape \\b"},
      {"\\R", "escape \\R"},
      {"(a)\\1", "escape \\1"},
      {"[[:alpha:]]", "a class by name"},
      {"[a&&[b-\\d]]", "a range to a set"},
      {"[a&&b", "character class without ]"},
      {std::string(40, '[') + "a" + std::string(40, ']'), "nested this deep"},
      {"[z-a]", "descending"},
      {"(?s:.)", "group (?s:"},
      {"(*UTF)", "group (*UT"},
      {"(?P<n>a)", "group"},
      {"\\xE4", "raw byte"},
      {"\\x{110000}", "no character"},
      {"\\uD800", "no character"},
      {"a{1,3}+", "a + behind"},
      {"a\\", "backslash"},
      {"[\\s-a]", "range"},
      {std::string(65537, 'a'), "65537 bytes"},
      {"", "empty"},
      {std::string(1000, '(') + std::string(1000, ')'), ""}};
  for (const auto& [pattern, named] : all) {
    Json json = small_file();
    json["pre_tokenizer"] = {{"type", "Sequence"},
                             {"pretokenizers", {split_step(pattern), json["pre_tokenizer"]}}};
    const std::string what = refusal(json);
    EXPECT_THAT(what, testing::HasSubstr("split 0"));
    EXPECT_THAT(what, testing::HasSubstr(named)) << pattern.substr(0, 40);
  }
}

// Ids of the Hugging Face library: tests/golden/make_pre_tokenizers.py.
TEST_F(SmallTokenizer, runs_scripts_and_classes_with_classes_in_them_as_the_reference_does) {
  const std::filesystem::path source = ATOLL_SOURCE_DIR;
  std::ifstream model(source / "tests/models/tiny-fp8/tokenizer.json");
  Json json = Json::parse(model);
  std::ifstream in(source / "tests/golden/pre_tokenizers.jsonl");
  std::optional<Tokenizer> tokenizer;
  std::string pattern;
  size_t num_texts = 0;
  for (std::string line; std::getline(in, line); ++num_texts) {
    const Json row = Json::parse(line);
    if (row["pattern"] != pattern) {
      pattern = row["pattern"];
      json["pre_tokenizer"] = {
          {"type", "Sequence"},
          {"pretokenizers",
           {split_step(pattern),
            {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}}}};
      tokenizer.emplace(load(json));
    }
    EXPECT_EQ(*tokenizer->encode(row["text"].get<std::string>()),
              row["ids"].get<std::vector<int32_t>>())
        << pattern << " " << row["text"];
  }
  EXPECT_GT(num_texts, 500u);
}

// Ids of the Hugging Face library: tests/golden/make_dense_tokenizers.py.
TEST_F(SmallTokenizer, gives_the_reference_ids_with_what_qwen2_and_llama3_add) {
  const std::filesystem::path source = ATOLL_SOURCE_DIR;
  std::ifstream in(source / "tests/golden/dense_tokenizers.jsonl");
  std::optional<Tokenizer> tokenizer;
  std::string kind;
  size_t num_texts = 0;
  for (std::string line; std::getline(in, line);) {
    const Json row = Json::parse(line);
    if (row.contains("kind")) {
      kind = row["kind"];
      std::ifstream model(source / "tests/models/tiny-fp8/tokenizer.json");
      Json json = Json::parse(model);
      json.update(row["set"]);
      json["model"]["vocab"].update(row["vocab"]);
      json["model"]["ignore_merges"] = row["ignore_merges"];
      tokenizer.emplace(load(json));
      // No tokenizer_config.json here: the post_processor alone says whether there is a BOS.
      EXPECT_EQ(tokenizer->add_bos_token(), kind == "llama3");
      continue;
    }
    ++num_texts;
    const std::string text = row["text"];
    EXPECT_EQ(*tokenizer->encode(text), row["ids"].get<std::vector<int32_t>>())
        << kind << " " << row["text"];
    const auto first = row["with_special"].get<std::vector<int32_t>>();
    if (kind == "llama3") {
      EXPECT_EQ(*tokenizer->bos_id(), first.at(0));
    }
  }
  EXPECT_GT(num_texts, 600u);
}

// A letter with a million marks is put in order in less time than a square would take.
TEST(Nfc, sorts_any_number_of_marks) {
  std::string text = "a";
  for (int i = 0; i < 500'000; ++i) text += i % 2 ? "\xCC\x81" : "\xCC\xA3";  // U+0301, U+0323
  const std::string normal = to_nfc(text);
  EXPECT_TRUE(normal.starts_with("\xE1\xBA\xA1\xCC\xA3"));  // U+1EA1, then the other U+0323
  EXPECT_TRUE(normal.ends_with("\xCC\x81\xCC\x81"));
  EXPECT_EQ(to_nfc(normal), normal);
  EXPECT_EQ(to_nfc(""), "");
  EXPECT_EQ(to_nfc("plain \xC3\xA9"), "plain \xC3\xA9");
  EXPECT_EQ(to_nfc("xe\xCC\x81y"), "x\xC3\xA9y");
}

TEST_F(SmallTokenizer, refuses_split_behaviours_and_steps_by_name) {
  Json step = split_step("a");
  Json json = small_file();
  const Json byte_level = json["pre_tokenizer"];
  for (const char* behavior : {"Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous"}) {
    step["behavior"] = behavior;
    json["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", {step, byte_level}}};
    EXPECT_THAT(refusal(json), testing::HasSubstr(behavior));
  }
  json["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", {byte_level, split_step("a")}}};
  EXPECT_THAT(refusal(json), testing::HasSubstr("after ByteLevel"));
  step["behavior"] = "Isolated";
  step["pattern"] = {{"Glob", "*"}};
  json["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", {step, byte_level}}};
  EXPECT_THAT(refusal(json), testing::HasSubstr("Glob"));
}

TEST_F(SmallTokenizer, refuses_a_vocabulary_without_every_byte) {
  Json json = small_file();
  json["model"]["vocab"].erase("A");
  EXPECT_THAT(refusal(json), testing::HasSubstr("byte 0x41"));
}

TEST_F(SmallTokenizer, refuses_what_is_no_json_object_file) {
  EXPECT_THAT(refusal(), testing::EndsWith("no such file"));
  std::ofstream(dir_ / "tokenizer.model") << "x";
  EXPECT_THAT(refusal(), testing::HasSubstr("tokenizer.model is of another kind"));
  for (const char* text : {"", "[]", "nonsense", "{\"a\": ", "\xFF\xFE", "{\"a\":\"\\ud800\"}"}) {
    write(text);
    EXPECT_THAT(refusal(), testing::HasSubstr("JSON")) << text;
  }
  write(std::string(10'000'000, '['));
  EXPECT_THAT(refusal(), testing::HasSubstr("nested deeper than 64"));
  write("{\"a\":" + std::string(1000, '[') + std::string(1000, ']') + "}");
  EXPECT_THAT(refusal(), testing::HasSubstr("nested deeper"));
  std::filesystem::resize_file(dir_ / "tokenizer.json", uint64_t{2} << 30);
  EXPECT_THAT(refusal(), testing::HasSubstr("2147483648 bytes, more than"));
  std::filesystem::remove(dir_ / "tokenizer.json");
  std::filesystem::create_directory(dir_ / "tokenizer.json");
  EXPECT_THAT(refusal(), testing::HasSubstr("no such file"));
}

// --- long inputs -------------------------------------------------------------------------------

// The time-out of the test is the assertion: something quadratic takes hours here.
TEST(Tokenizer, a_megabyte_of_anything_comes_back) {
  const std::vector<std::string> units = {
      "a", " ",    "1",       "\n",     "\r\n", " \n", "中", "カ", "é",   ".",
      "<", "<｜",  "\u200D",  "\u00A0", "़",     "a ",  " a", "a1", "\t ", "the quick 12345 中文 ",
      "😀", "\xFF", "\xE2\x82"};
  for (const std::string& unit : units) {
    std::string text;
    while (text.size() < 1'000'000) text += unit;
    for (const char* tail : {"", "x", "\n", "1"}) {
      const std::string whole = text + tail;
      EXPECT_EQ(decode(tiny(), encode(tiny(), whole)), repair_utf8(whole)) << unit;
    }
  }
}

TEST(BytePairEncoder, work_grows_with_the_bytes_not_their_square) {
  std::array<int32_t, 256> bytes;
  for (int i = 0; i < 256; ++i) bytes[i] = i;
  std::vector<MergeRule> rules;  // a a -> 256, 256 256 -> 257, ...: a tree over all bytes
  for (int level = 0; level < 20; ++level) {
    const int32_t half = level == 0 ? 'a' : 255 + level;
    rules.push_back({half, half, 256 + level});
  }
  const BytePairEncoder encoder(bytes, rules);
  BytePairEncoder::Scratch scratch;
  std::vector<int32_t> ids;
  constexpr size_t kBytes = 1 << 20;
  encoder.encode(std::string(kBytes, 'a'), scratch, ids);
  EXPECT_EQ(ids, std::vector<int32_t>{275});
  // Each byte begins one pair and each merge makes at most two: 3n pushes, as many pops.
  EXPECT_LE(scratch.heap_operations, 6 * kBytes);
  EXPECT_GE(scratch.heap_operations, kBytes);
}

}  // namespace
}  // namespace atl::text
