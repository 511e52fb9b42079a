#include "coordinator/api/anthropic.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <vector>

#include "base/check.h"
#include "coordinator/api/api_json.h"
#include "coordinator/api/refused_fields.h"

namespace atl::coordinator {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kBlocksMax = 10'000;

// --- requests ---

// A text, or a list of blocks that are texts.
Json text_of(const JsonValue& content) {
  if (content.is_string()) return *content.string();
  std::string text;
  if (!content.is_array() && !content.missing()) content.complain("a string or an array of blocks");
  for (const JsonValue& block : content.elements(kBlocksMax)) {
    if (block["type"].string() != "text") {
      block["type"].refuse(block["type"].path() + ": this model reads text only", "unsupported");
    }
    text += (text.empty() ? "" : "\n") + block["text"].string().value_or("");
  }
  return text;
}

class MessageReader {
 public:
  void read(const JsonValue& message) {
    const std::string role = message["role"].string().value_or("");
    if (role != "user" && role != "assistant" && role != "system") {
      message["role"].complain("user or assistant");
      return;
    }
    const JsonValue content = message["content"];
    Json turn = {{"role", role}};
    if (content.is_string()) {
      turn["content"] = *content.string();
      chat.push_back(std::move(turn));
      return;
    }
    if (!content.is_array()) content.complain("a string or an array of blocks");
    std::string text;
    for (const JsonValue& block : content.elements(kBlocksMax)) read_block(block, turn, text);
    const bool calls = turn.contains("tool_calls");
    if (calls || role == "assistant" || !text.empty() || content.size() == 0) {
      turn["content"] = text.empty() && calls ? Json(nullptr) : Json(text);
      chat.push_back(std::move(turn));
    }
  }

  Json chat = Json::array();

 private:
  void read_block(const JsonValue& block, Json& turn, std::string& text) {
    const std::string type = block["type"].string().value_or("");
    if (type == "text") {
      text += (text.empty() ? "" : "\n") + block["text"].string().value_or("");
    } else if (type == "tool_use" && turn["role"] == "assistant") {
      const JsonValue input = block["input"];
      turn["tool_calls"].push_back({{"id", block["id"].string().value_or("")},
                                    {"type", "function"},
                                    {"function",
                                     {{"name", block["name"].string().value_or("")},
                                      {"arguments", input.missing() ? "{}" : input.text()}}}});
    } else if (type == "tool_result" && turn["role"] == "user") {
      // A turn of its own, before what the user says in this one.
      chat.push_back({{"role", "tool"},
                      {"tool_call_id", block["tool_use_id"].string().value_or("")},
                      {"content", text_of(block["content"])}});
    } else if (type == "thinking" && turn["role"] == "assistant") {
      turn["reasoning_content"] = block["thinking"].string().value_or("");
    } else if (type != "redacted_thinking") {
      block["type"].refuse(
          fmt::format("{}: this model reads text only, found a block of type \"{}\"",
                      block["type"].path(), type.substr(0, 40)),
          "unsupported");
    }
  }
};

Json read_anthropic_tools(const JsonValue& tools) {
  Json out = Json::array();
  if (!tools.missing() && !tools.is_array()) tools.complain("an array");
  for (const JsonValue& tool : tools.elements(kToolsMax)) {
    const auto type = tool["type"].string();
    if (type && *type != "custom") {
      tool["type"].refuse(tool["type"].path() + ": only tools of the client are supported",
                          "unsupported");
    }
    Json function = {{"name", tool["name"].string().value_or("")}};
    if (const auto text = tool["description"].string()) function["description"] = *text;
    if (!tool["input_schema"].missing()) {
      function["parameters"] = Json::parse(tool["input_schema"].text());
    }
    out.push_back({{"type", "function"}, {"function", std::move(function)}});
  }
  return out;
}

void read_tool_choice(const JsonValue& choice, Json& chat) {
  if (choice.missing()) return;
  const std::string type = choice["type"].string().value_or("");
  if (type == "tool") {
    chat["tool_choice"] = {{"type", "function"},
                           {"function", {{"name", choice["name"].string().value_or("")}}}};
  } else if (type == "auto" || type == "none" || type == "any") {
    chat["tool_choice"] = type == "any" ? "required" : type;
  } else {
    choice["type"].complain("auto, any, tool or none");
  }
  if (choice["disable_parallel_tool_use"].boolean().value_or(false)) {
    chat["parallel_tool_calls"] = false;
  }
}

constexpr std::string_view kReadOfMessages[] = {"max_tokens",
                                                "system",
                                                "messages",
                                                "tools",
                                                "tool_choice",
                                                "metadata",
                                                "stop",
                                                "stop_sequences",
                                                "output_config",
                                                "output_format",
                                                "mcp_servers",
                                                "container",
                                                "context_management",
                                                "n",
                                                "logprobs",
                                                "top_logprobs",
                                                "cache_control"};

// Of the edits of a prompt, those that keep all of it.
void refuse_edits(const JsonValue& edits) {
  for (const JsonValue& edit : edits.elements(kBlocksMax)) {
    const std::string type = edit["type"].string().value_or("");
    const JsonValue keep = edit["keep"];
    if (type.starts_with("clear_thinking") && keep.is_string() && *keep.string() == "all") continue;
    edit.refuse(edit.path() + ": not supported; send the messages that count", "unsupported");
  }
}

// --- answers ---

// The type of an error by its status.
std::string_view error_type(int status) {
  switch (status) {
    case 400:
      return "invalid_request_error";
    case 401:
      return "authentication_error";
    case 403:
      return "permission_error";
    case 404:
      return "not_found_error";
    case 413:
      return "request_too_large";
    case 429:
      return "rate_limit_error";
    case 503:
      return "overloaded_error";
    case 504:
      return "timeout_error";
    default:
      return "api_error";
  }
}

Json input_of(const std::string& arguments) {
  if (arguments.empty()) return Json::object();  // cut before them
  Json json = Json::parse(arguments, nullptr, false);
  if (json.is_object()) return json;
  return {{"invalid_json", arguments}};  // cut by max_tokens
}

class MessagesFormat final : public AnswerFormat {
 public:
  MessagesFormat(AnswerHead head, DoorOptions options)
      : head_(std::move(head)), options_(std::move(options)) {}

  bool names_events() const override { return true; }
  std::string error(const ApiError& error) override { return messages_error(error); }

  std::string open(size_t) override {
    Json message = message_json({.prompt_tokens = options_.prompt_tokens});
    return dump({{"type", "message_start"}, {"message", std::move(message)}});
  }

  std::string chunk(size_t, const ChoiceDelta& delta) override {
    std::string out;
    if (!delta.reply.reasoning.empty() && options_.reasoning) {
      enter(Block::kThinking, {{"type", "thinking"}, {"thinking", ""}, {"signature", ""}}, out);
      add_delta({{"type", "thinking_delta"}, {"thinking", delta.reply.reasoning}}, out);
    }
    if (!delta.reply.content.empty()) {
      enter(Block::kText, {{"type", "text"}, {"text", ""}}, out);
      add_delta({{"type", "text_delta"}, {"text", delta.reply.content}}, out);
    }
    for (const auto& call : delta.reply.tool_calls) {
      if (!call.name.empty()) {
        close(out);
        enter(Block::kTool,
              {{"type", "tool_use"},
               {"id", options_.call_ids.of(call, "toolu_")},
               {"name", call.name},
               {"input", Json::object()}},
              out);
      }
      if (call.arguments.empty()) continue;
      add_delta({{"type", "input_json_delta"}, {"partial_json", call.arguments}}, out);
    }
    keep_end(delta);
    return out;
  }

  std::string usage_chunk(const AnswerUsage&) override { return {}; }

  std::string ending(const AnswerUsage& usage, bool) override {
    std::string out;
    close(out);
    Json usage_json = usage_of(usage);
    add_line({{"type", "message_delta"},
              {"delta", {{"stop_reason", stop_reason_}, {"stop_sequence", stop_sequence_}}},
              {"usage", std::move(usage_json)}},
             out);
    add_line({{"type", "message_stop"}}, out);
    return out;
  }

  void keep(size_t, const ChoiceDelta& delta) override {
    if (!delta.reply.reasoning.empty() && options_.reasoning) {
      text_block("thinking") += delta.reply.reasoning;
    }
    if (!delta.reply.content.empty()) text_block("text") += delta.reply.content;
    for (const auto& call : delta.reply.tool_calls) {
      if (!call.name.empty()) {
        blocks_.push_back({"tool_use", "", call.name, options_.call_ids.of(call, "toolu_")});
      }
      CHECK(!blocks_.empty());
      blocks_.back().text += call.arguments;
    }
    keep_end(delta);
  }

  std::string whole(const AnswerUsage& usage) override {
    Json message = message_json(usage);
    for (const Kept& block : blocks_) {
      Json json = {{"type", block.type}};
      if (block.type == "tool_use") {
        json["id"] = block.id;
        json["name"] = block.name;
        json["input"] = input_of(block.text);
      } else {
        json[block.type] = block.text;
        if (block.type == "thinking") json["signature"] = "";
      }
      message["content"].push_back(std::move(json));
    }
    return dump(message);
  }

 private:
  enum class Block { kNone, kThinking, kText, kTool };
  struct Kept {
    std::string type, text, name, id;
  };

  static Json usage_of(const AnswerUsage& usage) {
    return {{"input_tokens", usage.prompt_tokens - usage.cached_tokens},
            {"cache_creation_input_tokens", 0},
            {"cache_read_input_tokens", usage.cached_tokens},
            {"output_tokens", usage.completion_tokens}};
  }

  Json message_json(const AnswerUsage& usage) const {
    return {{"id", head_.id},
            {"type", "message"},
            {"role", "assistant"},
            {"model", head_.model},
            {"content", Json::array()},
            {"stop_reason", stop_reason_},
            {"stop_sequence", stop_sequence_},
            {"usage", usage_of(usage)}};
  }

  static void add_line(const Json& json, std::string& out) {
    out += (out.empty() ? "" : "\n") + dump(json);
  }

  void enter(Block block, Json start, std::string& out) {
    if (open_ == block && block != Block::kTool) return;
    close(out);
    open_ = block;
    add_line(
        {{"type", "content_block_start"}, {"index", index_}, {"content_block", std::move(start)}},
        out);
  }

  void add_delta(Json delta, std::string& out) const {
    add_line({{"type", "content_block_delta"}, {"index", index_}, {"delta", std::move(delta)}},
             out);
  }

  void close(std::string& out) {
    if (open_ == Block::kNone) return;
    if (open_ == Block::kThinking) add_delta({{"type", "signature_delta"}, {"signature", ""}}, out);
    add_line({{"type", "content_block_stop"}, {"index", index_++}}, out);
    open_ = Block::kNone;
  }

  std::string& text_block(const char* type) {
    if (blocks_.empty() || blocks_.back().type != type) blocks_.push_back({type, "", "", ""});
    return blocks_.back().text;
  }

  void keep_end(const ChoiceDelta& delta) {
    if (delta.finish_reason.empty()) return;
    stop_reason_ = delta.finish_reason == "length"       ? "max_tokens"
                   : delta.finish_reason == "tool_calls" ? "tool_use"
                   : delta.stop_string.empty()           ? "end_turn"
                                                         : "stop_sequence";
    if (stop_reason_ == "stop_sequence") stop_sequence_ = delta.stop_string;
  }

  const AnswerHead head_;
  const DoorOptions options_;
  Json stop_reason_, stop_sequence_;
  Block open_ = Block::kNone;
  int index_ = 0;
  std::vector<Kept> blocks_;
};

}  // namespace

Parsed<std::string> chat_of_messages(std::string_view body, bool counts) {
  auto document = JsonDocument::parse(body);
  if (!document) return document.error();
  const JsonValue root = document->root();
  Json chat = Json::object();
  if (const auto model = root["model"].string()) chat["model"] = *model;
  const auto max_tokens = root["max_tokens"].integer(1, INT64_MAX);
  if (max_tokens) chat["max_tokens"] = *max_tokens;
  if (!max_tokens && !counts) root["max_tokens"].complain("an integer from 1");
  MessageReader reader;
  if (!root["system"].missing()) {
    reader.chat.push_back({{"role", "system"}, {"content", text_of(root["system"])}});
  }
  const JsonValue messages = root["messages"];
  if (!messages.is_array() || messages.size() == 0) messages.complain("an array of messages");
  for (const JsonValue& message : messages.elements(kMessagesMax)) reader.read(message);
  // An answer that is begun is gone on with.
  if (!reader.chat.empty() && reader.chat.back()["role"] == "assistant" &&
      !reader.chat.back().contains("tool_calls")) {
    chat["continue_final_message"] = true;
  }
  chat["messages"] = std::move(reader.chat);
  Json tools = read_anthropic_tools(root["tools"]);
  if (!tools.empty()) chat["tools"] = std::move(tools);
  read_tool_choice(root["tool_choice"], chat);
  // What is counted is the prompt, which tools are left out of by "none" alone.
  if (counts && chat.contains("tool_choice") && chat["tool_choice"] != "none") {
    chat.erase("tool_choice");
  }
  if (!root["stop_sequences"].missing()) {
    chat["stop"] = Json::parse(root["stop_sequences"].text());
  }
  if (const auto user = root["metadata"]["user_id"].string()) chat["user"] = *user;
  for (const JsonValue& format : {root["output_config"]["format"], root["output_format"]}) {
    if (format.missing()) continue;
    chat["response_format"] = {
        {"type", "json_schema"},
        {"json_schema", {{"name", "output"}, {"schema", Json::parse(format["schema"].text())}}}};
  }
  refuse(refused_fields_of_messages(), root);
  refuse_edits(root["context_management"]["edits"]);
  pass_on(root, kReadOfMessages, chat);
  if (document->error()) return *document->error();
  return dump(chat);
}

std::unique_ptr<AnswerFormat> make_messages_format(AnswerHead head, DoorOptions options) {
  return std::make_unique<MessagesFormat>(std::move(head), std::move(options));
}

std::string messages_error(const ApiError& error) {
  return dump({{"type", "error"},
               {"error", {{"type", error_type(error.status)}, {"message", error.message}}}});
}

http::HttpResponse to_response(const ApiError& error, std::string_view path) {
  http::HttpResponse response = to_response(error);
  if (path.starts_with("/v1/messages")) response.body = messages_error(error);
  return response;
}

}  // namespace atl::coordinator
