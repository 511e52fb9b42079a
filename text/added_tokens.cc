#include "text/added_tokens.h"

namespace atl::text {

int32_t AddedTokenMatcher::child(int32_t node, uint8_t byte) const {
  for (const auto& [label, target] : nodes_[node].children) {
    if (label == byte) return target;
  }
  return -1;
}

void AddedTokenMatcher::add(std::string_view content, int32_t id) {
  int32_t node = 0;
  for (char c : content) {
    const auto byte = static_cast<uint8_t>(c);
    int32_t next = child(node, byte);
    if (next < 0) {
      next = static_cast<int32_t>(nodes_.size());
      nodes_[node].children.emplace_back(byte, next);
      nodes_.emplace_back();
    }
    node = next;
  }
  nodes_[node].id = id;
}

std::pair<size_t, int32_t> AddedTokenMatcher::match(std::string_view text) const {
  std::pair<size_t, int32_t> longest{0, -1};
  int32_t node = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    node = child(node, static_cast<uint8_t>(text[i]));
    if (node < 0) break;
    if (nodes_[node].id >= 0) longest = {i + 1, nodes_[node].id};
  }
  return longest;
}

void AddedTokenMatcher::split(std::string_view text, std::vector<TextSegment>& out) const {
  size_t done = 0;
  const auto append_text = [&](size_t end) {
    if (end > done) out.push_back({text.substr(done, end - done), -1});
  };
  for (size_t at = 0; at < text.size();) {
    const auto [length, id] = match(text.substr(at));
    if (length == 0) {
      ++at;
      continue;
    }
    append_text(at);
    out.push_back({text.substr(at, length), id});
    done = at = at + length;
  }
  append_text(text.size());
}

}  // namespace atl::text
