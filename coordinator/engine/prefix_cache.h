// Who holds which blocks of the KV cache, and which blocks are kept for prompts that begin alike.
//
// A full block that was published is known by the block before it and its own 64 tokens, compared
// exactly: no hash decides what is equal, so no two prompts are ever taken for one another. A block
// may be held by several sequences; nobody writes into a published one. When its last holder lets
// go it is kept until its room is needed, least recently used first; the blocks at the end of a
// prompt go before those at its beginning.
//
// What a hit gives is bit for bit what computing would have given (docs/numbers.md).
#pragma once

#include <array>
#include <cstdint>
#include <list>
#include <span>
#include <unordered_map>
#include <vector>

#include "base/result.h"
#include "coordinator/engine/kv_cache.h"

namespace atl::coordinator {

// Used by the engine's thread.
class PrefixCache {
 public:
  // A place in the tree of known blocks: all blocks up to here. 0: the root, before any token.
  using Prefix = uint64_t;
  static constexpr int64_t kBlock = kernels::kAttentionBlock;

  explicit PrefixCache(KvCache& cache);  // borrowed

  // The blocks of the longest known prefix of tokens[0, n) that leaves at least one token to be
  // computed. Each is held once more. `prefix` gets the place after them.
  std::vector<BlockId> match(std::span<const int32_t> tokens, Prefix* prefix);
  // A block to write into, held once: a free one, or the least recently used kept one.
  // kOverloaded: all are held.
  Result<BlockId> allocate();
  // Makes a full block that the caller holds known. Returns the place after it. If an equal one is
  // known already, this one stays the caller's own.
  //   tokens  [64] of the block
  Prefix publish(Prefix before, std::span<const int32_t> tokens, BlockId block);
  // Lets go of blocks, given in the order of their positions.
  void release(std::span<const BlockId> blocks);
  // Forgets all that nobody holds.
  void clear();

  int64_t available() const { return cache_.free_blocks() + kept(); }  // for allocate()
  int64_t kept() const { return static_cast<int64_t>(lru_.size()); }
  int64_t held() const { return cache_.max_blocks() - available(); }
  uint64_t evictions() const { return evictions_; }

 private:
  struct Key {
    Prefix before = 0;
    std::array<int32_t, kBlock> tokens{};
    friend bool operator==(const Key&, const Key&) = default;
  };
  struct KeyHash {
    size_t operator()(const Key& key) const;
  };
  struct Known {
    Prefix prefix = 0;  // never used twice, so that what hung on a block that is gone stays unknown
    BlockId block = 0;
  };
  using KnownBlocks = std::unordered_map<Key, Known, KeyHash>;
  struct Block {
    int32_t holders = 0;
    KnownBlocks::const_iterator known;
    bool published = false;
    std::list<BlockId>::iterator place;  // in lru_, if kept
  };

  static Key key_of(Prefix before, std::span<const int32_t> tokens);
  void hold(BlockId block);
  void forget(BlockId block);

  KvCache& cache_;
  std::vector<Block> blocks_;  // by id
  KnownBlocks known_;
  std::list<BlockId> lru_;  // kept ones; front: to go first
  Prefix next_prefix_ = 1;
  uint64_t evictions_ = 0;
};

}  // namespace atl::coordinator
