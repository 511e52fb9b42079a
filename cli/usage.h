// Mistakes on the command line, told in one line that names what was probably meant.
#pragma once

#include <string>

namespace CLI {
class App;
class ParseError;
}  // namespace CLI

namespace atl::cli {

// "unknown option '--node'; did you mean '--nodes'? (see 'atoll run --help')": what was wrong, the
// nearest known name, where to read on. One line without a prefix or line break.
std::string usage_message(const CLI::App& app, const CLI::ParseError& error);

}  // namespace atl::cli
