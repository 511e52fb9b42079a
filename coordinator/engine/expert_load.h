// How often each expert is chosen, counted in every step, always.
//
// The engine's thread counts and anybody reads, without a lock: each counter has one writer and is
// a relaxed atomic, so that counting costs what an addition does. Who reads during a step may see
// it half counted. Only sums are kept: which experts went together with which text can't be told
// from them.
//
// Windows: at the first step after kWindow the sums so far are put aside, kWindowsMax of them; what
// happened in a window is the difference of two. Pairs of experts of neighbouring layers are
// counted in one of kPairEvery steps, for kPairRowsMax of its rows: they lie all over 15 MiB (of
// V3), so that counting a row's 64 of a layer costs more than all the rest of the step's counting.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "base/clock.h"
#include "model/config.h"

namespace atl::coordinator {

// Of one layer with experts.
struct LayerLoad {
  uint64_t steps = 0;     // that went through the layer
  uint64_t rows = 0;      // tokens in them
  uint64_t distinct = 0;  // experts chosen in a step by one row or more, added up over steps
  // The same of steps of at most kSmallStepRows rows: what decoding looks like.
  uint64_t small_steps = 0, small_rows = 0, small_distinct = 0;
  std::vector<uint64_t> uses;  // [n_routed_experts] rows that chose the expert
  friend bool operator==(const LayerLoad&, const LayerLoad&) = default;
};

// What the rows that chose an expert chose in the next layer.
struct Followers {
  struct Follower {
    int32_t expert = 0;
    uint32_t rows = 0;  // that chose both
    friend bool operator==(const Follower&, const Follower&) = default;
  };
  uint64_t pairs = 0;          // counted; each row has num_experts_per_tok
  std::vector<Follower> best;  // the likeliest, at most kFollowers, most first
  friend bool operator==(const Followers&, const Followers&) = default;
};

struct ExpertLoadSnapshot {
  struct Window {
    double begin_seconds = 0, seconds = 0;  // since counting began; long
    std::vector<LayerLoad> layers;          // [MoE layers]
  };
  std::vector<int64_t> layer_ids;  // [MoE layers] number of the layer in the model, ascending
  double seconds = 0;              // since counting began
  std::vector<LayerLoad> layers;   // [MoE layers] since then
  std::vector<Window> windows;     // oldest first; the last one is not over
  std::vector<std::vector<Followers>> followers;  // [MoE layers but the last][experts]
};

class ExpertLoad {
 public:
  static constexpr std::chrono::seconds kWindow{60};
  static constexpr size_t kWindowsMax = 10;
  static constexpr int64_t kSmallStepRows = 16;
  static constexpr int64_t kPairRowsMax = 4;
  static constexpr uint64_t kPairEvery = 8;
  static constexpr size_t kFollowers = 4;

  // `clock` is borrowed and outlives this.
  ExpertLoad(const model::ModelConfig& config, const Clock& clock);

  // The engine's thread: a step begins; and what its rows chose in a layer with experts.
  //   ids  [rows, num_experts_per_tok], -1: none
  void begin_step();
  void count(int64_t layer, std::span<const int32_t> ids);

  enum class With : uint8_t { kTotals, kAll };
  // Any thread. kTotals: neither windows nor followers.
  ExpertLoadSnapshot snapshot(With with) const;
  // Any thread: rows of each expert so far, [num_hidden_layers][n_routed_experts], empty for layers
  // without experts.
  std::vector<std::vector<uint64_t>> rows_of_experts() const;
  // RAM of the counters: pairs are 4 bytes each, 15 MiB of V3's.
  static uint64_t bytes(const model::ModelConfig& config);

 private:
  // One writer: a load and a store are enough.
  template <typename T>
  class Counter {
   public:
    void add(T n) { value_.store(value_.load(kRelaxed) + n, kRelaxed); }
    T get() const { return value_.load(kRelaxed); }

   private:
    static constexpr auto kRelaxed = std::memory_order_relaxed;
    std::atomic<T> value_{0};
  };
  struct Layer {
    Counter<uint64_t> steps, rows, distinct, small_steps, small_rows, small_distinct;
    std::vector<Counter<uint64_t>> uses;   // [experts]
    std::vector<Counter<uint32_t>> pairs;  // [experts, experts of the next layer]; none of the last
  };
  struct Mark {
    Clock::TimePoint at;
    std::vector<LayerLoad> layers;
  };

  void count_pairs(Layer& before, std::span<const int32_t> ids);
  std::vector<LayerLoad> totals() const;
  std::vector<Followers> followers_of(const Layer& layer) const;

  const Clock& clock_;
  const Clock::TimePoint began_;
  const int64_t num_layers_;
  const size_t num_experts_, top_k_;
  std::vector<int64_t> layer_ids_;
  std::vector<int> place_of_layer_;  // in layers_, -1: no experts
  std::vector<std::unique_ptr<Layer>> layers_;

  // The engine's thread:
  std::vector<uint64_t> seen_;   // [experts] the visit that saw it last
  uint64_t visit_ = 0;           // of a layer by a step
  std::vector<int32_t> before_;  // ids of the layer before, of the same rows
  int place_before_ = -1;
  uint64_t steps_ = 0;
  bool counts_pairs_ = false;  // in this step
  Clock::TimePoint window_end_;

  mutable std::mutex mutex_;  // of marks_
  std::deque<Mark> marks_;    // where windows begin, oldest first
};

}  // namespace atl::coordinator
