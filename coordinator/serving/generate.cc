#include "coordinator/serving/generate.h"

#include <algorithm>
#include <optional>

#include "base/check.h"

namespace atl::coordinator {
namespace {

// Gives the sequence's cache back whatever happens.
class ScopedSequence {
 public:
  explicit ScopedSequence(Engine& engine) : engine_(engine) {}
  ~ScopedSequence() { engine_.release(sequence); }
  Sequence sequence;

 private:
  Engine& engine_;
};

// Steps one sequence and copies its last logits.
Status step_one(Engine& engine, Sequence& sequence, std::span<const int32_t> tokens,
                WantLogits want, std::vector<float>* logits) {
  const SequenceRows rows{&sequence, tokens, want};
  std::optional<Error> error;
  const Status status = engine.step(
      std::span(&rows, 1),
      [&](size_t, size_t, std::span<const float> row) { logits->assign(row.begin(), row.end()); },
      std::span(&error, 1));
  if (!status) return status;
  return error ? Status(*error) : Status();
}

}  // namespace

Result<GenerateResult> generate(Engine& engine, const Clock& clock, const GenerateRequest& request,
                                model::Sampler& sampler,
                                const std::function<void(int32_t)>& on_token) {
  CHECK(!request.prompt.empty());
  ScopedSequence scope(engine);
  GenerateResult result;
  std::vector<float> logits;
  const auto start = clock.now();
  const size_t chunk = std::min(request.rows_max, engine.options().rows_max);
  for (size_t at = 0; at < request.prompt.size(); at += chunk) {
    const size_t n = std::min(chunk, request.prompt.size() - at);
    const bool last = at + n == request.prompt.size();
    if (Status status = step_one(engine, scope.sequence, std::span(request.prompt).subspan(at, n),
                                 last ? WantLogits::kLast : WantLogits::kNone, &logits);
        !status) {
      return status.error();
    }
  }

  auto first_token = start;
  while (static_cast<int64_t>(result.tokens.size()) < request.max_tokens) {
    const uint64_t position = static_cast<uint64_t>(scope.sequence.num_tokens);
    auto token = sampler.sample(logits, request.sampling, RandomPlace{request.sample, position},
                                request.vocab_limit, request.allowed);
    if (!token) return token.error();
    result.tokens.push_back(*token);
    if (result.tokens.size() == 1) first_token = clock.now();
    on_token(*token);
    if (std::count(request.stop_ids.begin(), request.stop_ids.end(), *token)) {
      result.finish = FinishReason::kStop;
      break;
    }
    if (static_cast<int64_t>(result.tokens.size()) == request.max_tokens ||
        scope.sequence.num_tokens == engine.config().max_position_embeddings) {
      break;
    }
    if (Status status =
            step_one(engine, scope.sequence, std::span(&*token, 1), WantLogits::kLast, &logits);
        !status) {
      return status.error();
    }
  }
  result.prefill_seconds = seconds_between(start, first_token);
  result.decode_seconds = seconds_between(first_token, clock.now());
  return result;
}

}  // namespace atl::coordinator
