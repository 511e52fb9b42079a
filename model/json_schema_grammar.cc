#include "model/json_schema_grammar.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "model/utf8.h"

namespace atl::model {
namespace {

using Json = nlohmann::ordered_json;
using Node = GrammarBuilder::Node;
using Types = std::set<std::string>;

constexpr int kSchemaDepthMax = 100;
constexpr size_t kSchemaBytesMax = size_t{1} << 20;
constexpr size_t kNodesMax = 400'000;
constexpr int64_t kLengthMax = 20'000;  // of minLength and maxLength
constexpr int64_t kItemsMax = 10'000;
constexpr int32_t kMultipleOfMax = 100;
constexpr double kExactMax = 9007199254740991;  // 2^53 - 1

constexpr std::array<std::string_view, 17> kIgnored = {
    "title",      "description", "default",   "example", "examples",
    "$schema",    "$id",         "$comment",  "$defs",   "definitions",
    "deprecated", "readOnly",    "writeOnly", "$anchor", "contentMediaType",
    "strict",     "id"};
constexpr std::array<std::string_view, 25> kKnown = {"type",
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
                                                     "nullable",
                                                     "uniqueItems"};
constexpr std::array<std::string_view, 7> kTypes = {"object",  "array",   "string", "number",
                                                    "integer", "boolean", "null"};

// Dates and times: RFC 3339; years from 0001; 29 February in leap years only.
constexpr std::string_view kYear = R"((?:\d{3}[1-9]|\d{2}[1-9]0|\d[1-9]00|[1-9]000))";
constexpr std::string_view kMonthAndDay =
    R"((?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)|02-(?:0[1-9]|1\d|2[0-8])))";
constexpr std::string_view kLeapYear =
    R"((?:\d\d(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00))";
constexpr std::string_view kTime =
    R"((?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{1,6})?(?:Z|[+-](?:[01]\d|2[0-3]):[0-5]\d))";

std::string date_pattern() {
  return fmt::format("(?:{}-{}|{}-02-29)", kYear, kMonthAndDay, kLeapYear);
}

// Empty: not built.
std::string format_pattern(std::string_view format) {
  if (format == "date") return "^" + date_pattern() + "$";
  if (format == "time") return fmt::format("^{}$", kTime);
  if (format == "date-time") return fmt::format("^{}T{}$", date_pattern(), kTime);
  if (format == "uuid") {
    return "^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$";
  }
  if (format == "ipv4") {
    constexpr std::string_view kByte = R"((?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d))";
    return fmt::format(R"(^{0}\.{0}\.{0}\.{0}$)", kByte);
  }
  constexpr std::string_view kLabel = "[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?";
  if (format == "hostname") return fmt::format(R"(^{0}(?:\.{0}){{0,3}}$)", kLabel);
  if (format == "email") {
    return fmt::format(R"(^[a-zA-Z0-9_+-]+(?:\.[a-zA-Z0-9_+-]+)*@{0}(?:\.{0}){{1,3}}$)", kLabel);
  }
  if (format == "uri") {
    return R"(^[a-zA-Z][a-zA-Z0-9+.-]{0,30}://[a-zA-Z0-9.-]+(?::\d{1,5})?(?:/[a-zA-Z0-9._~!$&'()*+,;=:@/-]*)?$)";
  }
  if (format == "duration") {
    return R"(^P(?:\d+W|\d+Y(?:\d+M)?(?:\d+D)?|\d+M(?:\d+D)?|\d+D|T(?:\d+H(?:\d+M)?(?:\d+S)?|\d+M(?:\d+S)?|\d+S))$)";
  }
  return "";
}

[[noreturn]] void refuse(std::string message) {
  throw Error{ErrorCode::kInvalid, "schema " + std::move(message)};
}

template <typename Table>
bool is_among(const Table& table, std::string_view key) {
  return std::find(table.begin(), table.end(), key) != table.end();
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

// 0.25 as digits; numbers beyond what doubles count exactly are brought back to it.
DecimalBound decimal(const Json& number, bool exclusive) {
  const double value = std::clamp(number.get<double>(), -kExactMax, kExactMax);
  std::string text = number.is_number_integer() && value == number.get<double>()
                         ? fmt::format("{}", number.get<int64_t>())
                         : fmt::format("{:.15f}", value);
  DecimalBound out;
  out.exclusive = exclusive;
  out.negative = text[0] == '-';
  if (out.negative) text.erase(0, 1);
  const size_t point = std::min(text.find('.'), text.size());
  out.whole = text.substr(0, point);
  if (point < text.size()) out.fraction = text.substr(point + 1);
  // As many digits as the shortest text of the number has, so that 0.1 stays 0.1.
  if (!out.fraction.empty()) {
    const std::string shortest = fmt::format("{}", std::fabs(value));
    const size_t dot = shortest.find('.');
    if (shortest.find('e') == std::string::npos) {
      out.fraction = dot == std::string::npos ? "" : shortest.substr(dot + 1);
    }
  }
  return out;
}

class SchemaCompiler {
 public:
  SchemaCompiler(GrammarBuilder& grammar, const JsonRules& rules, Json root)
      : grammar_(grammar), rules_(rules), root_(std::move(root)) {}

  int32_t run() {
    const int32_t top = grammar_.add_rule();
    refs_.emplace("#", top);
    fill(top, root_, "$");
    return top;
  }

 private:
  // --- schemas ---

  // A rule for the schema.
  int32_t rule_of(const Json& schema, const std::string& place) {
    if (const auto usual = usual_rule(schema, place)) return *usual;
    const int32_t rule = grammar_.add_rule();
    fill(rule, schema, place);
    return rule;
  }

  // Schemas without constraints share the rules that every grammar has: their states' tokens are
  // found once for all.
  std::optional<int32_t> usual_rule(const Json& schema, const std::string& place) {
    if (schema.is_boolean() && schema.get<bool>()) return rules_.value;
    if (!schema.is_object()) return std::nullopt;
    check_keywords(schema, place);
    if (schema.contains("$ref")) return ref_rule(schema, place);
    size_t num_constraints = 0;
    for (const auto& [key, value] : schema.items()) num_constraints += !is_among(kIgnored, key);
    if (num_constraints == 0) return rules_.value;
    if (num_constraints > 1 || !schema.contains("type") || !schema["type"].is_string()) {
      return std::nullopt;
    }
    const auto& type = schema["type"].get_ref<const std::string&>();
    if (type == "string") return rules_.string;
    if (type == "number") return rules_.number;
    if (type == "integer") return rules_.integer;
    if (type == "object") return rules_.object;
    if (type == "array") return rules_.array;
    return std::nullopt;
  }

  void fill(int32_t rule, const Json& schema, const std::string& place) {
    const auto [start, accept] = grammar_.rule(rule);
    add(schema, place, start, accept);
  }

  void add(const Json& schema, const std::string& place, Node from, Node to) {
    if (++depth_ > kSchemaDepthMax) refuse(place + ": nested too deep");
    expect_room(place);
    if (schema.is_boolean()) {
      if (schema.get<bool>()) grammar_.call(from, rules_.value, to);
    } else {
      if (!schema.is_object()) refuse(place + ": expected an object or a boolean");
      check_keywords(schema, place);
      add_schema(schema, place, from, to);
    }
    --depth_;
  }

  void expect_room(const std::string& place) const {
    if (grammar_.num_nodes() > kNodesMax) refuse(place + ": too large");
  }

  static void check_keywords(const Json& schema, const std::string& place) {
    for (const auto& [key, value] : schema.items()) {
      if (!is_among(kKnown, key) && !is_among(kIgnored, key)) {
        refuse(fmt::format("{}.{}: this keyword is not supported", place, key.substr(0, 60)));
      }
    }
    if (schema.contains("uniqueItems") && schema["uniqueItems"] != false) {
      refuse(place + ".uniqueItems: this keyword is not supported");
    }
  }

  void add_schema(const Json& schema, const std::string& place, Node from, Node to) {
    if (schema.value("nullable", Json()) == true)
      grammar_.empty(grammar_.literal(from, "null"), to);
    if (schema.contains("$ref")) return grammar_.call(from, ref_rule(schema, place), to);
    if (schema.contains("allOf")) return add_all_of(schema, place, from, to);
    for (const char* key : {"anyOf", "oneOf"}) {
      if (schema.contains(key)) return add_choice(schema, key, place, from, to);
    }
    if (schema.contains("enum") || schema.contains("const")) {
      return add_values(schema, place, from, to);
    }
    const Types types = types_of(schema, place);
    if (types.size() == kTypes.size() - 1) return grammar_.call(from, rules_.value, to);
    for (const std::string& type : types) add_type(type, schema, place, from, to);
  }

  // Beside a keyword that says it all, only remarks may stand.
  static void expect_alone(const Json& schema, const std::string& keyword, const std::string& place,
                           std::initializer_list<std::string_view> also = {}) {
    for (const auto& [key, value] : schema.items()) {
      if (key == keyword || key == "nullable" || is_among(kIgnored, key)) continue;
      if (std::find(also.begin(), also.end(), key) != also.end()) continue;
      refuse(fmt::format("{}.{}: not supported beside {}", place, key, keyword));
    }
  }

  int32_t ref_rule(const Json& schema, const std::string& place) {
    expect_alone(schema, "$ref", place);
    const std::string ref = ref_text(schema, place);
    const auto known = refs_.find(ref);
    if (known != refs_.end()) return known->second;
    const Json& target = ref_target(ref, place);
    const int32_t rule = grammar_.add_rule();
    refs_.emplace(ref, rule);
    fill(rule, target, ref);
    return rule;
  }

  static std::string ref_text(const Json& schema, const std::string& place) {
    if (!schema["$ref"].is_string()) refuse(place + ".$ref: expected a text");
    return schema["$ref"].get<std::string>();
  }

  const Json& ref_target(const std::string& ref, const std::string& place) const {
    if (ref == "#") return root_;
    if (!ref.starts_with("#/")) {
      refuse(fmt::format("{}.$ref: \"{}\" is not in this schema (\"#/...\")", place,
                         ref.substr(0, 80)));
    }
    try {
      return root_.at(Json::json_pointer(ref.substr(1)));
    } catch (const Json::exception&) {
      refuse(fmt::format("{}.$ref: there is no \"{}\"", place, ref.substr(0, 80)));
    }
  }

  // The type, or what the other keywords are about; all but "integer" if nothing says it.
  static Types types_of(const Json& schema, const std::string& place) {
    if (schema.contains("type")) return declared_types(schema["type"], place);
    static constexpr std::array<std::pair<std::string_view, std::string_view>, 17> kAbout = {{
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
        {"multipleOf", "integer"},
        {"uniqueItems", "array"},
    }};
    Types out;
    for (const auto& [keyword, type] : kAbout) {
      if (schema.contains(keyword)) out.emplace(type);
    }
    if (out.contains("integer")) out.erase("number");
    if (!out.empty()) return out;
    for (std::string_view type : kTypes) out.emplace(type);
    out.erase("integer");
    return out;
  }

  static Types declared_types(const Json& type, const std::string& place) {
    Types out;
    const Json names = type.is_array() ? type : Json::array({type});
    for (const Json& name : names) {
      if (!name.is_string() || !is_among(kTypes, name.get_ref<const std::string&>())) {
        refuse(fmt::format("{}.type: unknown type {}", place, name.dump().substr(0, 60)));
      }
      out.insert(name.get<std::string>());
    }
    if (out.empty()) refuse(place + ".type: no type");
    if (out.contains("number")) out.erase("integer");
    return out;
  }

  void add_type(const std::string& type, const Json& schema, const std::string& place, Node from,
                Node to) {
    if (type == "null") {
      grammar_.empty(grammar_.literal(from, "null"), to);
    } else if (type == "boolean") {
      grammar_.empty(grammar_.literal(from, "true"), to);
      grammar_.empty(grammar_.literal(from, "false"), to);
    } else if (type == "string") {
      add_string(schema, place, from, to);
    } else if (type == "object") {
      add_object(schema, place, from, to);
    } else if (type == "array") {
      add_array(schema, place, from, to);
    } else {
      add_number_type(type == "integer", schema, place, from, to);
    }
  }

  // --- values ---

  void add_values(const Json& schema, const std::string& place, Node from, Node to) {
    expect_alone(schema, "enum", place, {"const", "type"});
    std::vector<Json> values;
    if (schema.contains("enum")) {
      if (!schema["enum"].is_array()) refuse(place + ".enum: expected a list");
      for (const Json& value : schema["enum"]) values.push_back(value);
    }
    if (schema.contains("const")) {
      const Json& value = schema["const"];
      const bool fits = !schema.contains("enum") ||
                        std::find(values.begin(), values.end(), value) != values.end();
      values.clear();
      if (fits) values.push_back(value);
    }
    const Types types = schema.contains("type") ? declared_types(schema["type"], place) : Types{};
    for (const Json& value : values) {
      const std::string type = type_of(value);
      const bool fits =
          types.empty() || types.contains(type) || (type == "integer" && types.contains("number"));
      if (fits) grammar_.empty(add_value(value, from), to);
      expect_room(place);
    }
  }

  Node add_value(const Json& value, Node from) {
    if (value.is_string()) return add_quoted(value.get_ref<const std::string&>(), from);
    if (!value.is_structured()) return grammar_.literal(from, value.dump());
    from = grammar_.literal(from, value.is_array() ? "[" : "{");
    bool first = true;
    for (const auto& [key, item] : value.items()) {
      if (!std::exchange(first, false)) from = add_separator(grammar_, from, ',');
      if (value.is_object()) from = add_separator(grammar_, add_quoted(key, from), ':');
      from = add_value(item, from);
    }
    return grammar_.literal(from, value.is_array() ? "]" : "}");
  }

  Node add_quoted(const std::string& text, Node from) {
    return grammar_.literal(add_string_text(grammar_, grammar_.literal(from, "\""), text), "\"");
  }

  // --- strings ---

  static int64_t size_of(const Json& schema, const char* keyword, int64_t otherwise, int64_t max,
                         const std::string& place) {
    if (!schema.contains(keyword)) return otherwise;
    const Json& value = schema[keyword];
    if (!value.is_number() || value.get<double>() < 0 || type_of(value) != "integer") {
      refuse(fmt::format("{}.{}: expected an integer of at least 0", place, keyword));
    }
    if (value.get<double>() > static_cast<double>(max)) {
      refuse(fmt::format("{}.{}: more than {} is not supported", place, keyword, max));
    }
    return static_cast<int64_t>(value.get<double>());
  }

  void add_string(const Json& schema, const std::string& place, Node from, Node to) {
    const bool counted = schema.contains("minLength") || schema.contains("maxLength");
    if (schema.contains("pattern") || schema.contains("format")) {
      if (counted)
        refuse(place + ".pattern or .format: not supported beside minLength or maxLength");
      return add_patterned(schema, place, from, to);
    }
    if (!counted) return grammar_.call(from, rules_.string, to);
    const int64_t min = size_of(schema, "minLength", 0, kLengthMax, place);
    const int64_t max = size_of(schema, "maxLength", -1, kLengthMax, place);
    add_counted(min, max, grammar_.literal(from, "\""), to);
  }

  void add_patterned(const Json& schema, const std::string& place, Node from, Node to) {
    if (schema.contains("pattern") && schema.contains("format")) {
      refuse(place + ".pattern: not supported beside format");
    }
    const char* keyword = schema.contains("pattern") ? "pattern" : "format";
    if (!schema[keyword].is_string()) refuse(fmt::format("{}.{}: expected a text", place, keyword));
    std::string pattern = schema[keyword].get<std::string>();
    if (!schema.contains("pattern")) {
      const std::string name = pattern;
      pattern = format_pattern(name);
      if (pattern.empty()) {
        refuse(fmt::format("{}.format: \"{}\" is not supported", place, name.substr(0, 60)));
      }
    }
    const auto end = add_pattern(grammar_, grammar_.literal(from, "\""), pattern);
    if (!end) refuse(fmt::format("{}.{}", place, end.error().message));
    grammar_.byte(*end, '"', to);
  }

  // Strings of min to max characters (-1: without end). The characters are a rule of their own,
  // which keeps the states few.
  void add_counted(int64_t min, int64_t max, Node from, Node to) {
    for (int64_t i = 0;; ++i) {
      if (grammar_.num_nodes() > kNodesMax) refuse("minLength or maxLength: too large");
      grammar_.set_like(from, rules_.string_inside,
                        static_cast<int32_t>(std::max<int64_t>(min - i, 0)),
                        max < 0 ? kAnyNumber : static_cast<int32_t>(max - i));
      if (i >= min) grammar_.byte(from, '"', to);
      if (i == max) return;
      if (i >= min && max < 0) return add_any_character(grammar_, from, from);
      const Node next = grammar_.node();
      grammar_.call(from, character_rule(), next);
      from = next;
    }
  }

  int32_t character_rule() {
    if (character_rule_ < 0) {
      character_rule_ = grammar_.add_rule();
      const auto [start, accept] = grammar_.rule(character_rule_);
      add_any_character(grammar_, start, accept);
    }
    return character_rule_;
  }

  // --- numbers ---

  void add_number_type(bool integer, const Json& schema, const std::string& place, Node from,
                       Node to) {
    static constexpr std::array<std::string_view, 5> kBounds = {
        "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"};
    bool bounded = false;
    for (std::string_view keyword : kBounds) {
      if (!schema.contains(keyword)) continue;
      bounded = true;
      if (!schema[std::string(keyword)].is_number()) {
        refuse(fmt::format("{}.{}: expected a number", place, keyword));
      }
    }
    if (!bounded) return grammar_.call(from, integer ? rules_.integer : rules_.number, to);
    NumberRange range;
    range.multiple_of = multiple_of(schema, place);
    range.integer = integer || schema.contains("multipleOf");
    range.low.negative = true;
    range.low.whole = range.high.whole = "999999999999999";
    if (const auto low = tightest(schema, "minimum", "exclusiveMinimum", true)) range.low = *low;
    if (const auto high = tightest(schema, "maximum", "exclusiveMaximum", false))
      range.high = *high;
    if (range.integer) round_inwards(range);
    add_number(grammar_, from, range, to);
  }

  static int32_t multiple_of(const Json& schema, const std::string& place) {
    if (!schema.contains("multipleOf")) return 1;
    const double value = schema["multipleOf"].get<double>();
    if (value < 1 || value > kMultipleOfMax || value != std::floor(value)) {
      refuse(fmt::format("{}.multipleOf: only integers from 1 to {} are supported", place,
                         kMultipleOfMax));
    }
    return static_cast<int32_t>(value);
  }

  static std::optional<DecimalBound> tightest(const Json& schema, const char* included,
                                              const char* excluded, bool is_low) {
    const bool has_in = schema.contains(included), has_out = schema.contains(excluded);
    if (!has_in && !has_out) return std::nullopt;
    if (!has_out) return decimal(schema[included], false);
    if (!has_in) return decimal(schema[excluded], true);
    const double in = schema[included].get<double>(), out = schema[excluded].get<double>();
    const bool in_is_tighter = is_low ? in > out : in < out;
    return in_is_tighter ? decimal(schema[included], false) : decimal(schema[excluded], true);
  }

  // Integers have no fraction, so neither do their bounds: the nearest integers within them.
  static void round_inwards(NumberRange& range) {
    const auto whole = [](DecimalBound& bound, bool is_low) {
      const bool has_fraction = bound.fraction.find_first_not_of('0') != std::string::npos;
      int64_t value = std::stoll(bound.whole);
      if (bound.negative) value = -value;
      const bool towards_zero = bound.negative == is_low;  // cutting the fraction off goes inwards
      if (has_fraction ? !towards_zero : bound.exclusive) value += is_low ? 1 : -1;
      bound = {fmt::format("{}", value < 0 ? -value : value), "", value < 0, false};
    };
    whole(range.low, true);
    whole(range.high, false);
  }

  // --- arrays ---

  void add_array(const Json& schema, const std::string& place, Node from, Node to) {
    const bool constrained = schema.contains("items") || schema.contains("prefixItems") ||
                             schema.contains("minItems") || schema.contains("maxItems");
    if (!constrained) return grammar_.call(from, rules_.array, to);
    std::vector<int32_t> first;
    if (schema.contains("prefixItems")) {
      if (!schema["prefixItems"].is_array()) refuse(place + ".prefixItems: expected a list");
      for (const Json& item : schema["prefixItems"]) {
        first.push_back(rule_of(item, fmt::format("{}.prefixItems[{}]", place, first.size())));
      }
    }
    const Json items = schema.value("items", Json(true));
    const bool closed = items.is_boolean() && !items.get<bool>();
    const int32_t rest = closed ? -1 : rule_of(items, place + ".items");
    const int64_t min = size_of(schema, "minItems", 0, kItemsMax, place);
    int64_t max = size_of(schema, "maxItems", -1, kItemsMax, place);
    const auto num_first = static_cast<int64_t>(first.size());
    if (closed) max = max < 0 ? num_first : std::min(max, num_first);
    add_items(first, rest, min, max, grammar_.literal(from, "["), to);
  }

  void add_items(const std::vector<int32_t>& first, int32_t rest, int64_t min, int64_t max,
                 Node from, Node to) {
    const auto num_first = static_cast<int64_t>(first.size());
    const int64_t counted = max >= 0 ? max : std::max<int64_t>({min, num_first, 1});
    Node item = from;
    if (min == 0) grammar_.byte(from, ']', to);
    for (int64_t i = 0; i < counted; ++i) {
      const Node valued = grammar_.node();
      grammar_.call(item, i < num_first ? first[static_cast<size_t>(i)] : rest, valued);
      if (i + 1 >= min) grammar_.byte(valued, ']', to);
      if (i + 1 == max) return;
      item = add_separator(grammar_, valued, ',');
    }
    if (max >= 0) return;
    const Node valued = grammar_.node();
    grammar_.call(item, rest, valued);
    grammar_.byte(valued, ']', to);
    grammar_.empty(add_separator(grammar_, valued, ','), item);
  }

  // --- objects ---

  struct Properties {
    std::vector<std::string> names;
    std::vector<int32_t> rules;
    std::vector<bool> required;
    int32_t others = -1;  // the rule of further properties; -1: there are none
  };

  void add_object(const Json& schema, const std::string& place, Node from, Node to) {
    const bool constrained = schema.contains("properties") || schema.contains("required") ||
                             schema.contains("additionalProperties");
    if (!constrained) return grammar_.call(from, rules_.object, to);
    add_members(properties_of(schema, place), from, to);
  }

  Properties properties_of(const Json& schema, const std::string& place) {
    Properties out;
    const Json members = schema.value("properties", Json::object());
    if (!members.is_object()) refuse(place + ".properties: expected an object");
    for (const auto& [name, member] : members.items()) {
      out.names.push_back(name);
      out.rules.push_back(rule_of(member, place + ".properties." + name));
    }
    // Without a word about others, a schema that names properties means these.
    const Json others = schema.value("additionalProperties", Json(members.empty()));
    if (!others.is_boolean() || others.get<bool>()) {
      out.others = rule_of(others, place + ".additionalProperties");
    }
    out.required.assign(out.names.size(), false);
    const Json required = schema.value("required", Json::array());
    if (!required.is_array()) refuse(place + ".required: expected a list");
    // A name that isn't among the properties has any value, unless others are excluded.
    const int32_t unnamed = schema.contains("additionalProperties") ? out.others : rules_.value;
    for (const Json& name : required) require(name, unnamed, place, out);
    return out;
  }

  static void require(const Json& name, int32_t unnamed, const std::string& place,
                      Properties& out) {
    if (!name.is_string()) refuse(place + ".required: expected names");
    const auto at =
        std::find(out.names.begin(), out.names.end(), name.get_ref<const std::string&>());
    if (at != out.names.end()) {
      out.required[static_cast<size_t>(at - out.names.begin())] = true;
    } else if (unnamed >= 0) {
      out.names.push_back(name.get<std::string>());
      out.rules.push_back(unnamed);
      out.required.push_back(true);
    } else {
      refuse(fmt::format("{}.required: \"{}\" is not among the properties", place,
                         name.get_ref<const std::string&>().substr(0, 60)));
    }
  }

  // The properties in their order, each at most once, then others.
  void add_members(const Properties& p, Node from, Node to) {
    const size_t n = p.names.size();
    std::vector<Node> key,
        behind;  // key[i]: property i or a later one; behind[i]: after one below i
    for (size_t i = 0; i <= n; ++i) {
      key.push_back(grammar_.node());
      behind.push_back(grammar_.node());
    }
    grammar_.empty(grammar_.literal(from, "{"), key[0]);
    size_t last_required = 0;  // one past it
    for (size_t i = 0; i < n; ++i) {
      if (p.required[i]) last_required = i + 1;
    }
    for (size_t i = 0; i <= n; ++i) {
      if (i >= last_required) grammar_.byte(behind[i], '}', to);
      grammar_.empty(add_separator(grammar_, behind[i], ','), key[i]);
      if (i == n) break;
      const Node named = add_separator(grammar_, add_quoted(p.names[i], key[i]), ':');
      grammar_.call(named, p.rules[i], behind[i + 1]);
      if (!p.required[i]) grammar_.empty(key[i], key[i + 1]);
    }
    if (last_required == 0) grammar_.byte(grammar_.literal(from, "{"), '}', to);
    if (p.others < 0) return;
    const Node named = grammar_.node();
    add_other_key(p.names, key[n], named);
    grammar_.call(add_separator(grammar_, named, ':'), p.others, behind[n]);
  }

  // Keys without escapes that are none of `names`: along the names' characters, and away from them.
  void add_other_key(const std::vector<std::string>& names, Node from, Node to) {
    const CodePoints usual = complement({{0, 0x1F}, {'"', '"'}, {'\\', '\\'}});
    const Node away = grammar_.node();
    add_character(grammar_, away, usual, away);
    grammar_.byte(away, '"', to);
    struct Branch {
      Node node = 0;
      std::map<uint32_t, size_t> next;
      bool is_name = false;
    };
    std::vector<Branch> tree = {{grammar_.literal(from, "\""), {}, false}};
    for (const std::string& name : names) {
      size_t at = 0;
      for (std::string_view rest = name; !rest.empty();) {
        const Utf8Unit unit = next_utf8_unit(rest);
        rest.remove_prefix(unit.num_bytes);
        const auto [child, is_new] = tree[at].next.emplace(unit.code_point, tree.size());
        at = child->second;
        if (is_new) tree.push_back({grammar_.node(), {}, false});
      }
      tree[at].is_name = true;
    }
    for (const Branch& branch : tree) {
      CodePoints taken = {{0, 0x1F}, {'"', '"'}, {'\\', '\\'}};
      for (const auto& [c, child] : branch.next) {
        taken.emplace_back(c, c);
        const bool plain = c >= 0x20 && c != '"' && c != '\\';
        if (plain) add_character(grammar_, branch.node, {{c, c}}, tree[child].node);
      }
      add_character(grammar_, branch.node, complement(taken), away);
      if (!branch.is_name) grammar_.byte(branch.node, '"', to);
    }
  }

  // --- combinations ---

  void add_choice(const Json& schema, const std::string& keyword, const std::string& place,
                  Node from, Node to) {
    expect_alone(schema, keyword, place, {"type"});
    const Json& branches = schema[keyword];
    if (!branches.is_array() || branches.empty()) {
      refuse(fmt::format("{}.{}: expected a list of schemas", place, keyword));
    }
    if (keyword == "oneOf") check_disjoint(branches, place);
    for (size_t i = 0; i < branches.size(); ++i) {
      Json branch = branches[i];
      if (schema.contains("type")) branch = with_type(branch, schema["type"], place);
      grammar_.call(from, rule_of(branch, fmt::format("{}.{}[{}]", place, keyword, i)), to);
    }
  }

  // A type beside anyOf holds for all branches.
  static Json with_type(Json branch, const Json& type, const std::string& place) {
    if (!branch.is_object() || branch.contains("$ref")) return branch;
    if (branch.contains("type") && branch["type"] != type) {
      refuse(place + ".type: not supported beside branches of other types");
    }
    branch["type"] = type;
    return branch;
  }

  // oneOf is anyOf if no value can fulfil two branches.
  void check_disjoint(const Json& branches, const std::string& place) {
    for (size_t i = 0; i < branches.size(); ++i) {
      for (size_t j = i + 1; j < branches.size(); ++j) {
        if (are_disjoint(resolved(branches[i], place), resolved(branches[j], place), place))
          continue;
        refuse(
            fmt::format("{}.oneOf: branches {} and {} can't be told apart by type or by the value "
                        "of a required property; use anyOf",
                        place, i, j));
      }
    }
  }

  const Json& resolved(const Json& schema, const std::string& place) const {
    const Json* at = &schema;
    for (int i = 0; i < 20 && at->is_object() && at->contains("$ref"); ++i) {
      at = &ref_target(ref_text(*at, place), place);
    }
    return *at;
  }

  // The values that the schema leaves; nullopt: not a list of values.
  static std::optional<std::vector<Json>> values_of(const Json& schema) {
    if (!schema.is_object()) return std::nullopt;
    if (schema.contains("const")) return std::vector<Json>{schema["const"]};
    if (!schema.contains("enum") || !schema["enum"].is_array()) return std::nullopt;
    return std::vector<Json>(schema["enum"].begin(), schema["enum"].end());
  }

  static bool share_no_value(const Json& a, const Json& b) {
    const auto x = values_of(a), y = values_of(b);
    if (!x || !y) return false;
    return std::none_of(x->begin(), x->end(), [&](const Json& value) {
      return std::find(y->begin(), y->end(), value) != y->end();
    });
  }

  static Types possible_types(const Json& schema, const std::string& place) {
    Types out;
    const auto values = values_of(schema);
    if (values) {
      for (const Json& value : *values)
        out.insert(type_of(value) == "integer" ? "number" : type_of(value));
    } else if (schema.is_object() && schema.contains("type") && !schema.contains("anyOf") &&
               !schema.contains("oneOf") && !schema.contains("allOf")) {
      out = declared_types(schema["type"], place);
      if (out.erase("integer") > 0) out.insert("number");
    } else {
      for (std::string_view type : kTypes) out.emplace(type);
    }
    if (schema.is_object() && schema.value("nullable", Json()) == true) out.insert("null");
    return out;
  }

  bool are_disjoint(const Json& a, const Json& b, const std::string& place) const {
    const Types x = possible_types(a, place), y = possible_types(b, place);
    Types both;
    std::set_intersection(x.begin(), x.end(), y.begin(), y.end(), std::inserter(both, both.end()));
    if (both.empty() || share_no_value(a, b)) return true;
    if (both != Types{"object"} || !a.is_object() || !b.is_object()) return false;
    const Json required = a.value("required", Json::array());
    const Json other = b.value("required", Json::array());
    for (const Json& name : required) {
      if (!name.is_string() || std::find(other.begin(), other.end(), name) == other.end()) continue;
      const Json mine = a.value("properties", Json::object()),
                 yours = b.value("properties", Json::object());
      const std::string key = name.get<std::string>();
      if (mine.contains(key) && yours.contains(key) &&
          share_no_value(resolved(mine[key], place), resolved(yours[key], place))) {
        return true;
      }
    }
    return false;
  }

  // Several objects at once: their properties and requirements together.
  void add_all_of(const Json& schema, const std::string& place, Node from, Node to) {
    const Json& parts = schema["allOf"];
    if (!parts.is_array() || parts.empty()) refuse(place + ".allOf: expected a list of schemas");
    Json base = schema;
    base.erase("allOf");
    bool has_more = false;
    for (const auto& [key, value] : base.items())
      has_more |= !is_among(kIgnored, key) && key != "nullable";
    if (parts.size() == 1 && !has_more) {
      return grammar_.call(from, rule_of(parts[0], place + ".allOf[0]"), to);
    }
    Json merged = {{"type", "object"}, {"properties", Json::object()}, {"required", Json::array()}};
    if (has_more) merge_object(base, place, merged);
    for (size_t i = 0; i < parts.size(); ++i) {
      merge_object(resolved(parts[i], place), fmt::format("{}.allOf[{}]", place, i), merged);
    }
    add_members(properties_of(merged, place), from, to);
  }

  void merge_object(const Json& part, const std::string& place, Json& merged) {
    if (!part.is_object()) refuse(place + ": expected an object's schema");
    if (part.contains("allOf")) {
      for (const Json& inner : part["allOf"])
        merge_object(resolved(inner, place), place + ".allOf", merged);
    }
    expect_alone(part, "allOf", place, {"type", "properties", "required", "additionalProperties"});
    if (part.contains("type") && part["type"] != "object") {
      refuse(place + ".type: allOf is supported for objects only");
    }
    const Json members = part.value("properties", Json::object());
    for (const auto& [name, member] : members.items()) {
      if (merged["properties"].contains(name) && merged["properties"][name] != member) {
        refuse(fmt::format("{}.properties.{}: two different schemas in allOf", place, name));
      }
      merged["properties"][name] = member;
    }
    const Json required = part.value("required", Json::array());
    for (const Json& name : required) merged["required"].push_back(name);
    if (!part.contains("additionalProperties")) return;
    if (part["additionalProperties"] == true) return;
    refuse(place + ".additionalProperties: not supported in allOf");
  }

  GrammarBuilder& grammar_;
  const JsonRules rules_;
  const Json root_;
  std::map<std::string, int32_t> refs_;
  int32_t character_rule_ = -1;
  int depth_ = 0;
};

Json parse_schema(std::string_view text) {
  if (text.size() > kSchemaBytesMax) refuse(fmt::format("has more than {} bytes", kSchemaBytesMax));
  const auto limit_depth = [](int depth, Json::parse_event_t, Json&) {
    if (depth > 2 * kSchemaDepthMax) refuse("is nested too deep");
    return true;
  };
  try {
    return Json::parse(text, limit_depth);
  } catch (const Json::exception& error) {
    refuse("is not JSON: " + std::string(error.what()).substr(0, 150));
  }
}

}  // namespace

Result<int32_t> add_json_schema(GrammarBuilder& grammar, const JsonRules& rules,
                                std::string_view schema_json) {
  try {
    return SchemaCompiler(grammar, rules, parse_schema(schema_json)).run();
  } catch (const Error& error) {
    return error;
  } catch (const Json::exception& error) {
    return Error{ErrorCode::kInvalid,
                 "schema is malformed: " + std::string(error.what()).substr(0, 150)};
  }
}

}  // namespace atl::model
