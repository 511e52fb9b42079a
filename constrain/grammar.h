// Grammars over bytes, and the pushdown machine that they are compiled to.
//
// A grammar is a list of rules. Each rule is a finite automaton whose steps are a byte range, a
// mark (a text that may be one token), or a call of a rule. Compiling makes the automata
// deterministic and finds for each state the least number of bytes (a mark that is a token counts
// as one) to the end of its rule; what can't be completed is cut off.
#pragma once

#include <cstdint>
#include <deque>
#include <limits>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/result.h"
#include "constrain/compile_work.h"

namespace atl::constrain {

inline constexpr int64_t kNoCompletion = std::numeric_limits<int32_t>::max();

inline constexpr int32_t kAnyNumber = std::numeric_limits<int32_t>::max();

struct ConstraintMachine {
  struct State {
    bool accepting = false;  // its rule may end here
    bool plain = false;      // steps are bytes only, and it isn't accepting
    bool reads = false;      // has a step of a byte or mark, or is like a state that has
    bool only_ends = false;  // it accepts, and there is nothing else to do
    // A state of rule 0 (any string) that offers the same, but that the string must still get
    // chars_min and may at most get chars_max characters; -1: none.
    int32_t like = -1;
    int32_t chars_min = 0, chars_max = kAnyNumber;
    int64_t cost = 0;                                // least bytes to the end of the rule
    std::vector<std::pair<int32_t, int32_t>> calls;  // rule, state behind it
    std::vector<std::pair<int32_t, int32_t>> marks;  // mark, state behind it
  };

  int32_t next(int32_t state, uint8_t byte) const {
    return steps[static_cast<size_t>(state) * num_classes + class_of[byte]];
  }

  std::vector<State> states;
  uint8_t class_of[256] = {};
  size_t num_classes = 0;
  std::vector<int32_t> steps;        // [states, num_classes] next state or -1
  std::vector<int32_t> rule_starts;  // [rules]
  std::vector<std::string> marks;    // texts; empty if they are spelled in bytes
  int32_t top = 0;                   // the rule of the whole text
  int32_t num_shared_states = 0;     // of rule 0: the same in every machine
};

// Counts what it makes as work of compiling (compile_work.h), and throws as that says.
class GrammarBuilder {
 public:
  using Node = int32_t;
  struct Rule {
    Node start = 0, accept = 0;
  };

  // Borrows the work.
  explicit GrammarBuilder(CompileWork& work) : work_(work), held_(work) {}

  // `place` is named if making the rule deterministic is too much work.
  int32_t add_rule(std::string_view place = "it");
  Rule rule(int32_t id) const { return rules_[static_cast<size_t>(id)]; }
  CompileWork& work() const { return work_; }

  // All nodes joined by steps belong to one rule.
  Node node();
  void bytes(Node from, uint8_t low, uint8_t high, Node to);
  void byte(Node from, char byte, Node to) {
    bytes(from, static_cast<uint8_t>(byte), static_cast<uint8_t>(byte), to);
  }
  void empty(Node from, Node to);
  void call(Node from, int32_t rule, Node to);
  // From `from`; returns where it ends.
  Node literal(Node from, std::string_view text);
  // A mark: one token if `marks_are_tokens`, else its bytes.
  Node mark(Node from, std::string_view text);
  // `node` offers what `original`, a node of rule 0, does, within these numbers of characters. Its
  // own steps must say the same, with calls for the characters: this only saves looking at them.
  void set_like(Node node, Node original, int32_t chars_min, int32_t chars_max);

  bool marks_are_tokens = false;

  // kInvalid: nothing fulfils the grammar, a rule only calls itself, or it is too large;
  // kUnavailable: it was asked to stop. Once: it takes the grammar with it.
  Result<ConstraintMachine> compile(int32_t top);

 private:
  friend class GrammarCompiler;
  enum class EdgeKind : uint8_t { kBytes, kEmpty, kCall, kMark };
  // A node has a list of those that take nothing, and one of the others.
  struct Edge {
    EdgeKind kind = EdgeKind::kEmpty;
    uint8_t low = 0, high = 0;  // of kBytes
    int32_t what = 0;           // the rule of kCall, the mark of kMark
    Node to = 0;
    int32_t next = -1;
  };
  struct NodeData {
    int32_t first_empty = -1, first_edge = -1;
    int32_t like = -1;  // in likes_
  };
  struct Like {
    Node original = -1;
    int32_t chars_min = 0, chars_max = kAnyNumber;
  };
  void add_edge(Node from, Edge edge);

  CompileWork& work_;
  HeldMemory held_;
  std::deque<NodeData> nodes_;
  std::deque<Edge> edges_;
  std::deque<Like> likes_;
  std::vector<Rule> rules_;
  std::vector<std::string> places_;  // [rules], cut to kPlaceBytesMax
  std::vector<std::string> marks_;
};

}  // namespace atl::constrain
