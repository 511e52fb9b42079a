// Answers of /v1/chat/completions and /v1/completions as JSON, whole or in chunks.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "coordinator/api/api_errors.h"
#include "coordinator/api/choice.h"
#include "text/tokenizer.h"

namespace atl::coordinator {

struct AnswerHead {
  std::string id;       // "chatcmpl-..." or "cmpl-..."
  int64_t created = 0;  // Unix time, s
  std::string model;
  std::string system_fingerprint;
};

struct AnswerUsage {
  int64_t prompt_tokens = 0;
  int64_t cached_tokens = 0;  // of these
  int64_t completion_tokens = 0;
  int64_t reasoning_tokens = 0;  // of these
};

// One answer under way: is told each delta of each choice once, in order. Borrows the tokenizer.
// What is streamed are lines, each the data of an event; none: no event.
class AnswerFormat {
 public:
  virtual ~AnswerFormat() = default;
  // Data of an event that opens a choice's stream; empty: none.
  virtual std::string open(size_t choice) = 0;
  // Data of the event that tells this delta.
  virtual std::string chunk(size_t choice, const ChoiceDelta& delta) = 0;
  virtual std::string usage_chunk(const AnswerUsage& usage) = 0;
  // What a stream ends with.
  virtual std::string ending(const AnswerUsage& usage, bool include_usage);
  // What it ends with instead.
  virtual std::string error(const ApiError& error) { return to_json(error); }
  // Events are named by the "type" of their data.
  virtual bool names_events() const { return false; }
  // Instead of chunks: keeps the delta for whole().
  virtual void keep(size_t choice, const ChoiceDelta& delta) = 0;
  virtual std::string whole(const AnswerUsage& usage) = 0;
};

// Ids of an answer's calls: as Kimi-K2 wants them back, "functions.NAME:INDEX", counted on from the
// calls that the prompt holds; else random ones.
struct CallIds {
  bool kimi = false;
  int64_t num_before = 0;
  std::string of(const text::ReplyDelta::ToolCall& call, std::string_view prefix) const;
};

struct ChatFormatOptions {
  size_t num_choices = 1;
  bool logprobs = false;
  bool usage_in_chunks = false;  // "usage": null in all but the last one
  bool reasoning = true;         // else it is left out
  CallIds call_ids = {};
};
std::unique_ptr<AnswerFormat> make_chat_format(AnswerHead head, const text::Tokenizer& tokenizer,
                                               ChatFormatOptions options);

struct CompletionFormatOptions {
  std::vector<std::string> echo = {};  // [choices] text put first; empty strings without echo
  bool tokens_of_echo = false;         // come with the others
  bool logprobs = false;
  bool usage_in_chunks = false;
};
std::unique_ptr<AnswerFormat> make_completion_format(AnswerHead head,
                                                     const text::Tokenizer& tokenizer,
                                                     CompletionFormatOptions options);

// Of the other APIs' answers.
struct DoorOptions {
  int64_t prompt_tokens = 0;
  bool reasoning = true;  // else it is left out
  CallIds call_ids = {};
};

// 24 random letters and digits behind the prefix.
std::string random_id(std::string_view prefix);

}  // namespace atl::coordinator
