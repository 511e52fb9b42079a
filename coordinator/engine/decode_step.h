// One pass of a batch of rows through all layers: the model as the paper writes it.
//
// A row is one token of one sequence at one position. Prefill chunks and decode tokens are the same
// thing: rows of any sequences in any mix, each attending to its own sequence's cache up to itself.
// A row's result depends on its own sequence only (docs/numbers.md), never on its neighbours.
// How the parts of a layer are computed is the Compute's matter; what a layer is stands here.
#pragma once

#include <cstdint>
#include <functional>
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
#include "coordinator/engine/halves.h"
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
  // What Engine::draft() takes a sequence's next token from: [vocab_size].
  virtual void on_draft_logits(std::span<const float> /*logits*/) {}
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
  Halves halves = Halves::kOff;
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

  // The same of the next-token layer (docs/model.md 4), whose cache is layer num_hidden_layers: a
  // row's logits are of the token behind its own. The weights must have it.
  //   hidden  [rows, hidden_size] hidden() of the position of each row's token, less one
  Status run_mtp(std::span<const StepRow> rows, std::span<const float> hidden,
                 const LogitsSink& sink, std::span<std::optional<Error>> row_errors,
                 StepObserver* observer = nullptr);

  // [hidden_size] what the head takes, of a row of the last run that wanted it. Until the next one.
  std::span<const float> hidden(size_t row) const;

  const StepTimes& times() const { return timer_.times(); }
  // Hears of every stage from now on; null: nobody. Borrowed.
  void set_stage_sink(StageSink* sink) { timer_.set_sink(sink); }
  // Records what steps choose from now on; null: nobody. Borrowed.
  void set_routing_recorder(RoutingRecorder* recorder) { recorder_ = recorder; }
  const HintStats& hint_stats() const { return hint_stats_; }
  const ExpertLoad& expert_load() const { return load_; }  // any thread

 private:
  Status run_pass(std::span<const StepRow> rows, std::span<std::optional<Error>> row_errors,
                  const std::function<Status()>& layers);
  Status run_layers(const LogitsSink& sink, StepObserver* observer);
  Status run_mtp_layer(std::span<const float> hidden, const LogitsSink& sink,
                       StepObserver* observer);
  Status run_halves(int64_t end);
  void select(int64_t row_begin, int64_t n);
  void enter_layer(int64_t layer, const LayerWeights& weights);
  void attend(int64_t layer, const LayerWeights& weights);
  Status leave_layer(int64_t layer, const LayerWeights& weights, StepObserver* observer);
  Status head(const std::vector<float>& norm, const LogitsSink& sink);
  bool keep_wanted_rows();
  void ffn(const FfnWeights& weights);
  void poll_experts();
  Result<Dispatcher::Ptr> begin_moe(int64_t layer, const LayerWeights& weights,
                                    StepObserver* observer);
  Status end_moe(int64_t layer, Dispatcher::Ptr sent);
  Status route(int64_t layer, const LayerWeights& weights);
  Status hint_next_layer(int64_t layer, StepObserver* observer);
  void count_chosen(int64_t layer);
  void count_foretold();
  void note_failures(int64_t layer, std::span<const RowFailure> failures);
  int64_t num_rows() const { return kept_.empty() ? selected_rows_ : std::ssize(kept_); }
  // Place in the step of the row that is counted so now.
  size_t origin(size_t row) const {
    return kept_.empty() ? first_selected_ + row : static_cast<size_t>(kept_[row]);
  }
  float norm_eps() const { return static_cast<float>(config_.rms_norm_eps); }

  const model::ModelConfig& config_;
  const Weights& weights_;
  Compute& compute_;
  Dispatcher* experts_;
  const DecodeStepOptions options_;
  const Clock& clock_;
  StageTimer timer_;
  HalvesGate gate_;
  const std::unique_ptr<Attention> attention_;
  HintStats hint_stats_;
  ExpertLoad load_;
  RoutingRecorder* recorder_ = nullptr;

  // Of the step under way.
  std::span<const StepRow> rows_;
  std::span<std::optional<Error>> row_errors_;
  bool is_halved_ = false;
  size_t first_selected_ = 0;  // of the rows that are computed now
  int64_t selected_rows_ = 0;
  std::vector<int32_t> kept_;  // rows that go on in the last layer; empty: all
  std::vector<float> hidden_;  // [rows, hidden_size] of those that wanted it
  RouterOutput routed_;
  std::vector<int32_t> chosen_;  // by both halves, in a layer
  RouterOutput hint_;
  std::vector<int32_t> hinted_;  // experts that the layer to come was foretold; empty: none
};

}  // namespace atl::coordinator
