#include "kernels/attention.h"

#include "kernels/cpu/targets.h"
#include "kernels/reference/reference.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention.cc"
#include "hwy/foreach_target.h"  // compiles this file once per target

#include "hwy/highway.h"
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace atl::kernels::HWY_NAMESPACE {
#if ATOLL_SIMD

// Heads that share each load of a cache entry: 8 accumulators on AVX2.
constexpr int kHeads = 4;

struct F32Entries {
  using Element = float;
  static HWY_INLINE V16 Load(const float* p) { return Load16(p); }
};
struct Bf16Entries {
  using Element = uint16_t;
  static HWY_INLINE V16 Load(const uint16_t* p) { return Load16Bf16(p); }
};

template <class Entries>
HWY_INLINE V16 LoadN(const typename Entries::Element* p, int64_t n) {
  HWY_ALIGN typename Entries::Element buffer[16] = {};
  memcpy(buffer, p, static_cast<size_t>(n) * sizeof(*p));
  return Entries::Load(buffer);
}

// scores[head][t] = scale * dot(q[head], entry[t]) for one block.
template <class Entries, int kH>
HWY_NOINLINE void BlockScores(const float* q, const typename Entries::Element* entries,
                              int64_t width, int64_t count, float scale,
                              float (*scores)[kAttentionBlock]) {
  for (int64_t t = 0; t < count; ++t, entries += width) {
    V16 s[kH];
    HWY_UNROLL(8)
    for (int h = 0; h < kH; ++h) s[h] = Zero16();
    int64_t i = 0;
    for (; i + 16 <= width; i += 16) {
      const V16 e = Entries::Load(entries + i);
      HWY_UNROLL(8)
      for (int h = 0; h < kH; ++h) s[h] = MulAdd16(Load16(q + h * width + i), e, s[h]);
    }
    if (i < width) {
      const int64_t n = width - i;
      const V16 e = LoadN<Entries>(entries + i, n);
      for (int h = 0; h < kH; ++h) {
        s[h] = FirstNOf(n, MulAdd16(LoadN16(q + h * width + i, n), e, s[h]), s[h]);
      }
    }
    for (int h = 0; h < kH; ++h) scores[h][t] = scale * TreeSum(s[h]);
  }
}

float ExpOne(float x) { return hn::GetLane(Exp(hn::Set(kD, x))); }

// Turns one head's scores of a block into p; returns their sum.
float BlockWeights(float* scores, int64_t count, float* max_out) {
  float max = scores[0];
  for (int64_t t = 1; t < count; ++t) max = scores[t] > max ? scores[t] : max;
  *max_out = max;
  V16 s = Zero16();
  for (int64_t t = 0; t < count; t += 16) {  // the array always has room for whole sixteens
    V16 p = Load16(scores + t);
    HWY_UNROLL(8)
    for (int i = 0; i < kVectors; ++i) p.v[i] = Exp(hn::Sub(p.v[i], hn::Set(kD, max)));
    Store16(p, scores + t);
    s = count - t >= 16 ? Add16(s, p) : FirstNOf(count - t, Add16(s, p), s);
  }
  return TreeSum(s);
}

// How a block enters a head's running result: total = total * old_factor + block * new_factor.
struct Merge {
  float old_factor;
  float new_factor;
};

// 16 values (n < 16: so many) from column c on: the block's sums over t, merged into out.
template <class Entries, int kH, bool kTail>
HWY_INLINE void BlockValues(const typename Entries::Element* entries, int64_t width, int64_t count,
                            const float (*p)[kAttentionBlock], bool first, const Merge* merge,
                            int64_t n, int64_t out_stride, float* out) {
  V16 o[kH];
  HWY_UNROLL(8)
  for (int h = 0; h < kH; ++h) o[h] = Zero16();
  for (int64_t t = 0; t < count; ++t, entries += width) {
    const V16 e = kTail ? LoadN<Entries>(entries, n) : Entries::Load(entries);
    HWY_UNROLL(8)
    for (int h = 0; h < kH; ++h) {
      const V weight = hn::Set(kD, p[h][t]);
      HWY_UNROLL(8)
      for (int i = 0; i < kVectors; ++i) o[h].v[i] = hn::MulAdd(weight, e.v[i], o[h].v[i]);
    }
  }
  for (int h = 0; h < kH; ++h, out += out_stride) {
    if (!first) {
      const V16 total = kTail ? LoadN16(out, n) : Load16(out);
      const V old_factor = hn::Set(kD, merge[h].old_factor);
      const V new_factor = hn::Set(kD, merge[h].new_factor);
      for (int i = 0; i < kVectors; ++i) {
        o[h].v[i] = hn::MulAdd(o[h].v[i], new_factor, hn::Mul(total.v[i], old_factor));
      }
    }
    if constexpr (kTail) {
      StoreN16(o[h], out, n);
    } else {
      Store16(o[h], out);
    }
  }
}

template <class Entries, int kH>
HWY_NOINLINE void AllBlockValues(const typename Entries::Element* entries, int64_t width,
                                 int64_t columns, int64_t count, const float (*p)[kAttentionBlock],
                                 bool first, const Merge* merge, float* out) {
  int64_t c = 0;
  for (; c + 16 <= columns; c += 16) {
    BlockValues<Entries, kH, false>(entries + c, width, count, p, first, merge, 16, columns,
                                    out + c);
  }
  if (c < columns) {
    BlockValues<Entries, kH, true>(entries + c, width, count, p, first, merge, columns - c, columns,
                                   out + c);
  }
}

// kH heads; `out` holds the undivided values until the end.
template <class Entries, int kH>
void AttendHeads(const LatentShape& shape, const float* q, const void* const* blocks,
                 int64_t num_positions, float scale, float* out) {
  using Element = typename Entries::Element;
  const int64_t width = shape.width();
  const int64_t columns = shape.kv_lora_rank;
  float max[kH];
  float sum[kH];
  Merge merge[kH] = {};
  HWY_ALIGN float p[kH][kAttentionBlock] = {};
  for (int64_t begin = 0; begin < num_positions; begin += kAttentionBlock) {
    const bool first = begin == 0;
    const int64_t count = HWY_MIN(kAttentionBlock, num_positions - begin);
    const auto* entries = static_cast<const Element*>(blocks[begin / kAttentionBlock]);
    BlockScores<Entries, kH>(q, entries, width, count, scale, p);
    for (int h = 0; h < kH; ++h) {
      float block_max;
      const float block_sum = BlockWeights(p[h], count, &block_max);
      if (first) {
        max[h] = block_max;
        sum[h] = block_sum;
        continue;
      }
      const float new_max = block_max > max[h] ? block_max : max[h];
      merge[h] = {ExpOne(max[h] - new_max), ExpOne(block_max - new_max)};
      max[h] = new_max;
      sum[h] = hn::GetLane(hn::MulAdd(hn::Set(kD, block_sum), hn::Set(kD, merge[h].new_factor),
                                      hn::Set(kD, sum[h] * merge[h].old_factor)));
    }
    AllBlockValues<Entries, kH>(entries, width, columns, count, p, first, merge, out);
  }
  for (int h = 0; h < kH; ++h) {
    for (int64_t c = 0; c < columns; ++c) out[h * columns + c] /= sum[h];
  }
}

template <class Entries>
void Attend(const LatentShape& shape, int64_t num_heads, const float* q, const void* const* blocks,
            int64_t num_positions, float scale, float* out) {
  int64_t head = 0;
  for (; head + kHeads <= num_heads; head += kHeads) {
    AttendHeads<Entries, kHeads>(shape, q + head * shape.width(), blocks, num_positions, scale,
                                 out + head * shape.kv_lora_rank);
  }
  for (; head < num_heads; ++head) {
    AttendHeads<Entries, 1>(shape, q + head * shape.width(), blocks, num_positions, scale,
                            out + head * shape.kv_lora_rank);
  }
}

void MlaAttend(const LatentShape& shape, int64_t num_heads, const float* q,
               const void* const* blocks, int64_t num_positions, float scale, float* out) {
  if (shape.cache_type == RowType::kF32) {
    Attend<F32Entries>(shape, num_heads, q, blocks, num_positions, scale, out);
  } else {
    Attend<Bf16Entries>(shape, num_heads, q, blocks, num_positions, scale, out);
  }
}

#else

void MlaAttend(const LatentShape& shape, int64_t num_heads, const float* q,
               const void* const* blocks, int64_t num_positions, float scale, float* out) {
  const auto num_blocks = static_cast<size_t>(ceil_div(num_positions, kAttentionBlock));
  reference::mla_attend(shape, num_heads, q, {blocks, num_blocks}, num_positions, scale, out);
}

#endif
}  // namespace atl::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "base/check.h"

namespace atl::kernels {

HWY_EXPORT(MlaAttend);

void mla_attend(const LatentShape& shape, int64_t num_heads, const float* q,
                std::span<const void* const> blocks, int64_t num_positions, float scale,
                float* out) {
  CHECK_GT(num_positions, 0);
  CHECK_GE(static_cast<int64_t>(blocks.size()), ceil_div(num_positions, kAttentionBlock));
  HWY_DYNAMIC_DISPATCH(MlaAttend)(shape, num_heads, q, blocks.data(), num_positions, scale, out);
}

}  // namespace atl::kernels
#endif  // HWY_ONCE
