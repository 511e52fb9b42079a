// Values of a chat template's program: Python's, as far as templates can see them.
//
// Lists and dicts never change once they are made (as in jinja2's immutable sandbox), so values
// can't form cycles; what may change (namespaces, scopes) belongs to the interpreter.
#pragma once

#include <cstdint>
#include <memory>
#include <stop_token>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

namespace atl::text::jinja {

class Value;
using List = std::vector<Value>;
struct Dict;
struct Namespace;
struct Loop;
struct Macro;
struct Scope;

// Nested deeper than this is refused, so that no recursion over a value runs out of stack.
inline constexpr int kValueDepthMax = 120;

struct Undefined {
  std::shared_ptr<const std::string> what;  // the name or attribute that isn't there
};
struct None {};
struct ListRef {
  std::shared_ptr<const List> items;
  bool is_tuple = false;
  int depth = 1;
};
struct DictRef {
  std::shared_ptr<const Dict> dict;
  int depth = 1;
};
enum class Builtin : uint8_t { kRange, kNamespace, kDict, kRaiseException, kStrftimeNow };
struct Function {
  Builtin builtin = Builtin::kRange;
  const Macro* macro = nullptr;  // if not null: this one, in its scope
  Scope* scope = nullptr;
};

class Value {
 public:
  Value() : data_(Undefined{}) {}
  Value(Undefined v) : data_(std::move(v)) {}                           // NOLINT(implicit)
  Value(None v) : data_(v) {}                                           // NOLINT(implicit)
  Value(ListRef v) : data_(std::move(v)) {}                             // NOLINT(implicit)
  Value(DictRef v) : data_(std::move(v)) {}                             // NOLINT(implicit)
  Value(Function v) : data_(v) {}                                       // NOLINT(implicit)
  Value(Namespace* v) : data_(v) {}                                     // NOLINT(implicit)
  Value(std::shared_ptr<const Loop> v) : data_(std::move(v)) {}         // NOLINT(implicit)
  Value(std::shared_ptr<const std::string> v) : data_(std::move(v)) {}  // NOLINT(implicit)
  static Value of_bool(bool v) { return Value(Data(v)); }
  static Value of_int(int64_t v) { return Value(Data(v)); }
  static Value of_float(double v) { return Value(Data(v)); }

  template <typename T>
  bool is() const {
    return std::holds_alternative<T>(data_);
  }
  template <typename T>
  const T* get() const {
    return std::get_if<T>(&data_);
  }

  bool is_undefined() const { return is<Undefined>(); }
  bool is_none() const { return is<None>(); }
  bool is_string() const { return is<std::shared_ptr<const std::string>>(); }
  bool is_list() const { return is<ListRef>(); }
  bool is_dict() const { return is<DictRef>(); }
  bool is_integer() const { return is<int64_t>() || is<bool>(); }  // as Python's int
  bool is_number() const { return is_integer() || is<double>(); }

  const std::string& string() const { return **get<std::shared_ptr<const std::string>>(); }
  const List& list() const { return *get<ListRef>()->items; }
  const Dict& dict() const { return *get<DictRef>()->dict; }
  int64_t integer() const { return is<bool>() ? *get<bool>() : *get<int64_t>(); }
  double number() const { return is<double>() ? *get<double>() : static_cast<double>(integer()); }
  int depth() const {
    return is_list() ? get<ListRef>()->depth : is_dict() ? get<DictRef>()->depth : 0;
  }

 private:
  using Data =
      std::variant<Undefined, None, bool, int64_t, double, std::shared_ptr<const std::string>,
                   ListRef, DictRef, Namespace*, std::shared_ptr<const Loop>, Function>;
  explicit Value(Data data) : data_(std::move(data)) {}
  Data data_;
};

// In the order of insertion.
struct Dict {
  std::vector<std::pair<Value, Value>> items;
  std::unordered_map<std::string, size_t> index;  // of keys that are strings

  const Value* find(std::string_view key) const;
  void set(Value key, Value value);  // for making one; what is there is replaced
};

struct Namespace {
  std::vector<std::pair<std::string, Value>> members;
  Value* find(std::string_view name);
};

// The variable `loop`.
struct Loop {
  std::shared_ptr<const List> items;
  size_t index0 = 0;
  int depth = 1;
};

// A list that grows by doubling takes up to so many times what it has, while it moves.
inline constexpr size_t kGrowingTimes = 3;

// What stops a render. The interpreter adds the place.
struct RenderError {
  std::string message;
  int line = 0, column = 0;
};

struct RenderStopped {};  // it was asked to

// Counts what a render uses. All values that a render makes are made here, and must be gone before
// this is: what they take is given back when they go.
//
// Memory is what is held at once: values and texts that are being written, and what expressions
// take on the way (use_bytes()), which counts until the statement ends.
class Budget {
 public:
  // `stop` is looked at every few thousand steps.
  Budget(uint64_t steps_max, size_t memory_bytes_max, std::stop_token stop = {})
      : steps_left_(steps_max), bytes_max_(memory_bytes_max), stop_(std::move(stop)) {}
  Budget(const Budget&) = delete;
  Budget& operator=(const Budget&) = delete;

  void step(uint64_t n = 1) {
    if (n > steps_left_) end("the template takes too many steps");
    const uint64_t before = std::exchange(steps_left_, steps_left_ - n);
    if (before / kStepsBetweenLooks != steps_left_ / kStepsBetweenLooks && stop_.stop_requested()) {
      throw RenderStopped();
    }
  }
  // To be called before memory is used. Reading costs steps, too, so that time is bounded.
  void hold(size_t n) {
    if (n > bytes_max_ || held_ + passing_ > bytes_max_ - n) {
      end("the template takes too much memory");
    }
    held_ += n;
    step(n / 64);
  }
  void give_back(size_t n) { held_ -= n; }
  // Of what lasts no longer than the statement.
  void use_bytes(size_t n) {
    hold(n);
    held_ -= n;
    passing_ += n;
  }
  size_t passing() const { return passing_; }
  void end_statement(size_t passing_before) { passing_ = passing_before; }

  std::shared_ptr<const std::string> shared_text(std::string text);
  Value text(std::string text) { return Value(shared_text(std::move(text))); }
  Value list(List items);
  Value tuple(List items);
  Value dict(Dict dict);

 private:
  static constexpr uint64_t kStepsBetweenLooks = 4096;

  [[noreturn]] static void end(const char* why);
  ListRef list_ref(List items);
  // Gives back what the thing held when it goes.
  template <typename T>
  std::shared_ptr<const T> shared(T thing, size_t bytes);

  uint64_t steps_left_;
  const size_t bytes_max_;
  size_t held_ = 0, passing_ = 0;
  const std::stop_token stop_;
};

// Text that grows within the budget.
class TextBuilder {
 public:
  explicit TextBuilder(Budget& budget) : budget_(budget) {}
  ~TextBuilder() { budget_.give_back(held_); }
  TextBuilder(const TextBuilder&) = delete;
  TextBuilder& operator=(const TextBuilder&) = delete;

  TextBuilder& operator<<(std::string_view text) {
    budget_.step(text.size() / 64);
    if (text_.size() + text.size() > text_.capacity()) grow(text_.size() + text.size());
    text_ += text;
    return *this;
  }
  TextBuilder& operator<<(char c) { return *this << std::string_view(&c, 1); }
  const std::string& text() const { return text_; }
  // What was written; nothing is left.
  Value value() { return budget_.text(take()); }
  std::string take() {
    budget_.give_back(std::exchange(held_, 0));
    return std::exchange(text_, {});
  }

 private:
  void grow(size_t size);

  Budget& budget_;
  std::string text_;
  size_t held_ = 0;  // text_'s memory, and the one before while it moves
};

struct JsonStyle {
  bool ensure_ascii = false;
  bool sort_keys = false;
  bool indented = false;
  std::string indent;  // of one level
  std::string item_separator = ", ", key_separator = ": ";
};

// "str", "list", "int": Python's names of types, for messages.
std::string_view type_name(const Value& value);
bool truthy(const Value& value);
bool equal(const Value& a, const Value& b, Budget& budget);
// Python's a < b. RenderError where Python has no order.
bool less(const Value& a, const Value& b, Budget& budget);
void write_str(const Value& value, TextBuilder& out);   // str(value)
void write_repr(const Value& value, TextBuilder& out);  // repr(value)
// json.dumps as the filter `tojson` of transformers calls it.
void write_json(const Value& value, const JsonStyle& style, TextBuilder& out);
std::string float_text(double value);  // repr of Python's float

[[noreturn]] void refuse(std::string message);  // throws RenderError
[[noreturn]] void refuse_integer();             // one beyond 64 bits
void refuse_undefined(const Value& value);      // does nothing for others

// The members of what can be iterated over: items, keys, characters; of undefined: nothing.
List items_of(const Value& value, Budget& budget);
Value dict_items(const Value& dict, Budget& budget);  // list of (key, value)

}  // namespace atl::text::jinja
