// The engine: sequences with their cache, stepped together.
//
// A step takes some tokens of any sequences (prefill chunks, decode tokens, in any mix), runs them
// through the model and moves the sequences on. What a sequence gets depends on its own tokens
// only.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/clock.h"
#include "base/result.h"
#include "base/thread_team.h"
#include "coordinator/cluster/dispatcher.h"
#include "coordinator/engine/cpu_compute.h"
#include "coordinator/engine/decode_step.h"
#include "coordinator/engine/kv_cache.h"
#include "coordinator/engine/prefix_cache.h"
#include "coordinator/engine/weights.h"
#include "model/config.h"

namespace atl::coordinator {

struct EngineOptions {
  kernels::RowType cache_type = kernels::RowType::kBf16;
  int64_t rows_max = 512;     // of one step, over all sequences
  int64_t cache_blocks = 64;  // of 64 positions, over all sequences
  Prefetch prefetch = Prefetch::kOff;
  Halves halves = Halves::kOff;
};

// One sequence's place in the cache. Owned by the caller; release() it in the end.
struct Sequence {
  int64_t num_tokens = 0;  // in the cache
  std::vector<BlockId> blocks;
  int64_t num_published = 0;       // of the blocks: known to other sequences
  PrefixCache::Prefix prefix = 0;  // the place after them
  // Of the next-token layer (Engine::draft()): its cache has the entries [mtp_begin, mtp_end), and
  // the hidden rows of the positions that follow wait for their next tokens.
  int64_t mtp_begin = 0, mtp_end = 0;  // mtp_begin: the first position of a block
  std::vector<float> mtp_hidden;       // [n, hidden_size]
};

enum class WantLogits : uint8_t { kNone, kLast, kAll };

// The next tokens of one sequence for one step.
struct SequenceRows {
  Sequence* sequence = nullptr;
  std::span<const int32_t> tokens;  // not empty
  WantLogits logits = WantLogits::kNone;
  // The rows that draft() will take, from this position on; none: draft() is not called for them.
  std::optional<int64_t> mtp_from = {};
};

// What the next-token layer is asked for behind one sequence.
struct DraftWork {
  Sequence* sequence = nullptr;
  // The sequence's, one more than are in its cache if something is to be proposed; borrowed.
  std::span<const int32_t> tokens;
  int64_t most = 0;            // tokens to propose; 0: only its cache goes on
  std::vector<int32_t> draft;  // the answer: at most `most`
};

// Place in the step's list, index of the token within its `tokens`, [vocab_size] logits (borrowed).
using SequenceLogitsSink = std::function<void(size_t, size_t, std::span<const float>)>;

using ComputeMaker = std::function<std::unique_ptr<Compute>(KvCache&)>;

// One thread.
class Engine {
 public:
  // All references are borrowed and must outlive the engine; `experts` may be null for a model
  // without MoE layers.
  //   make_compute  what steps are computed on, given the cache; none, or nullptr from it: this
  //                 machine's cores
  Engine(const model::ModelConfig& config, const Weights& weights, Dispatcher* experts,
         ThreadTeam& team, const Clock& clock, EngineOptions options,
         const ComputeMaker& make_compute = {});

  // Steps every listed sequence (each at most once, at most rows_max tokens in all).
  // errors [work.size()]: kInvalid for a token id or position that the model doesn't have or a
  // result out of range; kOverloaded when the cache is full. Such a sequence has not moved and the
  // others are unaffected. An error of the whole step is returned; then none has moved.
  Status step(std::span<const SequenceRows> work, const SequenceLogitsSink& sink,
              std::span<std::optional<Error>> errors, StepObserver* observer = nullptr);

  // Whether the weights have the model's next-token layer.
  bool has_mtp() const { return weights_.mtp() != nullptr; }
  // Takes the next-token layer over the tokens that steps with `mtp_from` took the sequences over,
  // and proposes tokens that may follow: the likeliest by that layer, each given those before it.
  // Where steps left positions out, or entries failed, a sequence begins anew at its next block and
  // has no draft until then; nothing is taken over from kept prefixes. What is proposed behind the
  // room that a sequence has in the cache is left out. On an error of the whole pass nobody has a
  // draft and all begin anew.
  Status draft(std::span<DraftWork> work, StepObserver* observer = nullptr);

  // Tells the nodes for whom the next steps are, for their logs: ids of requests.
  void announce(const std::string& request_ids);

  // Moves an empty sequence over the longest prefix of `tokens` that was kept (keep()), in whole
  // blocks and leaving at least one token to step; its num_tokens tells how far.
  void reuse(Sequence& sequence, std::span<const int32_t> tokens);
  // Makes the full blocks of the sequence known, so that they are kept after release() as long as
  // there is room, for sequences that begin alike. `tokens` are the sequence's, at least
  // num_tokens.
  void keep(Sequence& sequence, std::span<const int32_t> tokens);

  // Takes the sequence back to its first num_tokens, which are at least those in blocks that keep()
  // made known. Entries behind them are written anew before they are read.
  void rewind(Sequence& sequence, int64_t num_tokens);

  // Gives the sequence's blocks back and empties it.
  void release(Sequence& sequence);

  // For benchmarks: moves an empty sequence to num_tokens positions whose cache entries are random
  // numbers (the same in each block of 64), since the time of a step depends on how many there are
  // and not on what they say. Errors as of step().
  Status fill_context(Sequence& sequence, int64_t num_tokens, uint64_t seed);

  const EngineOptions& options() const { return options_; }
  const model::ModelConfig& config() const { return config_; }
  const Weights& weights() const { return weights_; }
  const StepTimes& times() const { return step_.times(); }
  // Hears of every stage of the steps to come; null: nobody. Borrowed.
  void set_stage_sink(StageSink* sink) { step_.set_stage_sink(sink); }
  // Likewise of what steps choose.
  void set_routing_recorder(RoutingRecorder* recorder) { step_.set_routing_recorder(recorder); }
  const HintStats& hint_stats() const { return step_.hint_stats(); }
  const ExpertLoad& expert_load() const { return step_.expert_load(); }  // any thread
  const KvCache& cache() const { return cache_; }
  const PrefixCache& prefixes() const { return prefixes_; }

 private:
  Status run(std::span<const StepRow> rows, const LogitsSink& sink,
             std::span<std::optional<Error>> row_errors, StepObserver* observer);
  std::optional<Error> admit(const SequenceRows& rows);
  std::optional<int64_t> mtp_rows_from(const SequenceRows& rows) const;
  Status fill_mtp(std::span<DraftWork> work, StepObserver* observer);
  Status chain_mtp(std::span<DraftWork> work, StepObserver* observer);
  Status run_mtp(std::span<const StepRow> rows, std::span<const float> hidden,
                 const LogitsSink& sink, std::span<std::optional<Error>> row_errors,
                 StepObserver* observer);
  std::optional<Error> make_room(Sequence& sequence, int64_t num_tokens);

  const model::ModelConfig& config_;
  const Weights& weights_;
  const EngineOptions options_;
  Dispatcher* const experts_;
  KvCache cache_;
  PrefixCache prefixes_;
  std::unique_ptr<Compute> compute_;
  DecodeStep step_;
  std::vector<float> last_hidden_;  // of draft(): [work, hidden_size] the layer's last output
};

}  // namespace atl::coordinator
