// Bodies of /v1/chat/completions, and of /tokenize with messages.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "coordinator/api/generation_fields.h"

namespace atl::coordinator {

struct ChatMessage {
  struct ToolCall {
    std::string id, name;
    std::string arguments;              // JSON text as the client sent it
    bool arguments_are_object = false;  // it sent an object instead of its text
    std::string json = {};              // the whole call; empty: nothing but the above
  };
  std::string role;                    // system (also for "developer"), user, assistant or tool
  std::optional<std::string> content;  // none only beside tool_calls
  std::string name;                    // empty: not said
  std::string tool_call_id;            // of a tool's message
  std::vector<ToolCall> tool_calls;    // of an assistant's
  std::string more_json = "{}";        // an object: its other fields, which templates may read
};

struct ChatTool {
  std::string name;
  std::string description = {};
  std::string parameters_json = {};  // a JSON Schema; empty: not said
  std::string json;                  // the whole of it as the client sent it
};

// What a chat is rendered from.
struct ChatInput {
  std::vector<ChatMessage> messages;        // at least one
  std::vector<ChatTool> tools;              // that may be called; none with tool_choice "none"
  std::string template_kwargs_json = "{}";  // an object: further variables of the template
  bool add_generation_prompt = true;
  bool continue_final_message = false;  // the last one is an assistant's, to be gone on with
};

enum class ToolChoice : uint8_t { kNone, kAuto, kRequired };
enum class ResponseFormat : uint8_t { kText, kJsonObject, kJsonSchema };

struct ChatRequest {
  GenerationFields fields;
  ChatInput input;
  ToolChoice tool_choice = ToolChoice::kNone;  // kRequired also for a named function, and then
  std::string tool_name;                       // this is the one
  bool parallel_tool_calls = true;
  ResponseFormat response_format = ResponseFormat::kText;
  std::string schema_json;  // kJsonSchema
  GuidedOutput guided;      // instead of response_format
  // What "thinking", "reasoning_effort" and their like ask for; nullopt: nothing.
  std::optional<bool> thinking;
  std::string reasoning_effort;  // for a template that reads it; empty: not said
  bool include_reasoning = true;
};
Parsed<ChatRequest> parse_chat_request(std::string_view body, const RequestLimits& limits);

struct TokenizeChatRequest {
  std::string model;
  ChatInput input;
  bool add_special_tokens = false;
  bool return_token_strs = false;
};
// nullopt: the body has no messages.
std::optional<Parsed<TokenizeChatRequest>> parse_tokenize_chat_request(std::string_view body);

}  // namespace atl::coordinator
