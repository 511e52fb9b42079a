// Sets of strings as deterministic automata over code points: what patterns, lengths, names and
// their opposites have in common.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "constrain/compile_work.h"
#include "constrain/grammar.h"
#include "constrain/pattern.h"

namespace atl::constrain {

// A value. Making one counts as work of compiling, and throws as CompileWork says.
class CharAutomaton {
 public:
  static CharAutomaton any(CompileWork& work) { return of_length(0, -1, work); }
  // min to max characters; max -1: without end.
  static CharAutomaton of_length(int64_t min, int64_t max, CompileWork& work);
  static CharAutomaton of_words(std::span<const std::string> words, CompileWork& work);
  // kInvalid as parse_pattern().
  static Result<CharAutomaton> of_pattern(std::string_view pattern, CompileWork& work);

  CharAutomaton both(const CharAutomaton& other, CompileWork& work) const;
  CharAutomaton opposite(CompileWork& work) const;

  bool empty() const { return states_.empty(); }  // no string
  size_t num_states() const { return states_.size(); }
  bool accepts(std::string_view text) const;

  // The strings as they stand within JSON's quotes, each character in its usual form.
  GrammarBuilder::Node add_to(GrammarBuilder& grammar, GrammarBuilder::Node from) const;
  // The strings as they are, without JSON.
  GrammarBuilder::Node add_plain_to(GrammarBuilder& grammar, GrammarBuilder::Node from) const;

 private:
  struct Step {
    uint32_t low = 0, high = 0;
    int32_t to = -1;
  };
  struct State {
    bool accepting = false;
    std::vector<Step> steps;  // sorted, without overlaps; what isn't there is refused
  };
  GrammarBuilder::Node add(GrammarBuilder& grammar, GrammarBuilder::Node from, bool plain) const;
  static CharAutomaton of_parsed(const Pattern& pattern, CompileWork& work);
  void drop_dead_ends();

  std::vector<State> states_;  // the first one is the start; none: no string
};

}  // namespace atl::constrain
