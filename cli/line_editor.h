// A line editor for a terminal. Where none was found at build time, line_editor_none.cc stands in.
#pragma once

#include <memory>

#include "cli/line_input.h"

namespace atl::cli {

// With cursor keys and the lines before; null if there is none or the terminal is too dumb for it.
std::unique_ptr<LineInput> make_line_editor();

}  // namespace atl::cli
