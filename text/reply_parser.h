// The text that a chat model generates, taken apart: reasoning, content, calls of tools.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace atl::text {

// How a family of models marks the parts of a reply. Source: docs/model.md and the templates.
enum class ReplyFormat : uint8_t {
  kPlain,        // no calls of tools
  kDeepseekV3,   // type, tool_sep, name, fenced JSON; also R1
  kDeepseekV31,  // name, tool_sep, JSON
  kKimiK2,       // functions.NAME:INDEX, argument_begin, JSON
};

// By what the chat template's text contains; kPlain if nothing is recognised.
ReplyFormat recognise_reply_format(std::string_view chat_template);

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
  bool tools = false;           // look for calls; else their marks are content
  bool reasoning = false;       // take <think>...</think> out
  bool reasoning_open = false;  // the prompt ended inside <think>
};

// One reply. What push() and finish() return, joined, is the same for any split of the text. Marks
// that are split over pieces are held back until they are decided. One thread.
//
// - Reasoning ends at the first </think>; one <think> at its start and the newlines around it are
//   left out. Without </think> all is reasoning. Unless the prompt has opened it (reasoning_open),
//   there is reasoning only if the text starts with <think>, white space aside.
// - What follows is content, byte for byte; only white space alone, before or after calls, is left
//   out.
// - Calls stand within their section's marks; fences and white space around arguments are left out.
//   What isn't formed as the format says becomes content, from the last mark that made sense on.
//   A call whose text ends early keeps the arguments that came.
class ReplyParser {
 public:
  explicit ReplyParser(ReplyParserOptions options);
  ~ReplyParser();
  ReplyParser(ReplyParser&&) noexcept;
  ReplyParser& operator=(ReplyParser&&) noexcept;

  // text: well-formed UTF-8, added tokens spelled out.
  ReplyDelta push(std::string_view text);
  ReplyDelta finish();  // no more text: what was held back
  int32_t num_tool_calls() const;
  bool in_reasoning() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace atl::text
