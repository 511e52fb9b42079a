#include "text/jinja/arguments.h"

#include <fmt/core.h>

#include <algorithm>

namespace atl::text::jinja {

const Value* Arguments::find(size_t index, std::string_view name) const {
  if (index < positional.size()) return &positional[index];
  for (const auto& [key, value] : named) {
    if (key == name) return &value;
  }
  return nullptr;
}

const Value* Arguments::given(size_t index, std::string_view name) const {
  const Value* value = find(index, name);
  return value && !value->is_none() ? value : nullptr;
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

}  // namespace atl::text::jinja
