// What an operator's Prometheus reads. docs/metrics.md lists every name.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>

#include "coordinator/cluster/cluster_snapshot.h"
#include "coordinator/serving/generation.h"
#include "http/http_server.h"

namespace atl::coordinator {

// One request that ended, with all its choices.
struct FinishedRequest {
  double seconds = 0;            // from its arrival to its end
  double time_per_token_s = -1;  // between first and last token of a choice; < 0: one token
  int64_t prompt_tokens = 0;
  int64_t generated_tokens = 0;
  std::string finished_reason;  // stop, length, tool_calls, abort (the client went away), error
};

// Of the latest ones: how long they were waited for, s.
struct RecentTimes {
  struct Quantiles {
    int64_t count = 0;  // of how many
    double p50 = 0, p99 = 0;
  };
  Quantiles first_token, next_token;
};

// The server's thread.
class Metrics {
 public:
  Metrics(const std::string& model_name, const std::string& version);
  ~Metrics();

  // `path`: one of the served ones, so that strangers can't make series.
  void count_answer(std::string_view path, int status);
  void observe_first_token(double seconds);  // from the request's arrival
  void observe_next_token(double seconds);   // from the one before it
  void observe_prepared(double seconds);     // from the arrival until parsed and tokenized
  void observe_queued(double seconds);       // of a sequence, until it entered the batch
  void count_finished(const FinishedRequest& request);

  RecentTimes recent_times() const;
  // Of the paths below /v1/ so far, by status.
  const std::map<int, int64_t>& answers() const;

  // Everything in Prometheus' text format: what was counted here, and the others' as they are now.
  std::string text(const GenerationStats& generation, const ClusterSnapshot& cluster,
                   const http::HttpStats& http) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace atl::coordinator
