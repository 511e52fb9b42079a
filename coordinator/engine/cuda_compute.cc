#include "coordinator/engine/cuda_compute.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/check.h"
#include "base/units.h"
#include "kernels/attention.h"
#include "kernels/ops.h"

namespace atl::coordinator {
namespace {

namespace cuda = kernels::cuda;

// Rows whose logits are on the device at once.
constexpr int64_t kHeadRows = 32;
// Rows that are attended at once, and what their scores may take of the device's memory: one row of
// V3 with 128 k positions takes 69 MB.
constexpr int64_t kAttentionRows = 64;
constexpr int64_t kScratchFloats = int64_t{32} << 20;

// Bytes of the device of each buffer, so that what is planned and what is taken are one.
struct DeviceSizes {
  std::array<size_t, kNumActivations> activations{};
  size_t q_absorbed, o_latent, scratch, head_h, logits, sums, angles, num_positions, block_table;
  size_t topk_ids, topk_weights, finite;

  DeviceSizes(const model::ModelConfig& config, int64_t rows_max, int64_t blocks_max) {
    const int64_t n = rows_max, heads = config.num_attention_heads;
    const int64_t latent = config.kv_lora_rank + config.qk_rope_head_dim;
    const int64_t attention_rows = std::min(n, kAttentionRows);
    const int64_t ffn_width =
        std::max(config.intermediate_size, config.n_shared_experts * config.moe_intermediate_size);
    const auto floats = [](int64_t values) {
      return static_cast<size_t>(std::max<int64_t>(values, 1)) * sizeof(float);
    };
    const auto set = [&](Activation what, int64_t values) {
      activations[static_cast<size_t>(what)] = floats(values);
    };
    set(Activation::kX, n * config.hidden_size);
    set(Activation::kH, n * config.hidden_size);
    set(Activation::kOut, n * config.hidden_size);
    set(Activation::kQA, n * config.q_lora_rank);
    set(Activation::kQ, n * heads * config.qk_head_dim());
    set(Activation::kKvA, n * latent);
    set(Activation::kO, n * heads * config.v_head_dim);
    set(Activation::kGate, n * ffn_width);
    set(Activation::kUp, n * ffn_width);
    set(Activation::kRouterLogits, n * config.n_routed_experts);
    set(Activation::kHintH, std::min(n, kHintRowsMax) * config.hidden_size);
    q_absorbed = floats(attention_rows * heads * latent);
    o_latent = floats(attention_rows * heads * config.kv_lora_rank);
    scratch = floats(
        std::max(kScratchFloats, cuda::attend_scratch_floats(1, static_cast<int32_t>(heads),
                                                             static_cast<int32_t>(blocks_max))));
    head_h = floats(kHeadRows * config.hidden_size);
    logits = floats(kHeadRows * config.vocab_size);
    sums = floats(n * config.hidden_size);
    angles = floats(n * config.qk_rope_head_dim / 2);
    num_positions = floats(n);
    block_table = floats(n * blocks_max);
    topk_ids = topk_weights = floats(n * std::max<int64_t>(config.num_experts_per_tok, 1));
    finite = static_cast<size_t>(n);
  }
  uint64_t total() const {
    uint64_t bytes = q_absorbed + o_latent + scratch + head_h + logits + sums + 2 * angles +
                     num_positions + block_table + topk_ids + topk_weights + finite;
    for (const size_t activation : activations) bytes += activation;
    return bytes;
  }
};

int64_t blocks_of_a_sequence(const model::ModelConfig& config, int64_t cache_blocks) {
  return std::min(KvCache::blocks_for(config.max_position_embeddings), cache_blocks);
}

size_t layer_cache_bytes(const KvCache& cache) {
  return KvCache::block_bytes(1, cache.shape()) * static_cast<size_t>(cache.max_blocks());
}

template <typename Visit>
void for_each_layer(const Weights& weights, const Visit& visit) {
  for (const LayerWeights& layer : weights.layers()) visit(layer);
  if (weights.mtp()) visit(weights.mtp()->layer);
}

template <typename Visit>
void for_each_matrix(const Weights& weights, const Visit& visit) {
  for_each_layer(weights, [&](const LayerWeights& layer) {
    const MlaWeights& attention = std::get<MlaWeights>(layer.attention);
    for (const Linear* one :
         {&attention.q_a_proj, &attention.q_proj, &attention.kv_a_proj, &attention.o_proj,
          &layer.ffn.gate_proj, &layer.ffn.up_proj, &layer.ffn.down_proj, &layer.router}) {
      if (*one) visit(std::span(one, 1), static_cast<const void*>(one));
    }
    visit(std::span(attention.w_k), static_cast<const void*>(&attention.w_k));
    visit(std::span(attention.w_v), static_cast<const void*>(&attention.w_v));
  });
  if (const MtpWeights* mtp = weights.mtp()) {
    for (const Linear* half : {&mtp->of_embedding, &mtp->of_hidden}) {
      visit(std::span(half, 1), static_cast<const void*>(half));
    }
  }
  visit(std::span(&weights.lm_head(), 1), static_cast<const void*>(&weights.lm_head()));
}

}  // namespace

// ---- Setting up --------------------------------------------------------------------------------

CudaCompute::CudaCompute(const model::ModelConfig& config, const Weights& weights,
                         const KvCache& cache, cuda::Device& device, int64_t rows_max)
    : config_(config),
      weights_(weights),
      cache_(cache),
      device_(device),
      rows_max_(rows_max),
      blocks_max_(blocks_of_a_sequence(config, cache.max_blocks())),
      inv_freq_(config.rope_inv_freq()),
      softmax_scale_(static_cast<float>(config.softmax_scale())) {}

CudaMemoryNeed CudaCompute::memory_need(const model::ModelConfig& config, const Weights& weights,
                                        const KvCache& cache, int64_t rows_max) {
  uint64_t matrix_bytes = 0;
  for_each_matrix(weights, [&](std::span<const Linear> matrices, const void*) {
    for (const Linear& linear : matrices) {
      const kernels::PanelShape& shape = linear.matrix.shape;
      matrix_bytes += shape.total_code_bytes() + shape.total_scale_bytes();
    }
  });
  return memory_need(config, matrix_bytes, cache.shape(), cache.num_layers(), cache.max_blocks(),
                     rows_max);
}

CudaMemoryNeed CudaCompute::memory_need(const model::ModelConfig& config, uint64_t matrix_bytes,
                                        const CacheShape& cache, int64_t cache_layers,
                                        int64_t cache_blocks, int64_t rows_max) {
  CudaMemoryNeed need;
  need.weights = matrix_bytes;
  need.kv_cache = KvCache::block_bytes(cache_layers, cache) * static_cast<uint64_t>(cache_blocks);
  need.buffers = DeviceSizes(config, rows_max, blocks_of_a_sequence(config, cache_blocks)).total();
  return need;
}

Result<std::unique_ptr<CudaCompute>> CudaCompute::make(const model::ModelConfig& config,
                                                       const Weights& weights, const KvCache& cache,
                                                       cuda::Device& device, int64_t rows_max) {
  if (config.attention_kind() == model::AttentionKind::kGqa) {
    return Error{ErrorCode::kUnsupported, std::string(kNoGqaKernels)};
  }
  bool rounds_rows = false;
  for_each_matrix(weights, [&](std::span<const Linear> matrices, const void*) {
    for (const Linear& linear : matrices) {
      rounds_rows |= linear.matrix.shape.activations != kernels::Activations::kF32;
    }
  });
  if (rounds_rows) {
    return Error{ErrorCode::kUnsupported,
                 "dense weights that meet rows rounded to int8 (int8; int4 with --activations i8) "
                 "have no GPU kernel: choose another --dense-format, --activations f32 for int4, "
                 "or --device cpu"};
  }
  std::unique_ptr<CudaCompute> compute(new CudaCompute(config, weights, cache, device, rows_max));
  Status status = compute->allocate();
  if (status) status = compute->upload_weights();
  if (status) status = device.wait();
  if (!status) {
    const CudaMemoryNeed need = memory_need(config, weights, cache, rows_max);
    return Error{status.error().code,
                 fmt::format("{} (needed in all: weights {}, KV cache {}, buffers {})",
                             status.error().message, format_bytes(need.weights),
                             format_bytes(need.kv_cache), format_bytes(need.buffers))};
  }
  return compute;
}

Status CudaCompute::allocate() {
  const DeviceSizes sizes(config_, rows_max_, blocks_max_);
  struct Wanted {
    Buffer* buffer;
    size_t bytes;
    Buffer::Place place;
  };
  constexpr auto kDevice = Buffer::Place::kDevice, kHost = Buffer::Place::kHost;
  const size_t rows_bytes = sizes.activations[static_cast<size_t>(Activation::kX)];
  std::vector<Wanted> wanted = {
      {&kv_cache_, layer_cache_bytes(cache_) * static_cast<size_t>(cache_.num_layers()), kDevice},
      {&q_absorbed_, sizes.q_absorbed, kDevice},
      {&o_latent_, sizes.o_latent, kDevice},
      {&scratch_, sizes.scratch, kDevice},
      {&head_h_, sizes.head_h, kDevice},
      {&logits_, sizes.logits, kDevice},
      {&sums_, sizes.sums, kDevice},
      {&cos_, sizes.angles, kDevice},
      {&sin_, sizes.angles, kDevice},
      {&num_positions_, sizes.num_positions, kDevice},
      {&block_table_, sizes.block_table, kDevice},
      {&topk_ids_, sizes.topk_ids, kDevice},
      {&topk_weights_, sizes.topk_weights, kDevice},
      {&finite_, sizes.finite, kDevice},
      {&host_embeddings_, rows_bytes, kHost},
      {&host_cos_, sizes.angles, kHost},
      {&host_sin_, sizes.angles, kHost},
      {&host_positions_, sizes.num_positions, kHost},
      {&host_table_, sizes.block_table, kHost},
      {&host_rows_, rows_bytes, kHost},
      {&host_sums_, sizes.sums, kHost},
      {&host_logits_, sizes.logits, kHost}};
  for (size_t what = 0; what < kNumActivations; ++what) {
    wanted.push_back({&activations_[what], sizes.activations[what], kDevice});
  }
  for (const Wanted& one : wanted) {
    auto buffer = Buffer::make(device_, one.bytes, one.place);
    if (!buffer) return buffer.error();
    *one.buffer = std::move(*buffer);
  }
  return {};
}

Status CudaCompute::upload_weights() {
  Status status;
  for_each_matrix(weights_, [&](std::span<const Linear> matrices, const void* key) {
    if (status) status = upload(matrices, key);
  });
  for_each_layer(weights_, [&](const LayerWeights& layer) {
    const MlaWeights& attention = std::get<MlaWeights>(layer.attention);
    for (const std::vector<float>* vector :
         {&layer.input_layernorm, &layer.post_attention_layernorm, &attention.q_a_layernorm,
          &attention.kv_a_layernorm, &layer.e_score_correction_bias}) {
      if (status && !vector->empty()) status = upload(*vector);
    }
  });
  if (const MtpWeights* mtp = weights_.mtp()) {
    for (const std::vector<float>* vector : {&mtp->enorm, &mtp->hnorm, &mtp->norm}) {
      if (status) status = upload(*vector);
    }
  }
  if (status) status = upload(weights_.norm());
  return status;
}

Result<void*> CudaCompute::upload_bytes(const void* data, size_t bytes) {
  auto buffer = Buffer::make(device_, std::max<size_t>(bytes, 1));
  if (!buffer) return buffer.error();
  void* const to = buffer->data();
  if (bytes > 0) device_.upload(to, data, bytes);
  weight_memory_.push_back(std::move(*buffer));
  return to;
}

Status CudaCompute::upload(std::span<const Linear> matrices, const void* key) {
  CHECK(!matrices.empty());
  std::vector<cuda::DeviceMatrix> table;
  for (const Linear& linear : matrices) {
    const kernels::PanelMatrix& matrix = linear.matrix;
    const kernels::PanelShape& shape = matrix.shape;
    CHECK(shape.format == matrices[0].matrix.shape.format);
    CHECK_EQ(shape.outputs, matrices[0].matrix.shape.outputs);
    const std::vector<cuda::PanelGroup> groups = cuda::panel_groups(shape);
    const auto codes = upload_bytes(matrix.codes, shape.total_code_bytes());
    if (!codes) return codes.error();
    const auto scales = upload_bytes(matrix.scales, shape.total_scale_bytes());
    if (!scales) return scales.error();
    const auto group_table = upload_bytes(groups.data(), groups.size() * sizeof(groups[0]));
    if (!group_table) return group_table.error();
    // What was queued from `groups` is read before they go.
    if (Status status = device_.wait(); !status) return status;
    table.push_back({static_cast<const uint32_t*>(*codes), static_cast<const float*>(*scales),
                     static_cast<const cuda::PanelGroup*>(*group_table),
                     static_cast<int32_t>(groups.size()), static_cast<int32_t>(shape.k),
                     static_cast<int32_t>(shape.outputs),
                     static_cast<uint32_t>(shape.panel_code_bytes() / sizeof(uint32_t)),
                     static_cast<uint32_t>(shape.panel_scales()), shape.scale_per_output});
  }
  const auto device_table = upload_bytes(table.data(), table.size() * sizeof(table[0]));
  if (!device_table) return device_table.error();
  matrices_[key] = {matrices[0].matrix.shape.format, static_cast<int32_t>(table.size()),
                    static_cast<int32_t>(matrices[0].matrix.shape.outputs),
                    static_cast<const cuda::DeviceMatrix*>(*device_table)};
  return device_.wait();
}

Status CudaCompute::upload(const std::vector<float>& vector) {
  const auto to = upload_bytes(vector.data(), vector.size() * sizeof(float));
  if (!to) return to.error();
  vectors_[vector.data()] = static_cast<const float*>(*to);
  return {};
}

// ---- A step
// --------------------------------------------------------------------------------------

float* CudaCompute::at(Activation what) const {
  const Buffer& buffer = activations_[static_cast<size_t>(what)];
  if (first_row_ == 0) return buffer.as<float>();
  CHECK(what != Activation::kHintH);  // has less rows
  return buffer.as<float>() +
         first_row_ * (static_cast<int64_t>(buffer.size() / sizeof(float)) / rows_max_);
}

void CudaCompute::begin(std::span<const StepRow> rows) {
  step_rows_ = rows_ = rows;
  first_row_ = 0;
  rows_are_here_ = false;
  const int64_t hidden = config_.hidden_size, pairs = config_.qk_rope_head_dim / 2;
  const double magnitude = config_.rope_magnitude();
  step_blocks_ = 1;
  for (const StepRow& row : rows_) {
    step_blocks_ = std::max(step_blocks_, KvCache::blocks_for(row.position + 1));
  }
  CHECK_LE(step_blocks_, blocks_max_);
  const int64_t scratch_of_row = cuda::attend_scratch_floats(
      1, static_cast<int32_t>(config_.num_attention_heads), static_cast<int32_t>(step_blocks_));
  attention_rows_ =
      std::clamp<int64_t>(static_cast<int64_t>(scratch_.size() / sizeof(float)) / scratch_of_row, 1,
                          std::min(kAttentionRows, rows_max_));
  for (int64_t row = 0; row < num_rows(); ++row) {
    const StepRow& step_row = rows_[row];
    weights_.embed(step_row.token, host_embeddings_.as<float>() + row * hidden);
    host_positions_.as<int32_t>()[row] = static_cast<int32_t>(step_row.position + 1);
    int32_t* table = host_table_.as<int32_t>() + row * step_blocks_;
    std::fill_n(table, step_blocks_, 0);
    std::copy_n(step_row.blocks.begin(), KvCache::blocks_for(step_row.position + 1), table);
    for (int64_t i = 0; i < pairs; ++i) {
      const double angle = static_cast<double>(step_row.position) * inv_freq_[i];
      host_cos_.as<float>()[row * pairs + i] = static_cast<float>(std::cos(angle) * magnitude);
      host_sin_.as<float>()[row * pairs + i] = static_cast<float>(std::sin(angle) * magnitude);
    }
  }
  const auto send = [&](const Buffer& to, const Buffer& from, int64_t values) {
    device_.upload(to.data(), from.data(), static_cast<size_t>(values) * sizeof(float));
  };
  send(activations_[static_cast<size_t>(Activation::kX)], host_embeddings_, num_rows() * hidden);
  send(num_positions_, host_positions_, num_rows());
  send(block_table_, host_table_, num_rows() * step_blocks_);
  send(cos_, host_cos_, num_rows() * pairs);
  send(sin_, host_sin_, num_rows() * pairs);
}

void CudaCompute::select_rows(int64_t row_begin, int64_t n) {
  CHECK(row_begin >= 0 && n > 0 && row_begin + n <= std::ssize(step_rows_));
  first_row_ = row_begin;
  rows_ = step_rows_.subspan(static_cast<size_t>(row_begin), static_cast<size_t>(n));
  rows_are_here_ = false;
}

void CudaCompute::keep_rows(std::span<const int32_t> kept) {
  CHECK_EQ(rows_.size(), step_rows_.size());
  const int64_t hidden = config_.hidden_size, pairs = config_.qk_rope_head_dim / 2;
  rows_are_here_ = false;
  std::vector<StepRow> rows;
  for (size_t to = 0; to < kept.size(); ++to) {
    const auto from = static_cast<size_t>(kept[to]);
    CHECK(from >= to && from < rows_.size());
    rows.push_back(rows_[from]);
    if (from == to) continue;
    // In stream order and upwards, so that no row is overwritten before it has moved.
    const auto move = [&](void* values, int64_t width) {
      float* base = static_cast<float*>(values);
      device_.copy(base + static_cast<int64_t>(to) * width,
                   base + static_cast<int64_t>(from) * width,
                   static_cast<size_t>(width) * sizeof(float));
    };
    move(at(Activation::kX), hidden);
    move(at(Activation::kH), hidden);
    move(cos_.data(), pairs);
    move(sin_.data(), pairs);
    move(num_positions_.data(), 1);
    move(block_table_.data(), step_blocks_);
  }
  kept_rows_ = std::move(rows);
  step_rows_ = rows_ = kept_rows_;
}

const float* CudaCompute::on_device(const std::vector<float>& vector) const {
  const auto found = vectors_.find(vector.data());
  CHECK(found != vectors_.end());
  return found->second;
}

void CudaCompute::rms_norm(Activation from, const std::vector<float>& weight, float eps,
                           Activation to) {
  const auto width = static_cast<int64_t>(weight.size());
  cuda::rms_norm(device_.stream(), rows32(), static_cast<int32_t>(width), at(from), width,
                 on_device(weight), eps, at(to), width);
}

void CudaCompute::linear(const Matrices& matrices, int64_t num_rows, const float* x, int64_t x_row,
                         int64_t x_matrix, float* y, int64_t y_row, int64_t y_matrix) {
  cuda::LinearCall call;
  call.format = matrices.format;
  call.matrices = matrices.table;
  call.num_matrices = matrices.count;
  call.outputs = matrices.outputs;
  call.num_rows = static_cast<int32_t>(num_rows);
  call.x = x;
  call.x_row = x_row;
  call.x_matrix = x_matrix;
  call.y = y;
  call.y_row = y_row;
  call.y_matrix = y_matrix;
  cuda::linear(device_.stream(), call);
}

void CudaCompute::linear(const Linear& weights, Activation from, Activation to) {
  const kernels::PanelShape& shape = weights.matrix.shape;
  linear(matrices_.at(&weights), num_rows(), at(from), shape.k, 0, at(to), shape.outputs, 0);
}

void CudaCompute::rope_queries() {
  const int64_t heads = config_.num_attention_heads, width = config_.qk_head_dim();
  cuda::rope(device_.stream(), rows32(), static_cast<int32_t>(heads),
             static_cast<int32_t>(config_.qk_rope_head_dim / 2), angles(cos_), angles(sin_),
             at(Activation::kQ) + config_.qk_nope_head_dim, heads * width, width);
}

std::byte* CudaCompute::cache_of(int64_t layer) const {
  return kv_cache_.as<std::byte>() + static_cast<size_t>(layer) * layer_cache_bytes(cache_);
}

cuda::CacheCall CudaCompute::cache_call(int64_t layer, int64_t row_begin, int64_t n) const {
  cuda::CacheCall call;
  call.type = cache_.shape().type;
  call.entries = cache_of(layer);
  call.rank = static_cast<int32_t>(config_.kv_lora_rank);
  call.rope = static_cast<int32_t>(config_.qk_rope_head_dim);
  call.num_rows = static_cast<int32_t>(n);
  call.num_positions = num_positions_.as<int32_t>() + first_row_ + row_begin;
  call.block_table = block_table_.as<int32_t>() + (first_row_ + row_begin) * step_blocks_;
  call.blocks_max = static_cast<int32_t>(step_blocks_);
  return call;
}

void CudaCompute::write_latents(int64_t layer, const std::vector<float>& weight) {
  const int64_t rank = config_.kv_lora_rank, width = rank + config_.qk_rope_head_dim;
  float* const latent = at(Activation::kKvA);
  cuda::rms_norm(device_.stream(), rows32(), static_cast<int32_t>(rank), latent, width,
                 on_device(weight), model::kInnerNormEps, latent, width);
  cuda::rope(device_.stream(), rows32(), 1, static_cast<int32_t>(config_.qk_rope_head_dim / 2),
             angles(cos_), angles(sin_), latent + rank, width, 0);
  cuda::write_cache(device_.stream(), cache_call(layer, 0, num_rows()), latent);
}

void CudaCompute::absorb_queries(const MlaWeights& weights, int64_t row_begin, int64_t n) {
  const int64_t heads = config_.num_attention_heads, nope = config_.qk_nope_head_dim;
  const int64_t rope = config_.qk_rope_head_dim, rank = config_.kv_lora_rank;
  const float* q = at(Activation::kQ) + row_begin * heads * (nope + rope);
  linear(matrices_.at(&weights.w_k), n, q, heads * (nope + rope), nope + rope,
         q_absorbed_.as<float>(), heads * (rank + rope), rank + rope);
  cuda::copy_rows(device_.stream(), static_cast<int32_t>(n * heads), static_cast<int32_t>(rope),
                  q + nope, nope + rope, q_absorbed_.as<float>() + rank, rank + rope);
}

void CudaCompute::attend_latents(int64_t layer, int64_t row_begin, int64_t n) {
  CHECK_LE(n, attention_rows_);
  cuda::mla_attend(device_.stream(), cache_call(layer, row_begin, n),
                   {static_cast<int32_t>(config_.num_attention_heads), softmax_scale_,
                    q_absorbed_.as<float>(), o_latent_.as<float>(), scratch_.as<float>()});
}

void CudaCompute::unabsorb_values(const MlaWeights& weights, int64_t row_begin, int64_t n) {
  const int64_t heads = config_.num_attention_heads;
  const int64_t rank = config_.kv_lora_rank, v = config_.v_head_dim;
  linear(matrices_.at(&weights.w_v), n, o_latent_.as<float>(), heads * rank, rank,
         at(Activation::kO) + row_begin * heads * v, heads * v, v);
}

// make() refuses the models that want these.
void CudaCompute::add_bias(const std::vector<float>&, Activation) { CHECK(false); }
void CudaCompute::rope_heads(Activation) { CHECK(false); }
void CudaCompute::write_keys_and_values(int64_t) { CHECK(false); }
void CudaCompute::attend_groups(int64_t) { CHECK(false); }

void CudaCompute::silu_mul(int64_t width) {
  cuda::silu_mul(device_.stream(), num_rows() * width, at(Activation::kGate), at(Activation::kUp));
}

void CudaCompute::add(Activation from, Activation to) {
  cuda::add(device_.stream(), num_rows() * config_.hidden_size, at(from), at(to));
}

void CudaCompute::clear(Activation what) {
  const size_t row_bytes =
      activations_[static_cast<size_t>(what)].size() / static_cast<size_t>(rows_max_);
  device_.clear(at(what), rows_.size() * row_bytes);
}

// The rows go to the host beside the choices: both are what a dispatch needs.
void CudaCompute::route(const Linear& router, const std::vector<float>& bias, Activation from,
                        RouterOutput* to) {
  linear(router, from, Activation::kRouterLogits);
  const kernels::RouterShape shape = config_.router_shape();
  cuda::route(device_.stream(), shape, rows32(), at(Activation::kRouterLogits),
              bias.empty() ? nullptr : on_device(bias), topk_ids_.as<int32_t>(),
              topk_weights_.as<float>(), finite_.as<uint8_t>());
  const size_t num_choices = rows_.size() * static_cast<size_t>(shape.num_experts_per_tok);
  to->topk_ids.resize(num_choices);
  to->topk_weights.resize(num_choices);
  to->finite.resize(rows_.size());
  device_.download(to->topk_ids.data(), topk_ids_.data(), num_choices * sizeof(int32_t));
  device_.download(to->topk_weights.data(), topk_weights_.data(), num_choices * sizeof(float));
  device_.download(to->finite.data(), finite_.data(), rows_.size());
  if (from == Activation::kHintH) return;
  device_.download(host_rows_.data(), at(from),
                   rows_.size() * static_cast<size_t>(config_.hidden_size) * sizeof(float));
  rows_are_here_ = true;
  routed_ = from;
}

void CudaCompute::put_rows(std::span<const float> values, Activation to) {
  CHECK_EQ(values.size(), rows_.size() * static_cast<size_t>(config_.hidden_size));
  rows_are_here_ = false;
  std::memcpy(host_rows_.data(), values.data(), values.size_bytes());
  device_.upload(at(to), host_rows_.data(), values.size_bytes());
  (void)device_.wait();  // what failed is told by the next wait(), too
}

const float* CudaCompute::host_rows(Activation what) {
  CHECK(what == Activation::kX || what == Activation::kH || what == Activation::kOut);
  if (!rows_are_here_ || what != routed_) {
    device_.download(host_rows_.data(), at(what),
                     rows_.size() * static_cast<size_t>(config_.hidden_size) * sizeof(float));
    rows_are_here_ = false;
    (void)device_.wait();  // what failed is told by the next wait(), too
  }
  return host_rows_.as<float>();
}

float* CudaCompute::begin_combine() {
  rows_are_here_ = false;
  float* const sums = host_sums();
  std::memset(sums, 0, rows_.size() * static_cast<size_t>(config_.hidden_size) * sizeof(float));
  return sums;
}

void CudaCompute::end_combine() {
  const int64_t values = num_rows() * config_.hidden_size;
  device_.upload(sums_.data(), host_sums(), static_cast<size_t>(values) * sizeof(float));
  cuda::add(device_.stream(), values, sums_.as<float>(), at(Activation::kOut));
}

void CudaCompute::head(const std::vector<float>& norm, float eps, const Linear& lm_head,
                       const LogitsSink& sink) {
  const int64_t hidden = config_.hidden_size, vocab = config_.vocab_size;
  std::vector<size_t> wanted;
  for (size_t row = 0; row < rows_.size(); ++row) {
    if (rows_[row].wants_logits) wanted.push_back(row);
  }
  for (size_t begin = 0; begin < wanted.size(); begin += kHeadRows) {
    const auto n = static_cast<int64_t>(std::min<size_t>(kHeadRows, wanted.size() - begin));
    for (int64_t i = 0; i < n; ++i) {
      const auto row = static_cast<int64_t>(wanted[begin + static_cast<size_t>(i)]);
      cuda::rms_norm(device_.stream(), 1, static_cast<int32_t>(hidden),
                     at(Activation::kX) + row * hidden, hidden, on_device(norm), eps,
                     head_h_.as<float>() + i * hidden, hidden);
    }
    linear(matrices_.at(&lm_head), n, head_h_.as<float>(), hidden, 0, logits_.as<float>(), vocab,
           0);
    device_.download(host_logits_.data(), logits_.data(),
                     static_cast<size_t>(n * vocab) * sizeof(float));
    if (!device_.wait()) return;  // the step's own wait() tells
    for (int64_t i = 0; i < n; ++i) {
      sink(wanted[begin + static_cast<size_t>(i)],
           {host_logits_.as<float>() + i * vocab, static_cast<size_t>(vocab)});
    }
  }
}

void CudaCompute::store_block(int64_t layer, BlockId block, const float* entries) {
  const CacheShape& shape = cache_.shape();
  std::vector<std::byte> rounded(KvCache::block_bytes(1, shape));
  kernels::store_rounded(entries, kernels::kAttentionBlock * shape.values(), shape.type,
                         rounded.data());
  device_.upload(cache_of(layer) + static_cast<size_t>(block) * rounded.size(), rounded.data(),
                 rounded.size());
  (void)device_.wait();  // before `rounded` goes
}

}  // namespace atl::coordinator
