#include "coordinator/engine/prefix_cache.h"

#include <algorithm>
#include <string_view>

#include "base/check.h"

namespace atl::coordinator {

PrefixCache::PrefixCache(KvCache& cache)
    : cache_(cache), blocks_(static_cast<size_t>(cache.max_blocks())) {}

std::vector<BlockId> PrefixCache::match(std::span<const int32_t> tokens, Prefix* prefix) {
  std::vector<BlockId> blocks;
  *prefix = 0;
  while (static_cast<int64_t>(tokens.size()) > kBlock) {
    const auto found = known_.find(key_of(*prefix, tokens.first(kBlock)));
    if (found == known_.end()) break;
    hold(found->second.block);
    blocks.push_back(found->second.block);
    *prefix = found->second.prefix;
    tokens = tokens.subspan(kBlock);
  }
  return blocks;
}

Result<BlockId> PrefixCache::allocate() {
  if (cache_.free_blocks() == 0 && !lru_.empty()) {
    forget(lru_.front());
    ++evictions_;
  }
  auto block = cache_.allocate();
  if (!block) return block.error();
  blocks_[static_cast<size_t>(*block)].holders = 1;
  return *block;
}

PrefixCache::Prefix PrefixCache::publish(Prefix before, std::span<const int32_t> tokens,
                                         BlockId block) {
  Block& own = blocks_[static_cast<size_t>(block)];
  CHECK_GT(own.holders, 0);
  CHECK(!own.published);
  const auto [known, added] =
      known_.try_emplace(key_of(before, tokens), Known{next_prefix_, block});
  if (added) {
    own.known = known;
    own.published = true;
    ++next_prefix_;
  }
  return known->second.prefix;
}

// The last block first: what is kept of a prompt shrinks from its end.
void PrefixCache::release(std::span<const BlockId> blocks) {
  for (auto block = blocks.rbegin(); block != blocks.rend(); ++block) {
    Block& own = blocks_[static_cast<size_t>(*block)];
    CHECK_GT(own.holders, 0);
    if (--own.holders > 0) continue;
    if (own.published) {
      own.place = lru_.insert(lru_.end(), *block);
    } else {
      cache_.release(*block);
    }
  }
}

void PrefixCache::clear() {
  while (!lru_.empty()) forget(lru_.front());
}

PrefixCache::Key PrefixCache::key_of(Prefix before, std::span<const int32_t> tokens) {
  CHECK_EQ(static_cast<int64_t>(tokens.size()), kBlock);
  Key key;
  key.before = before;
  std::copy(tokens.begin(), tokens.end(), key.tokens.begin());
  return key;
}

size_t PrefixCache::KeyHash::operator()(const Key& key) const {
  const std::string_view bytes(reinterpret_cast<const char*>(key.tokens.data()),
                               sizeof(key.tokens));
  return std::hash<std::string_view>()(bytes) ^ (key.before * 0x9E3779B97F4A7C15u);
}

void PrefixCache::hold(BlockId block) {
  Block& own = blocks_[static_cast<size_t>(block)];
  if (own.holders++ == 0) lru_.erase(own.place);
}

// A kept block becomes a free one.
void PrefixCache::forget(BlockId block) {
  Block& own = blocks_[static_cast<size_t>(block)];
  CHECK_EQ(own.holders, 0);
  lru_.erase(own.place);
  known_.erase(own.known);
  own.published = false;
  cache_.release(block);
}

}  // namespace atl::coordinator
