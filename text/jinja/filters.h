// Filters and tests of templates: `value | name(...)` and `value is name(...)`.
//
// They take their time and memory from the budget and throw RenderError for what jinja2 refuses.
// Filters that give iterators there give lists here.
#pragma once

#include <string_view>

#include "text/jinja/arguments.h"
#include "text/jinja/value.h"

namespace atl::text::jinja {

bool has_filter(std::string_view name);
bool has_test(std::string_view name);
Value apply_filter(std::string_view name, const Value& input, const Arguments& arguments,
                   Budget& budget);
bool apply_test(std::string_view name, const Value& input, const Arguments& arguments,
                Budget& budget);

}  // namespace atl::text::jinja
