#include "cli/usage.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <vector>

#include "base/nearest.h"
#include "base/one_line.h"
#include "cli/output.h"

namespace atl::cli {
namespace {

// The innermost command that the line names, and all names on the way to it.
const CLI::App& chosen(const CLI::App& app) {
  const auto subcommands = app.get_subcommands();
  return subcommands.empty() ? app : chosen(*subcommands.back());
}

std::string command_path(const CLI::App& app) {
  const auto subcommands = app.get_subcommands();
  return subcommands.empty() ? app.get_name()
                             : app.get_name() + " " + command_path(*subcommands.back());
}

std::vector<std::string> option_names(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::Option* option : app.get_options()) {
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
  }
  return names;
}

std::vector<std::string> subcommand_names(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::App* subcommand : app.get_subcommands({}))
    names.push_back(subcommand->get_name());
  return names;
}

std::string with_suggestion(std::string message, std::string_view word,
                            std::span<const std::string> candidates) {
  const std::string suggestion = nearest(word, candidates);
  if (!suggestion.empty()) message += fmt::format("; did you mean '{}'?", suggestion);
  return message;
}

std::string unexpected_argument(const CLI::App& app, const std::string& word) {
  if (word.starts_with("-")) {
    std::vector<std::string> names = option_names(chosen(app));
    for (std::string& name : option_names(app)) names.push_back(std::move(name));
    const std::string flag = word.substr(0, word.find('='));
    return with_suggestion(fmt::format("unknown option '{}'", flag), flag, names);
  }
  const std::vector<std::string> commands = subcommand_names(chosen(app));
  if (!commands.empty()) {
    return with_suggestion(fmt::format("unknown command '{}'", word), word, commands);
  }
  return fmt::format("unexpected argument '{}'", word);
}

}  // namespace

std::string usage_message(const CLI::App& app, const CLI::ParseError& error) {
  const std::vector<std::string> extras = app.remaining(true);
  std::string message;
  if (!extras.empty()) {
    message = unexpected_argument(app, extras.front());
  } else if (const std::vector<std::string> commands = subcommand_names(chosen(app));
             !commands.empty() && error.get_name() == "RequiredError") {
    message = fmt::format("a command is required: one of {}", fmt::join(commands, ", "));
  } else {
    message = error.what();
  }
  return one_line(fmt::format("{} (see '{} --help')", message, command_path(app)));
}

}  // namespace atl::cli
