// Finds a tokenizer's added tokens ("<｜User｜>") in raw text, before anything else looks at it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace atl::text {

// A stretch of text: an added token, or (id -1) text between them.
struct TextSegment {
  std::string_view text;
  int32_t id = -1;
};

// A trie over the tokens' bytes. Immutable, any thread. At each position the longest token wins;
// time is bytes of text x bytes of the longest token at worst.
class AddedTokenMatcher {
 public:
  AddedTokenMatcher() : nodes_(1) {}

  // `content` isn't empty; the last of equal contents counts.
  void add(std::string_view content, int32_t id);

  // Appends the segments of `text` in order: leftmost match first, none empty.
  void split(std::string_view text, std::vector<TextSegment>& out) const;

 private:
  struct Node {
    int32_t id = -1;
    std::vector<std::pair<uint8_t, int32_t>> children;  // byte, node
  };
  int32_t child(int32_t node, uint8_t byte) const;
  // The longest token that starts `text`: its bytes (0: none) and id.
  std::pair<size_t, int32_t> match(std::string_view text) const;

  std::vector<Node> nodes_;
};

}  // namespace atl::text
