// One request for text under way: the choices of its answer, and the client that waits for it.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "coordinator/api/answer_format.h"
#include "coordinator/api/api_errors.h"
#include "coordinator/api/choice.h"
#include "coordinator/api/metrics.h"
#include "coordinator/api/request_preparer.h"
#include "coordinator/api/stats_json.h"
#include "coordinator/serving/generation.h"
#include "http/http_server.h"

namespace atl::coordinator {

// The server's thread. Borrows the tokenizer and the metrics.
//
// It ends once: by its last choice, by fail(), or by abandon(). What comes later does nothing.
class LiveAnswer {
 public:
  // Takes from `prepared` all but the choices' requests, which are the backend's.
  LiveAnswer(std::shared_ptr<http::HttpExchange> exchange, const PreparedGeneration& prepared,
             AnswerHead head, const text::Tokenizer& tokenizer, Metrics& metrics,
             std::string client);

  // An event of a choice's sequence. True: the sequence has to be cancelled, its choice is whole.
  bool push(size_t choice, const GenerationEvent& event, Clock::TimePoint now);
  // The header of a stream and what opens it, if that wasn't sent yet.
  void begin_stream();
  void fail(const ApiError& error, Clock::TimePoint now);
  void abandon(Clock::TimePoint now);  // the client is gone

  bool ended() const { return ended_; }
  bool streams() const { return stream_; }
  Clock::TimePoint arrived() const { return exchange_->request().arrived; }
  StatsRequest stats(Clock::TimePoint now) const;

  std::vector<GenerationId> sequences;  // that were submitted for it

 private:
  struct ChoiceState {
    Choice choice;
    size_t prompt_index;
    int64_t cached_tokens = 0;
    std::optional<Clock::TimePoint> first_token, last_token;
  };

  void count_token(ChoiceState& state, Clock::TimePoint now);
  void send(const std::string& data);
  void finish(Clock::TimePoint now);
  void end(const std::string& reason, int status, Clock::TimePoint now);
  AnswerUsage usage() const;

  const std::shared_ptr<http::HttpExchange> exchange_;
  const std::string path_;
  const std::string client_;
  const bool stream_;
  const bool include_usage_;
  const int64_t prompt_tokens_;
  Metrics& metrics_;
  const std::unique_ptr<AnswerFormat> format_;
  std::vector<ChoiceState> choices_;
  size_t num_whole_ = 0;       // choices
  std::string finish_reason_;  // of the first choice
  std::optional<Clock::TimePoint> first_token_;
  bool begun_ = false;
  bool ended_ = false;
};

}  // namespace atl::coordinator
