#include "constrain/json_schema_document.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>

#include "base/result.h"

namespace atl::constrain {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::vector<std::string> names_of(const ObjectKeywords& keywords) {
  std::vector<std::string> names;
  for (const auto& [name, schema] : keywords.properties) names.push_back(name);
  return names;
}

ObjectKeywords merged(SchemaDocument& document) { return document.merged(document.root(), "$"); }

template <typename Do>
std::string error_of(const std::string& schema, Do act) {
  try {
    CompileWork work;
    SchemaDocument document(schema, work);
    act(document);
  } catch (const Error& error) {
    return error.message;
  }
  return "no error";
}
std::string merge_error(const std::string& schema) {
  return error_of(schema, [](SchemaDocument& document) { merged(document); });
}
std::string disjoint_error(const std::string& schema) {
  return error_of(schema, [](SchemaDocument& document) {
    document.expect_disjoint(document.root()["oneOf"], "$");
  });
}

// A list of `count` pieces, %d in each its number.
std::string list_of(int count, const std::string& piece) {
  std::string list;
  for (int i = 0; i < count; ++i) {
    std::string item = piece;
    for (size_t at; (at = item.find("%d")) != std::string::npos;) {
      item.replace(at, 2, std::to_string(i));
    }
    list += (i == 0 ? "" : ",") + item;
  }
  return list;
}

TEST(SchemaDocument, all_of_has_the_properties_of_all_in_their_order) {
  CompileWork work;
  SchemaDocument document(R"({"properties": {"own": {}}, "required": ["a"], "allOf": [
      {"$ref": "#/$defs/x"}, {"properties": {"b": {"type": "null"}}, "required": ["b"]}],
      "$defs": {"x": {"properties": {"a": {}}, "allOf": [{"properties": {"inner": true}}]}}})",
                          work);
  const ObjectKeywords all = merged(document);
  EXPECT_THAT(names_of(all), ElementsAre("own", "a", "inner", "b"));
  EXPECT_THAT(all.required, ElementsAre("a", "b"));
  EXPECT_EQ(all.properties[3].second->dump(), R"({"type":"null"})");
  EXPECT_EQ(all.additional, nullptr);
}

TEST(SchemaDocument, a_schema_that_is_there_twice_is_merged_once) {
  CompileWork work;
  SchemaDocument document(R"({"allOf": [{"$ref": "#/$defs/x"}, {"$ref": "#/$defs/x"}],
                              "$defs": {"x": {"properties": {"a": {}}, "required": ["a"]}}})",
                          work);
  const ObjectKeywords all = merged(document);
  EXPECT_THAT(names_of(all), ElementsAre("a"));
  EXPECT_THAT(all.required, ElementsAre("a"));
}

TEST(SchemaDocument, what_all_of_cannot_merge_is_named) {
  EXPECT_THAT(merge_error(R"({"allOf": 1})"), HasSubstr("$.allOf: expected a list of schemas"));
  EXPECT_THAT(merge_error(R"({"allOf": []})"), HasSubstr("$.allOf: expected a list of schemas"));
  EXPECT_THAT(merge_error(R"({"allOf": [true]})"), HasSubstr("$.allOf[0]: expected an object's"));
  EXPECT_THAT(merge_error(R"({"allOf": [{"additionalProperties": false}]})"),
              HasSubstr("$.allOf[0].additionalProperties"));
  EXPECT_THAT(merge_error(R"({"properties": {"a": {}}, "allOf": [{"properties": {"a": true}}]})"),
              HasSubstr("$.allOf[0].properties.a: two different schemas"));
  EXPECT_THAT(merge_error(R"({"allOf": [{"properties": []}]})"),
              HasSubstr("$.allOf[0].properties: expected an object"));
}

TEST(SchemaDocument, all_of_that_leads_back_to_itself_is_refused) {
  EXPECT_THAT(merge_error(R"({"allOf": [{"$ref": "#"}, {"type": "object"}]})"),
              HasSubstr("$.allOf[0]: a $ref leads back to an allOf that it is a part of"));
  EXPECT_THAT(merge_error(R"({"allOf": [{"$ref": "#/$defs/a"}, {}], "$defs": {
                  "a": {"allOf": [{}, {"$ref": "#/$defs/b"}]},
                  "b": {"allOf": [{}, {"$ref": "#/$defs/a"}]}}})"),
              HasSubstr("$.allOf[0].allOf[1].allOf[1]: a $ref leads back"));
  EXPECT_THAT(merge_error(R"({"$defs": {"a": {"$ref": "#/$defs/a"}},
                              "allOf": [{"$ref": "#/$defs/a"}, {}]})"),
              HasSubstr("$.allOf[0].$ref"));
}

TEST(SchemaDocument, long_chains_of_all_of_are_refused) {
  // 5,000 definitions, each with allOf of the one before.
  std::string chain = R"("d0": {})";
  for (int i = 1; i < 5000; ++i) {
    chain += fmt::format(R"(, "d{}": {{"allOf": [{{"$ref": "#/$defs/d{}"}}, {{}}]}})", i, i - 1);
  }
  EXPECT_THAT(
      merge_error(R"({"allOf": [{"$ref": "#/$defs/d4999"}, {}], "$defs": {)" + chain + "}}"),
      HasSubstr("nested too deep"));
}

// 40 definitions, each twice the one before: 2^40 parts, were they merged each by itself.
TEST(SchemaDocument, what_doubles_forty_times_is_merged_once) {
  std::string chain = R"("d0": {"properties": {"a": {}}})";
  for (int i = 1; i < 40; ++i) {
    chain += fmt::format(
        R"(, "d{}": {{"allOf": [{{"$ref": "#/$defs/d{}"}}, {{"$ref": "#/$defs/d{}"}}]}})", i, i - 1,
        i - 1);
  }
  CompileWork work;
  SchemaDocument document(R"({"allOf": [{"$ref": "#/$defs/d39"}, {}], "$defs": {)" + chain + "}}",
                          work);
  EXPECT_THAT(names_of(merged(document)), ElementsAre("a"));
}

TEST(SchemaDocument, what_takes_too_long_to_compare_is_refused) {
  // The same large schema in allOf at many places: each alone is fine.
  const std::string large = R"({"$defs": {"x": {"properties": {)" + list_of(5000, R"("p%d": {})") +
                            "}}}, \"allOf\": [" + R"({"$ref": "#/$defs/x"}, {}]})";
  EXPECT_EQ(merge_error(large), "no error");
  EXPECT_THAT(error_of(large,
                       [](SchemaDocument& document) {
                         for (int i = 0; i < 1000; ++i) merged(document);
                       }),
              HasSubstr("too large: $.allOf[0] takes too much work"));
  EXPECT_EQ(disjoint_error(R"({"oneOf": [)" + list_of(200, R"({"const": %d})") + "]}"), "no error");
  EXPECT_THAT(disjoint_error(R"({"oneOf": [)" + list_of(1000, R"({"const": %d})") + "]}"),
              HasSubstr("too large: $ takes"));
  EXPECT_THAT(disjoint_error(R"({"oneOf": [{"enum": [)" + list_of(9000, "%d") +
                             R"(]}, {"enum": [)" + list_of(9000, "-1%d") + "]}]}"),
              HasSubstr("too large: $ takes"));
}

TEST(SchemaDocument, branches_are_told_apart_by_type_value_or_a_required_property) {
  EXPECT_EQ(disjoint_error(R"({"oneOf": [{"type": "string"}, {"type": "integer"}]})"), "no error");
  EXPECT_EQ(disjoint_error(R"({"oneOf": [{"const": 1}, {"enum": [2, 3]}]})"), "no error");
  EXPECT_EQ(disjoint_error(R"({"oneOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}], "$defs": {
                "a": {"type": "object", "properties": {"k": {"const": "a"}}, "required": ["k"]},
                "b": {"type": "object", "properties": {"k": {"const": "b"}}, "required": ["k"]}}})"),
            "no error");
  // Not required in both: a value without it fulfils both.
  EXPECT_THAT(disjoint_error(R"({"oneOf": [
                {"type": "object", "properties": {"k": {"const": "a"}}},
                {"type": "object", "properties": {"k": {"const": "b"}}, "required": ["k"]}]})"),
              HasSubstr("branches 0 and 1"));
  EXPECT_THAT(disjoint_error(R"({"oneOf": [{"type": "number"}, {"type": "integer"}]})"),
              HasSubstr("branches 0 and 1"));
  EXPECT_THAT(disjoint_error(R"({"oneOf": [{"enum": [1, 2]}, {"const": 2}]})"),
              HasSubstr("branches 0 and 1"));
}

TEST(SchemaDocument, texts_that_are_no_schema_are_refused) {
  const auto error = [](const std::string& text) { return error_of(text, [](SchemaDocument&) {}); };
  EXPECT_THAT(error("{"), HasSubstr("is not JSON"));
  EXPECT_THAT(error(std::string(5000, '[')), HasSubstr("nested deeper than 200 levels"));
  EXPECT_THAT(error('"' + std::string(1 << 20, 'x') + '"'), HasSubstr("more than 1048576 bytes"));
}

}  // namespace
}  // namespace atl::constrain
