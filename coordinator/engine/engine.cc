#include "coordinator/engine/engine.h"

#include <fmt/format.h>

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
      cache_(config.num_hidden_layers, cache_shape(config, options.cache_type),
             options.cache_blocks),
      prefixes_(cache_),
      compute_(compute_of(make_compute ? make_compute(cache_) : nullptr,
                          [&] {
                            return std::make_unique<CpuCompute>(config, weights, cache_, team,
                                                                options.rows_max);
                          })),
      step_(config, weights, *compute_, experts, clock, {options.rows_max, options.prefetch}) {}

Status Engine::step(std::span<const SequenceRows> work, const SequenceLogitsSink& sink,
                    std::span<std::optional<Error>> errors, StepObserver* observer) {
  CHECK_EQ(work.size(), errors.size());
  std::vector<StepRow> rows;
  std::vector<std::pair<size_t, size_t>> origin;  // of each row: place in work, token
  for (size_t w = 0; w < work.size(); ++w) {
    errors[w] = admit(work[w]);
    if (errors[w]) continue;
    const SequenceRows& from = work[w];
    for (size_t t = 0; t < from.tokens.size(); ++t) {
      const bool last = t + 1 == from.tokens.size();
      rows.push_back(
          {from.tokens[t], from.sequence->num_tokens + static_cast<int64_t>(t),
           from.sequence->blocks,
           from.logits == WantLogits::kAll || (last && from.logits == WantLogits::kLast)});
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
  for (size_t w = 0; w < work.size(); ++w) {
    if (!errors[w]) work[w].sequence->num_tokens += static_cast<int64_t>(work[w].tokens.size());
  }
  return {};
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
