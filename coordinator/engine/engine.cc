#include "coordinator/engine/engine.h"

#include <fmt/format.h>

#include <algorithm>
#include <new>

#include "base/check.h"
#include "base/rng.h"

namespace atl::coordinator {
namespace {

template <typename Cpu>
std::unique_ptr<Compute> compute_of(std::unique_ptr<Compute> made, const Cpu& cpu) {
  return made ? std::move(made) : cpu();
}

}  // namespace

Engine::Engine(const model::ModelConfig& config, const Weights& weights, Dispatcher* experts,
               ThreadTeam& team, const Clock& clock, EngineOptions options,
               const ComputeMaker& make_compute)
    : config_(config),
      weights_(weights),
      options_(options),
      experts_(experts),
      cache_(config.num_hidden_layers + (weights.mtp() ? 1 : 0),
             cache_shape(config, options.cache_type), options.cache_blocks),
      prefixes_(cache_),
      compute_(compute_of(make_compute ? make_compute(cache_) : nullptr,
                          [&] {
                            return std::make_unique<CpuCompute>(config, weights, cache_, team,
                                                                options.rows_max);
                          })),
      step_(config, weights, *compute_, experts, clock,
            {options.rows_max, options.prefetch, options.halves}) {}

Status Engine::step(std::span<const SequenceRows> work, const SequenceLogitsSink& sink,
                    std::span<std::optional<Error>> errors, StepObserver* observer) {
  CHECK_EQ(work.size(), errors.size());
  std::vector<StepRow> rows;
  std::vector<std::pair<size_t, size_t>> origin;  // of each row: place in work, token
  for (size_t w = 0; w < work.size(); ++w) {
    errors[w] = admit(work[w]);
    if (errors[w]) continue;
    const SequenceRows& from = work[w];
    const std::optional<int64_t> hidden_from = mtp_rows_from(from);
    for (size_t t = 0; t < from.tokens.size(); ++t) {
      const bool last = t + 1 == from.tokens.size();
      const int64_t position = from.sequence->num_tokens + static_cast<int64_t>(t);
      rows.push_back({from.tokens[t], position, from.sequence->blocks,
                      from.logits == WantLogits::kAll || (last && from.logits == WantLogits::kLast),
                      hidden_from && position >= *hidden_from});
      origin.emplace_back(w, t);
    }
  }
  if (rows.empty()) return {};

  std::vector<std::optional<Error>> row_errors(rows.size());
  const LogitsSink by_row = [&](size_t row, std::span<const float> logits) {
    const auto [w, t] = origin[row];
    if (!row_errors[row]) sink(w, t, logits);
  };
  if (Status status = run(rows, by_row, row_errors, observer); !status) return status;
  for (size_t row = 0; row < rows.size(); ++row) {
    if (row_errors[row] && !errors[origin[row].first]) errors[origin[row].first] = row_errors[row];
  }
  for (size_t row = 0; row < rows.size(); ++row) {
    const auto [w, t] = origin[row];
    if (!rows[row].wants_hidden || errors[w]) continue;
    Sequence& sequence = *work[w].sequence;
    if (sequence.mtp_hidden.empty() && sequence.mtp_end != rows[row].position) {
      sequence.mtp_begin = sequence.mtp_end = rows[row].position;
    }
    const std::span<const float> hidden = step_.hidden(row);
    sequence.mtp_hidden.insert(sequence.mtp_hidden.end(), hidden.begin(), hidden.end());
  }
  for (size_t w = 0; w < work.size(); ++w) {
    if (!errors[w]) work[w].sequence->num_tokens += static_cast<int64_t>(work[w].tokens.size());
  }
  return {};
}

// The position whose hidden row is the first to be kept. Entries of the next-token layer's cache
// lie one after the other; where the step doesn't go on behind them, new ones begin with a block.
std::optional<int64_t> Engine::mtp_rows_from(const SequenceRows& rows) const {
  Sequence& sequence = *rows.sequence;
  const auto hidden = static_cast<int64_t>(sequence.mtp_hidden.size()) / config_.hidden_size;
  const int64_t begin = sequence.num_tokens;
  const bool has_entries = sequence.mtp_end > sequence.mtp_begin || hidden > 0;
  if (rows.mtp_from && has_entries && sequence.mtp_end + hidden == begin) return begin;
  sequence.mtp_hidden.clear();
  if (!rows.mtp_from) return std::nullopt;
  CHECK(has_mtp());
  return round_up(std::max(begin, *rows.mtp_from), PrefixCache::kBlock);
}

// Memory that is short ends the requests of the step, not the process.
Status Engine::run(std::span<const StepRow> rows, const LogitsSink& sink,
                   std::span<std::optional<Error>> row_errors, StepObserver* observer) {
  try {
    return step_.run(rows, sink, row_errors, observer);
  } catch (const std::bad_alloc&) {
    return Error{ErrorCode::kUnavailable,
                 fmt::format("out of memory in a step of {} rows", rows.size())};
  }
}

// Checks the tokens and makes room for them in the sequence's cache.
std::optional<Error> Engine::admit(const SequenceRows& rows) {
  CHECK(!rows.tokens.empty());
  for (const int32_t token : rows.tokens) {
    if (token < 0 || token >= config_.vocab_size) {
      return Error{ErrorCode::kInvalid, fmt::format("token id {} is not in the vocabulary of {}",
                                                    token, config_.vocab_size)};
    }
  }
  const auto count = static_cast<int64_t>(rows.tokens.size());
  return make_room(*rows.sequence, rows.sequence->num_tokens + count);
}

// Blocks for the sequence's first num_tokens positions.
std::optional<Error> Engine::make_room(Sequence& sequence, int64_t num_tokens) {
  if (num_tokens > config_.max_position_embeddings) {
    return Error{ErrorCode::kInvalid,
                 fmt::format("context of {} tokens is longer than the model's {} positions",
                             num_tokens, config_.max_position_embeddings)};
  }
  while (static_cast<int64_t>(sequence.blocks.size()) < KvCache::blocks_for(num_tokens)) {
    auto block = prefixes_.allocate();
    if (!block) return block.error();
    sequence.blocks.push_back(*block);
  }
  return std::nullopt;
}

Status Engine::fill_context(Sequence& sequence, int64_t num_tokens, uint64_t seed) {
  CHECK_EQ(sequence.num_tokens, 0);
  if (std::optional<Error> error = make_room(sequence, num_tokens)) return *error;
  std::vector<float> entries(kernels::kAttentionBlock * cache_.shape().values());
  for (size_t i = 0; i < entries.size(); ++i) {
    entries[i] = 2 * uniform_f32(seed, {.position = i}) - 1;
  }
  for (int64_t layer = 0; layer < config_.num_hidden_layers; ++layer) {
    for (const BlockId block : sequence.blocks) compute_->store_block(layer, block, entries.data());
  }
  if (Status status = compute_->wait(); !status) return status;
  sequence.num_tokens = num_tokens;
  return {};
}

Status Engine::draft(std::span<DraftWork> work, StepObserver* observer) {
  CHECK(has_mtp());
  for (DraftWork& one : work) one.draft.clear();
  Status status = fill_mtp(work, observer);
  if (status) status = chain_mtp(work, observer);
  if (status) return status;
  for (DraftWork& one : work) {
    one.draft.clear();
    one.sequence->mtp_begin = one.sequence->mtp_end = 0;
    one.sequence->mtp_hidden.clear();
  }
  return status;
}

namespace {

int32_t likeliest_token(std::span<const float> logits) {
  return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

}  // namespace

// The positions that have a hidden row and a next token. Only the last one of a sequence goes
// through attention and experts: what the others are for is their entries.
Status Engine::fill_mtp(std::span<DraftWork> work, StepObserver* observer) {
  const auto width = static_cast<size_t>(config_.hidden_size);
  std::vector<StepRow> rows;
  std::vector<size_t> owners;  // of each row: place in work
  std::vector<float> hidden;
  for (size_t w = 0; w < work.size(); ++w) {
    Sequence& sequence = *work[w].sequence;
    CHECK_GE(static_cast<int64_t>(work[w].tokens.size()), sequence.num_tokens);
    const auto have = static_cast<int64_t>(sequence.mtp_hidden.size() / width);
    const int64_t end = std::min({sequence.mtp_end + have, sequence.num_tokens,
                                  static_cast<int64_t>(work[w].tokens.size()) - 1});
    const int64_t taken = std::max<int64_t>(0, end - sequence.mtp_end);
    const auto blocks = std::span<const BlockId>(sequence.blocks)
                            .subspan(static_cast<size_t>(sequence.mtp_begin / PrefixCache::kBlock));
    for (int64_t position = sequence.mtp_end; position < end; ++position) {
      const bool proposes = work[w].most > 0 && position + 1 == sequence.num_tokens;
      rows.push_back({work[w].tokens[static_cast<size_t>(position) + 1],
                      position - sequence.mtp_begin, blocks, proposes, proposes});
      owners.push_back(w);
    }
    const auto used = sequence.mtp_hidden.begin() + taken * config_.hidden_size;
    hidden.insert(hidden.end(), sequence.mtp_hidden.begin(), used);
    sequence.mtp_hidden.erase(sequence.mtp_hidden.begin(), used);
    sequence.mtp_end += taken;
    // What lies behind is of drafts that were wrong.
    const int64_t left = std::max<int64_t>(0, sequence.num_tokens - sequence.mtp_end);
    if (sequence.mtp_hidden.size() > static_cast<size_t>(left) * width) {
      sequence.mtp_hidden.resize(static_cast<size_t>(left) * width);
    }
    if (left == 0) sequence.mtp_hidden.shrink_to_fit();  // a prompt's rows are megabytes
  }
  last_hidden_.resize(work.size() * width);
  const auto most_rows = static_cast<size_t>(options_.rows_max);
  for (size_t begin = 0; begin < rows.size(); begin += most_rows) {
    const size_t n = std::min(most_rows, rows.size() - begin);
    std::vector<std::optional<Error>> errors(n);
    const Status status = run_mtp(
        std::span(rows).subspan(begin, n), std::span(hidden).subspan(begin * width, n * width),
        [&](size_t row, std::span<const float> logits) {
          work[owners[begin + row]].draft = {likeliest_token(logits)};
          if (observer) observer->on_draft_logits(logits);
        },
        errors, observer);
    if (!status) return status;
    for (size_t row = 0; row < n; ++row) {
      DraftWork& one = work[owners[begin + row]];
      if (errors[row]) {
        one.draft.clear();
        one.sequence->mtp_begin = one.sequence->mtp_end = 0;
        one.sequence->mtp_hidden.clear();
      } else if (rows[begin + row].wants_hidden) {
        const std::span<const float> out = step_.hidden(row);
        std::copy(out.begin(), out.end(),
                  last_hidden_.begin() + static_cast<std::ptrdiff_t>(owners[begin + row] * width));
      }
    }
  }
  for (DraftWork& one : work) {
    if (one.sequence->mtp_end != one.sequence->num_tokens) one.draft.clear();
  }
  return {};
}

// Further tokens: the layer's own output in place of the model's. Their entries are written anew
// when the tokens are known.
Status Engine::chain_mtp(std::span<DraftWork> work, StepObserver* observer) {
  const auto width = static_cast<size_t>(config_.hidden_size);
  for (int64_t made = 1;; ++made) {
    std::vector<StepRow> rows;
    std::vector<size_t> owners;
    std::vector<float> hidden;
    for (size_t w = 0; w < work.size(); ++w) {
      const Sequence& sequence = *work[w].sequence;
      if (std::ssize(work[w].draft) != made || made >= work[w].most) continue;
      const int64_t position = sequence.num_tokens - 1 + made;
      if (position >= std::ssize(sequence.blocks) * PrefixCache::kBlock) continue;
      const auto blocks =
          std::span<const BlockId>(sequence.blocks)
              .subspan(static_cast<size_t>(sequence.mtp_begin / PrefixCache::kBlock));
      rows.push_back({work[w].draft.back(), position - sequence.mtp_begin, blocks, true, true});
      owners.push_back(w);
      const auto from = last_hidden_.begin() + static_cast<std::ptrdiff_t>(w * width);
      hidden.insert(hidden.end(), from, from + config_.hidden_size);
    }
    if (rows.empty()) return {};
    std::vector<std::optional<Error>> errors(rows.size());
    std::vector<int32_t> next(rows.size(), -1);
    const Status status = run_mtp(
        rows, hidden,
        [&](size_t row, std::span<const float> logits) { next[row] = likeliest_token(logits); },
        errors, observer);
    if (!status) return status;
    for (size_t row = 0; row < rows.size(); ++row) {
      if (errors[row]) continue;  // the draft ends here
      work[owners[row]].draft.push_back(next[row]);
      const std::span<const float> out = step_.hidden(row);
      std::copy(out.begin(), out.end(),
                last_hidden_.begin() + static_cast<std::ptrdiff_t>(owners[row] * width));
    }
  }
}

Status Engine::run_mtp(std::span<const StepRow> rows, std::span<const float> hidden,
                       const LogitsSink& sink, std::span<std::optional<Error>> row_errors,
                       StepObserver* observer) {
  try {
    return step_.run_mtp(rows, hidden, sink, row_errors, observer);
  } catch (const std::bad_alloc&) {
    return Error{ErrorCode::kUnavailable,
                 fmt::format("out of memory in drafts of {} rows", rows.size())};
  }
}

void Engine::announce(const std::string& request_ids) {
  if (experts_) experts_->announce(request_ids);
}

void Engine::reuse(Sequence& sequence, std::span<const int32_t> tokens) {
  CHECK_EQ(sequence.num_tokens, 0);
  CHECK(sequence.blocks.empty());
  sequence.blocks = prefixes_.match(tokens, &sequence.prefix);
  sequence.num_published = static_cast<int64_t>(sequence.blocks.size());
  sequence.num_tokens = sequence.num_published * PrefixCache::kBlock;
}

void Engine::keep(Sequence& sequence, std::span<const int32_t> tokens) {
  CHECK_LE(sequence.num_tokens, static_cast<int64_t>(tokens.size()));
  const int64_t full = sequence.num_tokens / PrefixCache::kBlock;
  for (int64_t& b = sequence.num_published; b < full; ++b) {
    sequence.prefix = prefixes_.publish(
        sequence.prefix, tokens.subspan(b * PrefixCache::kBlock, PrefixCache::kBlock),
        sequence.blocks[b]);
  }
}

void Engine::rewind(Sequence& sequence, int64_t num_tokens) {
  CHECK_LE(num_tokens, sequence.num_tokens);
  CHECK_GE(num_tokens, sequence.num_published * PrefixCache::kBlock);
  sequence.num_tokens = num_tokens;
}

void Engine::release(Sequence& sequence) {
  prefixes_.release(sequence.blocks);
  sequence = {};
}

}  // namespace atl::coordinator
