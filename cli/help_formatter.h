// How --help shows options: what a value may be, said once.
#pragma once

#include <initializer_list>
#include <memory>
#include <string>

namespace CLI {
class App;
class FormatterBase;
}  // namespace CLI

namespace atl::cli {

// Puts options of the command under a heading of its --help. CLI11 throws where one is not there.
void group_options(CLI::App& command, const std::string& heading,
                   std::initializer_list<const char*> names);

// For the program's App before subcommands are added to it, which then have it too. CLI11's own
// says the name of a type and behind it the checks: "lru|lfu:{lru,lfu}", "INT:INT in [0 - 256]".
std::shared_ptr<CLI::FormatterBase> make_help_formatter();

}  // namespace atl::cli
