// Runs a parsed chat template.
#pragma once

#include <string>

#include "text/jinja/parser.h"
#include "text/jinja/value.h"

namespace atl::text::jinja {

// Calls within calls of macros deeper than this are refused.
inline constexpr int kCallDepthMax = 40;

// Throws RenderError with the place. The text has at most output_bytes_max bytes.
std::string run(const Program& program, const Dict& variables, Budget& budget,
                size_t output_bytes_max);

}  // namespace atl::text::jinja
