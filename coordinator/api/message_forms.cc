#include "coordinator/api/message_forms.h"

#include <array>
#include <nlohmann/json.hpp>
#include <string_view>

#include "base/json_reader.h"

namespace atl::coordinator {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::string_view kTool = "atoll_probe_tool", kKey = "atoll_probe_key",
                           kText = "atoll_probe_text";
constexpr std::array<CallForm, 4> kForms = {
    {{false, false}, {true, false}, {false, true}, {true, true}}};
constexpr int kArgumentsDepthMax = 100;

// nullopt: the text is no object.
std::optional<Json> object_of(const std::string& text) {
  auto json =
      read_json(text, {.depth_max = kArgumentsDepthMax, .bytes_max = 64 + 32 * text.size()});
  if (!json || !json->is_object()) return std::nullopt;
  return std::move(*json);
}

Json call_json(const ChatMessage::ToolCall& call, bool as_object) {
  Json json = call.json.empty() ? Json::object() : Json::parse(call.json);
  json["id"] = call.id;
  json["type"] = "function";
  Json& function = json["function"];
  function["name"] = call.name;
  auto object = as_object ? object_of(call.arguments) : std::nullopt;
  function["arguments"] = object ? std::move(*object) : Json(call.arguments);
  return json;
}

Json message_json(const ChatMessage& message, CallForm form) {
  const bool silent = !message.content || message.content->empty();
  const bool calls = !message.tool_calls.empty();
  Json content = message.content ? Json(*message.content) : Json(nullptr);
  if (calls && silent) content = form.null_content ? Json(nullptr) : Json("");
  Json json = {{"role", message.role}, {"content", std::move(content)}};
  const Json more = Json::parse(message.more_json);
  for (const auto& [key, value] : more.items()) json[key] = value;
  if (!message.name.empty()) json["name"] = message.name;
  if (!message.tool_call_id.empty()) json["tool_call_id"] = message.tool_call_id;
  for (const ChatMessage::ToolCall& call : message.tool_calls) {
    json["tool_calls"].push_back(call_json(call, form.object_arguments));
  }
  return json;
}

// A conversation with one call in it, as OpenAI's clients send it.
std::vector<ChatMessage> probe_messages(std::string_view text) {
  std::vector<ChatMessage> messages(3);
  messages[0].role = "user";
  messages[0].content = "hi";
  messages[1].role = "assistant";
  messages[1].content = text;
  ChatMessage::ToolCall& call = messages[1].tool_calls.emplace_back();
  call.id = "functions." + std::string(kTool) + ":0";
  call.name = kTool;
  call.arguments = Json({{kKey, "x"}}).dump();
  messages[2].role = "tool";
  messages[2].content = "17";
  messages[2].tool_call_id = call.id;
  return messages;
}

std::string rendered(const text::ChatTemplate& chat_template, std::string_view text,
                     CallForm form) {
  Json variables = {{"add_generation_prompt", true}};
  Json& list = variables["messages"] = Json::array();
  for (const ChatMessage& message : probe_messages(text)) {
    list.push_back(message_json(message, form));
  }
  const auto out = chat_template.render(variables.dump());
  return out ? *out : std::string();
}

// The key stands there as a key of JSON: not escaped as a text within a text, nor as Python spells
// a dictionary.
bool shows_call(const std::string& prompt) {
  const auto has = [&](const std::string& text) { return prompt.find(text) != prompt.npos; };
  const std::string key(kKey);
  return has(std::string(kTool)) && has(key) && !has("\\\"" + key) && !has("'" + key);
}

}  // namespace

bool CallForms::any() const {
  return renders[0][0] || renders[0][1] || renders[1][0] || renders[1][1];
}

CallForm CallForms::nearest(CallForm wanted) const {
  const bool null = wanted.null_content, object = wanted.object_arguments;
  const CallForm order[] = {wanted, {!null, object}, {null, !object}, {!null, !object}};
  for (const CallForm& form : order) {
    if (renders[form.null_content][form.object_arguments]) return form;
  }
  return wanted;
}

CallForms probe_call_forms(const text::ChatTemplate& chat_template) {
  CallForms forms;
  for (const CallForm& form : kForms) {
    forms.renders[form.null_content][form.object_arguments] =
        shows_call(rendered(chat_template, "", form));
  }
  if (!forms.any()) return forms;
  const std::string beside = rendered(chat_template, kText, forms.nearest({}));
  forms.loses_call_beside_text = !beside.empty() && !shows_call(beside);
  return forms;
}

CallForm form_of(const ChatMessage& message) {
  return {.null_content = !message.content,
          .object_arguments =
              !message.tool_calls.empty() && message.tool_calls.front().arguments_are_object};
}

std::string messages_json(std::span<const ChatMessage> messages, const CallForms& forms,
                          const CallForm* instead) {
  Json list = Json::array();
  for (const ChatMessage& message : messages) {
    const CallForm form = instead != nullptr ? *instead : forms.nearest(form_of(message));
    const bool speaks = message.content && !message.content->empty();
    if (message.tool_calls.empty() || !speaks || !forms.loses_call_beside_text) {
      list.push_back(message_json(message, form));
      continue;
    }
    // Text and calls one after the other, so that the template shows both.
    ChatMessage said = message, called = message;
    said.tool_calls.clear();
    called.content.reset();
    called.more_json = "{}";
    list.push_back(message_json(said, form));
    list.push_back(message_json(called, forms.nearest({true, form.object_arguments})));
  }
  return list.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace atl::coordinator
