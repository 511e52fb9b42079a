// Byte-pair merging inside one piece of text.
#pragma once

#include <array>
#include <cstdint>
#include <stop_token>
#include <string_view>
#include <vector>

namespace atl::text {

// One merge rule: the tokens `left` and `right`, side by side, become `merged`.
struct MergeRule {
  int32_t left = 0;
  int32_t right = 0;
  int32_t merged = 0;
  int32_t rank = -1;  // -1: its place in the list
};

// Starts from single bytes and merges the adjacent pair of the lowest rank, leftmost first, until
// no pair has a rule: O(n log n) for n bytes, by a heap of pairs over a linked list. Immutable, any
// thread. Source: Sennrich et al. 2016, "Neural Machine Translation of Rare Words with Subword
// Units"; the order is that of the Hugging Face tokenizers library.
class BytePairEncoder {
 public:
  // byte_ids[b] is the token of byte b; of rules with the same pair the last one counts. Ids >= 0.
  BytePairEncoder(const std::array<int32_t, 256>& byte_ids, const std::vector<MergeRule>& rules);

  // Working memory for encode(), reused between calls by one thread at a time.
  struct Scratch {
    struct Symbol {
      int32_t id = 0;
      int32_t previous = 0;  // places in `symbols`; -1: none
      int32_t next = 0;
      bool alive = false;
    };
    struct Candidate {
      uint32_t rank = 0;
      int32_t left = 0;  // place of the left symbol
      int32_t merged = 0;
    };
    std::vector<Symbol> symbols;
    std::vector<Candidate> heap;
    uint64_t heap_operations = 0;  // pushes and pops since the scratch was made
    std::stop_token stop;          // looked at now and then
    bool stopped = false;          // it was asked to: the ids are not whole

    // To be called in loops: whether to go on.
    bool goes_on() {
      if (--steps_to_look > 0) return true;
      steps_to_look = kStepsBetweenLooks;
      return !(stopped = stop.stop_requested());
    }
    static constexpr int kStepsBetweenLooks = 4096;
    int steps_to_look = kStepsBetweenLooks;
  };

  // Appends the token ids of `bytes` (below 2 GiB) to `ids`.
  void encode(std::string_view bytes, Scratch& scratch, std::vector<int32_t>& ids) const;

 private:
  struct Slot {
    uint64_t pair = kEmpty;
    uint32_t rank = 0;
    int32_t merged = 0;
  };
  static constexpr uint64_t kEmpty = ~uint64_t{0};

  const Slot* find(int32_t left, int32_t right) const;
  void push_pair(Scratch& scratch, int32_t left, int32_t right) const;

  std::array<int32_t, 256> byte_ids_;
  std::vector<Slot> slots_;  // open addressing, a power of two, at most half full
};

}  // namespace atl::text
