#include "coordinator/api/chat_prompt.h"

#include <fmt/format.h>

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
    } else if (message.role == "tool") {
      message.role = "user";
      message.content = fmt::format("<｜tool▁output▁begin｜>{}<｜tool▁output▁end｜>",
                                    message.content.value_or(""));
    }
  }
}

Json message_json(const ChatMessage& message) {
  Json json = {{"role", message.role},
               {"content", message.content ? Json(*message.content) : Json(nullptr)}};
  if (!message.name.empty()) json["name"] = message.name;
  if (!message.tool_call_id.empty()) json["tool_call_id"] = message.tool_call_id;
  for (const ChatMessage::ToolCall& call : message.tool_calls) {
    // Published templates add `arguments` to a text: it stays one.
    json["tool_calls"].push_back(
        {{"id", call.id},
         {"type", "function"},
         {"function", {{"name", call.name}, {"arguments", call.arguments}}}});
  }
  return json;
}

bool ends_in_reasoning(std::string_view text) {
  const size_t last = text.find_last_not_of(" \t\r\n");
  return last != text.npos && text.substr(0, last + 1).ends_with("<think>");
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
  return traits;
}

Parsed<ChatPrompt> render_chat(const text::ChatTemplate& chat_template, const ChatTraits& traits,
                               const ChatInput& input, std::stop_token stop) {
  std::vector<ChatMessage> messages = input.messages;
  if (!input.tools.empty() && !traits.reads_tools) {
    add_system_text(messages, describe_tools(traits.reply_format, input.tools));
  }
  if (!traits.reads_tool_messages) spell_out_tools(messages, traits.reply_format);

  Json variables = Json::parse(input.template_kwargs_json);
  Json& list = variables["messages"] = Json::array();
  for (const ChatMessage& message : messages) list.push_back(message_json(message));
  variables["add_generation_prompt"] = input.add_generation_prompt;
  if (!input.tools.empty() && traits.reads_tools) {
    Json& tools = variables["tools"] = Json::array();
    for (const ChatTool& tool : input.tools) tools.push_back(Json::parse(tool.json));
  } else {
    variables.erase("tools");
  }
  auto text = chat_template.render(variables.dump(), std::move(stop));
  if (!text) {
    return invalid_request("messages",
                           "the model's chat template refuses this: " + text.error().message);
  }
  const bool open = traits.reasoning && ends_in_reasoning(*text);
  return ChatPrompt{.text = std::move(*text), .reasoning_open = open};
}

int64_t count_tool_calls(const ChatInput& input) {
  int64_t count = 0;
  for (const ChatMessage& message : input.messages) {
    count += static_cast<int64_t>(message.tool_calls.size());
  }
  return count;
}

}  // namespace atl::coordinator
