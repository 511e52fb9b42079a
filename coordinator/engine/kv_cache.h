// The KV cache, paged in blocks of 64 positions.
//
// What a kind of attention keeps of a token is described by its bytes (CacheShape); what they mean
// is its own matter. Entries are rounded to the cache type when written. A block id stands for the
// same 64 positions in every layer. Blocks are handed out from a fixed pool: memory is bounded by
// max_blocks, and a block that was never used costs no memory.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/memory.h"
#include "base/result.h"
#include "base/units.h"
#include "kernels/attention.h"
#include "model/config.h"

namespace atl::coordinator {

using BlockId = int32_t;

// What is kept of one token and layer: `parts` entries of `width` values. A block is
// [parts][64][width], so that who attends to one part reads on.
//   MLA  one part: kv_lora_rank latent values and the rotated k_pe
//   GQA  a part for each key-value head: the rotated key, then the value
struct CacheShape {
  int64_t parts = 1;
  int64_t width = 0;
  kernels::RowType type = kernels::RowType::kBf16;

  int64_t values() const { return parts * width; }
};
CacheShape cache_shape(const model::ModelConfig& config, kernels::RowType type);

// Owned and used by the engine's thread; entries of different positions or parts may be written by
// several.
class KvCache {
 public:
  KvCache(int64_t num_layers, const CacheShape& shape, int64_t max_blocks);

  const CacheShape& shape() const { return shape_; }
  int64_t num_layers() const { return static_cast<int64_t>(layers_.size()); }
  int64_t free_blocks() const { return static_cast<int64_t>(free_.size()); }
  int64_t max_blocks() const { return max_blocks_; }
  static int64_t blocks_for(int64_t positions) {
    return ceil_div(positions, kernels::kAttentionBlock);
  }
  static size_t block_bytes(int64_t num_layers, const CacheShape& shape);

  // kOverloaded when the pool is used up.
  Result<BlockId> allocate();
  void release(BlockId block);

  // [64][width] entries of one part, of the cache type.
  const void* block(int64_t layer, BlockId block, int64_t part = 0) const {
    return at(layer, block) + static_cast<size_t>(part) * part_bytes_;
  }
  // Rounds [width] values into slot 0..63 of the block's part.
  void write(int64_t layer, BlockId block, int64_t slot, int64_t part,
             std::span<const float> values);

 private:
  std::byte* at(int64_t layer, BlockId block) const {
    return layers_[layer].data() + static_cast<size_t>(block) * layer_block_bytes_;
  }

  CacheShape shape_;
  int64_t max_blocks_;
  size_t layer_block_bytes_;
  size_t part_bytes_;  // of one part of a block
  mutable std::vector<HostBuffer> layers_;
  std::vector<BlockId> free_;
};

}  // namespace atl::coordinator
