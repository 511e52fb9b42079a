// Messages and tools to the text of a prompt, by the model's chat template.
#pragma once

#include <stop_token>
#include <string>

#include "coordinator/api/api_errors.h"
#include "coordinator/api/chat_request.h"
#include "coordinator/api/message_forms.h"
#include "text/chat_template.h"
#include "text/reply_parser.h"

namespace atl::coordinator {

// What the text of a chat template tells of its model.
struct ChatTraits {
  // Of calls of tools. A template without any marks is taken to mean DeepSeek-V3.1's.
  text::ReplyFormat reply_format = text::ReplyFormat::kDeepseekV31;
  bool reads_tools = false;          // else they are described in the system's text
  bool reads_tool_messages = false;  // else calls and results are spelled out as text
  bool reasoning = false;            // replies may hold <think>...</think>
  CallForms call_forms;              // in which it takes calls of the history
};
ChatTraits chat_traits(const text::ChatTemplate& chat_template);

struct ChatPrompt {
  std::string text;
  bool reasoning_open = false;    // it ends inside <think>
  bool reasoning_closed = false;  // it ends behind </think>, or within an answer
};
// A 400 if the template refuses the messages.
Parsed<ChatPrompt> render_chat(const text::ChatTemplate& chat_template, const ChatTraits& traits,
                               const ChatInput& input, std::stop_token stop = {});

// How many calls of tools the messages hold.
int64_t count_tool_calls(const ChatInput& input);

}  // namespace atl::coordinator
