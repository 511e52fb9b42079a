// How --help shows options: what a value may be, said once.
#pragma once

#include <memory>

namespace CLI {
class FormatterBase;
}

namespace atl::cli {

// For the program's App before subcommands are added to it, which then have it too. CLI11's own
// says the name of a type and behind it the checks: "lru|lfu:{lru,lfu}", "INT:INT in [0 - 256]".
std::shared_ptr<CLI::FormatterBase> make_help_formatter();

}  // namespace atl::cli
