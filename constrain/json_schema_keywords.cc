#include "constrain/json_schema_keywords.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <nlohmann/json.hpp>

#include "base/result.h"

namespace atl::constrain {
namespace {

using Json = nlohmann::ordered_json;

// Those that assert something. All others are remarks (2020-12, core 6.5), whatever they are
// called.
constexpr std::array<std::string_view, 44> kKnown = {"type",
                                                     "properties",
                                                     "required",
                                                     "additionalProperties",
                                                     "enum",
                                                     "const",
                                                     "items",
                                                     "prefixItems",
                                                     "minItems",
                                                     "maxItems",
                                                     "minLength",
                                                     "maxLength",
                                                     "minimum",
                                                     "maximum",
                                                     "exclusiveMinimum",
                                                     "exclusiveMaximum",
                                                     "multipleOf",
                                                     "anyOf",
                                                     "oneOf",
                                                     "allOf",
                                                     "$ref",
                                                     "format",
                                                     "pattern",
                                                     "uniqueItems",
                                                     "propertyNames",
                                                     "patternProperties",
                                                     "minProperties",
                                                     "maxProperties",
                                                     "not",
                                                     "if",
                                                     "then",
                                                     "else",
                                                     "dependentRequired",
                                                     "dependentSchemas",
                                                     "dependencies",
                                                     "additionalItems",
                                                     "unevaluatedProperties",
                                                     "unevaluatedItems",
                                                     "contains",
                                                     "minContains",
                                                     "maxContains",
                                                     kMorePatterns,
                                                     "$dynamicRef",
                                                     "$recursiveRef"};
// Of these, the ones that are not built.
constexpr std::array<std::string_view, 3> kNotBuilt = {"unevaluatedItems", "$dynamicRef",
                                                       "$recursiveRef"};
constexpr std::array<std::string_view, 7> kTypes = {"object",  "array",   "string", "number",
                                                    "integer", "boolean", "null"};

template <typename Table>
bool is_among(const Table& table, std::string_view key) {
  return std::find(table.begin(), table.end(), key) != table.end();
}

}  // namespace

void refuse_schema(std::string message) {
  throw Error{ErrorCode::kInvalid, "schema " + std::move(message)};
}

const Json& member(const Json& schema, const char* keyword) {
  static const Json kMissing;
  const auto found = schema.find(keyword);
  return found == schema.end() ? kMissing : *found;
}

bool is_remark(std::string_view keyword) { return !is_among(kKnown, keyword); }

void check_keywords(const Json& schema, const std::string& place) {
  for (const std::string_view keyword : kNotBuilt) {
    if (!schema.contains(keyword)) continue;
    if (keyword == "unevaluatedItems" && schema[std::string(keyword)] == true) continue;
    refuse_schema(fmt::format("{}.{}: this keyword is not supported", place, keyword));
  }
}

void expect_alone(const Json& schema, const std::string& keyword, const std::string& place,
                  std::initializer_list<std::string_view> also) {
  for (const auto& [key, value] : schema.items()) {
    if (key == keyword || is_remark(key)) continue;
    if (std::find(also.begin(), also.end(), key) != also.end()) continue;
    refuse_schema(fmt::format("{}.{}: not supported beside {}", place, key, keyword));
  }
}

std::string type_of(const Json& value) {
  if (value.is_null()) return "null";
  if (value.is_boolean()) return "boolean";
  if (value.is_string()) return "string";
  if (value.is_array()) return "array";
  if (value.is_object()) return "object";
  const bool whole =
      !value.is_number_float() || std::floor(value.get<double>()) == value.get<double>();
  return whole ? "integer" : "number";
}

bool is_every_type(const SchemaTypes& types) { return types == every_type(); }

SchemaTypes every_type() {
  SchemaTypes out(kTypes.begin(), kTypes.end());
  out.erase("integer");
  return out;
}

SchemaTypes declared_types(const Json& type, const std::string& place) {
  SchemaTypes out;
  if (type.is_array() && type.size() > kTypes.size()) {
    refuse_schema(place + ".type: a type is there twice");
  }
  const Json names = type.is_array() ? type : Json::array({type});
  for (const Json& name : names) {
    if (!name.is_string() || !is_among(kTypes, name.get_ref<const std::string&>())) {
      refuse_schema(fmt::format("{}.type: unknown type {}", place, name.dump().substr(0, 60)));
    }
    out.insert(name.get<std::string>());
  }
  if (out.empty()) refuse_schema(place + ".type: no type");
  if (out.contains("number")) out.erase("integer");
  return out;
}

SchemaTypes types_of(const Json& schema, const std::string& place) {
  if (schema.contains("type")) return declared_types(schema["type"], place);
  static constexpr std::array<std::pair<std::string_view, std::string_view>, 25> kAbout = {{
      {"properties", "object"},
      {"required", "object"},
      {"additionalProperties", "object"},
      {"items", "array"},
      {"prefixItems", "array"},
      {"minItems", "array"},
      {"maxItems", "array"},
      {"minLength", "string"},
      {"maxLength", "string"},
      {"pattern", "string"},
      {"format", "string"},
      {"minimum", "number"},
      {"maximum", "number"},
      {"exclusiveMinimum", "number"},
      {"exclusiveMaximum", "number"},
      {"multipleOf", "number"},
      {"uniqueItems", "array"},
      {"additionalItems", "array"},
      {"contains", "array"},
      {"patternProperties", "object"},
      {"propertyNames", "object"},
      {"minProperties", "object"},
      {"maxProperties", "object"},
      {"unevaluatedProperties", "object"},
      {kMorePatterns, "string"},
  }};
  SchemaTypes out;
  for (const auto& [keyword, type] : kAbout) {
    if (schema.contains(keyword)) out.emplace(type);
  }
  if (!out.empty()) return out;
  return every_type();
}

int64_t size_of(const Json& schema, const char* keyword, int64_t otherwise, int64_t max,
                const std::string& place) {
  if (!schema.contains(keyword)) return otherwise;
  const Json& value = schema[keyword];
  if (!value.is_number() || value.get<double>() < 0 || type_of(value) != "integer") {
    refuse_schema(fmt::format("{}.{}: expected an integer of at least 0", place, keyword));
  }
  if (value.get<double>() > static_cast<double>(max)) {
    refuse_schema(fmt::format("{}.{}: more than {} is not supported", place, keyword, max));
  }
  return static_cast<int64_t>(value.get<double>());
}

int64_t size_at_most(const Json& schema, const char* keyword, int64_t max,
                     const std::string& place) {
  return std::min(size_of(schema, keyword, -1, INT64_MAX / 2, place), max);
}

ObjectKeywords object_keywords(const Json& schema, const std::string& place) {
  ObjectKeywords out;
  const Json& members = member(schema, "properties");
  if (!members.is_null() && !members.is_object()) {
    refuse_schema(place + ".properties: expected an object");
  }
  for (const auto& [name, value] : members.items()) out.properties.emplace_back(name, &value);
  const Json& names = member(schema, "required");
  if (!names.is_null() && !names.is_array()) refuse_schema(place + ".required: expected a list");
  for (const Json& name : names) {
    if (!name.is_string()) refuse_schema(place + ".required: expected names");
    out.required.push_back(name.get<std::string>());
  }
  if (schema.contains("additionalProperties")) out.additional = &schema["additionalProperties"];
  return out;
}

}  // namespace atl::constrain
