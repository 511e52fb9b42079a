#include "coordinator/engine/decode_step.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/check.h"
#include "base/fp_env.h"

namespace atl::coordinator {

DecodeStep::DecodeStep(const model::ModelConfig& config, const Weights& weights, Compute& compute,
                       Dispatcher* experts, const Clock& clock, DecodeStepOptions options)
    : config_(config),
      weights_(weights),
      compute_(compute),
      experts_(experts),
      options_(options),
      clock_(clock),
      timer_(clock),
      gate_(options.halves),
      attention_(make_attention(config, compute, timer_,
                                [this] {
                                  if (is_halved_) poll_experts();
                                })),
      load_(config, clock) {}

Status DecodeStep::run(std::span<const StepRow> rows, const LogitsSink& sink,
                       std::span<std::optional<Error>> row_errors, StepObserver* observer) {
  load_.begin_step();
  if (recorder_) recorder_->begin_step();
  // Who looks at layers sees whole ones.
  const bool may_halve = experts_ && compute_.selects_rows() && !observer;
  const bool halved = may_halve && gate_.halves(std::ssize(rows));
  const auto start = clock_.now();
  const Status status = run_pass(rows, row_errors, [&] {
    is_halved_ = halved;
    return run_layers(sink, observer);
  });
  if (!status) return status;
  if (may_halve) gate_.took(std::ssize(rows), halved, seconds_between(start, clock_.now()));
  timer_.times().halved_steps += halved;
  ++timer_.times().steps;
  timer_.times().rows += rows.size();
  return {};
}

Status DecodeStep::run_mtp(std::span<const StepRow> rows, std::span<const float> hidden,
                           const LogitsSink& sink, std::span<std::optional<Error>> row_errors,
                           StepObserver* observer) {
  CHECK(weights_.mtp() != nullptr);
  CHECK_EQ(hidden.size(), rows.size() * static_cast<size_t>(config_.hidden_size));
  return run_pass(rows, row_errors, [&] { return run_mtp_layer(hidden, sink, observer); });
}

Status DecodeStep::run_pass(std::span<const StepRow> rows,
                            std::span<std::optional<Error>> row_errors,
                            const std::function<Status()>& layers) {
  CHECK(!rows.empty() && static_cast<int64_t>(rows.size()) <= options_.rows_max);
  CHECK_EQ(rows.size(), row_errors.size());
  ScopedStandardFpEnv fp_env;
  rows_ = rows;
  row_errors_ = row_errors;
  is_halved_ = false;
  first_selected_ = 0;
  selected_rows_ = std::ssize(rows);
  kept_.clear();
  hinted_.clear();  // a step before may have ended half-way
  timer_.begin_step();
  const Status status = layers();
  timer_.end_step(static_cast<uint32_t>(rows.size()));
  return status;
}

std::span<const float> DecodeStep::hidden(size_t row) const {
  const auto width = static_cast<size_t>(config_.hidden_size);
  CHECK_LE((row + 1) * width, hidden_.size());
  return std::span(hidden_).subspan(row * width, width);
}

Status DecodeStep::run_layers(const LogitsSink& sink, StepObserver* observer) {
  compute_.begin(rows_);
  const int64_t last = config_.num_hidden_layers - 1;
  if (is_halved_) {
    if (Status status = run_halves(last); !status) return status;
  }
  for (int64_t layer = is_halved_ ? last : 0; layer <= last; ++layer) {
    const LayerWeights& weights = weights_.layers()[layer];
    enter_layer(layer, weights);
    const bool is_last = layer == last;
    if (is_last && !observer && !keep_wanted_rows()) return compute_.wait();
    if (Status status = leave_layer(layer, weights, observer); !status) return status;
  }
  return head(weights_.norm(), sink);
}

// The layers before `end`, in which the second half of the rows is always one dispatch behind the
// first: while the nodes compute a half's experts, the other half's attention is computed here. Of
// one sequence the first half's entries of a layer are in the cache before the second half attends.
Status DecodeStep::run_halves(int64_t end) {
  struct Half {
    int64_t begin, n;
    Dispatcher::Ptr sent;  // of the layer before
  };
  const int64_t n = std::ssize(rows_), first = ceil_div(n, 2);
  Half halves[] = {{0, first, {}}, {first, n - first, {}}};
  const auto finish = [&](Half& half, int64_t layer) -> Status {
    select(half.begin, half.n);
    if (!half.sent) return {};
    timer_.set_layer(layer);
    if (Status status = end_moe(layer, std::move(half.sent)); !status) return status;
    compute_.add(Activation::kOut, Activation::kX);
    return {};
  };
  for (int64_t layer = 0; layer < end; ++layer) {
    const LayerWeights& weights = weights_.layers()[layer];
    for (Half& half : halves) {
      if (Status status = finish(half, layer - 1); !status) return status;
      enter_layer(layer, weights);
      attend(layer, weights);
      if (weights.router) {
        auto sent = begin_moe(layer, weights, nullptr);
        if (!sent) return sent.error();
        half.sent = std::move(*sent);
      } else {
        StageScope stage(timer_, Stage::kDenseFfn);
        ffn(weights.ffn);
        compute_.add(Activation::kOut, Activation::kX);
      }
    }
    timer_.times().moe_layers += weights.router ? 1 : 0;
  }
  for (Half& half : halves) {
    if (Status status = finish(half, end - 1); !status) return status;
  }
  select(0, n);
  return {};
}

void DecodeStep::select(int64_t row_begin, int64_t n) {
  compute_.select_rows(row_begin, n);
  first_selected_ = static_cast<size_t>(row_begin);
  selected_rows_ = n;
}

// u = eh_proj [RMSNorm(embedding; enorm), RMSNorm(hidden; hnorm)], the matrix cut into the halves
// that meet each; then a layer like the others. Source: docs/model.md 4.
Status DecodeStep::run_mtp_layer(std::span<const float> hidden, const LogitsSink& sink,
                                 StepObserver* observer) {
  const MtpWeights& mtp = *weights_.mtp();
  compute_.begin(rows_);
  compute_.rms_norm(Activation::kX, mtp.enorm, norm_eps(), Activation::kH);
  compute_.linear(mtp.of_embedding, Activation::kH, Activation::kX);
  compute_.put_rows(hidden, Activation::kH);
  compute_.rms_norm(Activation::kH, mtp.hnorm, norm_eps(), Activation::kH);
  compute_.linear(mtp.of_hidden, Activation::kH, Activation::kOut);
  compute_.add(Activation::kOut, Activation::kX);

  const int64_t layer = config_.num_hidden_layers;
  enter_layer(layer, mtp.layer);
  if (!observer && !keep_wanted_rows()) return compute_.wait();
  if (Status status = leave_layer(layer, mtp.layer, observer); !status) return status;
  return head(mtp.norm, sink);
}

// As far as the cache: what all rows need, whoever wants logits.
void DecodeStep::enter_layer(int64_t layer, const LayerWeights& weights) {
  timer_.set_layer(layer);
  compute_.rms_norm(Activation::kX, weights.input_layernorm, norm_eps(), Activation::kH);
  attention_->write_cache(layer, weights.attention);
}

void DecodeStep::attend(int64_t layer, const LayerWeights& weights) {
  attention_->attend(layer, weights.attention, num_rows());
  compute_.add(Activation::kOut, Activation::kX);
  compute_.rms_norm(Activation::kX, weights.post_attention_layernorm, norm_eps(), Activation::kH);
}

Status DecodeStep::leave_layer(int64_t layer, const LayerWeights& weights, StepObserver* observer) {
  attend(layer, weights);
  if (weights.router) {
    auto sent = begin_moe(layer, weights, observer);
    if (!sent) return sent.error();
    if (Status status = end_moe(layer, std::move(*sent)); !status) return status;
    ++timer_.times().moe_layers;
  } else {
    StageScope stage(timer_, Stage::kDenseFfn);
    ffn(weights.ffn);
  }
  compute_.add(Activation::kOut, Activation::kX);
  if (!observer) return {};
  if (Status status = compute_.wait(); !status) return status;
  observer->on_hidden(layer,
                      {compute_.host_rows(Activation::kX), rows_.size() * config_.hidden_size});
  return {};
}

// Logits, and the rows that they are made of where these are wanted.
Status DecodeStep::head(const std::vector<float>& norm, const LogitsSink& sink) {
  timer_.set_layer(-1);
  StageScope stage(timer_, Stage::kHead);
  compute_.head(norm, norm_eps(), weights_.lm_head(),
                [&](size_t row, std::span<const float> logits) { sink(origin(row), logits); });
  const bool keeps =
      std::any_of(rows_.begin(), rows_.end(), [](const StepRow& row) { return row.wants_hidden; });
  if (!keeps) return compute_.wait();
  compute_.rms_norm(Activation::kX, norm, norm_eps(), Activation::kH);
  if (Status status = compute_.wait(); !status) return status;
  const auto width = static_cast<size_t>(config_.hidden_size);
  hidden_.resize(rows_.size() * width);
  const float* from = compute_.host_rows(Activation::kH);
  for (size_t row = 0; row < static_cast<size_t>(num_rows()); ++row, from += width) {
    std::copy_n(from, width, hidden_.begin() + static_cast<std::ptrdiff_t>(origin(row) * width));
  }
  return {};
}

// What is left to do in the last layer once the cache is written is for those rows alone that want
// logits or what they are made of. False if none does.
bool DecodeStep::keep_wanted_rows() {
  for (size_t row = 0; row < rows_.size(); ++row) {
    const bool goes_on = rows_[row].wants_logits || rows_[row].wants_hidden;
    if (goes_on) kept_.push_back(static_cast<int32_t>(row));
  }
  if (kept_.empty()) return false;
  if (kept_.size() == rows_.size()) {
    kept_.clear();
  } else {
    compute_.keep_rows(kept_);
  }
  return true;
}

// y = sum of w_e Expert_e(h) + Shared(h): the routed part on the expert nodes, the shared part here
// meanwhile.
Result<Dispatcher::Ptr> DecodeStep::begin_moe(int64_t layer, const LayerWeights& weights,
                                              StepObserver* observer) {
  if (Status status = route(layer, weights); !status) return status.error();
  count_chosen(layer);
  count_foretold();
  if (observer) observer->on_routes(layer, routed_.topk_ids, routed_.topk_weights);
  auto sent = [&] {
    StageScope stage(timer_, Stage::kDispatch);
    return experts_->dispatch(static_cast<int32_t>(layer), num_rows(),
                              compute_.host_rows(Activation::kH), routed_.topk_ids.data(),
                              routed_.topk_weights.data());
  }();
  if (!sent) return sent.error();
  if (Status status = hint_next_layer(layer, observer); !status) return status.error();
  StageScope stage(timer_, Stage::kSharedExperts);
  ffn(weights.ffn);
  return sent;
}

Status DecodeStep::end_moe(int64_t layer, Dispatcher::Ptr sent) {
  StageScope stage(timer_, Stage::kCombine);
  auto failures = experts_->combine(std::move(sent), compute_.begin_combine());
  if (!failures) return failures.error();
  compute_.end_combine();
  note_failures(layer, *failures);
  return {};
}

// What all rows of the step chose, also where they come in two halves.
void DecodeStep::count_chosen(int64_t layer) {
  if (layer >= config_.num_hidden_layers) return;  // drafts are not part of what was asked for
  std::span<const int32_t> chosen = routed_.topk_ids;
  if (selected_rows_ < std::ssize(rows_)) {
    if (first_selected_ == 0) chosen_.clear();
    chosen_.insert(chosen_.end(), chosen.begin(), chosen.end());
    if (first_selected_ == 0) return;
    chosen = chosen_;
  }
  load_.count(layer, chosen);
  if (recorder_) recorder_->on_layer(layer, chosen);
}

void DecodeStep::note_failures(int64_t layer, std::span<const RowFailure> failures) {
  for (const RowFailure& failure : failures) {
    std::optional<Error>& error = row_errors_[origin(failure.row)];
    if (error) continue;  // the first layer that failed is the cause
    const std::string who =
        failure.expert < 0 ? "the sum over the experts" : fmt::format("expert {}", failure.expert);
    error = Error{ErrorCode::kInvalid,
                  fmt::format("position {}, layer {}: {} gave a value that is not finite or beyond "
                              "+-8388608",
                              rows_[origin(failure.row)].position, layer, who)};
  }
}

// out = W_down (silu(W_gate h) * (W_up h)); zero if the layer has no such experts.
void DecodeStep::ffn(const FfnWeights& weights) {
  if (!weights) {
    compute_.clear(Activation::kOut);
    return;
  }
  compute_.linear(weights.gate_proj, Activation::kH, Activation::kGate);
  poll_experts();
  compute_.linear(weights.up_proj, Activation::kH, Activation::kUp);
  poll_experts();
  compute_.silu_mul(weights.gate_proj.matrix.shape.outputs);
  compute_.linear(weights.down_proj, Activation::kGate, Activation::kOut);
}

// Takes what has arrived from the expert nodes; an expert node in this process computes here.
void DecodeStep::poll_experts() {
  if (!experts_) return;
  StageScope stage(timer_, Stage::kCombine);
  experts_->poll();
}

// Logits in FP32 from the FP32 row (not the rounded one that the experts see).
Status DecodeStep::route(int64_t layer, const LayerWeights& weights) {
  StageScope stage(timer_, Stage::kRouter);
  compute_.route(weights.router, weights.e_score_correction_bias, Activation::kH, &routed_);
  if (Status status = compute_.wait(); !status) return status;
  for (int64_t row = 0; row < num_rows(); ++row) {
    std::optional<Error>& error = row_errors_[origin(static_cast<size_t>(row))];
    if (routed_.finite[row] || error) continue;
    error = Error{ErrorCode::kInvalid,
                  fmt::format("position {}, layer {}: the router's logits are not "
                              "finite",
                              rows_[origin(static_cast<size_t>(row))].position, layer)};
  }
  return {};
}

// Foretells the experts of the next layer, just after this layer's dispatch was sent, so that nodes
// may read them while they compute this one. The state used is the residual stream x as it is now:
// this layer's attention added, its experts (routed and shared) and the next layer's attention not
// yet. It is normalised by the next layer's post_attention_layernorm and goes through the next
// layer's router with its bias and groups, which is what that layer will do with the finished x.
// The stream changes little from one layer to the next, and this state is all there is before the
// answers of the nodes.
Status DecodeStep::hint_next_layer(int64_t layer, StepObserver* observer) {
  const int64_t next = layer + 1;
  if (options_.prefetch == Prefetch::kOff || is_halved_ || num_rows() > kHintRowsMax ||
      next >= config_.num_hidden_layers || !config_.is_moe_layer(next)) {
    return {};
  }
  StageScope stage(timer_, Stage::kPrefetch);
  const LayerWeights& weights = weights_.layers()[next];
  compute_.rms_norm(Activation::kX, weights.post_attention_layernorm, norm_eps(),
                    Activation::kHintH);
  compute_.route(weights.router, weights.e_score_correction_bias, Activation::kHintH, &hint_);
  if (Status status = compute_.wait(); !status) return status;
  hinted_ = hint_.topk_ids;
  std::sort(hinted_.begin(), hinted_.end());
  hinted_.erase(std::unique(hinted_.begin(), hinted_.end()), hinted_.end());
  // -1: rows that can't be routed, which the next layer will find out about.
  if (hinted_.front() < 0) hinted_.erase(hinted_.begin());
  experts_->hint(static_cast<int32_t>(next), hinted_);
  if (observer) observer->on_hint(next, hinted_);
  return {};
}

// Compares the layer's choices with the hint that was given of it.
void DecodeStep::count_foretold() {
  if (hinted_.empty()) return;
  std::vector<int32_t> chosen = routed_.topk_ids;
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

}  // namespace atl::coordinator
