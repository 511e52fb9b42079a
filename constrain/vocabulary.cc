#include "constrain/vocabulary.h"

#include <algorithm>
#include <string_view>

#include "constrain/sequence.h"

namespace atl::constrain {
namespace {

// Published tokens have at most some hundreds.
constexpr size_t kTokenBytesMax = 2048;
// Of all lists together: 8 bytes each.
constexpr size_t kListIdsMax = size_t{16} << 20;

std::vector<std::pair<std::string_view, int32_t>> sorted_tokens(const text::Tokenizer& tokenizer) {
  std::vector<std::pair<std::string_view, int32_t>> out;
  for (int32_t id = 0; id < tokenizer.id_end(); ++id) {
    const std::string_view bytes = tokenizer.token_bytes(id);
    if (bytes.empty() || tokenizer.is_added(id) || bytes.size() > kTokenBytesMax) continue;
    out.emplace_back(bytes, id);
  }
  std::sort(out.begin(), out.end());
  return out;
}

// In sorted order each token adds the nodes that it doesn't share with the one before.
void add_nodes(const std::vector<std::pair<std::string_view, int32_t>>& tokens,
               ConstraintVocabulary::Trie& trie) {
  std::vector<int32_t> path;  // the nodes of the token before
  std::string_view before;
  for (const auto& [bytes, id] : tokens) {
    const auto shared = static_cast<size_t>(
        std::mismatch(bytes.begin(), bytes.end(), before.begin(), before.end()).first -
        bytes.begin());
    for (; path.size() > shared; path.pop_back()) {
      trie.subtree_end[static_cast<size_t>(path.back())] = trie.num_nodes();
    }
    for (size_t i = shared; i < bytes.size(); ++i) {
      path.push_back(trie.num_nodes());
      trie.byte.push_back(static_cast<uint8_t>(bytes[i]));
      trie.depth.push_back(static_cast<uint16_t>(i + 1));
      trie.subtree_end.push_back(0);
      trie.token_begin.push_back(static_cast<int32_t>(trie.tokens.size()));
    }
    trie.tokens.push_back(id);
    trie.depth_max = std::max(trie.depth_max, static_cast<int32_t>(bytes.size()));
    before = bytes;
  }
  for (int32_t node : path) trie.subtree_end[static_cast<size_t>(node)] = trie.num_nodes();
  trie.token_begin.push_back(static_cast<int32_t>(trie.tokens.size()));
}

}  // namespace

ConstraintVocabulary::ConstraintVocabulary(const text::Tokenizer& tokenizer,
                                           std::vector<int32_t> stop_ids)
    : tokenizer_(tokenizer), stop_ids_(std::move(stop_ids)), lists_(std::make_unique<Lists>()) {
  auto trie = std::make_unique<Trie>();
  add_nodes(sorted_tokens(tokenizer), *trie);
  find_shared_tokens(*trie);
  trie_ = std::move(trie);
}

ConstraintVocabulary::~ConstraintVocabulary() = default;

size_t StateTokens::num_ids() const {
  size_t sum = ends.size();
  for (const auto& [cost, tokens] : by_cost) sum += tokens.size();
  return sum;
}

ConstraintVocabulary::Lists::Tokens ConstraintVocabulary::Lists::find(uint64_t machine,
                                                                      int32_t state) {
  const std::lock_guard lock(mutex_);
  const auto found = by_key_.find({machine, state});
  if (found == by_key_.end()) return nullptr;
  entries_.splice(entries_.begin(), entries_, found->second);
  return found->second->second;
}

void ConstraintVocabulary::Lists::keep(uint64_t machine, int32_t state, Tokens tokens) {
  const std::lock_guard lock(mutex_);
  const Key key{machine, state};
  if (by_key_.contains(key)) return;  // two have found it at once
  num_ids_ += tokens->num_ids();
  entries_.emplace_front(key, std::move(tokens));
  by_key_.emplace(key, entries_.begin());
  while (num_ids_ > kListIdsMax && entries_.size() > 1) {
    num_ids_ -= entries_.back().second->num_ids();
    by_key_.erase(entries_.back().first);
    entries_.pop_back();
  }
}

}  // namespace atl::constrain
