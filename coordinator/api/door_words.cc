#include "coordinator/api/door_words.h"

#include <span>
#include <string>
#include <string_view>
#include <utility>

namespace atl::coordinator {
namespace {

struct Word {
  std::string_view chat;  // a field's path up to a '.', a '[' or its end
  std::string_view door;
  bool whole = false;  // what follows has no counterpart
};

constexpr Word kWordsOfResponses[] = {
    {"messages", "input", true},
    {"max_tokens", "max_output_tokens"},
    {"response_format.json_schema", "text.format"},
    {"response_format", "text.format"},
    {"reasoning_effort", "reasoning.effort"},
};

// Where the messages stand is not where the chat's do: a system's is put first.
constexpr Word kWordsOfMessages[] = {
    {"messages", "messages", true},
    {"stop", "stop_sequences"},
    {"response_format.json_schema", "output_config.format"},
    {"response_format", "output_config.format"},
    {"parallel_tool_calls", "tool_choice.disable_parallel_tool_use", true},
    {"user", "metadata.user_id"},
};

bool begins_with(std::string_view path, std::string_view field) {
  return path.starts_with(field) &&
         (path.size() == field.size() || path[field.size()] == '.' || path[field.size()] == '[');
}

std::string in_words(std::string_view path, std::span<const Word> words,
                     std::string_view parameters) {
  for (const Word& word : words) {
    if (!begins_with(path, word.chat)) continue;
    std::string out(word.door);
    if (!word.whole) out += path.substr(word.chat.size());
    return out;
  }
  std::string out(path);
  if (!begins_with(path, "tools") && !begins_with(path, "tool_choice")) return out;
  constexpr std::string_view kFunction = ".function", kParameters = ".parameters";
  const size_t at = out.find(kFunction);
  if (at == out.npos) return out;
  out.erase(at, kFunction.size());
  if (std::string_view(out).substr(at).starts_with(kParameters)) {
    out.replace(at, kParameters.size(), parameters);
  }
  return out;
}

ApiError in_words(ApiError error, std::span<const Word> words, std::string_view parameters) {
  const std::string path = std::move(error.param);
  error.param = in_words(path, words, parameters);
  // A message begins with the field that it is about.
  if (!path.empty() && error.message.starts_with(path)) {
    error.message.replace(0, path.size(), error.param);
  }
  return error;
}

}  // namespace

ApiError in_words_of_responses(ApiError error) {
  return in_words(std::move(error), kWordsOfResponses, ".parameters");
}

ApiError in_words_of_messages(ApiError error) {
  return in_words(std::move(error), kWordsOfMessages, ".input_schema");
}

}  // namespace atl::coordinator
