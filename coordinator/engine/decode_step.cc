#include "coordinator/engine/decode_step.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/check.h"
#include "base/fp_env.h"
#include "kernels/attention.h"
#include "kernels/linear.h"
#include "kernels/ops.h"
#include "kernels/router.h"

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

// Adds the seconds of its life to *total.
class Stopwatch {
 public:
  Stopwatch(const Clock& clock, double* total)
      : clock_(clock), total_(total), start_(clock.now()) {}
  ~Stopwatch() { *total_ += seconds_between(start_, clock_.now()); }

 private:
  const Clock& clock_;
  double* total_;
  Clock::TimePoint start_;
};

}  // namespace

Status DecodeStep::run(std::span<const StepRow> rows, const LogitsSink& sink,
                       std::span<std::optional<Error>> row_errors, StepObserver* observer) {
  CHECK(!rows.empty() && static_cast<int64_t>(rows.size()) <= options_.rows_max);
  CHECK_EQ(rows.size(), row_errors.size());
  ScopedStandardFpEnv fp_env;
  rows_ = rows;
  row_errors_ = row_errors;
  hinted_.clear();  // a step before may have ended half-way
  embed();
  rotations();

  for (int64_t layer = 0; layer < config_.num_hidden_layers; ++layer) {
    const LayerWeights& weights = weights_.layers()[layer];
    norm(weights.input_layernorm, h_);
    attention(layer, weights.attention);
    residual();

    norm(weights.post_attention_layernorm, h_);
    if (config_.is_moe_layer(layer)) {
      if (Status status = moe(layer, weights, observer); !status) return status;
    } else {
      Stopwatch watch(clock_, &times_.dense_ffn);
      ffn(weights.ffn);
    }
    residual();
    if (observer)
      observer->on_hidden(layer, std::span(x_).first(rows.size() * config_.hidden_size));
  }

  head(sink);
  ++times_.steps;
  times_.rows += rows.size();
  return {};
}

// y = sum of w_e Expert_e(h) + Shared(h): the routed part on the expert nodes, the shared part here
// meanwhile.
Status DecodeStep::moe(int64_t layer, const LayerWeights& weights, StepObserver* observer) {
  {
    Stopwatch watch(clock_, &times_.router);
    route(layer, weights);
  }
  count_foretold();
  const size_t num_choices = rows_.size() * config_.num_experts_per_tok;
  if (observer) {
    observer->on_routes(layer, std::span(topk_ids_).first(num_choices),
                        std::span(topk_weights_).first(num_choices));
  }
  {
    Stopwatch watch(clock_, &times_.dispatch);
    if (Status sent = experts_->dispatch(static_cast<int32_t>(layer), num_rows(), h_.data(),
                                         topk_ids_.data(), topk_weights_.data());
        !sent) {
      return sent;
    }
  }
  hint_next_layer(layer, observer);
  const double combine_before = times_.combine;
  {
    Stopwatch watch(clock_, &times_.shared_experts);
    ffn(weights.ffn);
  }
  times_.shared_experts -= times_.combine - combine_before;  // what poll_experts() took
  Stopwatch watch(clock_, &times_.combine);
  auto failures = experts_->combine(out_.data());
  if (!failures) return failures.error();
  for (const RowFailure& failure : *failures) {
    std::optional<Error>& error = row_errors_[failure.row];
    if (error) continue;  // the first layer that failed is the cause
    const std::string who =
        failure.expert < 0 ? "the sum over the experts" : fmt::format("expert {}", failure.expert);
    error = Error{ErrorCode::kInvalid,
                  fmt::format("position {}, layer {}: {} gave a value that is not finite or beyond "
                              "+-8388608",
                              rows_[failure.row].position, layer, who)};
  }
  ++times_.moe_layers;
  return {};
}

// Multi-head latent attention in its absorbed form. Source: docs/model.md 3.2.
void DecodeStep::attention(int64_t layer, const AttentionWeights& weights) {
  Stopwatch watch(clock_, &times_.attention);
  queries(weights);
  write_cache(layer, weights);
  for (int64_t row = 0; row < num_rows(); row += kAttentionRows) {
    const int64_t n = std::min(kAttentionRows, num_rows() - row);
    absorb_queries(weights, row, n);
    attend(layer, row, n);
    unabsorb_values(weights, row, n);
  }
  linear(weights.o_proj, o_, out_);
}

// q = RMSNorm(h q_a) q_b, its rope part rotated.
void DecodeStep::queries(const AttentionWeights& weights) {
  if (weights.q_a_proj) {
    linear(weights.q_a_proj, h_, q_a_);
    const int64_t rank = config_.q_lora_rank;
    for (int64_t row = 0; row < num_rows(); ++row) {
      kernels::rms_norm(&q_a_[row * rank], weights.q_a_layernorm.data(), model::kInnerNormEps, rank,
                        &q_a_[row * rank]);
    }
    linear(weights.q_proj, q_a_, q_);
  } else {
    linear(weights.q_proj, h_, q_);
  }
  const int64_t heads = config_.num_attention_heads, width = config_.qk_head_dim();
  const int64_t pairs = config_.qk_rope_head_dim / 2;
  team_.parallel_for(num_rows(), 4, [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      for (int64_t head = 0; head < heads; ++head) {
        float* q_pe = &q_[(row * heads + head) * width + config_.qk_nope_head_dim];
        kernels::rope_interleaved(q_pe, &cos_[row * pairs], &sin_[row * pairs], pairs);
      }
    }
  });
}

// c = RMSNorm(latent), k_pe rotated, both rounded into the cache.
void DecodeStep::write_cache(int64_t layer, const AttentionWeights& weights) {
  linear(weights.kv_a_proj, h_, kv_a_);
  const int64_t rank = config_.kv_lora_rank, width = rank + config_.qk_rope_head_dim;
  const int64_t pairs = config_.qk_rope_head_dim / 2;
  for (int64_t row = 0; row < num_rows(); ++row) {
    float* latent = &kv_a_[row * width];
    float* k_pe = latent + rank;
    kernels::rms_norm(latent, weights.kv_a_layernorm.data(), model::kInnerNormEps, rank, latent);
    kernels::rope_interleaved(k_pe, &cos_[row * pairs], &sin_[row * pairs], pairs);
    const int64_t position = rows_[row].position;
    cache_.write(layer, rows_[row].blocks[position / kernels::kAttentionBlock],
                 position % kernels::kAttentionBlock, latent, k_pe);
  }
}

// q~ = q_nope Wk with q_pe behind it, for rows [row_begin, +n).
void DecodeStep::absorb_queries(const AttentionWeights& weights, int64_t row_begin, int64_t n) {
  Stopwatch watch(clock_, &times_.attention_absorbed);
  const int64_t heads = config_.num_attention_heads, nope = config_.qk_nope_head_dim;
  const int64_t rope = config_.qk_rope_head_dim, rank = config_.kv_lora_rank;
  team_.parallel_for(heads, head_grain(), [&](int64_t begin, int64_t end, int) {
    std::vector<const float*> from(n);
    std::vector<float*> to(n);
    for (int64_t head = begin; head < end; ++head) {
      for (int64_t row = 0; row < n; ++row) {
        from[row] = &q_[((row_begin + row) * heads + head) * (nope + rope)];
        to[row] = &q_absorbed_[(row * heads + head) * (rank + rope)];
        std::memcpy(to[row] + rank, from[row] + nope, rope * sizeof(float));
      }
      const kernels::PanelMatrix& w_k = weights.w_k[head].matrix;
      const kernels::PanelMatrix* next = head + 1 < end ? &weights.w_k[head + 1].matrix : nullptr;
      kernels::linear_panels(w_k, 0, w_k.shape.num_panels(), from, to, next);
    }
  });
}

// o~ = softmax(scale (q~ c + q_pe k_pe)) c, each row over its sequence up to itself.
void DecodeStep::attend(int64_t layer, int64_t row_begin, int64_t n) {
  Stopwatch watch(clock_, &times_.attention_core);
  const int64_t heads = config_.num_attention_heads;
  const int64_t rank = config_.kv_lora_rank, width = rank + config_.qk_rope_head_dim;
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
      kernels::mla_attend(cache_.shape(), std::min(unit_heads, heads - head),
                          &q_absorbed_[(row * heads + head) * width], blocks, num_positions,
                          softmax_scale_, &o_latent_[(row * heads + head) * rank]);
    }
  });
}

// o = o~ Wv^T.
void DecodeStep::unabsorb_values(const AttentionWeights& weights, int64_t row_begin, int64_t n) {
  Stopwatch watch(clock_, &times_.attention_absorbed);
  const int64_t heads = config_.num_attention_heads;
  const int64_t rank = config_.kv_lora_rank, v = config_.v_head_dim;
  team_.parallel_for(heads, head_grain(), [&](int64_t begin, int64_t end, int) {
    std::vector<const float*> from(n);
    std::vector<float*> to(n);
    for (int64_t head = begin; head < end; ++head) {
      for (int64_t row = 0; row < n; ++row) {
        from[row] = &o_latent_[(row * heads + head) * rank];
        to[row] = &o_[((row_begin + row) * heads + head) * v];
      }
      const kernels::PanelMatrix& w_v = weights.w_v[head].matrix;
      const kernels::PanelMatrix* next = head + 1 < end ? &weights.w_v[head + 1].matrix : nullptr;
      kernels::linear_panels(w_v, 0, w_v.shape.num_panels(), from, to, next);
    }
  });
}

// Heads that a unit of the head-by-head matrices takes: they lie one behind the other in memory.
int64_t DecodeStep::head_grain() const {
  return ceil_div(config_.num_attention_heads, kTurnsPerMember * team_.num_threads());
}

// out = W_down (silu(W_gate h) * (W_up h)); zero if the layer has no such experts.
void DecodeStep::ffn(const FfnWeights& weights) {
  if (!weights) {
    std::fill(out_.begin(), out_.end(), 0.0f);
    return;
  }
  linear(weights.gate_proj, h_, gate_);
  poll_experts();
  linear(weights.up_proj, h_, up_);
  poll_experts();
  const int64_t width = weights.gate_proj.matrix.shape.outputs;
  team_.parallel_for(num_rows(), 4, [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      kernels::silu_mul(&gate_[row * width], &up_[row * width], width, &gate_[row * width]);
    }
  });
  linear(weights.down_proj, gate_, out_);
}

// Takes what has arrived from the expert nodes; an expert node in this process computes here.
void DecodeStep::poll_experts() {
  if (!experts_) return;
  Stopwatch watch(clock_, &times_.combine);
  experts_->poll();
}

// Logits in FP32 from the FP32 row (not the rounded one that the experts see).
void DecodeStep::route(int64_t layer, const LayerWeights& weights) {
  linear(weights.router, h_, router_logits_);
  const kernels::RouterShape shape = config_.router_shape();
  const float* bias =
      weights.e_score_correction_bias.empty() ? nullptr : weights.e_score_correction_bias.data();
  for (int64_t row = 0; row < num_rows(); ++row) {
    int32_t* ids = &topk_ids_[row * shape.num_experts_per_tok];
    float* choice_weights = &topk_weights_[row * shape.num_experts_per_tok];
    if (kernels::route(shape, &router_logits_[row * shape.n_routed_experts], bias, ids,
                       choice_weights)) {
      continue;
    }
    std::fill_n(ids, shape.num_experts_per_tok, -1);
    std::fill_n(choice_weights, shape.num_experts_per_tok, 0.0f);
    if (!row_errors_[row]) {
      row_errors_[row] = Error{ErrorCode::kInvalid,
                               fmt::format("position {}, layer {}: the router's logits are not "
                                           "finite",
                                           rows_[row].position, layer)};
    }
  }
}

// Foretells the experts of the next layer, just after this layer's dispatch was sent, so that nodes
// may read them while they compute this one. The state used is the residual stream x as it is now:
// this layer's attention added, its experts (routed and shared) and the next layer's attention not
// yet. It is normalised by the next layer's post_attention_layernorm and goes through the next
// layer's router with its bias and groups, which is what that layer will do with the finished x.
// The stream changes little from one layer to the next, and this state is all there is before the
// answers of the nodes.
void DecodeStep::hint_next_layer(int64_t layer, StepObserver* observer) {
  const int64_t next = layer + 1;
  if (options_.prefetch == Prefetch::kOff || num_rows() > kHintRowsMax ||
      next >= config_.num_hidden_layers || !config_.is_moe_layer(next)) {
    return;
  }
  Stopwatch watch(clock_, &times_.prefetch);
  const LayerWeights& weights = weights_.layers()[next];
  norm(weights.post_attention_layernorm, hint_h_);
  linear(weights.router, hint_h_, router_logits_);
  const kernels::RouterShape shape = config_.router_shape();
  const float* bias =
      weights.e_score_correction_bias.empty() ? nullptr : weights.e_score_correction_bias.data();
  for (int64_t row = 0; row < num_rows(); ++row) {
    if (!kernels::route(shape, &router_logits_[row * shape.n_routed_experts], bias,
                        hint_ids_.data(), hint_weights_.data())) {
      continue;  // a row that the next layer will find out about
    }
    hinted_.insert(hinted_.end(), hint_ids_.begin(), hint_ids_.end());
  }
  std::sort(hinted_.begin(), hinted_.end());
  hinted_.erase(std::unique(hinted_.begin(), hinted_.end()), hinted_.end());
  experts_->hint(static_cast<int32_t>(next), hinted_);
  if (observer) observer->on_hint(next, hinted_);
}

// Compares the layer's choices with the hint that was given of it.
void DecodeStep::count_foretold() {
  if (hinted_.empty()) return;
  const size_t num_choices = rows_.size() * config_.num_experts_per_tok;
  std::vector<int32_t> chosen(topk_ids_.begin(), topk_ids_.begin() + num_choices);
  std::sort(chosen.begin(), chosen.end());
  chosen.erase(std::unique(chosen.begin(), chosen.end()), chosen.end());
  if (chosen.front() < 0) chosen.erase(chosen.begin());  // rows that could not be routed
  ++hint_stats_.layers;
  hint_stats_.hinted += hinted_.size();
  hint_stats_.chosen += chosen.size();
  for (const int32_t expert : chosen) {
    hint_stats_.foretold += std::binary_search(hinted_.begin(), hinted_.end(), expert);
  }
  hinted_.clear();
}

void DecodeStep::embed() {
  team_.parallel_for(num_rows(), 4, [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      weights_.embed(rows_[row].token, &x_[row * config_.hidden_size]);
    }
  });
}

// cos and sin of every row's angles, in double. Source: docs/model.md 3.4.
void DecodeStep::rotations() {
  const int64_t pairs = config_.qk_rope_head_dim / 2;
  const double magnitude = config_.rope_magnitude();
  for (int64_t row = 0; row < num_rows(); ++row) {
    for (int64_t i = 0; i < pairs; ++i) {
      const double angle = static_cast<double>(rows_[row].position) * inv_freq_[i];
      cos_[row * pairs + i] = static_cast<float>(std::cos(angle) * magnitude);
      sin_[row * pairs + i] = static_cast<float>(std::sin(angle) * magnitude);
    }
  }
}

void DecodeStep::norm(const std::vector<float>& weight, std::vector<float>& to) {
  const int64_t hidden = config_.hidden_size;
  team_.parallel_for(num_rows(), 4, [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      kernels::rms_norm(&x_[row * hidden], weight.data(), static_cast<float>(config_.rms_norm_eps),
                        hidden, &to[row * hidden]);
    }
  });
}

void DecodeStep::residual() {
  const int64_t hidden = config_.hidden_size;
  team_.parallel_for(num_rows(), 4, [&](int64_t begin, int64_t end, int) {
    kernels::add_in_place(&x_[begin * hidden], &out_[begin * hidden], (end - begin) * hidden);
  });
}

// logits = lm_head RMSNorm(x), a few rows at a time.
void DecodeStep::head(const LogitsSink& sink) {
  Stopwatch watch(clock_, &times_.head);
  const int64_t hidden = config_.hidden_size, vocab = config_.vocab_size;
  std::vector<size_t> wanted;
  for (size_t row = 0; row < rows_.size(); ++row) {
    if (rows_[row].wants_logits) wanted.push_back(row);
  }
  for (size_t begin = 0; begin < wanted.size(); begin += kHeadRows) {
    const size_t n = std::min<size_t>(kHeadRows, wanted.size() - begin);
    for (size_t i = 0; i < n; ++i) {
      kernels::rms_norm(&x_[wanted[begin + i] * hidden], weights_.norm().data(),
                        static_cast<float>(config_.rms_norm_eps), hidden, &h_[i * hidden]);
    }
    kernels::linear(team_, weights_.lm_head().matrix, n, h_.data(), hidden, logits_.data(), vocab);
    for (size_t i = 0; i < n; ++i) {
      sink(wanted[begin + i], std::span(logits_).subspan(i * vocab, vocab));
    }
  }
}

void DecodeStep::linear(const Linear& weights, const std::vector<float>& x, std::vector<float>& y) {
  const kernels::PanelShape& shape = weights.matrix.shape;
  kernels::linear(team_, weights.matrix, num_rows(), x.data(), shape.k, y.data(), shape.outputs);
}

DecodeStep::DecodeStep(const model::ModelConfig& config, const Weights& weights, KvCache& cache,
                       Dispatcher* experts, ThreadTeam& team, const Clock& clock,
                       DecodeStepOptions options)
    : config_(config),
      weights_(weights),
      cache_(cache),
      experts_(experts),
      team_(team),
      clock_(clock),
      options_(options),
      inv_freq_(config.rope_inv_freq()),
      softmax_scale_(static_cast<float>(config.softmax_scale())) {
  for (const BufferSize& size : buffer_sizes(config, options)) {
    (this->*size.buffer).resize(static_cast<size_t>(size.values));
  }
  topk_ids_.resize(topk_weights_.size());
  hint_ids_.resize(hint_weights_.size());
}

std::vector<DecodeStep::BufferSize> DecodeStep::buffer_sizes(const model::ModelConfig& config,
                                                             const DecodeStepOptions& options) {
  const int64_t n = options.rows_max, heads = config.num_attention_heads;
  const int64_t latent = config.kv_lora_rank + config.qk_rope_head_dim;
  const int64_t attention_rows = std::min(n, kAttentionRows);
  const int64_t ffn_width =
      std::max(config.intermediate_size, config.n_shared_experts * config.moe_intermediate_size);
  const bool hints = options.prefetch == Prefetch::kNextLayer;
  return {{&DecodeStep::x_, n * config.hidden_size},
          {&DecodeStep::h_, std::max(n, kHeadRows) * config.hidden_size},
          {&DecodeStep::out_, n * config.hidden_size},
          {&DecodeStep::q_a_, n * config.q_lora_rank},
          {&DecodeStep::q_, n * heads * config.qk_head_dim()},
          {&DecodeStep::kv_a_, n * latent},
          {&DecodeStep::cos_, n * config.qk_rope_head_dim / 2},
          {&DecodeStep::sin_, n * config.qk_rope_head_dim / 2},
          {&DecodeStep::q_absorbed_, attention_rows * heads * latent},
          {&DecodeStep::o_latent_, attention_rows * heads * config.kv_lora_rank},
          {&DecodeStep::o_, n * heads * config.v_head_dim},
          {&DecodeStep::gate_, n * ffn_width},
          {&DecodeStep::up_, n * ffn_width},
          {&DecodeStep::router_logits_, n * config.n_routed_experts},
          {&DecodeStep::topk_weights_, n * config.num_experts_per_tok},
          {&DecodeStep::logits_, kHeadRows * config.vocab_size},
          {&DecodeStep::hint_h_, hints ? std::min(n, kHintRowsMax) * config.hidden_size : 0},
          {&DecodeStep::hint_weights_, hints ? config.num_experts_per_tok : 0}};
}

uint64_t DecodeStep::buffer_bytes(const model::ModelConfig& config,
                                  const DecodeStepOptions& options) {
  int64_t values = 0;
  for (const BufferSize& size : buffer_sizes(config, options)) {
    const bool has_ids =
        size.buffer == &DecodeStep::topk_weights_ || size.buffer == &DecodeStep::hint_weights_;
    values += has_ids ? 2 * size.values : size.values;
  }
  return static_cast<uint64_t>(values) * sizeof(float);
}

}  // namespace atl::coordinator
