// Continuous batching: many requests through one engine.
//
// Every step takes one token of each sequence that decodes and fills what is left of the step, in
// rows and in time, with chunks of prompts (coordinator/serving/step_budget.h). Sequences join and
// leave between steps. A sequence's tokens depend on its own request only (docs/numbers.md):
// neither neighbours, chunks, hits in the prefix cache nor preemption change them.
//
// Room in the KV cache is taken as sequences grow. A request is let in when its prompt fits beside
// what those in the batch still need for theirs; if room runs out later, the one that came last
// gives its blocks back and waits at the front to be computed again.
//
// Who is let in next: the first request of the client that has had least service so far, counted in
// tokens computed and promised to those in the batch; a client that comes back starts level with
// the least served one that is there. A client with nothing in a full batch gets the place of one
// of the client with most there.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/clock.h"
#include "base/thread_team.h"
#include "base/threads.h"
#include "base/trace_ring.h"
#include "coordinator/engine/engine.h"
#include "coordinator/serving/drafts.h"
#include "coordinator/serving/generation.h"
#include "coordinator/serving/mask_worker.h"
#include "coordinator/serving/step_cost.h"
#include "model/sampler.h"

namespace atl::coordinator {

struct SchedulerOptions {
  int64_t sequences_max = 64;  // in the batch; at most the engine's rows_max
  int64_t queue_max = 256;     // accepted requests that are not in the batch yet
  double step_target_s = 0;    // a step that reads prompts is cut to take this long; 0: never
  bool prefix_cache = true;
  // Most tokens of a sequence that a step computes as a draft, where that pays (drafts.h); 0: none.
  int64_t draft_tokens = 0;
  bool lookup_drafts = true;         // where they come from
  bool mtp_drafts = false;           // the engine has the next-token layer
  int32_t vocab_limit = 0;           // ids from here on have no token and are never chosen
  std::vector<uint8_t> allowed;      // [vocab_limit], 0 for ids without a token; empty: all
  StepObserver* observer = nullptr;  // borrowed
  TraceRing* trace = nullptr;        // of the engine's thread, borrowed: step() with its sampling
  uint8_t trace_kind = 0;            // as events of this kind
  std::function<void()> after_step;  // on the engine's thread, e.g. to copy its statistics
  // Called on the engine's thread about every idle_every while there is nothing to compute.
  std::function<void()> while_idle;
  std::chrono::milliseconds idle_every{100};
  Threads* threads = &system_threads();  // what the engine's thread waits with; borrowed
};

// submit(), cancel(), stats(), drain(), stop(): any thread. The rest: the engine's thread.
class Scheduler final : public GenerationBackend {
 public:
  // All borrowed; `team` is the engine's own. `sink`: see GenerationBackend::EventSink.
  Scheduler(Engine& engine, ThreadTeam& team, const Clock& clock, SchedulerOptions options,
            EventSink sink);
  ~Scheduler() override;  // not while run() runs

  Result<GenerationId> submit(GenerationRequest request) override;
  void cancel(GenerationId id) override;
  GenerationStats stats() const override;
  // Accepts nothing more; what was accepted goes on.
  void drain();

  // Steps until stop(), asleep while there is nothing to do.
  void run();
  void stop();  // run() returns after the step under way; what is left gets no further event
  // One step; false: there was nothing to compute.
  bool step();

 private:
  struct Generation;
  struct Workspace;
  using GenerationPtr = std::unique_ptr<Generation>;
  struct Client {
    std::deque<GenerationPtr> waiting;
    double service = 0;    // tokens computed for it
    int64_t present = 0;   // its requests, waiting or admitted
    int64_t admitted = 0;  // its requests in the batch or preempted
  };

  void take_messages();
  void enqueue(GenerationPtr generation);
  void drop_expired();
  void admit();
  bool admit_preempted();
  bool admit_waiting();
  void make_way();
  std::optional<size_t> cheapest_of_most_present() const;
  static bool came_before(const GenerationPtr& a, const GenerationPtr& b);
  bool try_admit(GenerationPtr& generation);
  bool computes_the_same(const Generation& generation) const;
  Client* least_served(const std::set<const Client*>& passed);
  void plan();
  void share_rows();
  void find_room();
  void add_drafts();
  std::span<const int32_t> find_draft(Generation& generation, size_t most) const;
  void preempt(size_t index);
  bool compute();
  static bool score(Generation& generation, size_t t, std::span<const float> logits);
  bool take_draft(Generation& generation);
  void follow_drafts(std::vector<Generation*> stepped);
  void settle_mtp_gate(double pass_s);
  void draft_ahead();
  void begin_mtp_step();
  void announce(const std::vector<Generation*>& stepped);
  void sample_all(const std::vector<Generation*>& stepped);
  void sample(Generation& generation, std::span<const float> logits, Workspace& workspace);
  bool find_mask(Generation& generation, Workspace& workspace);
  void sample_held();
  void advance(Generation& generation);
  void take_token(Generation& generation);
  void finish(Generation& generation, FinishReason reason);
  void fail(Generation& generation, const Error& error);
  void leave(Generation& generation);
  void charge(const Generation& generation, int64_t tokens);
  GenerationEvent& event_of(Generation& generation);
  int64_t missing_blocks(const Generation& generation, int64_t num_tokens) const;
  void remove_ended();
  void deliver();
  void check_state() const;
  void publish_stats();
  std::optional<Clock::TimePoint> next_deadline() const;
  template <typename Visit>
  void for_each_waiting(const Visit& visit);

  // What one member of the team samples with.
  struct Workspace {
    model::Sampler sampler;
    std::vector<float> logits;     // [vocab_size]
    std::vector<uint8_t> allowed;  // [vocab_limit]
  };

  Engine& engine_;
  ThreadTeam& team_;
  const Clock& clock_;
  const SchedulerOptions options_;
  const EventSink sink_;

  mutable std::mutex mutex_;  // of the messages below
  const std::unique_ptr<Condition> wake_;
  std::vector<GenerationPtr> arrivals_;
  std::vector<GenerationId> cancellations_;
  GenerationStats stats_;  // as of the end of the last step
  int64_t queued_ = 0;     // accepted and never yet in the batch
  uint64_t next_id_ = 1;
  bool draining_ = false;
  bool stopping_ = false;
  bool mask_found_ = false;  // since the last step

  // The engine's thread only:
  std::map<std::string, Client> clients_;
  std::deque<GenerationPtr> preempted_;  // in the order of their first admission
  std::vector<GenerationPtr> running_;   // in the order of their first admission
  uint64_t admissions_ = 0;
  StepCost step_cost_;
  // Drafts of the next-token layer, by the size of the batch: 1, 2 or 3, 4 to 7, ... sequences.
  std::vector<DraftGate> mtp_gates_;
  DraftAcceptance mtp_acceptance_{0.6};  // of all, for a sequence that has had none
  double mtp_pass_seconds_ = 0;          // of a pass, a mean that fades
  // Of the step under way: what it is to its gate, how many sequences decode in it, rows of prompts
  // and those kept for that layer alone, rows of drafts from elsewhere, rows of that layer's and
  // how many of these are expected to be right.
  struct MtpStep {
    DraftGate* gate = nullptr;  // without mtp_drafts
    bool open = false;
    DraftGate::Step kind = DraftGate::Step::kMeasured;
    StepSize decoding;
    double step_s = 0;
    int64_t prompt_rows = 0, kept_rows = 0, lookup_rows = 0, drafted = 0;
    double expected = 0;
  } mtp_;
  std::string announced_;  // ids of the requests of the last step
  GenerationStats counts_;
  std::vector<GenerationEvent> events_;
  std::vector<float> logits_;          // [sequences_max at most, vocab_size] of the step
  std::vector<Workspace> workspaces_;  // of each member of the team
  MaskWorker masks_;                   // any thread; gone first
};

}  // namespace atl::coordinator
