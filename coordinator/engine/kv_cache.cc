#include "coordinator/engine/kv_cache.h"

#include <fmt/format.h>

#include <numeric>

#include "base/check.h"
#include "kernels/ops.h"

namespace atl::coordinator {

CacheShape cache_shape(const model::ModelConfig& config, kernels::RowType type) {
  if (config.attention_kind() == model::AttentionKind::kGqa) {
    return {config.num_key_value_heads, 2 * config.head_dim, type};
  }
  return {1, config.kv_lora_rank + config.qk_rope_head_dim, type};
}

KvCache::KvCache(int64_t num_layers, const CacheShape& shape, int64_t max_blocks)
    : shape_(shape),
      max_blocks_(max_blocks),
      layer_block_bytes_(block_bytes(1, shape)),
      part_bytes_(layer_block_bytes_ / static_cast<size_t>(shape.parts)),
      free_(max_blocks) {
  for (int64_t layer = 0; layer < num_layers; ++layer) {
    layers_.emplace_back(layer_block_bytes_ * static_cast<size_t>(max_blocks));
  }
  std::iota(free_.rbegin(), free_.rend(), 0);  // lowest ids first
}

size_t KvCache::block_bytes(int64_t num_layers, const CacheShape& shape) {
  return static_cast<size_t>(num_layers * kernels::kAttentionBlock * shape.values()) *
         kernels::element_bytes(shape.type);
}

Result<BlockId> KvCache::allocate() {
  if (free_.empty()) {
    return Error{ErrorCode::kOverloaded,
                 fmt::format("KV cache is full: all {} blocks of {} positions are in use",
                             max_blocks_, kernels::kAttentionBlock)};
  }
  const BlockId block = free_.back();
  free_.pop_back();
  return block;
}

void KvCache::release(BlockId block) {
  CHECK(block >= 0 && block < max_blocks_);
  free_.push_back(block);
  CHECK_LE(static_cast<int64_t>(free_.size()), max_blocks_);
}

void KvCache::write(int64_t layer, BlockId block, int64_t slot, int64_t part,
                    std::span<const float> values) {
  CHECK_EQ(static_cast<int64_t>(values.size()), shape_.width);
  const size_t entry_bytes = values.size() * kernels::element_bytes(shape_.type);
  std::byte* entry = at(layer, block) + static_cast<size_t>(part) * part_bytes_;
  kernels::store_rounded(values.data(), shape_.width, shape_.type,
                         entry + static_cast<size_t>(slot) * entry_bytes);
}

}  // namespace atl::coordinator
