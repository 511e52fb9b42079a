// Text from files inside one-line messages.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace atl::storage {

// The text in double quotes, control characters as \xNN, cut after `bytes_max` bytes with "...":
// whatever a file contains, the message stays one readable line.
std::string printable(std::string_view text, size_t bytes_max = 160);

}  // namespace atl::storage
