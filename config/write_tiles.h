// Puts the planned tiles into a cluster file's text, leaving all else as it is: comments, order,
// spacing.
#pragma once

#include <map>
#include <string>
#include <string_view>

namespace atl::config {

// The text with `tiles` of each of these nodes: in place of the value that is there, or behind the
// node's name. LoadError, with file, line and column, if the text can't be read, or has not all of
// these nodes.
//   name   of the file, in messages
//   tiles  [node's name]
std::string with_tiles(std::string_view text, const std::string& name,
                       const std::map<std::string, int>& tiles);

}  // namespace atl::config
