#include "constrain/vocabulary.h"

#include <algorithm>
#include <string_view>

#include "constrain/sequence.h"

namespace atl::constrain {
namespace {

// Published tokens have at most some hundreds.
constexpr size_t kTokenBytesMax = 2048;

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
    : tokenizer_(tokenizer), stop_ids_(std::move(stop_ids)) {
  auto trie = std::make_unique<Trie>();
  add_nodes(sorted_tokens(tokenizer), *trie);
  find_shared_tokens(*trie);
  trie_ = std::move(trie);
}

ConstraintVocabulary::~ConstraintVocabulary() = default;

}  // namespace atl::constrain
