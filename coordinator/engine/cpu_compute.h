// A step's operations on this machine's cores: each is done when its call returns.
#pragma once

#include <array>
#include <vector>

#include "base/thread_team.h"
#include "coordinator/engine/compute.h"
#include "model/config.h"

namespace atl::coordinator {

// Owns the activations of up to rows_max rows. Used by the engine's thread, computes on its team.
class CpuCompute : public Compute {
 public:
  // All references are borrowed and must outlive this.
  CpuCompute(const model::ModelConfig& config, const Weights& weights, KvCache& cache,
             ThreadTeam& team, int64_t rows_max);
  // Of the activations of such a one.
  static uint64_t buffer_bytes(const model::ModelConfig& config, int64_t rows_max);

  void begin(std::span<const StepRow> rows) override;
  void rms_norm(Activation from, const std::vector<float>& weight, float eps,
                Activation to) override;
  void put_rows(std::span<const float> values, Activation to) override;
  void linear(const Linear& weights, Activation from, Activation to) override;
  bool selects_rows() const override { return true; }
  void select_rows(int64_t row_begin, int64_t n) override;
  void keep_rows(std::span<const int32_t> kept) override;
  void rope_queries() override;
  void write_latents(int64_t layer, const std::vector<float>& weight) override;
  int64_t attention_rows() const override;
  void absorb_queries(const MlaWeights& weights, int64_t row_begin, int64_t n) override;
  void attend_latents(int64_t layer, int64_t row_begin, int64_t n) override;
  void unabsorb_values(const MlaWeights& weights, int64_t row_begin, int64_t n) override;
  void add_bias(const std::vector<float>& bias, Activation to) override;
  void rope_heads(Activation what) override;
  void write_keys_and_values(int64_t layer) override;
  void attend_groups(int64_t layer) override;
  void silu_mul(int64_t width) override;
  void add(Activation from, Activation to) override;
  void clear(Activation what) override;
  void route(const Linear& router, const std::vector<float>& bias, Activation from,
             RouterOutput* to) override;
  const float* host_rows(Activation what) override { return at(what); }
  float* begin_combine() override { return at(Activation::kOut); }
  void end_combine() override {}
  void head(const std::vector<float>& norm, float eps, const Linear& lm_head,
            const LogitsSink& sink) override;
  void store_block(int64_t layer, BlockId block, const float* entries) override;
  Status wait() override { return {}; }

 private:
  // Of the first selected row.
  float* at(Activation what);
  // Of a selected row: [rope_head_dim / 2].
  const float* cosines(int64_t row) const { return &cos_[(first_row_ + row) * num_pairs_]; }
  const float* sines(int64_t row) const { return &sin_[(first_row_ + row) * num_pairs_]; }
  int64_t num_rows() const { return static_cast<int64_t>(rows_.size()); }
  int64_t head_grain() const;

  const model::ModelConfig& config_;
  const Weights& weights_;
  KvCache& cache_;
  ThreadTeam& team_;
  const std::vector<double> inv_freq_;  // [rope_head_dim / 2]
  const float softmax_scale_;

  const int64_t rows_max_, num_pairs_;
  std::span<const StepRow> step_rows_;  // of the step under way
  std::span<const StepRow> rows_;       // of these the selected ones
  int64_t first_row_ = 0;
  std::vector<StepRow> kept_rows_;  // what rows_ are after keep_rows()
  std::array<std::vector<float>, kNumActivations> activations_;
  std::vector<float> cos_, sin_;  // [n, rope_head_dim / 2]
  // MLA:
  std::vector<float> q_absorbed_;  // [attention rows, heads, kv_lora_rank + rope]
  std::vector<float> o_latent_;    // [attention rows, heads, kv_lora_rank]
  std::vector<float> head_h_;      // [head rows, hidden]
  std::vector<float> logits_;      // [head rows, vocab]
};

}  // namespace atl::coordinator
