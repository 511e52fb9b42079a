#include "coordinator/api/choice.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "base/check.h"

namespace atl::coordinator {
namespace {

void append(text::ReplyDelta more, text::ReplyDelta& to) {
  to.reasoning += more.reasoning;
  to.content += more.content;
  for (auto& call : more.tool_calls) {
    // Pieces of one call become one.
    if (!to.tool_calls.empty() && to.tool_calls.back().index == call.index && call.name.empty()) {
      to.tool_calls.back().arguments += call.arguments;
    } else {
      to.tool_calls.push_back(std::move(call));
    }
  }
}

text::ReplyParserOptions with_stop(const ChoiceOptions& options) {
  text::ReplyParserOptions reply = options.reply;
  reply.stop = options.stop;
  return reply;
}

}  // namespace

Choice::Choice(const text::Tokenizer& tokenizer, ChoiceOptions options)
    : options_(std::move(options)),
      decoder_(tokenizer, options_.special),
      parser_(with_stop(options_)) {}

ChoiceDelta Choice::push(const GenerationEvent& event) {
  CHECK(!event.error);
  ChoiceDelta delta;
  if (ended_) return delta;
  if (event.token) take(event, delta);
  if (parser_.stopped()) {
    end(FinishReason::kStop, delta);
  } else if (event.finish) {
    end(*event.finish, delta);
  }
  return delta;
}

void Choice::take(const GenerationEvent& event, ChoiceDelta& delta) {
  if (num_tokens_ == 0) tell_prompt(event, delta);
  if (options_.prompt_alone) return;
  ++num_tokens_;
  const int32_t id = *event.token;
  const auto& stop_ids = options_.stop_ids;
  if (std::find(stop_ids.begin(), stop_ids.end(), id) != stop_ids.end()) {
    if (options_.echo_top >= 0) {
      delta.tokens.push_back({.id = id, .logprob = event.logprob, .top = event.top});
    }
    return;
  }
  if (parser_.in_reasoning()) ++reasoning_tokens_;
  if (options_.logprobs) {
    pending_tokens_.push_back(
        {.id = id, .logprob = event.logprob, .top = event.top, .text_begin = decoded_bytes_});
  }
  const std::string text = decoder_.push(id);
  decoded_bytes_ += text.size();
  append(parser_.push(text), delta.reply);
  release_tokens(delta);
}

void Choice::tell_prompt(const GenerationEvent& event, ChoiceDelta& delta) const {
  const auto& ids = options_.prompt;
  for (size_t i = 0; i < ids.size(); ++i) {
    const bool known = i > 0 && i - 1 < event.prompt.size();
    ChoiceToken token{.id = ids[i], .logprob = std::numeric_limits<double>::quiet_NaN(), .top = {}};
    if (known) token.logprob = event.prompt[i - 1].logprob;
    const auto add = [&](int32_t top, std::vector<ChoiceToken>& list) {
      if (top < 0) return;
      list.push_back(token);
      if (!known) return;
      const auto& all = event.prompt[i - 1].top;
      list.back().top.assign(all.begin(), all.begin() + std::min<ptrdiff_t>(top, std::ssize(all)));
    };
    add(options_.echo_top, delta.tokens);
    add(options_.prompt_top, delta.prompt);
  }
}

// Tokens that begin in what was released; so none that a stop string cut off.
void Choice::release_tokens(ChoiceDelta& delta) {
  const size_t released = parser_.decided_bytes();
  const auto shown = [&](const ChoiceToken& token) {
    return token.text_begin < released ||
           (token.text_begin == released && decoded_bytes_ == released && !parser_.stopped());
  };
  size_t n = 0;
  while (n < pending_tokens_.size() && shown(pending_tokens_[n])) ++n;
  const auto end = pending_tokens_.begin() + static_cast<std::ptrdiff_t>(n);
  std::move(pending_tokens_.begin(), end, std::back_inserter(delta.tokens));
  pending_tokens_.erase(pending_tokens_.begin(), end);
}

void Choice::end(FinishReason reason, ChoiceDelta& delta) {
  ended_ = true;
  // A character that max_tokens cut is left out, so that a mark that was cut with it is seen as
  // such.
  if (!parser_.stopped() && reason != FinishReason::kLength) {
    const std::string text = decoder_.flush();
    decoded_bytes_ += text.size();
    append(parser_.push(text), delta.reply);
  }
  append(parser_.finish(reason == FinishReason::kLength), delta.reply);
  if (parser_.stopped()) reason = FinishReason::kStop;
  delta.stop_string = parser_.stop_string();
  release_tokens(delta);
  if (reason == FinishReason::kLength) {
    delta.finish_reason = "length";
  } else {
    delta.finish_reason = parser_.num_tool_calls() > 0 ? "tool_calls" : "stop";
  }
}

}  // namespace atl::coordinator
