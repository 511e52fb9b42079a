// Requests of other protocols become chats; what is refused of such a chat is said in the words of
// the protocol that the client speaks.
#pragma once

#include "coordinator/api/api_errors.h"

namespace atl::coordinator {

// "tools[0].function.parameters: ..." becomes "tools[0].parameters: ...", `max_tokens`
// `max_output_tokens`, and so on; the messages are the `input`.
ApiError in_words_of_responses(ApiError error);
// "tools[0].input_schema: ...", `stop_sequences`, and so on.
ApiError in_words_of_messages(ApiError error);

}  // namespace atl::coordinator
