#include "text/jinja/methods.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>

#include "text/jinja/operators.h"
#include "text/jinja/text.h"
#include "text/utf8.h"

namespace atl::text::jinja {
namespace {

Value list_of(const std::vector<std::string_view>& parts, Budget& budget) {
  List items;
  for (std::string_view part : parts) items.push_back(text_value(part, budget));
  return budget.list(std::move(items));
}

bool has_end(std::string_view text, const Value& ends, bool at_start) {
  if (ends.is_list()) {
    return std::any_of(ends.list().begin(), ends.list().end(),
                       [&](const Value& end) { return has_end(text, end, at_start); });
  }
  const std::string& end = text_of(ends, at_start ? "startswith" : "endswith");
  return at_start ? text.starts_with(end) : text.ends_with(end);
}

const std::string* given_text(const Value* value, std::string_view who) {
  return value && !value->is_none() ? &text_of(*value, who) : nullptr;
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
  if (name == "upper") return budget.text(with_case(text, Case::kUpper, budget));
  if (name == "lower") return budget.text(with_case(text, Case::kLower, budget));
  if (name == "title") return budget.text(with_case(text, Case::kTitle, budget));
  if (name == "capitalize") return budget.text(with_case(text, Case::kCapitalized, budget));
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

}  // namespace atl::text::jinja
