// What a template hands to a call, a filter or a test.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "text/jinja/value.h"

namespace atl::text::jinja {

// Each parameter is asked for by its place and its name. Throws RenderError.
class Arguments {
 public:
  List positional;
  std::vector<std::pair<std::string, Value>> named;

  // nullptr: not given.
  const Value* find(size_t index, std::string_view name) const;
  const Value* given(size_t index, std::string_view name) const;  // nullptr for none, too
  const Value& at(size_t index, std::string_view name) const;
  int64_t integer(size_t index, std::string_view name, int64_t otherwise) const;
  bool flag(size_t index, std::string_view name, bool otherwise) const;
  // Refuses more arguments than `max`, and names that aren't among `names`.
  void expect(std::string_view of, size_t max, std::initializer_list<std::string_view> names) const;
};

}  // namespace atl::text::jinja
