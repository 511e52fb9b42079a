#include "coordinator/api/chat_request.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/log.h"
#include "coordinator/api/refused_fields.h"

namespace atl::coordinator {
namespace {

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
  result.json = call.text();
  result.arguments_are_object = arguments.is_object();
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
  if (message.tool_calls.empty() && !message.content) {
    message.content = json["refusal"].string().value_or("");
  }
}

// All fields that are not read by name, in their order; a null is the same as leaving a field out.
// Reasoning gets the name that templates know.
std::string read_more_fields(const JsonValue& json) {
  static constexpr std::string_view kRead[] = {"role", "content", "name", "tool_call_id",
                                               "tool_calls"};
  static constexpr std::string_view kReasoning[] = {"reasoning_content", "reasoning", "thinking"};
  nlohmann::ordered_json more = nlohmann::ordered_json::object();
  for (const std::string& key : json.keys()) {
    const JsonValue value = json[key];
    if (value.missing() || std::find(std::begin(kRead), std::end(kRead), key) != std::end(kRead)) {
      continue;
    }
    more[key] = nlohmann::ordered_json::parse(value.text());
  }
  for (const std::string_view name : kReasoning) {
    const auto found = more.find(std::string(name));
    if (found == more.end()) continue;
    if (!found->is_string()) json[name].complain("a string");
    more["reasoning_content"] = nlohmann::ordered_json(*found);
    break;
  }
  return more.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
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
  message.more_json = read_more_fields(json);
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

std::vector<ChatTool> read_chat_tools(const JsonValue& tools) {
  std::vector<ChatTool> result;
  if (!tools.missing() && !tools.is_array()) tools.complain("an array");
  for (const JsonValue& tool : tools.elements(kToolsMax)) {
    if (!tool.is_object() || tool["type"].string() != "function") {
      const bool is_known = tool["type"].is_string();
      const std::string path = tool["type"].path();
      if (is_known) tool["type"].refuse(path + ": only functions are supported", "unsupported");
      if (!is_known) tool["type"].complain("\"function\"");
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
  if (choice["type"].is_string() && choice["type"].string() == "allowed_tools") {
    choice["type"].refuse(
        "tool_choice.type: \"allowed_tools\" is not supported; send only the tools that are "
        "allowed",
        "unsupported");
    return;
  }
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
    if (format["schema"].is_object()) {  // as llama.cpp, Together and others have it
      request.response_format = ResponseFormat::kJsonSchema;
      request.schema_json = format["schema"].text();
    } else if (!format["schema"].missing()) {
      format["schema"].complain("a JSON Schema (an object)");
    }
  } else if (type == "json_schema") {
    request.response_format = ResponseFormat::kJsonSchema;
    // Some write it beside the type.
    const bool is_beside = format["json_schema"].missing() && !format["schema"].missing();
    const JsonValue schema = is_beside ? format["schema"] : format["json_schema"]["schema"];
    if (schema.is_object()) {
      request.schema_json = schema.text();
    } else {
      schema.complain("a JSON Schema (an object)");
    }
  } else if (type == "grammar" || type == "regex" || type == "structural_tag") {
    format["type"].refuse(
        fmt::format("{}: \"{}\" is not supported; use json_schema, guided_regex or guided_choice",
                    format["type"].path(), type),
        "unsupported");
  } else if (type != "text") {
    format["type"].complain("text, json_object or json_schema");
  }
  // It is the content's format, and beside a forced call there is no content.
  if (request.tool_choice == ToolChoice::kRequired) {
    request.response_format = ResponseFormat::kText;
    request.schema_json.clear();
  }
}

// Whether the prompt ends with a new turn of the assistant, or within its last one.
void read_prompt_end(const JsonValue& root, ChatInput& input) {
  const JsonValue last = [&] {
    const JsonValue messages = root["messages"];
    return messages.is_array() && messages.size() > 0 ? messages.element(messages.size() - 1)
                                                      : messages;
  }();
  const bool is_assistant = last["role"].is_string() && last["role"].string() == "assistant";
  const bool prefix = is_assistant && last["prefix"].boolean().value_or(false);
  const JsonValue wish = root["continue_final_message"];
  input.continue_final_message = wish.boolean().value_or(false) || prefix;
  const auto prompt = root["add_generation_prompt"].boolean();
  input.add_generation_prompt = prompt.value_or(true) && !input.continue_final_message;
  if (!input.continue_final_message || input.messages.empty()) return;
  if (prompt == true && !prefix) {
    wish.refuse("continue_final_message: not together with \"add_generation_prompt\": true");
  }
  const ChatMessage& message = input.messages.back();
  if (message.role != "assistant" || !message.content || !message.tool_calls.empty()) {
    wish.refuse(
        "continue_final_message: the last message has to be the assistant's, with content and "
        "without tool_calls");
  }
}

// What is said of output elsewhere than in response_format becomes that.
void read_guided_output(const JsonValue& root, ChatRequest& request) {
  using Kind = GuidedOutput::Kind;
  read_guided(root, request.guided);
  if (request.guided.kind == Kind::kNone) return;
  const JsonValue place = root["tool_choice"];
  if (request.response_format != ResponseFormat::kText) {
    root["response_format"].refuse("response_format: not together with " + request.guided.param);
  } else if (request.tool_choice == ToolChoice::kRequired) {
    place.refuse("tool_choice: no forced call of a tool together with " + request.guided.param);
  }
  if (request.guided.kind == Kind::kJsonObject) {
    request.response_format = ResponseFormat::kJsonObject;
  } else if (request.guided.kind == Kind::kJson) {
    request.response_format = ResponseFormat::kJsonSchema;
    request.schema_json = request.guided.schema_json;
  }
}

void read_effort(const JsonValue& value, ChatRequest& request) {
  const auto effort = value.string();
  if (!effort) return;
  static constexpr std::string_view kEfforts[] = {"none", "minimal", "low", "medium",
                                                  "high", "xhigh",   "max"};
  if (std::find(std::begin(kEfforts), std::end(kEfforts), *effort) == std::end(kEfforts)) {
    value.complain("none, minimal, low, medium, high, xhigh or max");
  }
  request.thinking = *effort != "none";
  request.reasoning_effort = *effort;
}

// DeepSeek's {"thinking": {"type": "enabled"}}, also as a boolean, OpenAI's reasoning_effort, and
// {"reasoning": {"effort", "enabled", "exclude"}} as OpenRouter has it.
void read_thinking(const JsonValue& root, ChatRequest& request) {
  request.include_reasoning = root["include_reasoning"].boolean().value_or(true);
  read_effort(root["reasoning_effort"], request);
  const JsonValue reasoning = root["reasoning"];
  if (!reasoning.missing() && !reasoning.is_object()) reasoning.complain("an object");
  if (const auto on = reasoning["enabled"].boolean()) request.thinking = *on;
  read_effort(reasoning["effort"], request);
  if (reasoning["exclude"].boolean().value_or(false)) request.include_reasoning = false;
  static constexpr RefusedField kBudget[] = {{"max_tokens", "", "use max_tokens"}};
  refuse(kBudget, reasoning);
  for (const char* name : {"thinking", "enable_thinking"}) {
    const JsonValue thinking = root[name];
    if (thinking.is_object()) {
      const std::string type = thinking["type"].string().value_or("");
      if (type == "enabled" || type == "adaptive" || type == "auto") request.thinking = true;
      if (type == "disabled") request.thinking = false;
      if (type != "enabled" && type != "disabled" && type != "auto" && type != "adaptive") {
        thinking["type"].complain("enabled or disabled");
      }
    } else if (const auto on = thinking.boolean()) {
      request.thinking = *on;
    }
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
  request.input.tools = read_chat_tools(root["tools"]);
  read_prompt_end(root, request.input);
  request.input.template_kwargs_json = read_template_kwargs(root["chat_template_kwargs"]);
  read_tool_choice(root["tool_choice"], request);
  if (request.tool_choice == ToolChoice::kNone) request.input.tools.clear();
  request.parallel_tool_calls = root["parallel_tool_calls"].boolean().value_or(true);
  read_response_format(root["response_format"], request);
  read_guided_output(root, request);
  read_thinking(root, request);
  refuse(refused_fields_of_chats(), root);
  if (document->error()) return *document->error();
  log_ignored_fields(
      root, {"messages", "guided_json", "guided_regex", "guided_choice", "structured_outputs",
             "thinking", "enable_thinking", "reasoning_effort", "reasoning", "include_reasoning",
             "continue_final_message", "add_generation_prompt", "tools", "tool_choice",
             "parallel_tool_calls", "response_format", "chat_template_kwargs", "top_logprobs"});
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
  request.input.tools = read_chat_tools(root["tools"]);
  request.input.template_kwargs_json = read_template_kwargs(root["chat_template_kwargs"]);
  read_prompt_end(root, request.input);
  request.add_special_tokens = root["add_special_tokens"].boolean().value_or(false);
  request.return_token_strs = root["return_token_strs"].boolean().value_or(false);
  if (document->error()) return Parsed<TokenizeChatRequest>(*document->error());
  return Parsed<TokenizeChatRequest>(std::move(request));
}

}  // namespace atl::coordinator
