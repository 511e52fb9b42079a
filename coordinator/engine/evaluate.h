// Teacher-forced evaluation: how well the model predicts given token ids.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "base/result.h"
#include "coordinator/engine/engine.h"

namespace atl::coordinator {

struct EvaluateOptions {
  int64_t rows_max = 512;  // of a step, at most the engine's rows_max
  StepObserver* observer = nullptr;
  // Tokens done so far; may be null.
  std::function<void(uint64_t)> on_progress;
};

struct EvaluateResult {
  uint64_t tokens = 0;          // scored
  double nll = 0;               // mean negative log-likelihood, natural log
  std::vector<double> row_nll;  // sum per row
};

// Row index, position in the row, logits there.
using RowLogitsSink = std::function<void(size_t, size_t, std::span<const float>)>;

// Each row stands alone: its first id is the BOS, ids 1.. of it are scored. Steps are filled with
// the tokens of as many rows as fit. Sums are taken in row order, so the result doesn't depend on
// the chunk. The first error of a row ends the evaluation.
Result<EvaluateResult> evaluate(Engine& engine, std::span<const std::vector<int32_t>> rows,
                                const EvaluateOptions& options, const RowLogitsSink& sink);

}  // namespace atl::coordinator
