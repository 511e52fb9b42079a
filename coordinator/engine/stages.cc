#include "coordinator/engine/stages.h"

#include <numeric>

#include "base/check.h"

namespace atl::coordinator {

const char* stage_name(Stage stage) {
  switch (stage) {
    case Stage::kOther:
      return "other";
    case Stage::kAttentionLinear:
      return "attention_linear";
    case Stage::kAttentionAbsorbed:
      return "attention_absorbed";
    case Stage::kAttentionCore:
      return "attention_core";
    case Stage::kDenseFfn:
      return "dense_ffn";
    case Stage::kRouter:
      return "router";
    case Stage::kDispatch:
      return "dispatch";
    case Stage::kPrefetch:
      return "prefetch";
    case Stage::kSharedExperts:
      return "shared_experts";
    case Stage::kCombine:
      return "combine";
    case Stage::kHead:
      return "head";
  }
  CHECK(false);
  return "";
}

double StepTimes::total() const { return std::accumulate(seconds.begin(), seconds.end(), 0.0); }

StepTimes StepTimes::since(const StepTimes& before) const {
  StepTimes times = *this;
  for (size_t stage = 0; stage < kNumStages; ++stage) times.seconds[stage] -= before.seconds[stage];
  times.steps -= before.steps;
  times.rows -= before.rows;
  times.moe_layers -= before.moe_layers;
  times.halved_steps -= before.halved_steps;
  return times;
}

void StageTimer::begin_step() {
  stage_ = Stage::kOther;
  layer_ = -1;
  since_ = step_begin_ = clock_.now();
}

void StageTimer::end_step(uint32_t rows) {
  enter(Stage::kOther);
  if (sink_) sink_->on_step(rows, step_begin_, since_);
}

void StageTracer::on_stage(Stage stage, int64_t layer, Clock::TimePoint begin,
                           Clock::TimePoint end) {
  if (!ring_.is_on()) return;
  ring_.add({trace_ns(begin), trace_ns(end), 0, static_cast<int32_t>(layer), 0, 0,
             static_cast<uint8_t>(stage)});
}

void StageTracer::on_step(uint32_t rows, Clock::TimePoint begin, Clock::TimePoint end) {
  if (ring_.is_on()) ring_.add({trace_ns(begin), trace_ns(end), 0, -1, rows, 0, kTraceStep});
}

Stage StageTimer::enter(Stage stage) {
  const Stage left = stage_;
  const Clock::TimePoint now = clock_.now();
  times_[left] += seconds_between(since_, now);
  if (sink_ && now != since_) sink_->on_stage(left, layer_, since_, now);
  stage_ = stage;
  since_ = now;
  return left;
}

}  // namespace atl::coordinator
