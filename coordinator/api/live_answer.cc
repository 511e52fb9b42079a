#include "coordinator/api/live_answer.h"

#include <algorithm>
#include <limits>
#include <map>

#include "base/check.h"
#include "base/log.h"
#include "storage/io/printable.h"

namespace atl::coordinator {
namespace {

std::unique_ptr<AnswerFormat> make_format(const PreparedGeneration& prepared, AnswerHead head,
                                          const text::Tokenizer& tokenizer) {
  if (prepared.make_format) return prepared.make_format(std::move(head), prepared);
  if (prepared.chat) {
    return make_chat_format(std::move(head), tokenizer,
                            {.num_choices = prepared.choices.size(),
                             .logprobs = prepared.logprobs,
                             .usage_in_chunks = prepared.include_usage,
                             .reasoning = prepared.reasoning,
                             .call_ids = prepared.call_ids});
  }
  CompletionFormatOptions options{.tokens_of_echo = prepared.tokens_of_echo,
                                  .logprobs = prepared.logprobs,
                                  .usage_in_chunks = prepared.include_usage};
  for (const PreparedChoice& choice : prepared.choices) options.echo.push_back(choice.echo);
  return make_completion_format(std::move(head), tokenizer, std::move(options));
}

// The "type" with which the data begins.
std::string_view event_name(std::string_view data) {
  constexpr std::string_view kType = R"({"type":")";
  CHECK(data.starts_with(kType));
  data.remove_prefix(kType.size());
  return data.substr(0, data.find('"'));
}

}  // namespace

LiveAnswer::LiveAnswer(std::shared_ptr<http::HttpExchange> exchange,
                       const PreparedGeneration& prepared, AnswerHead head,
                       const text::Tokenizer& tokenizer, Metrics& metrics, std::string client)
    : exchange_(std::move(exchange)),
      path_(exchange_->request().path),
      client_(std::move(client)),
      stream_(prepared.stream),
      include_usage_(prepared.include_usage),
      prompt_tokens_(prepared.prompt_tokens),
      metrics_(metrics),
      format_(make_format(prepared, std::move(head), tokenizer)) {
  for (const PreparedChoice& choice : prepared.choices) {
    choices_.push_back({.choice = Choice(tokenizer, choice.options),
                        .prompt_index = choice.prompt_index,
                        .first_token = {},
                        .last_token = {}});
  }
}

bool LiveAnswer::push(size_t index, const GenerationEvent& event, Clock::TimePoint now) {
  ChoiceState& state = choices_.at(index);
  if (ended_ || state.choice.ended()) return false;
  state.cached_tokens = event.cached_tokens;
  if (event.token && !state.last_token) metrics_.observe_queued(event.queued_seconds);
  if (event.token) count_token(state, now);
  const ChoiceDelta delta = state.choice.push(event);
  if (!stream_) {
    format_->keep(index, delta);
  } else {
    begin_stream();
    if (!delta.empty()) send(format_->chunk(index, delta));
  }
  if (state.choice.ended() && !ended_) {
    if (index == 0) finish_reason_ = delta.finish_reason;
    if (++num_whole_ == choices_.size()) finish(now);
  }
  return state.choice.ended() && !event.finish;
}

void LiveAnswer::count_token(ChoiceState& state, Clock::TimePoint now) {
  if (!first_token_) {
    first_token_ = now;
    metrics_.observe_first_token(seconds_between(arrived(), now));
  }
  if (state.last_token) metrics_.observe_next_token(seconds_between(*state.last_token, now));
  if (!state.first_token) state.first_token = now;
  state.last_token = now;
}

void LiveAnswer::begin_stream() {
  if (begun_ || ended_) return;
  begun_ = true;
  exchange_->begin_events();
  for (size_t i = 0; i < choices_.size(); ++i) {
    const std::string data = format_->open(i);
    if (!data.empty()) send(data);
  }
}

// A client that is gone is told by http::HttpExchange::on_gone.
void LiveAnswer::send(const std::string& data) {
  for (size_t begin = 0; begin < data.size() && !ended_;) {
    const size_t end = std::min(data.find('\n', begin), data.size());
    const std::string_view line = std::string_view(data).substr(begin, end - begin);
    exchange_->send_event(line, format_->names_events() ? event_name(line) : std::string_view());
    begin = end + 1;
  }
}

void LiveAnswer::finish(Clock::TimePoint now) {
  if (stream_) {
    send(format_->ending(usage(), include_usage_));
    exchange_->end();
  } else {
    http::HttpResponse response;
    response.body = format_->whole(usage());
    exchange_->respond(std::move(response));
  }
  end(finish_reason_, 200, now);
}

void LiveAnswer::fail(const ApiError& error, Clock::TimePoint now) {
  if (ended_) return;
  if (begun_) {
    send(format_->error(error));
    exchange_->end();
  } else {
    exchange_->respond(to_response(error, path_));
  }
  end("error", begun_ ? 200 : error.status, now);
}

void LiveAnswer::abandon(Clock::TimePoint now) {
  if (!ended_) end("abort", 499, now);  // nginx's number for it; nobody reads it
}

void LiveAnswer::end(const std::string& reason, int status, Clock::TimePoint now) {
  ended_ = true;
  metrics_.count_answer(path_, status);
  const AnswerUsage usage = this->usage();
  FinishedRequest finished{.seconds = seconds_between(arrived(), now),
                           .prompt_tokens = usage.prompt_tokens,
                           .generated_tokens = usage.completion_tokens,
                           .finished_reason = reason};
  double seconds = 0;
  int64_t gaps = 0;
  for (const ChoiceState& state : choices_) {
    if (!state.last_token) continue;
    seconds += seconds_between(*state.first_token, *state.last_token);
    gaps += state.choice.num_tokens() - 1;
  }
  if (gaps > 0) finished.time_per_token_s = seconds / static_cast<double>(gaps);
  metrics_.count_finished(finished);
  log_debug(
      "request {} of {}: {} prompt tokens, {} cached, {} generated, first token after {:.3f} "
      "s, {} after {:.3f} s",
      exchange_->request().id, storage::printable(client_), usage.prompt_tokens,
      usage.cached_tokens, usage.completion_tokens,
      first_token_ ? seconds_between(arrived(), *first_token_) : 0.0, reason, finished.seconds);
}

// A prompt counts once. Of its choices the first one computed what the others found in the cache.
AnswerUsage LiveAnswer::usage() const {
  AnswerUsage usage{.prompt_tokens = prompt_tokens_};
  std::map<size_t, int64_t> cached;  // by prompt
  for (const ChoiceState& state : choices_) {
    usage.completion_tokens += state.choice.num_tokens();
    usage.reasoning_tokens += state.choice.reasoning_tokens();
    const auto [it, is_new] = cached.try_emplace(state.prompt_index, state.cached_tokens);
    if (!is_new) it->second = std::min(it->second, state.cached_tokens);
  }
  for (const auto& [prompt, tokens] : cached) usage.cached_tokens += tokens;
  return usage;
}

StatsRequest LiveAnswer::stats(Clock::TimePoint now) const {
  const AnswerUsage usage = this->usage();
  return {.id = exchange_->request().id,
          .client = client_,
          .state = first_token_ ? "running" : "waiting",
          .prompt_tokens = usage.prompt_tokens,
          .cached_tokens = usage.cached_tokens,
          .generated_tokens = usage.completion_tokens,
          .age_seconds = seconds_between(arrived(), now)};
}

}  // namespace atl::coordinator
