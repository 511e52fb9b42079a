// One sequence of tokens to one choice of an answer: text, reasoning, calls of tools,
// log probabilities.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "coordinator/serving/generation.h"
#include "text/reply_parser.h"
#include "text/tokenizer.h"

namespace atl::coordinator {

struct ChoiceOptions {
  std::vector<std::string> stop = {};  // of the content
  std::vector<int32_t> stop_ids =
      {};  // as in the GenerationRequest: end the text and are not shown
  text::SpecialTokens special = text::SpecialTokens::kSkip;
  text::ReplyParserOptions reply = {};  // but for its stop strings; a completion is all content
  bool logprobs = false;
  // The prompt's tokens, if they are to be told with their log probabilities.
  std::vector<int32_t> prompt = {};
  // -1, or how many others beside each. Of an echo they come before the answer's tokens, which end
  // with the end token then, as lm-evaluation-harness counts on; else by themselves.
  int32_t echo_top = -1, prompt_top = -1;
  bool prompt_alone = false;  // what is generated is not told
};

struct ChoiceToken {
  int32_t id = 0;
  double logprob = 0;  // NaN: there is none, of a prompt's first token
  std::vector<TokenLogprob> top;
  size_t text_begin = 0;  // bytes of the choice's text before the token's
};

// What one event adds.
struct ChoiceDelta {
  text::ReplyDelta reply;           // `content` of a completion, too
  std::vector<ChoiceToken> tokens;  // with logprobs: those whose text is in, or already was
  std::vector<ChoiceToken> prompt;  // the prompt's, with the first token
  std::string finish_reason;        // empty: it goes on; else stop, length or tool_calls
  std::string stop_string;          // with it: the one that was found
  bool empty() const { return reply.empty() && tokens.empty() && finish_reason.empty(); }
};

// Deltas, joined, are the same for any split into events. One thread. Borrows the tokenizer.
class Choice {
 public:
  Choice(const text::Tokenizer& tokenizer, ChoiceOptions options);

  // An event without an error. Nothing once the choice has ended.
  ChoiceDelta push(const GenerationEvent& event);
  // It has its finish_reason. If that came of a stop string, the sequence still has to be
  // cancelled.
  bool ended() const { return ended_; }

  int64_t num_tokens() const { return num_tokens_; }
  int64_t reasoning_tokens() const { return reasoning_tokens_; }

 private:
  void take(const GenerationEvent& event, ChoiceDelta& delta);
  void tell_prompt(const GenerationEvent& event, ChoiceDelta& delta) const;
  void end(FinishReason reason, ChoiceDelta& delta);
  void release_tokens(ChoiceDelta& delta);

  const ChoiceOptions options_;
  text::StreamDecoder decoder_;
  text::ReplyParser parser_;
  std::vector<ChoiceToken> pending_tokens_;
  size_t decoded_bytes_ = 0;
  int64_t num_tokens_ = 0;
  int64_t reasoning_tokens_ = 0;
  bool ended_ = false;
};

}  // namespace atl::coordinator
