#include "coordinator/serving/scheduler.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <new>
#include <utility>

#include "base/check.h"
#include "base/log.h"
#include "coordinator/serving/step_budget.h"

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

int64_t common_blocks(std::span<const int32_t> a, std::span<const int32_t> b) {
  const size_t n = std::min(a.size(), b.size());
  const auto differ =
      std::mismatch(a.begin(), a.begin() + static_cast<std::ptrdiff_t>(n), b.begin());
  return (differ.first - a.begin()) / PrefixCache::kBlock;
}

// Of masks that are found in the step, by the team: lists of tokens that are known cost 4,000 at
// most for 129k tokens, a millisecond of work 40,000.
constexpr uint64_t kMaskWorkInStep = 40'000;

// k/E of StepCost.
double chosen_share(const model::ModelConfig& config) {
  if (config.n_routed_experts == 0) return 0;
  return static_cast<double>(config.num_experts_per_tok) /
         static_cast<double>(config.n_routed_experts);
}

}  // namespace

struct Scheduler::Generation {
  GenerationId id;
  GenerationRequest request;
  std::vector<int32_t> tokens;                  // the prompt, then what was generated
  Sequence sequence;                            // as far as it is computed
  std::unordered_map<int32_t, int32_t> counts;  // of generated tokens
  std::vector<int32_t> prompt_ids;              // each once, ascending; with repetition_penalty
  std::vector<PromptLogprob> prompt_logprobs;   // as far as they are known
  uint64_t admission = 0;  // place in the order of first admissions; 0: none yet
  int64_t cached_tokens = 0;
  Clock::TimePoint submitted{};
  double queued_seconds = 0;
  bool ended = false;

  // Of the step under way.
  int64_t rows = 0;
  int64_t sequence_begin = 0;        // the first of these rows within the sequence
  std::optional<size_t> logits_row;  // in the step's logits
  std::optional<int32_t> sampled;
  std::optional<Error> sample_error;
  float logprob = 0;
  std::vector<TokenLogprob> top;

  // A mask that is being found beside the steps: it has the request's constraint meanwhile.
  std::shared_ptr<MaskTask> mask;
  std::vector<float> held_logits;  // for which it is; the sequence sits out until then

  std::optional<size_t> event;  // its place among the step's events

  int64_t num_tokens() const { return static_cast<int64_t>(tokens.size()); }
  int64_t num_generated() const {
    return num_tokens() - static_cast<int64_t>(request.prompt.size());
  }
  int64_t pending() const { return num_tokens() - sequence.num_tokens; }
  // Whether its rows of this step are the prompt's, whose probabilities are wanted.
  bool is_scored() const { return request.prompt_logprobs >= 0 && num_generated() == 0; }
  bool decodes() const { return pending() == 1 && num_generated() > 0; }
  bool stops_at(int32_t id) const {
    return std::count(request.stop_ids.begin(), request.stop_ids.end(), id) > 0;
  }
};

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
      workspaces_(static_cast<size_t>(team.num_threads())),
      masks_([this] {
        const std::lock_guard lock(mutex_);
        mask_found_ = true;
        wake_->notify_all();
      }) {
  CHECK_GT(options_.sequences_max, 0);
  CHECK_LE(options_.sequences_max, engine.options().rows_max);
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

void Scheduler::preempt(size_t index) {
  CHECK_LT(index, running_.size());
  GenerationPtr generation = std::move(running_[index]);
  running_.erase(running_.begin() + static_cast<std::ptrdiff_t>(index));
  log_debug("request {}: preempted after {} of {} tokens", generation->request.request_id,
            generation->sequence.num_tokens, generation->num_tokens());
  engine_.release(generation->sequence);
  generation->held_logits.clear();  // they are computed again
  ++counts_.preempted;
  preempted_.insert(std::upper_bound(preempted_.begin(), preempted_.end(), generation, came_before),
                    std::move(generation));
}

bool Scheduler::compute() {
  std::vector<Generation*> stepped;
  std::vector<SequenceRows> work;
  StepSize size;
  for (const GenerationPtr& generation : running_) {
    if (generation->rows == 0) continue;
    stepped.push_back(generation.get());
    size.add(generation->rows, generation->sequence.num_tokens);
    const bool to_the_end = generation->rows == generation->pending();
    generation->sequence_begin = generation->sequence.num_tokens;
    work.push_back({&generation->sequence,
                    std::span(generation->tokens)
                        .subspan(static_cast<size_t>(generation->sequence.num_tokens),
                                 static_cast<size_t>(generation->rows)),
                    generation->is_scored() ? WantLogits::kAll
                    : to_the_end            ? WantLogits::kLast
                                            : WantLogits::kNone});
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
    stepped[w]->logits_row = row;
  };
  const Status status = engine_.step(work, keep_logits, errors, options_.observer);
  if (status) sample_all(stepped);
  counts_.failure = status ? "" : status.error().message;
  for (size_t w = 0; w < stepped.size(); ++w) {
    Generation& generation = *stepped[w];
    if (!status) {
      fail(generation, status.error());
    } else if (errors[w]) {
      fail(generation, *errors[w]);
    } else if (generation.sample_error) {
      fail(generation, *generation.sample_error);
    } else {
      advance(generation);
    }
  }
  ++counts_.steps;
  const Clock::TimePoint end = clock_.now();
  const double seconds = seconds_between(start, end);
  if (status) {
    step_cost_.observe(size, seconds, engine_.times()[Stage::kAttentionCore] - attention_before);
  }
  counts_.step_seconds += seconds;
  counts_.last_step_end = seconds_between(Clock::TimePoint(), end);
  return true;
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
    if (generation->logits_row) sampling.push_back(generation);
  }
  team_.parallel_for(std::ssize(sampling), 1, [&](int64_t begin, int64_t end, int member) {
    for (int64_t i = begin; i < end; ++i) {
      Generation& generation = *sampling[static_cast<size_t>(i)];
      try {
        sample(generation, std::span(logits_).subspan(*generation.logits_row * vocab, vocab),
               workspaces_[static_cast<size_t>(member)]);
      } catch (const std::bad_alloc&) {
        generation.sample_error =
            Error{ErrorCode::kUnavailable, "out of memory while its token was chosen"};
      }
      generation.logits_row.reset();
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
