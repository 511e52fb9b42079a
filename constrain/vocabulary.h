// The tokens of a vocabulary as a tree over bytes, walked by a constraint to find what may come.
#pragma once

#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "constrain/json_constraint.h"

namespace atl::constrain {

// What one state of a machine allows by itself, whatever its stack.
struct StateTokens {
  // Characters of a string that the bytes finish or begin, if the state is within a string of rule
  // 0; else 0.
  struct Token {
    int32_t id = 0;
    int32_t num_chars = 0;
  };
  struct End {
    int32_t node = 0;
    int32_t num_chars = 0;
  };
  // Tokens that stay within the state's rule and what it calls, by the least bytes from there to
  // the end of the rule; of each cost in ascending num_chars.
  std::vector<std::pair<int64_t, std::vector<Token>>> by_cost;
  // Nodes of the tree at which the rule may end: what follows is up to the caller of the rule.
  std::vector<End> ends;
  uint64_t work = 0;  // steps that finding them took

  size_t num_ids() const;
};

// Nodes in preorder; added tokens and tokens that are too long are left out.
struct ConstraintVocabulary::Trie {
  std::vector<uint8_t> byte;
  std::vector<uint16_t> depth;       // from 1
  std::vector<int32_t> subtree_end;  // the first node behind the node's subtree
  std::vector<int32_t> token_begin;  // [nodes + 1] into tokens: those that end at the node
  std::vector<int32_t> tokens;
  int32_t depth_max = 0;

  int32_t num_nodes() const { return static_cast<int32_t>(byte.size()); }

  // Of the states of rule 0 (any string), which every machine has.
  std::vector<std::shared_ptr<const StateTokens>> shared;
};

// What was found for the states of a machine, whoever asked for it first. What was used least
// lately is forgotten. Any thread.
class ConstraintVocabulary::Lists {
 public:
  using Tokens = std::shared_ptr<const StateTokens>;

  Tokens find(uint64_t machine, int32_t state);  // null: not there
  void keep(uint64_t machine, int32_t state, Tokens tokens);

 private:
  using Key = std::pair<uint64_t, int32_t>;
  using Entries = std::list<std::pair<Key, Tokens>>;

  std::mutex mutex_;
  Entries entries_;  // last used first
  std::map<Key, Entries::iterator> by_key_;
  size_t num_ids_ = 0;
};

}  // namespace atl::constrain
