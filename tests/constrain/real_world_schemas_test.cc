// Schemas in the shapes that people's libraries emit: OpenAI's strict mode, pydantic, zod,
// LangChain and the Model Context Protocol, each with a text that fulfils it and one that doesn't.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "constrain/json_constraint.h"

namespace atl::constrain {
namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kPlenty = 1'000'000;
const std::filesystem::path kSource = ATOLL_SOURCE_DIR;

class RealWorldSchemas : public testing::Test {
 protected:
  RealWorldSchemas()
      : tokenizer_(text::Tokenizer::load(kSource / "tests/models/tiny-fp8")),
        vocabulary_(tokenizer_, {*tokenizer_.eos_id()}) {
    std::ifstream in(kSource / "tests/constrain/real_world_schemas.jsonl");
    for (std::string line; std::getline(in, line);) cases_.push_back(Json::parse(line));
  }

  // Whether the grammar takes the text, and may end there.
  bool takes(const ConstraintGrammar& grammar, const std::string& text) const {
    const auto constraint = grammar.make(vocabulary_, {});
    const auto ids = tokenizer_.encode(text, {.parse_added_tokens = false});
    for (const int32_t id : *ids) {
      if (mask(*constraint)[static_cast<size_t>(id)] == 0) return false;
      constraint->accept(id);
    }
    return mask(*constraint)[static_cast<size_t>(*tokenizer_.eos_id())] != 0;
  }

  std::vector<uint8_t> mask(const TokenConstraint& constraint) const {
    std::vector<uint8_t> allowed(static_cast<size_t>(tokenizer_.id_end()), 1);
    EXPECT_TRUE(constraint.mask(kPlenty, allowed));
    return allowed;
  }

  const text::Tokenizer tokenizer_;
  const ConstraintVocabulary vocabulary_;
  std::vector<Json> cases_;
};

TEST_F(RealWorldSchemas, compile_take_what_fulfils_them_and_refuse_what_does_not) {
  EXPECT_GE(cases_.size(), 100u);
  for (const Json& c : cases_) {
    const auto grammar = compile_json_schema(c["schema"].dump());
    ASSERT_TRUE(grammar) << c["name"] << ": " << grammar.error().message;
    EXPECT_TRUE(takes(**grammar, c["valid"].dump())) << c["name"] << c["valid"];
    EXPECT_FALSE(takes(**grammar, c["invalid"].dump())) << c["name"] << c["invalid"];
  }
}

// Without the least part of the schema a valid text ends too early.
TEST_F(RealWorldSchemas, take_no_text_that_is_cut) {
  for (const Json& c : cases_) {
    const auto grammar = compile_json_schema(c["schema"].dump());
    ASSERT_TRUE(grammar) << c["name"];
    const std::string text = c["valid"].dump();
    EXPECT_FALSE(takes(**grammar, text.substr(0, text.size() - 1))) << c["name"];
  }
}

}  // namespace
}  // namespace atl::constrain
