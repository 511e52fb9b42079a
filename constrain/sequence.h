// A constraint at work on one sequence.
#pragma once

#include <memory>
#include <string>

#include "constrain/grammar.h"
#include "constrain/json_constraint.h"
#include "constrain/token_constraint.h"

namespace atl::constrain {

struct CompiledConstraint {
  ConstraintMachine machine;
  int32_t led_top = 0;            // the rule of the whole text with up to two line ends before it
  const uint64_t id = next_id();  // of all machines of this process

  static uint64_t next_id();
};

// A sequence nests at most this deep; beyond it only the shortest completion is allowed, so that
// no parser of the text runs out of stack.
inline constexpr int32_t kConstraintDepthMax = 64;

std::unique_ptr<TokenConstraint> make_constraint_sequence(
    std::shared_ptr<const CompiledConstraint> compiled, const ConstraintVocabulary& vocabulary,
    const ConstraintOptions& options);

// Finds what every state of any string allows, so that no request waits for it (some milliseconds).
void find_shared_tokens(ConstraintVocabulary::Trie& trie);

}  // namespace atl::constrain
