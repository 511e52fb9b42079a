// From a model, machines and an aim to a plan: who keeps which tiles, what that takes, how fast it
// will be, what holds it up, and what would help. Pure functions of data: no clock, no I/O.
//
// Tiles are shared out so that the slowest node of a step is as early as possible, one tile after
// the other to whoever would then be the earliest; no single move of a tile makes a step shorter in
// the end. Layers are not spread over groups of nodes: all nodes have a part of every layer.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "topology/planner/step_time.h"

namespace atl::topology {

enum class Aim : uint8_t { kLatency, kThroughput };

struct PlanRequest {
  PlannedCluster cluster;
  int redundancy = 1;  // nodes that keep each tile in RAM
  Aim aim = Aim::kLatency;
  int sequences = 1;
  double context = 8192;  // tokens of each
  double prompt = 1024;   // of the time to the first token
  bool device_is_required = false;
  // [node] tiles as the user says, -1: to be planned.
  std::vector<int> fixed_tiles;
};

struct DecodeRate {
  int sequences = 0;
  double tokens_per_second = 0;  // all of them together
};

struct Prediction {
  std::vector<DecodeRate> decode;  // 1, 2, 4 to 64 sequences
  double prefill_tokens_per_second = 0;
  double first_token_seconds = 0;  // of a prompt of request.prompt tokens, nothing else served
  double load_seconds = 0;
  StepTime aim;      // the step that the aim is about
  StepTime prefill;  // all chunks of the prompt, summed up
};

struct NodePlan {
  std::string name;
  Share share;
  uint64_t ram_bytes = 0;   // of its process
  uint64_t read_bytes = 0;  // at load
  double hit_rate = 1;
};

// Something else than was asked for, and what it brings. `what` is as a person says it.
struct Change {
  std::string what;
  double before = 0, after = 0;  // tokens per second at the aim; before 0: it makes a plan possible
};

struct Plan {
  bool fits = false;
  std::string why_not;             // one line: what is missing where
  std::vector<std::string> ways;   // smallest changes that make it possible, if it doesn't fit
  std::vector<NodePlan> nodes;     // as asked for, also of a plan that doesn't fit
  uint64_t coordinator_bytes = 0;  // RAM of its process, experts of its own included
  uint64_t device_bytes = 0;       // 0: it computes on its CPU
  std::string device_note;         // why a GPU that is there isn't used
  int groups = 1;
  int rows_max = 0;  // of a step of a prompt: the fastest that fits
  Prediction predicted;
  std::string bottleneck;       // "n3: drives"
  double bottleneck_share = 0;  // of the step that the aim is about
  std::vector<Change> changes;  // the three that help most, best first
};

// Another way to hold the same model, such as `numerics.format: int4`.
struct Alternative {
  std::string what;
  ModelShape model;
};

// Without bottleneck, ways and changes; and with them.
Plan plan_shares(const PlanRequest& request);
Plan make_plan(const PlanRequest& request, const std::vector<Alternative>& alternatives);

// Tokens per second at the aim: of one sequence, or of all.
double aim_tokens_per_second(const PlanRequest& request, const StepTime& step);
// The step that the aim is about.
StepRows aim_rows(const PlanRequest& request);

// The most tiles, own ones and standbys, that a node's RAM holds; num_tiles if it is not bounded.
int tiles_in_ram(const ModelShape& model, const PlannedMachine& node);

}  // namespace atl::topology
