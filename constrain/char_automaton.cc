#include "constrain/char_automaton.h"

#include <algorithm>
#include <map>
#include <utility>

#include "constrain/json_text_grammar.h"
#include "text/utf8.h"

namespace atl::constrain {
namespace {

constexpr std::string_view kWhat = "a pattern or a length";
// Of work: for a state, and for one of its steps. Memory is bounded with it.
constexpr uint64_t kStateSteps = 48, kStepSteps = 8;
const CodePoints kAll = {{0, 0xD7FF}, {0xE000, 0x10FFFF}};

// Nodes with steps of sets of characters, and steps that take nothing.
struct Steps {
  struct Node {
    std::vector<int32_t> empty;
    std::vector<std::pair<CodePoints, int32_t>> sets;
  };
  std::vector<Node> nodes;
  CompileWork& work;

  int32_t node() {
    work.spend(1, kWhat);
    nodes.emplace_back();
    return static_cast<int32_t>(nodes.size()) - 1;
  }
  void join(int32_t from, int32_t to) { nodes[static_cast<size_t>(from)].empty.push_back(to); }

  int32_t add(int32_t from, const Pattern& pattern) {
    switch (pattern.kind) {
      case Pattern::Kind::kSet: {
        const int32_t to = node();
        work.spend(pattern.set.size(), kWhat);
        nodes[static_cast<size_t>(from)].sets.emplace_back(normalised(pattern.set), to);
        return to;
      }
      case Pattern::Kind::kSequence:
        for (const Pattern& part : pattern.parts) from = add(from, part);
        return from;
      case Pattern::Kind::kChoice: {
        const int32_t to = node();
        for (const Pattern& part : pattern.parts) join(add(from, part), to);
        return to;
      }
      case Pattern::Kind::kRepeat:
        break;
    }
    for (int64_t i = 0; i < pattern.min; ++i) from = add(from, pattern.parts[0]);
    const int32_t to = node();
    join(from, to);
    if (pattern.max < 0) {
      const int32_t begin = node();
      join(from, begin);
      const int32_t end = add(begin, pattern.parts[0]);
      join(end, begin);
      join(end, to);
      return to;
    }
    for (int64_t i = pattern.min; i < pattern.max; ++i) {
      from = add(from, pattern.parts[0]);
      join(from, to);
    }
    return to;
  }

  // What is reached without a character, sorted.
  std::vector<int32_t> closure(std::vector<int32_t> open) const {
    std::vector<bool> seen(nodes.size(), false);
    std::vector<int32_t> out;
    while (!open.empty()) {
      const int32_t at = open.back();
      open.pop_back();
      if (seen[static_cast<size_t>(at)]) continue;
      seen[static_cast<size_t>(at)] = true;
      out.push_back(at);
      const auto& next = nodes[static_cast<size_t>(at)].empty;
      open.insert(open.end(), next.begin(), next.end());
    }
    work.spend(nodes.size() / 64 + 2 * out.size(), kWhat);
    std::sort(out.begin(), out.end());
    return out;
  }
};

}  // namespace

CharAutomaton CharAutomaton::of_length(int64_t min, int64_t max, CompileWork& work) {
  CharAutomaton out;
  if (max >= 0 && max < min) return out;
  const int64_t last = max >= 0 ? max : min;
  work.spend(static_cast<uint64_t>(last + 1) * kStateSteps, kWhat);
  for (int64_t i = 0; i <= last; ++i) {
    State& state = out.states_.emplace_back();
    state.accepting = i >= min;
    const auto to = static_cast<int32_t>(i < last ? i + 1 : last);
    if (i == last && max >= 0) continue;
    for (const auto& [low, high] : kAll) state.steps.push_back({low, high, to});
  }
  return out;
}

CharAutomaton CharAutomaton::of_words(std::span<const std::string> words, CompileWork& work) {
  std::vector<std::map<uint32_t, int32_t>> tree(1);
  std::vector<bool> accepting(1, false);
  for (const std::string& word : words) {
    work.spend(kStateSteps * (word.size() + 1), kWhat);
    size_t at = 0;
    for (std::string_view rest = word; !rest.empty();) {
      const text::Utf8Unit unit = text::next_utf8_unit(rest);
      rest.remove_prefix(unit.num_bytes);
      const auto [child, is_new] =
          tree[at].emplace(unit.code_point, static_cast<int32_t>(tree.size()));
      at = static_cast<size_t>(child->second);
      if (is_new) {
        tree.emplace_back();
        accepting.push_back(false);
      }
    }
    accepting[at] = true;
  }
  CharAutomaton out;
  if (words.empty()) return out;
  for (size_t i = 0; i < tree.size(); ++i) {
    State& state = out.states_.emplace_back();
    state.accepting = accepting[i];
    for (const auto& [c, to] : tree[i]) state.steps.push_back({c, c, to});
  }
  return out;
}

CharAutomaton CharAutomaton::of_parsed(const Pattern& pattern, CompileWork& work) {
  Steps steps{{}, work};
  const int32_t start = steps.node();
  const int32_t end = steps.add(start, pattern);
  CharAutomaton out;
  std::map<std::vector<int32_t>, int32_t> known;
  std::vector<std::vector<int32_t>> sets;
  const auto state_of = [&](std::vector<int32_t> seed) {
    std::vector<int32_t> set = steps.closure(std::move(seed));
    const auto [at, is_new] = known.emplace(set, static_cast<int32_t>(sets.size()));
    if (is_new) {
      out.states_.push_back({std::binary_search(set.begin(), set.end(), end), {}});
      sets.push_back(std::move(set));
      work.spend(kStateSteps, kWhat);
    }
    return at->second;
  };
  state_of({start});
  for (size_t i = 0; i < sets.size(); ++i) {
    // Between two of these every character leads to the same.
    std::map<uint32_t, std::vector<int32_t>> opens, closes;
    std::vector<uint32_t> bounds;
    for (const int32_t node : sets[i]) {
      for (const auto& [set, to] : steps.nodes[static_cast<size_t>(node)].sets) {
        for (const auto& [low, high] : set) {
          opens[low].push_back(to);
          closes[high + 1].push_back(to);
          bounds.push_back(low);
          bounds.push_back(high + 1);
        }
      }
    }
    work.spend(kStepSteps * bounds.size(), kWhat);
    std::sort(bounds.begin(), bounds.end());
    bounds.erase(std::unique(bounds.begin(), bounds.end()), bounds.end());
    std::map<int32_t, int> active;
    std::vector<Step> found;
    for (size_t b = 0; b < bounds.size(); ++b) {
      if (const auto at = closes.find(bounds[b]); at != closes.end()) {
        for (const int32_t to : at->second) {
          if (--active[to] == 0) active.erase(to);
        }
      }
      if (const auto at = opens.find(bounds[b]); at != opens.end()) {
        for (const int32_t to : at->second) ++active[to];
      }
      if (active.empty()) continue;
      std::vector<int32_t> seed;
      for (const auto& [to, count] : active) seed.push_back(to);
      const int32_t to = state_of(std::move(seed));
      const uint32_t high = bounds[b + 1] - 1;
      if (!found.empty() && found.back().to == to && found.back().high + 1 == bounds[b]) {
        found.back().high = high;
      } else {
        found.push_back({bounds[b], high, to});
      }
    }
    out.states_[i].steps = std::move(found);
  }
  out.drop_dead_ends();
  return out;
}

Result<CharAutomaton> CharAutomaton::of_pattern(std::string_view pattern, CompileWork& work) {
  const auto parsed = parse_pattern(pattern);
  if (!parsed) return parsed.error();
  CharAutomaton out = of_parsed(parsed->body, work);
  for (const ParsedPattern::Ahead& ahead : parsed->ahead) {
    const CharAutomaton other = of_parsed(ahead.whole, work);
    out = out.both(ahead.negative ? other.opposite(work) : other, work);
  }
  return out;
}

CharAutomaton CharAutomaton::both(const CharAutomaton& other, CompileWork& work) const {
  CharAutomaton out;
  if (empty() || other.empty()) return out;
  std::map<std::pair<int32_t, int32_t>, int32_t> known;
  std::vector<std::pair<int32_t, int32_t>> pairs;
  const auto state_of = [&](int32_t a, int32_t b) {
    const auto [at, is_new] = known.emplace(std::pair(a, b), static_cast<int32_t>(pairs.size()));
    if (is_new) {
      pairs.emplace_back(a, b);
      out.states_.push_back({states_[static_cast<size_t>(a)].accepting &&
                                 other.states_[static_cast<size_t>(b)].accepting,
                             {}});
      work.spend(kStateSteps, kWhat);
    }
    return at->second;
  };
  state_of(0, 0);
  for (size_t i = 0; i < pairs.size(); ++i) {
    const auto& x = states_[static_cast<size_t>(pairs[i].first)].steps;
    const auto& y = other.states_[static_cast<size_t>(pairs[i].second)].steps;
    work.spend(kStepSteps * (x.size() + y.size()), kWhat);
    std::vector<Step> found;
    for (size_t a = 0, b = 0; a < x.size() && b < y.size();) {
      const uint32_t low = std::max(x[a].low, y[b].low), high = std::min(x[a].high, y[b].high);
      if (low <= high) found.push_back({low, high, state_of(x[a].to, y[b].to)});
      x[a].high < y[b].high ? ++a : ++b;
    }
    out.states_[i].steps = std::move(found);
  }
  out.drop_dead_ends();
  return out;
}

CharAutomaton CharAutomaton::opposite(CompileWork& work) const {
  CharAutomaton out = *this;
  const auto all = static_cast<int32_t>(out.states_.size());  // accepts all that follows
  for (State& state : out.states_) {
    state.accepting = !state.accepting;
    std::vector<Step> steps;
    work.spend(kStepSteps * state.steps.size() + kStateSteps, kWhat);
    for (const auto& [begin, end] : kAll) {
      uint32_t next = begin;
      for (const Step& step : state.steps) {
        if (step.high < begin || step.low > end) continue;
        if (step.low > next) steps.push_back({next, step.low - 1, all});
        steps.push_back({std::max(step.low, begin), std::min(step.high, end), step.to});
        next = step.high + 1;
      }
      if (next <= end) steps.push_back({next, end, all});
    }
    state.steps = std::move(steps);
  }
  State rest{true, {}};
  for (const auto& [low, high] : kAll) rest.steps.push_back({low, high, all});
  out.states_.push_back(std::move(rest));
  out.drop_dead_ends();
  return out;
}

// Keeps the states that lead to an accepting one.
void CharAutomaton::drop_dead_ends() {
  std::vector<std::vector<int32_t>> before(states_.size());
  std::vector<int32_t> open;
  for (size_t i = 0; i < states_.size(); ++i) {
    for (const Step& step : states_[i].steps) {
      before[static_cast<size_t>(step.to)].push_back(static_cast<int32_t>(i));
    }
    if (states_[i].accepting) open.push_back(static_cast<int32_t>(i));
  }
  std::vector<int32_t> kept(states_.size(), -1);
  while (!open.empty()) {
    const auto at = static_cast<size_t>(open.back());
    open.pop_back();
    if (std::exchange(kept[at], 0) == 0) continue;
    open.insert(open.end(), before[at].begin(), before[at].end());
  }
  if (states_.empty() || kept[0] < 0) {
    states_.clear();
    return;
  }
  std::vector<State> out;
  for (size_t i = 0; i < states_.size(); ++i) {
    if (kept[i] < 0) continue;
    kept[i] = static_cast<int32_t>(out.size());
    out.push_back(std::move(states_[i]));
  }
  for (State& state : out) {
    std::erase_if(state.steps, [&](const Step& s) { return kept[static_cast<size_t>(s.to)] < 0; });
    for (Step& step : state.steps) step.to = kept[static_cast<size_t>(step.to)];
  }
  states_ = std::move(out);
}

bool CharAutomaton::accepts(std::string_view text) const {
  if (empty()) return false;
  size_t at = 0;
  while (!text.empty()) {
    const text::Utf8Unit unit = text::next_utf8_unit(text);
    text.remove_prefix(unit.num_bytes);
    const auto& steps = states_[at].steps;
    const auto step = std::find_if(steps.begin(), steps.end(), [&](const Step& s) {
      return s.low <= unit.code_point && unit.code_point <= s.high;
    });
    if (step == steps.end()) return false;
    at = static_cast<size_t>(step->to);
  }
  return states_[at].accepting;
}

GrammarBuilder::Node CharAutomaton::add_to(GrammarBuilder& grammar,
                                           GrammarBuilder::Node from) const {
  return add(grammar, from, false);
}

GrammarBuilder::Node CharAutomaton::add_plain_to(GrammarBuilder& grammar,
                                                 GrammarBuilder::Node from) const {
  return add(grammar, from, true);
}

GrammarBuilder::Node CharAutomaton::add(GrammarBuilder& grammar, GrammarBuilder::Node from,
                                        bool plain) const {
  const GrammarBuilder::Node end = grammar.node();
  std::vector<GrammarBuilder::Node> nodes;
  for (size_t i = 0; i < states_.size(); ++i) nodes.push_back(grammar.node());
  if (!nodes.empty()) grammar.empty(from, nodes[0]);
  for (size_t i = 0; i < states_.size(); ++i) {
    std::map<int32_t, CodePoints> sets;
    for (const Step& step : states_[i].steps) sets[step.to].emplace_back(step.low, step.high);
    for (const auto& [to, set] : sets) {
      const auto add_set = plain ? add_plain_character : add_character;
      add_set(grammar, nodes[i], set, nodes[static_cast<size_t>(to)]);
    }
    if (states_[i].accepting) grammar.empty(nodes[i], end);
  }
  return end;
}

}  // namespace atl::constrain
