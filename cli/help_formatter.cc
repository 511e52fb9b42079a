#include "cli/help_formatter.h"

#include <CLI/CLI.hpp>
#include <string>

namespace atl::cli {
namespace {

class HelpFormatter final : public CLI::Formatter {
 public:
  std::string make_option_opts(const CLI::Option* option) const override {
    std::string text = CLI::Formatter::make_option_opts(option);
    // A list of words that the type's name is already made of.
    if (const size_t begin = text.find(":{"); begin != std::string::npos) {
      text.erase(begin, text.find('}', begin) + 1 - begin);
    }
    // The number's type, which its name or unit says.
    for (const std::string number : {":INT in [", ":UINT in [", ":FLOAT in ["}) {
      if (const size_t begin = text.find(number); begin != std::string::npos) {
        text.erase(begin, number.find(' '));
      }
    }
    return text;
  }
};

}  // namespace

void group_options(CLI::App& command, const std::string& heading,
                   std::initializer_list<const char*> names) {
  for (const char* name : names) command.get_option(name)->group(heading);
}

std::shared_ptr<CLI::FormatterBase> make_help_formatter() {
  return std::make_shared<HelpFormatter>();
}

}  // namespace atl::cli
