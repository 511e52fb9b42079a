// A conversation with a model behind /v1/chat/completions.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "base/result.h"
#include "http/http_client.h"

namespace atl::cli {

struct ChatOptions {
  http::HttpUrl url;       // a path /v1 at its end is left out
  std::string model;       // empty: the first that the server names
  std::string system;      // empty: none
  std::string api_key;     // empty: none is sent
  int64_t max_tokens = 0;  // of a reply; 0: the server's default
  std::optional<double> temperature, top_p;
  std::optional<uint64_t> seed;
};

struct ChatReply {
  std::string text;           // without the reasoning
  std::string finish_reason;  // "stop", "length", ...; empty if stopped
  bool stopped = false;       // by stop()
};

// One thread, but for stop().
class ChatSession {
 public:
  using OnText = std::function<void(std::string_view)>;  // valid UTF-8, some characters at a time

  // Asks the server for its model. LoadError says what it answered.
  explicit ChatSession(const ChatOptions& options);
  ~ChatSession();

  const std::string& model() const;
  // Sends the conversation with this at its end. What comes is told as it comes and kept as the
  // reply, also if it was stopped; after an error the conversation is as before.
  Result<ChatReply> ask(const std::string& text, const OnText& on_reasoning, const OnText& on_text);
  // Any thread: ends the reply under way, if any, and closes its connection.
  void stop();

  void clear();  // all but the system message
  void set_system(const std::string& text);
  // {"model", "messages"}, indented.
  std::string to_json() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace atl::cli
