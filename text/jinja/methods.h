// What templates call by name: methods of strings, lists and dicts, and range(). They take their
// time and memory from the budget and throw RenderError for what Python or jinja2's sandbox refuse.
#pragma once

#include <string_view>

#include "text/jinja/arguments.h"
#include "text/jinja/value.h"

namespace atl::text::jinja {

// object.name(arguments).
Value call_method(const Value& object, std::string_view name, const Arguments& arguments,
                  Budget& budget);
Value call_range(const Arguments& arguments, Budget& budget);

}  // namespace atl::text::jinja
