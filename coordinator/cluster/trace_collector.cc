#include "coordinator/cluster/trace_collector.h"

#include <fmt/format.h>

#include <iterator>
#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/log.h"
#include "coordinator/engine/stages.h"

namespace atl::coordinator {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::chrono::milliseconds kDrainEvery{100};
constexpr size_t kEventsAtOnce = transport::kTraceEventsMax;  // of a thread
constexpr int kDrainsMax = 4;
constexpr int kClockCalls = 8;

std::string dumped(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

// Begins count from the first event's, so that 8192 of them are 200 KB.
std::string events_line(const std::string& process, const std::string& thread,
                        const TraceRing::Taken& taken) {
  const int64_t base = taken.events.empty() ? 0 : taken.events.front().begin_ns;
  std::string line = fmt::format(R"({{"process":{},"thread":{},"lost":{},"base_ns":{},"events":[)",
                                 dumped(process), dumped(thread), taken.lost, base);
  const char* separator = "";
  for (const TraceEvent& e : taken.events) {
    fmt::format_to(std::back_inserter(line), "{}[{},{},{},{},{},{},{}]", separator, e.kind,
                   e.begin_ns - base, e.end_ns - e.begin_ns, e.layer, e.rows, e.id, e.peer);
    separator = ",";
  }
  return line + "]}";
}

}  // namespace

struct TraceCollector::Process {
  Cluster::Control control;
  bool is_well = true;
};

TraceCollector::TraceCollector(Cluster* cluster, std::vector<TracedThread> threads,
                               const Clock& clock)
    : cluster_(cluster),
      threads_(std::move(threads)),
      clock_(clock),
      changed_(system_threads().make_condition()) {}

TraceCollector::~TraceCollector() {
  stop();
  if (thread_) thread_->join();
}

Status TraceCollector::start(std::chrono::milliseconds length, OnLine on_line) {
  const std::lock_guard lock(mutex_);
  if (running_) return Error{ErrorCode::kOverloaded, "another trace is under way: try again"};
  if (thread_) thread_->join();  // its last words are said
  running_ = true;
  stopping_ = false;
  thread_ = system_threads().start([this, length, on_line = std::move(on_line)] {
    run(length, on_line);
    const std::lock_guard lock(mutex_);
    running_ = false;
  });
  return {};
}

void TraceCollector::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_->notify_all();
}

void TraceCollector::run(std::chrono::milliseconds length, const OnLine& on_line) {
  std::vector<Process> processes;
  if (cluster_) {
    for (Cluster::Control& control : cluster_->controls()) {
      processes.push_back({std::move(control)});
    }
  }
  Json about = {{"atoll_trace", 1}, {"coordinator_ns", trace_ns(clock_.now())}};
  for (size_t stage = 0; stage < kNumStages; ++stage) {
    about["stages"].push_back(stage_name(static_cast<Stage>(stage)));
  }
  about["nodes"] = cluster_ ? cluster_->node_names() : std::vector<std::string>{};
  on_line(dumped(about));

  std::string clocks;
  for (Process& process : processes) {
    const auto started = process.control.client->trace(process.control.session, {.on = true});
    if (!started) {
      log_warn("no trace of node {}: {}", process.control.name, started.error().message);
      process.is_well = false;
    }
    read_clock(process, &clocks);
  }
  for (const TracedThread& thread : threads_) thread.ring->start();
  const auto end = clock_.now() + length;
  {
    std::unique_lock lock(mutex_);
    while (!stopping_ && clock_.now() < end) {
      changed_->wait_until(lock, std::min(end, clock_.now() + kDrainEvery),
                           [this] { return stopping_; });
      lock.unlock();
      for (int i = 0; i < kDrainsMax && drain(processes, on_line); ++i) {
      }
      lock.lock();
    }
  }
  for (const TracedThread& thread : threads_) thread.ring->stop();
  for (Process& process : processes) {
    read_clock(process, &clocks);
    if (process.is_well) (void)process.control.client->trace(process.control.session, {});
  }
  while (drain(processes, on_line)) {
  }
  on_line(fmt::format(R"({{"end":true,"clocks":[{}]}})", clocks));
}

// Adds what its clock says beside ours.
void TraceCollector::read_clock(Process& process, std::string* clocks) const {
  int64_t best = std::numeric_limits<int64_t>::max(), at = 0, offset = 0;
  for (int i = 0; i < kClockCalls && process.is_well; ++i) {
    const int64_t before = trace_ns(clock_.now());
    const auto told = process.control.client->trace(process.control.session, {.on = true});
    const int64_t after = trace_ns(clock_.now());
    if (!told) {
      process.is_well = false;
      break;
    }
    if (after - before >= best) continue;
    best = after - before;
    at = told->now_ns;
    offset = told->now_ns - (before + best / 2);
  }
  if (best == std::numeric_limits<int64_t>::max()) return;
  *clocks +=
      fmt::format(R"({}{{"process":{},"at_ns":{},"ahead_ns":{},"error_ns":{}}})",
                  clocks->empty() ? "" : ",", dumped(process.control.name), at, offset, best / 2);
}

// True if there may be more at once.
bool TraceCollector::drain(std::vector<Process>& processes, const OnLine& on_line) {
  bool more = false;
  for (const TracedThread& thread : threads_) {
    const TraceRing::Taken taken = thread.ring->take(kEventsAtOnce);
    more = more || taken.events.size() == kEventsAtOnce;
    if (!taken.events.empty() || taken.lost > 0) {
      on_line(events_line("coordinator", thread.name, taken));
    }
  }
  const bool on = threads_.front().ring->is_on();
  for (Process& process : processes) {
    if (!process.is_well) continue;
    auto told = process.control.client->trace(process.control.session,
                                              {.on = on, .events_max = kEventsAtOnce});
    process.is_well = told.has_value();
    if (!told) {
      log_warn("no more of node {}'s trace: {}", process.control.name, told.error().message);
      continue;
    }
    more = more || told->events.size() == kEventsAtOnce;
    if (told->events.empty() && told->lost == 0) continue;
    on_line(events_line(process.control.name, "data plane", {std::move(told->events), told->lost}));
  }
  return more;
}

}  // namespace atl::coordinator
