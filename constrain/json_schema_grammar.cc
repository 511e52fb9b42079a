#include "constrain/json_schema_grammar.h"

#include <fmt/core.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

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
constexpr int64_t kLengthMax = 20'000;  // of minLength and maxLength
constexpr int64_t kItemsMax = 10'000;
constexpr size_t kNameBytesMax = 60;  // in the place of a complaint

class SchemaCompiler {
 public:
  SchemaCompiler(GrammarBuilder& grammar, const JsonRules& rules, std::string_view schema_json)
      : grammar_(grammar), rules_(rules), document_(schema_json, grammar.work()) {}

  int32_t run() {
    const int32_t top = grammar_.add_rule("$");
    refs_.emplace("#", top);
    fill(top, document_.root(), "$");
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
    if (!equal.empty()) plain_rules_.emplace(equal, rule);
    fill(rule, schema, place);
    return rule;
  }

  // What texts and numbers are constrained by, the same for equal ones; empty: it is something
  // else, or long.
  static std::string key_of_plain(const Json& schema) {
    std::string out;
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
    if (schema.contains("$ref")) return ref_rule(schema, place);
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
    if (member(schema, "nullable") == true) grammar_.empty(grammar_.literal(from, "null"), to);
    if (schema.contains("$ref")) return grammar_.call(from, ref_rule(schema, place), to);
    if (schema.contains("allOf")) return add_all_of(schema, place, from, to);
    for (const char* key : {"anyOf", "oneOf"}) {
      if (schema.contains(key)) return add_choice(schema, key, place, from, to);
    }
    if (schema.contains("enum") || schema.contains("const")) {
      return add_values(schema, place, from, to);
    }
    const SchemaTypes types = types_of(schema, place);
    if (is_every_type(types)) return grammar_.call(from, rules_.value, to);
    for (const std::string& type : types) add_type(type, schema, place, from, to);
  }

  int32_t ref_rule(const Json& schema, const std::string& place) {
    expect_alone(schema, "$ref", place);
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
    const SchemaTypes types =
        schema.contains("type") ? declared_types(schema["type"], place) : SchemaTypes{};
    const auto add_if_it_fits = [&](const Json& value) {
      const std::string type = type_of(value);
      const bool fits =
          types.empty() || types.contains(type) || (type == "integer" && types.contains("number"));
      if (fits) grammar_.empty(add_value(value, from), to);
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
    if (schema.contains("pattern") || schema.contains("format")) {
      if (counted)
        refuse_schema(place + ".pattern or .format: not supported beside minLength or maxLength");
      return add_patterned(schema, place, from, to);
    }
    if (!counted) return grammar_.call(from, rules_.string, to);
    const int64_t min = size_of(schema, "minLength", 0, kLengthMax, place);
    const int64_t max = size_of(schema, "maxLength", -1, kLengthMax, place);
    add_counted(min, max, grammar_.literal(from, "\""), to);
  }

  void add_patterned(const Json& schema, const std::string& place, Node from, Node to) {
    if (schema.contains("pattern") && schema.contains("format")) {
      refuse_schema(place + ".pattern: not supported beside format");
    }
    const char* keyword = schema.contains("pattern") ? "pattern" : "format";
    if (!schema[keyword].is_string())
      refuse_schema(fmt::format("{}.{}: expected a text", place, keyword));
    std::string pattern = schema[keyword].get<std::string>();
    if (!schema.contains("pattern")) {
      const std::string name = pattern;
      pattern = format_pattern(name);
      if (pattern.empty()) {
        refuse_schema(fmt::format("{}.format: \"{}\" is not supported", place,
                                  name.substr(0, kNameBytesMax)));
      }
    }
    const auto end = add_pattern(grammar_, grammar_.literal(from, "\""), pattern);
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
    if (const auto range = number_range(integer, schema, place)) {
      return add_number(grammar_, from, *range, to);
    }
    grammar_.call(from, integer ? rules_.integer : rules_.number, to);
  }

  // --- arrays ---

  void add_array(const Json& schema, const std::string& place, Node from, Node to) {
    const bool constrained = schema.contains("items") || schema.contains("prefixItems") ||
                             schema.contains("minItems") || schema.contains("maxItems");
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
    add_members(properties_of(object_keywords(schema, place), place), from, to);
  }

  Properties properties_of(const ObjectKeywords& keywords, const std::string& place) {
    Properties out;
    std::map<std::string_view, size_t> index;
    for (const auto& [name, member] : keywords.properties) {
      index.emplace(name, out.names.size());
      out.names.push_back(name);
      out.rules.push_back(rule_of(*member, place + ".properties." + name.substr(0, kNameBytesMax)));
    }
    // Without a word about others, a schema that names properties means these.
    const Json unsaid(keywords.properties.empty());
    const Json& others = keywords.additional != nullptr ? *keywords.additional : unsaid;
    if (!others.is_boolean() || others.get<bool>()) {
      out.others = rule_of(others, place + ".additionalProperties");
    }
    out.required.assign(out.names.size(), false);
    // A name that isn't among the properties has any value, unless others are excluded.
    const int32_t unnamed = keywords.additional != nullptr ? out.others : rules_.value;
    for (const std::string& name : keywords.required) {
      const auto [at, is_unnamed] = index.emplace(name, out.names.size());
      if (is_unnamed && unnamed < 0) {
        refuse_schema(fmt::format("{}.required: \"{}\" is not among the properties", place,
                                  name.substr(0, kNameBytesMax)));
      }
      if (is_unnamed) {
        out.names.push_back(name);
        out.rules.push_back(unnamed);
        out.required.push_back(true);
      }
      out.required[at->second] = true;
    }
    return out;
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
      if (i < n || p.others >= 0) add_keys(add_separator(grammar_, behind[i], ','), i);
    }
    for (size_t i = 0; i < n; ++i) {
      const Node key = grammar_.literal(parted[i], names[i].substr(shared.size()));
      const Node named = add_separator(grammar_, grammar_.literal(key, "\""), ':');
      grammar_.call(named, p.rules[i], behind[i + 1]);
      if (!p.required[i] && i + 1 < n) grammar_.empty(parted[i], parted[i + 1]);
    }
    if (p.others < 0) return;
    const Node named = grammar_.node(), valued = grammar_.node();
    add_other_key(p.names, other, named);
    grammar_.call(add_separator(grammar_, named, ':'), p.others, valued);
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

  void add_choice(const Json& schema, const std::string& keyword, const std::string& place,
                  Node from, Node to) {
    expect_alone(schema, keyword, place, {"type"});
    if (schema.contains("type")) declared_types(schema["type"], place);
    const Json& branches = schema[keyword];
    if (!branches.is_array() || branches.empty()) {
      refuse_schema(fmt::format("{}.{}: expected a list of schemas", place, keyword));
    }
    if (keyword == "oneOf") document_.expect_disjoint(branches, place);
    for (size_t i = 0; i < branches.size(); ++i) {
      const std::string inner = fmt::format("{}.{}[{}]", place, keyword, i);
      grammar_.call(from, branch_rule(branches[i], member(schema, "type"), inner), to);
    }
  }

  // A type beside anyOf holds for all branches.
  int32_t branch_rule(const Json& branch, const Json& type, const std::string& place) {
    if (type.is_null() || !branch.is_object() || branch.contains("$ref")) {
      return rule_of(branch, place);
    }
    if (branch.contains("type")) {
      if (branch["type"] == type) return rule_of(branch, place);
      refuse_schema(place + ".type: not supported beside another type of all branches");
    }
    const size_t values = num_values(branch);
    HeldMemory held(grammar_.work());
    grammar_.work().spend(kSchemaSteps + values, place);
    held.add(values * kCopiedValueBytes, place);
    Json copy = branch;
    copy["type"] = type;
    return rule_of(copy, place);
  }

  static size_t num_values(const Json& json) {
    size_t sum = 1;
    if (json.is_structured()) {
      for (const Json& inner : json) sum += num_values(inner);
    }
    return sum;
  }

  // Several objects at once; one schema alone may be anything.
  void add_all_of(const Json& schema, const std::string& place, Node from, Node to) {
    const Json& parts = schema["allOf"];
    bool has_more = false;
    for (const auto& [key, value] : schema.items()) {
      has_more |= key != "allOf" && key != "nullable" && !is_remark(key);
    }
    if (!has_more && parts.is_array() && parts.size() == 1) {
      return grammar_.call(from, rule_of(parts[0], place + ".allOf[0]"), to);
    }
    add_members(properties_of(document_.merged(schema, place), place), from, to);
  }

  GrammarBuilder& grammar_;
  const JsonRules rules_;
  SchemaDocument document_;
  std::map<std::string, int32_t> refs_, plain_rules_;
  int32_t character_rule_ = -1;
  int depth_ = 0;
};

}  // namespace

Result<int32_t> add_json_schema(GrammarBuilder& grammar, const JsonRules& rules,
                                std::string_view schema_json) {
  try {
    return SchemaCompiler(grammar, rules, schema_json).run();
  } catch (const Error& error) {
    return error;
  } catch (const Json::exception& error) {
    return Error{ErrorCode::kInvalid,
                 "schema is malformed: " + std::string(error.what()).substr(0, 150)};
  }
}

}  // namespace atl::constrain
