#include "constrain/json_schema_document.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>

#include "base/result.h"

namespace atl::constrain {
namespace {

using testing::HasSubstr;

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
std::string disjoint_error(const std::string& schema) {
  return error_of(schema, [](SchemaDocument& document) {
    const auto& branches = document.root()["oneOf"];
    for (size_t i = 0; i < branches.size(); ++i) {
      for (size_t j = i + 1; j < branches.size(); ++j) {
        if (document.disjoint(branches[i], branches[j], "$")) continue;
        throw Error{ErrorCode::kInvalid, fmt::format("branches {} and {}", i, j)};
      }
    }
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

TEST(SchemaDocument, what_takes_too_long_to_compare_is_refused) {
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
