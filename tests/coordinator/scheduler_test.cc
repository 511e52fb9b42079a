// The scheduler over a real engine with the small model: company, order and room change no token.
#include "coordinator/serving/scheduler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <future>
#include <map>
#include <mutex>
#include <random>
#include <set>
#include <thread>

#include "coordinator/serving/generate.h"
#include "deployment/deployment.h"
#include "tests/support/golden.h"

namespace atl::coordinator {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr int32_t kVocab = 3328;
// The thread sanitizer makes a step take thirty times as long, and needs fewer of them.
#ifdef __SANITIZE_THREAD__
constexpr bool kFewer = true;
#else
constexpr bool kFewer = false;
#endif

deployment::DeploymentOptions options_for(int64_t cache_tokens, int64_t chunk, int threads) {
  deployment::DeploymentOptions options;
  options.model_dir = test::tests_dir() / "models/tiny-fp8";
  options.threads = threads;
  options.rows_max = chunk;
  options.cache_tokens = cache_tokens - 64;  // a deployment adds a block
  return options;
}

struct Outcome {
  std::vector<int32_t> tokens;
  std::vector<float> logprobs;
  std::vector<std::vector<TokenLogprob>> top;
  std::optional<FinishReason> finish;
  std::optional<Error> error;
  int64_t cached_tokens = 0;
  double queued_seconds = 0;
  bool ended() const { return finish || error; }
};

// Lets steps take time: advances the clock by so much for each step and each of its rows. The
// engine times its attention by a real clock: where the outcome depends on times, take long ones.
class StepTakes final : public StepObserver {
 public:
  StepTakes(ManualClock& clock, double step_s, double row_s)
      : clock_(clock), step_s_(step_s), row_s_(row_s) {}
  void on_routes(int64_t, std::span<const int32_t>, std::span<const float>) override {}
  void on_hidden(int64_t layer, std::span<const float> hidden) override {
    if (layer > 0) return;
    rows_ = std::ssize(hidden) / kHidden;
    double seconds = step_s_ + row_s_ * static_cast<double>(rows_);
    if (noise_) seconds *= 0.5 + 1.5 * static_cast<double>((*noise_)()) / std::mt19937::max();
    clock_.advance(std::chrono::nanoseconds(static_cast<int64_t>(seconds * 1e9)));
  }
  void vary(std::mt19937& noise) { noise_ = &noise; }
  int64_t rows() const { return rows_; }  // of the last step

 private:
  static constexpr int64_t kHidden = 256;
  ManualClock& clock_;
  const double step_s_, row_s_;
  std::mt19937* noise_ = nullptr;
  int64_t rows_ = 0;
};

class SchedulerTest : public testing::Test {
 protected:
  void open(int64_t cache_tokens = 4096, int64_t chunk = 64, SchedulerOptions options = {},
            int threads = 1) {
    scheduler_.reset();
    const bool has_mtp = deployment_ && deployment_->engine().has_mtp();
    if (!deployment_ || cache_tokens != cache_tokens_ || chunk != chunk_ ||
        options.mtp_drafts != has_mtp) {
      deployment_.reset();
      deployment::DeploymentOptions of_model = options_for(cache_tokens, chunk, threads);
      if (options.mtp_drafts) {
        of_model.next_token_layer = deployment::NextTokenLayer::kRequired;
      }
      deployment_.emplace(of_model);
      cache_tokens_ = cache_tokens;
      chunk_ = chunk;
    }
    options.sequences_max = std::min(options.sequences_max, chunk);
    options.vocab_limit = kVocab;
    outcomes_.clear();
    scheduler_.emplace(deployment_->engine(), deployment_->team(), clock_, options,
                       [this](std::vector<GenerationEvent> events) { take(std::move(events)); });
  }

  void take(std::vector<GenerationEvent> events) {
    for (GenerationEvent& event : events) {
      Outcome& outcome = outcomes_[event.id];
      EXPECT_FALSE(outcome.ended()) << "an event after the end";
      if (event.token) {
        outcome.tokens.push_back(*event.token);
        outcome.logprobs.push_back(event.logprob);
        outcome.top.push_back(std::move(event.top));
      }
      outcome.finish = event.finish;
      outcome.error = event.error;
      outcome.cached_tokens = event.cached_tokens;
      outcome.queued_seconds = event.queued_seconds;
    }
  }

  GenerationId submit(GenerationRequest request) {
    auto id = scheduler_->submit(std::move(request));
    EXPECT_TRUE(id) << (id ? "" : id.error().message);
    return id ? *id : GenerationId{};
  }
  void steps(int n) {
    for (int i = 0; i < n; ++i) scheduler_->step();
  }
  // Steps until nothing is left to do.
  void finish_all() {
    while (scheduler_->step()) {
    }
  }

  // What the request gives with the engine to itself.
  std::vector<int32_t> alone(const GenerationRequest& request) {
    GenerateRequest single;
    single.prompt = request.prompt;
    single.max_tokens = request.max_tokens;
    single.sampling = request.sampling;
    single.sample = request.sample;
    single.stop_ids = request.stop_ids;
    single.vocab_limit = kVocab;
    model::Sampler sampler;
    SteadyClock clock;
    auto result = generate(deployment_->engine(), clock, single, sampler, [](int32_t) {});
    EXPECT_TRUE(result);
    return result ? result->tokens : std::vector<int32_t>{};
  }

  static GenerationRequest request(std::vector<int32_t> prompt, int64_t max_tokens) {
    GenerationRequest r;
    r.prompt = std::move(prompt);
    r.max_tokens = max_tokens;
    return r;
  }
  static std::vector<int32_t> prompt(int64_t n, int32_t salt) {
    std::vector<int32_t> tokens = {0};
    while (std::ssize(tokens) < n) {
      tokens.push_back(
          static_cast<int32_t>((tokens.size() * 31 + static_cast<size_t>(salt) * 977) % 3300));
    }
    return tokens;
  }

  ManualClock clock_;
  std::optional<deployment::Deployment> deployment_;
  int64_t cache_tokens_ = 0, chunk_ = 0;
  std::map<GenerationId, Outcome> outcomes_;
  std::optional<Scheduler> scheduler_;
};

GenerationRequest copy_of(const GenerationRequest& r) {
  GenerationRequest copy;
  copy.prompt = r.prompt;
  copy.max_tokens = r.max_tokens;
  copy.sampling = r.sampling;
  copy.sample = r.sample;
  copy.stop_ids = r.stop_ids;
  copy.client = r.client;
  return copy;
}

// Requests of random length, sampling and moment, over prompts that begin alike, in a cache that is
// too small for all of them, with steps whose time, and so what is read in them, varies.
TEST_F(SchedulerTest, tokens_are_the_same_alone_and_in_random_company) {
  constexpr int kRequests = kFewer ? 5 : 16;
  uint64_t preempted = 0, cut = 0, foretold = 0;
  for (const uint32_t seed : {1u, 2u, 3u}) {
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    const auto draw = [&](int64_t low, int64_t high) {
      return low + static_cast<int64_t>(random() % static_cast<uint64_t>(high - low + 1));
    };
    SchedulerOptions options;
    options.sequences_max = draw(4, 16);
    options.prefix_cache = seed != 2;
    options.draft_tokens = seed == 3 ? 0 : draw(1, 8);
    options.mtp_drafts = seed != 3;
    options.lookup_drafts = seed == 1;
    std::mt19937 noise(seed);
    StepTakes times(clock_, 0.02, 0.01);
    times.vary(noise);
    options.observer = &times;
    options.step_target_s = 0.1 * static_cast<double>(draw(1, 4));
    open(/*cache_tokens=*/64 * draw(6, 10), /*chunk=*/draw(16, 80), options);
    std::vector<GenerationRequest> requests;
    std::vector<std::vector<int32_t>> expected;
    for (int r = 0; r < kRequests; ++r) {
      GenerationRequest one;
      one.prompt = prompt(draw(1, 200), static_cast<int32_t>(draw(0, 2)));
      if (draw(0, 1)) one.prompt.push_back(static_cast<int32_t>(draw(1, 3000)));
      one.max_tokens = draw(1, 150);
      one.sampling.temperature = draw(0, 2) ? 0.9f : 0.0f;
      one.sampling.top_p = draw(0, 1) ? 0.95f : 1.0f;
      one.sampling.seed = random();
      one.sample = static_cast<uint64_t>(draw(0, 3));
      one.stop_ids = {1};
      one.client = std::string(1, static_cast<char>('a' + draw(0, 2)));
      expected.push_back(alone(one));
      requests.push_back(std::move(one));
    }
    std::vector<GenerationId> ids;
    for (const GenerationRequest& one : requests) {
      ids.push_back(submit(copy_of(one)));
      steps(static_cast<int>(draw(0, 4)));
    }
    finish_all();
    for (int r = 0; r < kRequests; ++r) {
      const Outcome& outcome = outcomes_[ids[r]];
      EXPECT_EQ(outcome.tokens, expected[r]) << "request " << r;
      EXPECT_TRUE(outcome.finish) << (outcome.error ? outcome.error->message : "did not end");
    }
    const GenerationStats stats = scheduler_->stats();
    EXPECT_EQ(stats.finished, static_cast<uint64_t>(kRequests));
    preempted += stats.preempted;
    cut += stats.steps_cut;
    foretold += stats.mtp_accepted_tokens;
    if (!kFewer) {
      EXPECT_EQ(stats.cached_tokens > 0, options.prefix_cache);
    }
    EXPECT_EQ(stats.cache_blocks_used, 0);
    EXPECT_EQ(stats.running + stats.waiting, 0);
  }
  if (kFewer) return;
  EXPECT_GT(preempted, 0u);  // so that it was tried, too
  EXPECT_GT(cut, 0u);
  EXPECT_GT(foretold, 0u);
}

// Texts that repeat, in steps whose rows cost little, so that drafts pay and many are right.
TEST_F(SchedulerTest, drafts_change_no_token_and_save_steps) {
  std::vector<GenerationRequest> requests;
  for (int32_t r = 0; r < (kFewer ? 2 : 6); ++r) {
    std::vector<int32_t> tokens = prompt(12, r);
    for (int i = 0; i < 3; ++i)
      tokens.insert(tokens.end(), tokens.begin() + 1, tokens.begin() + 12);
    GenerationRequest one = request(tokens, 60 + 7 * r);
    one.top_logprobs = 2;
    one.sampling.temperature = r % 3 == 2 ? 0.6f : 0.0f;
    one.sampling.seed = 5;
    one.stop_ids = {1};
    requests.push_back(std::move(one));
  }
  const auto run = [&](int64_t draft_tokens, bool mtp) {
    StepTakes times(clock_, 100, 1);
    SchedulerOptions options;
    options.observer = &times;
    options.draft_tokens = draft_tokens;
    options.mtp_drafts = mtp;
    options.lookup_drafts = !mtp;
    open(4096, 64, options);
    std::vector<GenerationId> ids;
    for (const GenerationRequest& one : requests) {
      GenerationRequest copy = copy_of(one);
      copy.top_logprobs = one.top_logprobs;
      ids.push_back(submit(std::move(copy)));
      steps(3);
    }
    finish_all();
    std::vector<Outcome> outcomes;
    for (const GenerationId id : ids) outcomes.push_back(outcomes_[id]);
    return std::pair(std::move(outcomes), scheduler_->stats());
  };
  const auto [plain, plain_stats] = run(0, false);
  EXPECT_EQ(plain_stats.drafted_tokens, 0u);
  for (const bool mtp : {false, true}) {
    SCOPED_TRACE(mtp ? "mtp" : "lookup");
    const auto [drafted, stats] = run(6, mtp);
    for (size_t r = 0; r < requests.size(); ++r) {
      SCOPED_TRACE(r);
      EXPECT_EQ(drafted[r].tokens, plain[r].tokens);
      EXPECT_EQ(drafted[r].tokens, alone(requests[r]));
      EXPECT_EQ(drafted[r].logprobs, plain[r].logprobs);
      EXPECT_EQ(drafted[r].finish, plain[r].finish);
    }
    EXPECT_GT(stats.accepted_tokens, kFewer ? 0u : 20u);
    EXPECT_LE(stats.accepted_tokens, stats.drafted_tokens);
    EXPECT_EQ(stats.mtp_drafted_tokens, mtp ? stats.drafted_tokens : 0);
    EXPECT_EQ(stats.mtp_accepted_tokens, mtp ? stats.accepted_tokens : 0);
    EXPECT_LT(stats.steps, plain_stats.steps);
    EXPECT_EQ(stats.generated_tokens, plain_stats.generated_tokens);
    EXPECT_EQ(stats.cache_blocks_used, 0);
  }
}

// Time of steps, their rows, and passes of the next-token layer, by the manual clock.
class PassTakes final : public StepObserver {
 public:
  PassTakes(ManualClock& clock, double step_s, double row_s, double pass_s)
      : clock_(clock), step_s_(step_s), row_s_(row_s), pass_s_(pass_s) {}
  void on_routes(int64_t, std::span<const int32_t>, std::span<const float>) override {}
  void on_hidden(int64_t layer, std::span<const float> hidden) override {
    const auto rows = static_cast<double>(hidden.size() / 256);
    const double seconds = layer == 0 ? step_s_ + row_s_ * rows : layer == 6 ? pass_s_ : 0;
    clock_.advance(std::chrono::nanoseconds(static_cast<int64_t>(seconds * 1e9)));
  }

 private:
  ManualClock& clock_;
  const double step_s_, row_s_, pass_s_;
};

// Passes that are dear, or steps whose rows are, are given up but for a probe now and then, so that
// the text takes at most a hundredth longer; where both are cheap, it takes far less time.
TEST_F(SchedulerTest, the_next_token_layer_costs_little_where_it_does_not_pay) {
  struct Case {
    const char* name;
    double step_s, row_s, pass_s;
    bool pays;
  };
  const int64_t tokens = kFewer ? 300 : 1000;
  for (const Case& one :
       {Case{"dear rows", 0, 10, 1, false}, Case{"dear passes", 10, 0.1, 8, false},
        Case{"cheap", 10, 0.1, 0.5, true}}) {
    SCOPED_TRACE(one.name);
    double seconds[2];
    for (const bool mtp : {false, true}) {
      PassTakes times(clock_, one.step_s, one.row_s, one.pass_s);
      SchedulerOptions options;
      options.observer = &times;
      options.draft_tokens = mtp ? 4 : 0;
      options.mtp_drafts = mtp;
      open(4096, 64, options);
      const Clock::TimePoint start = clock_.now();
      submit(request(prompt(4, 1), tokens));
      finish_all();
      seconds[mtp] = seconds_between(start, clock_.now());
    }
    const GenerationStats stats = scheduler_->stats();
    EXPECT_GT(stats.mtp_seconds, 0);
    if (one.pays) {
      EXPECT_LT(seconds[1], 0.8 * seconds[0]);
    } else {
      // A step at the beginning, with what was under way when the gate closed.
      EXPECT_LE(seconds[1], 1.0075 * seconds[0] + 3 * 10);
    }
  }
}

// Where each row costs as much as the first one, nothing is drafted however often it is right.
TEST_F(SchedulerTest, drafts_that_do_not_pay_are_left) {
  std::vector<int32_t> tokens = prompt(12, 1);
  for (int i = 0; i < 3; ++i) tokens.insert(tokens.end(), tokens.begin() + 1, tokens.begin() + 12);
  StepTakes times(clock_, 0, 100);
  SchedulerOptions options;
  options.observer = &times;
  options.draft_tokens = 6;
  open(4096, 64, options);
  submit(request(tokens, 100));
  finish_all();
  EXPECT_EQ(scheduler_->stats().drafted_tokens, 0u);
}

TEST_F(SchedulerTest, a_long_prompt_does_not_hold_up_those_that_decode) {
  open(4096, 64);
  const GenerationId decoding = submit(request(prompt(3, 0), 40));
  steps(2);
  const GenerationId reading = submit(request(prompt(1000, 1), 2));
  const size_t before = outcomes_[decoding].tokens.size();
  steps(5);
  EXPECT_EQ(outcomes_[decoding].tokens.size(), before + 5);
  EXPECT_THAT(outcomes_[reading].tokens, IsEmpty());
  EXPECT_EQ(scheduler_->stats().computed_tokens, 3u + before - 1 + 5 * 64);
  finish_all();
  EXPECT_EQ(outcomes_[reading].tokens.size(), 2u);
}

// 100 s and 20 s a row: 45 rows take 1,000 s, 64 take 1,400.
TEST_F(SchedulerTest, steps_that_read_a_prompt_keep_to_their_target) {
  StepTakes times(clock_, 100, 20);
  SchedulerOptions options;
  options.observer = &times;
  options.step_target_s = 1000;
  open(4096, 64, options);
  const GenerationId decoding = submit(request(prompt(3, 0), 60));
  steps(2);
  const GenerationId reading = submit(request(prompt(1500, 1), 2));
  steps(12);  // to learn in
  for (int i = 0; i < 10; ++i) {
    const size_t before = outcomes_[decoding].tokens.size();
    const Clock::TimePoint start = clock_.now();
    steps(1);
    EXPECT_EQ(outcomes_[decoding].tokens.size(), before + 1);
    EXPECT_NEAR(seconds_between(start, clock_.now()), 1000, 100);
  }
  EXPECT_GT(scheduler_->stats().steps_cut, 10u);
  const uint64_t cut = scheduler_->stats().steps_cut;
  const GenerationId comes = submit(request(prompt(15, 2), 1));
  steps(1);
  EXPECT_TRUE(outcomes_[comes].ended());  // a third of what the step has time for
  EXPECT_EQ(scheduler_->stats().steps_cut, cut + 1);
  finish_all();
  EXPECT_EQ(outcomes_[reading].tokens.size(), 2u);
}

// 100 s and 1 s a row: 64 rows take 2.56 s each; 55 take a tenth more each, 24 about twice as much.
TEST_F(SchedulerTest, where_nobody_decodes_the_target_costs_a_prompt_a_tenth_of_its_rate_at_most) {
  StepTakes times(clock_, 100, 1);
  SchedulerOptions options;
  options.observer = &times;
  options.step_target_s = 50;
  open(4096, 64, options);
  submit(request(prompt(3, 0), 10));
  finish_all();
  submit(request(prompt(1000, 1), 2));
  steps(8);
  EXPECT_NEAR(times.rows(), 55, 1);
  const GenerationId decoding = submit(request(prompt(3, 2), 60));
  steps(4);
  EXPECT_GT(outcomes_[decoding].tokens.size(), 1u);
  EXPECT_NEAR(times.rows(), 25, 3);
}

// Four sequences want a new block in the same step, and three are left.
TEST_F(SchedulerTest, when_all_want_room_at_once_the_last_one_gives_way_and_comes_back) {
  open(7 * 64, 64);
  std::vector<GenerationId> ids;
  std::vector<std::vector<int32_t>> expected;
  for (int i = 0; i < 4; ++i) {
    GenerationRequest one = request(prompt(16, i), 60);
    expected.push_back(alone(one));
    ids.push_back(submit(std::move(one)));
  }
  steps(1);
  EXPECT_EQ(scheduler_->stats().running, 4);
  steps(49);
  EXPECT_EQ(scheduler_->stats().running, 3);
  EXPECT_EQ(scheduler_->stats().preempted, 1u);
  finish_all();
  for (size_t i = 0; i < 4; ++i) EXPECT_EQ(outcomes_[ids[i]].tokens, expected[i]);
}

TEST_F(SchedulerTest, prompts_are_read_in_turn_and_short_ones_are_through_first) {
  open(4096, 64);
  const GenerationId long_one = submit(request(prompt(400, 1), 1));
  const GenerationId short_one = submit(request(prompt(40, 2), 1));
  steps(1);
  EXPECT_TRUE(outcomes_[short_one].ended());
  steps(5);
  EXPECT_FALSE(outcomes_[long_one].ended());  // 24 + 5 * 64 = 344
  steps(1);
  EXPECT_TRUE(outcomes_[long_one].ended());
}

// The scheduler tells who waited how long, and for whom: a request that came a minute later is not
// shorter by enough, one of another client is served when the first is a step ahead.
TEST_F(SchedulerTest, prompts_take_turns_by_their_wait_and_their_client) {
  SchedulerOptions options;
  options.prefix_cache = false;
  open(4096, 64, options);
  clock_.advance(std::chrono::seconds(1));
  const auto submit_as = [&](std::string client, int64_t n, int32_t salt) {
    GenerationRequest one = request(prompt(n, salt), 1);
    one.client = std::move(client);
    return submit(std::move(one));
  };
  const GenerationId first = submit_as("a", 64, 1);
  clock_.advance(std::chrono::seconds(60));
  const GenerationId shorter = submit_as("a", 60, 2);
  const GenerationId other = submit_as("b", 63, 3);
  steps(1);
  EXPECT_TRUE(outcomes_[first].ended());
  EXPECT_FALSE(outcomes_[shorter].ended());
  steps(1);
  EXPECT_TRUE(outcomes_[other].ended());
  EXPECT_FALSE(outcomes_[shorter].ended());
  finish_all();
}

TEST_F(SchedulerTest, several_samples_of_one_prompt_compute_it_once) {
  open(4096, 64);
  std::vector<GenerationId> ids;
  for (uint64_t sample = 0; sample < 4; ++sample) {
    GenerationRequest one = request(prompt(130, 3), 1);
    one.sample = sample;
    one.sampling.temperature = 1.5f;
    ids.push_back(submit(std::move(one)));
  }
  finish_all();
  EXPECT_EQ(scheduler_->stats().computed_tokens, 130u + 3 * 2);
  EXPECT_EQ(outcomes_[ids[0]].cached_tokens, 0);
  EXPECT_EQ(outcomes_[ids[3]].cached_tokens, 128);
}

// Any number of clients may be told to wait for one prompt. Where each is looked for among all,
// behind each that was passed over, this takes longer than a test may.
TEST_F(SchedulerTest, many_clients_with_one_prompt_do_not_hold_up_its_steps) {
  constexpr int kClients = 2000;
  SchedulerOptions options;
  options.queue_max = kClients;
  open(4096, 64, options);
  for (int i = 0; i < kClients; ++i) {
    GenerationRequest one = request(prompt(640, 1), 1);
    one.client = std::to_string(i);
    submit(std::move(one));
  }
  steps(2);
  EXPECT_EQ(scheduler_->stats().running, 1);
  EXPECT_EQ(scheduler_->stats().waiting, kClients - 1);
}

TEST_F(SchedulerTest, a_cancelled_request_is_gone_with_the_next_step) {
  open();
  const GenerationId first = submit(request(prompt(70, 0), 100));
  const GenerationId second = submit(request(prompt(5, 1), 100));
  steps(4);
  EXPECT_EQ(scheduler_->stats().running, 2);
  const size_t so_far = outcomes_[first].tokens.size();
  scheduler_->cancel(first);
  scheduler_->cancel(GenerationId{999});
  steps(1);
  EXPECT_EQ(outcomes_[first].tokens.size(), so_far);
  EXPECT_EQ(scheduler_->stats().running, 1);
  EXPECT_EQ(scheduler_->stats().cancelled, 1u);
  scheduler_->cancel(first);
  steps(1);
  EXPECT_EQ(scheduler_->stats().cancelled, 1u);
  scheduler_->cancel(second);
  EXPECT_FALSE(scheduler_->step());
  EXPECT_EQ(scheduler_->stats().cache_blocks_used, 0);
  EXPECT_FALSE(outcomes_[second].ended());
}

TEST_F(SchedulerTest, deadlines_end_what_waits_and_what_runs) {
  SchedulerOptions options;
  options.sequences_max = 1;
  open(4096, 64, options);
  GenerationRequest runs = request(prompt(5, 0), 100), waits = request(prompt(5, 1), 100);
  runs.deadline = clock_.now() + std::chrono::seconds(10);
  waits.deadline = clock_.now() + std::chrono::seconds(5);
  const GenerationId running = submit(std::move(runs)), waiting = submit(std::move(waits));
  clock_.advance(std::chrono::milliseconds(4999));
  steps(1);
  EXPECT_FALSE(outcomes_[waiting].ended());
  clock_.advance(std::chrono::milliseconds(1));
  steps(1);
  ASSERT_TRUE(outcomes_[waiting].error);
  EXPECT_EQ(outcomes_[waiting].error->code, ErrorCode::kTimeout);
  EXPECT_FALSE(outcomes_[running].ended());
  clock_.advance(std::chrono::seconds(5));
  steps(1);
  ASSERT_TRUE(outcomes_[running].error);
  EXPECT_THAT(outcomes_[running].error->message, HasSubstr("after 2 tokens"));
  EXPECT_EQ(scheduler_->stats().failed, 2u);
  EXPECT_EQ(scheduler_->stats().running, 0);
}

TEST_F(SchedulerTest, tells_how_long_a_request_waited_for_the_batch) {
  SchedulerOptions options;
  options.sequences_max = 1;
  open(4096, 64, options);
  const GenerationId first = submit(request(prompt(5, 0), 3));
  const GenerationId second = submit(request(prompt(5, 1), 3));
  for (int i = 0; i < 6; ++i) {
    clock_.advance(std::chrono::seconds(1));
    steps(1);
  }
  EXPECT_TRUE(outcomes_[second].ended());
  EXPECT_EQ(outcomes_[first].queued_seconds, 1);
  EXPECT_EQ(outcomes_[second].queued_seconds, 4);
}

TEST_F(SchedulerTest, clients_take_turns_by_the_tokens_they_were_given) {
  SchedulerOptions options;
  options.sequences_max = 1;
  open(4096, 64, options);
  std::vector<GenerationId> greedy;
  for (int i = 0; i < 6; ++i) {
    GenerationRequest one = request(prompt(20, i), 3);
    one.client = "greedy";
    greedy.push_back(submit(std::move(one)));
  }
  steps(1);
  GenerationRequest late = request(prompt(20, 9), 3);
  late.client = "late";
  const GenerationId modest = submit(std::move(late));
  const auto ended = [&](GenerationId id) { return outcomes_[id].ended(); };
  while (!ended(modest)) steps(1);
  // It came seventh and is served second: the other has had service since.
  EXPECT_TRUE(ended(greedy[0]));
  EXPECT_FALSE(ended(greedy[2]));
  finish_all();
  EXPECT_TRUE(ended(greedy[5]));
}

TEST_F(SchedulerTest, no_clients_queue_is_let_in_whole_while_another_waits) {
  SchedulerOptions options;
  options.sequences_max = 4;
  open(4096, 64, options);
  std::map<std::string, std::vector<GenerationId>> ids;
  for (const std::string client : {"first", "second"}) {
    for (int i = 0; i < 4; ++i) {
      GenerationRequest one = request(prompt(5, i + (client == "first" ? 0 : 10)), 8);
      one.client = client;
      ids[client].push_back(submit(std::move(one)));
    }
  }
  steps(1);
  const auto begun = [&](const std::vector<GenerationId>& of) {
    return std::count_if(of.begin(), of.end(),
                         [&](GenerationId id) { return !outcomes_[id].tokens.empty(); });
  };
  EXPECT_EQ(begun(ids["first"]), 2);
  EXPECT_EQ(begun(ids["second"]), 2);
}

TEST_F(SchedulerTest, a_newcomer_gets_one_of_the_many_places_of_another_and_no_token_changes) {
  SchedulerOptions options;
  options.sequences_max = 4;
  open(4096, 64, options);
  std::vector<GenerationRequest> requests;
  for (int i = 0; i < 8; ++i) {
    requests.push_back(request(prompt(20 + i, i), 30));
    requests.back().client = i < 6 ? "many" : i == 6 ? "one" : "another";
  }
  std::vector<std::vector<int32_t>> expected;
  for (const GenerationRequest& one : requests) expected.push_back(alone(one));
  std::vector<GenerationId> ids;
  for (int i = 0; i < 6; ++i) ids.push_back(submit(copy_of(requests[i])));
  steps(5);
  ids.push_back(submit(copy_of(requests[6])));
  ids.push_back(submit(copy_of(requests[7])));
  steps(1);
  EXPECT_EQ(scheduler_->stats().preempted, 2u);
  EXPECT_FALSE(outcomes_[ids[6]].tokens.empty());
  EXPECT_FALSE(outcomes_[ids[7]].tokens.empty());
  for (int i = 0; i < 6; ++i) EXPECT_FALSE(outcomes_[ids[i]].ended());
  // Each has one now: nobody else gives way.
  steps(3);
  EXPECT_EQ(scheduler_->stats().preempted, 2u);
  finish_all();
  for (size_t i = 0; i < ids.size(); ++i) EXPECT_EQ(outcomes_[ids[i]].tokens, expected[i]) << i;
}

TEST_F(SchedulerTest, refuses_what_can_never_be_served_and_what_is_too_much) {
  SchedulerOptions options;
  options.sequences_max = 1;
  options.queue_max = 2;
  open(512, 64, options);
  const auto refusal = [&](GenerationRequest r) {
    auto id = scheduler_->submit(std::move(r));
    EXPECT_FALSE(id);
    return id ? Error{} : id.error();
  };
  EXPECT_EQ(refusal(request({}, 1)).code, ErrorCode::kInvalid);
  EXPECT_EQ(refusal(request({1}, 0)).code, ErrorCode::kInvalid);
  EXPECT_THAT(refusal(request(prompt(2049, 0), 1)).message, HasSubstr("the model takes 2048"));
  EXPECT_THAT(refusal(request(prompt(500, 0), 14)).message, HasSubstr("the KV cache holds 512"));
  submit(request(prompt(500, 0), 13));
  steps(1);  // in the batch now
  submit(request({0, 1}, 4));
  submit(request({0, 2}, 4));
  EXPECT_EQ(refusal(request({0, 3}, 4)).code, ErrorCode::kOverloaded);
  EXPECT_EQ(scheduler_->stats().waiting, 2);
  scheduler_->drain();
  EXPECT_EQ(refusal(request({0, 3}, 4)).code, ErrorCode::kUnavailable);
  finish_all();
  EXPECT_EQ(scheduler_->stats().finished, 3u);
  EXPECT_EQ(scheduler_->stats().rejected, 6u - 4u);
}

TEST_F(SchedulerTest, fills_the_cache_to_the_last_position) {
  open(256, 64);
  const GenerationId id = submit(request(prompt(200, 0), 57));
  finish_all();
  EXPECT_EQ(outcomes_[id].tokens.size(), 57u);
  EXPECT_EQ(outcomes_[id].finish, FinishReason::kLength);
}

TEST_F(SchedulerTest, a_request_that_fails_leaves_the_others_alone) {
  open();
  const GenerationId bad = submit(request({0, kVocab}, 5));
  GenerationRequest good = request(prompt(5, 0), 5);
  const std::vector<int32_t> expected = alone(good);
  const GenerationId id = submit(std::move(good));
  finish_all();
  ASSERT_TRUE(outcomes_[bad].error);
  EXPECT_THAT(outcomes_[bad].error->message, HasSubstr("3328 is not in the vocabulary"));
  EXPECT_EQ(outcomes_[id].tokens, expected);
}

TEST_F(SchedulerTest, stop_ids_end_a_text_but_not_before_its_least_length) {
  open();
  GenerationRequest greedy = request(prompt(5, 0), 8);
  const std::vector<int32_t> tokens = alone(greedy);
  GenerationRequest stopped = copy_of(greedy);
  stopped.stop_ids = {tokens[2]};
  const GenerationId a = submit(std::move(stopped));
  finish_all();
  EXPECT_EQ(outcomes_[a].finish, FinishReason::kStop);
  const auto first = std::find(tokens.begin(), tokens.end(), tokens[2]);
  EXPECT_EQ(outcomes_[a].tokens, std::vector<int32_t>(tokens.begin(), first + 1));
  GenerationRequest longer = copy_of(greedy);
  longer.stop_ids = {tokens[2]};
  longer.min_tokens = 8;
  const GenerationId b = submit(std::move(longer));
  finish_all();
  EXPECT_EQ(outcomes_[b].tokens.size(), 8u);
  EXPECT_EQ(std::count(outcomes_[b].tokens.begin(), outcomes_[b].tokens.end(), tokens[2]), 0);
}

TEST_F(SchedulerTest, the_least_length_counts_what_stands_before_the_stop_id) {
  open();
  const GenerationRequest greedy = request(prompt(5, 0), 8);
  const std::vector<int32_t> tokens = alone(greedy);
  const int32_t stop = tokens[3];
  const auto before = std::find(tokens.begin(), tokens.end(), stop) - tokens.begin();
  for (const int64_t more : {0, 1}) {
    GenerationRequest one = copy_of(greedy);
    one.stop_ids = {stop};
    one.min_tokens = before + more;
    const GenerationId id = submit(std::move(one));
    finish_all();
    const std::vector<int32_t>& got = outcomes_[id].tokens;
    const auto place = std::find(got.begin(), got.end(), stop) - got.begin();
    if (more == 0) {
      EXPECT_EQ(place, before);
      EXPECT_EQ(outcomes_[id].finish, FinishReason::kStop);
    } else {
      EXPECT_GT(place, before);
    }
  }
}

// Who comes is owed nothing for the time when it was not there.
TEST_F(SchedulerTest, a_newcomer_does_not_catch_up_with_what_others_had_before) {
  SchedulerOptions options;
  options.sequences_max = 1;
  open(4096, 64, options);
  std::vector<GenerationId> old_ids, new_ids;
  const auto add = [&](const char* client, int n, std::vector<GenerationId>& ids) {
    for (int i = 0; i < n; ++i) {
      GenerationRequest one = request(prompt(10, i), 10);
      one.client = client;
      ids.push_back(submit(std::move(one)));
    }
  };
  const auto ended = [&](const std::vector<GenerationId>& ids) {
    return std::count_if(ids.begin(), ids.end(), [&](auto id) { return outcomes_[id].ended(); });
  };
  add("old", 8, old_ids);
  while (ended(old_ids) < 4) steps(1);
  add("new", 4, new_ids);
  while (ended(new_ids) < 3) steps(1);
  EXPECT_GE(ended(old_ids), 4 + 2);  // in turn
  finish_all();
}

TEST_F(SchedulerTest, log_probabilities_are_of_the_models_own_distribution) {
  open();
  GenerationRequest plain = request(prompt(5, 0), 4);
  plain.top_logprobs = 3;
  GenerationRequest biased = request(prompt(5, 0), 1);
  biased.top_logprobs = 3;
  biased.logits.bias = {{77, 100.0f}};
  const GenerationId a = submit(std::move(plain)), b = submit(std::move(biased));
  finish_all();
  const Outcome& likely = outcomes_[a];
  ASSERT_EQ(likely.top.size(), 4u);
  for (size_t i = 0; i < 4; ++i) {
    ASSERT_EQ(likely.top[i].size(), 3u);
    EXPECT_EQ(likely.top[i][0].id, likely.tokens[i]);
    EXPECT_EQ(likely.top[i][0].logprob, likely.logprobs[i]);
    EXPECT_LE(likely.top[i][1].logprob, likely.top[i][0].logprob);
    EXPECT_LT(likely.logprobs[i], 0);
  }
  EXPECT_THAT(outcomes_[b].tokens, ElementsAre(77));
  EXPECT_LT(outcomes_[b].logprobs[0], likely.top[0][2].logprob);
  EXPECT_EQ(outcomes_[b].top[0][0].id, likely.tokens[0]);
}

TEST_F(SchedulerTest, penalties_count_what_was_generated) {
  open();
  GenerationRequest plain = request(prompt(5, 0), 30);
  const std::vector<int32_t> tokens = alone(plain);
  ASSERT_LT(std::set<int32_t>(tokens.begin(), tokens.end()).size(), 30u);  // it repeats itself
  GenerationRequest penalised = copy_of(plain);
  penalised.logits.presence_penalty = 2;
  penalised.logits.frequency_penalty = 2;
  const GenerationId id = submit(std::move(penalised));
  finish_all();
  const std::vector<int32_t>& varied = outcomes_[id].tokens;
  EXPECT_GT(std::set<int32_t>(varied.begin(), varied.end()).size(),
            std::set<int32_t>(tokens.begin(), tokens.end()).size());
}

// Even ids, and odd ones, in turns, then the end; and what it was asked.
class Alternating final : public constrain::TokenConstraint {
 public:
  explicit Alternating(std::vector<int64_t>* asked, int length = 5)
      : asked_(asked), length_(length) {}
  Status mask(int64_t tokens_left, std::span<uint8_t> allowed) const override {
    asked_->push_back(tokens_left);
    for (size_t id = 0; id < allowed.size(); ++id) {
      if (id % 2 != static_cast<size_t>(accepted_ % 2)) allowed[id] = 0;
    }
    return {};
  }
  void accept(int32_t) override { ++accepted_; }
  bool finished() const override { return accepted_ == length_; }
  int64_t tokens_min() const override { return length_ - accepted_; }

 private:
  std::vector<int64_t>* asked_;
  const int length_;
  int accepted_ = 0;
};

// A draft that the constraint forbids is only never right.
TEST_F(SchedulerTest, drafts_of_the_next_token_layer_keep_to_a_constraint) {
  std::vector<int32_t> texts[2];
  for (const bool mtp : {false, true}) {
    StepTakes times(clock_, 100, 1);
    SchedulerOptions options;
    options.observer = &times;
    options.draft_tokens = mtp ? 3 : 0;
    options.mtp_drafts = mtp;
    open(4096, 64, options);
    std::vector<int64_t> asked;
    GenerationRequest one = request(prompt(20, 3), 60);
    one.constraint = std::make_unique<Alternating>(&asked, 50);
    const GenerationId id = submit(std::move(one));
    finish_all();
    texts[mtp] = outcomes_[id].tokens;
    EXPECT_EQ(std::ssize(asked), std::ssize(texts[mtp]));
    EXPECT_EQ(scheduler_->stats().mtp_drafted_tokens > 0, mtp);
  }
  EXPECT_EQ(texts[0].size(), 50u);
  EXPECT_EQ(texts[1], texts[0]);
}

TEST_F(SchedulerTest, a_constraint_is_asked_before_and_told_after_every_token) {
  open();
  std::vector<int64_t> asked;
  GenerationRequest one = request(prompt(5, 0), 10);
  one.constraint = std::make_unique<Alternating>(&asked);
  const GenerationId id = submit(std::move(one));
  finish_all();
  const Outcome& outcome = outcomes_[id];
  EXPECT_EQ(outcome.finish, FinishReason::kStop);
  ASSERT_EQ(outcome.tokens.size(), 5u);
  for (size_t i = 0; i < 5; ++i) EXPECT_EQ(outcome.tokens[i] % 2, static_cast<int32_t>(i % 2));
  EXPECT_THAT(asked, ElementsAre(10, 9, 8, 7, 6));
}

// As Alternating, and every mask takes until it is released.
class Dear final : public constrain::TokenConstraint {
 public:
  // begun: set when its first mask is begun; may be null.
  Dear(std::vector<int64_t>* asked, std::shared_future<void> released,
       std::promise<void>* begun = nullptr)
      : cheap_(asked), released_(std::move(released)), begun_(begun) {}
  Status mask(int64_t tokens_left, std::span<uint8_t> allowed) const override {
    if (begun_) std::exchange(begun_, nullptr)->set_value();
    released_.wait();
    return cheap_.mask(tokens_left, allowed);
  }
  Status mask_within(uint64_t, int64_t, std::span<uint8_t> allowed) const override {
    std::fill(allowed.begin(), allowed.end(), 0);  // unspecified
    return Error{ErrorCode::kOverloaded, "dear"};
  }
  void accept(int32_t id) override { cheap_.accept(id); }
  bool finished() const override { return cheap_.finished(); }
  int64_t tokens_min() const override { return cheap_.tokens_min(); }

 private:
  Alternating cheap_;
  const std::shared_future<void> released_;
  mutable std::promise<void>* begun_;
};

TEST_F(SchedulerTest, a_dear_mask_holds_up_nobody_else_and_changes_no_token) {
  open();
  std::vector<int64_t> asked;
  GenerationRequest cheap = request(prompt(5, 0), 10);
  cheap.constraint = std::make_unique<Alternating>(&asked);
  const GenerationId cheap_id = submit(std::move(cheap));
  finish_all();
  const std::vector<int32_t> expected = outcomes_[cheap_id].tokens;
  asked.clear();

  std::promise<void> release;
  GenerationRequest dear = request(prompt(5, 0), 10);
  dear.constraint = std::make_unique<Dear>(&asked, release.get_future().share());
  const GenerationId dear_id = submit(std::move(dear));
  const GenerationRequest other = request(prompt(6, 1), 8);
  GenerationRequest copy = request(prompt(6, 1), 8);
  const GenerationId other_id = submit(std::move(copy));
  steps(20);
  EXPECT_TRUE(outcomes_[other_id].ended());
  EXPECT_EQ(outcomes_[other_id].tokens, alone(other));
  EXPECT_TRUE(outcomes_[dear_id].tokens.empty());
  EXPECT_FALSE(scheduler_->step());  // nothing to compute meanwhile

  release.set_value();
  const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (!outcomes_[dear_id].ended() && std::chrono::steady_clock::now() < until) {
    scheduler_->step();
  }
  EXPECT_EQ(outcomes_[dear_id].tokens, expected);
  EXPECT_EQ(outcomes_[dear_id].finish, FinishReason::kStop);
  EXPECT_THAT(asked, ElementsAre(10, 9, 8, 7, 6));
}

TEST_F(SchedulerTest, a_sequence_whose_mask_is_being_found_can_be_cancelled) {
  open();
  std::vector<int64_t> asked;
  std::promise<void> release;
  GenerationRequest dear = request(prompt(5, 0), 10);
  dear.constraint = std::make_unique<Dear>(&asked, release.get_future().share());
  const GenerationId id = submit(std::move(dear));
  steps(3);
  scheduler_->cancel(id);
  steps(2);
  EXPECT_EQ(scheduler_->stats().running, 0);
  release.set_value();
  const GenerationId next = submit(request(prompt(6, 1), 4));
  finish_all();
  EXPECT_TRUE(outcomes_[next].ended());
  EXPECT_FALSE(outcomes_[id].ended());
}

// Its mask is found, so that it has a token, and in the same step it gives way to a newcomer.
TEST_F(SchedulerTest, who_gets_a_token_and_gives_way_in_one_step_goes_on_as_alone) {
  SchedulerOptions options;
  options.sequences_max = 2;
  open(4096, 64, options);
  std::vector<int64_t> asked;
  GenerationRequest cheap = request(prompt(5, 0), 10);
  cheap.constraint = std::make_unique<Alternating>(&asked);
  const GenerationId cheap_id = submit(std::move(cheap));
  finish_all();
  const std::vector<int32_t> expected = outcomes_[cheap_id].tokens;

  std::promise<void> release, found;
  const auto released = release.get_future().share();
  std::vector<int64_t> first_asked, second_asked;
  std::vector<GenerationId> ids;
  for (std::vector<int64_t>* one : {&first_asked, &second_asked}) {
    GenerationRequest dear = request(prompt(one == &first_asked ? 5 : 20, 0), 10);
    dear.client = "many";
    dear.constraint = std::make_unique<Dear>(one, released, one == &first_asked ? nullptr : &found);
    ids.push_back(submit(std::move(dear)));
  }
  steps(3);
  release.set_value();
  found.get_future().wait();  // the second mask is asked for, so the first is there
  const GenerationRequest other = request(prompt(6, 1), 8);
  GenerationRequest newcomer = copy_of(other);
  newcomer.client = "one";
  ids.push_back(submit(std::move(newcomer)));
  steps(1);
  EXPECT_EQ(outcomes_[ids[0]].tokens.size(), 1u);
  EXPECT_EQ(scheduler_->stats().preempted, 1u);
  const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (!outcomes_[ids[0]].ended() && std::chrono::steady_clock::now() < until) {
    scheduler_->step();
  }
  EXPECT_EQ(outcomes_[ids[0]].tokens, expected);
  EXPECT_EQ(outcomes_[ids[2]].tokens, alone(other));
}

TEST_F(SchedulerTest, serves_threads_that_submit_and_cancel_while_it_runs) {
  open(4096, 64, {}, /*threads=*/2);
  scheduler_.reset();
  std::mutex mutex;
  std::condition_variable changed;
  std::map<GenerationId, int> ended;
  SchedulerOptions options;
  options.vocab_limit = kVocab;
  SteadyClock clock;
  Scheduler scheduler(deployment_->engine(), deployment_->team(), clock, options,
                      [&](std::vector<GenerationEvent> events) {
                        const std::lock_guard lock(mutex);
                        for (const GenerationEvent& event : events) {
                          if (event.finish || event.error) ++ended[event.id];
                        }
                        changed.notify_all();
                      });
  std::thread engine([&] { scheduler.run(); });
  std::vector<std::thread> clients;
  std::atomic<int> finished = 0;
  for (int c = 0; c < 4; ++c) {
    clients.emplace_back([&, c] {
      for (int i = 0; i < 6; ++i) {
        auto id = scheduler.submit(request(prompt(10 + c, i), 3 + i));
        ASSERT_TRUE(id);
        if (i % 3 == 2) {
          scheduler.cancel(*id);
          continue;
        }
        std::unique_lock lock(mutex);
        changed.wait(lock, [&] { return ended.count(*id) > 0; });
        ++finished;
      }
    });
  }
  for (std::thread& client : clients) client.join();
  scheduler.stop();
  engine.join();
  EXPECT_EQ(finished, 16);
  for (const auto& [id, times] : ended) EXPECT_EQ(times, 1);
}

}  // namespace
}  // namespace atl::coordinator
