// What templates can do to values: operators, filters, tests, methods.
//
// All take their time and memory from the budget and throw RenderError for what Python or jinja2
// refuse. Filters that give iterators there give lists here.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "model/jinja_value.h"

namespace atl::model::jinja {

// Of a call, filter or test. Each parameter is asked for by its place and its name.
class Arguments {
 public:
  List positional;
  std::vector<std::pair<std::string, Value>> named;

  // nullptr: not given.
  const Value* find(size_t index, std::string_view name) const;
  const Value& at(size_t index, std::string_view name) const;
  int64_t integer(size_t index, std::string_view name, int64_t otherwise) const;
  bool flag(size_t index, std::string_view name, bool otherwise) const;
  // Refuses more arguments than `max`, and names that aren't among `names`.
  void expect(std::string_view of, size_t max, std::initializer_list<std::string_view> names) const;
};

bool has_filter(std::string_view name);
bool has_test(std::string_view name);
Value apply_filter(std::string_view name, const Value& input, const Arguments& arguments,
                   Budget& budget);
bool apply_test(std::string_view name, const Value& input, const Arguments& arguments,
                Budget& budget);
// object.name(arguments) of a string, list or dict.
Value call_method(const Value& object, std::string_view name, const Arguments& arguments,
                  Budget& budget);

Value apply_binary(std::string_view op, const Value& a, const Value& b, Budget& budget);
Value negative(const Value& value);
bool contains(const Value& container, const Value& item, Budget& budget);
// object[key] and object.key; undefined if there is none.
Value subscript(const Value& object, const Value& key, Budget& budget);
// Bounds are undefined where they are left out.
Value slice(const Value& object, const Value& begin, const Value& end, const Value& step,
            Budget& budget);

Value call_range(const Arguments& arguments, Budget& budget);

}  // namespace atl::model::jinja
