#include "text/jinja/filters.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "text/jinja/operators.h"
#include "text/jinja/text.h"

namespace atl::text::jinja {
namespace {

using Filter = Value (*)(const Value&, const Arguments&, Budget&);
struct NamedFilter {
  std::string_view name;
  Filter filter;
};

// "a.b.0" of each item, as jinja2's make_attrgetter.
Value attribute_path(const Value& item, const Value& path, Budget& budget) {
  if (!path.is_string()) return subscript(item, path, budget);
  const std::string dot = ".";
  Value value = item;
  for (std::string_view part : split(path.string(), &dot, -1, budget)) {
    const std::optional<int64_t> index = parse_integer(part, 10);
    value = subscript(value, index ? Value::of_int(*index) : text_value(part, budget), budget);
  }
  return value;
}

// What sorting and comparing without case look at.
Value folded(const Value& value, bool case_sensitive, Budget& budget) {
  if (case_sensitive || !value.is_string()) return value;
  return budget.text(with_case(value.string(), Case::kLower, budget));
}

// Of several attributes, "a,b", a tuple.
Value sort_key(const Value& item, const Value* attribute, bool case_sensitive, Budget& budget) {
  if (attribute && attribute->is_string() && attribute->string().find(',') != std::string::npos) {
    const std::string comma = ",";
    List keys;
    for (std::string_view path : split(attribute->string(), &comma, -1, budget)) {
      keys.push_back(
          folded(attribute_path(item, text_value(path, budget), budget), case_sensitive, budget));
    }
    return budget.tuple(std::move(keys));
  }
  return folded(attribute ? attribute_path(item, *attribute, budget) : item, case_sensitive,
                budget);
}

struct Keyed {
  Value key, item;
};

std::vector<Keyed> keyed(const List& items, const Value* attribute, bool case_sensitive,
                         Budget& budget) {
  std::vector<Keyed> out;
  budget.use_bytes(2 * items.size() * sizeof(Keyed));  // sorting takes as much again
  out.reserve(items.size());
  for (const Value& item : items) {
    out.push_back({sort_key(item, attribute, case_sensitive, budget), item});
  }
  return out;
}

Value sorted(std::vector<Keyed> items, bool reverse, Budget& budget) {
  std::stable_sort(items.begin(), items.end(), [&](const Keyed& a, const Keyed& b) {
    return reverse ? less(b.key, a.key, budget) : less(a.key, b.key, budget);
  });
  List out;
  budget.use_bytes(items.size() * sizeof(Value));
  out.reserve(items.size());
  for (Keyed& item : items) out.push_back(std::move(item.item));
  return budget.list(std::move(out));
}

Value filter_sort(const Value& v, const Arguments& a, Budget& budget) {
  a.expect("sort", 3, {"reverse", "case_sensitive", "attribute"});
  return sorted(keyed(items_of(v, budget), a.given(2, "attribute"),
                      a.flag(1, "case_sensitive", false), budget),
                a.flag(0, "reverse", false), budget);
}

Value filter_unique(const Value& v, const Arguments& a, Budget& budget) {
  a.expect("unique", 2, {"case_sensitive", "attribute"});
  List seen, out;
  for (Keyed& item : keyed(items_of(v, budget), a.given(1, "attribute"),
                           a.flag(0, "case_sensitive", false), budget)) {
    const bool is_new = std::none_of(
        seen.begin(), seen.end(), [&](const Value& key) { return equal(key, item.key, budget); });
    if (!is_new) continue;
    budget.use_bytes(2 * kGrowingTimes * sizeof(Value));
    seen.push_back(item.key);
    out.push_back(std::move(item.item));
  }
  return budget.list(std::move(out));
}

Value extreme(const Value& v, const Arguments& a, bool largest, Budget& budget) {
  a.expect("min or max", 2, {"case_sensitive", "attribute"});
  const auto items = keyed(items_of(v, budget), a.given(1, "attribute"),
                           a.flag(0, "case_sensitive", false), budget);
  if (items.empty()) return Undefined{};
  const Keyed* best = &items[0];
  for (const Keyed& item : items) {
    if (largest ? less(best->key, item.key, budget) : less(item.key, best->key, budget)) {
      best = &item;
    }
  }
  return best->item;
}

Value filter_dictsort(const Value& v, const Arguments& a, Budget& budget) {
  a.expect("dictsort", 3, {"case_sensitive", "by", "reverse"});
  if (!v.is_dict()) refuse(fmt::format("dictsort: expected a dict, found {}", type_name(v)));
  const Value* by = a.find(1, "by");
  const bool by_value = by && by->is_string() && by->string() == "value";
  std::vector<Keyed> items;
  for (const auto& [key, value] : v.dict().items) {
    budget.use_bytes(2 * kGrowingTimes * sizeof(Keyed));
    items.push_back({folded(by_value ? value : key, a.flag(0, "case_sensitive", false), budget),
                     budget.tuple({key, value})});
  }
  return sorted(std::move(items), a.flag(2, "reverse", false), budget);
}

Value filter_items(const Value& v, const Arguments&, Budget& budget) {
  if (v.is_undefined()) return budget.list({});
  if (!v.is_dict()) refuse(fmt::format("items: expected a dict, found {}", type_name(v)));
  return dict_items(v, budget);
}

Value filter_length(const Value& v, const Arguments&, Budget& budget) {
  if (v.is_undefined()) return Value::of_int(0);
  if (v.is_string()) {
    budget.step(v.string().size() / 64);
    return Value::of_int(static_cast<int64_t>(num_code_points(v.string())));
  }
  if (v.is_list()) return Value::of_int(static_cast<int64_t>(v.list().size()));
  if (v.is_dict()) return Value::of_int(static_cast<int64_t>(v.dict().items.size()));
  refuse(fmt::format("length: a value of type {} has none", type_name(v)));
}

Value filter_first(const Value& v, const Arguments&, Budget& budget) {
  const List items = items_of(v, budget);
  return items.empty() ? Value() : items.front();
}

Value filter_last(const Value& v, const Arguments&, Budget& budget) {
  const List items = items_of(v, budget);
  return items.empty() ? Value() : items.back();
}

Value filter_reverse(const Value& v, const Arguments&, Budget& budget) {
  return slice(v.is_dict() ? budget.list(items_of(v, budget)) : v, {}, {}, Value::of_int(-1),
               budget);
}

Value filter_join(const Value& v, const Arguments& a, Budget& budget) {
  a.expect("join", 2, {"d", "attribute"});
  const Value* separator = a.find(0, "d");
  const Value* attribute = a.given(1, "attribute");
  TextBuilder out(budget);
  bool first = true;
  for (const Value& item : items_of(v, budget)) {
    if (!std::exchange(first, false) && separator) write_str(*separator, out);
    write_str(attribute ? attribute_path(item, *attribute, budget) : item, out);
  }
  return out.value();
}

Value filter_default(const Value& v, const Arguments& a, Budget& budget) {
  a.expect("default", 2, {"default_value", "boolean"});
  const bool missing = v.is_undefined() || (a.flag(1, "boolean", false) && !truthy(v));
  if (!missing) return v;
  const Value* otherwise = a.find(0, "default_value");
  return otherwise ? *otherwise : budget.text("");
}

Value filter_trim(const Value& v, const Arguments& a, Budget& budget) {
  a.expect("trim", 1, {"chars"});
  const Value* chars = a.given(0, "chars");
  return text_value(
      stripped(str_of(v, budget), chars ? &text_of(*chars, "trim") : nullptr, Side::kBoth), budget);
}

template <Case to>
Value filter_case(const Value& v, const Arguments&, Budget& budget) {
  return budget.text(with_case(str_of(v, budget), to, budget));
}

Value filter_title(const Value& v, const Arguments&, Budget& budget) {
  return budget.text(title_filter(str_of(v, budget), budget));
}

Value filter_replace(const Value& v, const Arguments& a, Budget& budget) {
  a.expect("replace", 3, {"old", "new", "count"});
  const Value* count = a.given(2, "count");
  return replaced(str_of(v, budget), str_of(a.at(0, "old"), budget), str_of(a.at(1, "new"), budget),
                  count ? a.integer(2, "count", -1) : -1, budget);
}

Value filter_string(const Value& v, const Arguments&, Budget& budget) {
  return v.is_string() ? v : budget.text(str_of(v, budget));
}

Value filter_list(const Value& v, const Arguments&, Budget& budget) {
  return budget.list(items_of(v, budget));
}

std::optional<int64_t> truncated(double value) {
  if (!(std::fabs(value) < 9.2e18)) return std::nullopt;
  return static_cast<int64_t>(value);
}

Value filter_int(const Value& v, const Arguments& a, Budget&) {
  a.expect("int", 2, {"default", "base"});
  refuse_undefined(v);
  const int64_t base = a.integer(1, "base", 10);
  if (base < 2 || base > 36) refuse("int: the base is from 2 to 36");
  std::optional<int64_t> out;
  if (v.is_integer()) out = v.integer();
  if (v.is<double>()) out = truncated(v.number());
  if (v.is_string()) {
    out = parse_integer(v.string(), static_cast<int>(base));
    const std::optional<double> number = parse_float(v.string());
    if (!out && number) out = truncated(*number);
  }
  const Value* otherwise = a.find(0, "default");
  return out ? Value::of_int(*out) : otherwise ? *otherwise : Value::of_int(0);
}

Value filter_float(const Value& v, const Arguments& a, Budget&) {
  a.expect("float", 1, {"default"});
  refuse_undefined(v);
  if (v.is_number()) return Value::of_float(v.number());
  const auto out = v.is_string() ? parse_float(v.string()) : std::nullopt;
  const Value* otherwise = a.find(0, "default");
  return out ? Value::of_float(*out) : otherwise ? *otherwise : Value::of_float(0);
}

Value filter_abs(const Value& v, const Arguments&, Budget&) {
  if (!v.is_number()) refuse(fmt::format("abs: expected a number, found {}", type_name(v)));
  if (v.is<double>()) return Value::of_float(std::fabs(v.number()));
  return v.integer() < 0 ? negative(v) : Value::of_int(v.integer());
}

Value filter_round(const Value& v, const Arguments& a, Budget&) {
  a.expect("round", 2, {"precision", "method"});
  if (!v.is_number()) refuse(fmt::format("round: expected a number, found {}", type_name(v)));
  const int64_t precision = std::clamp<int64_t>(a.integer(0, "precision", 0), -300, 300);
  const Value* method = a.find(1, "method");
  const std::string how = method ? text_of(*method, "round") : "common";
  if (how == "ceil" || how == "floor") {
    const double scale = std::pow(10.0, static_cast<double>(precision));
    const double scaled = v.number() * scale;
    return Value::of_float((how == "ceil" ? std::ceil(scaled) : std::floor(scaled)) / scale);
  }
  if (how != "common") refuse("round: the method is common, ceil or floor");
  if (v.is_integer() && precision >= 0) return Value::of_int(v.integer());
  if (precision < 0) {
    const double scale = std::pow(10.0, static_cast<double>(-precision));
    const double out = std::nearbyint(v.number() / scale) * scale;
    if (!v.is_integer()) return Value::of_float(out);
    const std::optional<int64_t> whole = truncated(out);
    if (!whole) refuse_integer();
    return Value::of_int(*whole);
  }
  if (!std::isfinite(v.number())) return v;
  // Rounding decimal digits of the exact value, ties to even, is what Python does.
  const std::string digits = fmt::format("{:.{}f}", v.number(), precision);
  return Value::of_float(parse_float(digits).value_or(v.number()));
}

Value filter_sum(const Value& v, const Arguments& a, Budget& budget) {
  a.expect("sum", 2, {"attribute", "start"});
  const Value* attribute = a.given(0, "attribute");
  const Value* start = a.find(1, "start");
  Value total = start ? *start : Value::of_int(0);
  for (const Value& item : items_of(v, budget)) {
    total = apply_binary("+", total, attribute ? attribute_path(item, *attribute, budget) : item,
                         budget);
  }
  return total;
}

Value filter_indent(const Value& v, const Arguments& a, Budget& budget) {
  a.expect("indent", 3, {"width", "first", "blank"});
  const Value* width = a.find(0, "width");
  std::string indent(4, ' ');
  if (width && width->is_string()) {
    indent = width->string();
  } else if (width) {
    indent.assign(static_cast<size_t>(std::clamp<int64_t>(a.integer(0, "width", 4), 0, 1000)), ' ');
  }
  const bool first = a.flag(1, "first", false), blank = a.flag(2, "blank", false);
  // jinja2 adds a line end before it cuts into lines, so that a last one isn't lost.
  const std::string text = str_of(v, budget) + "\n";
  TextBuilder out(budget);
  bool is_first = true;
  for (std::string_view line : split_lines(text, false, budget)) {
    if (!is_first) out << '\n';
    if (is_first ? first : blank || !line.empty()) out << indent;
    is_first = false;
    out << line;
  }
  return out.value();
}

Value filter_escape(const Value& v, const Arguments&, Budget& budget) {
  TextBuilder out(budget);
  for (char c : str_of(v, budget)) {
    switch (c) {
      case '&':
        out << "&amp;";
        break;
      case '<':
        out << "&lt;";
        break;
      case '>':
        out << "&gt;";
        break;
      case '"':
        out << "&#34;";
        break;
      case '\'':
        out << "&#39;";
        break;
      default:
        out << c;
    }
  }
  return out.value();
}

Value filter_same(const Value& v, const Arguments&, Budget&) { return v; }

Value filter_tojson(const Value& v, const Arguments& a, Budget& budget) {
  a.expect("tojson", 4, {"ensure_ascii", "indent", "separators", "sort_keys"});
  JsonStyle style;
  style.ensure_ascii = a.flag(0, "ensure_ascii", false);
  style.sort_keys = a.flag(3, "sort_keys", false);
  if (const Value* indent = a.given(1, "indent")) {
    style.indented = true;
    style.item_separator = ",";
    style.indent = indent->is_string() ? indent->string()
                                       : std::string(static_cast<size_t>(std::clamp<int64_t>(
                                                         a.integer(1, "indent", 0), 0, 1000)),
                                                     ' ');
  }
  if (const Value* separators = a.given(2, "separators")) {
    const List both = items_of(*separators, budget);
    if (both.size() != 2) refuse("tojson: expected two separators");
    style.item_separator = text_of(both[0], "tojson");
    style.key_separator = text_of(both[1], "tojson");
  }
  TextBuilder out(budget);
  write_json(v, style, out);
  return out.value();
}

Arguments without_first(const Arguments& a, size_t n) {
  Arguments out;
  out.named = a.named;
  for (size_t i = n; i < a.positional.size(); ++i) out.positional.push_back(a.positional[i]);
  return out;
}

Value filter_map(const Value& v, const Arguments& a, Budget& budget) {
  List out;
  const Value* attribute = a.find(SIZE_MAX, "attribute");
  const Value* otherwise = a.find(SIZE_MAX, "default");
  const std::string filter = attribute ? "" : text_of(a.at(0, "filter"), "map");
  if (!attribute && !has_filter(filter)) refuse(fmt::format("map: no filter '{}'", filter));
  const Arguments rest = without_first(a, 1);
  for (const Value& item : items_of(v, budget)) {
    budget.use_bytes(kGrowingTimes * sizeof(Value));
    budget.step();
    if (attribute) {
      Value member = attribute_path(item, *attribute, budget);
      out.push_back(member.is_undefined() && otherwise ? *otherwise : std::move(member));
    } else {
      out.push_back(apply_filter(filter, item, rest, budget));
    }
  }
  return budget.list(std::move(out));
}

// select, reject, selectattr, rejectattr.
Value selected(const Value& v, const Arguments& a, bool by_attribute, bool wanted, Budget& budget) {
  const size_t test_at = by_attribute ? 1 : 0;
  const Value* attribute = by_attribute ? &a.at(0, "attribute") : nullptr;
  const Value* test = a.find(test_at, "test");
  const std::string name = test ? text_of(*test, "select") : "";
  if (test && !has_test(name)) refuse(fmt::format("select: no test '{}'", name));
  const Arguments rest = without_first(a, test_at + 1);
  List out;
  for (const Value& item : items_of(v, budget)) {
    budget.use_bytes(kGrowingTimes * sizeof(Value));
    budget.step();
    const Value looked_at = attribute ? attribute_path(item, *attribute, budget) : item;
    const bool holds = test ? apply_test(name, looked_at, rest, budget) : truthy(looked_at);
    if (holds == wanted) out.push_back(item);
  }
  return budget.list(std::move(out));
}

Value filter_format(const Value& v, const Arguments& a, Budget& budget) {
  (void)text_of(v, "format");  // refuses what is none
  return apply_binary("%", v, budget.tuple(a.positional), budget);
}

Value filter_batch(const Value& v, const Arguments& a, Budget& budget) {
  a.expect("batch", 2, {"linecount", "fill_with"});
  const int64_t size = a.integer(0, "linecount", 0);
  if (size < 1) refuse("batch: the size is at least 1");
  const Value* fill = a.given(1, "fill_with");
  List out, group;
  for (const Value& item : items_of(v, budget)) {
    budget.use_bytes(2 * kGrowingTimes * sizeof(Value));
    if (static_cast<int64_t>(group.size()) == size) {
      out.push_back(budget.list(std::exchange(group, {})));
    }
    group.push_back(item);
  }
  while (fill && !group.empty() && static_cast<int64_t>(group.size()) < size) {
    budget.use_bytes(sizeof(Value));
    group.push_back(*fill);
  }
  if (!group.empty()) out.push_back(budget.list(std::move(group)));
  return budget.list(std::move(out));
}

Value filter_attr(const Value& v, const Arguments& a, Budget& budget) {
  return v.is_dict() ? Value() : subscript(v, a.at(0, "name"), budget);
}

constexpr std::array kFilters = {
    NamedFilter{"abs", filter_abs},
    NamedFilter{"attr", filter_attr},
    NamedFilter{"batch", filter_batch},
    NamedFilter{"capitalize", filter_case<Case::kCapitalized>},
    NamedFilter{"count", filter_length},
    NamedFilter{"d", filter_default},
    NamedFilter{"default", filter_default},
    NamedFilter{"dictsort", filter_dictsort},
    NamedFilter{"e", filter_escape},
    NamedFilter{"escape", filter_escape},
    NamedFilter{"first", filter_first},
    NamedFilter{"float", filter_float},
    NamedFilter{"format", filter_format},
    NamedFilter{"indent", filter_indent},
    NamedFilter{"int", filter_int},
    NamedFilter{"items", filter_items},
    NamedFilter{"join", filter_join},
    NamedFilter{"last", filter_last},
    NamedFilter{"length", filter_length},
    NamedFilter{"list", filter_list},
    NamedFilter{"lower", filter_case<Case::kLower>},
    NamedFilter{"map", filter_map},
    NamedFilter{"max", [](const Value& v, const Arguments& a,
                          Budget& b) { return extreme(v, a, true, b); }},
    NamedFilter{"min", [](const Value& v, const Arguments& a,
                          Budget& b) { return extreme(v, a, false, b); }},
    NamedFilter{"reject", [](const Value& v, const Arguments& a,
                             Budget& b) { return selected(v, a, false, false, b); }},
    NamedFilter{"rejectattr", [](const Value& v, const Arguments& a,
                                 Budget& b) { return selected(v, a, true, false, b); }},
    NamedFilter{"replace", filter_replace},
    NamedFilter{"reverse", filter_reverse},
    NamedFilter{"round", filter_round},
    NamedFilter{"safe", filter_same},
    NamedFilter{"select", [](const Value& v, const Arguments& a,
                             Budget& b) { return selected(v, a, false, true, b); }},
    NamedFilter{"selectattr", [](const Value& v, const Arguments& a,
                                 Budget& b) { return selected(v, a, true, true, b); }},
    NamedFilter{"sort", filter_sort},
    NamedFilter{"string", filter_string},
    NamedFilter{"sum", filter_sum},
    NamedFilter{"title", filter_title},
    NamedFilter{"tojson", filter_tojson},
    NamedFilter{"trim", filter_trim},
    NamedFilter{"unique", filter_unique},
    NamedFilter{"upper", filter_case<Case::kUpper>},
};

// --- tests ---

using Test = bool (*)(const Value&, const Arguments&, Budget&);
struct NamedTest {
  std::string_view name;
  Test test;
};

bool is_iterable(const Value& v) {
  return v.is_list() || v.is_dict() || v.is_string() || v.is_undefined() ||
         v.is<std::shared_ptr<const Loop>>();
}

bool same(const Value& a, const Value& b, Budget& budget) {
  return type_name(a) == type_name(b) && equal(a, b, budget);
}

int64_t integer_of(const Value& v, const char* who) {
  if (!v.is_integer()) refuse(fmt::format("{}: expected an int, found {}", who, type_name(v)));
  return v.integer();
}

bool divides(const Value& v, int64_t by) {
  if (by == 0) refuse("division by zero");
  return by == -1 || integer_of(v, "divisibleby") % by == 0;
}

#define ATOLL_JINJA_TEST(name, expression)                                 \
  NamedTest {                                                              \
    name, [](const Value& v, const Arguments& a, Budget& budget) -> bool { \
      (void)v, (void)a, (void)budget;                                      \
      return expression;                                                   \
    }                                                                      \
  }
constexpr std::array kTests = {
    ATOLL_JINJA_TEST("!=", !equal(v, a.at(0, "other"), budget)),
    ATOLL_JINJA_TEST("<", less(v, a.at(0, "other"), budget)),
    ATOLL_JINJA_TEST("<=", !less(a.at(0, "other"), v, budget)),
    ATOLL_JINJA_TEST("==", equal(v, a.at(0, "other"), budget)),
    ATOLL_JINJA_TEST(">", less(a.at(0, "other"), v, budget)),
    ATOLL_JINJA_TEST(">=", !less(v, a.at(0, "other"), budget)),
    ATOLL_JINJA_TEST("boolean", v.is<bool>()),
    ATOLL_JINJA_TEST("callable", v.is<Function>()),
    ATOLL_JINJA_TEST("defined", !v.is_undefined()),
    ATOLL_JINJA_TEST("divisibleby", divides(v, integer_of(a.at(0, "num"), "divisibleby"))),
    ATOLL_JINJA_TEST("eq", equal(v, a.at(0, "other"), budget)),
    ATOLL_JINJA_TEST("equalto", equal(v, a.at(0, "other"), budget)),
    ATOLL_JINJA_TEST("even", integer_of(v, "even") % 2 == 0),
    ATOLL_JINJA_TEST("false", v.is<bool>() && !*v.get<bool>()),
    ATOLL_JINJA_TEST("float", v.is<double>()),
    ATOLL_JINJA_TEST("ge", !less(v, a.at(0, "other"), budget)),
    ATOLL_JINJA_TEST("greaterthan", less(a.at(0, "other"), v, budget)),
    ATOLL_JINJA_TEST("gt", less(a.at(0, "other"), v, budget)),
    ATOLL_JINJA_TEST("in", contains(a.at(0, "seq"), v, budget)),
    ATOLL_JINJA_TEST("integer", v.is<int64_t>()),
    ATOLL_JINJA_TEST("iterable", is_iterable(v)),
    ATOLL_JINJA_TEST("le", !less(a.at(0, "other"), v, budget)),
    ATOLL_JINJA_TEST("lessthan", less(v, a.at(0, "other"), budget)),
    ATOLL_JINJA_TEST("lower",
                     with_case(str_of(v, budget), Case::kLower, budget) == str_of(v, budget)),
    ATOLL_JINJA_TEST("lt", less(v, a.at(0, "other"), budget)),
    ATOLL_JINJA_TEST("mapping", v.is_dict()),
    ATOLL_JINJA_TEST("ne", !equal(v, a.at(0, "other"), budget)),
    ATOLL_JINJA_TEST("none", v.is_none()),
    ATOLL_JINJA_TEST("number", v.is_number()),
    ATOLL_JINJA_TEST("odd", integer_of(v, "odd") % 2 != 0),
    ATOLL_JINJA_TEST("sameas", same(v, a.at(0, "other"), budget)),
    ATOLL_JINJA_TEST("sequence", v.is_list() || v.is_dict() || v.is_string() || v.is_undefined()),
    ATOLL_JINJA_TEST("string", v.is_string()),
    ATOLL_JINJA_TEST("true", v.is<bool>() && *v.get<bool>()),
    ATOLL_JINJA_TEST("undefined", v.is_undefined()),
    ATOLL_JINJA_TEST("upper",
                     with_case(str_of(v, budget), Case::kUpper, budget) == str_of(v, budget)),
};
#undef ATOLL_JINJA_TEST

template <typename Table>
auto* find_named(const Table& table, std::string_view name) {
  const auto found = std::find_if(table.begin(), table.end(),
                                  [&](const auto& entry) { return entry.name == name; });
  return found == table.end() ? nullptr : &*found;
}

}  // namespace

bool has_filter(std::string_view name) { return find_named(kFilters, name) != nullptr; }
bool has_test(std::string_view name) { return find_named(kTests, name) != nullptr; }

Value apply_filter(std::string_view name, const Value& input, const Arguments& arguments,
                   Budget& budget) {
  const auto* found = find_named(kFilters, name);
  if (found == nullptr) refuse(fmt::format("no filter '{}'", name));
  return found->filter(input, arguments, budget);
}

bool apply_test(std::string_view name, const Value& input, const Arguments& arguments,
                Budget& budget) {
  const auto* found = find_named(kTests, name);
  if (found == nullptr) refuse(fmt::format("no test '{}'", name));
  return found->test(input, arguments, budget);
}

}  // namespace atl::text::jinja
