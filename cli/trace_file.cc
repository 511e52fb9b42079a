#include "cli/trace_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/json_reader.h"
#include "base/result.h"
#include "coordinator/cluster/trace_collector.h"
#include "transport/control/control.h"

namespace atl::cli {
namespace {

using TraceJson = nlohmann::ordered_json;

constexpr const char* kCoordinator = "coordinator";
constexpr size_t kLineMemoryMax = 16 << 20;  // of the 8192 events of a line: 300 bytes each

int64_t trace_int(const TraceJson& json, const char* key, int64_t otherwise = 0) {
  const auto found = json.find(key);
  return found != json.end() && found->is_number() ? found->get<int64_t>() : otherwise;
}

std::string trace_text(const TraceJson& json, const char* key) {
  const auto found = json.find(key);
  return found != json.end() && found->is_string() ? found->get<std::string>() : "";
}

std::string quoted(const std::string& text) {
  return TraceJson(text).dump(-1, ' ', false, TraceJson::error_handler_t::replace);
}

void sort_events(Trace& trace) {
  for (Trace::Thread& thread : trace.threads) {
    // Of those that begin together the longest first: it encloses the others.
    std::stable_sort(thread.events.begin(), thread.events.end(), [](const auto& a, const auto& b) {
      return std::pair(a.begin, -a.length) < std::pair(b.begin, -b.length);
    });
  }
}

Trace::Thread& thread_of(Trace& trace, const std::string& process, const std::string& name) {
  for (Trace::Thread& thread : trace.threads) {
    if (thread.process == process && thread.thread == name) return thread;
  }
  return trace.threads.emplace_back(Trace::Thread{process, name, {}});
}

}  // namespace

const Trace::Thread* Trace::find(std::string_view process, std::string_view thread) const {
  const auto found = std::find_if(threads.begin(), threads.end(), [&](const Thread& one) {
    return one.process == process && one.thread == thread;
  });
  return found == threads.end() ? nullptr : &*found;
}

// ---- From a server -----------------------------------------------------------------------------

void TraceLines::take(std::string_view line) {
  const auto json = read_json(line, {.bytes_max = kLineMemoryMax});
  if (!json || !json->is_object()) {
    throw LoadError(
        fmt::format("a line of the trace is no JSON object: {}", json ? "" : json.error().message));
  }
  if (json->contains("error")) {
    throw LoadError("the trace ended: " + trace_text(*json, "error"));
  }
  if (!has_begun_) {
    if (trace_int(*json, "atoll_trace") != 1) {
      throw LoadError("the first line of the trace lacks \"atoll_trace\": 1");
    }
    has_begun_ = true;
    zero_ = trace_int(*json, "coordinator_ns");
    for (const TraceJson& stage : json->value("stages", TraceJson::array())) {
      stages_.push_back(stage.is_string() ? stage.get<std::string>() : "");
    }
    for (const TraceJson& node : json->value("nodes", TraceJson::array())) {
      nodes_.push_back(node.is_string() ? node.get<std::string>() : "");
    }
  } else if (json->value("end", false)) {
    has_ended_ = true;
    for (const TraceJson& clock : json->value("clocks", TraceJson::array())) {
      clocks_[trace_text(clock, "process")].push_back(
          {trace_int(clock, "at_ns"), trace_int(clock, "ahead_ns"), trace_int(clock, "error_ns")});
    }
  } else {
    take_events(*json);
  }
}

std::string TraceLines::name_of(bool is_coordinator, int64_t kind) const {
  if (!is_coordinator) {
    const bool is_known = kind >= 0 && kind < static_cast<int64_t>(transport::kNumNodeWorks);
    return is_known ? transport::node_work_name(static_cast<transport::NodeWork>(kind)) : "unknown";
  }
  if (kind >= 0 && kind < std::ssize(stages_)) return stages_[static_cast<size_t>(kind)];
  switch (kind) {
    case coordinator::kTraceTurn:
      return "turn";
    case coordinator::kTraceStep:
      return "step";
    case coordinator::kTraceShare:
      return "share";
    case coordinator::kTraceAnswers:
      return "answers";
    case coordinator::kTraceRequest:
      return "request";
    default:
      return "unknown";
  }
}

void TraceLines::take_events(const TraceJson& line) {
  const std::string process = trace_text(line, "process");
  Trace::Thread& thread = thread_of(trace_, process, trace_text(line, "thread"));
  trace_.lost += static_cast<uint64_t>(trace_int(line, "lost"));
  const int64_t base = trace_int(line, "base_ns");
  for (const TraceJson& from : line.value("events", TraceJson::array())) {
    const bool is_whole = from.is_array() && from.size() == 7 &&
                          std::all_of(from.begin(), from.end(), [](const TraceJson& number) {
                            return number.is_number_integer();
                          });
    if (!is_whole) throw LoadError("the trace has an event that isn't seven whole numbers");
    Trace::Event event;
    const bool is_coordinator = process == kCoordinator;
    event.what = name_of(is_coordinator, from[0].get<int64_t>());
    event.begin = base + from[1].get<int64_t>();
    event.length = std::max<int64_t>(0, from[2].get<int64_t>());
    event.layer = from[3].get<int64_t>();
    event.rows = from[4].get<int64_t>();
    event.id = from[5].get<uint64_t>();
    const auto peer = from[6].get<size_t>();
    if (event.what == "share") event.node = peer < nodes_.size() ? nodes_[peer] : "unknown";
    thread.events.push_back(std::move(event));
  }
}

// Between the two times at which a clock was read it drifts evenly.
Trace TraceLines::finish() {
  if (!has_ended_) throw LoadError("the trace broke off before its end");
  for (Trace::Thread& thread : trace_.threads) {
    const auto found = clocks_.find(thread.process);
    const bool is_known = found != clocks_.end() && !found->second.empty();
    if (thread.process != kCoordinator && !is_known) {
      throw LoadError("the trace doesn't say how the clock of " + thread.process + " stands");
    }
    for (Trace::Event& event : thread.events) {
      if (is_known) {
        const Clock& first = found->second.front();
        const Clock& last = found->second.back();
        const double part = last.at > first.at ? static_cast<double>(event.begin - first.at) /
                                                     static_cast<double>(last.at - first.at)
                                               : 0;
        event.begin -= first.ahead +
                       static_cast<int64_t>(part * static_cast<double>(last.ahead - first.ahead));
      }
      event.begin -= zero_;
    }
  }
  for (const auto& [process, clocks] : clocks_) {
    for (const Clock& clock : clocks) {
      trace_.clock_error[process] = std::max(trace_.clock_error[process], clock.error);
    }
  }
  sort_events(trace_);
  return std::move(trace_);
}

// ---- Chrome's JSON -----------------------------------------------------------------------------

namespace {

// https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU, "Trace Event
// Format": times in microseconds.
class ChromeWriter {
 public:
  std::string write(const Trace& trace) {
    text_ = "{\"displayTimeUnit\":\"ms\",\"traceEvents\":[\n";
    for (const Trace::Thread& thread : trace.threads) name_process(thread.process);
    for (const Trace::Thread& thread : trace.threads) {
      const int tid = name_thread(thread.process, thread.thread);
      const int pid = pids_.at(thread.process);
      for (const Trace::Event& event : thread.events) add(event, pid, tid);
      if (thread.thread == "engine") add_layers(thread, pid, tid);
      if (thread.process != kCoordinator) add_arrows(trace, thread, pid, tid);
    }
    text_ += fmt::format("\n],\"otherData\":{{\"atoll_trace\":1,\"lost\":{},\"clock_error_ns\":{{",
                         trace.lost);
    const char* separator = "";
    for (const auto& [process, error] : trace.clock_error) {
      text_ += fmt::format("{}{}:{}", separator, quoted(process), error);
      separator = ",";
    }
    return std::move(text_) + "}}}\n";
  }

 private:
  template <typename... Args>
  void line(fmt::format_string<Args...> format, Args&&... args) {
    if (!is_first_) text_ += ",\n";
    is_first_ = false;
    fmt::format_to(std::back_inserter(text_), format, std::forward<Args>(args)...);
  }
  static double us(int64_t ns) { return static_cast<double>(ns) * 1e-3; }

  void name_process(const std::string& process) {
    if (pids_.contains(process)) return;
    const int pid = static_cast<int>(pids_.size()) + 1;
    pids_[process] = pid;
    line(R"({{"ph":"M","name":"process_name","pid":{},"args":{{"name":{}}}}})", pid,
         quoted(process));
    line(R"({{"ph":"M","name":"process_sort_index","pid":{},"args":{{"sort_index":{}}}}})", pid,
         pid);
  }
  int name_thread(const std::string& process, const std::string& thread) {
    const int tid = ++tids_;
    line(R"({{"ph":"M","name":"thread_name","pid":{},"tid":{},"args":{{"name":{}}}}})",
         pids_.at(process), tid, quoted(thread));
    return tid;
  }
  // Shares overlap each other and the engine's stages, requests overlap each other: they are
  // asynchronous, a track for each node.
  void add(const Trace::Event& event, int pid, int tid) {
    const std::string args =
        fmt::format(R"({{"layer":{},"rows":{},"id":{}}})", event.layer, event.rows, event.id);
    if (event.what == "share" || event.what == "request") {
      const std::string name = event.what == "share" ? event.node : event.what;
      const uint64_t id = event.what == "share" ? event.id : ++requests_;
      line(R"({{"ph":"b","cat":"{}","name":{},"id":{},"pid":{},"tid":{},"ts":{:.3f},"args":{}}})",
           event.what, quoted(name), id, pid, tid, us(event.begin), args);
      line(R"({{"ph":"e","cat":"{}","name":{},"id":{},"pid":{},"tid":{},"ts":{:.3f}}})", event.what,
           quoted(name), id, pid, tid, us(event.end()));
      return;
    }
    line(R"({{"ph":"X","name":{},"pid":{},"tid":{},"ts":{:.3f},"dur":{:.3f},"args":{}}})",
         quoted(event.what), pid, tid, us(event.begin), us(event.length), args);
  }
  // Stages of one layer one after the other make a layer.
  void add_layers(const Trace::Thread& thread, int pid, int tid) {
    int64_t layer = -1, begin = 0, end = 0;
    const auto close = [&] {
      if (layer < 0) return;
      line(
          R"({{"ph":"X","name":"layer {}","cat":"layer","pid":{},"tid":{},"ts":{:.3f},"dur":{:.3f}}})",
          layer, pid, tid, us(begin), us(end - begin));
    };
    for (const Trace::Event& event : thread.events) {
      if (event.what == "turn" || event.what == "step" || event.what == "share") continue;
      if (event.layer != layer || event.begin > end) {
        close();
        layer = event.layer;
        begin = event.begin;
      }
      end = event.end();
    }
    close();
  }
  // From the coordinator's share to the node's work on it, and back.
  void add_arrows(const Trace& trace, const Trace::Thread& node, int pid, int tid) {
    if (shares_.empty()) {
      const Trace::Thread* engine = trace.find(kCoordinator, "engine");
      if (engine == nullptr) return;
      for (const Trace::Event& event : engine->events) {
        if (event.what == "share") shares_[event.id] = &event;
      }
    }
    const int from_pid = pids_.at(kCoordinator), from_tid = engine_tid(trace);
    for (const Trace::Event& event : node.events) {
      const auto share = event.what == "dispatch" ? shares_.find(event.id) : shares_.end();
      if (share == shares_.end() || share->second->node != node.process) continue;
      arrow("dispatch", 2 * event.id, from_pid, from_tid, share->second->begin, pid, tid,
            event.begin);
      arrow("answer", 2 * event.id + 1, pid, tid, event.end(), from_pid, from_tid,
            share->second->end());
    }
  }
  void arrow(const char* name, uint64_t id, int from_pid, int from_tid, int64_t from, int to_pid,
             int to_tid, int64_t to) {
    line(R"({{"ph":"s","cat":"flow","name":"{}","id":{},"pid":{},"tid":{},"ts":{:.3f}}})", name, id,
         from_pid, from_tid, us(from));
    line(R"({{"ph":"f","bp":"e","cat":"flow","name":"{}","id":{},"pid":{},"tid":{},"ts":{:.3f}}})",
         name, id, to_pid, to_tid, us(to));
  }
  static int engine_tid(const Trace& trace) {
    int tid = 0;
    for (const Trace::Thread& thread : trace.threads) {
      ++tid;
      if (thread.process == kCoordinator && thread.thread == "engine") return tid;
    }
    return 0;
  }

  std::string text_;
  bool is_first_ = true;
  std::map<std::string, int> pids_;
  int tids_ = 0;
  uint64_t requests_ = 0;
  std::map<uint64_t, const Trace::Event*> shares_;
};

class ChromeReader {
 public:
  ChromeReader(const TraceJson& json, std::string name) : json_(json), name_(std::move(name)) {}

  Trace read() {
    const auto other = json_.find("otherData");
    if (other == json_.end() || trace_int(*other, "atoll_trace") != 1 ||
        !json_.value("traceEvents", TraceJson()).is_array()) {
      throw LoadError(name_ + ": no file of `atoll trace`");
    }
    trace_.lost = static_cast<uint64_t>(trace_int(*other, "lost"));
    const TraceJson errors = other->value("clock_error_ns", TraceJson::object());
    for (const auto& [process, error] : errors.items()) {
      trace_.clock_error[process] = error.is_number() ? error.get<int64_t>() : 0;
    }
    for (const TraceJson& event : json_["traceEvents"]) take(event);
    for (auto& [id, thread] : threads_) {
      if (!thread.events.empty()) trace_.threads.push_back(std::move(thread));
    }
    sort_events(trace_);
    return std::move(trace_);
  }

 private:
  void take(const TraceJson& event) {
    const std::string phase = trace_text(event, "ph"), name = trace_text(event, "name");
    const TraceJson args = event.value("args", TraceJson::object());
    const int64_t pid = trace_int(event, "pid"), tid = trace_int(event, "tid");
    if (phase == "M" && name == "process_name") processes_[pid] = trace_text(args, "name");
    if (phase == "M" && name == "thread_name") {
      threads_[tid].process = processes_[pid];
      threads_[tid].thread = trace_text(args, "name");
    }
    if (phase == "X" && trace_text(event, "cat") != "layer") {
      threads_[tid].events.push_back(whole(event, args, name, ns(event, "dur")));
    }
    const auto key = std::pair(trace_text(event, "cat"), trace_int(event, "id"));
    if (phase == "b") begun_[key] = {tid, whole(event, args, key.first, 0)};
    if (phase == "b" && key.first == "share") begun_[key].second.node = name;
    if (phase != "e" || !begun_.contains(key)) return;
    auto& [begun_tid, begun] = begun_[key];
    begun.length = ns(event, "ts") - begun.begin;
    threads_[begun_tid].events.push_back(std::move(begun));
    begun_.erase(key);
  }
  static int64_t ns(const TraceJson& event, const char* key) {
    const auto found = event.find(key);
    return found != event.end() && found->is_number() ? std::llround(found->get<double>() * 1e3)
                                                      : 0;
  }
  static Trace::Event whole(const TraceJson& event, const TraceJson& args, const std::string& what,
                            int64_t length) {
    Trace::Event one;
    one.what = what;
    one.begin = ns(event, "ts");
    one.length = length;
    one.layer = trace_int(args, "layer", -1);
    one.rows = trace_int(args, "rows");
    one.id = static_cast<uint64_t>(trace_int(args, "id"));
    return one;
  }

  const TraceJson& json_;
  const std::string name_;
  std::map<int64_t, std::string> processes_;
  std::map<int64_t, Trace::Thread> threads_;
  std::map<std::pair<std::string, int64_t>, std::pair<int64_t, Trace::Event>> begun_;
  Trace trace_;
};

}  // namespace

std::string chrome_trace(const Trace& trace) { return ChromeWriter().write(trace); }

Trace read_chrome_trace(std::string_view text, const std::string& name) {
  const TraceJson json = TraceJson::parse(text, nullptr, false);
  if (!json.is_object()) throw LoadError(name + ": no JSON object");
  return ChromeReader(json, name).read();
}

}  // namespace atl::cli
