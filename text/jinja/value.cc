#include "text/jinja/value.h"

#include <fmt/core.h>

#include <algorithm>
#include <charconv>
#include <cmath>

#include "text/utf8.h"

namespace atl::text::jinja {
namespace {

constexpr size_t kSharedBytes = 64;  // around what is shared: counts, and who gives it back

// Python's str.isprintable(), but for code points that Unicode hasn't assigned.
bool is_printable(uint32_t c) {
  if (c < 0x20 || (c >= 0x7F && c <= 0xA0) || c == 0xAD) return false;
  if ((c >= 0x200B && c <= 0x200F) || (c >= 0x2028 && c <= 0x202F)) return false;
  if ((c >= 0x2000 && c <= 0x200A) || (c >= 0x205F && c <= 0x206F) || c == 0x3000) return false;
  if (c == 0x1680 || c == 0xFEFF || (c >= 0xE000 && c <= 0xF8FF)) return false;
  return c < 0xE0000;
}

void write_string_repr(std::string_view text, TextBuilder& out) {
  const bool has_single = text.find('\'') != text.npos, has_double = text.find('"') != text.npos;
  const char quote = has_single && !has_double ? '"' : '\'';
  out << quote;
  while (!text.empty()) {
    const Utf8Unit unit = next_utf8_unit(text);
    const std::string_view bytes = text.substr(0, unit.num_bytes);
    const uint32_t c = unit.code_point;
    text.remove_prefix(unit.num_bytes);
    if (c == static_cast<unsigned char>(quote) || c == '\\') {
      out << '\\' << bytes;
    } else if (c == '\n') {
      out << "\\n";
    } else if (c == '\r') {
      out << "\\r";
    } else if (c == '\t') {
      out << "\\t";
    } else if (unit.kind != Utf8Unit::Kind::kCharacter || is_printable(c)) {
      out << bytes;
    } else if (c < 0x100) {
      out << fmt::format("\\x{:02x}", c);
    } else {
      out << (c < 0x10000 ? fmt::format("\\u{:04x}", c) : fmt::format("\\U{:08x}", c));
    }
  }
  out << quote;
}

void write_items(const List& items, TextBuilder& out) {
  for (size_t i = 0; i < items.size(); ++i) {
    if (i > 0) out << ", ";
    write_repr(items[i], out);
  }
}

void write_json_string(std::string_view text, bool ensure_ascii, TextBuilder& out) {
  out << '"';
  while (!text.empty()) {
    const Utf8Unit unit = next_utf8_unit(text);
    const std::string_view bytes = text.substr(0, unit.num_bytes);
    const uint32_t c = unit.code_point;
    text.remove_prefix(unit.num_bytes);
    static constexpr std::string_view kShort = "\"\"\\\\\nn\rr\tt\bb\ff";
    const size_t at =
        c < 0x80 && unit.num_bytes == 1 ? kShort.find(static_cast<char>(c)) : kShort.npos;
    if (at != kShort.npos && at % 2 == 0) {
      out << '\\' << kShort[at + 1];
    } else if (c == '"' || c == '\\') {
      out << '\\' << bytes;
    } else if (c < 0x20) {
      out << fmt::format("\\u{:04x}", c);
    } else if (ensure_ascii && c >= 0x10000) {
      out << fmt::format("\\u{:04x}\\u{:04x}", 0xD800 + ((c - 0x10000) >> 10),
                         0xDC00 + ((c - 0x10000) & 0x3FF));
    } else if (ensure_ascii && c >= 0x80) {
      out << fmt::format("\\u{:04x}", c);
    } else {
      out << bytes;
    }
  }
  out << '"';
}

class JsonWriter {
 public:
  JsonWriter(const JsonStyle& style, TextBuilder& out) : style_(style), out_(out) {}

  void write(const Value& value) {
    if (value.is_none()) {
      out_ << "null";
    } else if (value.is<bool>()) {
      out_ << (*value.get<bool>() ? "true" : "false");
    } else if (value.is<double>()) {
      write_float(*value.get<double>());
    } else if (value.is_integer()) {
      out_ << fmt::format("{}", value.integer());
    } else if (value.is_string()) {
      write_json_string(value.string(), style_.ensure_ascii, out_);
    } else if (value.is_list()) {
      write_list(value.list());
    } else if (value.is_dict()) {
      write_dict(value.dict());
    } else {
      refuse(fmt::format("tojson: a value of type {} has no JSON form", type_name(value)));
    }
  }

 private:
  void write_float(double v) {
    if (std::isfinite(v)) {
      out_ << float_text(v);
    } else {
      out_ << (std::isnan(v) ? "NaN" : v > 0 ? "Infinity" : "-Infinity");
    }
  }

  void write_list(const List& items) {
    if (items.empty()) {
      out_ << "[]";
      return;
    }
    out_ << '[';
    ++level_;
    for (size_t i = 0; i < items.size(); ++i) {
      separate(i > 0);
      write(items[i]);
    }
    close(']');
  }

  void write_dict(const Dict& dict) {
    if (dict.items.empty()) {
      out_ << "{}";
      return;
    }
    std::vector<const std::pair<Value, Value>*> items;
    for (const auto& item : dict.items) items.push_back(&item);
    if (style_.sort_keys) {
      std::stable_sort(items.begin(), items.end(), [](const auto* a, const auto* b) {
        return key_text(a->first) < key_text(b->first);
      });
    }
    out_ << '{';
    ++level_;
    for (size_t i = 0; i < items.size(); ++i) {
      separate(i > 0);
      write_json_string(key_text(items[i]->first), style_.ensure_ascii, out_);
      out_ << style_.key_separator;
      write(items[i]->second);
    }
    close('}');
  }

  static std::string key_text(const Value& key) {
    if (key.is_string()) return key.string();
    if (key.is_none()) return "null";
    if (key.is<bool>()) return *key.get<bool>() ? "true" : "false";
    if (key.is_integer()) return fmt::format("{}", key.integer());
    if (key.is<double>()) return float_text(key.number());
    refuse(fmt::format("tojson: a key of type {} has no JSON form", type_name(key)));
  }

  void separate(bool comma) {
    if (comma) out_ << style_.item_separator;
    if (style_.indented) new_line();
  }
  void close(char bracket) {
    --level_;
    if (style_.indented) new_line();
    out_ << bracket;
  }
  void new_line() {
    out_ << '\n';
    for (int i = 0; i < level_; ++i) out_ << style_.indent;
  }

  const JsonStyle& style_;
  TextBuilder& out_;
  int level_ = 0;
};

bool equal_lists(const List& a, const List& b, Budget& budget) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i) {
    if (!equal(a[i], b[i], budget)) return false;
  }
  return true;
}

const Value* find_key(const Dict& dict, const Value& key, Budget& budget) {
  if (key.is_string()) return dict.find(key.string());
  for (const auto& [k, v] : dict.items) {
    if (equal(k, key, budget)) return &v;
  }
  return nullptr;
}

bool equal_dicts(const Dict& a, const Dict& b, Budget& budget) {
  if (a.items.size() != b.items.size()) return false;
  for (const auto& [key, value] : a.items) {
    const Value* other = find_key(b, key, budget);
    if (other == nullptr || !equal(value, *other, budget)) return false;
  }
  return true;
}

}  // namespace

const Value* Dict::find(std::string_view key) const {
  const auto found = index.find(std::string(key));
  return found == index.end() ? nullptr : &items[found->second].second;
}

void Dict::set(Value key, Value value) {
  if (key.is_string()) {
    const auto [at, is_new] = index.emplace(key.string(), items.size());
    if (!is_new) {
      items[at->second].second = std::move(value);
      return;
    }
  } else {
    Budget free(UINT64_MAX, SIZE_MAX);
    for (auto& item : items) {
      if (item.first.is_string() || !equal(item.first, key, free)) continue;
      item.second = std::move(value);
      return;
    }
  }
  items.emplace_back(std::move(key), std::move(value));
}

Value* Namespace::find(std::string_view name) {
  for (auto& [key, value] : members) {
    if (key == name) return &value;
  }
  return nullptr;
}

void Budget::end(const char* why) { refuse(why); }

template <typename T>
std::shared_ptr<const T> Budget::shared(T thing, size_t bytes) {
  hold(bytes);
  auto made = std::make_unique<const T>(std::move(thing));
  return std::shared_ptr<const T>(made.release(), [this, bytes](const T* gone) {
    delete gone;
    give_back(bytes);
  });
}

std::shared_ptr<const std::string> Budget::shared_text(std::string text) {
  const size_t bytes = kSharedBytes + sizeof(std::string) + text.capacity();
  return shared(std::move(text), bytes);
}

void TextBuilder::grow(size_t size) {
  const size_t before = held_;
  size = std::max(size, 2 * text_.capacity());
  budget_.hold(size);
  held_ += size;
  text_.reserve(size);
  budget_.give_back(before);
  held_ -= before;
}

ListRef Budget::list_ref(List items) {
  const size_t bytes = kSharedBytes + (items.capacity() + 1) * sizeof(Value);
  int depth = 0;
  for (const Value& item : items) depth = std::max(depth, item.depth());
  if (depth >= kValueDepthMax) refuse("a list is nested too deep");
  return {shared(std::move(items), bytes), false, depth + 1};
}

Value Budget::list(List items) { return list_ref(std::move(items)); }

Value Budget::tuple(List items) {
  ListRef ref = list_ref(std::move(items));
  ref.is_tuple = true;
  return ref;
}

Value Budget::dict(Dict dict) {
  // An entry of the index costs about as much as the two values again.
  const size_t bytes = kSharedBytes + (dict.items.capacity() + 1) * 4 * sizeof(Value);
  int depth = 0;
  for (const auto& [key, value] : dict.items) depth = std::max(depth, value.depth());
  if (depth >= kValueDepthMax) refuse("a dict is nested too deep");
  return DictRef{shared(std::move(dict), bytes), depth + 1};
}

void refuse(std::string message) { throw RenderError{std::move(message)}; }

void refuse_integer() { refuse("an integer beyond 64 bits"); }

void refuse_undefined(const Value& value) {
  if (!value.is_undefined()) return;
  const auto& what = value.get<Undefined>()->what;
  refuse(fmt::format("'{}' is undefined", what ? *what : ""));
}

std::string_view type_name(const Value& value) {
  if (value.is_undefined()) return "undefined";
  if (value.is_none()) return "None";
  if (value.is<bool>()) return "bool";
  if (value.is_integer()) return "int";
  if (value.is<double>()) return "float";
  if (value.is_string()) return "str";
  if (value.is_list()) return value.get<ListRef>()->is_tuple ? "tuple" : "list";
  if (value.is_dict()) return "dict";
  if (value.is<Function>()) return "function";
  return value.is<Namespace*>() ? "namespace" : "loop";
}

bool truthy(const Value& value) {
  if (value.is_undefined() || value.is_none()) return false;
  if (value.is_number()) return value.number() != 0;
  if (value.is_string()) return !value.string().empty();
  if (value.is_list()) return !value.list().empty();
  if (value.is_dict()) return !value.dict().items.empty();
  return true;
}

bool equal(const Value& a, const Value& b, Budget& budget) {
  budget.step();
  if (a.is_integer() && b.is_integer()) return a.integer() == b.integer();
  if (a.is_number() && b.is_number()) return a.number() == b.number();
  if (a.is_string() && b.is_string()) {
    budget.step(std::min(a.string().size(), b.string().size()) / 64);
    return a.string() == b.string();
  }
  if (a.is_list() && b.is_list()) {
    return a.get<ListRef>()->is_tuple == b.get<ListRef>()->is_tuple &&
           equal_lists(a.list(), b.list(), budget);
  }
  if (a.is_dict() && b.is_dict()) return equal_dicts(a.dict(), b.dict(), budget);
  if (a.is_none() || a.is_undefined()) return type_name(a) == type_name(b);
  if (a.is<Namespace*>() && b.is<Namespace*>()) {
    return *a.get<Namespace*>() == *b.get<Namespace*>();
  }
  return false;
}

bool less(const Value& a, const Value& b, Budget& budget) {
  budget.step();
  if (a.is_integer() && b.is_integer()) return a.integer() < b.integer();
  if (a.is_number() && b.is_number()) return a.number() < b.number();
  if (a.is_string() && b.is_string()) {
    budget.step(std::min(a.string().size(), b.string().size()) / 64);
    return a.string() < b.string();
  }
  if (a.is_list() && b.is_list()) {
    const List &x = a.list(), &y = b.list();
    for (size_t i = 0; i < x.size() && i < y.size(); ++i) {
      if (!equal(x[i], y[i], budget)) return less(x[i], y[i], budget);
    }
    return x.size() < y.size();
  }
  refuse(fmt::format("no order between {} and {}", type_name(a), type_name(b)));
}

void write_str(const Value& value, TextBuilder& out) {
  if (value.is_string()) {
    out << value.string();
  } else if (!value.is_undefined()) {
    write_repr(value, out);
  }
}

void write_repr(const Value& value, TextBuilder& out) {
  if (value.is_undefined()) {
    out << "Undefined";
  } else if (value.is_none()) {
    out << "None";
  } else if (value.is<bool>()) {
    out << (*value.get<bool>() ? "True" : "False");
  } else if (value.is_integer()) {
    out << fmt::format("{}", value.integer());
  } else if (value.is<double>()) {
    out << float_text(value.number());
  } else if (value.is_string()) {
    write_string_repr(value.string(), out);
  } else if (value.is_list()) {
    const bool is_tuple = value.get<ListRef>()->is_tuple;
    out << (is_tuple ? '(' : '[');
    write_items(value.list(), out);
    if (is_tuple && value.list().size() == 1) out << ',';
    out << (is_tuple ? ')' : ']');
  } else if (value.is_dict()) {
    out << '{';
    bool first = true;
    for (const auto& [key, item] : value.dict().items) {
      if (!std::exchange(first, false)) out << ", ";
      write_repr(key, out);
      out << ": ";
      write_repr(item, out);
    }
    out << '}';
  } else {
    out << '<' << type_name(value) << '>';
  }
}

void write_json(const Value& value, const JsonStyle& style, TextBuilder& out) {
  JsonWriter(style, out).write(value);
}

// Shortest digits that read back the same; an exponent below 1e-4 and from 1e16 on.
std::string float_text(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  const double magnitude = std::fabs(value);
  const bool with_exponent = magnitude != 0 && (magnitude < 1e-4 || magnitude >= 1e16);
  char buffer[400];
  const auto end =
      std::to_chars(buffer, buffer + sizeof buffer, value,
                    with_exponent ? std::chars_format::scientific : std::chars_format::fixed);
  std::string text(buffer, end.ptr);
  if (!with_exponent && text.find('.') == text.npos) text += ".0";
  return text;
}

List items_of(const Value& value, Budget& budget) {
  List items;
  if (value.is_list()) {
    budget.use_bytes(value.list().size() * sizeof(Value));
    items = value.list();
  } else if (value.is_dict()) {
    budget.use_bytes(value.dict().items.size() * sizeof(Value));
    items.reserve(value.dict().items.size());
    for (const auto& [key, item] : value.dict().items) items.push_back(key);
  } else if (value.is_string()) {
    for (std::string_view rest = value.string(); !rest.empty();) {
      const size_t bytes = next_utf8_unit(rest).num_bytes;
      budget.use_bytes(kGrowingTimes * sizeof(Value));
      items.push_back(budget.text(std::string(rest.substr(0, bytes))));
      rest.remove_prefix(bytes);
    }
  } else if (!value.is_undefined()) {
    refuse(fmt::format("a value of type {} can't be iterated over", type_name(value)));
  }
  return items;
}

Value dict_items(const Value& dict, Budget& budget) {
  List out;
  budget.use_bytes(dict.dict().items.size() * sizeof(Value));
  out.reserve(dict.dict().items.size());
  for (const auto& [key, value] : dict.dict().items) out.push_back(budget.tuple({key, value}));
  return budget.list(std::move(out));
}

}  // namespace atl::text::jinja
