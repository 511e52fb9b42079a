#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/reference/reference.h"

namespace atl::kernels::reference {
namespace {

// Of one block of positions: its maximum, sum and values, not yet divided.
struct BlockResult {
  float max = 0.0f;
  float sum = 0.0f;
  std::vector<float> values;
};

// Where a position's key and value stand in its entry of `columns` values.
struct Entry {
  int64_t columns, key_width, value_begin, value_width;
  RowType cache_type;
};

BlockResult attend_block(const Entry& entry, const float* q, const void* block, int64_t count,
                         float scale) {
  std::vector<float> entries(static_cast<size_t>(count * entry.columns));
  reference::load_row(block, count * entry.columns, entry.cache_type, entries.data());
  BlockResult result;
  std::vector<float> p(static_cast<size_t>(count));
  for (int64_t t = 0; t < count; ++t) {
    p[t] = scale * dot(q, entries.data() + t * entry.columns, entry.key_width);
  }
  result.max = p[0];
  for (float score : p) result.max = score > result.max ? score : result.max;
  float partial[16] = {};
  for (int64_t t = 0; t < count; ++t) {
    p[t] = exp_f32(p[t] - result.max);
    partial[t % 16] += p[t];
  }
  result.sum = tree_sum(partial);
  result.values.assign(static_cast<size_t>(entry.value_width), 0.0f);
  for (int64_t t = 0; t < count; ++t) {
    const float* value = &entries[t * entry.columns + entry.value_begin];
    for (int64_t c = 0; c < entry.value_width; ++c) {
      result.values[c] = std::fma(p[t], value[c], result.values[c]);
    }
  }
  return result;
}

void merge(BlockResult& total, const BlockResult& block) {
  const float max = block.max > total.max ? block.max : total.max;
  const float a = exp_f32(total.max - max);
  const float b = exp_f32(block.max - max);
  total.max = max;
  total.sum = std::fma(block.sum, b, total.sum * a);
  for (size_t c = 0; c < total.values.size(); ++c) {
    total.values[c] = std::fma(block.values[c], b, total.values[c] * a);
  }
}

void attend(const Entry& entry, int64_t num_heads, const float* q,
            std::span<const void* const> blocks, int64_t num_positions, float scale, float* out) {
  for (int64_t head = 0; head < num_heads; ++head) {
    const float* q_head = q + head * entry.key_width;
    BlockResult total;
    for (int64_t begin = 0; begin < num_positions; begin += kAttentionBlock) {
      const int64_t count = std::min(kAttentionBlock, num_positions - begin);
      const void* entries = blocks[static_cast<size_t>(begin / kAttentionBlock)];
      BlockResult block = attend_block(entry, q_head, entries, count, scale);
      if (begin == 0) {
        total = std::move(block);
      } else {
        merge(total, block);
      }
    }
    for (int64_t c = 0; c < entry.value_width; ++c) {
      out[head * entry.value_width + c] = total.values[static_cast<size_t>(c)] / total.sum;
    }
  }
}

}  // namespace

void mla_attend(const LatentShape& shape, int64_t num_heads, const float* q,
                std::span<const void* const> blocks, int64_t num_positions, float scale,
                float* out) {
  attend({shape.width(), shape.width(), 0, shape.kv_lora_rank, shape.cache_type}, num_heads, q,
         blocks, num_positions, scale, out);
}

void gqa_attend(const GroupedShape& shape, int64_t num_heads, const float* q,
                std::span<const void* const> blocks, int64_t num_positions, float scale,
                float* out) {
  attend({shape.width(), shape.head_dim, shape.head_dim, shape.head_dim, shape.cache_type},
         num_heads, q, blocks, num_positions, scale, out);
}

}  // namespace atl::kernels::reference
