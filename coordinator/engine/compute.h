// What a step computes on one device, as operations on named activations.
//
// DecodeStep says what a layer is; a Compute says how its parts are done where the weights and the
// cache are. Operations may be queued: what the host reads (a router's choices, rows for the
// experts, logits) is there after wait(), which DecodeStep calls after route() and which head()
// contains. A result depends on the row it belongs to, never on the rows beside it
// (docs/numbers.md); two devices of one numerics profile give the same bits.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "base/result.h"
#include "coordinator/engine/kv_cache.h"
#include "coordinator/engine/weights.h"
#include "kernels/router.h"

namespace atl::coordinator {

// The activations of a step: [rows of the step, width] FP32 on the device.
enum class Activation : uint8_t {
  kX,    // [hidden] residual stream
  kH,    // [hidden] normalised
  kOut,  // [hidden] what a block adds
  kQA,   // [q_lora_rank]
  kQ,    // [heads, qk_head_dim]
  kKvA,  // [kv_lora_rank + rope], MLA
  kK,
  kV,  // [key-value heads, head_dim], GQA
  kO,  // [heads, o_head_dim]
  kGate,
  kUp,            // [intermediate]
  kRouterLogits,  // [n_routed_experts]
  kHintH,         // [hidden], of steps of at most kHintRowsMax rows
};
inline constexpr size_t kNumActivations = static_cast<size_t>(Activation::kHintH) + 1;

// Most rows of a step that hints are given in. More rows choose more of the experts, so that there
// is less to foretell: of V3's 256 experts, 8 a token, 16 independent rows choose 1 - (248/256)^16
// = 40 %, 64 rows 87 %. The bound also keeps what a wrong hint may cost to a part of a layer.
inline constexpr int64_t kHintRowsMax = 16;

struct StepRow {
  int32_t token = 0;
  int64_t position = 0;
  std::span<const BlockId> blocks;  // of the row's sequence, covering `position`; borrowed
  bool wants_logits = false;
  bool wants_hidden = false;  // the normalised last state, which DecodeStep keeps
};

// Called for each row that wants logits, in row order: row index, [vocab_size] FP32 borrowed.
using LogitsSink = std::function<void(size_t, std::span<const float>)>;

// What a router chose, in host memory: [rows, num_experts_per_tok] ids (-1 and weight 0 throughout
// where a row's logits were not finite) and weights.
struct RouterOutput {
  std::vector<int32_t> topk_ids;
  std::vector<float> topk_weights;
  std::vector<uint8_t> finite;  // [rows]
};

// Used by the engine's thread only. Weights and activations are borrowed from who made them and
// stay where they are; `rows` of begin() are borrowed until the step ends.
class Compute {
 public:
  virtual ~Compute() = default;

  // A step of these rows starts: at most rows_max. Their angles are computed, their tokens'
  // embedding rows go into kX.
  virtual void begin(std::span<const StepRow> rows) = 0;

  // to = from / rms(from) * weight, row by row; from may be to.
  virtual void rms_norm(Activation from, const std::vector<float>& weight, float eps,
                        Activation to) = 0;
  // to = `values` [rows, hidden_size] FP32 of the host, borrowed until the next wait().
  virtual void put_rows(std::span<const float> values, Activation to) = 0;
  // to = from W^T.
  virtual void linear(const Linear& weights, Activation from, Activation to) = 0;
  // Whether it can select rows.
  virtual bool selects_rows() const { return false; }
  // From here on operations are of the step's rows [row_begin, +n) alone, counted from 0, and leave
  // what the others have in the activations; begin() selects all.
  virtual void select_rows(int64_t row_begin, int64_t n) = 0;
  // From here to the step's end only these rows of it go on, ascending and not all: kX and kH hold
  // theirs, and rows are counted anew.
  virtual void keep_rows(std::span<const int32_t> kept) = 0;
  // ---- Of MLA ----
  // Rotates the rope part of every head of kQ.
  virtual void rope_queries() = 0;
  // kKvA: its latent part normalised by `weight`, its rope part rotated, both rounded into the
  // cache at each row's position.
  virtual void write_latents(int64_t layer, const std::vector<float>& weight) = 0;

  // Rows that the three parts of the core take at a time: bounds the absorbed queries.
  virtual int64_t attention_rows() const = 0;
  // q~ = q_nope Wk with q_pe behind it, for rows [row_begin, +n) of kQ, n <= attention_rows().
  virtual void absorb_queries(const MlaWeights& weights, int64_t row_begin, int64_t n) = 0;
  // o~ = softmax(scale (q~ c + q_pe k_pe)) c, each row over its sequence up to itself.
  virtual void attend_latents(int64_t layer, int64_t row_begin, int64_t n) = 0;
  // kO = o~ Wv^T.
  virtual void unabsorb_values(const MlaWeights& weights, int64_t row_begin, int64_t n) = 0;

  // ---- Of GQA ----
  // to += bias, in every row.
  virtual void add_bias(const std::vector<float>& bias, Activation to) = 0;
  // Rotates every head of kQ or kK, whose pairs are (i, head_dim / 2 + i).
  virtual void rope_heads(Activation what) = 0;
  // kK and kV rounded into the cache at each row's position.
  virtual void write_keys_and_values(int64_t layer) = 0;
  // kO = softmax(scale q k) v, each row over its sequence up to itself, each head with the keys and
  // values of its group.
  virtual void attend_groups(int64_t layer) = 0;

  // ---- Of every model ----
  // kGate = silu(kGate) * kUp, of `width` values a row.
  virtual void silu_mul(int64_t width) = 0;
  // to += from, of hidden_size values a row.
  virtual void add(Activation from, Activation to) = 0;
  virtual void clear(Activation what) = 0;

  // Logits of `from` in FP32 into kRouterLogits, and what is chosen by them. `to` is valid after
  // wait().
  virtual void route(const Linear& router, const std::vector<float>& bias, Activation from,
                     RouterOutput* to) = 0;
  // The rows of `what` in host memory, [rows, width]; valid after wait(), until it is written
  // again.
  virtual const float* host_rows(Activation what) = 0;
  // Memory of [rows, hidden] on the host where the nodes' sums are added to what kOut holds; they
  // are part of kOut from end_combine() on.
  virtual float* begin_combine() = 0;
  virtual void end_combine() = 0;

  // logits = lm_head RMSNorm(x) of those rows that want them.
  virtual void head(const std::vector<float>& norm, float eps, const Linear& lm_head,
                    const LogitsSink& sink) = 0;

  // For benchmarks, between steps: the entries of a block, [parts][64][width] FP32 as the cache
  // has them (CacheShape), rounded.
  virtual void store_block(int64_t layer, BlockId block, const float* entries) = 0;

  // Until everything queued is done. An error is the device's and ends the step.
  virtual Status wait() = 0;
};

}  // namespace atl::coordinator
