#include "constrain/json_schema_grammar.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "constrain/json_schema_algebra.h"
#include "constrain/json_schema_document.h"
#include "constrain/json_schema_formats.h"
#include "constrain/json_schema_keywords.h"
#include "constrain/json_schema_numbers.h"
#include "text/utf8.h"

namespace atl::constrain {
namespace {

using Json = nlohmann::ordered_json;
using Node = GrammarBuilder::Node;

constexpr int kSchemaDepthMax = 100;
constexpr uint64_t kSchemaSteps = 50;  // of work, for each part
constexpr size_t kCopiedValueBytes = 100;
constexpr int64_t kItemsMax = 10'000;
constexpr int64_t kPropertiesMax = 1000;
constexpr size_t kCombinedKeyBytesMax = 4096;
constexpr size_t kDistinctItemsMax = 8;  // of uniqueItems in any order
constexpr int kExcludedNumbersMax = 20;
constexpr size_t kNameBytesMax = 60;  // in the place of a complaint

class SchemaCompiler {
 public:
  SchemaCompiler(GrammarBuilder& grammar, const JsonRules& rules, std::string_view schema_json)
      : grammar_(grammar),
        rules_(rules),
        document_(schema_json, grammar.work()),
        algebra_(document_, grammar.work()) {}

  int32_t run() {
    const int32_t top = grammar_.add_rule("$");
    refs_.emplace("#", top);
    fill(top, document_.root(), "$");
    return top;
  }

  // The schema's objects only; where it says nothing of their properties, {} alone.
  int32_t run_for_arguments() {
    const int32_t top = grammar_.add_rule("$");
    refs_.emplace("#", top);
    const auto [start, accept] = grammar_.rule(top);
    const std::vector<Json> plain =
        algebra_.with_type(algebra_.alternatives(document_.root(), "$"), "object", "$");
    for (const Json& one : plain) {
      if (says_nothing_of_properties(one)) {
        grammar_.empty(grammar_.literal(start, "{}"), accept);
      } else {
        add_plain(one, "$", start, accept);
      }
    }
    return top;
  }

 private:
  // --- schemas ---

  // A rule for the schema.
  int32_t rule_of(const Json& schema, const std::string& place) {
    if (const auto usual = usual_rule(schema, place)) return *usual;
    const std::string equal = key_of_plain(schema);
    const auto known = plain_rules_.find(equal);
    if (known != plain_rules_.end()) return known->second;
    const int32_t rule = grammar_.add_rule(place);
    if (!equal.empty()) plain_rules_.emplace(equal, rule);  // before it is filled: it may recur
    fill(rule, schema, place);
    return rule;
  }

  // What texts and numbers are constrained by, the same for equal ones; empty: it is something
  // else, or long.
  static std::string key_of_plain(const Json& schema) {
    std::string out;
    if (is_combined(schema)) {  // made again at each turn of a recursive schema
      out = schema.dump(-1, ' ', false, Json::error_handler_t::replace);
      return out.size() <= kCombinedKeyBytesMax ? out : "";
    }
    if (!schema.is_object() || !member(schema, "type").is_string()) return out;
    for (const auto& [key, value] : schema.items()) {
      if (is_remark(key)) continue;
      const bool is_long = value.is_string() && value.get_ref<const std::string&>().size() > 200;
      if (value.is_structured() || is_long) return "";
      out += key + " " + value.dump() + "\n";
    }
    return out;
  }

  // Schemas without constraints share the rules that every grammar has: their states' tokens are
  // found once for all.
  std::optional<int32_t> usual_rule(const Json& schema, const std::string& place) {
    if (schema.is_boolean() && schema.get<bool>()) return rules_.value;
    if (!schema.is_object()) return std::nullopt;
    check_keywords(schema, place);
    if (schema.contains("$ref") && !is_combined(schema)) return ref_rule(schema, place);
    size_t num_constraints = 0;
    for (const auto& [key, value] : schema.items()) num_constraints += !is_remark(key);
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
    if (++depth_ > kSchemaDepthMax) refuse_schema(place + ": nested too deep");
    grammar_.work().spend(kSchemaSteps + place.size() / 16, place);
    if (schema.is_boolean()) {
      if (schema.get<bool>()) grammar_.call(from, rules_.value, to);
    } else {
      if (!schema.is_object()) refuse_schema(place + ": expected an object or a boolean");
      check_keywords(schema, place);
      add_schema(schema, place, from, to);
    }
    --depth_;
  }

  void add_schema(const Json& schema, const std::string& place, Node from, Node to) {
    for (const char* key : {"anyOf", "oneOf"}) {
      if (stands_alone(schema, key) && add_choice(schema, key, place, from, to)) return;
    }
    if (stands_alone(schema, "allOf") && schema["allOf"].size() == 1) {
      return grammar_.call(from, rule_of(schema["allOf"][0], place + ".allOf[0]"), to);
    }
    if (!is_combined(schema)) {
      if (schema.contains("$ref")) return grammar_.call(from, ref_rule(schema, place), to);
      return add_plain(schema, place, from, to);
    }
    HeldMemory held(grammar_.work());
    const std::vector<Json> plain = algebra_.alternatives(schema, place);
    for (const Json& one : plain) held.add(num_values(one) * kCopiedValueBytes, place);
    for (const Json& one : plain) add_plain(one, place, from, to);
  }

  static bool stands_alone(const Json& schema, const char* keyword) {
    if (!schema.contains(keyword) || !schema[keyword].is_array()) return false;
    size_t num_keywords = 0;
    for (const auto& [key, value] : schema.items()) num_keywords += !is_remark(key);
    return num_keywords == 1;
  }

  // Keywords that each constrain a type.
  void add_plain(const Json& schema, const std::string& place, Node from, Node to) {
    if (schema.contains("enum") || schema.contains("const")) {
      return add_values(schema, place, from, to);
    }
    const SchemaTypes types = types_of(schema, place);
    if (is_every_type(types) && !schema.contains("not")) {
      return grammar_.call(from, rules_.value, to);
    }
    for (const std::string& type : types) add_type(type, schema, place, from, to);
  }

  bool is_excluded(const Json& schema, const Json& value) const {
    for (const Json& excluded : member(member(schema, "not"), "enum")) {
      if (excluded == value) return true;
    }
    return false;
  }

  void expect_none_excluded(const Json& schema, const char* type, const std::string& place) const {
    for (const Json& excluded : member(member(schema, "not"), "enum")) {
      if (type_of(excluded) == type) {
        refuse_schema(fmt::format("{}.not: an {} that may not come is not supported", place, type));
      }
    }
  }

  int32_t ref_rule(const Json& schema, const std::string& place) {
    const std::string ref = SchemaDocument::ref_of(schema, place);
    const auto known = refs_.find(ref);
    if (known != refs_.end()) return known->second;
    const Json& target = document_.target(ref, place);
    const int32_t rule = grammar_.add_rule(ref);
    refs_.emplace(ref, rule);
    fill(rule, target, ref.substr(0, kNameBytesMax));
    return rule;
  }

  void add_type(const std::string& type, const Json& schema, const std::string& place, Node from,
                Node to) {
    if (type == "null") {
      if (!is_excluded(schema, nullptr)) grammar_.empty(grammar_.literal(from, "null"), to);
    } else if (type == "boolean") {
      for (const bool value : {true, false}) {
        if (!is_excluded(schema, value)) add_word(value ? "true" : "false", from, to);
      }
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

  void add_word(std::string_view word, Node from, Node to) {
    grammar_.empty(grammar_.literal(from, word), to);
  }

  // --- values ---

  void add_values(const Json& schema, const std::string& place, Node from, Node to) {
    size_t num_keywords = 0;
    for (const auto& [key, value] : schema.items()) num_keywords += !is_remark(key);
    const bool has_more = num_keywords > size_t{1} + schema.contains("type");
    const SchemaTypes types =
        schema.contains("type") ? declared_types(schema["type"], place) : SchemaTypes{};
    Json rest = has_more ? schema : Json();
    if (has_more) rest.erase("enum");
    const auto add_if_it_fits = [&](const Json& value) {
      const std::string type = type_of(value);
      const bool fits =
          types.empty() || types.contains(type) || (type == "integer" && types.contains("number"));
      if (!fits || (has_more && !algebra_.fulfils_plain(value, rest, place))) return;
      grammar_.empty(add_value(value, from), to);
    };
    const auto list = schema.find("enum"), only = schema.find("const");
    if (list != schema.end() && !list->is_array()) {
      refuse_schema(place + ".enum: expected a list");
    }
    if (only == schema.end()) {
      for (const Json& value : *list) add_if_it_fits(value);
    } else if (list == schema.end() ||
               std::find(list->begin(), list->end(), *only) != list->end()) {
      add_if_it_fits(*only);
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
    return grammar_.literal(from, "\"" + string_text(text) + "\"");
  }

  // --- strings ---

  void add_string(const Json& schema, const std::string& place, Node from, Node to) {
    const bool counted = schema.contains("minLength") || schema.contains("maxLength");
    const bool has_pattern = schema.contains("pattern");
    std::string format;
    if (!has_pattern && member(schema, "format").is_string()) {
      format = format_pattern(schema["format"].get<std::string>());
    }
    bool excludes = schema.contains(std::string(kMorePatterns));
    for (const Json& value : member(member(schema, "not"), "enum")) excludes |= value.is_string();
    if (excludes || counted + has_pattern + !format.empty() > 1) {
      return add_automaton(algebra_.strings(schema, place, true), from, to);
    }
    if (has_pattern && !schema["pattern"].is_string()) {
      refuse_schema(place + ".pattern: expected a text");
    }
    if (has_pattern) format = schema["pattern"].get<std::string>();
    if (!format.empty()) return add_patterned(format, schema, place, from, to);
    if (!counted) return grammar_.call(from, rules_.string, to);
    const int64_t min = size_of(schema, "minLength", 0, kLengthMax, place);
    const int64_t max = size_at_most(schema, "maxLength", kLengthMax, place);
    add_counted(min, max, grammar_.literal(from, "\""), to);
  }

  void add_automaton(const CharAutomaton& strings, Node from, Node to) {
    grammar_.byte(strings.add_to(grammar_, grammar_.literal(from, "\"")), '"', to);
  }

  void add_patterned(const std::string& pattern, const Json& schema, const std::string& place,
                     Node from, Node to) {
    const auto end = add_pattern(grammar_, grammar_.literal(from, "\""), pattern);
    if (!end && end.error().code == ErrorCode::kUnsupported) {
      return add_automaton(algebra_.strings(schema, place, true), from, to);
    }
    if (!end) refuse_schema(fmt::format("{}.{}", place, end.error().message));
    grammar_.byte(*end, '"', to);
  }

  // Strings of min to max characters (-1: without end). The characters are a rule of their own,
  // which keeps the states few.
  void add_counted(int64_t min, int64_t max, Node from, Node to) {
    for (int64_t i = 0;; ++i) {
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
    const auto range = number_range(integer, schema, place);
    std::vector<double> excluded;
    for (const Json& value : member(member(schema, "not"), "enum")) {
      if (value.is_number()) excluded.push_back(value.get<double>());
    }
    if (!excluded.empty()) return add_numbers_between(excluded, integer, schema, place, from, to);
    if (range) return add_number(grammar_, from, *range, to);
    grammar_.call(from, integer ? rules_.integer : rules_.number, to);
  }

  // The numbers before, between and behind those that may not come.
  void add_numbers_between(std::vector<double> excluded, bool integer, const Json& schema,
                           const std::string& place, Node from, Node to) {
    std::sort(excluded.begin(), excluded.end());
    if (excluded.size() > kExcludedNumbersMax) {
      refuse_schema(fmt::format("{}.not: more than {} numbers that may not come are not supported",
                                place, kExcludedNumbersMax));
    }
    const auto bound = [](double value) {
      return value == std::floor(value) && std::fabs(value) < 1e15
                 ? Json(static_cast<int64_t>(value))
                 : Json(value);
    };
    for (size_t i = 0; i <= excluded.size(); ++i) {
      Json part = schema;
      part.erase("not");
      const auto tighten = [&](const char* keyword, double value, bool is_low) {
        const Json& known = member(part, keyword);
        const bool is_tighter = !known.is_number() || (is_low ? value > known.get<double>()
                                                              : value < known.get<double>());
        if (is_tighter) part[keyword] = bound(value);
      };
      if (i > 0) tighten("exclusiveMinimum", excluded[i - 1], true);
      if (i < excluded.size()) tighten("exclusiveMaximum", excluded[i], false);
      add_number_type(integer, part, place, from, to);
    }
  }

  // --- arrays ---

  void add_array(const Json& schema, const std::string& place, Node from, Node to) {
    expect_none_excluded(schema, "array", place);
    const bool constrained = schema.contains("items") || schema.contains("prefixItems") ||
                             schema.contains("minItems") || schema.contains("maxItems") ||
                             member(schema, "uniqueItems") == true || schema.contains("contains");
    if (!constrained) return grammar_.call(from, rules_.array, to);
    std::vector<int32_t> first;
    if (schema.contains("prefixItems")) {
      if (!schema["prefixItems"].is_array()) refuse_schema(place + ".prefixItems: expected a list");
      for (const Json& item : schema["prefixItems"]) {
        first.push_back(rule_of(item, fmt::format("{}.prefixItems[{}]", place, first.size())));
      }
    }
    static const Json kAny(true);
    const Json& items = schema.contains("items") ? schema["items"] : kAny;
    const bool closed = items.is_boolean() && !items.get<bool>();
    const int32_t rest = closed ? -1 : rule_of(items, place + ".items");
    const int64_t min = size_of(schema, "minItems", 0, kItemsMax, place);
    int64_t max = size_at_most(schema, "maxItems", kItemsMax, place);
    const auto num_first = static_cast<int64_t>(first.size());
    if (closed) max = max < 0 ? num_first : std::min(max, num_first);
    if (member(schema, "uniqueItems") == true && (max < 0 || max > 1)) {
      return add_distinct_items(items, !first.empty(), min, max, place, grammar_.literal(from, "["),
                                to);
    }
    if (schema.contains("contains")) {
      return add_containing_items(schema, rest, min, max, place, grammar_.literal(from, "["), to);
    }
    add_items(first, rest, min, max, grammar_.literal(from, "["), to);
  }

  // Items of which one at least is what "contains" says.
  void add_containing_items(const Json& schema, int32_t rest, int64_t min, int64_t max,
                            const std::string& place, Node from, Node to) {
    for (const char* keyword : {"prefixItems", "minContains", "maxContains"}) {
      if (!schema.contains(keyword)) continue;
      if (keyword != std::string_view("prefixItems") && schema[keyword] == 1) continue;
      refuse_schema(fmt::format("{}.{}: not supported beside contains", place, keyword));
    }
    if (member(schema, "uniqueItems") == true || rest < 0 || schema.contains("maxContains")) {
      refuse_schema(place + ".contains: not supported beside uniqueItems, maxContains or no items");
    }
    Json wanted = {{"allOf", Json::array({schema["contains"]})}};
    if (schema.contains("items")) wanted["allOf"].push_back(schema["items"]);
    const int32_t wanted_rule = rule_of(wanted, place + ".contains");
    const int64_t last = max >= 0 ? max : std::max<int64_t>(min, 1);
    std::vector<Node> without, with;  // [items] behind so many
    for (int64_t i = 0; i <= last; ++i) {
      without.push_back(i == 0 ? from : grammar_.node());
      with.push_back(grammar_.node());
    }
    for (size_t i = 0; i < without.size(); ++i) {
      const bool is_last = static_cast<int64_t>(i) == last;
      if (i > 0 && static_cast<int64_t>(i) >= min) grammar_.byte(with[i], ']', to);
      if (is_last && max >= 0) break;
      const size_t next = is_last ? i : i + 1;
      const Node open = i == 0 ? from : add_separator(grammar_, without[i], ',');
      grammar_.call(open, rest, without[next]);
      grammar_.call(open, wanted_rule, with[next]);
      if (i > 0) grammar_.call(add_separator(grammar_, with[i], ','), rest, with[next]);
    }
  }

  // Items of which there are few: each at most once. In any order if that takes few states, else in
  // the order of the schema.
  void add_distinct_items(const Json& items, bool has_first, int64_t min, int64_t max,
                          const std::string& place, Node from, Node to) {
    const auto values = has_first ? std::nullopt : few_values(items, place);
    if (!values) {
      refuse_schema(place +
                    ".uniqueItems: only supported where items has an enum, a const or the type "
                    "boolean or null");
    }
    const size_t n = values->size();
    if (max < 0 || max > static_cast<int64_t>(n)) max = static_cast<int64_t>(n);
    std::map<uint64_t, Node> behind;  // by the items that are there, or may not come any more
    const auto add = [&](const auto& self, Node at, uint64_t taken, int64_t count) -> void {
      if (count >= min) grammar_.byte(at, ']', to);
      if (count == max) return;
      const Node next = count == 0 ? at : add_separator(grammar_, at, ',');
      for (size_t i = 0; i < n; ++i) {
        if ((taken >> i & 1) != 0) continue;
        grammar_.work().spend(kSchemaSteps, place);
        const bool any_order = n <= kDistinctItemsMax;
        const uint64_t now = any_order ? taken | uint64_t{1} << i : (uint64_t{2} << i) - 1;
        // Of those in order the count says more than which they are.
        const uint64_t key = any_order ? now : (now << 7 | static_cast<uint64_t>(count + 1));
        const auto [known, is_new] = behind.emplace(key, 0);
        if (is_new) known->second = grammar_.node();
        grammar_.empty(add_value((*values)[i], next), known->second);
        if (is_new) self(self, known->second, now, count + 1);
      }
    };
    add(add, from, 0, 0);
  }

  // All values of the schema, if they are few.
  std::optional<std::vector<Json>> few_values(const Json& schema, const std::string& place) {
    std::vector<Json> out;
    for (const Json& plain : algebra_.alternatives(schema, place + ".items")) {
      Json values = Json::array();
      if (plain.contains("enum")) {
        values = plain["enum"];
      } else if (member(plain, "type") == "boolean") {
        values = Json::array({true, false});
      } else if (member(plain, "type") == "null") {
        values = Json::array({nullptr});
      } else {
        return std::nullopt;
      }
      for (const Json& value : values) {
        const bool is_new = std::find(out.begin(), out.end(), value) == out.end();
        if (is_new && algebra_.fulfils(value, schema, place)) out.push_back(value);
      }
    }
    if (out.size() > 50) return std::nullopt;
    return out;
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
    // Further properties: what their names are (none: any but the above), and the rule of values.
    struct Others {
      std::optional<CharAutomaton> names;
      int32_t rule = -1;
    };
    std::vector<Others> others;
    int64_t min = 0, max = -1;  // how many properties there are; -1: any number
  };

  static bool says_nothing_of_properties(const Json& plain) {
    for (const char* keyword : {"properties", "required", "additionalProperties",
                                "patternProperties", "propertyNames", "minProperties"}) {
      const Json& said = member(plain, keyword);
      if (!said.is_null() && !(said.is_structured() && said.empty())) return false;
    }
    return !plain.contains("enum");
  }

  void add_object(const Json& schema, const std::string& place, Node from, Node to) {
    expect_none_excluded(schema, "object", place);
    static constexpr const char* kConstraining[] = {
        "properties",    "required",      "additionalProperties", "patternProperties",
        "propertyNames", "minProperties", "maxProperties"};
    const bool constrained = std::any_of(std::begin(kConstraining), std::end(kConstraining),
                                         [&](const char* key) { return schema.contains(key); });
    if (!constrained) return grammar_.call(from, rules_.object, to);
    Properties properties = properties_of(schema, place);
    properties.min = size_of(schema, "minProperties", 0, kPropertiesMax, place);
    properties.max = size_at_most(schema, "maxProperties", kPropertiesMax, place);
    if (properties.max >= kPropertiesMax) properties.max = -1;
    // Further ones may have the same name, which a reader takes for one.
    const auto countable =
        static_cast<int64_t>(properties.names.size() + !properties.others.empty());
    if (properties.min > countable) {
      refuse_schema(
          fmt::format("{}.minProperties: more than {} can't be enforced here", place, countable));
    }
    if (properties.min > 0 || properties.max >= 0) {
      add_counted_members(properties, from, to);
    } else {
      add_members(properties, from, to);
    }
  }

  // The schema of a property by all that is said of its name.
  Json named_schema(const Json& schema, const std::string& name, const Json& declared,
                    const std::string& place) {
    Json all = Json::array({declared});
    for (const auto& [pattern, inner] : member(schema, "patternProperties").items()) {
      if (algebra_.matches(pattern, name, place)) all.push_back(inner);
    }
    if (all.size() == 1) return declared;
    if (all[0] == true) all.erase(all.begin());
    return {{"allOf", std::move(all)}};
  }

  bool may_be_name(const Json& schema, const std::string& name, const std::string& place) {
    const Json& names = member(schema, "propertyNames");
    return names.is_null() || algebra_.fulfils(name, names, place + ".propertyNames");
  }

  Properties properties_of(const Json& schema, const std::string& place) {
    const ObjectKeywords keywords = object_keywords(schema, place);
    Properties out;
    std::map<std::string, size_t> index;
    const auto declare = [&](const std::string& name, const Json& declared) {
      index.emplace(name, out.names.size());
      out.names.push_back(name);
      const Json inner = named_schema(schema, name, declared, place);
      const bool possible = inner != false && may_be_name(schema, name, place);
      out.rules.push_back(rule_of(possible ? inner : Json(false),
                                  place + ".properties." + name.substr(0, kNameBytesMax)));
    };
    for (const auto& [name, inner] : keywords.properties) declare(name, *inner);
    const bool open_names = add_listed_names(schema, keywords, index, declare);
    // A name that isn't among the properties has any value, unless others are excluded.
    static const Json kAny(true);
    const Json& unnamed = keywords.additional != nullptr ? *keywords.additional : kAny;
    out.required.assign(out.names.size(), false);
    for (const std::string& name : keywords.required) {
      const bool by_pattern = named_schema(schema, name, kAny, place) != kAny;
      if (!index.contains(name)) {
        if (unnamed == false && !by_pattern) {
          refuse_schema(fmt::format("{}.required: \"{}\" is not among the properties", place,
                                    name.substr(0, kNameBytesMax)));
        }
        declare(name, by_pattern ? kAny : unnamed);
        out.required.push_back(true);
      }
      out.required[index.at(name)] = true;
    }
    if (open_names) add_others(schema, keywords, place, out);
    return out;
  }

  // propertyNames of an enum are properties of these names. False: there are no others.
  template <typename Declare>
  bool add_listed_names(const Json& schema, const ObjectKeywords& keywords,
                        const std::map<std::string, size_t>& index, Declare declare) {
    const Json& names = member(schema, "propertyNames");
    if (!names.is_object() || !(names.contains("enum") || names.contains("const"))) return true;
    static const Json kAny(true);
    const Json& declared = keywords.additional != nullptr ? *keywords.additional : kAny;
    const Json list = names.contains("enum") ? names["enum"] : Json::array({names["const"]});
    for (const Json& name : list) {
      if (!name.is_string() || index.contains(name.get<std::string>()) || declared == false)
        continue;
      declare(name.get<std::string>(), declared);
    }
    return false;
  }

  void add_others(const Json& schema, const ObjectKeywords& keywords, const std::string& place,
                  Properties& out) {
    const Json& patterns = member(schema, "patternProperties");
    const Json& names = member(schema, "propertyNames");
    const bool any_name = names.is_null() || names == true ||
                          (names.is_object() && names.size() == 1 && names.contains("type"));
    // Without a word about others, a schema that names properties means these.
    const bool unsaid = keywords.properties.empty() && patterns.empty();
    const bool has_more = keywords.additional != nullptr ? *keywords.additional != false : unsaid;
    static const Json kAny(true);
    const Json& more = keywords.additional != nullptr ? *keywords.additional : kAny;
    if (patterns.empty() && any_name) {
      if (has_more) out.others.push_back({{}, rule_of(more, place + ".additionalProperties")});
      return;
    }
    CompileWork& work = grammar_.work();
    CharAutomaton open = CharAutomaton::of_words(out.names, work).opposite(work);
    if (!any_name) open = open.both(name_strings(names, place), work);
    CharAutomaton rest = open;
    for (const auto& [pattern, inner] : patterns.items()) {
      rest =
          rest.both(algebra_.pattern(pattern, place + ".patternProperties").opposite(work), work);
      if (inner == false) continue;
      CharAutomaton own = open.both(algebra_.pattern(pattern, place), work);
      for (const auto& [other, unused] : patterns.items()) {  // names of two patterns don't come
        if (other != pattern) own = own.both(algebra_.pattern(other, place).opposite(work), work);
      }
      if (own.empty()) continue;
      out.others.push_back(
          {own, rule_of(inner, place + ".patternProperties." + pattern.substr(0, kNameBytesMax))});
    }
    if (!has_more || rest.empty()) return;
    out.others.push_back({rest, rule_of(more, place + ".additionalProperties")});
  }

  CharAutomaton name_strings(const Json& names, const std::string& place) {
    const std::string here = place + ".propertyNames";
    const auto plain = algebra_.with_type(algebra_.alternatives(names, here), "string", here);
    if (plain.size() > 1) refuse_schema(here + ": alternatives are not supported");
    if (plain.empty()) return CharAutomaton::of_words({}, grammar_.work());
    return algebra_.strings(plain[0], here, false);
  }

  void add_key(const Properties& p, const Properties::Others& others, Node from, Node to) {
    if (!others.names) return add_other_key(p.names, from, to);
    add_automaton(*others.names, from, to);
  }

  // As add_members(), and the number of properties is counted.
  void add_counted_members(const Properties& p, Node from, Node to) {
    const size_t n = p.names.size();
    const auto cap = static_cast<size_t>(p.max >= 0 ? p.max : p.min);
    const auto next = [&](size_t count) { return std::min(count + 1, cap); };
    const auto may_add = [&](size_t count) { return p.max < 0 || count < cap; };
    size_t last_required = 0;
    for (size_t i = 0; i < n; ++i) {
      if (p.required[i]) last_required = i + 1;
    }
    // before[i][c]: c properties are there, all of those below i; the comma is still to come.
    std::map<std::pair<size_t, size_t>, Node> before;
    std::map<std::pair<bool, size_t>, Node> among;  // others: enough are there; how many in all
    const auto end = [&](Node at, size_t i, size_t count) {
      if (i >= last_required && count >= static_cast<size_t>(p.min)) grammar_.byte(at, '}', to);
    };
    const auto add_others = [&](const auto& self, Node at, bool enough, size_t count,
                                bool first) -> void {
      if (!may_add(count)) return;
      const Node key = first ? at : add_separator(grammar_, at, ',');
      for (const Properties::Others& others : p.others) {
        const Node named = grammar_.node();
        add_key(p, others, key, named);
        const auto [known, is_new] = among.emplace(std::pair(enough, next(count)), 0);
        if (is_new) known->second = grammar_.node();
        grammar_.call(add_separator(grammar_, named, ':'), others.rule, known->second);
        if (!is_new) continue;
        if (enough) grammar_.byte(known->second, '}', to);
        self(self, known->second, enough, next(count), false);
      }
    };
    const auto add = [&](const auto& self, Node at, size_t i, size_t count, bool first) -> void {
      end(at, i, count);
      if (i < n && may_add(count)) {
        const Node key = first ? at : add_separator(grammar_, at, ',');
        for (size_t j = i; j < n; ++j) {
          grammar_.work().spend(kSchemaSteps, p.names[j]);
          const Node name = add_separator(grammar_, add_quoted(p.names[j], key), ':');
          const auto [known, is_new] = before.emplace(std::pair(j + 1, next(count)), 0);
          if (is_new) known->second = grammar_.node();
          grammar_.call(name, p.rules[j], known->second);
          if (is_new) self(self, known->second, j + 1, next(count), false);
          if (p.required[j]) break;
        }
      }
      // The first of the others counts, whatever the names are of those that follow.
      if (i >= last_required) {
        add_others(add_others, at, next(count) >= static_cast<size_t>(p.min), count, first);
      }
    };
    add(add, grammar_.literal(from, "{"), 0, 0, true);
  }

  // The properties in their order, each at most once, then others. What all names begin with is
  // spelled before they part: a state there is one node, where it would be all names that may come.
  void add_members(const Properties& p, Node from, Node to) {
    const size_t n = p.names.size();
    std::vector<std::string> names;
    for (const std::string& name : p.names) names.push_back(string_text(name));
    const std::string_view shared = common_prefix(names);
    // behind[i]: after one below i; parted[i]: within the key of property i or a later one.
    std::vector<Node> behind, parted;
    for (size_t i = 0; i <= n; ++i) {
      behind.push_back(grammar_.node());
      parted.push_back(grammar_.node());
    }
    size_t last_required = 0;  // one past it
    for (size_t i = 0; i < n; ++i) {
      if (p.required[i]) last_required = i + 1;
    }
    const Node other = grammar_.node();  // before the key of another one
    const auto add_keys = [&](Node key, size_t first) {
      if (first < n) {
        grammar_.empty(grammar_.literal(grammar_.literal(key, "\""), shared), parted[first]);
      }
      if (first >= last_required) grammar_.empty(key, other);
    };
    const Node inside = grammar_.literal(from, "{");
    add_keys(inside, 0);
    if (last_required == 0) grammar_.byte(inside, '}', to);
    for (size_t i = 1; i <= n; ++i) {
      if (i >= last_required) grammar_.byte(behind[i], '}', to);
      if (i < n || !p.others.empty()) add_keys(add_separator(grammar_, behind[i], ','), i);
    }
    for (size_t i = 0; i < n; ++i) {
      const Node key = grammar_.literal(parted[i], names[i].substr(shared.size()));
      const Node named = add_separator(grammar_, grammar_.literal(key, "\""), ':');
      grammar_.call(named, p.rules[i], behind[i + 1]);
      if (!p.required[i] && i + 1 < n) grammar_.empty(parted[i], parted[i + 1]);
    }
    if (p.others.empty()) return;
    const Node valued = grammar_.node();
    for (const Properties::Others& others : p.others) {
      const Node named = grammar_.node();
      add_key(p, others, other, named);
      grammar_.call(add_separator(grammar_, named, ':'), others.rule, valued);
    }
    grammar_.byte(valued, '}', to);
    grammar_.empty(add_separator(grammar_, valued, ','), other);
  }

  static std::string_view common_prefix(const std::vector<std::string>& texts) {
    if (texts.empty()) return {};
    std::string_view shared = texts.front();
    for (const std::string& text : texts) {
      const auto end = std::mismatch(shared.begin(), shared.end(), text.begin(), text.end()).first;
      shared = shared.substr(0, static_cast<size_t>(end - shared.begin()));
    }
    return shared;
  }

  // Keys without escapes that are none of `names`: along the names' characters, and away from them.
  void add_other_key(const std::vector<std::string>& names, Node from, Node to) {
    const CodePoints unusual = {{0, 0x1F}, {'"', '"'}, {'\\', '\\'}};
    const CodePoints wide_ones = {{0x80, 0x10FFFF}};
    const Node away = grammar_.node(), wide = grammar_.node();
    add_character(grammar_, away, complement(unusual), away);
    grammar_.byte(away, '"', to);
    add_character(grammar_, wide, wide_ones, away);
    struct Branch {
      Node node = 0;
      std::map<uint32_t, size_t> next;
      bool is_name = false;
    };
    std::vector<Branch> tree = {{grammar_.literal(from, "\""), {}, false}};
    for (const std::string& name : names) {
      size_t at = 0;
      for (std::string_view rest = name; !rest.empty();) {
        const text::Utf8Unit unit = text::next_utf8_unit(rest);
        rest.remove_prefix(unit.num_bytes);
        const auto [child, is_new] = tree[at].next.emplace(unit.code_point, tree.size());
        at = child->second;
        if (is_new) tree.push_back({grammar_.node(), {}, false});
      }
      tree[at].is_name = true;
    }
    for (const Branch& branch : tree) {
      CodePoints taken = unusual;
      const bool is_narrow = branch.next.empty() || branch.next.rbegin()->first < 0x80;
      if (is_narrow) {  // mostly: then what lies beyond ASCII is the same for all
        taken.insert(taken.end(), wide_ones.begin(), wide_ones.end());
        grammar_.empty(branch.node, wide);
      }
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

  // anyOf, or oneOf of branches that are told apart; false: they are not.
  bool add_choice(const Json& schema, const std::string& keyword, const std::string& place,
                  Node from, Node to) {
    const Json& branches = schema[keyword];
    if (branches.empty()) {
      refuse_schema(fmt::format("{}.{}: expected a list of schemas", place, keyword));
    }
    if (keyword == "oneOf") {
      for (size_t i = 0; i < branches.size(); ++i) {
        for (size_t j = i + 1; j < branches.size(); ++j) {
          if (!document_.disjoint(branches[i], branches[j], place)) return false;
        }
      }
    }
    for (size_t i = 0; i < branches.size(); ++i) {
      const std::string inner = fmt::format("{}.{}[{}]", place, keyword, i);
      grammar_.call(from, rule_of(branches[i], inner), to);
    }
    return true;
  }

  GrammarBuilder& grammar_;
  const JsonRules rules_;
  SchemaDocument document_;
  SchemaAlgebra algebra_;
  std::map<std::string, int32_t> refs_, plain_rules_;
  int32_t character_rule_ = -1;
  int depth_ = 0;
};

}  // namespace

Result<int32_t> add_json_schema(GrammarBuilder& grammar, const JsonRules& rules,
                                std::string_view schema_json, bool arguments) {
  try {
    SchemaCompiler compiler(grammar, rules, schema_json);
    return arguments ? compiler.run_for_arguments() : compiler.run();
  } catch (const Error& error) {
    return error;
  } catch (const Json::exception& error) {
    return Error{ErrorCode::kInvalid,
                 "schema is malformed: " + std::string(error.what()).substr(0, 150)};
  }
}

}  // namespace atl::constrain
