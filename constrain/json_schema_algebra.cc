#include "constrain/json_schema_algebra.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "constrain/json_schema_formats.h"
#include "constrain/json_schema_keywords.h"
#include "text/utf8.h"

namespace atl::constrain {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kAlternativesMax = 256;
constexpr int kDepthMax = 60;
constexpr size_t kValueBytes = 100;  // of a copy of a value, about
// Of characters, where a format and a length come together: what is longer isn't written.
constexpr int64_t kFormatLengthMax = 256;
constexpr size_t kFormatStatesMax = 40'000;

constexpr std::string_view kCombining[] = {"allOf",
                                           "anyOf",
                                           "oneOf",
                                           "not",
                                           "if",
                                           "then",
                                           "else",
                                           "$ref",
                                           "dependentRequired",
                                           "dependentSchemas",
                                           "dependencies"};

bool is_combining(std::string_view keyword) {
  return std::find(std::begin(kCombining), std::end(kCombining), keyword) != std::end(kCombining);
}

bool has(const Json& json, const char* key) { return json.contains(key); }

int64_t number_of(const Json& schema, const char* keyword, const std::string& place) {
  return size_of(schema, keyword, 0, INT64_MAX / 2, place);
}

void add_required(Json& schema, const Json& names) {
  Json& list = schema["required"];
  if (list.is_null()) list = Json::array();
  for (const Json& name : names) {
    if (std::find(list.begin(), list.end(), name) == list.end()) list.push_back(name);
  }
}

// {"type": "object", "properties": {name: false}}: there is no such property.
Json without(const std::string& name) {
  return {{"type", "object"}, {"properties", {{name, false}}}};
}

const Json& list_of(const Json& schema, const char* keyword, const std::string& place) {
  const Json& list = schema[keyword];
  if (!list.is_array() || list.empty()) {
    refuse_schema(fmt::format("{}.{}: expected a list of schemas", place, keyword));
  }
  return list;
}

// Several schemas of one part of a value.
Json all_of(const Json& a, const Json& b) {
  if (a == b || b == true) return a;
  if (a == true) return b;
  if (a == false || b == false) return false;
  Json out = {{"allOf", Json::array()}};
  for (const Json* part : {&a, &b}) {
    if (part->is_object() && part->size() == 1 && part->contains("allOf")) {
      for (const Json& inner : (*part)["allOf"]) out["allOf"].push_back(inner);
    } else {
      out["allOf"].push_back(*part);
    }
  }
  return out;
}

Json type_list(const SchemaTypes& types) {
  if (types.size() == 1) return *types.begin();
  Json out = Json::array();
  for (const std::string& type : types) out.push_back(type);
  return out;
}

SchemaTypes common_types(const SchemaTypes& a, const SchemaTypes& b) {
  SchemaTypes out;
  for (const std::string& type : a) {
    if (b.contains(type) || (type == "integer" && b.contains("number"))) out.insert(type);
  }
  if (a.contains("number") && b.contains("integer")) out.insert("integer");
  if (out.contains("number")) out.erase("integer");
  return out;
}

// Draft 4 to 7 said some of it otherwise.
void modernise(Json& schema) {
  for (const auto& [flag, bound] :
       {std::pair("exclusiveMinimum", "minimum"), std::pair("exclusiveMaximum", "maximum")}) {
    if (!has(schema, flag) || !schema[flag].is_boolean()) continue;
    const bool exclusive = schema[flag].get<bool>();
    schema.erase(flag);
    if (!exclusive || !has(schema, bound)) continue;
    schema[flag] = Json(schema[bound]);
    schema.erase(bound);
  }
  if (has(schema, "items") && schema["items"].is_array()) {
    schema["prefixItems"] = Json(schema["items"]);
    schema.erase("items");
    if (has(schema, "additionalItems")) schema["items"] = Json(schema["additionalItems"]);
  }
  schema.erase("additionalItems");
}

}  // namespace

bool is_combined(const Json& schema) {
  if (!schema.is_object()) return false;
  size_t num_keywords = 0;
  bool combines = false, legacy = false;
  for (const auto& [key, value] : schema.items()) {
    if (is_remark(key)) continue;
    ++num_keywords;
    combines |= is_combining(key) &&
                !(key == "not" && value.is_object() && value.size() == 1 && value.contains("enum"));
    legacy |= key == "additionalItems" || key == "unevaluatedProperties" ||
              (key.starts_with("exclusive") && value.is_boolean()) ||
              (key == "items" && value.is_array());
  }
  const bool alone = num_keywords == 1 && (has(schema, "$ref") || has(schema, "anyOf"));
  const bool values = has(schema, "enum") || has(schema, "const");
  const bool more = num_keywords > size_t{1} + has(schema, "type");
  return (combines && !alone) || legacy || (values && more);
}

SchemaAlgebra::~SchemaAlgebra() = default;

void SchemaAlgebra::spend(const Json& json, const std::string& place) {
  work_.spend(50 + 16 * num_values(json), place);
}

std::vector<Json> SchemaAlgebra::alternatives(const Json& schema, const std::string& place) {
  if (schema.is_boolean()) {
    return schema.get<bool>() ? std::vector<Json>{Json::object()} : std::vector<Json>{};
  }
  if (!schema.is_object()) refuse_schema(place + ": expected an object or a boolean");
  if (++depth_ > kDepthMax) {
    refuse_schema(place.substr(0, 80) +
                  ": nested too deep, or a $ref leads back to what it is a part of");
  }
  check_keywords(schema, place);
  std::vector<Json> out = own(schema, place);
  if (has(schema, "$ref")) {
    const std::string ref = SchemaDocument::ref_of(schema, place);
    out = cross(out, of_ref(ref, place), place);
  }
  if (has(schema, "allOf")) {
    const Json& parts = list_of(schema, "allOf", place);
    for (size_t i = 0; i < parts.size(); ++i) {
      out = cross(out, alternatives(parts[i], fmt::format("{}.allOf[{}]", place, i)), place);
    }
  }
  if (has(schema, "anyOf")) {
    std::vector<Json> either;
    const Json& parts = list_of(schema, "anyOf", place);
    for (size_t i = 0; i < parts.size(); ++i) {
      for (Json& one : alternatives(parts[i], fmt::format("{}.anyOf[{}]", place, i))) {
        either.push_back(std::move(one));
      }
    }
    out = cross(out, either, place);
  }
  if (has(schema, "oneOf")) out = cross(out, one_of(schema, place), place);
  if (has(schema, "not")) out = cross(out, negated(schema["not"], place + ".not"), place);
  if (has(schema, "if")) out = cross(out, conditional(schema, place), place);
  out = cross(out, dependent(schema, place), place);
  if (has(schema, "unevaluatedProperties")) {  // of all that is said here
    for (Json& one : out) {
      one.erase("unevaluatedProperties");
      if (!has(one, "additionalProperties")) {
        one["additionalProperties"] = Json(schema["unevaluatedProperties"]);
      }
    }
  }
  --depth_;
  return out;
}

// Made once: definitions that each name the one before twice would be made 2^n times.
const std::vector<Json>& SchemaAlgebra::of_ref(const std::string& ref, const std::string& place) {
  const auto [known, is_new] = of_refs_.try_emplace(ref);
  if (!is_new && !known->second) {
    refuse_schema(place.substr(0, 80) + ": a $ref leads back to what it is a part of");
  }
  if (is_new) {
    std::vector<Json> made = alternatives(document_.target(ref, place), place);
    for (const Json& one : made) held_.add(num_values(one) * kValueBytes, place);
    known->second = std::move(made);
  }
  return *known->second;
}

// The keywords that stand for themselves.
std::vector<Json> SchemaAlgebra::own(const Json& schema, const std::string& place) {
  spend(schema, place);
  Json out = Json::object();
  for (const auto& [key, value] : schema.items()) {
    if (is_remark(key) || is_combining(key) || key == "unevaluatedProperties") continue;
    out[key] = value;
  }
  modernise(out);
  if (has(out, "const")) {
    const Json only = out["const"];
    out.erase("const");
    Json one = {{"enum", Json::array({only})}};
    if (!conjoin(out, one, place)) return {};
  }
  if (has(out, "type")) declared_types(out["type"], place);
  if (has(out, "enum") && !out["enum"].is_array()) refuse_schema(place + ".enum: expected a list");
  std::vector<Json> list;
  list.push_back(std::move(out));
  return list;
}

std::vector<Json> SchemaAlgebra::one_of(const Json& schema, const std::string& place) {
  const Json& parts = list_of(schema, "oneOf", place);
  std::vector<std::vector<Json>> each;
  for (size_t i = 0; i < parts.size(); ++i) {
    each.push_back(alternatives(parts[i], fmt::format("{}.oneOf[{}]", place, i)));
  }
  std::vector<Json> out;
  for (size_t i = 0; i < parts.size(); ++i) {
    for (size_t j = 0; j < parts.size(); ++j) {
      if (i == j || document_.disjoint(parts[i], parts[j], place)) continue;
      try {
        each[i] = cross(each[i], negated(parts[j], place), place);
      } catch (const Error& error) {
        const bool too_large = error.message.find("is too large") != std::string::npos;
        if (error.code != ErrorCode::kInvalid || too_large) throw;
        refuse_schema(
            fmt::format("{}.oneOf: branches {} and {} can't be told apart by type or by the value "
                        "of a required "
                        "property; use anyOf",
                        place, std::min(i, j), std::max(i, j)));
      }
    }
    for (Json& one : each[i]) out.push_back(std::move(one));
  }
  return out;
}

std::vector<Json> SchemaAlgebra::conditional(const Json& schema, const std::string& place) {
  const Json all(true);
  std::vector<Json> out =
      cross(alternatives(schema["if"], place + ".if"),
            alternatives(has(schema, "then") ? schema["then"] : all, place + ".then"), place);
  for (Json& one :
       cross(negated(schema["if"], place + ".if"),
             alternatives(has(schema, "else") ? schema["else"] : all, place + ".else"), place)) {
    out.push_back(std::move(one));
  }
  return out;
}

// Each name either isn't there, or brings what depends on it.
std::vector<Json> SchemaAlgebra::dependent(const Json& schema, const std::string& place) {
  std::vector<Json> out = {Json::object()};
  for (const char* keyword : {"dependentRequired", "dependentSchemas", "dependencies"}) {
    if (!has(schema, keyword)) continue;
    if (!schema[keyword].is_object()) {
      refuse_schema(fmt::format("{}.{}: expected an object", place, keyword));
    }
    for (const auto& [name, then] : schema[keyword].items()) {
      std::vector<Json> either = {without(name)};
      Json there = {{"type", "object"}, {"required", Json::array({name})}};
      if (then.is_array()) {
        add_required(there, then);
        either.push_back(std::move(there));
      } else {
        for (Json& one : cross({there}, alternatives(then, place), place)) {
          either.push_back(std::move(one));
        }
      }
      out = cross(out, either, place);
    }
  }
  return out;
}

// ---- not ---------------------------------------------------------------------------------------

// What does not fulfil all keywords misses one of them.
std::vector<Json> SchemaAlgebra::negated(const Json& schema, const std::string& place) {
  if (schema.is_boolean()) return alternatives(!schema.get<bool>(), place);
  if (!schema.is_object()) refuse_schema(place + ": expected an object or a boolean");
  if (++depth_ > kDepthMax) refuse_schema(place.substr(0, 80) + ": nested too deep");
  check_keywords(schema, place);
  spend(schema, place);
  std::vector<Json> out;
  Json modern = schema;
  modernise(modern);
  for (const auto& [key, value] : modern.items()) {
    if (is_remark(key) || key == "format" || key == "then" || key == "else") continue;
    for (Json& one : negated_keyword(key, modern, place)) out.push_back(std::move(one));
  }
  --depth_;
  return out;
}

std::vector<Json> SchemaAlgebra::negated_keyword(const std::string& key, const Json& schema,
                                                 const std::string& place) {
  const Json& value = schema[key];
  const auto one = [](Json json) { return std::vector<Json>{std::move(json)}; };
  if (key == "type") {
    SchemaTypes others = every_type();
    for (const std::string& type : declared_types(value, place)) {
      others.erase(type == "integer" ? "number" : type);
    }
    if (others.empty()) return {};
    return one({{"type", type_list(others)}});
  }
  if (key == "const") return one({{"not", {{"enum", Json::array({value})}}}});
  if (key == "enum") return one({{"not", {{"enum", value}}}});
  if (key == "required") {
    std::vector<Json> out;
    for (const Json& name : value) {
      if (name.is_string()) out.push_back(without(name.get<std::string>()));
    }
    return out;
  }
  if (key == "properties") return negated_properties(schema, place);
  if (key == "minimum") return one({{"type", "number"}, {"exclusiveMaximum", value}});
  if (key == "maximum") return one({{"type", "number"}, {"exclusiveMinimum", value}});
  if (key == "exclusiveMinimum") return one({{"type", "number"}, {"maximum", value}});
  if (key == "exclusiveMaximum") return one({{"type", "number"}, {"minimum", value}});
  if (key == "pattern") {
    Json patterns = Json::array({Json({{"pattern", value}, {"negated", true}})});
    return one({{"type", "string"}, {std::string(kMorePatterns), std::move(patterns)}});
  }
  for (const auto& [low, high, type] :
       {std::tuple("minLength", "maxLength", "string"), std::tuple("minItems", "maxItems", "array"),
        std::tuple("minProperties", "maxProperties", "object")}) {
    if (key == low) {
      const int64_t least = number_of(schema, low, place);
      if (least == 0) return {};
      return one({{"type", type}, {high, least - 1}});
    }
    if (key == high) return one({{"type", type}, {low, number_of(schema, high, place) + 1}});
  }
  if (key == "not") return alternatives(value, place + ".not");
  if (key == "$ref")
    return negated(document_.target(SchemaDocument::ref_of(schema, place), place), place);
  if (key == "allOf") {
    std::vector<Json> out;
    for (const Json& part : list_of(schema, "allOf", place)) {
      for (Json& other : negated(part, place)) out.push_back(std::move(other));
    }
    return out;
  }
  if (key == "anyOf") {
    std::vector<Json> out = {Json::object()};
    for (const Json& part : list_of(schema, "anyOf", place)) {
      out = cross(out, negated(part, place), place);
    }
    return out;
  }
  refuse_schema(fmt::format("{}.{}: not supported within not or if", place, key));
}

std::vector<Json> SchemaAlgebra::negated_properties(const Json& schema, const std::string& place) {
  std::vector<Json> out;
  if (!schema["properties"].is_object()) refuse_schema(place + ".properties: expected an object");
  for (const auto& [name, inner] : schema["properties"].items()) {
    if (inner == true) continue;
    Json other = inner.is_object() && inner.size() == 1 && inner.contains("not")
                     ? Json(inner["not"])
                     : Json({{"not", inner}});
    out.push_back({{"type", "object"},
                   {"required", Json::array({name})},
                   {"properties", {{name, std::move(other)}}}});
  }
  return out;
}

// ---- both --------------------------------------------------------------------------------------

std::vector<Json> SchemaAlgebra::cross(const std::vector<Json>& a, const std::vector<Json>& b,
                                       const std::string& place) {
  std::vector<Json> out;
  for (const Json& x : a) {
    for (const Json& y : b) {
      Json both = x;
      spend(both, place);
      spend(y, place);
      if (!conjoin(both, y, place)) continue;
      work_.spend(out.size() * 20, place);
      if (std::find(out.begin(), out.end(), both) != out.end()) continue;
      if (out.size() == kAlternativesMax) {
        refuse_schema(
            fmt::format("{}: more than {} combinations of alternatives", place, kAlternativesMax));
      }
      out.push_back(std::move(both));
    }
  }
  return out;
}

std::vector<Json> SchemaAlgebra::with_type(std::vector<Json> plain, const char* type,
                                           const std::string& place) {
  return cross(plain, {Json({{"type", type}})}, place);
}

// false: no value fulfils both.
bool SchemaAlgebra::conjoin(Json& to, const Json& other, const std::string& place) {
  conjoin_objects(to, other, place);
  conjoin_arrays(to, other);
  for (const auto& [key, value] : other.items()) {
    if (key == "properties" || key == "required" || key == "additionalProperties" ||
        key == "patternProperties" || key == "prefixItems" || key == "items") {
      continue;
    }
    if (!has(to, key.c_str())) {
      to[key] = value;
      continue;
    }
    Json& mine = to[key];
    if (mine == value) continue;
    if (key == "type") {
      const SchemaTypes both =
          common_types(declared_types(mine, place), declared_types(value, place));
      if (both.empty()) return false;
      mine = type_list(both);
    } else if (key == "enum") {
      work_.spend(mine.size() * value.size() / 2, place);
      Json both = Json::array();
      for (const Json& one : mine) {
        if (std::find(value.begin(), value.end(), one) != value.end()) both.push_back(one);
      }
      if (both.empty()) return false;
      mine = std::move(both);
    } else if (key == "not") {  // of enums only
      for (const Json& one : value["enum"]) mine["enum"].push_back(one);
    } else if (key.starts_with("min") || key == "exclusiveMinimum") {
      if (!mine.is_number() || !value.is_number())
        refuse_schema(place + "." + key + ": expected a number");
      if (value > mine) mine = value;
    } else if (key.starts_with("max") || key == "exclusiveMaximum") {
      if (!mine.is_number() || !value.is_number())
        refuse_schema(place + "." + key + ": expected a number");
      if (value < mine) mine = value;
    } else if (key == "pattern") {
      Json& more = to[std::string(kMorePatterns)];
      if (more.is_null()) more = Json::array();
      more.push_back({{"pattern", value}, {"negated", false}});
    } else if (key == kMorePatterns) {
      for (const Json& one : value) mine.push_back(one);
    } else if (key == "uniqueItems") {
      mine = mine == true || value == true;
    } else if (key == "propertyNames") {
      mine = all_of(mine, value);
    } else if (key == "multipleOf") {
      const double a = mine.get<double>(), b = value.get<double>();
      if (b != 0 && std::fmod(a, b) == 0) continue;
      if (a == 0 || std::fmod(b, a) != 0) {
        refuse_schema(place + ".multipleOf: two of them, neither a multiple of the other");
      }
      mine = value;
    } else if (key == "format") {
      if (format_pattern(mine.is_string() ? mine.get<std::string>() : "").empty()) mine = value;
    } else {
      refuse_schema(fmt::format("{}.{}: two different ones at once are not supported", place, key));
    }
  }
  return true;
}

void SchemaAlgebra::conjoin_objects(Json& to, const Json& other, const std::string& place) {
  object_keywords(to, place);  // looks whether they are formed well
  object_keywords(other, place);
  const Json *a = &to, *b = &other;
  for (const auto& [mine, yours] : {std::pair(a, b), std::pair(b, a)}) {
    const bool closes =
        has(*mine, "additionalProperties") && (*mine)["additionalProperties"] != true;
    if (closes && has(*yours, "patternProperties") &&
        member(*yours, "patternProperties") != member(*mine, "patternProperties")) {
      refuse_schema(place +
                    ".patternProperties: not supported beside additionalProperties of another "
                    "part of the schema");
    }
  }
  // What the other part says of a name that only one of them has.
  const auto said_of = [&](const Json& schema, const std::string& name) -> Json {
    if (!has(schema, "additionalProperties")) return true;
    for (const auto& [pattern, inner] : member(schema, "patternProperties").items()) {
      if (matches(pattern, name, place)) return true;  // said with the patterns of both
    }
    return schema["additionalProperties"];
  };
  const Json mine = member(to, "properties"), yours = member(other, "properties");
  if (!mine.is_null() || !yours.is_null()) {
    Json both = Json::object();
    work_.spend(60 * (mine.size() + yours.size()), place);
    for (const auto& [name, inner] : mine.items()) {
      const auto found = yours.find(name);
      both[name] =
          all_of(inner, yours.is_object() && found != yours.end() ? *found : said_of(other, name));
    }
    for (const auto& [name, inner] : yours.items()) {
      if (!mine.is_object() || !mine.contains(name)) both[name] = all_of(said_of(to, name), inner);
    }
    to["properties"] = std::move(both);
  }
  if (has(other, "required")) add_required(to, other["required"]);
  if (has(other, "patternProperties")) {
    Json& patterns = to["patternProperties"];
    if (patterns.is_null()) patterns = Json::object();
    for (const auto& [pattern, inner] : other["patternProperties"].items()) {
      patterns[pattern] = patterns.contains(pattern) ? all_of(patterns[pattern], inner) : inner;
    }
  }
  if (has(other, "additionalProperties")) {
    to["additionalProperties"] =
        has(to, "additionalProperties")
            ? all_of(to["additionalProperties"], other["additionalProperties"])
            : Json(other["additionalProperties"]);
  }
}

void SchemaAlgebra::conjoin_arrays(Json& to, const Json& other) {
  const Json mine = member(to, "prefixItems"), yours = member(other, "prefixItems");
  const Json my_rest = has(to, "items") ? to["items"] : Json(true);
  const Json your_rest = has(other, "items") ? other["items"] : Json(true);
  if (mine.is_array() || yours.is_array()) {
    Json both = Json::array();
    for (size_t i = 0; i < std::max(mine.size(), yours.size()); ++i) {
      both.push_back(
          all_of(i < mine.size() ? mine[i] : my_rest, i < yours.size() ? yours[i] : your_rest));
    }
    to["prefixItems"] = std::move(both);
  }
  if (has(to, "items") || has(other, "items")) to["items"] = all_of(my_rest, your_rest);
}

// ---- strings -----------------------------------------------------------------------------------

const CharAutomaton& SchemaAlgebra::pattern(const std::string& text, const std::string& place) {
  const auto known = patterns_.find(text);
  if (known != patterns_.end()) return known->second;
  auto made = CharAutomaton::of_pattern(text, work_);
  if (!made) refuse_schema(fmt::format("{}.{}", place, made.error().message));
  return patterns_.emplace(text, std::move(*made)).first->second;
}

CharAutomaton SchemaAlgebra::strings(const Json& plain, const std::string& place, bool asserted) {
  int64_t min = size_of(plain, "minLength", 0, kLengthMax, place);
  int64_t max = size_at_most(plain, "maxLength", kLengthMax, place);
  const bool has_pattern = has(plain, "pattern") || has(plain, std::string(kMorePatterns).c_str());
  std::optional<CharAutomaton> out;
  const auto take = [&](const CharAutomaton& more) { out = out ? out->both(more, work_) : more; };
  if (has(plain, "enum")) {
    std::vector<std::string> words;
    for (const Json& value : plain["enum"]) {
      if (value.is_string()) words.push_back(value.get<std::string>());
    }
    take(CharAutomaton::of_words(words, work_));
  }
  if (has(plain, "pattern")) {
    if (!plain["pattern"].is_string()) refuse_schema(place + ".pattern: expected a text");
    take(pattern(plain["pattern"].get<std::string>(), place));
  }
  for (const Json& more : member(plain, std::string(kMorePatterns).c_str())) {
    const CharAutomaton& one = pattern(more.at("pattern").get<std::string>(), place);
    take(more.at("negated") == true ? one.opposite(work_) : one);
  }
  std::vector<std::string> excluded;
  for (const Json& value : member(member(plain, "not"), "enum")) {
    if (value.is_string()) excluded.push_back(value.get<std::string>());
  }
  if (!excluded.empty()) take(CharAutomaton::of_words(excluded, work_).opposite(work_));
  if (asserted && !has_pattern && has(plain, "format") && plain["format"].is_string()) {
    const std::string format = format_pattern(plain["format"].get<std::string>());
    if (!format.empty()) {
      take(pattern(format, place));
      if (max < 0 || max > kFormatLengthMax) max = std::max(min, kFormatLengthMax);
      if (out->num_states() * static_cast<size_t>(max) > kFormatStatesMax)
        max = std::max<int64_t>(min, 64);
    }
  }
  if (!out || min > 0 || max >= 0) take(CharAutomaton::of_length(min, max, work_));
  return *out;
}

// ---- values ------------------------------------------------------------------------------------

bool SchemaAlgebra::fulfils(const Json& value, const Json& schema, const std::string& place) {
  if (schema.is_boolean()) return schema.get<bool>();
  for (const Json& plain : alternatives(schema, place)) {
    if (fulfils_plain(value, plain, place)) return true;
  }
  return false;
}

bool SchemaAlgebra::fulfils_plain(const Json& value, const Json& plain, const std::string& place) {
  spend(value, place);
  const std::string type = type_of(value);
  if (has(plain, "type")) {
    const SchemaTypes types = declared_types(plain["type"], place);
    if (!types.contains(type) && !(type == "integer" && types.contains("number"))) return false;
  }
  const auto is_among = [&](const Json& list) {
    work_.spend(list.size(), place);
    return std::find(list.begin(), list.end(), value) != list.end();
  };
  if (has(plain, "enum") && !is_among(plain["enum"])) return false;
  if (has(plain, "not") && is_among(plain["not"]["enum"])) return false;
  if (value.is_object()) return fulfils_object(value, plain, place);
  if (value.is_array()) return fulfils_array(value, plain, place);
  if (value.is_string()) {
    Json about = plain;
    about.erase("enum");
    about.erase("not");
    return strings(about, place, false).accepts(value.get<std::string>());
  }
  if (!value.is_number()) return true;
  const double number = value.get<double>();
  const auto bound = [&](const char* keyword) {
    if (!plain[keyword].is_number())
      refuse_schema(fmt::format("{}.{}: expected a number", place, keyword));
    return plain[keyword].get<double>();
  };
  if (has(plain, "minimum") && number < bound("minimum")) return false;
  if (has(plain, "maximum") && number > bound("maximum")) return false;
  if (has(plain, "exclusiveMinimum") && number <= bound("exclusiveMinimum")) return false;
  if (has(plain, "exclusiveMaximum") && number >= bound("exclusiveMaximum")) return false;
  if (!has(plain, "multipleOf")) return true;
  const double quotient = number / bound("multipleOf");
  return quotient == std::floor(quotient);
}

bool SchemaAlgebra::fulfils_object(const Json& value, const Json& plain, const std::string& place) {
  const auto size = static_cast<int64_t>(value.size());
  if (has(plain, "minProperties") && size < number_of(plain, "minProperties", place)) return false;
  if (has(plain, "maxProperties") && size > number_of(plain, "maxProperties", place)) return false;
  const ObjectKeywords keywords = object_keywords(plain, place);
  for (const std::string& name : keywords.required) {
    if (!value.contains(name)) return false;
  }
  for (const auto& [name, inner] : value.items()) {
    if (has(plain, "propertyNames") && !fulfils(name, plain["propertyNames"], place)) return false;
    const Json& named = member(member(plain, "properties"), name.c_str());
    bool is_known = !named.is_null();
    if (is_known && !fulfils(inner, named, place)) return false;
    for (const auto& [pattern, schema] : member(plain, "patternProperties").items()) {
      if (!matches(pattern, name, place)) continue;
      is_known = true;
      if (!fulfils(inner, schema, place)) return false;
    }
    if (!is_known && keywords.additional != nullptr &&
        !fulfils(inner, *keywords.additional, place)) {
      return false;
    }
  }
  return true;
}

bool SchemaAlgebra::fulfils_array(const Json& value, const Json& plain, const std::string& place) {
  const auto size = static_cast<int64_t>(value.size());
  if (has(plain, "minItems") && size < number_of(plain, "minItems", place)) return false;
  if (has(plain, "maxItems") && size > number_of(plain, "maxItems", place)) return false;
  const Json& first = member(plain, "prefixItems");
  for (size_t i = 0; i < value.size(); ++i) {
    const bool is_first = i < first.size();
    if (!is_first && !has(plain, "items")) break;
    if (!fulfils(value[i], is_first ? first[i] : plain["items"], place)) return false;
  }
  if (member(plain, "uniqueItems") != true) return true;
  work_.spend(value.size() * value.size(), place);
  for (size_t i = 0; i < value.size(); ++i) {
    for (size_t j = 0; j < i; ++j) {
      if (value[i] == value[j]) return false;
    }
  }
  return true;
}

}  // namespace atl::constrain
