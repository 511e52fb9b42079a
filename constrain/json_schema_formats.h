// The formats of JSON Schema strings as regular expressions.
#pragma once

#include <string>
#include <string_view>

namespace atl::constrain {

// A pattern with anchors, as add_pattern() takes it; empty: this format is not built.
std::string format_pattern(std::string_view format);

}  // namespace atl::constrain
