#include "base/json_reader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>

namespace atl {
namespace {

using Json = nlohmann::ordered_json;
using testing::HasSubstr;

std::string dumped(std::string_view text) { return read_json(text, {}).value().dump(); }

Error error_of(std::string_view text, const JsonBounds& bounds = {}) {
  const auto read = read_json(text, bounds);
  return read ? Error{} : read.error();
}

TEST(JsonReader, gives_every_value_in_its_order) {
  const std::string text =
      R"({"b":[1,-2,3.5,true,null,"\u00e9\n"],"a":{"":{},"x":[[],[{}]]},"big":18446744073709551615})";
  EXPECT_EQ(dumped(text), Json::parse(text).dump());
  for (const char* scalar : {"7", "\"a\"", "null", "false", "[]", "{}"}) {
    EXPECT_EQ(dumped(scalar), scalar);
  }
}

TEST(JsonReader, of_equal_keys_the_last_value_stands_where_the_first_stood) {
  EXPECT_EQ(dumped(R"({"a":1,"b":2,"a":{"c":3}})"), R"({"a":{"c":3},"b":2})");
  Json many;
  std::string twice = "{";
  for (int round = 0; round < 2; ++round) {
    for (int i = 0; i < 40; ++i) {
      many["k" + std::to_string(i)] = round;
      twice +=
          (twice.size() > 1 ? ",\"k" : "\"k") + std::to_string(i) + "\":" + std::to_string(round);
    }
  }
  EXPECT_EQ(dumped(twice + "}"), many.dump());
}

TEST(JsonReader, a_hundred_thousand_keys_are_read) {
  std::string text = "{";
  for (int i = 0; i < 100'000; ++i) text += "\"k" + std::to_string(i) + "\":0,";
  EXPECT_EQ(read_json(text + "\"end\":1}", {}).value().size(), 100'001u);
}

TEST(JsonReader, what_is_no_json_is_invalid) {
  for (const char* text : {"", "{", "[1,]", "{\"a\" 1}", "nul", "1 2", "\"\xC3\"", "1e999"}) {
    EXPECT_EQ(error_of(text).code, ErrorCode::kInvalid) << text;
  }
  EXPECT_THAT(error_of("[1,").message, HasSubstr("line 1, column 4"));
  EXPECT_THAT(error_of(std::string_view("1\0", 2)).message, HasSubstr("zero byte"));
}

TEST(JsonReader, depth_is_bounded) {
  const auto nested = [](size_t n) { return std::string(n, '[') + std::string(n, ']'); };
  EXPECT_TRUE(read_json(nested(5), {.depth_max = 5}));
  const Error error = error_of(nested(6), {.depth_max = 5});
  EXPECT_EQ(error.code, ErrorCode::kUnsupported);
  EXPECT_EQ(error.message, "nested deeper than 5 levels");
  EXPECT_THAT(error_of(std::string(1'000'000, '[')).message, HasSubstr("nested deeper"));
}

TEST(JsonReader, memory_is_bounded_whatever_takes_it) {
  const auto repeated = [](const std::string& item) {
    std::string text = "[" + item;
    for (int i = 0; i < 1000; ++i) text += "," + item;
    return text + "]";
  };
  for (const std::string item : {"0", "[]", "{}", "\"\"", "{\"a\":0}", "[[]]"}) {
    size_t bytes = 0;
    const std::string text = repeated(item);
    EXPECT_TRUE(read_json(text, {}, &bytes)) << item;
    EXPECT_TRUE(read_json(text, {.bytes_max = bytes})) << item;
    const Error error = error_of(text, {.bytes_max = bytes - 1});
    EXPECT_EQ(error.code, ErrorCode::kUnsupported) << item;
    EXPECT_THAT(error.message, HasSubstr("more values than"));
  }
}

}  // namespace
}  // namespace atl
