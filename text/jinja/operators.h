// Operators of templates. They take their time and memory from the budget and throw RenderError for
// what Python or jinja2 refuse.
#pragma once

#include <string_view>

#include "text/jinja/value.h"

namespace atl::text::jinja {

Value apply_binary(std::string_view op, const Value& a, const Value& b, Budget& budget);
Value negative(const Value& value);
bool contains(const Value& container, const Value& item, Budget& budget);
// object[key] and object.key; undefined if there is none.
Value subscript(const Value& object, const Value& key, Budget& budget);
// Bounds are undefined where they are left out.
Value slice(const Value& object, const Value& begin, const Value& end, const Value& step,
            Budget& budget);

}  // namespace atl::text::jinja
