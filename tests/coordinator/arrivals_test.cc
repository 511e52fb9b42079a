// What users feel of the policy that shares steps (step_budget.h): traces of requests arrive at a
// simulated machine, and the same ones at the policy that shared each step equally.
//
// The machine takes fixed + experts + rows + positions, as StepCost has it, which learns it from
// the steps as in the scheduler. Requests come into the batch as they arrive.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <random>
#include <vector>

#include "coordinator/serving/step_budget.h"

namespace atl::coordinator {
namespace {

constexpr int64_t kRowsMax = 512;
constexpr double kTarget = 0.2, kChosen = 8.0 / 64;

struct Request {
  double arrives = 0;
  size_t client = 0;
  int64_t prompt = 0, answer = 1;
  // As far as it is served:
  int64_t context = 0, generated = 0;
  double first = -1, last = 0;

  double ttft() const { return first - arrives; }
};
using Trace = std::vector<Request>;

struct Machine {
  double fixed = 0, experts = 0, row = 0, position = 0;
  double seconds(StepSize step) const {
    const auto rows = static_cast<double>(step.rows);
    return fixed + experts * (1 - std::pow(1 - kChosen, rows)) + row * rows +
           position * static_cast<double>(step.positions);
  }
};

// What it was before: every prompt one row after the other, in rows as their costs are alike here,
// and half of the rate where somebody decodes.
bool share_equally(const StepCost& cost, StepSize decoding, std::span<PromptRows> prompts) {
  if (prompts.empty()) return false;
  std::vector<PromptRows> one(1);
  for (const PromptRows& prompt : prompts) one[0].pending += prompt.pending;
  const double slowdown = decoding.rows > 0 ? 2 : 1.1;
  const bool cut = share_step(cost, decoding, {kRowsMax, kTarget, slowdown}, one);
  while (one[0].rows > 0) {
    for (PromptRows& prompt : prompts) {
      if (one[0].rows == 0 || prompt.rows == prompt.pending) continue;
      ++prompt.rows;
      --one[0].rows;
    }
  }
  return cut;
}

struct Felt {
  double ttft_mean = 0, ttft_p50 = 0, ttft_p99 = 0, itl_p99 = 0, seconds = 0;
  std::map<size_t, double> ttft_of;  // mean, by client
};

double percentile(std::vector<double> values, double p) {
  std::sort(values.begin(), values.end());
  return values.at(std::min(values.size() - 1, static_cast<size_t>(p * std::ssize(values))));
}

class Serving {
 public:
  Serving(Machine machine, Trace trace, bool in_turn)
      : machine_(machine), trace_(std::move(trace)), in_turn_(in_turn) {
    std::stable_sort(trace_.begin(), trace_.end(),
                     [](const Request& a, const Request& b) { return a.arrives < b.arrives; });
    for (const int64_t rows : {1, 16, 512}) observe({rows, rows});
  }

  Felt run() {
    while (next_ < trace_.size() || !running_.empty()) {
      if (running_.empty()) now_ = std::max(now_, trace_[next_].arrives);
      while (next_ < trace_.size() && trace_[next_].arrives <= now_) arrive(trace_[next_++]);
      step();
    }
    return felt();
  }

 private:
  double observe(StepSize step) {
    const double attention = machine_.position * static_cast<double>(step.positions);
    cost_.observe(step, machine_.seconds(step), attention);
    return machine_.seconds(step);
  }

  // A client that comes starts level with the least served one that is there.
  void arrive(Request& request) {
    double least = 0;
    bool here = false;
    for (const Request* other : running_) {
      const double service = service_[other->client];
      least = other == running_.front() ? service : std::min(least, service);
      here |= other->client == request.client;
    }
    if (!here) service_[request.client] = least;
    running_.push_back(&request);
  }

  void step() {
    StepSize step;
    std::vector<PromptRows> prompts;
    for (const Request* r : running_) {
      if (r->generated > 0) {
        step.add(1, r->context);
      } else {
        prompts.push_back({.context = r->context,
                           .pending = r->prompt - r->context,
                           .waited_s = now_ - r->arrives,
                           .client = r->client,
                           .service = service_[r->client]});
      }
    }
    if (in_turn_) {
      share_step(cost_, step, {kRowsMax, kTarget, slowdown_for(step.rows, prompts.size())},
                 prompts);
    } else {
      share_equally(cost_, step, prompts);
    }
    for (const PromptRows& prompt : prompts) step.add(prompt.rows, prompt.context);
    now_ += observe(step);
    auto prompt = prompts.begin();
    for (Request* r : running_) advance(*r, r->generated > 0 ? 1 : (prompt++)->rows);
    std::erase_if(running_, [](const Request* r) { return r->generated == r->answer; });
  }

  void advance(Request& r, int64_t rows) {
    r.context += rows;
    service_[r.client] += static_cast<double>(rows);
    if (r.context < r.prompt) return;
    if (r.generated++ == 0) {
      r.first = now_;
    } else {
      gaps_.push_back(now_ - r.last);
    }
    r.last = now_;
  }

  Felt felt() const {
    Felt felt;
    std::vector<double> all;
    std::map<size_t, std::vector<double>> by_client;
    for (const Request& r : trace_) {
      all.push_back(r.ttft());
      by_client[r.client].push_back(r.ttft());
    }
    const auto mean = [](const std::vector<double>& values) {
      double sum = 0;
      for (const double value : values) sum += value;
      return sum / static_cast<double>(values.size());
    };
    felt.ttft_mean = mean(all);
    felt.ttft_p50 = percentile(all, 0.5);
    felt.ttft_p99 = percentile(all, 0.99);
    felt.itl_p99 = gaps_.empty() ? 0 : percentile(gaps_, 0.99);
    felt.seconds = now_;
    for (const auto& [client, values] : by_client) felt.ttft_of[client] = mean(values);
    return felt;
  }

  const Machine machine_;
  Trace trace_;
  const bool in_turn_;
  StepCost cost_{kRowsMax, kChosen};
  std::map<size_t, double> service_;
  std::vector<Request*> running_;
  std::vector<double> gaps_;
  size_t next_ = 0;
  double now_ = 0;
};

struct Compared {
  Felt before, after;
};

Compared compare(const char* what, const Machine& machine, const Trace& trace) {
  const Compared both{Serving(machine, trace, false).run(), Serving(machine, trace, true).run()};
  for (const Felt* f : {&both.before, &both.after}) {
    printf(
        "%-28s %s: first token mean %6.2f p50 %6.2f p99 %6.2f s, between tokens p99 %5.2f s, "
        "all in %6.1f s\n",
        what, f == &both.before ? "equal" : "turns", f->ttft_mean, f->ttft_p50, f->ttft_p99,
        f->itl_p99, f->seconds);
  }
  return both;
}

// A V3-shaped slice on two cores, which reads 36 rows a second; a machine of 60 ms steps whose
// weights are in RAM.
const Machine kSlow{.fixed = 0.04, .experts = 0.03, .row = 0.027};
const Machine kFast{.fixed = 0.02, .experts = 0.08, .row = 0.0015, .position = 1e-8};

// Lengths log-normal around e^5 = 150 tokens.
Trace poisson(double rate, int n, uint32_t seed) {
  std::mt19937 rng(seed);
  std::exponential_distribution<double> gap(rate);
  std::lognormal_distribution<double> length(5.0, 1.0);
  Trace trace;
  double now = 0;
  for (int i = 0; i < n; ++i) {
    now += gap(rng);
    const auto prompt = std::clamp<int64_t>(static_cast<int64_t>(length(rng)), 4, 8000);
    trace.push_back({.arrives = now, .prompt = prompt, .answer = 40});
  }
  return trace;
}

TEST(Arrivals, of_sixteen_at_once_half_have_their_first_token_in_two_thirds_of_the_time) {
  for (const bool one_client : {true, false}) {
    Trace trace(16, {.prompt = 64, .answer = 32});
    for (size_t i = 0; i < trace.size(); ++i) trace[i].client = one_client ? 0 : i;
    const Compared c = compare("16 at once", kSlow, trace);
    EXPECT_LT(c.after.ttft_mean, 0.67 * c.before.ttft_mean);
    EXPECT_LT(c.after.ttft_p50, 0.8 * c.before.ttft_p50);
    EXPECT_LE(c.after.ttft_p99, c.before.ttft_p99);
    EXPECT_LE(c.after.seconds, c.before.seconds);
  }
}

TEST(Arrivals, mixed_lengths_are_served_sooner_and_no_long_prompt_starves) {
  for (const double rate : {0.8, 1.4, 2.0}) {
    const Compared c = compare("mixed lengths", kFast, poisson(rate, 300, 3));
    EXPECT_LT(c.after.ttft_mean, 0.9 * c.before.ttft_mean);
    EXPECT_LE(c.after.ttft_p99, 1.05 * c.before.ttft_p99);
    EXPECT_LE(c.after.seconds, 1.01 * c.before.seconds);
    EXPECT_LT(c.after.itl_p99, 4 * kTarget);
  }
}

TEST(Arrivals, bursts_do_not_make_a_light_client_wait) {
  Trace trace(40, {.prompt = 300, .answer = 64});
  for (int i = 0; i < 12; ++i) {
    trace.push_back({.arrives = 3.0 + 2 * i, .client = 1, .prompt = 80, .answer = 20});
  }
  const Compared c = compare("40 at once, a light client", kFast, trace);
  EXPECT_LT(c.after.ttft_mean, 0.6 * c.before.ttft_mean);
  EXPECT_LT(c.after.ttft_of.at(1), 1.0);
  EXPECT_LT(c.after.ttft_of.at(1), c.before.ttft_of.at(1));
  EXPECT_LE(c.after.ttft_p99, c.before.ttft_p99);
}

TEST(Arrivals, a_long_prompt_is_through_though_short_ones_keep_coming) {
  Trace trace = poisson(1.0, 200, 5);
  for (Request& r : trace) r.prompt = std::min<int64_t>(r.prompt, 300);
  trace.push_back({.arrives = 1, .client = 0, .prompt = 8000, .answer = 20});
  const Compared c = compare("one of 8,000 tokens", kFast, trace);
  EXPECT_LT(c.after.ttft_mean, 0.9 * c.before.ttft_mean);
  EXPECT_LT(c.after.ttft_p99, 30);  // alone it takes 13 s
}

}  // namespace
}  // namespace atl::coordinator
