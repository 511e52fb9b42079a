#include "text/jinja/operators.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "text/jinja/text.h"
#include "text/utf8.h"

namespace atl::text::jinja {
namespace {

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
  size_t bytes = 0;
  const bool is_endless = times > 0 && __builtin_mul_overflow(value.list().size() * sizeof(Value),
                                                              static_cast<size_t>(times), &bytes);
  budget.use_bytes(is_endless ? std::numeric_limits<size_t>::max() / 2 : bytes);
  items.reserve(bytes / sizeof(Value));
  for (int64_t i = 0; i < times && !value.list().empty(); ++i) {
    budget.step();
    items.insert(items.end(), value.list().begin(), value.list().end());
  }
  return value.get<ListRef>()->is_tuple ? budget.tuple(std::move(items))
                                        : budget.list(std::move(items));
}

// "%s of %d" % values.
Value formatted(const std::string& format, const Value& values, Budget& budget) {
  const bool many = values.is_list() && values.get<ListRef>()->is_tuple;
  const List one = many ? List{} : List{values};
  const List& items = many ? values.list() : one;
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
  return budget.shared_text(out.text().substr(0, 60));
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

}  // namespace

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
    List items;
    items.reserve(a.list().size() + b.list().size());
    items = a.list();
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
  if (value.integer() == std::numeric_limits<int64_t>::min()) refuse_integer();
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
    budget.use_bytes(kGrowingTimes * sizeof(Value));
    items.push_back(from[static_cast<size_t>(i)]);
  }
  if (object.is_string()) return join_texts("", budget.list(std::move(items)), budget);
  return object.get<ListRef>()->is_tuple ? budget.tuple(std::move(items))
                                         : budget.list(std::move(items));
}

}  // namespace atl::text::jinja
