#include "coordinator/engine/cpu_compute.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "base/check.h"
#include "kernels/attention.h"
#include "kernels/linear.h"
#include "kernels/ops.h"

namespace atl::coordinator {
namespace {

// Rows that are attended at once: bounds the absorbed queries (V3: 288 KiB a row).
constexpr int64_t kAttentionRows = 64;
// Rows whose logits are in memory at once (V3: 517 KB a row).
constexpr int64_t kHeadRows = 32;
// Turns of each member in the loops over the head-by-head matrices: enough for members of unequal
// speed.
constexpr int64_t kTurnsPerMember = 2;
// Heads that one unit of attention takes together, between these two. They share the widening of
// the cache (kernels/attention.h), which costs more than members of unequal speed do: 32 heads a
// unit in place of 64 took 8 % more time on 2 cores of Zen 4.
constexpr int64_t kUnitHeadsMin = 4, kUnitHeadsMax = 64;

int64_t heads_per_unit(int64_t num_rows, int64_t num_heads, int64_t num_threads) {
  const int64_t share = round_up(ceil_div(num_rows * num_heads, num_threads), kUnitHeadsMin);
  return std::min(num_heads, std::clamp(share, kUnitHeadsMin, kUnitHeadsMax));
}

// FP32 values of each buffer.
struct Sizes {
  std::array<size_t, kNumActivations> activations{};
  size_t angles, q_absorbed, o_latent, head_h, logits;

  Sizes(const model::ModelConfig& config, int64_t rows_max) {
    const int64_t n = rows_max, heads = config.num_attention_heads;
    const int64_t latent = config.kv_lora_rank + config.qk_rope_head_dim;
    const int64_t kv = config.num_key_value_heads * config.head_dim;
    const int64_t attention_rows = std::min(n, kAttentionRows);
    const int64_t ffn_width =
        std::max(config.intermediate_size, config.n_shared_experts * config.moe_intermediate_size);
    const auto set = [this](Activation what, int64_t values) {
      activations[static_cast<size_t>(what)] = static_cast<size_t>(values);
    };
    set(Activation::kX, n * config.hidden_size);
    set(Activation::kH, n * config.hidden_size);
    set(Activation::kOut, n * config.hidden_size);
    set(Activation::kQA, n * config.q_lora_rank);
    set(Activation::kQ, n * heads * config.qk_head_dim());
    set(Activation::kKvA, n * latent);
    set(Activation::kK, n * kv);
    set(Activation::kV, n * kv);
    set(Activation::kO, n * heads * config.o_head_dim());
    set(Activation::kGate, n * ffn_width);
    set(Activation::kUp, n * ffn_width);
    set(Activation::kRouterLogits, n * config.n_routed_experts);
    set(Activation::kHintH, std::min(n, kHintRowsMax) * config.hidden_size);
    angles = static_cast<size_t>(n * config.rope_head_dim() / 2);
    q_absorbed = static_cast<size_t>(attention_rows * heads * latent);
    o_latent = static_cast<size_t>(attention_rows * heads * config.kv_lora_rank);
    head_h = static_cast<size_t>(kHeadRows * config.hidden_size);
    logits = static_cast<size_t>(kHeadRows * config.vocab_size);
  }
};

}  // namespace

CpuCompute::CpuCompute(const model::ModelConfig& config, const Weights& weights, KvCache& cache,
                       ThreadTeam& team, int64_t rows_max)
    : config_(config),
      weights_(weights),
      cache_(cache),
      team_(team),
      inv_freq_(config.rope_inv_freq()),
      softmax_scale_(static_cast<float>(config.softmax_scale())),
      rows_max_(rows_max),
      num_pairs_(config.rope_head_dim() / 2) {
  const Sizes sizes(config, rows_max);
  for (size_t what = 0; what < kNumActivations; ++what) {
    activations_[what].resize(sizes.activations[what]);
  }
  cos_.resize(sizes.angles);
  sin_.resize(sizes.angles);
  q_absorbed_.resize(sizes.q_absorbed);
  o_latent_.resize(sizes.o_latent);
  head_h_.resize(sizes.head_h);
  logits_.resize(sizes.logits);
}

uint64_t CpuCompute::buffer_bytes(const model::ModelConfig& config, int64_t rows_max) {
  const Sizes sizes(config, rows_max);
  size_t values = std::accumulate(sizes.activations.begin(), sizes.activations.end(), size_t{0});
  values += 2 * sizes.angles + sizes.q_absorbed + sizes.o_latent + sizes.head_h + sizes.logits;
  // The widest rows that a linear layer of the step takes.
  const int64_t widest =
      std::max({config.hidden_size, config.num_attention_heads * config.o_head_dim(),
                config.intermediate_size, config.n_shared_experts * config.moe_intermediate_size});
  return values * sizeof(float) + kernels::linear_rows_bytes(rows_max, widest);
}

float* CpuCompute::at(Activation what) {
  std::vector<float>& values = activations_[static_cast<size_t>(what)];
  if (first_row_ == 0) return values.data();
  CHECK(what != Activation::kHintH);  // has less rows
  return values.data() + first_row_ * (std::ssize(values) / rows_max_);
}

void CpuCompute::begin(std::span<const StepRow> rows) {
  step_rows_ = rows_ = rows;
  first_row_ = 0;
  float* x = at(Activation::kX);
  team_.parallel_for(num_rows(), 4, [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      weights_.embed(rows_[row].token, &x[row * config_.hidden_size]);
    }
  });
  // cos and sin of every row's angles, in double. Source: docs/model.md 3.4.
  const int64_t pairs = num_pairs_;
  const double magnitude = config_.rope_magnitude();
  for (int64_t row = 0; row < num_rows(); ++row) {
    for (int64_t i = 0; i < pairs; ++i) {
      const double angle = static_cast<double>(rows_[row].position) * inv_freq_[i];
      cos_[row * pairs + i] = static_cast<float>(std::cos(angle) * magnitude);
      sin_[row * pairs + i] = static_cast<float>(std::sin(angle) * magnitude);
    }
  }
}

void CpuCompute::rms_norm(Activation from, const std::vector<float>& weight, float eps,
                          Activation to) {
  const auto width = static_cast<int64_t>(weight.size());
  const float* x = at(from);
  float* y = at(to);
  team_.parallel_for(num_rows(), 4, [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      kernels::rms_norm(&x[row * width], weight.data(), eps, width, &y[row * width]);
    }
  });
}

void CpuCompute::put_rows(std::span<const float> values, Activation to) {
  CHECK_EQ(static_cast<int64_t>(values.size()), num_rows() * config_.hidden_size);
  std::copy(values.begin(), values.end(), at(to));
}

void CpuCompute::linear(const Linear& weights, Activation from, Activation to) {
  const kernels::PanelShape& shape = weights.matrix.shape;
  kernels::linear(team_, weights.matrix, num_rows(), at(from), shape.k, at(to), shape.outputs);
}

void CpuCompute::select_rows(int64_t row_begin, int64_t n) {
  CHECK(row_begin >= 0 && n > 0 && row_begin + n <= std::ssize(step_rows_));
  first_row_ = row_begin;
  rows_ = step_rows_.subspan(static_cast<size_t>(row_begin), static_cast<size_t>(n));
}

void CpuCompute::keep_rows(std::span<const int32_t> kept) {
  CHECK_EQ(rows_.size(), step_rows_.size());
  const int64_t hidden = config_.hidden_size, pairs = num_pairs_;
  std::vector<StepRow> rows;
  for (size_t to = 0; to < kept.size(); ++to) {
    const auto from = static_cast<size_t>(kept[to]);
    CHECK(from >= to && from < rows_.size());
    rows.push_back(rows_[from]);
    const auto move = [&](float* values, int64_t width) {
      std::copy_n(values + static_cast<int64_t>(from) * width, width,
                  values + static_cast<int64_t>(to) * width);
    };
    if (from == to) continue;
    move(at(Activation::kX), hidden);
    move(at(Activation::kH), hidden);
    move(cos_.data(), pairs);
    move(sin_.data(), pairs);
  }
  kept_rows_ = std::move(rows);
  step_rows_ = rows_ = kept_rows_;
}

void CpuCompute::rope_queries() {
  const int64_t heads = config_.num_attention_heads, width = config_.qk_head_dim();
  float* q = at(Activation::kQ);
  team_.parallel_for(num_rows(), 4, [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t head = 0; head < heads; ++head) {
        float* q_pe = &q[(row * heads + head) * width + config_.qk_nope_head_dim];
        kernels::rope_interleaved(q_pe, cosines(row), sines(row), num_pairs_);
      }
    }
  });
}

void CpuCompute::write_latents(int64_t layer, const std::vector<float>& weight) {
  const int64_t rank = config_.kv_lora_rank, width = rank + config_.qk_rope_head_dim;
  for (int64_t row = 0; row < num_rows(); ++row) {
    float* latent = at(Activation::kKvA) + row * width;
    float* k_pe = latent + rank;
    kernels::rms_norm(latent, weight.data(), model::kInnerNormEps, rank, latent);
    kernels::rope_interleaved(k_pe, cosines(row), sines(row), num_pairs_);
    const int64_t position = rows_[row].position;
    cache_.write(layer, rows_[row].blocks[position / kernels::kAttentionBlock],
                 position % kernels::kAttentionBlock, 0, {latent, static_cast<size_t>(width)});
  }
}

int64_t CpuCompute::attention_rows() const { return kAttentionRows; }

void CpuCompute::absorb_queries(const MlaWeights& weights, int64_t row_begin, int64_t n) {
  const int64_t heads = config_.num_attention_heads, nope = config_.qk_nope_head_dim;
  const int64_t rope = config_.qk_rope_head_dim, rank = config_.kv_lora_rank;
  const float* q = at(Activation::kQ);
  team_.parallel_for(heads, head_grain(), [&](int64_t begin, int64_t end, int) {
    std::vector<const float*> from(n);
    std::vector<float*> to(n);
    for (int64_t head = begin; head < end; ++head) {
      for (int64_t row = 0; row < n; ++row) {
        from[row] = &q[((row_begin + row) * heads + head) * (nope + rope)];
        to[row] = &q_absorbed_[(row * heads + head) * (rank + rope)];
        std::memcpy(to[row] + rank, from[row] + nope, rope * sizeof(float));
      }
      const kernels::PanelMatrix& w_k = weights.w_k[head].matrix;
      const kernels::PanelMatrix* next = head + 1 < end ? &weights.w_k[head + 1].matrix : nullptr;
      kernels::linear_panels(w_k, 0, w_k.shape.num_panels(), from, to, next);
    }
  });
}

void CpuCompute::attend_latents(int64_t layer, int64_t row_begin, int64_t n) {
  const int64_t heads = config_.num_attention_heads;
  const int64_t rank = config_.kv_lora_rank, width = rank + config_.qk_rope_head_dim;
  const kernels::LatentShape shape{rank, config_.qk_rope_head_dim, cache_.shape().type};
  const int64_t unit_heads = heads_per_unit(n, heads, team_.num_threads());
  const int64_t head_units = ceil_div(heads, unit_heads);
  team_.parallel_for(n * head_units, 1, [&](int64_t begin, int64_t end, int) {
    std::vector<const void*> blocks;
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t row = unit / head_units, head = unit % head_units * unit_heads;
      const StepRow& step_row = rows_[row_begin + row];
      const int64_t num_positions = step_row.position + 1;
      blocks.clear();
      for (int64_t block = 0; block < KvCache::blocks_for(num_positions); ++block) {
        blocks.push_back(cache_.block(layer, step_row.blocks[block]));
      }
      kernels::mla_attend(shape, std::min(unit_heads, heads - head),
                          &q_absorbed_[(row * heads + head) * width], blocks, num_positions,
                          softmax_scale_, &o_latent_[(row * heads + head) * rank]);
    }
  });
}

void CpuCompute::unabsorb_values(const MlaWeights& weights, int64_t row_begin, int64_t n) {
  const int64_t heads = config_.num_attention_heads;
  const int64_t rank = config_.kv_lora_rank, v = config_.v_head_dim;
  float* o = at(Activation::kO);
  team_.parallel_for(heads, head_grain(), [&](int64_t begin, int64_t end, int) {
    std::vector<const float*> from(n);
    std::vector<float*> to(n);
    for (int64_t head = begin; head < end; ++head) {
      for (int64_t row = 0; row < n; ++row) {
        from[row] = &o_latent_[(row * heads + head) * rank];
        to[row] = &o[((row_begin + row) * heads + head) * v];
      }
      const kernels::PanelMatrix& w_v = weights.w_v[head].matrix;
      const kernels::PanelMatrix* next = head + 1 < end ? &weights.w_v[head + 1].matrix : nullptr;
      kernels::linear_panels(w_v, 0, w_v.shape.num_panels(), from, to, next);
    }
  });
}

// Heads that a unit of the head-by-head matrices takes: they lie one behind the other in memory.
int64_t CpuCompute::head_grain() const {
  return ceil_div(config_.num_attention_heads, kTurnsPerMember * team_.num_threads());
}

// ---- GQA ---------------------------------------------------------------------------------------

void CpuCompute::add_bias(const std::vector<float>& bias, Activation to) {
  const auto width = static_cast<int64_t>(bias.size());
  float* y = at(to);
  team_.parallel_for(num_rows(), 4, [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      kernels::add_in_place(&y[row * width], bias.data(), width);
    }
  });
}

void CpuCompute::rope_heads(Activation what) {
  CHECK(what == Activation::kQ || what == Activation::kK);
  const int64_t heads =
      what == Activation::kQ ? config_.num_attention_heads : config_.num_key_value_heads;
  const int64_t width = config_.head_dim;
  float* values = at(what);
  team_.parallel_for(num_rows(), 4, [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t head = 0; head < heads; ++head) {
        kernels::rope_halves(&values[(row * heads + head) * width], cosines(row), sines(row),
                             num_pairs_);
      }
    }
  });
}

void CpuCompute::write_keys_and_values(int64_t layer) {
  const int64_t heads = config_.num_key_value_heads, width = config_.head_dim;
  const float* k = at(Activation::kK);
  const float* v = at(Activation::kV);
  team_.parallel_for(num_rows(), 4, [&](int64_t begin, int64_t end, int) {
    std::vector<float> entry(static_cast<size_t>(2 * width));
    for (int64_t row = begin; row < end; ++row) {
      const int64_t position = rows_[row].position;
      for (int64_t head = 0; head < heads; ++head) {
        std::copy_n(&k[(row * heads + head) * width], width, entry.data());
        std::copy_n(&v[(row * heads + head) * width], width, entry.data() + width);
        cache_.write(layer, rows_[row].blocks[position / kernels::kAttentionBlock],
                     position % kernels::kAttentionBlock, head, entry);
      }
    }
  });
}

// A unit is some heads of one row's group, which share the widening of its keys and values.
void CpuCompute::attend_groups(int64_t layer) {
  const int64_t heads = config_.num_attention_heads, groups = config_.num_key_value_heads;
  const int64_t group_heads = heads / groups, width = config_.head_dim;
  const kernels::GroupedShape shape{width, cache_.shape().type};
  const int64_t unit_heads = heads_per_unit(num_rows() * groups, group_heads, team_.num_threads());
  const int64_t group_units = ceil_div(group_heads, unit_heads);
  const float* q = at(Activation::kQ);
  float* o = at(Activation::kO);
  team_.parallel_for(num_rows() * groups * group_units, 1, [&](int64_t begin, int64_t end, int) {
    std::vector<const void*> blocks;
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t row = unit / (groups * group_units);
      const int64_t group = unit / group_units % groups;
      const int64_t in_group = unit % group_units * unit_heads;
      const StepRow& step_row = rows_[row];
      const int64_t num_positions = step_row.position + 1;
      blocks.clear();
      for (int64_t block = 0; block < KvCache::blocks_for(num_positions); ++block) {
        blocks.push_back(cache_.block(layer, step_row.blocks[block], group));
      }
      const int64_t at_head = row * heads + group * group_heads + in_group;
      kernels::gqa_attend(shape, std::min(unit_heads, group_heads - in_group), &q[at_head * width],
                          blocks, num_positions, softmax_scale_, &o[at_head * width]);
    }
  });
}

// ---- Of every model ----------------------------------------------------------------------------

void CpuCompute::silu_mul(int64_t width) {
  float* gate = at(Activation::kGate);
  const float* up = at(Activation::kUp);
  team_.parallel_for(num_rows(), 4, [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      kernels::silu_mul(&gate[row * width], &up[row * width], width, &gate[row * width]);
    }
  });
}

void CpuCompute::add(Activation from, Activation to) {
  const int64_t hidden = config_.hidden_size;
  const float* x = at(from);
  float* y = at(to);
  team_.parallel_for(num_rows(), 4, [&](int64_t begin, int64_t end, int) {
    kernels::add_in_place(&y[begin * hidden], &x[begin * hidden], (end - begin) * hidden);
  });
}

void CpuCompute::clear(Activation what) {
  const int64_t width = std::ssize(activations_[static_cast<size_t>(what)]) / rows_max_;
  std::fill_n(at(what), num_rows() * width, 0.0f);
}

void CpuCompute::route(const Linear& router, const std::vector<float>& bias, Activation from,
                       RouterOutput* to) {
  linear(router, from, Activation::kRouterLogits);
  const kernels::RouterShape shape = config_.router_shape();
  float* logits = at(Activation::kRouterLogits);
  const int64_t top_k = shape.num_experts_per_tok;
  to->topk_ids.resize(num_rows() * top_k);
  to->topk_weights.resize(num_rows() * top_k);
  to->finite.resize(num_rows());
  for (int64_t row = 0; row < num_rows(); ++row) {
    int32_t* ids = &to->topk_ids[row * top_k];
    float* weights = &to->topk_weights[row * top_k];
    to->finite[row] = kernels::route(shape, &logits[row * shape.n_routed_experts],
                                     bias.empty() ? nullptr : bias.data(), ids, weights);
    if (!to->finite[row]) {
      std::fill_n(ids, top_k, -1);
      std::fill_n(weights, top_k, 0.0f);
    }
  }
}

// A few rows at a time.
void CpuCompute::head(const std::vector<float>& norm, float eps, const Linear& lm_head,
                      const LogitsSink& sink) {
  const int64_t hidden = config_.hidden_size, vocab = config_.vocab_size;
  const float* x = at(Activation::kX);
  std::vector<size_t> wanted;
  for (size_t row = 0; row < rows_.size(); ++row) {
    if (rows_[row].wants_logits) wanted.push_back(row);
  }
  for (size_t begin = 0; begin < wanted.size(); begin += kHeadRows) {
    const size_t n = std::min<size_t>(kHeadRows, wanted.size() - begin);
    for (size_t i = 0; i < n; ++i) {
      kernels::rms_norm(&x[wanted[begin + i] * hidden], norm.data(), eps, hidden,
                        &head_h_[i * hidden]);
    }
    kernels::linear(team_, lm_head.matrix, n, head_h_.data(), hidden, logits_.data(), vocab);
    for (size_t i = 0; i < n; ++i) {
      sink(wanted[begin + i], std::span(logits_).subspan(i * vocab, vocab));
    }
  }
}

void CpuCompute::store_block(int64_t layer, BlockId block, const float* entries) {
  const CacheShape& shape = cache_.shape();
  const auto width = static_cast<size_t>(shape.width);
  for (int64_t part = 0; part < shape.parts; ++part) {
    for (int64_t slot = 0; slot < kernels::kAttentionBlock; ++slot, entries += width) {
      cache_.write(layer, block, slot, part, {entries, width});
    }
  }
}

}  // namespace atl::coordinator
