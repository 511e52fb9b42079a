// The latent KV cache of MLA, paged in blocks of 64 positions.
//
// One entry holds the kv_lora_rank latent values and the rotated k_pe of one token and layer,
// rounded to the cache type when written. A block id stands for the same 64 positions in every
// layer. Blocks are handed out from a fixed pool: memory is bounded by max_blocks, and a block that
// was never used costs no memory.
#pragma once

#include <cstdint>
#include <vector>

#include "base/memory.h"
#include "base/result.h"
#include "base/units.h"
#include "kernels/attention.h"

namespace atl::coordinator {

using BlockId = int32_t;

// Owned and used by the engine's thread; entries of different positions may be written by several.
class KvCache {
 public:
  KvCache(int64_t num_layers, const kernels::LatentShape& shape, int64_t max_blocks);

  const kernels::LatentShape& shape() const { return shape_; }
  int64_t free_blocks() const { return static_cast<int64_t>(free_.size()); }
  int64_t max_blocks() const { return max_blocks_; }
  static int64_t blocks_for(int64_t positions) {
    return ceil_div(positions, kernels::kAttentionBlock);
  }
  static size_t block_bytes(int64_t num_layers, const kernels::LatentShape& shape);

  // kOverloaded when the pool is used up.
  Result<BlockId> allocate();
  void release(BlockId block);

  // [64][width] entries of the cache type.
  const void* block(int64_t layer, BlockId block) const { return at(layer, block); }
  // Rounds latent [kv_lora_rank] and k_pe [qk_rope_head_dim] into slot 0..63 of the block.
  void write(int64_t layer, BlockId block, int64_t slot, const float* latent, const float* k_pe);

 private:
  std::byte* at(int64_t layer, BlockId block) const {
    return layers_[layer].data() + static_cast<size_t>(block) * layer_block_bytes_;
  }

  kernels::LatentShape shape_;
  int64_t max_blocks_;
  size_t layer_block_bytes_;
  mutable std::vector<HostBuffer> layers_;
  std::vector<BlockId> free_;
};

}  // namespace atl::coordinator
