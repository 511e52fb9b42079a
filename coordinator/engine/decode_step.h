// One pass of a batch of rows through all layers: the model as the paper writes it.
//
// A row is one token of one sequence at one position. Prefill chunks and decode tokens are the same
// thing: rows of any sequences in any mix, each attending to its own sequence's cache up to itself.
// A row's result depends on its own sequence only (docs/numbers.md), never on its neighbours.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/result.h"
#include "base/thread_team.h"
#include "coordinator/cluster/dispatcher.h"
#include "coordinator/engine/kv_cache.h"
#include "coordinator/engine/weights.h"
#include "model/config.h"

namespace atl::coordinator {

struct StepRow {
  int32_t token = 0;
  int64_t position = 0;
  std::span<const BlockId> blocks;  // of the row's sequence, covering `position`; borrowed
  bool wants_logits = false;
};

// Called for each row that wants logits, in row order: row index, [vocab_size] FP32 borrowed.
using LogitsSink = std::function<void(size_t, std::span<const float>)>;

// Sees the state between layers; for tests and for profiles of expert load. Borrowed data.
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

// Where a step's time goes, in seconds, added up over steps.
struct StepTimes {
  double attention = 0, router = 0, dense_ffn = 0, dispatch = 0, shared_experts = 0, combine = 0,
         head = 0, prefetch = 0;
  // Of `attention`: softmax(q c) c over the cache; the two halves of kv_b, head by head.
  double attention_core = 0, attention_absorbed = 0;
  uint64_t steps = 0, rows = 0, moe_layers = 0;
};

// Whether the nodes are told which experts the next layer will probably want
// (DecodeStep::hint_next_layer()).
enum class Prefetch : uint8_t { kOff, kNextLayer };

// Most rows of a step that hints are given in. More rows choose more of the experts, so that there
// is less to foretell: of V3's 256 experts, 8 a token, 16 independent rows choose 1 - (248/256)^16
// = 40 %, 64 rows 87 %. The bound also keeps what a wrong hint may cost to a part of a layer.
inline constexpr int64_t kHintRowsMax = 16;

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

// Owns the activations of up to rows_max rows. Used by the engine's thread only.
class DecodeStep {
 public:
  // All references are borrowed and must outlive this. `experts` may be null for a model without
  // MoE layers only.
  DecodeStep(const model::ModelConfig& config, const Weights& weights, KvCache& cache,
             Dispatcher* experts, ThreadTeam& team, const Clock& clock, DecodeStepOptions options);
  // Of the activations that such a step owns.
  static uint64_t buffer_bytes(const model::ModelConfig& config, const DecodeStepOptions& options);

  // Runs the rows. row_errors [rows.size()]: a row that has no result (its router or an expert gave
  // a number out of range) gets an error that names layer and expert; the others are unaffected.
  // An error of the whole step (no expert node left) is returned.
  Status run(std::span<const StepRow> rows, const LogitsSink& sink,
             std::span<std::optional<Error>> row_errors, StepObserver* observer = nullptr);

  const StepTimes& times() const { return times_; }
  const HintStats& hint_stats() const { return hint_stats_; }

 private:
  // A buffer of FP32 values and how many it has.
  struct BufferSize {
    std::vector<float> DecodeStep::*buffer;
    int64_t values;
  };
  static std::vector<BufferSize> buffer_sizes(const model::ModelConfig& config,
                                              const DecodeStepOptions& options);
  void embed();
  void rotations();
  void norm(const std::vector<float>& weight, std::vector<float>& to);
  void attention(int64_t layer, const AttentionWeights& weights);
  void queries(const AttentionWeights& weights);
  void write_cache(int64_t layer, const AttentionWeights& weights);
  void absorb_queries(const AttentionWeights& weights, int64_t row_begin, int64_t n);
  void attend(int64_t layer, int64_t row_begin, int64_t n);
  void unabsorb_values(const AttentionWeights& weights, int64_t row_begin, int64_t n);
  int64_t head_grain() const;
  void ffn(const FfnWeights& weights);
  void poll_experts();
  Status moe(int64_t layer, const LayerWeights& weights, StepObserver* observer);
  void route(int64_t layer, const LayerWeights& weights);
  void hint_next_layer(int64_t layer, StepObserver* observer);
  void count_foretold();
  void residual();
  void head(const LogitsSink& sink);
  void linear(const Linear& weights, const std::vector<float>& x, std::vector<float>& y);
  int64_t num_rows() const { return static_cast<int64_t>(rows_.size()); }

  const model::ModelConfig& config_;
  const Weights& weights_;
  KvCache& cache_;
  Dispatcher* experts_;
  ThreadTeam& team_;
  const Clock& clock_;
  const DecodeStepOptions options_;
  const std::vector<double> inv_freq_;  // [qk_rope_head_dim / 2]
  const float softmax_scale_;
  StepTimes times_;
  HintStats hint_stats_;

  // Of the step under way; n = number of rows.
  std::span<const StepRow> rows_;
  std::span<std::optional<Error>> row_errors_;
  std::vector<float> x_;              // [n, hidden] residual stream
  std::vector<float> h_;              // [n, hidden] normalised
  std::vector<float> out_;            // [n, hidden] what a block adds
  std::vector<float> q_a_;            // [n, q_lora_rank]
  std::vector<float> q_;              // [n, heads, nope + rope]
  std::vector<float> kv_a_;           // [n, kv_lora_rank + rope]
  std::vector<float> cos_, sin_;      // [n, rope / 2]
  std::vector<float> q_absorbed_;     // [attention rows, heads, kv_lora_rank + rope]
  std::vector<float> o_latent_;       // [attention rows, heads, kv_lora_rank]
  std::vector<float> o_;              // [n, heads, v]
  std::vector<float> gate_, up_;      // [n, intermediate]
  std::vector<float> router_logits_;  // [n, n_routed_experts]
  std::vector<int32_t> topk_ids_;     // [n, top_k]
  std::vector<float> topk_weights_;   // [n, top_k]
  std::vector<float> logits_;         // [head rows, vocab]
  std::vector<float> hint_h_;         // [hint rows, hidden]
  std::vector<int32_t> hint_ids_;     // [top_k]
  std::vector<float> hint_weights_;   // [top_k]
  std::vector<int32_t> hinted_;       // experts that the layer to come was foretold; empty: none
};

}  // namespace atl::coordinator
