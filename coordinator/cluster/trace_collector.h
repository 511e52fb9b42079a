// Traces a running cluster for a while: switches the rings of all processes on, takes what they
// hold several times a second, and hands it on line by line.
//
// Lines are JSON (docs/profiling.md): first what the numbers mean, then events of one thread each,
// in nanoseconds of that process's own clock, at last how the clocks stand to the coordinator's.
// A clock is read at the beginning and at the end: (t0 + t1) / 2 of the fastest of several calls,
// wrong by at most half of what it took.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/threads.h"
#include "base/trace_ring.h"
#include "coordinator/cluster/cluster.h"
#include "coordinator/engine/stages.h"

namespace atl::coordinator {

// A thread of the coordinator's process that records.
struct TracedThread {
  std::string name;
  TraceRing* ring = nullptr;
};

// Kinds of the coordinator's events. Below kTraceTurn: Stage.
inline constexpr uint8_t kTraceTurn = 64;  // scheduler: a step, its sampling, its bookkeeping
inline constexpr uint8_t kTraceStep = StageTracer::kTraceStep;  // a pass through all layers; `rows`
inline constexpr uint8_t kTraceShare = 66;    // a node's part: sent until answered; `id`, `peer`
inline constexpr uint8_t kTraceAnswers = 67;  // HTTP: tokens of a step to their clients
inline constexpr uint8_t kTraceRequest = 68;  // HTTP: a request, from its header to its answer

class TraceCollector {
 public:
  // Everything is borrowed and outlives this. Cluster: null for a model without experts.
  TraceCollector(Cluster* cluster, std::vector<TracedThread> threads, const Clock& clock);
  ~TraceCollector();  // ends the trace under way

  using OnLine = std::function<void(std::string line)>;
  // Any thread. kOverloaded: a trace is under way. on_line is called on a thread of the
  // collector's, the last time with the line that has "end": true; on_line may call stop().
  Status start(std::chrono::milliseconds length, OnLine on_line);
  // Any thread: the trace under way ends soon, with its last line.
  void stop();

 private:
  struct Process;
  void run(std::chrono::milliseconds length, const OnLine& on_line);
  void read_clock(Process& process, std::string* clocks) const;
  bool drain(std::vector<Process>& processes, const OnLine& on_line);

  Cluster* const cluster_;
  const std::vector<TracedThread> threads_;
  const Clock& clock_;

  std::mutex mutex_;
  const std::unique_ptr<Condition> changed_;
  bool stopping_ = false, running_ = false;
  std::unique_ptr<Thread> thread_;
};

}  // namespace atl::coordinator
