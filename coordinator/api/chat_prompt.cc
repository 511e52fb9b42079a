#include "coordinator/api/chat_prompt.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string_view>

namespace atl::coordinator {
namespace {

using Json = nlohmann::ordered_json;
using text::ReplyFormat;

std::string spell_call(ReplyFormat format, std::string_view name, std::string_view arguments,
                       size_t index) {
  switch (format) {
    case ReplyFormat::kDeepseekV3:
      return fmt::format(
          "<｜tool▁call▁begin｜>function<｜tool▁sep｜>{}\n```json\n{}\n```<｜tool▁call▁end｜>",
          name, arguments);
    case ReplyFormat::kKimiK2:
      return fmt::format(
          "<|tool_call_begin|>functions.{}:{}<|tool_call_argument_begin|>{}<|tool_call_end|>", name,
          index, arguments);
    case ReplyFormat::kDeepseekV31:
    case ReplyFormat::kPlain:
      break;
  }
  return fmt::format("<｜tool▁call▁begin｜>{}<｜tool▁sep｜>{}<｜tool▁call▁end｜>", name, arguments);
}

std::string spell_section(ReplyFormat format, std::string_view calls) {
  if (format == ReplyFormat::kKimiK2) {
    return fmt::format("<|tool_calls_section_begin|>{}<|tool_calls_section_end|>", calls);
  }
  return fmt::format("<｜tool▁calls▁begin｜>{}<｜tool▁calls▁end｜>", calls);
}

// Worded as DeepSeek-V3.1's model card describes tools to the model.
std::string describe_tools(ReplyFormat format, const std::vector<ChatTool>& tools) {
  std::string text = "## Tools\nYou have access to the following tools:\n";
  for (const ChatTool& tool : tools) {
    text +=
        fmt::format("\n### {}\nDescription: {}\n\nParameters: {}\n", tool.name, tool.description,
                    tool.parameters_json.empty() ? "{}" : tool.parameters_json);
  }
  const std::string call = spell_call(format, "tool_call_name", "tool_call_arguments", 0);
  text += fmt::format(
      "\nIMPORTANT: ALWAYS adhere to this exact format for tool use:\n{}\n\nWhere:\n"
      "- `tool_call_name` must be an exact match to one of the available tools\n"
      "- `tool_call_arguments` must be valid JSON that strictly follows the tool's Parameters "
      "Schema\n"
      "- For multiple tool calls, chain them directly without separators or spaces\n",
      spell_section(format, call));
  return text;
}

void add_system_text(std::vector<ChatMessage>& messages, const std::string& text) {
  if (messages.front().role == "system") {
    messages.front().content = messages.front().content.value_or("") + "\n\n" + text;
    return;
  }
  ChatMessage system;
  system.role = "system";
  system.content = text;
  messages.insert(messages.begin(), std::move(system));
}

// For a template that knows neither: a call is what the assistant said, a result what it was told.
void spell_out_tools(std::vector<ChatMessage>& messages, ReplyFormat format) {
  for (ChatMessage& message : messages) {
    if (!message.tool_calls.empty()) {
      std::string calls;
      for (size_t i = 0; i < message.tool_calls.size(); ++i) {
        calls += spell_call(format, message.tool_calls[i].name, message.tool_calls[i].arguments, i);
      }
      message.content = message.content.value_or("") + spell_section(format, calls);
      message.tool_calls.clear();
    } else if (message.role == "tool" && format == ReplyFormat::kKimiK2) {
      message.content = fmt::format("## Return of {}\n{}", message.tool_call_id,
                                    message.content.value_or(""));  // in a turn of its own
    } else if (message.role == "tool") {
      message.role = "user";
      message.content = fmt::format("<｜tool▁output▁begin｜>{}<｜tool▁output▁end｜>",
                                    message.content.value_or(""));
    }
  }
}

bool ends_with_mark(std::string_view text, std::string_view mark) {
  const size_t last = text.find_last_not_of(" \t\r\n");
  return last != text.npos && text.substr(0, last + 1).ends_with(mark);
}

// What the last message's text is followed by, so that it is found in the prompt: as transformers
// does it (utils/chat_template_utils.py, 5.24). A template that trims the text takes the space
// away.
constexpr std::string_view kContinueMark = "ATOLL_GOES_ON_HERE ";

// Cuts the prompt behind the last message's text. False: the template doesn't show it.
bool cut_behind_final_message(std::string& text) {
  const std::string_view mark = kContinueMark.substr(0, kContinueMark.size() - 1);
  const size_t at = text.rfind(mark);
  if (at == text.npos) return false;
  const bool trimmed = text.compare(at, kContinueMark.size(), kContinueMark) != 0;
  text.resize(at);
  if (trimmed) text.resize(text.find_last_not_of(" \t\r\n") + 1);
  return true;
}

// Whether an answer that begins with `said` is in its reasoning, as far as the prompt shows it.
void find_reasoning(const std::string& said, ChatPrompt& prompt) {
  const size_t opened = said.rfind("<think>"), closed = said.rfind("</think>");
  if (opened != said.npos || closed != said.npos) {
    prompt.reasoning_open = closed == said.npos || (opened != said.npos && opened > closed);
  } else {
    const size_t begin = prompt.text.rfind(said.substr(0, said.find_last_not_of(" \t\r\n") + 1));
    const auto before = std::string_view(prompt.text).substr(0, begin);
    prompt.reasoning_open = begin != prompt.text.npos && ends_with_mark(before, "<think>");
  }
  prompt.reasoning_closed = !prompt.reasoning_open;
}

Result<std::string> render_messages(const text::ChatTemplate& chat_template,
                                    const ChatTraits& traits,
                                    const std::vector<ChatMessage>& messages, Json& variables,
                                    const std::stop_token& stop) {
  const auto render = [&](const CallForm* instead) {
    variables["messages"] = Json::parse(messages_json(messages, traits.call_forms, instead));
    return chat_template.render(variables.dump(-1, ' ', false, Json::error_handler_t::replace),
                                stop);
  };
  auto text = render(nullptr);
  const bool calls = std::any_of(messages.begin(), messages.end(), [](const ChatMessage& message) {
    return !message.tool_calls.empty();
  });
  // What the template took when it was probed, it may still refuse here.
  for (int form = 0; form < 4 && !text && calls; ++form) {
    if (text.error().code != ErrorCode::kInvalid) break;
    const CallForm instead{.null_content = (form & 1) != 0, .object_arguments = (form & 2) != 0};
    if (auto other = render(&instead)) text = std::move(other);
  }
  return text;
}

}  // namespace

ChatTraits chat_traits(const text::ChatTemplate& chat_template) {
  const std::string_view source = chat_template.source();
  ChatTraits traits;
  const ReplyFormat format = text::recognise_reply_format(source);
  if (format != ReplyFormat::kPlain) traits.reply_format = format;
  traits.reads_tools = chat_template.reads("tools");
  traits.reads_tool_messages = source.find("tool_calls") != source.npos;
  traits.reasoning = source.find("think>") != source.npos;
  if (traits.reads_tool_messages) traits.call_forms = probe_call_forms(chat_template);
  return traits;
}

Parsed<ChatPrompt> render_chat(const text::ChatTemplate& chat_template, const ChatTraits& traits,
                               const ChatInput& input, std::stop_token stop) {
  std::vector<ChatMessage> messages = input.messages;
  if (!input.tools.empty() && !traits.reads_tools) {
    add_system_text(messages, describe_tools(traits.reply_format, input.tools));
  }
  if (!traits.reads_tool_messages) spell_out_tools(messages, traits.reply_format);

  if (input.continue_final_message) messages.back().content->append(kContinueMark);

  Json variables = Json::parse(input.template_kwargs_json);
  variables["add_generation_prompt"] = input.add_generation_prompt;
  if (!input.tools.empty() && traits.reads_tools) {
    Json& tools = variables["tools"] = Json::array();
    for (const ChatTool& tool : input.tools) tools.push_back(Json::parse(tool.json));
  } else {
    variables.erase("tools");
  }
  auto text = render_messages(chat_template, traits, messages, variables, stop);
  if (!text) {
    return invalid_request("messages",
                           "the model's chat template refuses this: " + text.error().message);
  }
  ChatPrompt prompt{.text = std::move(*text)};
  if (input.continue_final_message) {
    if (!cut_behind_final_message(prompt.text)) {
      return invalid_request("messages",
                             "messages: the model's chat template doesn't show the last message, "
                             "which continue_final_message or prefix is to go on with");
    }
    find_reasoning(*input.messages.back().content, prompt);
  } else {
    prompt.reasoning_open = ends_with_mark(prompt.text, "<think>");
    prompt.reasoning_closed = ends_with_mark(prompt.text, "</think>");
  }
  prompt.reasoning_open &= traits.reasoning;
  return prompt;
}

int64_t count_tool_calls(const ChatInput& input) {
  int64_t count = 0;
  for (const ChatMessage& message : input.messages) {
    count += static_cast<int64_t>(message.tool_calls.size());
  }
  return count;
}

}  // namespace atl::coordinator
