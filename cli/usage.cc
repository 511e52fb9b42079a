#include "cli/usage.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <vector>

#include "cli/output.h"

namespace atl::cli {
namespace {

// Levenshtein distance: insertions, deletions and replacements of one character.
size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t replaced = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, replaced});
    }
  }
  return row[b.size()];
}

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

std::string nearest(std::string_view word, std::span<const std::string> candidates) {
  size_t best_distance = std::min<size_t>(3, word.size() / 3 + 1);  // exclusive
  std::string best;
  for (const std::string& candidate : candidates) {
    const size_t distance = edit_distance(word, candidate);
    if (distance < best_distance) {
      best_distance = distance;
      best = candidate;
    }
  }
  return best;
}

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
