// The figures of a run, for people (a table on stderr) and for scripts (JSON).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cli/deployment.h"
#include "coordinator/generate.h"

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
// this process's threads and memory, and nodes.
std::string run_json(const RunFigures& figures, const std::string& text,
                     const coordinator::GenerateResult& result, Deployment& deployment);
// Speed, time per part of a step, work of each node.
void print_stats(const RunFigures& figures, Deployment& deployment);
void print_step_times(const coordinator::StepTimes& times);
void print_nodes(const std::vector<Deployment::NodeReport>& nodes);

}  // namespace atl::cli
