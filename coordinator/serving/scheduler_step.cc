// The scheduler's step: rows through the engine, the next tokens from their logits, and what
// becomes of the requests with them.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <new>
#include <utility>

#include "base/check.h"
#include "base/log.h"
#include "coordinator/serving/scheduler.h"
#include "coordinator/serving/scheduler_generation.h"

namespace atl::coordinator {
namespace {

// Of the whole row, in double. [vocabulary] FP32 logits.
double log_sum_exp(std::span<const float> logits) {
  const float largest = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit) - largest);
  return largest + std::log(sum);
}

// With their log probabilities; log_total: log_sum_exp(logits).
std::vector<TokenLogprob> likeliest(std::span<const float> logits, int32_t n, double log_total) {
  std::vector<TokenLogprob> top;
  for (const int32_t id : model::likeliest_ids(logits, n)) {
    top.push_back({id, static_cast<float>(logits[static_cast<size_t>(id)] - log_total)});
  }
  return top;
}

// Of masks that are found in the step, by the team: lists of tokens that are known cost 4,000 at
// most for 129k tokens, a millisecond of work 40,000.
constexpr uint64_t kMaskWorkInStep = 40'000;
// Of a prompt, the next-token layer takes this much of its end and a part of a block: its entries
// cost no experts, but the rows they are made from go through all of the last layer.
constexpr int64_t kMtpPromptTokens = 256;
// Tokens that it proposes at most: it was made to foretell one.
constexpr int64_t kMtpChainMax = 4;
constexpr double kMtpPassFollow = 0.1;
// What a plain step takes is known to some per cent, and who is not sure to win has lost.
constexpr double kMtpGainMin = 1.03;

}  // namespace

bool Scheduler::compute() {
  std::vector<Generation*> stepped;
  std::vector<SequenceRows> work;
  StepSize size;
  for (const GenerationPtr& generation : running_) {
    if (generation->rows == 0) continue;
    stepped.push_back(generation.get());
    size.add(generation->rows, generation->sequence.num_tokens);
    generation->sequence_begin = generation->sequence.num_tokens;
    std::span<const int32_t> tokens =
        std::span(generation->tokens).subspan(static_cast<size_t>(generation->sequence_begin));
    if (generation->draft_rows > 0) {
      CHECK_EQ(generation->pending(), 1);
      CHECK_EQ(generation->rows, 1 + generation->draft_rows);
      generation->step_tokens = {tokens.front()};
      generation->step_tokens.insert(generation->step_tokens.end(), generation->draft.begin(),
                                     generation->draft.begin() + generation->draft_rows);
      tokens = generation->step_tokens;
    }
    const bool all = generation->is_scored() || generation->draft_rows > 0;
    work.push_back({&generation->sequence, tokens.first(static_cast<size_t>(generation->rows)),
                    all                                         ? WantLogits::kAll
                    : generation->rows == generation->pending() ? WantLogits::kLast
                                                                : WantLogits::kNone});
    generation->mtp_draft.clear();
    generation->mtp_goes_on = mtp_.open;
    if (generation->decodes()) {
      mtp_.decoding.add(1, generation->sequence_begin);
    } else {
      mtp_.prompt_rows += generation->rows;
    }
    if (!mtp_.open) continue;
    const auto prompt = static_cast<int64_t>(generation->request.prompt.size());
    work.back().mtp_from = std::max<int64_t>(0, prompt - kMtpPromptTokens);
    if (generation->decodes()) continue;
    const int64_t end = generation->sequence_begin + generation->rows;
    mtp_.kept_rows += std::clamp<int64_t>(end - *work.back().mtp_from, 0, generation->rows);
  }
  if (work.empty()) return false;
  announce(stepped);

  const Clock::TimePoint start = clock_.now();
  {
    const std::lock_guard lock(mutex_);
    stats_.step_begin = seconds_between(Clock::TimePoint(), start);
  }
  const double attention_before = engine_.times()[Stage::kAttentionCore];
  std::vector<std::optional<Error>> errors(work.size());
  const auto vocab = static_cast<size_t>(engine_.config().vocab_size);
  size_t num_logits = 0;
  const auto keep_logits = [&](size_t w, size_t t, std::span<const float> logits) {
    if (stepped[w]->is_scored() && !score(*stepped[w], t, logits)) return;
    const size_t row = num_logits++;
    if (logits_.size() < num_logits * vocab) logits_.resize(num_logits * vocab);
    std::copy(logits.begin(), logits.end(),
              logits_.begin() + static_cast<std::ptrdiff_t>(row * vocab));
    stepped[w]->logits_rows.push_back(row);
  };
  const Status status = engine_.step(work, keep_logits, errors, options_.observer);
  for (size_t w = 0; status && w < stepped.size(); ++w) {
    Generation& generation = *stepped[w];
    if (errors[w]) {
      generation.logits_rows.clear();
    } else if (generation.draft_rows > 0) {
      engine_.rewind(generation.sequence, generation.sequence_begin + 1);
      counts_.drafted_tokens += static_cast<uint64_t>(generation.draft_rows);
      if (generation.draft_is_mtp) {
        counts_.mtp_drafted_tokens += static_cast<uint64_t>(generation.draft_rows);
      }
    }
  }
  if (status) sample_all(stepped);
  counts_.failure = status ? "" : status.error().message;
  for (size_t w = 0; w < stepped.size(); ++w) {
    Generation& generation = *stepped[w];
    if (!status) {
      fail(generation, status.error());
    } else if (errors[w] && generation.draft_rows > 0) {
      generation.draft_failed = true;  // or its own row: the next step shows it
      generation.draft.clear();
    } else if (errors[w]) {
      fail(generation, *errors[w]);
    } else if (generation.sample_error) {
      fail(generation, *generation.sample_error);
    } else {
      advance(generation);
    }
  }
  if (status) follow_drafts(stepped);
  for (Generation* generation : stepped) generation->logits_rows.clear();
  ++counts_.steps;
  const Clock::TimePoint end = clock_.now();
  const double seconds = seconds_between(start, end);
  if (status) {
    step_cost_.observe(size, seconds, engine_.times()[Stage::kAttentionCore] - attention_before);
  }
  mtp_.step_s = seconds;
  counts_.step_seconds += seconds;
  counts_.last_step_end = seconds_between(Clock::TimePoint(), end);
  return true;
}

// The sequence has a new token. True: it is the draft's, so that the logits behind it are known,
// too.
bool Scheduler::take_draft(Generation& generation) {
  const bool has_token = !generation.ended && generation.pending() == 1;
  if (!has_token || generation.num_right == generation.draft.size()) return false;
  const bool right = generation.tokens.back() == generation.draft[generation.num_right];
  generation.acceptance().observe(right);
  if (generation.draft_is_mtp) mtp_acceptance_.observe(right);
  if (!right || static_cast<int64_t>(generation.num_right) == generation.draft_rows) return false;
  ++generation.num_right;
  ++generation.sequence.num_tokens;
  ++counts_.accepted_tokens;
  if (generation.draft_is_mtp) ++counts_.mtp_accepted_tokens;
  return true;
}

// Takes the next-token layer over what the step computed, for drafts of the next one. Where the
// gate wants plain steps, their rows wait.
void Scheduler::draft_ahead() {
  if (mtp_.kind != DraftGate::Step::kDrafts) return settle_mtp_gate(0);
  std::vector<DraftWork> work;
  std::vector<Generation*> owners;
  std::vector<double> acceptance;
  for (const GenerationPtr& pointer : running_) {
    Generation& generation = *pointer;
    if (!std::exchange(generation.mtp_goes_on, false)) continue;
    DraftWork& one = work.emplace_back(DraftWork{&generation.sequence, generation.tokens, 0, {}});
    owners.push_back(&generation);
    if (!generation.decodes() || generation.draft_failed) continue;
    // One behind the token that the next step computes.
    one.most = std::min(generation.request.max_tokens - generation.num_generated() - 1,
                        engine_.config().max_position_embeddings - generation.num_tokens());
    if (one.most > 0) acceptance.push_back(generation.mtp_acceptance.share());
  }
  if (work.empty()) return settle_mtp_gate(0);
  const int64_t chain = choose_chain(step_cost_, mtp_.decoding, acceptance, mtp_pass_seconds_,
                                     std::min(kMtpChainMax, options_.draft_tokens));
  for (DraftWork& one : work) one.most = std::clamp<int64_t>(one.most, 0, chain);
  const Clock::TimePoint start = clock_.now();
  const Status status = engine_.draft(work, options_.observer);
  const double seconds = seconds_between(start, clock_.now());
  counts_.mtp_seconds += seconds;
  if (!status) {
    log_warn("drafts by the next-token layer pause: {}", status.error().message);
    for (DraftGate& gate : mtp_gates_) gate.shut();
    return;
  }
  for (size_t w = 0; w < work.size(); ++w) owners[w]->mtp_draft = std::move(work[w].draft);
  const double pass_s = seconds / static_cast<double>(chain);
  if (mtp_pass_seconds_ == 0) mtp_pass_seconds_ = pass_s;
  mtp_pass_seconds_ += kMtpPassFollow * (pass_s - mtp_pass_seconds_);
  settle_mtp_gate(seconds);
}

// What the step's drafts brought, held against steps without: by how often drafts were right
// lately, since what came of these few says less. Steps that read prompts can't be compared.
void Scheduler::settle_mtp_gate(double pass_s) {
  DraftGate& gate = *mtp_.gate;
  const auto rows = static_cast<double>(mtp_.decoding.rows);
  const bool comparable = mtp_.prompt_rows == 0 && mtp_.lookup_rows == 0 && mtp_.decoding.rows > 0;
  double saved = 0;
  if (comparable && mtp_.kind == DraftGate::Step::kMeasured) {
    gate.observe_plain(mtp_.step_s / rows);
  }
  if (comparable && mtp_.drafted > 0 && gate.plain_token_s() > 0) {
    saved = (rows + mtp_.expected) * gate.plain_token_s() / kMtpGainMin - mtp_.step_s;
  }
  const double kept = static_cast<double>(mtp_.kept_rows) * step_cost_.row_seconds(0) /
                      static_cast<double>(engine_.config().num_hidden_layers);
  gate.observe(mtp_.step_s + pass_s, saved, pass_s + kept);
}

// Chooses tokens as long as drafts are right: one of each sequence after the other.
void Scheduler::follow_drafts(std::vector<Generation*> stepped) {
  while (true) {
    std::erase_if(stepped, [this](Generation* generation) { return !take_draft(*generation); });
    if (stepped.empty()) return;
    sample_all(stepped);
    for (Generation* generation : stepped) {
      if (generation->sample_error) {
        fail(*generation, *generation->sample_error);
        continue;
      }
      if (options_.prefix_cache) engine_.keep(generation->sequence, generation->tokens);
      if (!generation->sampled) continue;
      generation->event.reset();  // one for each token
      take_token(*generation);
    }
  }
}

// What the logits behind the prompt's token `t` of this step say of the next one. True: there is
// none, so that they choose the first generated token.
bool Scheduler::score(Generation& generation, size_t t, std::span<const float> logits) {
  const size_t next = static_cast<size_t>(generation.sequence_begin) + t + 1;
  if (next >= generation.tokens.size()) return true;
  auto& all = generation.prompt_logprobs;
  if (all.size() < next) all.resize(next);
  const int32_t id = generation.tokens[next];
  const int32_t n = generation.request.prompt_logprobs;
  all[next - 1].logprob = -model::token_nll(logits, id);
  if (n > 0) all[next - 1].top = likeliest(logits, n, log_sum_exp(logits));
  return false;
}

// The nodes' logs name the requests that a step is for; most steps are for those of the last one.
void Scheduler::announce(const std::vector<Generation*>& stepped) {
  std::string ids;
  for (const Generation* generation : stepped) {
    if (!ids.empty()) ids += ' ';
    ids += generation->request.request_id;
  }
  if (ids == announced_) return;
  engine_.announce(ids);
  announced_ = std::move(ids);
}

// A row of V3's vocabulary takes milliseconds: too long to do them one after the other.
void Scheduler::sample_all(const std::vector<Generation*>& stepped) {
  const auto vocab = static_cast<size_t>(engine_.config().vocab_size);
  std::vector<Generation*> sampling;
  for (Generation* generation : stepped) {
    if (generation->num_right < generation->logits_rows.size()) sampling.push_back(generation);
  }
  team_.parallel_for(std::ssize(sampling), 1, [&](int64_t begin, int64_t end, int member) {
    for (int64_t i = begin; i < end; ++i) {
      Generation& generation = *sampling[static_cast<size_t>(i)];
      try {
        const size_t row = generation.logits_rows[generation.num_right];
        sample(generation, std::span(logits_).subspan(row * vocab, vocab),
               workspaces_[static_cast<size_t>(member)]);
      } catch (const std::bad_alloc&) {
        generation.sample_error =
            Error{ErrorCode::kUnavailable, "out of memory while its token was chosen"};
      }
    }
  });
}

// Chooses the next token from the logits of the last one.
void Scheduler::sample(Generation& generation, std::span<const float> logits,
                       Workspace& workspace) {
  CHECK(!generation.ended);
  GenerationRequest& request = generation.request;
  std::span<const float> adjusted = logits;
  if (!request.logits.idle()) {
    workspace.logits.assign(logits.begin(), logits.end());
    request.logits.apply(generation.counts, generation.prompt_ids, workspace.logits);
    adjusted = workspace.logits;
  }
  std::span<const uint8_t> allowed = options_.allowed;
  const bool too_short = generation.num_generated() < request.min_tokens;
  if (request.constraint || generation.mask || too_short) {
    workspace.allowed = options_.allowed;
    workspace.allowed.resize(static_cast<size_t>(options_.vocab_limit), 1);
    if (too_short) {
      for (const int32_t id : request.stop_ids) {
        if (id >= 0 && id < options_.vocab_limit) workspace.allowed[static_cast<size_t>(id)] = 0;
      }
    }
    if ((request.constraint || generation.mask) && !find_mask(generation, workspace)) {
      if (!generation.sample_error) generation.held_logits.assign(logits.begin(), logits.end());
      return;
    }
    allowed = workspace.allowed;
  }
  const RandomPlace place{request.sample, static_cast<uint64_t>(generation.num_tokens())};
  auto token =
      workspace.sampler.sample(adjusted, request.sampling, place, options_.vocab_limit, allowed);
  if (!token) {
    generation.sample_error = token.error();
    return;
  }
  CHECK(*token >= 0 && *token < options_.vocab_limit);
  CHECK(allowed.empty() || allowed[static_cast<size_t>(*token)]);
  generation.sampled = *token;
  if (request.top_logprobs >= 0) {
    const double total = log_sum_exp(logits);
    generation.logprob = static_cast<float>(logits[static_cast<size_t>(*token)] - total);
    generation.top = likeliest(logits, request.top_logprobs, total);
  }
}

// Takes from workspace.allowed what the constraint forbids. False: there is an error, or the mask
// is being found beside the steps: nobody waits for one that is dear.
bool Scheduler::find_mask(Generation& generation, Workspace& workspace) {
  GenerationRequest& request = generation.request;
  const int64_t tokens_left = request.max_tokens - generation.num_generated();
  Status masked;
  if (generation.mask) {
    if (!generation.mask->done.load(std::memory_order_acquire)) return false;
    const std::shared_ptr<MaskTask> task = std::move(generation.mask);
    request.constraint = std::move(task->constraint);
    for (size_t id = 0; id < workspace.allowed.size(); ++id) {
      workspace.allowed[id] &= task->allowed[id];
    }
    masked = task->status;
  } else {
    masked = request.constraint->mask_within(kMaskWorkInStep, tokens_left, workspace.allowed);
    if (!masked && masked.error().code == ErrorCode::kOverloaded) {
      generation.mask = std::make_shared<MaskTask>();
      generation.mask->constraint = std::move(request.constraint);
      generation.mask->tokens_left = tokens_left;
      generation.mask->allowed.assign(static_cast<size_t>(options_.vocab_limit), 1);
      masks_.add(request.client, generation.mask);
      return false;
    }
  }
  if (!masked) generation.sample_error = masked.error();
  return masked ? true : false;
}

// Those whose masks have been found since.
void Scheduler::sample_held() {
  for (const GenerationPtr& generation : running_) {
    if (generation->held_logits.empty() || !generation->mask->done.load()) continue;
    const std::vector<float> logits = std::exchange(generation->held_logits, {});
    sample(*generation, logits, workspaces_[0]);
    if (generation->sample_error) {
      fail(*generation, *generation->sample_error);
    } else {
      take_token(*generation);
    }
  }
  remove_ended();
}

// The step went well: the sequence has moved, and may have a new token.
void Scheduler::advance(Generation& generation) {
  counts_.computed_tokens += static_cast<uint64_t>(generation.rows);
  charge(generation, generation.rows);
  if (options_.prefix_cache) engine_.keep(generation.sequence, generation.tokens);
  if (generation.sampled) take_token(generation);
}

void Scheduler::take_token(Generation& generation) {
  CHECK(generation.sampled && generation.pending() == 0);
  const int32_t token = *generation.sampled;
  generation.sampled.reset();
  generation.tokens.push_back(token);
  ++generation.counts[token];
  ++counts_.generated_tokens;
  GenerationEvent& event = event_of(generation);
  event.token = token;
  event.logprob = generation.logprob;
  event.top = std::move(generation.top);
  event.prompt = std::exchange(generation.prompt_logprobs, {});

  constrain::TokenConstraint* constraint = generation.request.constraint.get();
  if (generation.stops_at(token)) {
    finish(generation, FinishReason::kStop);
    return;
  }
  if (constraint) constraint->accept(token);
  if (constraint && constraint->finished()) {
    finish(generation, FinishReason::kStop);
  } else if (generation.num_generated() >= generation.request.max_tokens ||
             generation.sequence.num_tokens >= engine_.config().max_position_embeddings) {
    finish(generation, FinishReason::kLength);
  }
}

}  // namespace atl::coordinator
