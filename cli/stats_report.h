// The figures of a run, for people (a table on stderr) and for scripts (JSON).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/cache_stats.h"
#include "coordinator/serving/generate.h"
#include "deployment/deployment.h"

namespace atl::cli {

struct RunFigures {
  int64_t prompt_tokens = 0;
  int64_t generated_tokens = 0;
  double prefill_seconds = 0;  // until the first token
  double decode_seconds = 0;   // of the other tokens

  double prefill_tokens_per_second() const;
  double decode_tokens_per_second() const;  // 0 with fewer than two tokens
};

RunFigures run_figures(int64_t prompt_tokens, const coordinator::GenerateResult& result);
// One JSON object with the figures, text, tokens, finish_reason ("stop" or "length"), load_seconds,
// this process's threads and memory, prefetch and nodes with their caches.
std::string run_json(const RunFigures& figures, const std::string& text,
                     const coordinator::GenerateResult& result, deployment::Deployment& deployment);
// The time within which the share q of the experts were read: the upper end of the histogram's
// bucket (base/cache_stats.h) that holds that one, or its lower end if it is the last, open one.
struct ReadLatency {
  double seconds = 0;
  bool at_least = false;  // the last bucket
};
// nullopt: nothing was read. q in (0, 1].
std::optional<ReadLatency> read_latency(const ExpertCacheStats& stats, double q);
double stall_seconds(const ExpertCacheStats& stats);  // of all layers

// What each node has and did, in tables of at most 80 columns.
std::string nodes_text(const std::vector<deployment::Deployment::NodeReport>& nodes);
// Likewise what each node's cache of experts did, and what hints were worth; "" if no node has a
// cache that was asked for anything.
std::string cache_text(const std::vector<deployment::Deployment::NodeReport>& nodes,
                       const coordinator::HintStats& hints, uint64_t num_steps);
// The nodes with their caches, and the hints, as they stand in run_json().
std::string nodes_json(deployment::Deployment& deployment);

// Speed, time per part of a step, work of each node.
void print_stats(const RunFigures& figures, deployment::Deployment& deployment);
void print_step_times(const coordinator::StepTimes& times);
void print_nodes(deployment::Deployment& deployment);

}  // namespace atl::cli
