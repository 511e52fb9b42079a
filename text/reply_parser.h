// The text that a chat model generates, taken apart: reasoning, content, calls of tools.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "text/reply_marks.h"

namespace atl::text {

struct ReplyDelta {
  struct ToolCall {
    int32_t index = 0;      // of the call within the reply
    std::string name;       // whole, with the call's first delta; else empty
    std::string arguments;  // the next piece of the JSON text
    std::string id;         // with the first delta, if the format has ids ("functions.f:0")
  };
  std::string reasoning;
  std::string content;
  std::vector<ToolCall> tool_calls;
  bool empty() const { return reasoning.empty() && content.empty() && tool_calls.empty(); }
};

struct ReplyParserOptions {
  ReplyFormat format = ReplyFormat::kPlain;
  std::vector<std::string> tools = {};  // that may be called; none: marks of calls are text
  int32_t calls_max = INT32_MAX;        // further calls are left out
  bool reasoning = false;               // take <think>...</think> out
  bool reasoning_open = false;          // the prompt ended inside <think>
  bool calls_in_reasoning = true;       // else their marks are text there
  std::vector<std::string> stop = {};   // none empty; the first one in the content ends the reply
};

// One reply. What push() and finish() return, joined, is the same for any split of the text. Marks
// that are split over pieces are held back until they are decided. One thread.
//
// - Reasoning ends at the first </think>; one <think> at its start and the newlines around it are
//   left out. Without </think> all is reasoning, but for calls. Unless the prompt has opened it
//   (reasoning_open), there is reasoning only if the text starts with <think>, white space aside.
// - What follows is content, byte for byte; only white space alone, before or after calls, is left
//   out. The first stop string in it ends the reply and isn't shown.
// - Calls stand within their section's marks, or without them; in either form of DeepSeek's
//   headers; their names are those of offered tools. Fences and white space around arguments are
//   left out, arguments that are empty become {}, an object within a JSON string (of at most 16
//   KiB) becomes the object. Marks in a string of arguments that are whole JSON belong to it.
// - A call that isn't formed like that is left out beside good ones in its section. Alone it stays
//   text, as do marks in prose: behind a quotation mark or a backtick that opens, or within a code
//   fence.
// - A header that the reply's end cuts is left out; a call whose arguments are cut keeps those that
//   came.
class ReplyParser {
 public:
  explicit ReplyParser(ReplyParserOptions options);
  ~ReplyParser();
  ReplyParser(ReplyParser&&) noexcept;
  ReplyParser& operator=(ReplyParser&&) noexcept;

  // text: well-formed UTF-8, added tokens spelled out. Nothing once it has stopped.
  ReplyDelta push(std::string_view text);
  // No more text: what was held back. cut: the model wasn't at its end.
  ReplyDelta finish(bool cut = false);
  int32_t num_tool_calls() const;
  bool in_reasoning() const;
  bool stopped() const;                    // by a stop string
  const std::string& stop_string() const;  // empty: none
  // Of the text that was pushed: up to where no stop string can begin any more, or up to the one
  // that was found.
  size_t decided_bytes() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace atl::text
