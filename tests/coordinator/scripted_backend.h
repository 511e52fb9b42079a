// A GenerationBackend that says what a test tells it to.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/serving/generation.h"
#include "text/tokenizer.h"

namespace atl::test {

// Each request is answered at once with `reply`, one event per token, then the stop token; with a
// constraint by random tokens that it allows. Or, with manual(), by what the test sends.
//
// Any thread.
class ScriptedBackend final : public coordinator::GenerationBackend {
 public:
  ScriptedBackend(const text::Tokenizer& tokenizer, int32_t stop_id)
      : tokenizer_(tokenizer), stop_id_(stop_id) {}

  // What runs a task where the api lives, after what it does now; and the api's on_events().
  std::function<void(std::function<void()>)> post;
  EventSink sink;

  // One token for each byte, so that characters and words are split wherever they can be.
  void say_bytes(const std::string& text) {
    std::vector<int32_t> ids;
    for (const char byte : text) ids.push_back(id_of_byte(byte));
    say_ids(std::move(ids));
  }
  void say(const std::string& text) { say_ids(*tokenizer_.encode(text)); }
  void say_ids(std::vector<int32_t> ids) {
    const std::lock_guard lock(mutex_);
    reply_ = std::move(ids);
  }
  // The reply of each choice: by GenerationRequest::sample.
  void say_each(std::vector<std::string> texts) {
    const std::lock_guard lock(mutex_);
    each_.clear();
    for (const std::string& text : texts) each_.push_back(*tokenizer_.encode(text));
  }
  void fail_submits(Error error) {
    const std::lock_guard lock(mutex_);
    submit_error_ = std::move(error);
  }
  // After this many tokens each request ends with the error.
  void fail_after(int64_t tokens, Error error) {
    const std::lock_guard lock(mutex_);
    fail_after_ = tokens;
    event_error_ = std::move(error);
  }
  void manual() {
    const std::lock_guard lock(mutex_);
    manual_ = true;
  }
  void set_stats(coordinator::GenerationStats stats) {
    const std::lock_guard lock(mutex_);
    stats_ = std::move(stats);
  }
  void set_cached_tokens(int64_t tokens) {
    const std::lock_guard lock(mutex_);
    cached_tokens_ = tokens;
  }

  static coordinator::GenerationEvent event_of(
      coordinator::GenerationId id, std::optional<int32_t> token,
      std::optional<coordinator::FinishReason> finish = std::nullopt) {
    coordinator::GenerationEvent event;
    event.id = id;
    event.token = token;
    event.finish = finish;
    return event;
  }
  static coordinator::GenerationEvent error_of(coordinator::GenerationId id, Error error) {
    coordinator::GenerationEvent event;
    event.id = id;
    event.error = std::move(error);
    return event;
  }
  void send(coordinator::GenerationEvent event) {
    post([this, event = std::move(event)] { sink({event}); });
  }

  struct Submitted {
    coordinator::GenerationId id;
    std::vector<int32_t> prompt;
    int64_t max_tokens, min_tokens;
    model::SamplingParams sampling;
    model::LogitsProcessor logits;
    uint64_t sample;
    std::vector<int32_t> stop_ids;
    int32_t top_logprobs, prompt_logprobs;
    bool constrained;
    std::string client, request_id;
    std::optional<Clock::TimePoint> deadline;
  };
  // All but the canaries.
  std::vector<Submitted> submitted() const {
    const std::lock_guard lock(mutex_);
    return submitted_;
  }
  std::vector<coordinator::GenerationId> cancelled() const {
    const std::lock_guard lock(mutex_);
    return cancelled_;
  }
  int64_t canaries() const {
    const std::lock_guard lock(mutex_);
    return canaries_;
  }

  Result<coordinator::GenerationId> submit(coordinator::GenerationRequest request) override {
    const std::lock_guard lock(mutex_);
    if (submit_error_) return *submit_error_;
    const coordinator::GenerationId id{next_id_++};
    if (request.client == "canary") {
      ++canaries_;
      if (!event_error_) {
        send(event_of(id, stop_id_, coordinator::FinishReason::kLength));
      } else {
        send(error_of(id, *event_error_));
      }
      return id;
    }
    submitted_.push_back({id, request.prompt, request.max_tokens, request.min_tokens,
                          request.sampling, request.logits, request.sample, request.stop_ids,
                          request.top_logprobs, request.prompt_logprobs,
                          request.constraint != nullptr, request.client, request.request_id,
                          request.deadline});
    if (!manual_) play(id, request);
    return id;
  }
  void cancel(coordinator::GenerationId id) override {
    const std::lock_guard lock(mutex_);
    cancelled_.push_back(id);
  }
  coordinator::GenerationStats stats() const override {
    const std::lock_guard lock(mutex_);
    return stats_;
  }

  int32_t id_of_byte(char byte) const {
    for (int32_t id = 0; id < tokenizer_.id_end(); ++id) {
      if (tokenizer_.token_bytes(id) == std::string_view(&byte, 1)) return id;
    }
    return -1;
  }

 private:
  coordinator::GenerationEvent token_event(coordinator::GenerationId id, int32_t token,
                                           const coordinator::GenerationRequest& request) const {
    coordinator::GenerationEvent event = event_of(id, token);
    event.cached_tokens = cached_tokens_;
    event.queued_seconds = 0.25;
    if (request.top_logprobs >= 0) event.logprob = -0.5f;
    event.top = top_of(token, request.top_logprobs);
    return event;
  }

  static std::vector<coordinator::TokenLogprob> top_of(int32_t token, int32_t n) {
    std::vector<coordinator::TokenLogprob> top;
    for (int32_t i = 0; i < n; ++i) {
      top.push_back({.id = token + i, .logprob = -0.5f - static_cast<float>(i)});
    }
    return top;
  }
  static void score_prompt(const coordinator::GenerationRequest& request,
                           coordinator::GenerationEvent& event) {
    if (request.prompt_logprobs < 0) return;
    for (size_t i = 1; i < request.prompt.size(); ++i) {
      event.prompt.push_back(
          {.logprob = -0.5, .top = top_of(request.prompt[i], request.prompt_logprobs)});
    }
  }

  void play(coordinator::GenerationId id, coordinator::GenerationRequest& request) {
    if (request.constraint) {
      play_constrained(id, request);
      return;
    }
    const std::vector<int32_t>& reply =
        each_.empty() ? reply_ : each_.at(request.sample % each_.size());
    int64_t num_tokens = 0;
    for (const int32_t token : reply) {
      if (event_error_ && num_tokens == fail_after_) break;
      coordinator::GenerationEvent event = token_event(id, token, request);
      if (num_tokens == 0) score_prompt(request, event);
      const bool last = ++num_tokens == request.max_tokens;
      if (last) event.finish = coordinator::FinishReason::kLength;
      send(event);
      if (last) return;
    }
    if (event_error_) {
      send(error_of(id, *event_error_));
      return;
    }
    coordinator::GenerationEvent event = token_event(id, stop_id_, request);
    event.finish = coordinator::FinishReason::kStop;
    send(event);
  }

  // As a model with random weights would.
  void play_constrained(coordinator::GenerationId id, coordinator::GenerationRequest& request) {
    std::mt19937_64 random(request.sampling.seed + request.sample);
    for (int64_t left = request.max_tokens; left > 0; --left) {
      std::vector<uint8_t> allowed(static_cast<size_t>(tokenizer_.id_end()));
      for (int32_t i = 0; i < tokenizer_.id_end(); ++i) allowed[i] = tokenizer_.has_token(i);
      EXPECT_TRUE(request.constraint->mask(left, allowed));
      std::vector<int32_t> ids;
      for (int32_t i = 0; i < tokenizer_.id_end(); ++i) {
        if (allowed[i]) ids.push_back(i);
      }
      const int32_t token = ids.at(random() % ids.size());
      coordinator::GenerationEvent event = token_event(id, token, request);
      const auto& stops = request.stop_ids;
      const bool stop = std::find(stops.begin(), stops.end(), token) != stops.end();
      if (!stop) request.constraint->accept(token);
      if (stop || request.constraint->finished()) {
        event.finish = coordinator::FinishReason::kStop;
      } else if (left == 1) {
        event.finish = coordinator::FinishReason::kLength;
      }
      send(event);
      if (event.finish) return;
    }
  }

  const text::Tokenizer& tokenizer_;
  const int32_t stop_id_;
  mutable std::mutex mutex_;
  std::vector<int32_t> reply_;
  std::vector<std::vector<int32_t>> each_;
  std::optional<Error> submit_error_, event_error_;
  int64_t fail_after_ = 0;
  int64_t cached_tokens_ = 0;
  bool manual_ = false;
  coordinator::GenerationStats stats_;
  std::vector<Submitted> submitted_;
  std::vector<coordinator::GenerationId> cancelled_;
  int64_t canaries_ = 0;
  uint64_t next_id_ = 1;
};

}  // namespace atl::test
