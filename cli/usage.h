// Mistakes on the command line, told in one line that names what was probably meant.
#pragma once

#include <span>
#include <string>
#include <string_view>

namespace CLI {
class App;
class ParseError;
}  // namespace CLI

namespace atl::cli {

// The candidate within two edits of `word` (fewer for short words), or "".
std::string nearest(std::string_view word, std::span<const std::string> candidates);

// "unknown option '--node'; did you mean '--nodes'? (see 'atoll run --help')": what was wrong, the
// nearest known name, where to read on. One line without a prefix or line break.
std::string usage_message(const CLI::App& app, const CLI::ParseError& error);

}  // namespace atl::cli
