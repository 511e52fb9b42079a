#include "model/jinja_operations.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <initializer_list>
#include <limits>

#include "model/jinja_text.h"
#include "model/utf8.h"

namespace atl::model::jinja {
namespace {

constexpr int64_t kIntegerMin = std::numeric_limits<int64_t>::min();

const std::string& text_of(const Value& value, std::string_view who) {
  if (!value.is_string()) {
    refuse(fmt::format("{}: expected a str, found {}", who, type_name(value)));
  }
  return value.string();
}

// str(value) of what a filter gets.
std::string str_of(const Value& value, Budget& budget) {
  TextBuilder out(budget);
  write_str(value, out);
  return out.text();
}

Value text_value(std::string_view text, Budget& budget) { return budget.text(std::string(text)); }

Value list_of(const std::vector<std::string_view>& parts, Budget& budget) {
  List items;
  for (std::string_view part : parts) items.push_back(text_value(part, budget));
  return budget.list(std::move(items));
}

[[noreturn]] void refuse_integer() { refuse("an integer beyond 64 bits"); }

// --- operators ---

Value integer_operation(std::string_view op, int64_t a, int64_t b) {
  int64_t out = 0;
  if (op == "+" && !__builtin_add_overflow(a, b, &out)) return Value::of_int(out);
  if (op == "-" && !__builtin_sub_overflow(a, b, &out)) return Value::of_int(out);
  if (op == "*" && !__builtin_mul_overflow(a, b, &out)) return Value::of_int(out);
  if (op == "//" || op == "%") {
    if (b == 0) refuse("division by zero");
    if (b == -1) return op == "%" ? Value::of_int(0) : negative(Value::of_int(a));
    const int64_t remainder = a % b;
    const bool other_sign = remainder != 0 && (remainder < 0) != (b < 0);
    if (op == "%") return Value::of_int(other_sign ? remainder + b : remainder);
    return Value::of_int(a / b - other_sign);
  }
  refuse_integer();
}

Value power(const Value& a, const Value& b) {
  if (!a.is_integer() || !b.is_integer() || b.integer() < 0) {
    const double out = std::pow(a.number(), b.number());
    if (a.number() == 0 && b.number() < 0) refuse("0 to a negative power");
    if (std::isinf(out) && !std::isinf(a.number()) && !std::isinf(b.number())) {
      refuse("a power too large for a float");
    }
    if (std::isnan(out)) refuse("this power is no real number");
    return Value::of_float(out);
  }
  int64_t base = a.integer(), out = 1;
  for (uint64_t n = static_cast<uint64_t>(b.integer()); n > 0; n >>= 1) {
    if ((n & 1) != 0 && __builtin_mul_overflow(out, base, &out)) refuse_integer();
    if (n > 1 && __builtin_mul_overflow(base, base, &base)) {
      // The square is used by a later bit of n, if only by its last.
      refuse_integer();
    }
  }
  return Value::of_int(out);
}

Value float_operation(std::string_view op, double a, double b) {
  if (op == "+") return Value::of_float(a + b);
  if (op == "-") return Value::of_float(a - b);
  if (op == "*") return Value::of_float(a * b);
  if (b == 0) refuse("division by zero");
  if (op == "/") return Value::of_float(a / b);
  double remainder = std::fmod(a, b);
  if (remainder != 0 && (remainder < 0) != (b < 0)) remainder += b;
  if (op == "%") return Value::of_float(remainder == 0 ? std::copysign(0.0, b) : remainder);
  return Value::of_float(std::floor((a - remainder) / b + 0.5));
}

Value repeated(const Value& value, int64_t times, Budget& budget) {
  if (value.is_string()) {
    TextBuilder out(budget);
    for (int64_t i = 0; i < times && !value.string().empty(); ++i) {
      budget.step();
      out << value.string();
    }
    return out.value();
  }
  List items;
  for (int64_t i = 0; i < times && !value.list().empty(); ++i) {
    budget.use_bytes(value.list().size() * sizeof(Value));
    budget.step();
    items.insert(items.end(), value.list().begin(), value.list().end());
  }
  return value.get<ListRef>()->is_tuple ? budget.tuple(std::move(items))
                                        : budget.list(std::move(items));
}

// "%s of %d" % values.
Value formatted(const std::string& format, const Value& values, Budget& budget) {
  const bool many = values.is_list() && values.get<ListRef>()->is_tuple;
  const List items = many ? values.list() : List{values};
  TextBuilder out(budget);
  size_t used = 0;
  for (size_t i = 0; i < format.size(); ++i) {
    if (format[i] != '%') {
      out << format[i];
      continue;
    }
    const char kind = ++i < format.size() ? format[i] : '\0';
    if (kind == '%') {
      out << '%';
      continue;
    }
    if (kind != 's' && kind != 'd' && kind != 'r') {
      refuse(fmt::format("format: only %s, %r, %d and %% are built"));
    }
    if (used == items.size()) refuse("format: not enough values");
    const Value& value = items[used++];
    if (kind == 'd' && !value.is_number()) refuse("format: %d of what is no number");
    if (kind == 'd') {
      out << fmt::format(
          "{}", value.is_integer()
                    ? value.integer()
                    : static_cast<int64_t>(std::trunc(std::clamp(value.number(), -9e18, 9e18))));
    } else if (kind == 's') {
      write_str(value, out);
    } else {
      write_repr(value, out);
    }
  }
  if (used != items.size()) refuse("format: not all values are used");
  return out.value();
}

void refuse_undefined(const Value& value) {
  if (!value.is_undefined()) return;
  const auto& what = value.get<Undefined>()->what;
  refuse(fmt::format("'{}' is undefined", what ? *what : ""));
}

// --- subscripts ---

const Value* list_item(const List& items, const Value& key) {
  if (!key.is_integer()) return nullptr;
  int64_t at = key.integer();
  if (at < 0) at += static_cast<int64_t>(items.size());
  return at >= 0 && at < static_cast<int64_t>(items.size()) ? &items[at] : nullptr;
}

Value string_item(const std::string& text, const Value& key, Budget& budget) {
  if (!key.is_integer()) return Undefined{};
  budget.step(text.size() / 64);
  int64_t at = key.integer();
  if (at < 0) at += static_cast<int64_t>(num_code_points(text));
  if (at < 0) return Undefined{};
  const size_t begin = byte_offset(text, static_cast<size_t>(at));
  if (begin >= text.size()) return Undefined{};
  const std::string_view rest = std::string_view(text).substr(begin);
  return text_value(rest.substr(0, next_utf8_unit(rest).num_bytes), budget);
}

std::shared_ptr<const std::string> key_name(const Value& key, Budget& budget) {
  TextBuilder out(budget);
  write_str(key, out);
  return std::make_shared<const std::string>(out.text().substr(0, 60));
}

// Python's slice.indices().
struct SliceRange {
  int64_t begin = 0, end = 0, step = 1;
};

int64_t bound(const Value& value, int64_t otherwise, int64_t low, int64_t high, int64_t size) {
  if (value.is_undefined() || value.is_none()) return otherwise;
  if (!value.is_integer()) refuse("a slice's bounds are integers");
  int64_t at = value.integer();
  if (at < 0) at = at < -size ? -1 - size : at + size;
  return std::clamp(at, low, high);
}

SliceRange slice_range(const Value& begin, const Value& end, const Value& step, int64_t size) {
  SliceRange out;
  if (!step.is_undefined() && !step.is_none()) {
    if (!step.is_integer()) refuse("a slice's step is an integer");
    out.step = std::clamp<int64_t>(step.integer(), -(size + 1), size + 1);
  }
  if (out.step == 0) refuse("a slice's step is 0");
  if (out.step > 0) {
    out.begin = bound(begin, 0, 0, size, size);
    out.end = bound(end, size, 0, size, size);
  } else {
    out.begin = bound(begin, size - 1, -1, size - 1, size);
    out.end = bound(end, -1, -1, size - 1, size);
  }
  return out;
}

// --- filters ---

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
  return budget.text(with_case(value.string(), Case::kLower));
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
  budget.use_bytes(items.size() * sizeof(Keyed));
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
  for (Keyed& item : items) out.push_back(std::move(item.item));
  return budget.list(std::move(out));
}

const Value* given(const Value* value) { return value && !value->is_none() ? value : nullptr; }

Value filter_sort(const Value& v, const Arguments& a, Budget& budget) {
  a.expect("sort", 3, {"reverse", "case_sensitive", "attribute"});
  return sorted(keyed(items_of(v, budget), given(a.find(2, "attribute")),
                      a.flag(1, "case_sensitive", false), budget),
                a.flag(0, "reverse", false), budget);
}

Value filter_unique(const Value& v, const Arguments& a, Budget& budget) {
  a.expect("unique", 2, {"case_sensitive", "attribute"});
  List seen, out;
  for (Keyed& item : keyed(items_of(v, budget), given(a.find(1, "attribute")),
                           a.flag(0, "case_sensitive", false), budget)) {
    const bool is_new = std::none_of(
        seen.begin(), seen.end(), [&](const Value& key) { return equal(key, item.key, budget); });
    if (!is_new) continue;
    seen.push_back(item.key);
    out.push_back(std::move(item.item));
  }
  return budget.list(std::move(out));
}

Value extreme(const Value& v, const Arguments& a, bool largest, Budget& budget) {
  a.expect("min or max", 2, {"case_sensitive", "attribute"});
  const auto items = keyed(items_of(v, budget), given(a.find(1, "attribute")),
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
    items.push_back({folded(by_value ? value : key, a.flag(0, "case_sensitive", false), budget),
                     budget.tuple({key, value})});
  }
  return sorted(std::move(items), a.flag(2, "reverse", false), budget);
}

Value dict_items(const Value& v, Budget& budget) {
  List out;
  for (const auto& [key, value] : v.dict().items) out.push_back(budget.tuple({key, value}));
  return budget.list(std::move(out));
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
  const Value* attribute = given(a.find(1, "attribute"));
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
  const Value* chars = given(a.find(0, "chars"));
  return text_value(
      stripped(str_of(v, budget), chars ? &text_of(*chars, "trim") : nullptr, Side::kBoth), budget);
}

template <Case to>
Value filter_case(const Value& v, const Arguments&, Budget& budget) {
  return budget.text(with_case(str_of(v, budget), to));
}

Value filter_title(const Value& v, const Arguments&, Budget& budget) {
  return budget.text(title_filter(str_of(v, budget)));
}

Value filter_replace(const Value& v, const Arguments& a, Budget& budget) {
  a.expect("replace", 3, {"old", "new", "count"});
  const Value* count = given(a.find(2, "count"));
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
  const Value* attribute = given(a.find(0, "attribute"));
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
  if (const Value* indent = given(a.find(1, "indent"))) {
    style.indented = true;
    style.item_separator = ",";
    style.indent = indent->is_string() ? indent->string()
                                       : std::string(static_cast<size_t>(std::clamp<int64_t>(
                                                         a.integer(1, "indent", 0), 0, 1000)),
                                                     ' ');
  }
  if (const Value* separators = given(a.find(2, "separators"))) {
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
    budget.step();
    const Value looked_at = attribute ? attribute_path(item, *attribute, budget) : item;
    const bool holds = test ? apply_test(name, looked_at, rest, budget) : truthy(looked_at);
    if (holds == wanted) out.push_back(item);
  }
  return budget.list(std::move(out));
}

Value filter_format(const Value& v, const Arguments& a, Budget& budget) {
  return formatted(text_of(v, "format"), budget.tuple(a.positional), budget);
}

Value filter_batch(const Value& v, const Arguments& a, Budget& budget) {
  a.expect("batch", 2, {"linecount", "fill_with"});
  const int64_t size = a.integer(0, "linecount", 0);
  if (size < 1) refuse("batch: the size is at least 1");
  const Value* fill = given(a.find(1, "fill_with"));
  List out, group;
  for (const Value& item : items_of(v, budget)) {
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
    ATOLL_JINJA_TEST("lower", with_case(str_of(v, budget), Case::kLower) == str_of(v, budget)),
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
    ATOLL_JINJA_TEST("upper", with_case(str_of(v, budget), Case::kUpper) == str_of(v, budget)),
};
#undef ATOLL_JINJA_TEST

template <typename Table>
auto* find_named(const Table& table, std::string_view name) {
  const auto found = std::find_if(table.begin(), table.end(),
                                  [&](const auto& entry) { return entry.name == name; });
  return found == table.end() ? nullptr : &*found;
}

// --- methods ---

bool has_end(std::string_view text, const Value& ends, bool at_start) {
  if (ends.is_list()) {
    return std::any_of(ends.list().begin(), ends.list().end(),
                       [&](const Value& end) { return has_end(text, end, at_start); });
  }
  const std::string& end = text_of(ends, at_start ? "startswith" : "endswith");
  return at_start ? text.starts_with(end) : text.ends_with(end);
}

const std::string* given_text(const Value* value, std::string_view who) {
  return given(value) ? &text_of(*value, who) : nullptr;
}

// Places count code points.
Value find_text(const std::string& text, std::string_view name, const Arguments& a) {
  const std::string& part = text_of(a.at(0, "sub"), name);
  if (a.positional.size() > 1) refuse("find: a range to search in is not built");
  const size_t at = name == "find" || name == "index" ? text.find(part) : text.rfind(part);
  if (at == text.npos && (name == "index" || name == "rindex")) refuse("substring not found");
  if (at == text.npos) return Value::of_int(-1);
  return Value::of_int(static_cast<int64_t>(num_code_points(std::string_view(text).substr(0, at))));
}

int64_t count_text(std::string_view text, std::string_view part) {
  if (part.empty()) return static_cast<int64_t>(num_code_points(text)) + 1;
  int64_t count = 0;
  for (size_t at = text.find(part); at != text.npos; at = text.find(part, at + part.size()))
    ++count;
  return count;
}

template <typename Predicate>
Value all_characters(std::string_view text, Predicate predicate) {
  bool all = !text.empty();
  while (all && !text.empty()) {
    const Utf8Unit unit = next_utf8_unit(text);
    all = predicate(unit.code_point);
    text.remove_prefix(unit.num_bytes);
  }
  return Value::of_bool(all);
}

// "{} of {name}".format(...), without conversions and format specifications.
Value braces_formatted(std::string_view text, const Arguments& a, Budget& budget) {
  TextBuilder out(budget);
  size_t next = 0;
  while (!text.empty()) {
    const size_t at = std::min(text.find_first_of("{}"), text.size());
    out << text.substr(0, at);
    text.remove_prefix(at);
    if (text.empty()) break;
    if (text.starts_with("{{") || text.starts_with("}}")) {
      out << text[0];
      text.remove_prefix(2);
      continue;
    }
    const size_t end = text.find('}');
    if (text[0] == '}' || end == text.npos) refuse("format: a brace without its partner");
    const std::string_view field = text.substr(1, end - 1);
    text.remove_prefix(end + 1);
    const auto index = field.empty() ? std::optional<int64_t>(next++) : parse_integer(field, 10);
    const Value* value =
        index && *index >= 0 ? a.find(static_cast<size_t>(*index), "") : a.find(SIZE_MAX, field);
    if (value == nullptr) refuse(fmt::format("format: no value for '{}'", field));
    write_str(*value, out);
  }
  return out.value();
}

Value join_texts(const std::string& separator, const Value& items, Budget& budget) {
  TextBuilder out(budget);
  bool first = true;
  for (const Value& item : items_of(items, budget)) {
    if (!std::exchange(first, false)) out << separator;
    out << text_of(item, "join");
  }
  return out.value();
}

std::optional<Value> strip_method(const std::string& text, std::string_view name,
                                  const Arguments& a, Budget& budget) {
  const auto side = name == "strip"    ? std::optional(Side::kBoth)
                    : name == "lstrip" ? std::optional(Side::kLeft)
                    : name == "rstrip" ? std::optional(Side::kRight)
                                       : std::nullopt;
  if (!side) return std::nullopt;
  a.expect(name, 1, {});
  budget.step(text.size() / 64);
  return text_value(stripped(text, given_text(a.find(0, "chars"), name), *side), budget);
}

std::optional<Value> split_method(const std::string& text, std::string_view name,
                                  const Arguments& a, Budget& budget) {
  if (name == "splitlines") {
    a.expect(name, 1, {"keepends"});
    return list_of(split_lines(text, a.flag(0, "keepends", false), budget), budget);
  }
  if (name != "split" && name != "rsplit") return std::nullopt;
  a.expect(name, 2, {"sep", "maxsplit"});
  budget.step(text.size() / 64);
  const std::string* separator = given_text(a.find(0, "sep"), name);
  const int64_t max = a.integer(1, "maxsplit", -1);
  return list_of(name == "split" ? split(text, separator, max, budget)
                                 : split_from_end(text, separator, max, budget),
                 budget);
}

std::optional<Value> case_method(const std::string& text, std::string_view name, Budget& budget) {
  budget.step(text.size() / 16);
  if (name == "upper") return budget.text(with_case(text, Case::kUpper));
  if (name == "lower") return budget.text(with_case(text, Case::kLower));
  if (name == "title") return budget.text(with_case(text, Case::kTitle));
  if (name == "capitalize") return budget.text(with_case(text, Case::kCapitalized));
  if (name == "isdigit") {
    return all_characters(text, [](uint32_t c) { return c >= '0' && c <= '9'; });
  }
  if (name == "isspace") return all_characters(text, is_python_space);
  return std::nullopt;
}

std::optional<Value> string_method(const std::string& text, std::string_view name,
                                   const Arguments& a, Budget& budget) {
  if (auto out = strip_method(text, name, a, budget)) return out;
  if (auto out = split_method(text, name, a, budget)) return out;
  if (auto out = case_method(text, name, budget)) return out;
  if (name == "startswith" || name == "endswith") {
    a.expect(name, 1, {});
    return Value::of_bool(has_end(text, a.at(0, "prefix"), name == "startswith"));
  }
  if (name == "replace") {
    a.expect(name, 3, {"count"});
    return replaced(text, text_of(a.at(0, "old"), name), text_of(a.at(1, "new"), name),
                    a.integer(2, "count", -1), budget);
  }
  if (name == "join") return join_texts(text, a.at(0, "iterable"), budget);
  if (name == "format") return braces_formatted(text, a, budget);
  if (name == "find" || name == "rfind" || name == "index" || name == "rindex") {
    return find_text(text, name, a);
  }
  if (name == "count") return Value::of_int(count_text(text, text_of(a.at(0, "sub"), name)));
  if (name == "removeprefix" || name == "removesuffix") {
    const std::string& part = text_of(a.at(0, "part"), name);
    std::string_view rest = text;
    if (name == "removeprefix" && rest.starts_with(part)) rest.remove_prefix(part.size());
    if (name == "removesuffix" && rest.ends_with(part)) rest.remove_suffix(part.size());
    return text_value(rest, budget);
  }
  return std::nullopt;
}

std::optional<Value> dict_method(const Value& object, std::string_view name, const Arguments& a,
                                 Budget& budget) {
  if (name == "items") return dict_items(object, budget);
  if (name == "keys") return budget.list(items_of(object, budget));
  if (name == "copy") return object;
  if (name == "values") {
    List out;
    for (const auto& [key, value] : object.dict().items) out.push_back(value);
    return budget.list(std::move(out));
  }
  if (name == "get") {
    a.expect(name, 2, {});
    Value found = subscript(object, a.at(0, "key"), budget);
    if (!found.is_undefined()) return found;
    const Value* otherwise = a.find(1, "default");
    return otherwise ? *otherwise : Value(None{});
  }
  return std::nullopt;
}

std::optional<Value> list_method(const Value& object, std::string_view name, const Arguments& a,
                                 Budget& budget) {
  const List& items = object.list();
  const auto is_it = [&](const Value& item) { return equal(item, a.at(0, "value"), budget); };
  if (name == "copy") return object;
  if (name == "count") return Value::of_int(std::count_if(items.begin(), items.end(), is_it));
  if (name == "index") {
    const auto found = std::find_if(items.begin(), items.end(), is_it);
    if (found == items.end()) refuse("index: the value is not in the list");
    return Value::of_int(found - items.begin());
  }
  return std::nullopt;
}

bool changes(std::string_view method) {
  static constexpr std::array<std::string_view, 11> kChanging = {
      "append", "extend",  "insert", "pop",        "remove", "clear",
      "sort",   "reverse", "update", "setdefault", "popitem"};
  return std::find(kChanging.begin(), kChanging.end(), method) != kChanging.end();
}

}  // namespace

const Value* Arguments::find(size_t index, std::string_view name) const {
  if (index < positional.size()) return &positional[index];
  for (const auto& [key, value] : named) {
    if (key == name) return &value;
  }
  return nullptr;
}

const Value& Arguments::at(size_t index, std::string_view name) const {
  const Value* value = find(index, name);
  if (value == nullptr) refuse(fmt::format("the argument '{}' is missing", name));
  return *value;
}

int64_t Arguments::integer(size_t index, std::string_view name, int64_t otherwise) const {
  const Value* value = find(index, name);
  if (value == nullptr) return otherwise;
  if (!value->is_integer())
    refuse(fmt::format("the argument '{}' is an int, found {}", name, type_name(*value)));
  return value->integer();
}

bool Arguments::flag(size_t index, std::string_view name, bool otherwise) const {
  const Value* value = find(index, name);
  return value ? truthy(*value) : otherwise;
}

void Arguments::expect(std::string_view of, size_t max,
                       std::initializer_list<std::string_view> names) const {
  if (positional.size() > max) {
    refuse(fmt::format("{}: {} arguments, expected at most {}", of, positional.size(), max));
  }
  for (const auto& [name, value] : named) {
    if (std::find(names.begin(), names.end(), name) == names.end()) {
      refuse(fmt::format("{}: no argument '{}'", of, name.substr(0, 40)));
    }
  }
}

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

Value call_method(const Value& object, std::string_view name, const Arguments& arguments,
                  Budget& budget) {
  refuse_undefined(object);
  std::optional<Value> out;
  if (object.is_string()) out = string_method(object.string(), name, arguments, budget);
  if (object.is_dict()) out = dict_method(object, name, arguments, budget);
  if (object.is_list()) out = list_method(object, name, arguments, budget);
  if (out) return *out;
  if ((object.is_list() || object.is_dict()) && changes(name)) {
    refuse(fmt::format("'{}': a {} can't be changed in a chat template", name, type_name(object)));
  }
  refuse(fmt::format("a value of type {} has no method '{}'", type_name(object), name));
}

Value apply_binary(std::string_view op, const Value& a, const Value& b, Budget& budget) {
  if (op == "%" && a.is_string()) return formatted(a.string(), b, budget);
  refuse_undefined(a);
  refuse_undefined(b);
  if (a.is_number() && b.is_number()) {
    if (op == "**") return power(a, b);
    if (op == "/" || !a.is_integer() || !b.is_integer()) {
      return float_operation(op, a.number(), b.number());
    }
    return integer_operation(op, a.integer(), b.integer());
  }
  if (op == "+" && a.is_string() && b.is_string()) {
    TextBuilder out(budget);
    out << a.string() << b.string();
    return out.value();
  }
  if (op == "+" && a.is_list() && type_name(a) == type_name(b)) {
    budget.use_bytes((a.list().size() + b.list().size()) * sizeof(Value));
    List items = a.list();
    items.insert(items.end(), b.list().begin(), b.list().end());
    return a.get<ListRef>()->is_tuple ? budget.tuple(std::move(items))
                                      : budget.list(std::move(items));
  }
  if (op == "*" && (a.is_string() || a.is_list()) && b.is_integer()) {
    return repeated(a, b.integer(), budget);
  }
  if (op == "*" && a.is_integer() && (b.is_string() || b.is_list())) {
    return repeated(b, a.integer(), budget);
  }
  refuse(fmt::format("'{}' between {} and {}", op, type_name(a), type_name(b)));
}

Value negative(const Value& value) {
  refuse_undefined(value);
  if (value.is<double>()) return Value::of_float(-value.number());
  if (!value.is_integer()) refuse(fmt::format("'-' before a value of type {}", type_name(value)));
  if (value.integer() == kIntegerMin) refuse_integer();
  return Value::of_int(-value.integer());
}

bool contains(const Value& container, const Value& item, Budget& budget) {
  if (container.is_undefined()) return false;
  if (container.is_string()) {
    budget.step(container.string().size() / 64);
    return container.string().find(text_of(item, "in")) != std::string::npos;
  }
  if (container.is_dict()) return !subscript(container, item, budget).is_undefined();
  if (!container.is_list()) {
    refuse(fmt::format("'in' a value of type {}", type_name(container)));
  }
  return std::any_of(container.list().begin(), container.list().end(),
                     [&](const Value& other) { return equal(other, item, budget); });
}

Value subscript(const Value& object, const Value& key, Budget& budget) {
  refuse_undefined(object);
  const Value* found = nullptr;
  if (object.is_dict() && key.is_string()) {
    found = object.dict().find(key.string());
  } else if (object.is_dict()) {
    for (const auto& [k, value] : object.dict().items) {
      if (equal(k, key, budget)) found = &value;
    }
  } else if (object.is_list()) {
    found = list_item(object.list(), key);
  } else if (object.is_string()) {
    Value character = string_item(object.string(), key, budget);
    if (!character.is_undefined()) return character;
  } else if (object.is<Namespace*>() && key.is_string()) {
    found = (*object.get<Namespace*>())->find(key.string());
  }
  return found ? *found : Value(Undefined{key_name(key, budget)});
}

Value slice(const Value& object, const Value& begin, const Value& end, const Value& step,
            Budget& budget) {
  refuse_undefined(object);
  if (!object.is_string() && !object.is_list()) return Undefined{};
  const int64_t size = static_cast<int64_t>(object.is_list() ? object.list().size()
                                                             : num_code_points(object.string()));
  const SliceRange range = slice_range(begin, end, step, size);
  if (object.is_string() && range.step == 1) {
    budget.step(object.string().size() / 64);
    const size_t from = byte_offset(object.string(), static_cast<size_t>(range.begin));
    const size_t to = byte_offset(object.string(), static_cast<size_t>(range.end));
    return text_value(std::string_view(object.string()).substr(from, to > from ? to - from : 0),
                      budget);
  }
  const List characters = object.is_string() ? items_of(object, budget) : List{};
  const List& from = object.is_string() ? characters : object.list();
  List items;
  for (int64_t i = range.begin; range.step > 0 ? i < range.end : i > range.end; i += range.step) {
    budget.use_bytes(sizeof(Value));
    items.push_back(from[static_cast<size_t>(i)]);
  }
  if (object.is_string()) return join_texts("", budget.list(std::move(items)), budget);
  return object.get<ListRef>()->is_tuple ? budget.tuple(std::move(items))
                                         : budget.list(std::move(items));
}

Value call_range(const Arguments& arguments, Budget& budget) {
  arguments.expect("range", 3, {});
  const size_t n = arguments.positional.size();
  if (n == 0) refuse("range: expected 1 to 3 arguments");
  const int64_t begin = n == 1 ? 0 : arguments.integer(0, "start", 0);
  const int64_t end = arguments.integer(n == 1 ? 0 : 1, "stop", 0);
  const int64_t step = arguments.integer(2, "step", 1);
  if (step == 0) refuse("range: the step is 0");
  // Bounded as in jinja2's sandbox (MAX_RANGE).
  constexpr __int128 kRangeMax = 100000;
  const __int128 span =
      step > 0 ? static_cast<__int128>(end) - begin : static_cast<__int128>(begin) - end;
  const __int128 stride = step > 0 ? step : -static_cast<__int128>(step);
  const __int128 count = span > 0 ? (span + stride - 1) / stride : 0;
  if (count > kRangeMax) refuse("range: more than 100000 numbers");
  List items;
  budget.use_bytes(static_cast<size_t>(count) * sizeof(Value));
  for (__int128 i = 0; i < count; ++i) {
    items.push_back(Value::of_int(static_cast<int64_t>(begin + i * step)));
  }
  return budget.list(std::move(items));
}

}  // namespace atl::model::jinja
