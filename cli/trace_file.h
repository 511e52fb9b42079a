// A trace of all processes of a cluster: read from a server, written for Perfetto and Chrome, read
// back, and added up. Plain values and pure functions; what the lines are: docs/profiling.md.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "base/json_reader.h"

namespace atl::cli {

// All times in nanoseconds of the coordinator's clock, since the trace began.
struct Trace {
  struct Event {
    std::string what;  // "turn", "step", "share", "answers", "request", a stage, a node's work
    int64_t begin = 0, length = 0;
    int64_t layer = -1, rows = 0;
    uint64_t id = 0;   // of a dispatch
    std::string node;  // of a share: who was asked
    int64_t end() const { return begin + length; }
  };
  struct Thread {
    std::string process, thread;
    std::vector<Event> events;  // by begin
  };
  std::vector<Thread> threads;
  // [process] how far its times may be off the coordinator's, in nanoseconds.
  std::map<std::string, int64_t> clock_error;
  uint64_t lost = 0;  // events that were overwritten before they were read

  const Thread* find(std::string_view process, std::string_view thread) const;
};

// Takes the lines of GET /trace. LoadError says what is wrong with one.
class TraceLines {
 public:
  void take(std::string_view line);
  bool has_ended() const { return has_ended_; }
  // Once it has ended: with all clocks set to the coordinator's.
  Trace finish();

 private:
  struct Clock {
    int64_t at = 0, ahead = 0, error = 0;  // of the process; ahead of the coordinator's
  };
  void take_events(const nlohmann::ordered_json& line);
  std::string name_of(bool is_coordinator, int64_t kind) const;

  bool has_begun_ = false, has_ended_ = false;
  int64_t zero_ = 0;
  std::vector<std::string> stages_, nodes_;
  std::map<std::string, std::vector<Clock>> clocks_;  // [process]
  Trace trace_;                                       // times as they came
};

// Chrome's JSON: a process for each process, flow arrows from a dispatch to the node's work and
// back. https://ui.perfetto.dev opens it.
std::string chrome_trace(const Trace& trace);
// Of a file that chrome_trace() wrote. LoadError with `name`.
Trace read_chrome_trace(std::string_view text, const std::string& name);

// Where the time of the engine's turns went: every moment is in one part.
struct Explanation {
  struct Part {
    std::string what;
    double seconds = 0;
    std::vector<Part> of = {};  // largest first; together as long
  };
  uint64_t steps = 0, rows = 0;
  double measured_seconds = 0;  // of the turns, by their begins and ends
  double idle_seconds = 0;      // between turns
  double answers_seconds = 0;   // of the HTTP thread, beside the engine
  std::vector<Part> parts;      // largest first
  double clock_error_seconds = 0;
  uint64_t lost = 0;

  double sum() const;
};
// LoadError if there is no whole step in it.
Explanation explain(const Trace& trace);
std::string explanation_text(const Explanation& explanation);
std::string explanation_json(const Explanation& explanation);

}  // namespace atl::cli
