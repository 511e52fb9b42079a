// Attention over a paged cache: MLA in the absorbed form, an MQA over the latent cache, and GQA, in
// which a group of query heads shares a head's keys and values. Source: docs/model.md 3.2 and 3.8.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/numeric_types.h"

namespace atl::kernels {

inline constexpr int64_t kAttentionBlock = 64;  // positions, at absolute multiples of 64

struct LatentShape {
  int64_t kv_lora_rank = 0;      // C: width of the value
  int64_t qk_rope_head_dim = 0;  // appended to it: C + rope values per cache entry
  RowType cache_type = RowType::kBf16;

  int64_t width() const { return kv_lora_rank + qk_rope_head_dim; }
};

// Attention of one row (token) for heads [0, num_heads) over positions [0, num_positions).
// For head h and position t:
//   score = scale * dot(q[h], entry[t])                    (16 partial sums over C + rope values)
// per block of 64 positions: m = max score, p[t] = exp(score[t] - m), l = sum of p (16 partial sums
// by t % 16), o[c] = fma(p[t], entry[t][c], o[c]) from +0 in ascending t. Blocks are merged in
// ascending order: m' = max(m, m_b), a = exp(m - m'), b = exp(m_b - m'),
// l = fma(l_b, b, l * a), o[c] = fma(o_b[c], b, o[c] * a); the first block is taken as it is.
// out[h][c] = o[c] / l.
//   q        [num_heads][C + rope] FP32: absorbed q~ then rotated q_pe
//   blocks   [ceil(num_positions/64)] pointers to [64][C + rope] entries of cache_type
//   out      [num_heads][C] FP32
// Heads are independent: any split of them over threads gives the same bits. Up to 64 heads of a
// call share the widening of the entries to FP32, four share each load of one: give a thread many
// heads, in multiples of four. Uses memory that the thread keeps: 0.45 MB for 64 heads of
// DeepSeek-V3.
void mla_attend(const LatentShape& shape, int64_t num_heads, const float* q,
                std::span<const void* const> blocks, int64_t num_positions, float scale,
                float* out);

// What the cache holds of one position and key-value head: the rotated key, then the value.
struct GroupedShape {
  int64_t head_dim = 0;
  RowType cache_type = RowType::kBf16;

  int64_t width() const { return 2 * head_dim; }
};

// The same sums for the query heads of one group: the key in place of the whole entry for scores,
// the value in place of the latent for o.
//   q        [num_heads][head_dim] FP32, rotated
//   blocks   [ceil(num_positions/64)] pointers to [64][key, value] entries of cache_type
//   out      [num_heads][head_dim] FP32
void gqa_attend(const GroupedShape& shape, int64_t num_heads, const float* q,
                std::span<const void* const> blocks, int64_t num_positions, float scale,
                float* out);

}  // namespace atl::kernels
