// Anthropic's Messages API: its requests as chats, and answers in its form.
//
// Source: docs.claude.com, "Messages" and "Streaming messages", version 2023-06-01.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "coordinator/api/answer_format.h"
#include "coordinator/api/api_errors.h"

namespace atl::coordinator {

// A body of /v1/messages (or, with `counts`, of /v1/messages/count_tokens, which has no max_tokens)
// as one of /v1/chat/completions. What can't be done is a 400.
Parsed<std::string> chat_of_messages(std::string_view body, bool counts = false);

std::unique_ptr<AnswerFormat> make_messages_format(AnswerHead head, DoorOptions options);

// {"type": "error", "error": {"type", "message"}}
std::string messages_error(const ApiError& error);

}  // namespace atl::coordinator
