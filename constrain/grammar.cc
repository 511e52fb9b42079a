#include "constrain/grammar.h"

#include <algorithm>
#include <bit>
#include <functional>
#include <map>
#include <memory>
#include <numeric>
#include <queue>
#include <span>
#include <utility>

#include "base/check.h"

namespace atl::constrain {
namespace {

constexpr size_t kPlaceBytesMax = 80;
// Steps of work (CompileWork) for each state beyond the nodes that closures look at: whether a
// schema has large subsets (an object of many optional properties) or many (counted wildcards).
constexpr uint64_t kStateWork = 16;
// Of a state while it is found, besides its subset and its steps: its place in the tables.
constexpr size_t kStateBytes = sizeof(ConstraintMachine::State) + 40;

Error invalid_grammar(std::string message) { return {ErrorCode::kInvalid, std::move(message)}; }

// Rows of integers, added one after the other and never moved: a vector that grows takes three
// times what it holds.
class Rows {
 public:
  using Row = std::span<int32_t>;

  Row add(size_t size) {
    if (chunks_.empty() || left_ < size) {
      left_ = std::max(size, kChunk);
      chunks_.push_back(std::make_unique_for_overwrite<int32_t[]>(left_));
      next_ = chunks_.back().get();
    }
    const Row row(next_, size);
    next_ += size;
    left_ -= size;
    return row;
  }

 private:
  static constexpr size_t kChunk = 16 << 10;

  std::vector<std::unique_ptr<int32_t[]>> chunks_;
  int32_t* next_ = nullptr;
  size_t left_ = 0;
};

// Sets of nodes, numbered in the order in which they are added.
class SubsetTable {
 public:
  using Nodes = std::vector<GrammarBuilder::Node>;
  using View = std::span<const GrammarBuilder::Node>;

  size_t size() const { return sets_.size(); }
  View operator[](size_t index) const { return sets_[index]; }

  // Its number, and whether it is new.
  std::pair<int32_t, bool> add(View set) {
    if (2 * (size() + 1) > slots_.size()) grow();
    const size_t slot = slot_of(set);
    if (slots_[slot] >= 0) return {slots_[slot], false};
    slots_[slot] = static_cast<int32_t>(size());
    const Rows::Row row = rows_.add(set.size());
    std::ranges::copy(set, row.begin());
    sets_.push_back(row);
    return {slots_[slot], true};
  }

 private:
  size_t slot_after(size_t slot) const { return (slot + 1) & (slots_.size() - 1); }

  // Where it is or belongs: open addressing, at most half full.
  size_t slot_of(View set) const {
    uint64_t hash = set.size();
    for (const GrammarBuilder::Node node : set) {
      hash = (hash + static_cast<uint64_t>(node)) * 0x9E3779B97F4A7C15u;
      hash ^= hash >> 32;
    }
    size_t slot = hash & (slots_.size() - 1);
    while (slots_[slot] >= 0 &&
           !std::ranges::equal(sets_[static_cast<size_t>(slots_[slot])], set)) {
      slot = slot_after(slot);
    }
    return slot;
  }

  void grow() {
    slots_.assign(2 * slots_.size(), -1);
    for (size_t i = 0; i < size(); ++i) slots_[slot_of(sets_[i])] = static_cast<int32_t>(i);
  }

  Rows rows_;
  std::deque<View> sets_;
  std::vector<int32_t> slots_ = std::vector<int32_t>(1024, -1);
};

}  // namespace

// Makes the rules deterministic by subsets, each rule for itself. Throws as CompileWork says.
class GrammarCompiler {
 public:
  explicit GrammarCompiler(GrammarBuilder& grammar)
      : grammar_(grammar), work_(grammar.work()), held_(work_), reached_(grammar.nodes_.size(), 0) {
    held_.add(reached_.size() * sizeof(uint32_t), "it");
  }

  Result<ConstraintMachine> run(int32_t top) {
    machine_.top = top;
    machine_.marks = grammar_.marks_;
    find_classes();
    for (size_t rule = 0; rule < grammar_.rules_.size(); ++rule) {
      rule_ = rule;
      machine_.rule_starts.push_back(state_of(Nodes(1, grammar_.rules_[rule].start)));
      // States are found in the order in which they are added.
      for (; num_expanded_ < states_.size(); ++num_expanded_) expand(num_expanded_);
      if (rule == 0) machine_.num_shared_states = static_cast<int32_t>(states_.size());
    }
    set_likes();
    collect_steps();
    if (calls_itself_first())
      return invalid_grammar("a $ref leads back to itself without anything between");
    find_costs();
    if (machine_.states[start(top)].cost >= kNoCompletion)
      return invalid_grammar("nothing fulfils the schema");
    cut_dead_ends();
    return std::move(machine_);
  }

 private:
  using Node = GrammarBuilder::Node;
  using Nodes = SubsetTable::Nodes;
  using EdgeKind = GrammarBuilder::EdgeKind;

  int32_t start(int32_t rule) const { return machine_.rule_starts[static_cast<size_t>(rule)]; }
  const std::string& place() const { return grammar_.places_[rule_]; }

  const GrammarBuilder::NodeData& node_of(Node node) const {
    return grammar_.nodes_[static_cast<size_t>(node)];
  }

  // look(edge) for each edge of the list.
  template <typename Look>
  void for_each_edge(int32_t first, Look look) const {
    for (int32_t e = first; e >= 0;) {
      const GrammarBuilder::Edge& edge = grammar_.edges_[static_cast<size_t>(e)];
      look(edge);
      e = edge.next;
    }
  }

  // Bytes that every step treats alike share a class.
  void find_classes() {
    std::vector<bool> begins(257, false);
    begins[0] = true;
    for (const auto& edge : grammar_.edges_) {
      if (edge.kind != EdgeKind::kBytes) continue;
      begins[edge.low] = true;
      begins[edge.high + 1u] = true;
    }
    int current = -1;
    for (int b = 0; b < 256; ++b) {
      current += begins[static_cast<size_t>(b)];
      machine_.class_of[b] = static_cast<uint8_t>(current);
    }
    machine_.num_classes = static_cast<size_t>(current) + 1;
    targets_.resize(machine_.num_classes);
  }

  // What is reached from the nodes without a step, sorted; they are left empty.
  Nodes& closure(Nodes& seed) {
    ++round_;
    closed_.clear();
    uint64_t looked_at = 0;
    while (!seed.empty()) {
      const Node node = seed.back();
      seed.pop_back();
      ++looked_at;
      if (std::exchange(reached_[static_cast<size_t>(node)], round_) == round_) continue;
      closed_.push_back(node);
      for_each_edge(node_of(node).first_empty, [&](const auto& edge) { seed.push_back(edge.to); });
    }
    // Sorting looks at each of them a few times more.
    work_.spend(looked_at + closed_.size() * std::bit_width(closed_.size()) / 8, place());
    std::sort(closed_.begin(), closed_.end());
    return closed_;
  }

  int32_t state_of(Nodes& seed) {
    const Nodes& nodes = closure(seed);
    const auto [index, is_new] = subsets_.add(nodes);
    if (!is_new) return index;
    const Node accept = grammar_.rules_[rule_].accept;
    ConstraintMachine::State state;
    state.accepting = std::binary_search(nodes.begin(), nodes.end(), accept);
    work_.spend(kStateWork, place());
    held_.add(kStateBytes + nodes.size() * sizeof(Node) + machine_.num_classes * sizeof(int32_t),
              place());
    states_.push_back(std::move(state));
    return index;
  }
  int32_t state_of(Nodes&& seed) { return state_of(seed); }

  void expand(size_t state) {
    const auto subset = subsets_[state];
    nodes_.assign(subset.begin(), subset.end());  // adding states moves the subsets
    std::map<int32_t, Nodes> calls, marks;
    uint64_t looked_at = 0;
    for (const Node node : nodes_) {
      for_each_edge(node_of(node).first_edge, [&](const GrammarBuilder::Edge& edge) {
        ++looked_at;
        if (edge.kind == EdgeKind::kBytes) {
          const size_t last = machine_.class_of[edge.high];
          for (size_t c = machine_.class_of[edge.low]; c <= last; ++c) {
            targets_[c].push_back(edge.to);
          }
        } else {
          (edge.kind == EdgeKind::kCall ? calls : marks)[edge.what].push_back(edge.to);
        }
      });
    }
    work_.spend(looked_at, place());
    const Rows::Row steps = steps_.add(machine_.num_classes);
    std::ranges::fill(steps, -1);
    step_rows_.push_back(steps);
    bool reads = !marks.empty();
    for (size_t c = 0; c < targets_.size(); ++c) {
      if (targets_[c].empty()) continue;
      reads = true;
      steps[c] = state_of(targets_[c]);
    }
    for (auto& [called, to] : calls) {
      const int32_t next = state_of(to);
      states_[state].calls.emplace_back(called, next);
    }
    for (auto& [mark, to] : marks) {
      const int32_t next = state_of(to);
      states_[state].marks.emplace_back(mark, next);
    }
    const size_t num_edges = calls.size() + marks.size();
    held_.add(num_edges * sizeof(std::pair<int32_t, int32_t>), place());
    states_[state].reads = reads;
  }

  // States that stand for one marked node each.
  void set_likes() {
    for (size_t i = 0; i < subsets_.size(); ++i) {
      if (subsets_[i].size() != 1) continue;
      const auto& node = grammar_.nodes_[static_cast<size_t>(subsets_[i].front())];
      if (node.like < 0) continue;
      const GrammarBuilder::Like& like = grammar_.likes_[static_cast<size_t>(node.like)];
      rule_ = 0;
      states_[i].like = state_of(Nodes(1, like.original));
      states_[i].chars_min = like.chars_min;
      states_[i].chars_max = like.chars_max;
    }
    CHECK_EQ(states_.size(), num_expanded_);  // all of them were known
  }

  // What the search took is given back before what comes after it begins.
  void collect_steps() {
    subsets_ = {};
    reached_ = {};
    grammar_.nodes_ = {};
    grammar_.edges_ = {};
    machine_.steps.reserve(step_rows_.size() * machine_.num_classes);
    for (const Rows::Row row : step_rows_) {
      machine_.steps.insert(machine_.steps.end(), row.begin(), row.end());
    }
    step_rows_ = {};
    steps_ = {};
    machine_.states.assign(std::make_move_iterator(states_.begin()),
                           std::make_move_iterator(states_.end()));
    states_ = {};
    held_.give_back_all_but(machine_.steps.size() * sizeof(int32_t) +
                            machine_.states.size() * kStateBytes);
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

  // Who waits for the cost of each state: lists of edges, state after state.
  struct Waiting {
    struct Edge {
      int32_t from;
      int32_t other;  // of a call: known once this one's cost is, too; -1: a step
    };
    std::vector<uint32_t> begins;  // [states + 1]
    std::vector<Edge> edges;
  };

  // look(to, edge) for each way on from each state.
  template <typename Look>
  void for_each_way(Look look) const {
    for (size_t i = 0; i < machine_.states.size(); ++i) {
      const auto& state = machine_.states[i];
      const auto index = static_cast<int32_t>(i);
      int32_t last = -1;
      for (size_t c = 0; c < machine_.num_classes; ++c) {
        const int32_t to = machine_.steps[i * machine_.num_classes + c];
        if (to >= 0 && to != last) look(to, Waiting::Edge{index, -1});
        last = to;
      }
      for (const auto& [mark, to] : state.marks) look(to, Waiting::Edge{index, -1});
      for (const auto& [rule, to] : state.calls) {
        look(start(rule), Waiting::Edge{index, to});
        look(to, Waiting::Edge{index, start(rule)});
      }
    }
  }

  Waiting find_waiting() {
    Waiting out;
    out.begins.assign(machine_.states.size() + 1, 0);
    for_each_way([&](int32_t to, Waiting::Edge) { ++out.begins[static_cast<size_t>(to) + 1]; });
    std::partial_sum(out.begins.begin(), out.begins.end(), out.begins.begin());
    work_.spend(out.begins.back() + machine_.steps.size() / 16, "it");
    // The edges, and at most as many places in the heap.
    held_.add(out.begins.back() * 3 * sizeof(Waiting::Edge), "it");
    out.edges.resize(out.begins.back());
    std::vector<uint32_t> ends(out.begins.begin(), out.begins.end() - 1);
    for_each_way(
        [&](int32_t to, Waiting::Edge edge) { out.edges[ends[static_cast<size_t>(to)]++] = edge; });
    return out;
  }

  // Least bytes to the end of the rule, the cheapest states first: a cost that is taken from the
  // heap is final, and each edge is looked at once. A call costs its rule and what is behind it.
  // Source: Knuth, A Generalization of Dijkstra's Algorithm (1977).
  void find_costs() {
    const Waiting waiting = find_waiting();
    using Entry = std::pair<int64_t, int32_t>;
    std::priority_queue<Entry, std::vector<Entry>, std::greater<>> open;
    for (size_t i = 0; i < machine_.states.size(); ++i) {
      auto& state = machine_.states[i];
      state.cost = state.accepting ? 0 : kNoCompletion;
      if (state.accepting) open.emplace(0, static_cast<int32_t>(i));
    }
    std::vector<bool> is_final(machine_.states.size(), false);
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
      for (uint32_t e = waiting.begins[at]; e < waiting.begins[at + 1]; ++e) {
        const Waiting::Edge& edge = waiting.edges[e];
        if (edge.other < 0) {
          relax(edge.from, cost + 1);
        } else if (const auto other = static_cast<size_t>(edge.other); is_final[other]) {
          relax(edge.from, cost + machine_.states[other].cost);
        }
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

  GrammarBuilder& grammar_;
  CompileWork& work_;
  HeldMemory held_;
  ConstraintMachine machine_;
  size_t rule_ = 0;  // the one at work
  std::deque<ConstraintMachine::State> states_;
  Rows steps_;
  std::deque<Rows::Row> step_rows_;  // of each expanded state
  size_t num_expanded_ = 0;          // of machine_.states, from the first on
  SubsetTable subsets_;              // [states]
  std::vector<uint32_t> reached_;    // [nodes] the last round of closure() that reached it
  uint32_t round_ = 0;
  // Working memory.
  Nodes closed_, nodes_;
  std::vector<Nodes> targets_;  // [classes]
  enum class Look : uint8_t { kNot, kNow, kDone };
  std::vector<Look> looked_at_;  // [rules]
};

int32_t GrammarBuilder::add_rule(std::string_view place) {
  const Node start = node();
  const Node accept = node();
  rules_.push_back({start, accept});
  places_.emplace_back(place.substr(0, kPlaceBytesMax));
  held_.add(sizeof(Rule) + sizeof(std::string) + kPlaceBytesMax, "it");
  return static_cast<int32_t>(rules_.size()) - 1;
}

GrammarBuilder::Node GrammarBuilder::node() {
  held_.add(sizeof(NodeData), "it");
  nodes_.emplace_back();
  return static_cast<Node>(nodes_.size()) - 1;
}

void GrammarBuilder::add_edge(Node from, Edge edge) {
  work_.spend(1, "it");
  held_.add(sizeof(Edge), "it");
  NodeData& node = nodes_[static_cast<size_t>(from)];
  int32_t& first = edge.kind == EdgeKind::kEmpty ? node.first_empty : node.first_edge;
  edge.next = std::exchange(first, static_cast<int32_t>(edges_.size()));
  edges_.push_back(edge);
}

void GrammarBuilder::bytes(Node from, uint8_t low, uint8_t high, Node to) {
  CHECK_LE(low, high);
  add_edge(from, {.kind = EdgeKind::kBytes, .low = low, .high = high, .to = to});
}

void GrammarBuilder::empty(Node from, Node to) {
  add_edge(from, {.kind = EdgeKind::kEmpty, .to = to});
}

void GrammarBuilder::call(Node from, int32_t rule, Node to) {
  add_edge(from, {.kind = EdgeKind::kCall, .what = rule, .to = to});
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
  add_edge(from,
           {.kind = EdgeKind::kMark, .what = static_cast<int32_t>(at - marks_.begin()), .to = to});
  return to;
}

void GrammarBuilder::set_like(Node node, Node original, int32_t chars_min, int32_t chars_max) {
  held_.add(sizeof(Like), "it");
  nodes_[static_cast<size_t>(node)].like = static_cast<int32_t>(likes_.size());
  likes_.push_back({original, chars_min, chars_max});
}

Result<ConstraintMachine> GrammarBuilder::compile(int32_t top) {
  try {
    return GrammarCompiler(*this).run(top);
  } catch (const Error& error) {
    return error;
  }
}

}  // namespace atl::constrain
