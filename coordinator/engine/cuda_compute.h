// A step's operations on a GPU, queued on its one stream.
//
// The device holds all dense weights, the KV cache and the activations; the embedding stays on the
// host, whose rows of a step are uploaded. In the profile f32 every operation gives the CPU's bits
// (kernels/cuda/launches.h), so that what is computed where is nobody's concern but speed's.
#pragma once

#include <array>
#include <memory>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "coordinator/engine/compute.h"
#include "kernels/cuda/device.h"
#include "model/config.h"

namespace atl::coordinator {

// What is said of Qwen2 and Llama models.
inline constexpr std::string_view kNoGqaKernels =
    "grouped-query attention (Qwen2, Llama) has no GPU kernel: choose --device cpu";

struct CudaMemoryNeed {
  uint64_t weights = 0, kv_cache = 0, buffers = 0;
  uint64_t total() const { return weights + kv_cache + buffers; }
};

// Used by the engine's thread only.
class CudaCompute final : public Compute {
 public:
  // Uploads the weights. All references are borrowed and must outlive this. kUnsupported: grouped
  // attention, or weights in a format that the device has no kernel for (int4 with rows rounded to
  // int8); kOverloaded: more memory than is free, with what it would be needed for.
  static Result<std::unique_ptr<CudaCompute>> make(const model::ModelConfig& config,
                                                   const Weights& weights, const KvCache& cache,
                                                   kernels::cuda::Device& device, int64_t rows_max);
  // What that takes of the device.
  static CudaMemoryNeed memory_need(const model::ModelConfig& config, const Weights& weights,
                                    const KvCache& cache, int64_t rows_max);
  // The same before anything is loaded.
  //   matrix_bytes  of all dense matrices as they will be held, without the embedding
  static CudaMemoryNeed memory_need(const model::ModelConfig& config, uint64_t matrix_bytes,
                                    const CacheShape& cache, int64_t cache_layers,
                                    int64_t cache_blocks, int64_t rows_max);

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
  int64_t attention_rows() const override { return attention_rows_; }
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
  const float* host_rows(Activation what) override;
  float* begin_combine() override;
  void end_combine() override;
  void head(const std::vector<float>& norm, float eps, const Linear& lm_head,
            const LogitsSink& sink) override;
  void store_block(int64_t layer, BlockId block, const float* entries) override;
  Status wait() override { return device_.wait(); }

 private:
  using Buffer = kernels::cuda::DeviceBuffer;
  // A matrix, or the heads' matrices of one kind and layer, as kernels take them.
  struct Matrices {
    kernels::WeightFormat format = kernels::WeightFormat::kF32;
    int32_t count = 0, outputs = 0;
    const kernels::cuda::DeviceMatrix* table = nullptr;  // on the device
  };

  CudaCompute(const model::ModelConfig& config, const Weights& weights, const KvCache& cache,
              kernels::cuda::Device& device, int64_t rows_max);
  Status allocate();
  Status upload_weights();
  Status upload(std::span<const Linear> matrices, const void* key);
  Status upload(const std::vector<float>& vector);
  Result<void*> upload_bytes(const void* data, size_t bytes);
  void linear(const Matrices& matrices, int64_t num_rows, const float* x, int64_t x_row,
              int64_t x_matrix, float* y, int64_t y_row, int64_t y_matrix);
  kernels::cuda::CacheCall cache_call(int64_t layer, int64_t row_begin, int64_t n) const;
  std::byte* cache_of(int64_t layer) const;
  // Of the first selected row.
  float* at(Activation what) const;
  const float* angles(const Buffer& of) const {
    return of.as<float>() + first_row_ * (config_.qk_rope_head_dim / 2);
  }
  // Of the selected rows: what is sent from here may still be under way of others.
  float* host_sums() const { return host_sums_.as<float>() + first_row_ * config_.hidden_size; }
  const float* on_device(const std::vector<float>& vector) const;
  int64_t num_rows() const { return static_cast<int64_t>(rows_.size()); }
  int32_t rows32() const { return static_cast<int32_t>(rows_.size()); }

  const model::ModelConfig& config_;
  const Weights& weights_;
  const KvCache& cache_;
  kernels::cuda::Device& device_;
  const int64_t rows_max_;
  const int64_t blocks_max_;  // of one sequence
  const std::vector<double> inv_freq_;
  const float softmax_scale_;

  std::vector<Buffer> weight_memory_;
  std::unordered_map<const void*, Matrices> matrices_;  // by the host's Linear, or vector of them
  std::unordered_map<const void*, const float*> vectors_;  // by the host's data
  Buffer kv_cache_;                                        // [layer][block][64][rank + rope]
  std::array<Buffer, kNumActivations> activations_;
  Buffer q_absorbed_, o_latent_, scratch_, head_h_, logits_, sums_;
  Buffer cos_, sin_, num_positions_, block_table_;
  Buffer topk_ids_, topk_weights_, finite_;
  // Of the host, pinned.
  Buffer host_embeddings_, host_cos_, host_sin_, host_positions_, host_table_;
  Buffer host_rows_, host_sums_, host_logits_;

  // Of the step under way.
  std::span<const StepRow> step_rows_;
  std::span<const StepRow> rows_;  // of these the selected ones
  int64_t first_row_ = 0;
  std::vector<StepRow> kept_rows_;  // what rows_ are after keep_rows()
  int64_t step_blocks_ = 1;         // columns of the block table
  int64_t attention_rows_ = 1;
  bool rows_are_here_ = false;  // host_rows_ holds what route() was given
  Activation routed_ = Activation::kH;
};

}  // namespace atl::coordinator
