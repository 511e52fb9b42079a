// One pass of a batch of rows through all layers: the model as the paper writes it.
//
// A row is one token of one sequence at one position. Prefill chunks and decode tokens are the same
// thing: rows of any sequences in any mix, each attending to its own sequence's cache up to itself.
// A row's result depends on its own sequence only (docs/numbers.md), never on its neighbours.
// How the parts of a layer are computed is the Compute's matter; what a layer is stands here.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/clock.h"
#include "base/result.h"
#include "coordinator/cluster/dispatcher.h"
#include "coordinator/engine/attention.h"
#include "coordinator/engine/compute.h"
#include "coordinator/engine/expert_load.h"
#include "coordinator/engine/routing_recorder.h"
#include "coordinator/engine/stages.h"
#include "coordinator/engine/weights.h"
#include "model/config.h"

namespace atl::coordinator {

// Sees the state between layers; for tests and profiles. Borrowed data.
class StepObserver {
 public:
  virtual ~StepObserver() = default;
  // Top-k of every row of an MoE layer: [num_rows, num_experts_per_tok].
  virtual void on_routes(int64_t layer, std::span<const int32_t> ids,
                         std::span<const float> weights) = 0;
  // Residual stream after a layer: [num_rows, hidden_size].
  virtual void on_hidden(int64_t layer, std::span<const float> hidden) = 0;
  // Experts of a layer that the nodes were given a hint of, ascending.
  virtual void on_hint(int64_t /*layer*/, std::span<const int32_t> /*experts*/) {}
};

// Whether the nodes are told which experts the next layer will probably want
// (DecodeStep::hint_next_layer()).
enum class Prefetch : uint8_t { kOff, kNextLayer };

// What hints were worth, counted at the router of the layer that was foretold, in distinct experts
// of a step and layer. Layers that got no hint (the first one with experts) are left out.
struct HintStats {
  uint64_t layers = 0;    // hints that were followed by their layer
  uint64_t hinted = 0;    // experts in these hints
  uint64_t chosen = 0;    // experts that these layers chose
  uint64_t foretold = 0;  // experts in both
  double recall() const {
    return chosen ? static_cast<double>(foretold) / static_cast<double>(chosen) : 0;
  }
  double waste() const {
    return hinted ? static_cast<double>(hinted - foretold) / static_cast<double>(hinted) : 0;
  }
  friend bool operator==(const HintStats&, const HintStats&) = default;
};

struct DecodeStepOptions {
  int64_t rows_max = 512;
  Prefetch prefetch = Prefetch::kOff;
};

// Used by the engine's thread only.
class DecodeStep {
 public:
  // All references are borrowed and must outlive this. `experts` may be null for a model without
  // MoE layers only.
  DecodeStep(const model::ModelConfig& config, const Weights& weights, Compute& compute,
             Dispatcher* experts, const Clock& clock, DecodeStepOptions options);

  // Runs the rows. row_errors [rows.size()]: a row that has no result (its router or an expert gave
  // a number out of range) gets an error that names layer and expert; the others are unaffected.
  // An error of the whole step (no expert node left, the device failed) is returned.
  Status run(std::span<const StepRow> rows, const LogitsSink& sink,
             std::span<std::optional<Error>> row_errors, StepObserver* observer = nullptr);

  const StepTimes& times() const { return timer_.times(); }
  // Hears of every stage from now on; null: nobody. Borrowed.
  void set_stage_sink(StageSink* sink) { timer_.set_sink(sink); }
  // Records what steps choose from now on; null: nobody. Borrowed.
  void set_routing_recorder(RoutingRecorder* recorder) { recorder_ = recorder; }
  const HintStats& hint_stats() const { return hint_stats_; }
  const ExpertLoad& expert_load() const { return load_; }  // any thread

 private:
  Status run_layers(const LogitsSink& sink, StepObserver* observer);
  bool keep_wanted_rows();
  void ffn(const FfnWeights& weights);
  void poll_experts();
  Status moe(int64_t layer, const LayerWeights& weights, StepObserver* observer);
  Status route(int64_t layer, const LayerWeights& weights);
  Status hint_next_layer(int64_t layer, StepObserver* observer);
  void count_foretold();
  void note_failures(int64_t layer, std::span<const RowFailure> failures);
  int64_t num_rows() const { return kept_.empty() ? std::ssize(rows_) : std::ssize(kept_); }
  // Place in the step of the row that is counted so now.
  size_t origin(size_t row) const { return kept_.empty() ? row : static_cast<size_t>(kept_[row]); }
  float norm_eps() const { return static_cast<float>(config_.rms_norm_eps); }

  const model::ModelConfig& config_;
  const Weights& weights_;
  Compute& compute_;
  Dispatcher* experts_;
  const DecodeStepOptions options_;
  StageTimer timer_;
  const std::unique_ptr<Attention> attention_;
  HintStats hint_stats_;
  ExpertLoad load_;
  RoutingRecorder* recorder_ = nullptr;

  // Of the step under way.
  std::span<const StepRow> rows_;
  std::span<std::optional<Error>> row_errors_;
  std::vector<int32_t> kept_;  // rows that go on in the last layer; empty: all
  RouterOutput routed_;
  RouterOutput hint_;
  std::vector<int32_t> hinted_;  // experts that the layer to come was foretold; empty: none
};

}  // namespace atl::coordinator
