#include "coordinator/engine/evaluate.h"

#include <fmt/format.h>

#include <algorithm>
#include <deque>

#include "model/sampler.h"

namespace atl::coordinator {
namespace {

struct RowInProgress {
  size_t row;
  Sequence sequence;
  size_t next = 0;  // first token not stepped yet
};

}  // namespace

Result<EvaluateResult> evaluate(Engine& engine, std::span<const std::vector<int32_t>> rows,
                                const EvaluateOptions& options, const RowLogitsSink& sink) {
  EvaluateResult result;
  result.row_nll.assign(rows.size(), 0.0);
  std::deque<RowInProgress> open;
  size_t next_row = 0;
  uint64_t tokens_done = 0;
  std::optional<Error> failed;

  while (!failed && (next_row < rows.size() || !open.empty())) {
    // Fill the step: rows under way first, then new ones.
    std::vector<SequenceRows> work;
    int64_t room = std::min(options.rows_max, engine.options().rows_max);
    for (size_t i = 0; room > 0; ++i) {
      if (i == open.size()) {
        if (next_row == rows.size()) break;
        open.push_back({next_row++, {}, 0});
      }
      RowInProgress& row = open[i];
      const std::span<const int32_t> rest = std::span(rows[row.row]).subspan(row.next);
      const size_t n = std::min<size_t>(rest.size(), room);
      work.push_back({&row.sequence, rest.first(n), WantLogits::kAll});
      room -= static_cast<int64_t>(n);
    }

    std::vector<std::optional<Error>> errors(work.size());
    const Status status = engine.step(
        work,
        [&](size_t w, size_t t, std::span<const float> logits) {
          const RowInProgress& row = open[w];
          const size_t position = row.next + t;
          if (sink) sink(row.row, position, logits);
          if (position + 1 < rows[row.row].size()) {
            result.row_nll[row.row] += model::token_nll(logits, rows[row.row][position + 1]);
          }
        },
        errors, options.observer);
    if (!status) failed = status.error();
    for (size_t w = 0; w < work.size() && !failed; ++w) {
      if (errors[w]) {
        failed = Error{errors[w]->code, fmt::format("row {}: {}", open[w].row, errors[w]->message)};
      }
      open[w].next += work[w].tokens.size();
      tokens_done += work[w].tokens.size();
    }
    while (!failed && !open.empty() && open.front().next == rows[open.front().row].size()) {
      engine.release(open.front().sequence);
      open.pop_front();
    }
    if (options.on_progress) options.on_progress(tokens_done);
  }
  for (RowInProgress& row : open) engine.release(row.sequence);
  if (failed) return *failed;

  double sum = 0;
  for (size_t row = 0; row < rows.size(); ++row) {
    sum += result.row_nll[row];
    result.tokens += rows[row].size() - 1;
  }
  result.nll = result.tokens ? sum / static_cast<double>(result.tokens) : 0;
  return result;
}

}  // namespace atl::coordinator
