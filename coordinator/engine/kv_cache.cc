#include "coordinator/engine/kv_cache.h"

#include <fmt/format.h>

#include <numeric>

#include "base/check.h"
#include "kernels/ops.h"

namespace atl::coordinator {

KvCache::KvCache(int64_t num_layers, const kernels::LatentShape& shape, int64_t max_blocks)
    : shape_(shape),
      max_blocks_(max_blocks),
      layer_block_bytes_(block_bytes(1, shape)),
      free_(max_blocks) {
  for (int64_t layer = 0; layer < num_layers; ++layer) {
    layers_.emplace_back(layer_block_bytes_ * static_cast<size_t>(max_blocks));
  }
  std::iota(free_.rbegin(), free_.rend(), 0);  // lowest ids first
}

size_t KvCache::block_bytes(int64_t num_layers, const kernels::LatentShape& shape) {
  return static_cast<size_t>(num_layers * kernels::kAttentionBlock * shape.width()) *
         kernels::element_bytes(shape.cache_type);
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

void KvCache::write(int64_t layer, BlockId block, int64_t slot, const float* latent,
                    const float* k_pe) {
  const size_t element = kernels::element_bytes(shape_.cache_type);
  std::byte* entry = at(layer, block) + static_cast<size_t>(slot * shape_.width()) * element;
  kernels::store_rounded(latent, shape_.kv_lora_rank, shape_.cache_type, entry);
  kernels::store_rounded(k_pe, shape_.qk_rope_head_dim, shape_.cache_type,
                         entry + static_cast<size_t>(shape_.kv_lora_rank) * element);
}

}  // namespace atl::coordinator
