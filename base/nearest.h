// The name that was probably meant.
#pragma once

#include <span>
#include <string>
#include <string_view>

namespace atl {

// The candidate within two edits of `word` (fewer for short words), or "".
std::string nearest(std::string_view word, std::span<const std::string> candidates);

}  // namespace atl
