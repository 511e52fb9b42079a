// The keywords of a JSON Schema: which there are, and what each says by itself. A schema that can't
// be read is thrown as an Error of kInvalid, which names the keyword and its place
// ("$.items.type").
#pragma once

#include <cstdint>
#include <initializer_list>
#include <nlohmann/json_fwd.hpp>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace atl::constrain {

// Ours, made when schemas are put together: a list of further patterns, each {"pattern",
// "negated"}.
inline constexpr std::string_view kMorePatterns = "\x01patterns";

inline constexpr int64_t kLengthMax = 20'000;  // of minLength and maxLength

// Names of JSON's types, and "integer".
using SchemaTypes = std::set<std::string>;

[[noreturn]] void refuse_schema(std::string message);

// What stands under the keyword; null if it isn't there.
const nlohmann::ordered_json& member(const nlohmann::ordered_json& schema, const char* keyword);

// The keyword only tells readers something, such as "title".
bool is_remark(std::string_view keyword);
// Refuses keywords that are not built.
void check_keywords(const nlohmann::ordered_json& schema, const std::string& place);
// Refuses what stands beside a keyword that says it all, but for remarks and `also`.
void expect_alone(const nlohmann::ordered_json& schema, const std::string& keyword,
                  const std::string& place, std::initializer_list<std::string_view> also = {});

// Of a value: "integer" also for 16.0.
std::string type_of(const nlohmann::ordered_json& value);
bool is_every_type(const SchemaTypes& types);
SchemaTypes every_type();  // without "integer", which "number" covers
// What stands under "type".
SchemaTypes declared_types(const nlohmann::ordered_json& type, const std::string& place);
// The type, or what the other keywords are about; every one if nothing says it.
SchemaTypes types_of(const nlohmann::ordered_json& schema, const std::string& place);

// An integer from 0 to `max`, such as "minLength"; `otherwise` if the schema does not have it.
int64_t size_of(const nlohmann::ordered_json& schema, const char* keyword, int64_t otherwise,
                int64_t max, const std::string& place);

// The same for an upper bound: -1 if the schema does not have it; at most `max`, because what is
// written may be a part of what is allowed.
int64_t size_at_most(const nlohmann::ordered_json& schema, const char* keyword, int64_t max,
                     const std::string& place);

// The keywords of objects, borrowed from the schema.
struct ObjectKeywords {
  std::vector<std::pair<std::string, const nlohmann::ordered_json*>> properties;  // in their order
  std::vector<std::string> required;
  const nlohmann::ordered_json* additional = nullptr;  // additionalProperties; null: not there
};
ObjectKeywords object_keywords(const nlohmann::ordered_json& schema, const std::string& place);

}  // namespace atl::constrain
