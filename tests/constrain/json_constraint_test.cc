#include "constrain/json_constraint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>

#include "tests/constrain/schema_check.h"
#include "tests/support/published_tokenizer.h"
#include "text/utf8.h"

namespace atl::constrain {
namespace {

using Json = nlohmann::ordered_json;
using testing::HasSubstr;
using Grammar = std::shared_ptr<const ConstraintGrammar>;

constexpr int64_t kPlenty = 1'000'000;
const std::filesystem::path kSource = ATOLL_SOURCE_DIR;

// The small model's tokens: 3328, with DeepSeek's added ones.
const text::Tokenizer& tokenizer() {
  static const text::Tokenizer loaded = text::Tokenizer::load(kSource / "tests/models/tiny-fp8");
  return loaded;
}
const ConstraintVocabulary& vocabulary() {
  static const ConstraintVocabulary built(tokenizer(), {*tokenizer().eos_id()});
  return built;
}

std::vector<Json> cases() {
  std::ifstream in(kSource / "tests/golden/json_schema/cases.jsonl");
  EXPECT_TRUE(in);
  std::vector<Json> out;
  for (std::string line; std::getline(in, line);) out.push_back(Json::parse(line));
  return out;
}

Grammar compiled(const Json& schema) {
  auto grammar = compile_json_schema(schema.dump());
  EXPECT_TRUE(grammar) << schema << (grammar ? "" : grammar.error().message);
  return grammar ? *grammar : nullptr;
}

std::string refusal(const std::string& schema) {
  const auto grammar = compile_json_schema(schema);
  return grammar ? "" : grammar.error().message;
}

std::vector<uint8_t> mask_of(const TokenConstraint& constraint, int64_t left) {
  std::vector<uint8_t> allowed(static_cast<size_t>(tokenizer().id_end()), 1);
  EXPECT_TRUE(constraint.mask(left, allowed));
  return allowed;
}

bool may_end(const TokenConstraint& constraint) {
  return mask_of(constraint, kPlenty)[static_cast<size_t>(*tokenizer().eos_id())] != 0;
}

int32_t byte_token(char byte) {
  static std::vector<int32_t> ids(256, -1);
  if (ids[static_cast<uint8_t>(byte)] < 0) {
    for (int32_t id = 0; id < tokenizer().id_end(); ++id) {
      const auto bytes = tokenizer().token_bytes(id);
      if (bytes.size() == 1 && !tokenizer().is_added(id)) ids[static_cast<uint8_t>(bytes[0])] = id;
    }
  }
  return ids[static_cast<uint8_t>(byte)];
}

// Feeds the tokens and returns how many were allowed; all of them, and then the end: size + 1.
size_t num_taken(const Grammar& grammar, const std::vector<int32_t>& ids,
                 const ConstraintOptions& options = {}) {
  const auto constraint = grammar->make(vocabulary(), options);
  for (size_t i = 0; i < ids.size(); ++i) {
    if (mask_of(*constraint, kPlenty)[static_cast<size_t>(ids[i])] == 0) return i;
    constraint->accept(ids[i]);
  }
  return ids.size() + (may_end(*constraint) ? 1 : 0);
}

std::vector<int32_t> by_bytes(const std::string& text) {
  std::vector<int32_t> ids;
  for (char c : text) ids.push_back(byte_token(c));
  return ids;
}

std::vector<int32_t> encoded(const std::string& text) {
  return *tokenizer().encode(text, {.add_bos = false, .parse_added_tokens = false});
}

TEST(JsonConstraint, takes_every_valid_text_in_any_tokens) {
  size_t num_texts = 0;
  for (const Json& row : cases()) {
    const Grammar grammar = compiled(row.at("schema"));
    for (const Json& text : row.at("valid")) {
      ++num_texts;
      const auto valid = text.get<std::string>();
      for (const auto& ids : {by_bytes(valid), encoded(valid)}) {
        EXPECT_EQ(num_taken(grammar, ids), ids.size() + 1) << row["schema"] << "\n" << valid;
      }
    }
  }
  EXPECT_GT(num_texts, 200u);
}

TEST(JsonConstraint, refuses_invalid_texts_at_the_first_wrong_byte) {
  size_t num_texts = 0;
  for (const Json& row : cases()) {
    const Grammar grammar = compiled(row.at("schema"));
    for (const Json& bad : row.at("invalid")) {
      ++num_texts;
      const auto text = bad.is_string() ? bad.get<std::string>() : bad[0].get<std::string>();
      const size_t at = bad.is_string() ? 0 : bad[1].get<size_t>();
      EXPECT_EQ(num_taken(grammar, by_bytes(text)), at) << row["schema"] << "\n" << text;
      // Tokens of several bytes don't get past it either.
      size_t bytes = 0, taken = 0;
      const auto ids = encoded(text);
      const size_t num = num_taken(grammar, ids);
      for (; taken < num && taken < ids.size(); ++taken)
        bytes += tokenizer().token_bytes(ids[taken]).size();
      EXPECT_LE(bytes, at) << row["schema"] << "\n" << text;
    }
  }
  EXPECT_GT(num_texts, 180u);
}

// A model without sense: how it chooses among the tokens that may come.
enum class Choice { kUniform, kLongest, kShortest, kDigitsAndQuotes };

int32_t choose(const std::vector<uint8_t>& allowed, Choice choice, std::mt19937& random) {
  std::vector<int32_t> ids;
  for (size_t id = 0; id < allowed.size(); ++id) {
    if (allowed[id] != 0) ids.push_back(static_cast<int32_t>(id));
  }
  if (ids.empty()) return -1;
  int32_t best = ids[random() % ids.size()];
  if (choice == Choice::kUniform) return best;
  for (int tries = 0; tries < 8; ++tries) {
    const int32_t other = ids[random() % ids.size()];
    const auto a = tokenizer().token_bytes(best), b = tokenizer().token_bytes(other);
    const bool better = choice == Choice::kLongest ? b.size() > a.size()
                        : choice == Choice::kShortest
                            ? b.size() < a.size()
                            : b.find_first_of("\"0123456789\\,{[") != b.npos;
    if (better) best = other;
  }
  return best;
}

// The text that such a model writes within max_tokens; the mask leaves at least one token each
// time.
std::string written(TokenConstraint& constraint, int64_t max_tokens, Choice choice,
                    std::mt19937& random, bool* ended) {
  std::string text;
  *ended = false;
  for (int64_t left = max_tokens; left > 0 && !constraint.finished(); --left) {
    const auto allowed = mask_of(constraint, left);
    const int32_t id = choose(allowed, choice, random);
    if (id < 0) {
      ADD_FAILURE() << "nothing may come after " << text;
      return text;
    }
    constraint.accept(id);
    if (id == *tokenizer().eos_id()) {
      *ended = true;
      return text;
    }
    text += tokenizer().token_bytes(id);
  }
  *ended = constraint.finished();
  return text;
}

std::string wrong_with(const Json& schema, const std::string& text) {
  const Json value = Json::parse(text, nullptr, false);
  if (value.is_discarded()) return "not JSON";
  return schema_violation(schema, value, schema);
}

TEST(JsonConstraint, any_model_writes_valid_texts_in_any_number_of_tokens) {
  const auto rows = cases();
  ASSERT_GE(rows.size(), 60u);
  size_t num_texts = 0, num_tight = 0;
  for (const Json& row : rows) {
    const Json& schema = row.at("schema");
    const Grammar grammar = compiled(schema);
    const int64_t least = grammar->make(vocabulary(), {})->tokens_min();
    for (uint32_t seed = 0; seed < 50; ++seed) {
      std::mt19937 random(seed);
      const auto choice = static_cast<Choice>(seed % 4);
      const int64_t max_tokens = seed % 5 == 0   ? least
                                 : seed % 5 == 1 ? least + 1 + static_cast<int64_t>(random() % 4)
                                                 : least + 10 + static_cast<int64_t>(random() % 60);
      num_tight += seed % 5 == 0;
      const auto constraint = grammar->make(vocabulary(), {});
      bool ended = false;
      const std::string text = written(*constraint, max_tokens, choice, random, &ended);
      ++num_texts;
      EXPECT_EQ(wrong_with(schema, text), "")
          << schema << "\n"
          << text << "\nseed " << seed << " tokens " << max_tokens;
      EXPECT_EQ(constraint->tokens_min(), 0);
    }
  }
  EXPECT_GE(num_texts, 3000u);
  EXPECT_GE(num_tight, 600u);
}

TEST(JsonConstraint, a_thousand_json_objects_parse) {
  const Grammar grammar = json_object_grammar();
  for (uint32_t seed = 0; seed < 1000; ++seed) {
    std::mt19937 random(seed);
    const auto constraint = grammar->make(vocabulary(), {});
    bool ended = false;
    const std::string text = written(*constraint, 2 + static_cast<int64_t>(random() % 120),
                                     static_cast<Choice>(seed % 4), random, &ended);
    const Json value = Json::parse(text, nullptr, false);
    EXPECT_TRUE(value.is_object()) << seed << ": " << text;
  }
}

// A model that opens whatever it can must not nest deeper than parsers go.
TEST(JsonConstraint, nesting_has_an_end) {
  const auto constraint = json_object_grammar()->make(vocabulary(), {});
  std::string text;
  int depth = 0, deepest = 0;
  bool in_string = false;
  for (int64_t left = 3000; left > 0 && !constraint->finished(); --left) {
    const auto allowed = mask_of(*constraint, left);
    char next = 0;
    for (char c : std::string(in_string ? "\"" : "[{\":,]}")) {
      if (next == 0 && allowed[static_cast<size_t>(byte_token(c))] != 0) next = c;
    }
    ASSERT_NE(next, 0) << text;
    constraint->accept(byte_token(next));
    text += next;
    if (next == '"') in_string = !in_string;
    depth += (next == '[' || next == '{') - (next == ']' || next == '}');
    deepest = std::max(deepest, depth);
  }
  EXPECT_GT(deepest, 20);
  EXPECT_LT(deepest, 100);
  EXPECT_FALSE(Json::parse(text, nullptr, false).is_discarded()) << text;
}

TEST(JsonConstraint, mask_only_takes_away) {
  const auto constraint = compiled({{"type", "integer"}})->make(vocabulary(), {});
  std::vector<uint8_t> allowed(static_cast<size_t>(tokenizer().id_end()), 1);
  allowed[static_cast<size_t>(byte_token('7'))] = 0;
  EXPECT_TRUE(constraint->mask(kPlenty, allowed));
  EXPECT_EQ(allowed[static_cast<size_t>(byte_token('7'))], 0);
  EXPECT_EQ(allowed[static_cast<size_t>(byte_token('8'))], 1);
  EXPECT_EQ(allowed[static_cast<size_t>(byte_token('a'))], 0);
  EXPECT_EQ(allowed[static_cast<size_t>(*tokenizer().eos_id())], 0);
  std::vector<uint8_t> few(10, 1);  // a row that ends before the vocabulary
  EXPECT_TRUE(constraint->mask(kPlenty, few));
}

TEST(JsonConstraint, a_number_ends_only_when_the_model_says_so) {
  const auto constraint = compiled({{"type", "integer"}})->make(vocabulary(), {});
  EXPECT_EQ(constraint->tokens_min(), 1);
  constraint->accept(byte_token('4'));
  EXPECT_FALSE(constraint->finished());
  EXPECT_TRUE(may_end(*constraint));
  constraint->accept(byte_token('2'));
  EXPECT_TRUE(may_end(*constraint));
  constraint->accept(*tokenizer().eos_id());
  EXPECT_TRUE(constraint->finished());
  const auto object = json_object_grammar()->make(vocabulary(), {});
  EXPECT_EQ(object->tokens_min(), 2);
  object->accept(byte_token('{'));
  EXPECT_FALSE(may_end(*object));
  object->accept(byte_token('}'));
  EXPECT_TRUE(object->finished());
}

TEST(JsonConstraint, near_the_end_only_what_can_be_completed_may_come) {
  const Grammar grammar = compiled(Json::parse(
      R"({"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"],
          "additionalProperties": false})"));
  const auto constraint = grammar->make(vocabulary(), {});
  EXPECT_EQ(constraint->tokens_min(), 8);  // {"a":""}
  for (char c : std::string("{\"a\":\"")) constraint->accept(byte_token(c));
  EXPECT_EQ(constraint->tokens_min(), 2);
  const auto allowed = [&](int64_t left, char c) {
    return mask_of(*constraint, left)[static_cast<size_t>(byte_token(c))] != 0;
  };
  EXPECT_TRUE(allowed(3, 'x'));  // x"}
  EXPECT_FALSE(allowed(2, 'x'));
  EXPECT_TRUE(allowed(2, '"'));
  EXPECT_TRUE(allowed(4, '\\'));  // \n"}
  EXPECT_FALSE(allowed(3, '\\'));
  // The end of the text in one token is there, too.
  bool has_both = false;
  for (int32_t id = 0; id < tokenizer().id_end(); ++id) {
    if (tokenizer().token_bytes(id) != "\"}") continue;
    has_both = true;
    EXPECT_TRUE(mask_of(*constraint, 1)[static_cast<size_t>(id)]);
  }
  EXPECT_TRUE(has_both || allowed(1, '"'));  // else the shortest way, though too late
}

TEST(JsonConstraint, characters_that_a_string_must_still_get_are_counted_near_the_end) {
  const auto constraint = compiled({{"type", "string"}, {"minLength", 3}})->make(vocabulary(), {});
  constraint->accept(byte_token('"'));
  EXPECT_EQ(constraint->tokens_min(), 4);  // abc"
  const auto allowed = [&](int64_t left, char c) {
    return mask_of(*constraint, left)[static_cast<size_t>(byte_token(c))] != 0;
  };
  EXPECT_TRUE(allowed(4, 'a'));
  EXPECT_FALSE(allowed(4, '\\'));    // \nbc" takes four more
  EXPECT_FALSE(allowed(4, '\xC3'));  // and so does the rest of a character of two bytes
  EXPECT_TRUE(allowed(5, '\\'));
  EXPECT_TRUE(allowed(5, '\xC3'));
  EXPECT_FALSE(allowed(5, '"'));
}

TEST(JsonConstraint, no_added_token_stands_inside_a_text) {
  const auto constraint = compiled({{"type", "string"}})->make(vocabulary(), {});
  constraint->accept(byte_token('"'));
  const auto allowed = mask_of(*constraint, kPlenty);
  size_t num_allowed = 0;
  for (int32_t id = 0; id < tokenizer().id_end(); ++id) {
    EXPECT_FALSE(tokenizer().is_added(id) && allowed[static_cast<size_t>(id)]) << id;
    num_allowed += allowed[static_cast<size_t>(id)];
  }
  EXPECT_GT(num_allowed, 2000u);
}

TEST(JsonConstraint, what_is_not_built_and_bad_schemas_are_named) {
  for (const std::string keyword : {"unevaluatedItems", "$dynamicRef", "$recursiveRef"}) {
    EXPECT_THAT(refusal(R"({"items": {")" + keyword + R"(": {}}})"),
                HasSubstr("$.items." + keyword));
  }
  EXPECT_THAT(refusal(R"({"type": "array", "uniqueItems": true})"),
              HasSubstr("$.uniqueItems: only supported"));
  EXPECT_THAT(refusal(R"({"type": "strin"})"), HasSubstr("$.type: unknown type \"strin\""));
  EXPECT_THAT(refusal(R"({"type": []})"), HasSubstr("$.type"));
  EXPECT_THAT(refusal(R"({"$ref": "#/$defs/x"})"), HasSubstr("there is no \"#/$defs/x\""));
  EXPECT_THAT(refusal(R"({"$ref": "http://x"})"), HasSubstr("$.$ref"));
  EXPECT_THAT(refusal(R"({"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"})"),
              HasSubstr("leads back to itself"));
  EXPECT_THAT(refusal(R"({"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}, {"type": "null"}]}},
                          "$ref": "#/$defs/a"})"),
              HasSubstr("leads back to itself"));
  EXPECT_THAT(refusal(R"({"enum": []})"), HasSubstr("nothing fulfils"));
  EXPECT_THAT(refusal("false"), HasSubstr("nothing fulfils"));
  EXPECT_THAT(refusal(R"({"type": "integer", "minimum": 5, "maximum": 4})"),
              HasSubstr("nothing fulfils"));
  EXPECT_THAT(
      refusal(R"({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]})"),
      HasSubstr("nothing fulfils"));
  EXPECT_THAT(refusal(R"({"type": "object", "properties": {}, "required": ["a"],
                          "additionalProperties": false})"),
              HasSubstr("$.required"));
  EXPECT_THAT(refusal(R"re({"type": "string", "pattern": "(?=a)"})re"),
              HasSubstr("$.pattern: looking ahead"));
  EXPECT_THAT(refusal(R"re({"type": "string", "pattern": "^a(b$|(?=c)d$)"})re"),
              HasSubstr("$.pattern: looking ahead"));
  EXPECT_THAT(refusal(R"re({"type": "string", "pattern": "(a)\\1"})re"), HasSubstr("$.pattern"));
  EXPECT_THAT(refusal(R"({"type": "string", "pattern": "a{1,99999}"})"), HasSubstr("$.pattern"));
  EXPECT_THAT(refusal(R"({"type": "string", "pattern": "(("})"), HasSubstr("$.pattern"));
  EXPECT_THAT(refusal(R"({"type": "string", "pattern": "[a"})"), HasSubstr("$.pattern"));
  EXPECT_THAT(refusal(R"({"type": "string", "maxLength": -1})"), HasSubstr("$.maxLength"));
  EXPECT_THAT(refusal(R"({"type": "number", "multipleOf": 0.012345})"), HasSubstr("$.multipleOf"));
  EXPECT_THAT(refusal(R"({"type": "number", "multipleOf": -1})"), HasSubstr("$.multipleOf"));
  EXPECT_THAT(refusal(R"({"oneOf": [{"type": "string"}, {"format": "date", "items": {}}]})"),
              HasSubstr("$.oneOf: branches 0 and 1"));
  EXPECT_THAT(refusal(R"({"allOf": [{"type": "string"}, {"type": "integer"}]})"),
              HasSubstr("nothing fulfils"));
  EXPECT_THAT(refusal(R"({"allOf": [{"$ref": "#"}, {"type": "object"}]})"),
              HasSubstr("$.allOf[0].allOf[0]: a $ref leads back"));
  EXPECT_THAT(refusal(R"({"allOf": [{"properties": []}, {}]})"),
              HasSubstr("$.allOf[0].properties"));
  EXPECT_THAT(refusal(R"({"allOf": 1})"), HasSubstr("$.allOf: expected a list of schemas"));
  EXPECT_THAT(refusal(R"({"not": {"items": {}}})"), HasSubstr("$.not.items"));
  EXPECT_THAT(refusal(R"({"if": {"oneOf": [{}]}, "then": {"type": "null"}})"),
              HasSubstr("$.if.oneOf"));
  EXPECT_THAT(refusal(R"({"minProperties": 3, "properties": {"a": {}}})"),
              HasSubstr("$.minProperties: more than 1"));
  EXPECT_THAT(refusal(R"({"not": {"const": []}})"), HasSubstr("$.not"));
  EXPECT_THAT(
      refusal(R"({"type": ["null", "null", "null", "null", "null", "null", "null", "null"]})"),
      HasSubstr("$.type: a type is there twice"));
  EXPECT_THAT(refusal("{"), HasSubstr("not JSON"));
  EXPECT_THAT(refusal("[]"), HasSubstr("$: expected an object"));
  EXPECT_NE(refusal(std::string(5000, '[')), "");
  EXPECT_NE(refusal(R"({"properties": 1})"), "");
  EXPECT_NE(refusal(R"({"type": "object", "required": [1]})"), "");
}

TEST(JsonConstraint, no_mutated_schema_crashes) {
  const auto rows = cases();
  std::mt19937 random(3);
  int num_compiled = 0;
  for (int i = 0; i < 3000; ++i) {
    std::string text = rows[random() % rows.size()].at("schema").dump();
    for (int n = 0; n < 1 + static_cast<int>(random() % 3); ++n) {
      const size_t at = random() % text.size();
      if (random() % 3 == 0) {
        text.erase(at, 1 + random() % 5);
      } else if (random() % 2 == 0) {
        text[at] = static_cast<char>(' ' + random() % 95);
      } else {
        text.insert(at, text.substr(random() % text.size(), random() % 20));
      }
      if (text.empty()) text = "{}";
    }
    const auto grammar = compile_json_schema(text);
    if (!grammar) continue;
    ++num_compiled;
    const auto constraint = (*grammar)->make(vocabulary(), {});
    bool ended = false;
    const std::string out =
        written(*constraint, constraint->tokens_min() + 5, Choice::kUniform, random, &ended);
    EXPECT_FALSE(Json::parse(out, nullptr, false).is_discarded()) << text << "\n" << out;
  }
  EXPECT_GT(num_compiled, 30);
}

// --- reasoning first ---

// Definitions that each are an anyOf of the next two, which meet again: 2^n ways from the first to
// the last.
Json diamond(int n, const Json& left, const Json& right) {
  Json definitions;
  for (int i = 0; i < n; ++i) {
    Json next = Json::array();
    for (const char* side : {"a", "b"}) {
      next.push_back({{"$ref", "#/$defs/" + std::string(side) + std::to_string(i + 1)}});
    }
    definitions["a" + std::to_string(i)] = definitions["b" + std::to_string(i)] = {{"anyOf", next}};
  }
  definitions["a" + std::to_string(n)] = left;
  definitions["b" + std::to_string(n)] = right;
  return {{"$ref", "#/$defs/a0"}, {"$defs", definitions}};
}

// Masks along `text`, which the constraint has to allow.
void expect_allows(const Json& schema, const std::string& text) {
  const auto constraint = compiled(schema)->make(vocabulary(), {});
  for (char c : text) {
    ASSERT_NE(mask_of(*constraint, kPlenty)[static_cast<size_t>(byte_token(c))], 0) << text;
    constraint->accept(byte_token(c));
  }
  EXPECT_TRUE(may_end(*constraint)) << text;
}

TEST(JsonConstraint, ways_that_meet_again_are_followed_once) {
  const Json string = {{"type", "string"}}, integer = {{"type", "integer"}};
  const Json plain = diamond(40, string, integer);
  expect_allows(plain, "42");
  expect_allows(plain, R"("x")");
  const Json inner = {{"$ref", "#/$defs/a0"}};
  expect_allows({{"type", "array"}, {"items", inner}, {"$defs", plain["$defs"]}}, R"([1,"x"])");
  expect_allows({{"type", "object"},
                 {"properties", {{"k", inner}}},
                 {"required", {"k"}},
                 {"additionalProperties", false},
                 {"$defs", plain["$defs"]}},
                R"({"k":7})");
  // Objects at the end: many readings of equal text at once.
  const Json object = {{"type", "object"},
                       {"properties", {{"k", string}}},
                       {"required", {"k"}},
                       {"additionalProperties", false}};
  expect_allows(diamond(40, object, object), R"({"k":"v"})");
}

TEST(JsonConstraint, many_optional_parts_of_a_pattern_are_no_nesting) {
  std::string pattern = "^";
  for (int i = 0; i < 200; ++i) pattern += "a?";
  const Json schema = {{"type", "string"}, {"pattern", pattern + "$"}};
  expect_allows(schema, "\"\"");
  expect_allows(schema, "\"aaa\"");
}

// Subsets of hundreds of nodes with one step each: large, but cheap to make.
TEST(JsonConstraint, objects_of_many_optional_properties_are_within_the_bounds) {
  Json properties;
  for (int i = 0; i < 800; ++i) properties["p" + std::to_string(i)] = {{"type", "string"}};
  expect_allows({{"type", "object"}, {"properties", properties}, {"additionalProperties", false}},
                R"({"p3":"x","p799":"y"})");
}

TEST(JsonConstraint, names_that_begin_alike_cost_no_more_than_others) {
  Json properties;
  for (int i = 0; i < 800; ++i) {
    properties["property_" + std::to_string(1000 + i).substr(1)] = {{"type", "string"}};
  }
  const Json schema = {{"type", "object"}, {"properties", properties}};
  expect_allows(schema, R"({"property_003":"x","property_799":"y"})");
  expect_allows(schema, "{}");
  const std::string twice = R"({"property_003":"x","property_003":"y"})";
  EXPECT_LT(num_taken(compiled(schema), by_bytes(twice)), twice.size());
}

TEST(JsonConstraint, other_keys_are_none_of_the_names) {
  const Json schema = {{"type", "object"},
                       {"properties", {{"ab", true}, {"a\u00e9", true}, {"", true}}},
                       {"additionalProperties", {{"type", "integer"}}}};
  for (const char* text : {R"({"abc":1})", R"({"a":1})", R"({"ab":"x","aé":"x","":"x","aè":1})",
                           R"({"b":1,"é":2,"日本":3})", R"({"ab":true,"x":1,"y":2})"}) {
    expect_allows(schema, text);
  }
  for (const std::string text : {R"({"x":1,"ab":1})", R"({"abc":"x"})", R"({"x":1,"aé":1})"}) {
    EXPECT_LT(num_taken(compiled(schema), by_bytes(text)), text.size()) << text;
  }
}

TEST(JsonConstraint, integers_of_a_range_are_those_that_fulfil_it) {
  struct Case {
    int low, high, multiple_of;
  };
  for (const auto& [low, high, multiple_of] :
       {Case{-37, 1203, 7}, {0, 999, 1}, {5, 5, 5}, {98, 1010, 10}, {-1203, -36, 9}}) {
    const Grammar grammar = compiled(
        {{"type", "integer"}, {"minimum", low}, {"maximum", high}, {"multipleOf", multiple_of}});
    for (int i = -1300; i <= 1300; ++i) {
      const std::string text = std::to_string(i);
      const bool fulfils = i >= low && i <= high && i % multiple_of == 0;
      EXPECT_EQ(num_taken(grammar, by_bytes(text)) == text.size() + 1, fulfils)
          << i << " from " << low << " to " << high << " by " << multiple_of;
    }
  }
}

// Of every kind that was seen to take too long or too much memory before it was refused.
TEST(JsonConstraint, what_takes_too_much_to_compile_is_refused_with_its_place) {
  const auto object_of = [](const Json& properties) {
    return Json{{"type", "object"}, {"properties", properties}};
  };
  Json numbers, keys, lists = Json::array(), words = Json::array(), branches = Json::array();
  for (int i = 0; i < 100; ++i) {
    numbers["n" + std::to_string(i)] = {{"type", "integer"},
                                        {"multipleOf", 97},
                                        {"minimum", -100000000000003 - i},
                                        {"maximum", 999999999999993 - i}};
  }
  for (int i = 0; i < 20'000; ++i) keys["key" + std::to_string(i)] = true;
  for (int i = 0; i < 200'000; ++i) lists.push_back(Json::array());
  for (int i = 0; i < 20'000; ++i) words.push_back("word " + std::to_string(i * 7919) + " of many");
  for (int i = 0; i < 250; ++i) {
    branches.push_back(
        {{"type", "string"}, {"pattern", "^([a-z ,.]{" + std::to_string(i + 1) + "}[0-9]{2})+$"}});
  }
  std::string characters;
  for (int i = 0; i < 3000; ++i)
    text::append_utf8(0x4e00u + 2 * static_cast<uint32_t>(i), characters);
  EXPECT_THAT(refusal(object_of(numbers).dump()), HasSubstr("too large: it takes too much memory"));
  EXPECT_THAT(refusal(object_of(keys).dump()), HasSubstr("too large: $ takes too much"));
  EXPECT_THAT(refusal(Json{{"const", lists}}.dump()), HasSubstr("too large: more values than"));
  EXPECT_THAT(refusal(Json{{"enum", words}}.dump()), HasSubstr("too large: $ takes too much"));
  EXPECT_THAT(refusal(Json{{"anyOf", branches}}.dump()), HasSubstr("too large: $.anyOf["));
  EXPECT_THAT(refusal(Json{{"type", "string"}, {"pattern", "[" + characters + "]{50}"}}.dump()),
              HasSubstr("too large: $ takes too much work"));
}

TEST(JsonConstraint, what_nobody_refers_to_costs_its_text_alone) {
  Json unused;
  for (int i = 0; i < 40'000; ++i) unused["d" + std::to_string(i)] = true;
  expect_allows({{"type", "string"}, {"$defs", unused}}, R"("a")");
}

TEST(JsonConstraint, compiling_can_be_stopped) {
  std::stop_source stop;
  stop.request_stop();
  const auto grammar = compile_json_schema(R"({"type": "string"})", stop.get_token());
  ASSERT_FALSE(grammar);
  EXPECT_EQ(grammar.error().code, ErrorCode::kUnavailable);
}

TEST(JsonConstraint, automata_beyond_all_bounds_are_refused) {
  for (const char* pattern : {"(a|b)*a(a|b){25}", "(x|y)*x(x|y){30}", ".*a.{1000}b.{1000}"}) {
    const Json schema = {{"type", "string"}, {"pattern", pattern}};
    const auto grammar = compile_json_schema(schema.dump());
    ASSERT_FALSE(grammar) << pattern;
    EXPECT_EQ(grammar.error().code, ErrorCode::kInvalid);
    EXPECT_THAT(grammar.error().message, HasSubstr("schema is too large: $ takes too much"));
  }
}

TEST(JsonConstraint, begins_after_a_mark) {
  const Grammar grammar = compiled({{"type", "integer"}});
  const ConstraintOptions after{.begin_after = "</think>"};
  for (const std::string text : {"hm <thi 1 </think>5", "</think>5", "a</</think>\n\n5"}) {
    for (const auto& ids : {by_bytes(text), encoded(text)}) {
      EXPECT_EQ(num_taken(grammar, ids, after), ids.size() + 1) << text;
    }
  }
  EXPECT_EQ(num_taken(grammar, by_bytes("hm</think> 5"), after), 10u);
  EXPECT_EQ(num_taken(grammar, by_bytes("hm</think>\n\n\n5"), after), 12u);
  const auto constraint = grammar->make(vocabulary(), after);
  EXPECT_FALSE(may_end(*constraint));
  EXPECT_FALSE(constraint->finished());
}

TEST(JsonConstraint, reasoning_leaves_tokens_for_the_text) {
  const Json schema = Json::parse(
      R"({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"],
          "additionalProperties": false})");
  const Grammar grammar = compiled(schema);
  const ConstraintOptions after{.begin_after = "</think>"};
  for (uint32_t seed = 0; seed < 200; ++seed) {
    std::mt19937 random(seed);
    const auto constraint = grammar->make(vocabulary(), after);
    const int64_t max_tokens = constraint->tokens_min() + static_cast<int64_t>(random() % 30);
    bool ended = false;
    const std::string text =
        written(*constraint, max_tokens, static_cast<Choice>(seed % 4), random, &ended);
    const size_t mark = text.find("</think>");
    ASSERT_NE(mark, std::string::npos) << text;
    EXPECT_EQ(wrong_with(schema, text.substr(mark + 8)), "") << text;
  }
}

// The mark that opens the free text as a token, and spelled in bytes.
TEST(JsonConstraint, reasoning_may_come_or_not) {
  const Json schema = Json::parse(
      R"({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"],
          "additionalProperties": false})");
  const Grammar grammar = compiled(schema);
  for (const std::string mark : {"<think>", "<mull>"}) {
    const ConstraintOptions options{.begin_after = "</think>", .may_begin_with = mark};
    for (const std::string& text : {std::string("{\"a\": 5}"), mark + "hm</think>\n{\"a\": 5}"}) {
      const auto ids = *vocabulary().tokenizer().encode(text);
      EXPECT_EQ(num_taken(grammar, ids, options), ids.size() + 1) << text;
    }
    EXPECT_EQ(num_taken(grammar, encoded("hm" + mark), options), 0u);
    EXPECT_EQ(num_taken(grammar, encoded("\n{"), options), 0u);
    int reasoned = 0, plain = 0;
    for (uint32_t seed = 0; seed < 400; ++seed) {
      std::mt19937 random(seed);
      const auto constraint = grammar->make(vocabulary(), options);
      const int64_t max_tokens = constraint->tokens_min() + static_cast<int64_t>(random() % 40);
      bool ended = false;
      std::string text =
          written(*constraint, max_tokens, static_cast<Choice>(seed % 4), random, &ended);
      if (text.starts_with(mark)) {
        ++reasoned;
        const size_t end = text.find("</think>");
        ASSERT_NE(end, std::string::npos) << text;
        text.erase(0, end + 8);
      } else {
        ++plain;
      }
      EXPECT_EQ(wrong_with(schema, text), "") << text;
    }
    EXPECT_GT(reasoned, 20) << mark;
    EXPECT_GT(plain, 20) << mark;
  }
}

// --- calls of tools ---

std::vector<ToolSchema> two_tools() {
  return {{"get_weather", R"({"type": "object", "properties": {"city": {"type": "string"},
            "days": {"type": "integer", "minimum": 1, "maximum": 9}}, "required": ["city"],
            "additionalProperties": false})"},
          {"time", ""}};
}

std::vector<std::string> names_of(const std::vector<ToolSchema>& tools) {
  std::vector<std::string> names;
  for (const ToolSchema& tool : tools) names.push_back(tool.name);
  return names;
}

TEST(ToolCalls, only_calls_of_the_tools_are_written_and_the_parser_reads_them) {
  const auto tools = two_tools();
  for (const text::ReplyFormat format :
       {text::ReplyFormat::kDeepseekV3, text::ReplyFormat::kDeepseekV31,
        text::ReplyFormat::kKimiK2}) {
    for (uint32_t seed = 0; seed < 200; ++seed) {
      const bool parallel = seed % 2 == 0;
      const auto grammar = compile_tool_calls(format, tools, parallel);
      ASSERT_TRUE(grammar);
      std::mt19937 random(seed);
      const auto constraint = (*grammar)->make(vocabulary(), {});
      bool ended = false;
      const std::string text =
          written(*constraint, constraint->tokens_min() + static_cast<int64_t>(random() % 200),
                  static_cast<Choice>(seed % 4), random, &ended);
      text::ReplyParser parser({.format = format, .tools = names_of(tools)});
      text::ReplyDelta all = parser.push(text);
      const text::ReplyDelta rest = parser.finish();
      EXPECT_EQ(all.content + rest.content, "") << text;
      ASSERT_GE(all.tool_calls.size(), 1u) << text;
      EXPECT_TRUE(parallel || all.tool_calls.size() == 1u) << text;
      for (const auto& call : all.tool_calls) {
        const bool weather = call.name == "get_weather";
        EXPECT_TRUE(weather || call.name == "time") << text;
        const Json schema =
            weather ? Json::parse(tools[0].parameters_json) : Json{{"type", "object"}};
        EXPECT_EQ(wrong_with(schema, call.arguments), "") << text;
        if (format == text::ReplyFormat::kKimiK2) {
          EXPECT_EQ(call.id, "functions." + call.name + ":" + std::to_string(call.index));
        }
      }
    }
  }
}

TEST(ToolCalls, a_name_that_begins_another_is_told_apart) {
  const std::vector<ToolSchema> tools = {{"get", ""}, {"get_all", ""}};
  const auto grammar = compile_tool_calls(text::ReplyFormat::kDeepseekV31, tools, false);
  ASSERT_TRUE(grammar);
  for (const std::string name : {"get", "get_all"}) {
    const auto constraint = (*grammar)->make(vocabulary(), {});
    const auto take = [&](const std::string& text) {
      const auto ids = *tokenizer().encode(text);
      for (int32_t id : ids) {
        EXPECT_TRUE(mask_of(*constraint, kPlenty)[static_cast<size_t>(id)]) << name << ": " << text;
        constraint->accept(id);
      }
    };
    for (const std::string& part :
         {std::string("<｜tool▁calls▁begin｜>"), std::string("<｜tool▁call▁begin｜>"), name,
          std::string("<｜tool▁sep｜>"), std::string("{}"), std::string("<｜tool▁call▁end｜>"),
          std::string("<｜tool▁calls▁end｜>")}) {
      take(part);
    }
    EXPECT_TRUE(constraint->finished());
  }
}

TEST(ToolCalls, what_can_not_be_called_is_refused) {
  const auto error = [](text::ReplyFormat format, std::vector<ToolSchema> tools) {
    const auto grammar = compile_tool_calls(format, tools, true);
    return grammar ? "" : grammar.error().message;
  };
  EXPECT_THAT(error(text::ReplyFormat::kPlain, two_tools()), HasSubstr("no form for calls"));
  EXPECT_THAT(error(text::ReplyFormat::kDeepseekV3, {}), HasSubstr("no tools"));
  EXPECT_THAT(error(text::ReplyFormat::kDeepseekV3, {{"a b", ""}}), HasSubstr("tool name \"a b\""));
  EXPECT_THAT(error(text::ReplyFormat::kDeepseekV3, {{"f", R"({"$dynamicRef": "#"})"}}),
              HasSubstr("tool f: schema $.$dynamicRef"));
}

// --- cost ---

double mask_ms(const TokenConstraint& constraint, size_t vocab, int rounds) {
  std::vector<uint8_t> allowed(vocab);
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < rounds; ++i) {
    std::fill(allowed.begin(), allowed.end(), 1);
    EXPECT_TRUE(constraint.mask(kPlenty, allowed));
  }
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start)
             .count() /
         rounds;
}

// Prints what masks cost for DeepSeek-V3's 128,815 tokens.
TEST(JsonConstraint, masks_of_a_large_vocabulary_cost_little) {
  if (!test::has_published_tokenizer()) GTEST_SKIP() << test::kNoPublishedTokenizer;
  const text::Tokenizer large = text::Tokenizer::load(test::published_tokenizer());
  const auto begin = std::chrono::steady_clock::now();
  const ConstraintVocabulary large_vocabulary(large, {1});
  const auto built = std::chrono::steady_clock::now();
  std::printf("tree of %d tokens: %.0f ms\n", large.vocab_size(),
              std::chrono::duration<double, std::milli>(built - begin).count());
  const Json schema = Json::parse(R"({"type": "object", "properties": {
      "free": {"type": "string"}, "short": {"type": "string", "maxLength": 50},
      "long": {"type": "string", "maxLength": 1000}, "n": {"type": "number"},
      "i": {"type": "integer", "minimum": 1, "maximum": 500},
      "e": {"enum": ["red", "green"]}, "p": {"type": "string", "pattern": "^[a-z ]+$"}},
      "required": ["free", "short", "long", "n", "i", "e", "p"], "additionalProperties": false})");
  const Grammar grammar = compiled(schema);
  const std::string text =
      R"({"free": "some words", "short": "ab", "long": "some words", "n": 12.5, "i": 42, "e": "red", "p": "abc"})";
  const auto constraint = grammar->make(large_vocabulary, {});
  double total_first = 0, total_again = 0, worst_first = 0, worst_again = 0;
  const auto ids = *large.encode(text);
  for (int32_t id : ids) {
    const auto vocab = static_cast<size_t>(large.id_end());
    const double first = mask_ms(*constraint, vocab, 1), again = mask_ms(*constraint, vocab, 5);
    std::printf("  before %-12s first %6.3f ms, again %6.3f ms\n",
                Json(std::string(large.token_bytes(id))).dump().c_str(), first, again);
    total_first += first;
    total_again += again;
    worst_first = std::max(worst_first, first);
    worst_again = std::max(worst_again, again);
    constraint->accept(id);
  }
  std::printf("mean first %.3f ms (worst %.3f), mean again %.3f ms (worst %.3f)\n",
              total_first / static_cast<double>(ids.size()), worst_first,
              total_again / static_cast<double>(ids.size()), worst_again);
  EXPECT_TRUE(constraint->finished());

  // So many patterns at once that each token would take a walk of the tree for each of them.
  Json patterns = Json::array();
  for (int i = 1; i <= 60; ++i) {
    patterns.push_back(
        {{"type", "string"}, {"pattern", "^([a-z ,.]{" + std::to_string(i) + "}[0-9]{2})+$"}});
  }
  const auto dear = compiled({{"anyOf", patterns}})->make(large_vocabulary, {});
  std::vector<uint8_t> allowed(static_cast<size_t>(large.id_end()), 1);
  ASSERT_TRUE(dear->mask(kPlenty, allowed));
  dear->accept(*large.token_id("\""));
  const Status refused = dear->mask(kPlenty, allowed);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kInvalid);
  EXPECT_LT(total_again / static_cast<double>(ids.size()), 20);  // not to be pinned to a machine
}

}  // namespace
}  // namespace atl::constrain
