#include "coordinator/serving/scheduler.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <utility>

#include "base/check.h"
#include "base/log.h"
#include "coordinator/serving/scheduler_generation.h"
#include "coordinator/serving/step_budget.h"

namespace atl::coordinator {
namespace {

int64_t common_blocks(std::span<const int32_t> a, std::span<const int32_t> b) {
  const size_t n = std::min(a.size(), b.size());
  const auto differ =
      std::mismatch(a.begin(), a.begin() + static_cast<std::ptrdiff_t>(n), b.begin());
  return (differ.first - a.begin()) / PrefixCache::kBlock;
}

// k/E of StepCost.
double chosen_share(const model::ModelConfig& config) {
  if (config.n_routed_experts == 0) return 0;
  return static_cast<double>(config.num_experts_per_tok) /
         static_cast<double>(config.n_routed_experts);
}

}  // namespace

// By first admission.
bool Scheduler::came_before(const GenerationPtr& a, const GenerationPtr& b) {
  CHECK(a->admission > 0 && b->admission > 0);
  return a->admission < b->admission;
}

Scheduler::Scheduler(Engine& engine, ThreadTeam& team, const Clock& clock, SchedulerOptions options,
                     EventSink sink)
    : engine_(engine),
      team_(team),
      clock_(clock),
      options_(std::move(options)),
      sink_(std::move(sink)),
      wake_(options_.threads->make_condition()),
      step_cost_(engine.options().rows_max, chosen_share(engine.config())),
      mtp_gates_(std::bit_width(static_cast<uint64_t>(options_.sequences_max))),
      workspaces_(static_cast<size_t>(team.num_threads())),
      masks_([this] {
        const std::lock_guard lock(mutex_);
        mask_found_ = true;
        wake_->notify_all();
      }) {
  CHECK_GT(options_.sequences_max, 0);
  CHECK_LE(options_.sequences_max, engine.options().rows_max);
  CHECK(!options_.mtp_drafts || engine.has_mtp());
  publish_stats();
}

Scheduler::~Scheduler() {
  for (const GenerationPtr& generation : running_) engine_.release(generation->sequence);
}

// ---- Any thread ----

Result<GenerationId> Scheduler::submit(GenerationRequest request) {
  const model::ModelConfig& config = engine_.config();
  const auto prompt = static_cast<int64_t>(request.prompt.size());
  if (prompt == 0) return Error{ErrorCode::kInvalid, "the prompt has no tokens"};
  if (request.max_tokens < 1) return Error{ErrorCode::kInvalid, "max_tokens is less than 1"};
  if (prompt > config.max_position_embeddings) {
    return Error{ErrorCode::kInvalid, fmt::format("the prompt has {} tokens, the model takes {}",
                                                  prompt, config.max_position_embeddings)};
  }
  // The last token is never put into the cache.
  const int64_t positions =
      std::min(prompt + request.max_tokens - 1, config.max_position_embeddings);
  const int64_t room = engine_.cache().max_blocks() * PrefixCache::kBlock;
  if (positions > room) {
    return Error{ErrorCode::kInvalid,
                 fmt::format("prompt and max_tokens make {} tokens, the KV cache holds {}",
                             prompt + request.max_tokens, room)};
  }
  if (Status valid = model::check(request.sampling); !valid) return valid.error();

  auto generation = std::make_unique<Generation>();
  generation->tokens = request.prompt;
  if (request.logits.repetition_penalty != 1) {
    std::vector<int32_t>& ids = generation->prompt_ids = request.prompt;
    std::sort(ids.begin(), ids.end());
    ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  }
  generation->request = std::move(request);
  generation->submitted = clock_.now();
  const std::lock_guard lock(mutex_);
  if (draining_ || stopping_) {
    ++stats_.rejected;
    return Error{ErrorCode::kUnavailable, "the server is shutting down"};
  }
  if (queued_ >= options_.queue_max) {
    ++stats_.rejected;
    return Error{ErrorCode::kOverloaded,
                 fmt::format("{} requests are waiting, which is the most", queued_)};
  }
  ++queued_;
  ++stats_.accepted;
  generation->id = GenerationId{next_id_++};
  const GenerationId id = generation->id;
  arrivals_.push_back(std::move(generation));
  wake_->notify_all();
  return id;
}

void Scheduler::cancel(GenerationId id) {
  const std::lock_guard lock(mutex_);
  cancellations_.push_back(id);
  wake_->notify_all();
}

GenerationStats Scheduler::stats() const {
  const std::lock_guard lock(mutex_);
  GenerationStats stats = stats_;
  stats.waiting += static_cast<int64_t>(arrivals_.size());
  stats.draining = draining_;
  return stats;
}

void Scheduler::drain() {
  const std::lock_guard lock(mutex_);
  draining_ = true;
}

void Scheduler::stop() {
  const std::lock_guard lock(mutex_);
  stopping_ = true;
  wake_->notify_all();
}

// ---- The engine's thread ----

void Scheduler::run() {
  while (true) {
    const bool computed = step();
    std::unique_lock lock(mutex_);
    const auto called = [this] {
      return stopping_ || mask_found_ || !arrivals_.empty() || !cancellations_.empty();
    };
    if (!computed && !called()) {
      std::optional<Clock::TimePoint> until = next_deadline();
      if (options_.while_idle) {
        const auto idle = clock_.now() + options_.idle_every;
        until = until ? std::min(*until, idle) : idle;
      }
      if (until) {
        wake_->wait_until(lock, *until, called);
      } else {
        wake_->wait(lock, called);
      }
    }
    if (stopping_) return;
    if (!computed && !called() && options_.while_idle) {
      lock.unlock();
      options_.while_idle();
    }
  }
}

bool Scheduler::step() {
  const bool is_traced = options_.trace != nullptr && options_.trace->is_on();
  const auto begin = is_traced ? clock_.now() : Clock::TimePoint();
  take_messages();
  drop_expired();
  sample_held();
  admit();
  plan();
  const bool computed = compute();
  remove_ended();
  publish_stats();
  deliver();
  if (computed && mtp_.gate) draft_ahead();  // those who wait for tokens have them
  if (options_.after_step) options_.after_step();
  check_state();
  if (is_traced && computed) {
    options_.trace->add(
        {trace_ns(begin), trace_ns(clock_.now()), 0, -1, 0, 0, options_.trace_kind});
  }
  return computed;
}

// What holds between steps.
void Scheduler::check_state() const {
  CHECK_LE(std::ssize(running_), options_.sequences_max);
  CHECK(std::is_sorted(running_.begin(), running_.end(), came_before));
  std::map<std::string_view, std::pair<int64_t, int64_t>> seen;  // of a client: present, admitted
  const auto look = [&](const Generation& generation, bool admitted) {
    CHECK(!generation.ended && !generation.event);
    CHECK_EQ(generation.admission > 0, admitted);
    CHECK_LT(generation.num_generated(), generation.request.max_tokens);
    auto& [present, let_in] = seen[generation.request.client];
    ++present;
    let_in += admitted;
  };
  for (const GenerationPtr& generation : running_) {
    look(*generation, true);
    // Its last token is not in the cache, unless its next one is being chosen.
    CHECK(generation->pending() >= 1 || !generation->held_logits.empty());
  }
  for (const GenerationPtr& generation : preempted_) {
    look(*generation, true);
    CHECK(generation->sequence.blocks.empty());
  }
  for (const auto& [name, client] : clients_) {
    for (const GenerationPtr& generation : client.waiting) look(*generation, false);
    CHECK(seen[name] == std::pair(client.present, client.admitted));
  }
}

void Scheduler::take_messages() {
  std::vector<GenerationPtr> arrivals;
  std::vector<GenerationId> cancelled;
  {
    const std::lock_guard lock(mutex_);
    arrivals.swap(arrivals_);
    cancelled.swap(cancellations_);
    mask_found_ = false;
  }
  for (GenerationPtr& generation : arrivals) enqueue(std::move(generation));
  if (cancelled.empty()) return;
  const auto drop = [&](Generation& generation) {
    if (generation.ended || !std::count(cancelled.begin(), cancelled.end(), generation.id)) return;
    leave(generation);
    ++counts_.cancelled;
  };
  for (const GenerationPtr& generation : running_) drop(*generation);
  for_each_waiting(drop);
  remove_ended();
}

void Scheduler::enqueue(GenerationPtr generation) {
  const auto [client, added] = clients_.try_emplace(generation->request.client);
  if (added) {
    std::optional<double> least;
    for (const auto& [name, other] : clients_) {
      if (&other != &client->second && (!least || other.service < *least)) least = other.service;
    }
    client->second.service = least.value_or(0);
  }
  ++client->second.present;
  client->second.waiting.push_back(std::move(generation));
}

void Scheduler::drop_expired() {
  const Clock::TimePoint now = clock_.now();
  const auto drop = [&](Generation& generation) {
    if (generation.ended || !generation.request.deadline || now < *generation.request.deadline)
      return;
    fail(generation,
         {ErrorCode::kTimeout, fmt::format("the time for this request ran out after {} tokens",
                                           generation.num_generated())});
  };
  for (const GenerationPtr& generation : running_) drop(*generation);
  for_each_waiting(drop);
  remove_ended();
}

// Who is next in a queue waits for room, and everybody behind it; a request whose prompt begins
// like one that is being read lets others pass until that is known.
void Scheduler::admit() {
  if (admit_preempted() && admit_waiting()) make_way();
}

// false: the first of them has no room, so that nobody else is let in.
bool Scheduler::admit_preempted() {
  while (!preempted_.empty() && std::ssize(running_) < options_.sequences_max) {
    if (!try_admit(preempted_.front())) return false;
    preempted_.pop_front();
  }
  return true;
}

// One request at a time, so that no client's queue is let in whole while others wait. false: there
// is no room for the next one.
bool Scheduler::admit_waiting() {
  std::set<const Client*> passed;
  while (std::ssize(running_) < options_.sequences_max) {
    Client* client = least_served(passed);
    if (!client) return true;
    GenerationPtr& next = client->waiting.front();
    if (options_.prefix_cache && computes_the_same(*next)) {
      passed.insert(client);
      continue;
    }
    if (!try_admit(next)) return false;
    client->waiting.pop_front();
  }
  return true;
}

// The batch is full. A client with nothing in it doesn't wait until one of another client's many
// requests ends: the one that costs least to compute again gives it its place. Its tokens stay the
// same (preempt()). Each client keeps at least one, so that a place changes hands once for each
// client that comes.
void Scheduler::make_way() {
  std::set<const Client*> passed;
  while (std::ssize(running_) >= options_.sequences_max) {
    Client* newcomer = least_served(passed);
    if (!newcomer) return;
    passed.insert(newcomer);
    GenerationPtr& next = newcomer->waiting.front();
    if (newcomer->admitted > 0 || (options_.prefix_cache && computes_the_same(*next))) continue;
    const std::optional<size_t> index = cheapest_of_most_present();
    if (!index) return;
    preempt(*index);
    if (!try_admit(next)) return;
    newcomer->waiting.pop_front();
  }
}

// Of the client with most requests in the batch, if these are at least two, the one with the fewest
// positions computed; of equal ones the last to come.
std::optional<size_t> Scheduler::cheapest_of_most_present() const {
  std::map<std::string_view, int64_t> present;
  for (const GenerationPtr& generation : running_) ++present[generation->request.client];
  const auto most =
      std::max_element(present.begin(), present.end(),
                       [](const auto& a, const auto& b) { return a.second < b.second; });
  if (most == present.end() || most->second < 2) return std::nullopt;
  std::optional<size_t> cheapest;
  for (size_t i = 0; i < running_.size(); ++i) {
    if (running_[i]->request.client != most->first) continue;
    if (!cheapest || running_[i]->sequence.num_tokens <= running_[*cheapest]->sequence.num_tokens) {
      cheapest = i;
    }
  }
  return cheapest;
}

// The client with requests that wait and the least service, given and promised to those in the
// batch; nullptr if there is none besides `passed`.
Scheduler::Client* Scheduler::least_served(const std::set<const Client*>& passed) {
  std::map<const Client*, double> promised;
  for (const GenerationPtr& generation : running_) {
    promised[&clients_.at(generation->request.client)] += static_cast<double>(
        generation->pending() + generation->request.max_tokens - generation->num_generated());
  }
  Client* least = nullptr;
  double least_service = 0;
  for (auto& [name, client] : clients_) {
    if (client.waiting.empty() || passed.contains(&client)) continue;
    const auto to_come = promised.find(&client);
    const double service = client.service + (to_come == promised.end() ? 0 : to_come->second);
    if (!least || service < least_service) {
      least = &client;
      least_service = service;
    }
  }
  return least;
}

// Whether a sequence in the batch is about to publish blocks that this one could use.
bool Scheduler::computes_the_same(const Generation& generation) const {
  const int64_t usable = (generation.num_tokens() - 1) / PrefixCache::kBlock;
  for (const GenerationPtr& other : running_) {
    if (other->decodes()) continue;
    const int64_t common = std::min({usable, common_blocks(other->tokens, generation.tokens)});
    if (common > other->sequence.num_published) return true;
  }
  return false;
}

bool Scheduler::try_admit(GenerationPtr& generation) {
  const bool scored = generation->request.prompt_logprobs >= 0 && generation->num_generated() == 0;
  if (options_.prefix_cache && !scored) {
    engine_.reuse(generation->sequence, generation->tokens);
  }
  int64_t needed = missing_blocks(*generation, generation->num_tokens() + 1);
  // What the others still need for what they have, and a block each to go on.
  for (const GenerationPtr& other : running_) {
    needed += missing_blocks(*other, other->num_tokens() + 1) + 1;
  }
  if (!running_.empty() && needed > engine_.prefixes().available()) {
    engine_.release(generation->sequence);
    return false;
  }
  if (generation->admission == 0) {
    generation->admission = ++admissions_;
    generation->mtp_acceptance = mtp_acceptance_;
    ++clients_.at(generation->request.client).admitted;
    generation->cached_tokens = generation->sequence.num_tokens;
    generation->queued_seconds = seconds_between(generation->submitted, clock_.now());
    counts_.prompt_tokens += static_cast<uint64_t>(generation->num_tokens());
    counts_.cached_tokens += static_cast<uint64_t>(generation->cached_tokens);
    const std::lock_guard lock(mutex_);
    --queued_;
  }
  running_.insert(std::upper_bound(running_.begin(), running_.end(), generation, came_before),
                  std::move(generation));
  return true;
}

int64_t Scheduler::missing_blocks(const Generation& generation, int64_t num_tokens) const {
  return std::max<int64_t>(
      0, KvCache::blocks_for(num_tokens) - std::ssize(generation.sequence.blocks));
}

void Scheduler::plan() {
  share_rows();
  find_room();
  begin_mtp_step();
  add_drafts();
}

void Scheduler::begin_mtp_step() {
  mtp_ = {};
  if (!options_.mtp_drafts || running_.empty()) return;
  mtp_.gate = &mtp_gates_[static_cast<size_t>(std::bit_width(running_.size())) - 1];
  mtp_.open = mtp_.gate->is_open();
  if (mtp_.open) mtp_.kind = mtp_.gate->begin_step();
}

// Gives every sequence its rows of this step: one to each that has one left, the rest to prompts.
void Scheduler::share_rows() {
  StepSize decoding;
  std::vector<PromptRows> prompts;
  std::map<const Client*, size_t> numbers;  // of those with prompts
  const Clock::TimePoint now = clock_.now();
  for (const GenerationPtr& generation : running_) {
    generation->rows = generation->pending() == 1 ? 1 : 0;
    if (!generation->held_logits.empty()) continue;
    if (generation->rows == 1) {
      decoding.add(1, generation->sequence.num_tokens);
    } else {
      const Client* client = &clients_.at(generation->request.client);
      prompts.push_back({.context = generation->sequence.num_tokens,
                         .pending = generation->pending(),
                         .waited_s = seconds_between(generation->submitted, now),
                         .client = numbers.try_emplace(client, numbers.size()).first->second,
                         .service = client->service});
    }
  }
  const StepLimits limits{engine_.options().rows_max, options_.step_target_s,
                          slowdown_for(decoding.rows, prompts.size())};
  if (share_step(step_cost_, decoding, limits, prompts)) ++counts_.steps_cut;
  int64_t rows = decoding.rows;
  for (const PromptRows& prompt : prompts) rows += prompt.rows;
  CHECK_LE(rows, limits.rows_max);
  auto prompt = prompts.begin();
  for (const GenerationPtr& generation : running_) {
    if (!generation->held_logits.empty()) continue;
    if (generation->rows == 0) generation->rows = prompt++->rows;
  }
}

// Takes sequences out of the batch until the others' rows have room in the cache.
void Scheduler::find_room() {
  int64_t room = engine_.prefixes().available();
  for (size_t i = 0; i < running_.size(); ++i) {
    const auto needed = [&] {
      return missing_blocks(*running_[i], running_[i]->sequence.num_tokens + running_[i]->rows);
    };
    while (needed() > room && i + 1 < running_.size()) {
      preempt(running_.size() - 1);
      room = engine_.prefixes().available();
      for (size_t before = 0; before < i; ++before) {
        room -= missing_blocks(*running_[before],
                               running_[before]->sequence.num_tokens + running_[before]->rows);
      }
    }
    if (needed() > room) {
      // The last one: it takes what is there, and waits if that is nothing.
      const int64_t positions =
          (std::ssize(running_[i]->sequence.blocks) + room) * PrefixCache::kBlock;
      running_[i]->rows = std::max<int64_t>(0, positions - running_[i]->sequence.num_tokens);
      if (running_[i]->rows == 0 && i > 0) {
        preempt(i);
        break;
      }
    }
    room -= needed();
  }
}

// Rows behind those of sequences that decode, where they pay and there is room: nobody is taken out
// of the batch for them.
void Scheduler::add_drafts() {
  if (options_.draft_tokens == 0) return;
  StepSize step;
  int64_t room = engine_.prefixes().available();
  std::vector<Generation*> drafting;
  std::vector<DraftRows> drafts;
  for (const GenerationPtr& pointer : running_) {
    Generation& generation = *pointer;
    generation.draft.clear();
    generation.draft_rows = 0;
    generation.num_right = 0;
    if (generation.rows == 0) continue;
    step.add(generation.rows, generation.sequence.num_tokens);
    const int64_t end = generation.sequence.num_tokens + generation.rows;
    room -= missing_blocks(generation, end);
    if (options_.lookup_drafts) {
      generation.lookup.learn(std::span(generation.tokens).first(static_cast<size_t>(end)));
    }
    if (!generation.decodes()) continue;
    const int64_t most = std::min({options_.draft_tokens,
                                   generation.request.max_tokens - generation.num_generated() - 1,
                                   engine_.config().max_position_embeddings - end});
    if (most <= 0) continue;
    const std::span<const int32_t> draft = find_draft(generation, static_cast<size_t>(most));
    generation.draft.assign(draft.begin(), draft.end());
    if (draft.empty() || generation.draft_failed) continue;
    if (generation.draft_is_mtp && mtp_.kind != DraftGate::Step::kDrafts) continue;
    drafting.push_back(&generation);
    drafts.push_back({generation.acceptance().share(), generation.sequence.num_tokens,
                      static_cast<int64_t>(draft.size()), 0});
  }
  const int64_t rows_left = std::min(kDraftRowsMax, engine_.options().rows_max - step.rows);
  choose_drafts(step_cost_, step, rows_left, drafts);
  for (size_t d = 0; d < drafting.size(); ++d) {
    Generation& generation = *drafting[d];
    const int64_t end = generation.sequence.num_tokens + generation.rows;
    const int64_t blocks =
        missing_blocks(generation, end + drafts[d].rows) - missing_blocks(generation, end);
    if (blocks > room) continue;
    room -= blocks;
    generation.draft_rows = drafts[d].rows;
    generation.rows += drafts[d].rows;
    if (!generation.draft_is_mtp) {
      mtp_.lookup_rows += drafts[d].rows;
      continue;
    }
    mtp_.drafted += drafts[d].rows;
    for (int64_t row = 1; row <= drafts[d].rows; ++row) {
      mtp_.expected += std::pow(drafts[d].acceptance, row);
    }
  }
}

// The next-token layer's, if it has one that is right more often than what the text repeats.
std::span<const int32_t> Scheduler::find_draft(Generation& generation, size_t most) const {
  std::span<const int32_t> lookup;
  if (options_.lookup_drafts) lookup = generation.lookup.propose(generation.tokens, most);
  const std::span<const int32_t> mtp(generation.mtp_draft);
  generation.draft_is_mtp =
      !mtp.empty() &&
      (lookup.empty() || generation.mtp_acceptance.share() >= generation.lookup_acceptance.share());
  return generation.draft_is_mtp ? mtp.first(std::min(most, mtp.size())) : lookup;
}

void Scheduler::preempt(size_t index) {
  CHECK_LT(index, running_.size());
  GenerationPtr generation = std::move(running_[index]);
  running_.erase(running_.begin() + static_cast<std::ptrdiff_t>(index));
  log_debug("request {}: preempted after {} of {} tokens", generation->request.request_id,
            generation->sequence.num_tokens, generation->num_tokens());
  engine_.release(generation->sequence);
  generation->held_logits.clear();  // they are computed again
  generation->mtp_draft.clear();
  ++counts_.preempted;
  preempted_.insert(std::upper_bound(preempted_.begin(), preempted_.end(), generation, came_before),
                    std::move(generation));
}

void Scheduler::finish(Generation& generation, FinishReason reason) {
  event_of(generation).finish = reason;
  ++counts_.finished;
  leave(generation);
}

void Scheduler::fail(Generation& generation, const Error& error) {
  log_debug("request {}: {}", generation.request.request_id, error.message);
  GenerationEvent& event = event_of(generation);
  event.token.reset();
  event.error = error;
  ++counts_.failed;
  leave(generation);
}

// Gives back what the generation holds; remove_ended() takes it away.
void Scheduler::leave(Generation& generation) {
  engine_.release(generation.sequence);
  generation.ended = true;
  if (generation.admission == 0) {
    const std::lock_guard lock(mutex_);
    --queued_;
  }
  const auto client = clients_.find(generation.request.client);
  CHECK(client != clients_.end());
  CHECK_GT(client->second.present, 0);
  --client->second.present;
  if (generation.admission > 0) {
    CHECK_GT(client->second.admitted, 0);
    --client->second.admitted;
  }
}

void Scheduler::charge(const Generation& generation, int64_t tokens) {
  clients_.at(generation.request.client).service += static_cast<double>(tokens);
}

GenerationEvent& Scheduler::event_of(Generation& generation) {
  if (!generation.event) {
    generation.event = events_.size();
    GenerationEvent event;
    event.id = generation.id;
    event.cached_tokens = generation.cached_tokens;
    event.queued_seconds = generation.queued_seconds;
    events_.push_back(std::move(event));
  }
  return events_[*generation.event];
}

void Scheduler::remove_ended() {
  const auto ended = [](const GenerationPtr& generation) { return generation->ended; };
  std::erase_if(running_, ended);
  std::erase_if(preempted_, ended);
  for (auto& [name, client] : clients_) std::erase_if(client.waiting, ended);
  std::erase_if(clients_, [](const auto& named) { return named.second.present == 0; });
}

void Scheduler::deliver() {
  for (const GenerationPtr& generation : running_) generation->event.reset();
  for (const GenerationPtr& generation : preempted_) generation->event.reset();
  if (events_.empty()) return;
  sink_(std::exchange(events_, {}));
}

void Scheduler::publish_stats() {
  counts_.running = std::ssize(running_);
  counts_.waiting = std::ssize(preempted_);
  for (const auto& [name, client] : clients_) counts_.waiting += std::ssize(client.waiting);
  counts_.steps_halved = engine_.times().halved_steps;
  counts_.cache_blocks = engine_.cache().max_blocks();
  counts_.cache_blocks_used = engine_.prefixes().held();
  counts_.cache_blocks_kept = engine_.prefixes().kept();
  const std::lock_guard lock(mutex_);
  const uint64_t accepted = stats_.accepted, rejected = stats_.rejected;
  stats_ = counts_;
  stats_.accepted = accepted;
  stats_.rejected = rejected;
}

std::optional<Clock::TimePoint> Scheduler::next_deadline() const {
  std::optional<Clock::TimePoint> next;
  const auto look = [&](const GenerationPtr& generation) {
    const auto& deadline = generation->request.deadline;
    if (deadline && (!next || *deadline < *next)) next = deadline;
  };
  for (const auto& [name, client] : clients_) {
    for (const GenerationPtr& generation : client.waiting) look(generation);
  }
  for (const GenerationPtr& generation : preempted_) look(generation);
  for (const GenerationPtr& generation : running_) look(generation);
  return next;
}

template <typename Visit>
void Scheduler::for_each_waiting(const Visit& visit) {
  for (const GenerationPtr& generation : preempted_) visit(*generation);
  for (auto& [name, client] : clients_) {
    for (const GenerationPtr& generation : client.waiting) visit(*generation);
  }
}

}  // namespace atl::coordinator
