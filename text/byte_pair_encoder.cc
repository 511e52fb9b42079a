#include "text/byte_pair_encoder.h"

#include <algorithm>
#include <bit>

#include "base/check.h"

namespace atl::text {
namespace {

uint64_t pair_key(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

// Fibonacci hashing: the upper half of the product mixes all bits of the key.
size_t hash(uint64_t key) { return static_cast<size_t>((key * 0x9E3779B97F4A7C15u) >> 32); }

// The heap's top is the lowest rank and, of these, the leftmost.
bool comes_later(const BytePairEncoder::Scratch::Candidate& a,
                 const BytePairEncoder::Scratch::Candidate& b) {
  return a.rank != b.rank ? a.rank > b.rank : a.left > b.left;
}

}  // namespace

BytePairEncoder::BytePairEncoder(const std::array<int32_t, 256>& byte_ids,
                                 const std::vector<MergeRule>& rules)
    : byte_ids_(byte_ids), slots_(std::bit_ceil(2 * rules.size() + 2)) {
  CHECK_LT(rules.size(), size_t{1} << 31);
  for (size_t i = 0; i < rules.size(); ++i) {
    const MergeRule& rule = rules[i];
    const uint64_t key = pair_key(rule.left, rule.right);
    size_t at = hash(key) & (slots_.size() - 1);
    while (slots_[at].pair != kEmpty && slots_[at].pair != key) at = (at + 1) & (slots_.size() - 1);
    const auto rank = rule.rank >= 0 ? static_cast<uint32_t>(rule.rank) : static_cast<uint32_t>(i);
    slots_[at] = {key, rank, rule.merged};
  }
}

const BytePairEncoder::Slot* BytePairEncoder::find(int32_t left, int32_t right) const {
  const uint64_t key = pair_key(left, right);
  size_t at = hash(key) & (slots_.size() - 1);
  while (slots_[at].pair != kEmpty) {
    if (slots_[at].pair == key) return &slots_[at];
    at = (at + 1) & (slots_.size() - 1);
  }
  return nullptr;
}

void BytePairEncoder::push_pair(Scratch& scratch, int32_t left, int32_t right) const {
  const Slot* slot = find(scratch.symbols[left].id, scratch.symbols[right].id);
  if (slot == nullptr) return;
  scratch.heap.push_back({slot->rank, left, slot->merged});
  std::push_heap(scratch.heap.begin(), scratch.heap.end(), comes_later);
  ++scratch.heap_operations;
}

void BytePairEncoder::encode(std::string_view bytes, Scratch& scratch,
                             std::vector<int32_t>& ids) const {
  CHECK_LT(bytes.size(), size_t{1} << 31);
  const auto n = static_cast<int32_t>(bytes.size());
  auto& symbols = scratch.symbols;
  symbols.resize(bytes.size());
  scratch.heap.clear();
  for (int32_t i = 0; i < n; ++i) {
    const int32_t id = byte_ids_[static_cast<uint8_t>(bytes[i])];
    symbols[i] = {id, i - 1, i + 1 < n ? i + 1 : -1, true};
  }
  for (int32_t i = 0; i + 1 < n; ++i) push_pair(scratch, i, i + 1);

  while (!scratch.heap.empty()) {
    if (!scratch.goes_on()) return;
    std::pop_heap(scratch.heap.begin(), scratch.heap.end(), comes_later);
    const Scratch::Candidate best = scratch.heap.back();
    scratch.heap.pop_back();
    ++scratch.heap_operations;
    // An entry is stale when one of its symbols has been merged since: then its pair is another.
    Scratch::Symbol& left = symbols[best.left];
    if (!left.alive || left.next < 0) continue;
    Scratch::Symbol& right = symbols[left.next];
    const Slot* slot = find(left.id, right.id);
    if (slot == nullptr || slot->rank != best.rank) continue;
    left.id = best.merged;
    right.alive = false;
    left.next = right.next;
    if (left.next >= 0) symbols[left.next].previous = best.left;
    if (left.previous >= 0) push_pair(scratch, left.previous, best.left);
    if (left.next >= 0) push_pair(scratch, best.left, left.next);
  }
  for (int32_t i = 0; i >= 0 && i < n; i = symbols[i].next) ids.push_back(symbols[i].id);
}

}  // namespace atl::text
