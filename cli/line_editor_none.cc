#include "cli/line_editor.h"

namespace atl::cli {

std::unique_ptr<LineInput> make_line_editor() { return nullptr; }

}  // namespace atl::cli
