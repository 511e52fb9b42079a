// OpenAI's Responses API: its requests as chats, and answers in its form.
//
// Source: platform.openai.com/docs/api-reference/responses and .../responses-streaming.
#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>

#include "coordinator/api/answer_format.h"
#include "coordinator/api/api_errors.h"

namespace atl::coordinator {

// Conversations that previous_response_id may go on with: the latest ones, within a bound of bytes.
// Any thread.
class ResponseStore {
 public:
  explicit ResponseStore(size_t bytes_max) : bytes_max_(bytes_max) {}

  // messages_json: an array of a chat's messages, the answer included. One that is larger than all
  // the room is not kept.
  void keep(const std::string& id, const std::string& owner, std::string messages_json);
  // nullopt: it is not there (any more), or is another owner's.
  std::optional<std::string> find(const std::string& id, const std::string& owner);
  size_t bytes() const;

 private:
  struct Entry {
    std::string id, owner, messages_json;
    size_t bytes() const { return id.size() + owner.size() + messages_json.size() + 200; }
  };
  using Entries = std::list<Entry>;

  const size_t bytes_max_;
  mutable std::mutex mutex_;
  Entries entries_;  // last used first
  std::unordered_map<std::string, Entries::iterator> by_id_;
  size_t bytes_ = 0;
};

// What of a request its answer repeats and needs.
struct ResponseRequest {
  std::string chat_body;      // as one of /v1/chat/completions
  std::string messages_json;  // its messages, for the store
  std::string echo_json;      // an object: instructions, tools, temperature, ...
  bool store = true;
};
// A body of /v1/responses. `owner`: of the responses that it may go on with.
Parsed<ResponseRequest> chat_of_responses(std::string_view body, const std::string& owner,
                                          ResponseStore& store);

// The answer; a stored one is kept when it is whole. Borrows the store.
std::unique_ptr<AnswerFormat> make_responses_format(AnswerHead head, ResponseRequest request,
                                                    std::string owner, ResponseStore& store,
                                                    DoorOptions options);

}  // namespace atl::coordinator
