// Where a step's time goes: the parts of a step as one list, and one way to hear of them.
//
// At any moment a step is in exactly one stage, so the stages' times add up to the step's. A stage
// entered inside another (answers of the nodes are taken between two of the shared expert's
// matrices) interrupts it and doesn't count for it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "base/clock.h"
#include "base/trace_ring.h"

namespace atl::coordinator {

enum class Stage : uint8_t {
  kOther,              // embedding, norms, residuals
  kAttentionLinear,    // projections, rotation, writing the cache
  kAttentionAbsorbed,  // the two halves of kv_b, head by head
  kAttentionCore,      // softmax(q c) c over the cache
  kDenseFfn,
  kRouter,
  kDispatch,  // rows to the nodes
  kPrefetch,  // foretelling the next layer's experts
  kSharedExperts,
  kCombine,  // waiting for and adding what the nodes answer; an in-process node computes here
  kHead,
};
inline constexpr size_t kNumStages = static_cast<size_t>(Stage::kHead) + 1;

// As in metrics and JSON: "attention_linear", "shared_experts".
const char* stage_name(Stage stage);

// Hears of every stretch of time that a step spent in a stage, in order, without gaps.
class StageSink {
 public:
  virtual ~StageSink() = default;
  // layer: -1 outside of layers.
  virtual void on_stage(Stage stage, int64_t layer, Clock::TimePoint begin,
                        Clock::TimePoint end) = 0;
  // A step is over.
  virtual void on_step(uint32_t /*rows*/, Clock::TimePoint /*begin*/, Clock::TimePoint /*end*/) {}
};

// Puts what it hears into a ring: Stage as the kind, steps as kTraceStep.
class StageTracer final : public StageSink {
 public:
  static constexpr uint8_t kTraceStep = 65;
  explicit StageTracer(TraceRing& ring) : ring_(ring) {}
  void on_stage(Stage stage, int64_t layer, Clock::TimePoint begin, Clock::TimePoint end) override;
  void on_step(uint32_t rows, Clock::TimePoint begin, Clock::TimePoint end) override;

 private:
  TraceRing& ring_;
};

// Seconds of each stage, added up over steps.
struct StepTimes {
  std::array<double, kNumStages> seconds{};
  uint64_t steps = 0, rows = 0, moe_layers = 0;
  uint64_t halved_steps = 0;  // among steps

  double& operator[](Stage stage) { return seconds[static_cast<size_t>(stage)]; }
  double operator[](Stage stage) const { return seconds[static_cast<size_t>(stage)]; }
  double attention() const {
    return (*this)[Stage::kAttentionLinear] + (*this)[Stage::kAttentionAbsorbed] +
           (*this)[Stage::kAttentionCore];
  }
  double total() const;
  // What was added since `before`.
  StepTimes since(const StepTimes& before) const;
};

// Keeps the stage that the step is in. Used by the engine's thread.
class StageTimer {
 public:
  explicit StageTimer(const Clock& clock) : clock_(clock) {}

  // Another listener beside times(); null: none. Borrowed.
  void set_sink(StageSink* sink) { sink_ = sink; }
  void begin_step();
  void end_step(uint32_t rows);
  void set_layer(int64_t layer) { layer_ = layer; }

  const StepTimes& times() const { return times_; }
  StepTimes& times() { return times_; }

 private:
  friend class StageScope;
  Stage enter(Stage stage);  // returns the stage that was left

  const Clock& clock_;
  StageSink* sink_ = nullptr;
  StepTimes times_;
  Stage stage_ = Stage::kOther;
  int64_t layer_ = -1;
  Clock::TimePoint since_{}, step_begin_{};
};

// The step is in `stage` as long as this lives, and then again where it was.
class StageScope {
 public:
  StageScope(StageTimer& timer, Stage stage) : timer_(timer), outer_(timer.enter(stage)) {}
  ~StageScope() { timer_.enter(outer_); }
  StageScope(const StageScope&) = delete;
  StageScope& operator=(const StageScope&) = delete;

 private:
  StageTimer& timer_;
  const Stage outer_;
};

}  // namespace atl::coordinator
