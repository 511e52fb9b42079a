// tiktoken.model in place of tokenizer.json: the ids are tiktoken's.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/support/temp_dir.h"
#include "text/tokenizer.h"

namespace atl::text {
namespace {

using nlohmann::json;
using testing::HasSubstr;

// Of tests/golden/make_tiktoken.py; ATOLL_TIKTOKEN_CASES names a larger set of it.
std::filesystem::path cases() {
  const char* folder = std::getenv("ATOLL_TIKTOKEN_CASES");
  return folder != nullptr ? folder : ATOLL_SOURCE_DIR "/tests/golden/tiktoken";
}

TEST(Tiktoken, ids_are_those_of_the_reference_and_go_back_to_the_text) {
  const Tokenizer tokenizer = Tokenizer::load(cases());
  std::ifstream in(cases() / "ids.jsonl");
  size_t num_texts = 0, num_ids = 0;
  for (std::string line; std::getline(in, line); ++num_texts) {
    const json row = json::parse(line);
    const auto text = row["text"].get<std::string>();
    const auto ids = row["ids"].get<std::vector<int32_t>>();
    num_ids += ids.size();
    ASSERT_EQ(*tokenizer.encode(text), ids) << row["text"];
    ASSERT_EQ(tokenizer.decode(ids, SpecialTokens::kKeep), text);
  }
  EXPECT_GE(num_texts, 400u);
  std::cout << num_texts << " texts, " << num_ids << " ids\n";
}

TEST(Tiktoken, special_tokens_are_those_behind_the_ranks) {
  const Tokenizer tokenizer = Tokenizer::load(ATOLL_SOURCE_DIR "/tests/golden/tiktoken");
  const int32_t begin = *tokenizer.token_id("[BOS]");
  EXPECT_EQ(tokenizer.bos_id(), begin);
  EXPECT_EQ(tokenizer.eos_id(), begin + 1);
  EXPECT_FALSE(tokenizer.add_bos_token());
  EXPECT_EQ(tokenizer.id_end(), begin + 256);
  EXPECT_EQ(tokenizer.token_id("<|reserved_token_" + std::to_string(begin + 5) + "|>"), begin + 5);
  EXPECT_TRUE(tokenizer.is_special(*tokenizer.token_id("<|im_end|>")));
  EXPECT_FALSE(tokenizer.is_special(*tokenizer.token_id("<|tool_call_begin|>")));
  const auto ids = *tokenizer.encode("<|im_middle|>a<|im_end|>");
  EXPECT_EQ(ids.front(), begin + 17);
  EXPECT_EQ(tokenizer.decode(ids, SpecialTokens::kSkip), "a");
}

class TiktokenFile : public testing::Test {
 protected:
  void SetUp() override {
    for (const char* name : {"tiktoken.model", "tokenizer_config.json"}) {
      std::filesystem::copy(std::filesystem::path(ATOLL_SOURCE_DIR "/tests/golden/tiktoken") / name,
                            dir_ / name);
    }
  }
  std::string refusal() {
    try {
      Tokenizer::load(dir_.path());
    } catch (const LoadError& error) {
      return error.what();
    }
    return "loaded";
  }
  void change_config(const std::function<void(json&)>& change) {
    json config = json::parse(std::ifstream(dir_ / "tokenizer_config.json"));
    change(config);
    std::ofstream(dir_ / "tokenizer_config.json") << config;
  }

  test::TempDir dir_;
};

TEST_F(TiktokenFile, of_another_class_is_refused_by_name) {
  change_config([](json& config) { config["tokenizer_class"] = "QWenTokenizer"; });
  EXPECT_THAT(refusal(), HasSubstr("tokenizer_class \"QWenTokenizer\" isn't supported"));
}

TEST_F(TiktokenFile, without_a_config_is_refused) {
  std::filesystem::remove(dir_ / "tokenizer_config.json");
  EXPECT_THAT(refusal(), HasSubstr("names the special tokens"));
}

TEST_F(TiktokenFile, with_tokens_out_of_place_is_refused) {
  change_config([](json& config) { config["added_tokens_decoder"]["3"] = {{"content", "x"}}; });
  EXPECT_THAT(refusal(), HasSubstr("added_tokens_decoder.3: expected an id from "));
}

TEST_F(TiktokenFile, with_wrong_lines_is_refused_with_their_number) {
  for (const char* line :
       {"IQ==", "IQ== x", "I?== 3", "IQ 3", "IQ== -1", "IQ== 99999999", "IQ=="}) {
    std::ofstream(dir_ / "tiktoken.model") << "IA== 0\n" << line << "\n";
    EXPECT_THAT(refusal(), HasSubstr("line 2: expected a token")) << line;
  }
  std::ofstream(dir_ / "tiktoken.model") << "IA== 0\nIA== 1\n";
  EXPECT_THAT(refusal(), HasSubstr("line 2: this token or rank 1 is there twice"));
  change_config([](json& config) { config["added_tokens_decoder"] = json::object(); });
  std::ofstream(dir_ / "tiktoken.model") << "IA== 0\n";
  EXPECT_THAT(refusal(), HasSubstr("no token for byte"));
  std::ofstream(dir_ / "tiktoken.model") << "";
  EXPECT_THAT(refusal(), HasSubstr("no tokens"));
}

TEST_F(TiktokenFile, beside_a_tokenizer_json_is_not_read) {
  std::filesystem::copy(ATOLL_SOURCE_DIR "/tests/models/tiny-bf16/tokenizer.json",
                        dir_ / "tokenizer.json");
  std::ofstream(dir_ / "tiktoken.model") << "nonsense";
  change_config([](json& config) {
    config.erase("bos_token");
    config.erase("eos_token");
  });
  EXPECT_EQ(refusal(), "loaded");
}

}  // namespace
}  // namespace atl::text
