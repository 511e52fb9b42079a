#include "constrain/grammar.h"

#include <fmt/core.h>

#include <algorithm>
#include <deque>
#include <functional>
#include <map>
#include <queue>
#include <unordered_map>
#include <utility>

#include "base/check.h"

namespace atl::constrain {
namespace {

// A schema comes from a client: these bound what making its automata deterministic takes to about
// 32 MiB and 100 ms (docs/structured-output.md has what was measured). Work is the nodes that
// closures look at, and kStateWork more for each state: 16 to 26 ns each on a Zen 5 core, whether a
// schema has large subsets (an object of many optional properties) or many (counted wildcards).
constexpr size_t kStatesMax = 100'000;
constexpr size_t kStepBytesMax = size_t{8} << 20;
constexpr size_t kSubsetNodesMax = 3'500'000;  // of all states together, 4 bytes each
constexpr size_t kWorkMax = 3'700'000, kStateWork = 16;

struct NodesHash {
  size_t operator()(const std::vector<GrammarBuilder::Node>& nodes) const {
    uint64_t hash = nodes.size();
    for (GrammarBuilder::Node node : nodes) {
      hash = (hash ^ static_cast<uint64_t>(node)) * 0x9E3779B97F4A7C15u;
      hash ^= hash >> 29;
    }
    return hash;
  }
};

Error invalid(std::string message) { return {ErrorCode::kInvalid, std::move(message)}; }

}  // namespace

// Makes the rules deterministic by subsets, each rule for itself.
class GrammarCompiler {
 public:
  explicit GrammarCompiler(const GrammarBuilder& grammar) : grammar_(grammar) {}

  Result<ConstraintMachine> run(int32_t top) {
    machine_.top = top;
    machine_.marks = grammar_.marks_;
    find_classes();
    for (size_t rule = 0; rule < grammar_.rules_.size(); ++rule) {
      machine_.rule_starts.push_back(state_of(Nodes(1, grammar_.rules_[rule].start), rule));
      if (!expand_all()) return invalid("the schema is too large");
      if (rule == 0) machine_.num_shared_states = static_cast<int32_t>(machine_.states.size());
    }
    set_likes();
    if (calls_itself_first())
      return invalid("a $ref leads back to itself without anything between");
    find_costs();
    if (machine_.states[start(top)].cost >= kNoCompletion)
      return invalid("nothing fulfils the schema");
    cut_dead_ends();
    return std::move(machine_);
  }

 private:
  using Node = GrammarBuilder::Node;
  using Nodes = std::vector<Node>;

  int32_t start(int32_t rule) const { return machine_.rule_starts[static_cast<size_t>(rule)]; }

  // Bytes that every step treats alike share a class.
  void find_classes() {
    std::vector<bool> begins(257, false);
    begins[0] = true;
    for (const auto& node : grammar_.nodes_) {
      for (const auto& step : node.steps) {
        begins[step.low] = true;
        begins[step.high + 1u] = true;
      }
    }
    int current = -1;
    for (int b = 0; b < 256; ++b) {
      if (begins[static_cast<size_t>(b)]) {
        ++current;
        first_of_class_.push_back(static_cast<uint8_t>(b));
      }
      machine_.class_of[b] = static_cast<uint8_t>(current);
    }
    machine_.num_classes = first_of_class_.size();
  }

  Nodes closure(Nodes seed) {
    ++round_;
    reached_.resize(grammar_.nodes_.size(), 0);
    Nodes nodes;
    while (!seed.empty()) {
      const auto node = static_cast<size_t>(seed.back());
      seed.pop_back();
      ++work_;
      if (std::exchange(reached_[node], round_) == round_) continue;
      nodes.push_back(static_cast<Node>(node));
      const Nodes& empties = grammar_.nodes_[node].empties;
      seed.insert(seed.end(), empties.begin(), empties.end());
    }
    std::sort(nodes.begin(), nodes.end());
    return nodes;
  }

  int32_t state_of(Nodes seed, size_t rule) {
    const auto [at, is_new] = state_ids_.emplace(closure(std::move(seed)), machine_.states.size());
    if (!is_new) return at->second;
    ConstraintMachine::State state;
    state.accepting =
        std::binary_search(at->first.begin(), at->first.end(), grammar_.rules_[rule].accept);
    machine_.states.push_back(std::move(state));
    subsets_.push_back(&at->first);
    num_subset_nodes_ += at->first.size();
    work_ += kStateWork;
    rule_of_.push_back(rule);
    todo_.push_back(at->second);
    return at->second;
  }

  bool expand_all() {
    while (!todo_.empty()) {
      const int32_t state = todo_.front();
      todo_.pop_front();
      expand(state);
      const size_t step_bytes = machine_.states.size() * machine_.num_classes * sizeof(int32_t);
      if (machine_.states.size() > kStatesMax || step_bytes > kStepBytesMax ||
          num_subset_nodes_ > kSubsetNodesMax || work_ > kWorkMax) {
        return false;
      }
    }
    return true;
  }

  void expand(int32_t state) {
    const auto index = static_cast<size_t>(state);
    const Nodes nodes = *subsets_[index];
    const size_t rule = rule_of_[index];
    std::vector<Nodes> targets(machine_.num_classes);
    std::map<int32_t, Nodes> calls, marks;
    for (Node id : nodes) {
      const auto& node = grammar_.nodes_[static_cast<size_t>(id)];
      for (const auto& step : node.steps) {
        for (size_t c = machine_.class_of[step.low]; c <= machine_.class_of[step.high]; ++c) {
          targets[c].push_back(step.to);
        }
      }
      for (const auto& [called, to] : node.calls) calls[called].push_back(to);
      for (const auto& [mark, to] : node.marks) marks[mark].push_back(to);
    }
    machine_.steps.resize(std::max(machine_.steps.size(), (index + 1) * machine_.num_classes), -1);
    bool reads = !marks.empty();
    for (size_t c = 0; c < targets.size(); ++c) {
      if (targets[c].empty()) continue;
      reads = true;
      const int32_t to = state_of(std::move(targets[c]), rule);
      machine_.steps[index * machine_.num_classes + c] = to;
    }
    for (auto& [called, to] : calls) {
      const int32_t next = state_of(std::move(to), rule);
      machine_.states[index].calls.emplace_back(called, next);
    }
    for (auto& [mark, to] : marks) {
      const int32_t next = state_of(std::move(to), rule);
      machine_.states[index].marks.emplace_back(mark, next);
    }
    machine_.states[index].reads = reads;
  }

  // States that stand for one marked node each.
  void set_likes() {
    for (size_t i = 0; i < subsets_.size(); ++i) {
      if (subsets_[i]->size() != 1) continue;
      const auto& node = grammar_.nodes_[static_cast<size_t>(subsets_[i]->front())];
      if (node.like < 0) continue;
      machine_.states[i].like = state_ids_.at(closure(Nodes(1, node.like)));
      machine_.states[i].chars_min = node.chars_min;
      machine_.states[i].chars_max = node.chars_max;
    }
  }

  bool calls_itself_first() {
    looked_at_.assign(machine_.rule_starts.size(), Look::kNot);
    for (size_t rule = 0; rule < looked_at_.size(); ++rule) {
      if (finds_cycle(static_cast<int32_t>(rule))) return true;
    }
    return false;
  }

  // Depth first, on a list of its own: a chain of $refs is as long as a client likes.
  bool finds_cycle(int32_t from) {
    struct Visit {
      int32_t rule;
      size_t next_call;
    };
    if (looked_at_[static_cast<size_t>(from)] != Look::kNot) return false;
    looked_at_[static_cast<size_t>(from)] = Look::kNow;
    std::vector<Visit> path = {{from, 0}};
    while (!path.empty()) {
      Visit& here = path.back();
      const auto& calls = machine_.states[static_cast<size_t>(start(here.rule))].calls;
      if (here.next_call == calls.size()) {
        looked_at_[static_cast<size_t>(here.rule)] = Look::kDone;
        path.pop_back();
        continue;
      }
      const int32_t called = calls[here.next_call++].first;
      Look& look = looked_at_[static_cast<size_t>(called)];
      if (look == Look::kNow) return true;
      if (look == Look::kDone) continue;
      look = Look::kNow;
      path.push_back({called, 0});
    }
    return false;
  }

  // Least bytes to the end of the rule, the cheapest states first: a cost that is taken from the
  // heap is final, and each edge is looked at once. A call costs its rule and what is behind it.
  // Source: Knuth, A Generalization of Dijkstra's Algorithm (1977).
  void find_costs() {
    const size_t num_states = machine_.states.size();
    struct Call {
      int32_t state, other;  // it ends once `other` is known, too
    };
    std::vector<std::vector<int32_t>> read_from(num_states);
    std::vector<std::vector<Call>> called_from(num_states);
    using Entry = std::pair<int64_t, int32_t>;
    std::priority_queue<Entry, std::vector<Entry>, std::greater<>> open;
    for (size_t i = 0; i < num_states; ++i) {
      auto& state = machine_.states[i];
      const auto index = static_cast<int32_t>(i);
      state.cost = state.accepting ? 0 : kNoCompletion;
      if (state.accepting) open.emplace(0, index);
      int32_t last = -1;
      for (size_t c = 0; c < machine_.num_classes; ++c) {
        const int32_t to = machine_.steps[i * machine_.num_classes + c];
        if (to >= 0 && to != last) read_from[static_cast<size_t>(to)].push_back(index);
        last = to;
      }
      for (const auto& [mark, to] : state.marks) {
        read_from[static_cast<size_t>(to)].push_back(index);
      }
      for (const auto& [rule, to] : state.calls) {
        called_from[static_cast<size_t>(start(rule))].push_back({index, to});
        called_from[static_cast<size_t>(to)].push_back({index, start(rule)});
      }
    }
    std::vector<bool> is_final(num_states, false);
    const auto relax = [&](int32_t state, int64_t cost) {
      int64_t& known = machine_.states[static_cast<size_t>(state)].cost;
      if (cost >= known) return;
      known = cost;
      open.emplace(cost, state);
    };
    while (!open.empty()) {
      const auto [cost, state] = open.top();
      open.pop();
      const auto at = static_cast<size_t>(state);
      if (is_final[at]) continue;
      is_final[at] = true;
      CHECK_EQ(cost, machine_.states[at].cost);
      for (const int32_t from : read_from[at]) relax(from, cost + 1);
      for (const Call& call : called_from[at]) {
        const auto other = static_cast<size_t>(call.other);
        if (is_final[other]) relax(call.state, cost + machine_.states[other].cost);
      }
    }
  }

  void cut_dead_ends() {
    const auto is_dead = [&](int32_t s) {
      return machine_.states[static_cast<size_t>(s)].cost >= kNoCompletion;
    };
    for (int32_t& to : machine_.steps) {
      if (to >= 0 && is_dead(to)) to = -1;
    }
    for (size_t i = 0; i < machine_.states.size(); ++i) {
      auto& state = machine_.states[i];
      std::erase_if(state.marks, [&](const auto& mark) { return is_dead(mark.second); });
      std::erase_if(state.calls, [&](const auto& call) {
        return is_dead(call.second) || is_dead(start(call.first));
      });
      const auto row = machine_.steps.begin() + static_cast<ptrdiff_t>(i * machine_.num_classes);
      state.reads = !state.marks.empty() || state.like >= 0 ||
                    std::any_of(row, row + static_cast<ptrdiff_t>(machine_.num_classes),
                                [](int32_t to) { return to >= 0; });
      state.plain = !state.accepting && state.calls.empty() && state.marks.empty() && state.reads;
      state.only_ends = state.accepting && state.calls.empty() && !state.reads;
    }
  }

  const GrammarBuilder& grammar_;
  ConstraintMachine machine_;
  std::vector<uint8_t> first_of_class_;
  std::unordered_map<Nodes, int32_t, NodesHash> state_ids_;
  size_t num_subset_nodes_ = 0;
  size_t work_ = 0;                // nodes that closure() looked at, and kStateWork of each state
  std::vector<uint32_t> reached_;  // [nodes] the last round of closure() that reached it
  uint32_t round_ = 0;
  std::vector<const Nodes*> subsets_;  // [states], keys of state_ids_
  std::vector<size_t> rule_of_;        // [states]
  std::deque<int32_t> todo_;
  enum class Look : uint8_t { kNot, kNow, kDone };
  std::vector<Look> looked_at_;  // [rules]
};

int32_t GrammarBuilder::add_rule() {
  const Node start = node();
  const Node accept = node();
  rules_.push_back({start, accept});
  return static_cast<int32_t>(rules_.size()) - 1;
}

GrammarBuilder::Node GrammarBuilder::node() {
  nodes_.emplace_back();
  return static_cast<Node>(nodes_.size()) - 1;
}

void GrammarBuilder::bytes(Node from, uint8_t low, uint8_t high, Node to) {
  CHECK_LE(low, high);
  nodes_[static_cast<size_t>(from)].steps.push_back({low, high, to});
}

void GrammarBuilder::empty(Node from, Node to) {
  nodes_[static_cast<size_t>(from)].empties.push_back(to);
}

void GrammarBuilder::call(Node from, int32_t rule, Node to) {
  nodes_[static_cast<size_t>(from)].calls.emplace_back(rule, to);
}

GrammarBuilder::Node GrammarBuilder::literal(Node from, std::string_view text) {
  for (char c : text) {
    const Node to = node();
    byte(from, c, to);
    from = to;
  }
  return from;
}

GrammarBuilder::Node GrammarBuilder::mark(Node from, std::string_view text) {
  if (!marks_are_tokens) return literal(from, text);
  auto at = std::find(marks_.begin(), marks_.end(), text);
  if (at == marks_.end()) at = marks_.insert(marks_.end(), std::string(text));
  const Node to = node();
  nodes_[static_cast<size_t>(from)].marks.emplace_back(static_cast<int32_t>(at - marks_.begin()),
                                                       to);
  return to;
}

void GrammarBuilder::set_like(Node node, Node original, int32_t chars_min, int32_t chars_max) {
  NodeData& data = nodes_[static_cast<size_t>(node)];
  data.like = original;
  data.chars_min = chars_min;
  data.chars_max = chars_max;
}

Result<ConstraintMachine> GrammarBuilder::compile(int32_t top) const {
  return GrammarCompiler(*this).run(top);
}

}  // namespace atl::constrain
