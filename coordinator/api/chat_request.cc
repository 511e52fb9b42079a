#include "coordinator/api/chat_request.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/log.h"

namespace atl::coordinator {
namespace {

constexpr size_t kMessagesMax = 100'000;
constexpr size_t kPartsMax = 10'000;
constexpr size_t kToolsMax = 1024;
constexpr size_t kToolNameBytesMax = 64;

// Text, or an array of parts that are text; those are joined by line ends.
std::optional<std::string> read_content(const JsonValue& content) {
  if (content.missing()) return std::nullopt;
  if (content.is_string()) return content.string();
  if (!content.is_array()) {
    content.complain("a string or an array of text parts");
    return std::nullopt;
  }
  std::string text;
  for (const JsonValue& part : content.elements(kPartsMax)) {
    if (part.is_string()) {  // not OpenAI's, but some clients'
      text += (text.empty() ? "" : "\n") + *part.string();
      continue;
    }
    const auto type = part["type"].string();
    if (!part.is_object() || !type) {
      part.complain("an object with \"type\": \"text\"");
      return std::nullopt;
    }
    if (*type != "text") {
      part["type"].refuse(fmt::format("{}: this model reads text only, found a part of type \"{}\"",
                                      part["type"].path(), type->substr(0, 40)),
                          "unsupported");
      return std::nullopt;
    }
    if (part["text"].missing()) part["text"].complain("a string");
    if (const auto piece = part["text"].string()) text += (text.empty() ? "" : "\n") + *piece;
  }
  return text;
}

ChatMessage::ToolCall read_tool_call(const JsonValue& call) {
  ChatMessage::ToolCall result;
  if (!call.is_object()) {
    call.complain("an object");
    return result;
  }
  if (const auto type = call["type"].string(); type && *type != "function") {
    call["type"].complain("\"function\"");
  }
  const JsonValue function = call["function"];
  if (!function.is_object()) function.complain("an object");
  if (function["name"].missing()) function["name"].complain("a string");
  result.id = call["id"].string().value_or("");
  result.name = function["name"].string().value_or("");
  const JsonValue arguments = function["arguments"];
  if (arguments.is_object()) {  // OpenAI's is text; some clients send what it says
    result.arguments = arguments.text();
  } else {
    result.arguments = arguments.string().value_or("{}");
  }
  return result;
}

void read_assistant(const JsonValue& json, ChatMessage& message) {
  for (const JsonValue& call : json["tool_calls"].elements(kToolsMax)) {
    message.tool_calls.push_back(read_tool_call(call));
  }
  if (!json["tool_calls"].missing() && !json["tool_calls"].is_array()) {
    json["tool_calls"].complain("an array");
  }
  // The model doesn't want its earlier thoughts back; clients send what they got.
  json["reasoning_content"].string();
  if (message.tool_calls.empty()) {
    if (!message.content) message.content = json["refusal"].string().value_or("");
  } else if (message.content && message.content->empty()) {
    message.content.reset();  // what templates take for "only calls"
  }
}

ChatMessage read_message(const JsonValue& json) {
  ChatMessage message;
  if (!json.is_object()) {
    json.complain("an object");
    return message;
  }
  const JsonValue role = json["role"];
  message.role = role.string().value_or("");
  if (message.role == "developer") message.role = "system";
  message.content = read_content(json["content"]);
  message.name = json["name"].string().value_or("");
  if (message.role == "assistant") {
    read_assistant(json, message);
  } else if (message.role == "system" || message.role == "user" || message.role == "tool") {
    if (json["content"].missing()) json["content"].complain("a string or an array of text parts");
    if (message.role == "tool") message.tool_call_id = json["tool_call_id"].string().value_or("");
  } else {
    role.complain("system, developer, user, assistant or tool");
  }
  return message;
}

std::vector<ChatMessage> read_messages(const JsonValue& messages) {
  std::vector<ChatMessage> result;
  if (!messages.is_array() || messages.size() == 0) {
    messages.complain("an array of at least one message");
    return result;
  }
  for (const JsonValue& message : messages.elements(kMessagesMax)) {
    result.push_back(read_message(message));
  }
  return result;
}

bool is_tool_name(std::string_view name) {
  const auto fits = [](unsigned char c) {
    return std::isalnum(c) || c == '_' || c == '-' || c == '.';
  };
  return !name.empty() && name.size() <= kToolNameBytesMax &&
         std::all_of(name.begin(), name.end(), fits);
}

std::vector<ChatTool> read_tools(const JsonValue& tools) {
  std::vector<ChatTool> result;
  if (!tools.missing() && !tools.is_array()) tools.complain("an array");
  for (const JsonValue& tool : tools.elements(kToolsMax)) {
    if (!tool.is_object() || tool["type"].string() != "function") {
      tool["type"].complain("\"function\"");
      break;
    }
    const JsonValue function = tool["function"];
    if (!function.is_object()) function.complain("an object");
    const JsonValue name = function["name"];
    ChatTool read{.name = name.string().value_or(""), .json = tool.text()};
    if (!is_tool_name(read.name)) {
      name.complain(fmt::format("1 to {} letters, digits, '_', '-' or '.'", kToolNameBytesMax));
    }
    const bool twice = std::any_of(result.begin(), result.end(),
                                   [&](const ChatTool& other) { return other.name == read.name; });
    if (twice) name.refuse(fmt::format("{}: a tool of this name is there already", name.path()));
    read.description = function["description"].string().value_or("");
    const JsonValue parameters = function["parameters"];
    if (parameters.is_object()) {
      read.parameters_json = parameters.text();
    } else if (!parameters.missing()) {
      parameters.complain("a JSON Schema (an object)");
    }
    result.push_back(std::move(read));
  }
  return result;
}

void read_named_choice(const JsonValue& choice, ChatRequest& request) {
  const JsonValue name = choice["function"]["name"];
  if (choice["type"].string() != "function" || !name.is_string()) {
    choice.complain("none, auto, required, or an object that names a function");
    return;
  }
  request.tool_choice = ToolChoice::kRequired;
  request.tool_name = *name.string();
  const auto& tools = request.input.tools;
  const bool known = std::any_of(tools.begin(), tools.end(), [&](const ChatTool& tool) {
    return tool.name == request.tool_name;
  });
  if (!known) {
    name.refuse(fmt::format("{}: no tool is called \"{}\"", name.path(),
                            request.tool_name.substr(0, kToolNameBytesMax)));
  }
}

void read_tool_choice(const JsonValue& choice, ChatRequest& request) {
  request.tool_choice = request.input.tools.empty() ? ToolChoice::kNone : ToolChoice::kAuto;
  if (choice.missing()) return;
  if (choice.is_object()) {
    read_named_choice(choice, request);
    return;
  }
  std::string text;
  if (choice.is_string()) text = choice.string().value_or("");
  if (text == "none") {
    request.tool_choice = ToolChoice::kNone;
  } else if (text == "required" && request.input.tools.empty()) {
    choice.refuse("tool_choice: \"required\" without tools");
  } else if (text == "required") {
    request.tool_choice = ToolChoice::kRequired;
  } else if (text != "auto") {
    choice.complain("none, auto, required, or an object that names a function");
  }
}

void read_response_format(const JsonValue& format, ChatRequest& request) {
  if (format.missing()) return;
  const std::string type = format["type"].is_string() ? *format["type"].string() : std::string();
  if (type == "json_object") {
    request.response_format = ResponseFormat::kJsonObject;
  } else if (type == "json_schema") {
    request.response_format = ResponseFormat::kJsonSchema;
    const JsonValue schema = format["json_schema"]["schema"];
    if (schema.is_object()) {
      request.schema_json = schema.text();
    } else {
      schema.complain("a JSON Schema (an object)");
    }
  } else if (type != "text") {
    format["type"].complain("text, json_object or json_schema");
  }
  if (request.response_format != ResponseFormat::kText &&
      request.tool_choice == ToolChoice::kRequired) {
    format.refuse("response_format: not together with a forced call of a tool");
  }
}

std::string read_template_kwargs(const JsonValue& kwargs) {
  if (kwargs.missing()) return "{}";
  if (!kwargs.is_object()) kwargs.complain("an object");
  return kwargs.text();
}

void read_chat_logprobs(const JsonValue& root, GenerationFields& fields) {
  const bool wanted = root["logprobs"].boolean().value_or(false);
  const auto top = root["top_logprobs"].integer(0, kTopLogprobsMax);
  if (top && *top > 0 && !wanted) {
    root["top_logprobs"].refuse("top_logprobs: only allowed with \"logprobs\": true");
  }
  if (wanted) fields.top_logprobs = static_cast<int32_t>(top.value_or(0));
}

}  // namespace

Parsed<ChatRequest> parse_chat_request(std::string_view body, const RequestLimits& limits) {
  auto document = JsonDocument::parse(body);
  if (!document) return document.error();
  const JsonValue root = document->root();
  ChatRequest request;
  request.fields = read_generation_fields(root, limits);
  read_chat_logprobs(root, request.fields);
  request.input.messages = read_messages(root["messages"]);
  request.input.tools = read_tools(root["tools"]);
  request.input.template_kwargs_json = read_template_kwargs(root["chat_template_kwargs"]);
  read_tool_choice(root["tool_choice"], request);
  if (request.tool_choice == ToolChoice::kNone) request.input.tools.clear();
  request.parallel_tool_calls = root["parallel_tool_calls"].boolean().value_or(true);
  read_response_format(root["response_format"], request);
  if (document->error()) return *document->error();
  log_ignored_fields(root, {"messages", "tools", "tool_choice", "parallel_tool_calls",
                            "response_format", "chat_template_kwargs", "top_logprobs"});
  return request;
}

std::optional<Parsed<TokenizeChatRequest>> parse_tokenize_chat_request(std::string_view body) {
  auto document = JsonDocument::parse(body);
  if (!document) return Parsed<TokenizeChatRequest>(document.error());
  const JsonValue root = document->root();
  if (root["messages"].missing()) return std::nullopt;
  TokenizeChatRequest request;
  request.model = root["model"].string().value_or("");
  request.input.messages = read_messages(root["messages"]);
  request.input.tools = read_tools(root["tools"]);
  request.input.template_kwargs_json = read_template_kwargs(root["chat_template_kwargs"]);
  request.input.add_generation_prompt = root["add_generation_prompt"].boolean().value_or(true);
  request.add_special_tokens = root["add_special_tokens"].boolean().value_or(false);
  request.return_token_strs = root["return_token_strs"].boolean().value_or(false);
  if (document->error()) return Parsed<TokenizeChatRequest>(*document->error());
  return Parsed<TokenizeChatRequest>(std::move(request));
}

}  // namespace atl::coordinator
