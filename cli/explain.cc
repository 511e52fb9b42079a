// Adds a trace up: where the time of a token went.
#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <utility>

#include "base/result.h"
#include "cli/trace_file.h"

namespace atl::cli {
namespace {

using Event = Trace::Event;
using TimePart = Explanation::Part;

constexpr double kNs = 1e-9;

int64_t overlap(int64_t begin, int64_t end, const Event& event) {
  return std::max<int64_t>(0, std::min(end, event.end()) - std::max(begin, event.begin));
}

void largest_first(std::vector<TimePart>& parts) {
  std::erase_if(parts, [](const TimePart& part) { return part.seconds <= 0; });
  for (TimePart& part : parts) largest_first(part.of);
  std::stable_sort(parts.begin(), parts.end(),
                   [](const TimePart& a, const TimePart& b) { return a.seconds > b.seconds; });
}

std::vector<TimePart> as_parts(const std::map<std::string, double>& seconds) {
  std::vector<TimePart> parts;
  for (const auto& [what, s] : seconds) parts.push_back({what, s});
  return parts;
}

// Whole turns of the engine, and what lies in them.
class Adder {
 public:
  explicit Adder(const Trace& trace) : trace_(trace) {
    const Trace::Thread* engine = trace.find("coordinator", "engine");
    if (engine == nullptr) throw LoadError("the trace has nothing of the coordinator's engine");
    for (const Event& event : engine->events) {
      if (event.what == "turn") {
        turns_.push_back(&event);
      } else if (event.what == "step") {
        steps_.push_back(&event);
      } else if (event.what == "share") {
        shares_[event.layer].push_back(&event);
      } else {
        stages_.push_back(&event);
      }
    }
    for (const Trace::Thread& thread : trace.threads) {
      if (thread.process == "coordinator") continue;
      for (const Event& event : thread.events) works_[{thread.process, event.id}].push_back(&event);
    }
    // Shares are looked up by their ends.
    for (auto& [layer, shares] : shares_) {
      std::sort(shares.begin(), shares.end(),
                [](const Event* a, const Event* b) { return a->end() < b->end(); });
    }
  }

  Explanation add_up() {
    Explanation result;
    int64_t in_steps = 0, in_stages = 0, in_turns = 0;
    size_t step = 0, stage = 0;
    for (size_t t = 0; t < turns_.size(); ++t) {
      const Event& turn = *turns_[t];
      while (step < steps_.size() && steps_[step]->begin < turn.begin) ++step;
      while (stage < stages_.size() && stages_[stage]->begin < turn.begin) ++stage;
      // A turn whose step began before the trace did has no step here.
      const bool is_whole = step < steps_.size() && steps_[step]->end() <= turn.end() &&
                            stage < stages_.size() &&
                            stages_[stage]->begin <= steps_[step]->begin + 1000;
      if (!is_whole) continue;
      in_turns += turn.length;
      for (; step < steps_.size() && steps_[step]->end() <= turn.end(); ++step) {
        in_steps += steps_[step]->length;
        ++result.steps;
        result.rows += static_cast<uint64_t>(steps_[step]->rows);
      }
      for (; stage < stages_.size() && stages_[stage]->end() <= turn.end(); ++stage) {
        in_stages += stages_[stage]->length;
        add_stage(*stages_[stage]);
      }
      if (t + 1 < turns_.size()) {
        result.idle_seconds +=
            kNs * static_cast<double>(std::max<int64_t>(0, turns_[t + 1]->begin - turn.end()));
      }
    }
    if (result.steps == 0) {
      throw LoadError(
          "the trace has no whole step: trace while requests are answered, and longer "
          "than a step takes");
    }
    result.measured_seconds = kNs * static_cast<double>(in_turns);
    result.parts = {{"attention", 0, as_parts(attention_)}};
    for (const auto& [what, s] : attention_) result.parts[0].seconds += s;
    for (const auto& [what, s] : plain_) result.parts.push_back({what, s});
    for (const auto& [node, seconds] : waiting_) {
      TimePart part{"waiting for " + node, 0, as_parts(seconds)};
      for (const auto& [what, s] : seconds) part.seconds += s;
      result.parts.push_back(std::move(part));
    }
    result.parts.push_back(
        {"scheduling and sampling", kNs * static_cast<double>(in_turns - in_steps)});
    result.parts.push_back({"not seen", kNs * static_cast<double>(in_steps - in_stages)});
    largest_first(result.parts);
    if (const Trace::Thread* http = trace_.find("coordinator", "http")) {
      for (const Event& event : http->events) {
        if (event.what == "answers") {
          result.answers_seconds += kNs * static_cast<double>(event.length);
        }
      }
    }
    for (const auto& [process, error] : trace_.clock_error) {
      result.clock_error_seconds =
          std::max(result.clock_error_seconds, kNs * static_cast<double>(error));
    }
    result.lost = trace_.lost;
    return result;
  }

 private:
  void add_stage(const Event& stage) {
    const double seconds = kNs * static_cast<double>(stage.length);
    if (stage.what.starts_with("attention_")) {
      attention_[stage.what.substr(10)] += seconds;
    } else if (stage.what == "combine") {
      add_combine(stage);
    } else {
      plain_[stage.what == "other" ? "norms and residuals" : stage.what] += seconds;
    }
  }

  // Who answered last in this stretch was waited for; the rest is adding.
  void add_combine(const Event& stage) {
    const Event* last = nullptr;
    if (const auto found = shares_.find(stage.layer); found != shares_.end()) {
      const auto after =
          std::upper_bound(found->second.begin(), found->second.end(), stage.end(),
                           [](int64_t end, const Event* share) { return end < share->end(); });
      if (after != found->second.begin()) last = *std::prev(after);
    }
    const int64_t waited = last == nullptr ? 0 : std::max<int64_t>(0, last->end() - stage.begin);
    plain_["combine"] += kNs * static_cast<double>(stage.length - waited);
    if (waited == 0) return;
    std::map<std::string, double>& of = waiting_[last->node];
    int64_t seen = 0;
    if (const auto works = works_.find({last->node, last->id}); works != works_.end()) {
      for (const Event* work : works->second) {
        if (work->what == "dispatch") continue;
        const int64_t part = overlap(stage.begin, last->end(), *work);
        of[work->what] += kNs * static_cast<double>(part);
        seen += part;
      }
    }
    of["network and the rest"] += kNs * static_cast<double>(std::max<int64_t>(0, waited - seen));
  }

  const Trace& trace_;
  std::vector<const Event*> turns_, steps_, stages_;
  std::map<int64_t, std::vector<const Event*>> shares_;  // [layer]
  std::map<std::pair<std::string, uint64_t>, std::vector<const Event*>> works_;
  std::map<std::string, double> attention_, plain_;
  std::map<std::string, std::map<std::string, double>> waiting_;  // [node]
};

nlohmann::ordered_json part_json(const TimePart& part, double whole) {
  nlohmann::ordered_json json = {{"what", part.what},
                                 {"seconds", part.seconds},
                                 {"share", whole > 0 ? part.seconds / whole : 0}};
  for (const TimePart& of : part.of) json["of"].push_back(part_json(of, part.seconds));
  return json;
}

}  // namespace

double Explanation::sum() const {
  return std::accumulate(parts.begin(), parts.end(), 0.0,
                         [](double sum, const TimePart& part) { return sum + part.seconds; });
}

Explanation explain(const Trace& trace) { return Adder(trace).add_up(); }

std::string explanation_text(const Explanation& explanation) {
  const double steps = static_cast<double>(explanation.steps);
  const double whole = explanation.measured_seconds;
  std::string text =
      fmt::format("{} steps of {:.1f} rows, {:.3f} ms each; clocks agree within {:.3f} ms{}\n",
                  explanation.steps, static_cast<double>(explanation.rows) / steps,
                  1e3 * whole / steps, 1e3 * explanation.clock_error_seconds,
                  explanation.lost > 0 ? fmt::format("; {} events lost", explanation.lost) : "");
  for (const TimePart& part : explanation.parts) {
    text += fmt::format("{:5.1f} %  {:9.3f} ms  {}", 100 * part.seconds / whole,
                        1e3 * part.seconds / steps, part.what);
    const char* separator = ": ";
    for (const TimePart& of : part.of) {
      if (of.seconds < 0.01 * part.seconds) continue;
      text += fmt::format("{}{:.0f} % {}", separator, 100 * of.seconds / part.seconds, of.what);
      separator = ", ";
    }
    text += '\n';
  }
  text += fmt::format("{:5.1f} %  {:9.3f} ms  together\n", 100 * explanation.sum() / whole,
                      1e3 * explanation.sum() / steps);
  if (explanation.answers_seconds > 0) {
    text += fmt::format("beside that {:.3f} ms a step of the HTTP thread for the answers\n",
                        1e3 * explanation.answers_seconds / steps);
  }
  return text;
}

std::string explanation_json(const Explanation& explanation) {
  nlohmann::ordered_json json = {{"steps", explanation.steps},
                                 {"rows", explanation.rows},
                                 {"measured_seconds", explanation.measured_seconds},
                                 {"sum_seconds", explanation.sum()},
                                 {"idle_seconds", explanation.idle_seconds},
                                 {"answers_seconds", explanation.answers_seconds},
                                 {"clock_error_seconds", explanation.clock_error_seconds},
                                 {"events_lost", explanation.lost},
                                 {"parts", nlohmann::ordered_json::array()}};
  for (const TimePart& part : explanation.parts) {
    json["parts"].push_back(part_json(part, explanation.measured_seconds));
  }
  return json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

}  // namespace atl::cli
