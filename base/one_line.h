// Texts of others on one line of ours.
#pragma once

#include <string>
#include <string_view>

namespace atl {

// Text from files and peers made safe to print as one line: control characters become '?', line
// breaks a space.
std::string one_line(std::string_view text);

}  // namespace atl
