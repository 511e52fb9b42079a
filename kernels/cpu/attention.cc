#include "kernels/attention.h"

#include <algorithm>
#include <cstddef>
#include <limits>

#include "kernels/cpu/targets.h"
#include "kernels/reference/reference.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention.cc"
#include "hwy/foreach_target.h"  // compiles this file once per target

#include "hwy/highway.h"
#include "kernels/cpu/simd-inl.h"

#ifndef ATOLL_ATTENTION_SCRATCH_
#define ATOLL_ATTENTION_SCRATCH_
namespace atl::kernels {
// At least `bytes` bytes of this thread, until its next call; zero at first.
std::byte* attention_scratch(size_t bytes);
}  // namespace atl::kernels
#endif

HWY_BEFORE_NAMESPACE();
namespace atl::kernels::HWY_NAMESPACE {
#if ATOLL_SIMD

// Heads that share each load of a cache entry.
constexpr int kHeadTile = 4;
// Positions (scores) or vectors of values (sums) that share each load of a head's query or weight.
// 16 registers (AVX2): 4 x 3 accumulators, 3 entries, a query. 32 registers: 4 x 4 accumulators are
// enough, as two FMAs of four cycles that start per cycle need 8, and a tile loads half as often as
// it multiplies.
constexpr int kTile = kLanes == 8 ? 3 : 4;

// Memory that is fetched into the L2 while other things are computed, a few lines at a time.
struct Ahead {
  const std::byte* next = nullptr;
  const std::byte* end = nullptr;
  int64_t lines = 0;  // at a time

  HWY_INLINE void Fetch() {
    for (int64_t i = 0; i < lines && next < end; ++i, next += 64) __builtin_prefetch(next, 0, 2);
  }
};

// How many of `left` the next tile takes: kTile, else 2 or 1, which keep fewer multiply-adds under
// way. 64 is then 20 x 3 + 2 x 2 rather than 21 x 3 + 1.
HWY_INLINE int64_t NextTile(int64_t left) {
  if (left >= kTile && !(kTile == 3 && left == 4)) return kTile;
  return left >= 2 ? 2 : 1;
}

// Floats from one head's scores to the next: a block, and what tiles write behind it.
constexpr int64_t kScoreStride = kAttentionBlock + 16;
// Heads that are attended together. A block's entries are widened to FP32 once for all of them: at
// V3's shape 2304 vectors for 4352 multiply-adds of each head. Entries, queries and results of 64
// heads take 0.45 MB.
constexpr int64_t kHeadsMax = 64;

// Where key and value stand in an entry of the cache: MLA's value is the beginning of its key.
struct Entry {
  int64_t columns;  // values from one entry to the next
  int64_t key_width;
  int64_t value_begin, value_width;
  RowType cache_type;

  bool has_value_apart() const { return value_begin >= key_width; }
};

struct Dims {
  int64_t num_heads;    // rounded up to whole tiles; the last ones have zero queries
  int64_t key_width;    // of a widened key, and of a query: rounded up to 16 with zeros
  int64_t value_begin;  // in a widened entry
  int64_t value_width;  // of a result, rounded up to whole vectors
  int64_t width;        // from one widened entry to the next

  Dims(const Entry& entry, int64_t heads)
      : num_heads(round_up(heads, kHeadTile)),
        key_width(round_up(entry.key_width, 16)),
        value_begin(entry.has_value_apart() ? key_width : 0),
        value_width(round_up(entry.value_width, kLanes)),
        width(entry.has_value_apart() ? key_width + round_up(entry.value_width, 16) : key_width) {}
};

// Memory of this thread for one call.
struct Scratch {
  float* entries;  // [kAttentionBlock][width] of the block at hand
  float* q;        // [heads][key_width]
  float* values;   // [heads][value_width] running, not yet divided
  float* weights;  // [heads][kScoreStride] scores, then p of the block at hand
};

Scratch MakeScratch(const Dims& dims) {
  const int64_t entries = kAttentionBlock * dims.width;
  const int64_t q = dims.num_heads * dims.key_width;
  const int64_t values = round_up(dims.num_heads * dims.value_width, 16);
  const int64_t weights = dims.num_heads * kScoreStride;
  const auto floats = static_cast<size_t>(entries + q + values + weights);
  auto* p = reinterpret_cast<float*>(attention_scratch(floats * sizeof(float)));
  return {p, p + entries, p + entries + q, p + entries + q + values};
}

// The running maximum and sum of each head, and how the block at hand enters its result:
// value = value * old_factor + block * new_factor.
struct HeadStates {
  HWY_ALIGN float max[kHeadsMax];
  HWY_ALIGN float sum[kHeadsMax];
  HWY_ALIGN float block_max[kHeadsMax];
  HWY_ALIGN float block_sum[kHeadsMax];
  HWY_ALIGN float old_factor[kHeadsMax];
  HWY_ALIGN float new_factor[kHeadsMax];
};

// ---- Entries -----------------------------------------------------------------------------------

void WidenRow(const float* from, int64_t n, float* to) {
  memcpy(to, from, static_cast<size_t>(n) * sizeof(float));
}
void WidenRow(const uint16_t* from, int64_t n, float* to) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) Store16(Load16Bf16(from + i), to + i);
  for (; i < n; ++i) to[i] = bf16_to_float(from[i]);
}

// Rows of `columns` values to rows of `width`, zeros behind. A zero adds nothing to a score but
// perhaps the sign of a zero, which exp(score - max) doesn't tell.
template <class Element>
HWY_NOINLINE void WidenRows(const Element* from, int64_t count, int64_t columns, int64_t width,
                            float* to) {
  for (int64_t t = 0; t < count; ++t, from += columns, to += width) {
    WidenRow(from, columns, to);
    for (int64_t i = columns; i < width; ++i) to[i] = 0.0f;
  }
}

// Keys, zeros behind them, and values.
template <class Element>
HWY_NOINLINE void WidenKeysAndValues(const Entry& entry, const Dims& dims, const Element* from,
                                     int64_t count, float* to) {
  for (int64_t t = 0; t < count; ++t, from += entry.columns, to += dims.width) {
    WidenRow(from, entry.key_width, to);
    for (int64_t i = entry.key_width; i < dims.key_width; ++i) to[i] = 0.0f;
    WidenRow(from + entry.value_begin, entry.value_width, to + dims.value_begin);
  }
}

template <class Element>
HWY_INLINE void WidenEntries(const Entry& entry, const Dims& dims, const Element* from,
                             int64_t count, float* to) {
  if (entry.has_value_apart()) {
    WidenKeysAndValues(entry, dims, from, count, to);
  } else {
    WidenRows(from, count, entry.columns, dims.width, to);
  }
}

// ---- Scores ------------------------------------------------------------------------------------

// One level of the tree of partial sums for two vectors at once: of each run of 2n lanes, n = half
// a vector, a block of four lanes, two lanes, one lane, the result has a's sums in the lower n and
// b's in the upper n.
HWY_INLINE V AddHalves(V a, V b) {
  return hn::Add(hn::ConcatUpperLower(kD, b, a), hn::ConcatLowerUpper(kD, b, a));
}
HWY_INLINE V AddBlocks(V a, V b) {
  return hn::Add(hn::OddEvenBlocks(b, a), hn::SwapAdjacentBlocks(hn::OddEvenBlocks(a, b)));
}
HWY_INLINE V AddPairs(V a, V b) {
  const hn::Repartition<double, D> d64;
  const auto a64 = hn::BitCast(d64, a), b64 = hn::BitCast(d64, b);
  return hn::Add(hn::BitCast(kD, hn::OddEven(b64, a64)),
                 hn::BitCast(kD, hn::Shuffle01(hn::OddEven(a64, b64))));
}
HWY_INLINE V AddLanes(V a, V b) {
  return hn::Add(hn::OddEven(b, a), hn::Shuffle2301(hn::OddEven(a, b)));
}

// The partial sums of kHeadTile heads with kT positions, of which parts 0 .. kVectors - 2 lie in
// memory and the last in registers; the tree of each (TreeSum, in the same order), times `scale`.
// Each head gets four values at scores + h * kScoreStride, those behind kT meaningless.
template <int kT>
HWY_INLINE void StoreScores(const V (&parts)[kVectors][kHeadTile][kT], float scale, float* scores) {
  static_assert(kHeadTile == 4 && kT <= 4);
  V s[kHeadTile][4];
  HWY_UNROLL(4)
  for (int h = 0; h < kHeadTile; ++h) {
    HWY_UNROLL(4)
    for (int t = 0; t < 4; ++t) {
      const int from = t < kT ? t : 0;
      if constexpr (kVectors == 1) {
        s[h][t] = parts[0][h][from];
      } else if constexpr (kVectors == 2) {
        s[h][t] = hn::Add(parts[0][h][from], parts[1][h][from]);
      } else {
        s[h][t] = hn::Add(hn::Add(parts[0][h][from], parts[2][h][from]),
                          hn::Add(parts[1][h][from], parts[3][h][from]));
      }
    }
  }
  constexpr int kHeadsPerVector = kLanes / 4;  // one in each block of a vector
  HWY_UNROLL(4)
  for (int h = 0; h < kHeadTile; h += kHeadsPerVector) {
    V r[4];
    HWY_UNROLL(4)
    for (int t = 0; t < 4; ++t) {
      if constexpr (kHeadsPerVector == 4) {
        r[t] = AddBlocks(AddHalves(s[0][t], s[2][t]), AddHalves(s[1][t], s[3][t]));
      } else if constexpr (kHeadsPerVector == 2) {
        r[t] = AddBlocks(s[h][t], s[h + 1][t]);
      } else {
        r[t] = s[h][t];
      }
    }
    const V sums = AddLanes(AddPairs(r[0], r[2]), AddPairs(r[1], r[3]));
    HWY_ALIGN float lanes[kLanes];
    hn::Store(hn::Mul(hn::Set(kD, scale), sums), kD, lanes);
    for (int i = 0; i < kHeadsPerVector; ++i) {
      memcpy(scores + (h + i) * kScoreStride, lanes + 4 * i, 4 * sizeof(float));
    }
  }
}

// Scores of kHeadTile heads with kT positions. The trees of one tile run beside the multiply-adds
// of the next.
template <int kT>
HWY_INLINE void ScoreTile(const float* HWY_RESTRICT q, const float* HWY_RESTRICT entries,
                          int64_t width, int64_t key_width, float scale,
                          float* HWY_RESTRICT scores) {
  V parts[kVectors][kHeadTile][kT];
  HWY_UNROLL(4)
  for (int part = 0; part < kVectors; ++part) {
    V s[kHeadTile][kT];
    HWY_UNROLL(4)
    for (int h = 0; h < kHeadTile; ++h) {
      HWY_UNROLL(4)
      for (int t = 0; t < kT; ++t) s[h][t] = hn::Zero(kD);
    }
    for (int64_t i = part * kLanes; i < key_width; i += 16) {
      V e[kT];
      HWY_UNROLL(4)
      for (int t = 0; t < kT; ++t) e[t] = hn::Load(kD, entries + t * width + i);
      HWY_UNROLL(4)
      for (int h = 0; h < kHeadTile; ++h) {
        const V x = hn::Load(kD, q + h * key_width + i);
        HWY_UNROLL(4)
        for (int t = 0; t < kT; ++t) s[h][t] = hn::MulAdd(x, e[t], s[h][t]);
      }
    }
    HWY_UNROLL(4)
    for (int h = 0; h < kHeadTile; ++h) {
      HWY_UNROLL(4)
      for (int t = 0; t < kT; ++t) parts[part][h][t] = s[h][t];
    }
  }
  StoreScores<kT>(parts, scale, scores);
}

HWY_NOINLINE void TileScores(const Dims& dims, const float* q, const float* entries, int64_t count,
                             float scale, Ahead* ahead, float* scores) {
  const int64_t width = dims.width, key_width = dims.key_width;
  for (int64_t t = 0; t < count;) {
    ahead->Fetch();
    const int64_t n = NextTile(count - t);
    const float* at = entries + t * width;
    if (n == kTile) {
      ScoreTile<kTile>(q, at, width, key_width, scale, scores + t);
    } else if (n == 2) {
      ScoreTile<2>(q, at, width, key_width, scale, scores + t);
    } else {
      ScoreTile<1>(q, at, width, key_width, scale, scores + t);
    }
    t += n;
  }
}

// Turns one head's scores of a block into p: their maximum and sum. Behind the last position p is
// +0, which changes no sum.
HWY_INLINE void HeadWeights(int64_t count, float* scores, float* max_out, float* sum_out) {
  const V lowest = hn::Set(kD, -std::numeric_limits<float>::infinity());
  V max = lowest;
  for (int64_t t = 0; t < kAttentionBlock; t += kLanes) {
    V s = hn::Load(kD, scores + t);
    if (count - t < kLanes) {
      s = hn::IfThenElse(hn::FirstN(kD, static_cast<size_t>(HWY_MAX(count - t, 0))), s, lowest);
      hn::Store(s, kD, scores + t);
    }
    max = hn::Max(s, max);
  }
  max = hn::MaxOfLanes(kD, max);
  V16 sum = Zero16();
  for (int64_t t = 0; t < kAttentionBlock; t += 16) {
    V16 p = Load16(scores + t);
    HWY_UNROLL(8)
    for (int i = 0; i < kVectors; ++i) p.v[i] = Exp(hn::Sub(p.v[i], max));
    Store16(p, scores + t);
    sum = Add16(sum, p);
  }
  *max_out = hn::GetLane(max);
  *sum_out = TreeSum(sum);
}

// Takes the block's maxima and sums into the running ones.
void MergeStates(int64_t num_heads, bool first, HeadStates* heads) {
  for (int64_t h = 0; h < num_heads; h += kLanes) {
    const V block_max = hn::Load(kD, heads->block_max + h);
    const V block_sum = hn::Load(kD, heads->block_sum + h);
    V max = block_max, sum = block_sum;
    if (!first) {
      const V old_max = hn::Load(kD, heads->max + h);
      max = hn::IfThenElse(hn::Gt(block_max, old_max), block_max, old_max);
      const V old_factor = Exp(hn::Sub(old_max, max));
      const V new_factor = Exp(hn::Sub(block_max, max));
      sum = hn::MulAdd(block_sum, new_factor, hn::Mul(hn::Load(kD, heads->sum + h), old_factor));
      hn::Store(old_factor, kD, heads->old_factor + h);
      hn::Store(new_factor, kD, heads->new_factor + h);
    }
    hn::Store(max, kD, heads->max + h);
    hn::Store(sum, kD, heads->sum + h);
  }
}

// ---- Values ------------------------------------------------------------------------------------

// kHeadTile heads x kC vectors of values: the block's sums over t, merged into `values`.
template <int kC>
HWY_INLINE void ValueTile(const float* HWY_RESTRICT entries, int64_t width, int64_t count,
                          const float* HWY_RESTRICT p, bool first, const float* old_factor,
                          const float* new_factor, float* HWY_RESTRICT values,
                          int64_t value_width) {
  V o[kHeadTile][kC];
  HWY_UNROLL(4)
  for (int h = 0; h < kHeadTile; ++h) {
    HWY_UNROLL(4)
    for (int c = 0; c < kC; ++c) o[h][c] = hn::Zero(kD);
  }
  for (int64_t t = 0; t < count; ++t) {
    V e[kC];
    HWY_UNROLL(4)
    for (int c = 0; c < kC; ++c) e[c] = hn::Load(kD, entries + t * width + c * kLanes);
    HWY_UNROLL(4)
    for (int h = 0; h < kHeadTile; ++h) {
      const V weight = hn::Set(kD, p[h * kScoreStride + t]);
      HWY_UNROLL(4)
      for (int c = 0; c < kC; ++c) o[h][c] = hn::MulAdd(weight, e[c], o[h][c]);
    }
  }
  HWY_UNROLL(4)
  for (int h = 0; h < kHeadTile; ++h, values += value_width) {
    HWY_UNROLL(4)
    for (int c = 0; c < kC; ++c) {
      float* at = values + c * kLanes;
      if (!first) {
        const V total = hn::Mul(hn::LoadU(kD, at), hn::Set(kD, old_factor[h]));
        o[h][c] = hn::MulAdd(o[h][c], hn::Set(kD, new_factor[h]), total);
      }
      hn::StoreU(o[h][c], kD, at);
    }
  }
}

// The same columns of all heads: the entries' columns stay in L1.
template <int kC>
HWY_NOINLINE void ColumnValues(const Dims& dims, const float* entries, int64_t count,
                               const float* p, bool first, const HeadStates& heads, float* values) {
  for (int64_t h = 0; h < dims.num_heads; h += kHeadTile) {
    ValueTile<kC>(entries, dims.width, count, p + h * kScoreStride, first, heads.old_factor + h,
                  heads.new_factor + h, values + h * dims.value_width, dims.value_width);
  }
}

void BlockValues(const Dims& dims, const Scratch& scratch, int64_t count, bool first,
                 const HeadStates& heads) {
  for (int64_t c = 0; c < dims.value_width;) {
    const int64_t n = NextTile((dims.value_width - c) / kLanes);
    const auto columns = n == kTile ? ColumnValues<kTile>
                         : n == 2   ? ColumnValues<2>
                                    : ColumnValues<1>;
    columns(dims, scratch.entries + dims.value_begin + c, count, scratch.weights, first, heads,
            scratch.values + c);
    c += n * kLanes;
  }
}

// ---- All of it ---------------------------------------------------------------------------------

void DivideByL(const float* values, float l, int64_t width, float* out) {
  const V divisor = hn::Set(kD, l);
  int64_t c = 0;
  for (; c + kLanes <= width; c += kLanes) {
    hn::StoreU(hn::Div(hn::LoadU(kD, values + c), divisor), kD, out + c);
  }
  for (; c < width; ++c) out[c] = values[c] / l;
}

// A block of `count` positions, fetched while all heads score the one before.
template <class Element>
Ahead BlockAhead(const Entry& entry, const Dims& dims, const void* block, int64_t count) {
  const int64_t bytes = count * entry.columns * static_cast<int64_t>(sizeof(Element));
  const int64_t turns = dims.num_heads / kHeadTile * (kAttentionBlock / kTile);
  const auto* begin = static_cast<const std::byte*>(block);
  return {begin, begin + bytes, ceil_div(ceil_div(bytes, 64), turns)};
}

template <class Element>
void AttendHeads(const Entry& entry, int64_t num_heads, const float* q, const void* const* blocks,
                 int64_t num_positions, float scale, float* out) {
  const Dims dims(entry, num_heads);
  const Scratch scratch = MakeScratch(dims);
  HeadStates heads = {};
  WidenRows(q, num_heads, entry.key_width, dims.key_width, scratch.q);
  std::fill(scratch.q + num_heads * dims.key_width, scratch.q + dims.num_heads * dims.key_width,
            0.0f);
  for (int64_t begin = 0; begin < num_positions; begin += kAttentionBlock) {
    const int64_t count = HWY_MIN(kAttentionBlock, num_positions - begin);
    WidenEntries(entry, dims, static_cast<const Element*>(blocks[begin / kAttentionBlock]), count,
                 scratch.entries);
    const int64_t next = HWY_MIN(kAttentionBlock, num_positions - begin - kAttentionBlock);
    Ahead ahead;
    if (next > 0)
      ahead = BlockAhead<Element>(entry, dims, blocks[begin / kAttentionBlock + 1], next);
    for (int64_t tile = 0; tile < dims.num_heads; tile += kHeadTile) {
      float* scores = scratch.weights + tile * kScoreStride;
      TileScores(dims, scratch.q + tile * dims.key_width, scratch.entries, count, scale, &ahead,
                 scores);
      for (int64_t h = tile; h < tile + kHeadTile; ++h, scores += kScoreStride) {
        HeadWeights(count, scores, &heads.block_max[h], &heads.block_sum[h]);
      }
    }
    MergeStates(dims.num_heads, begin == 0, &heads);
    BlockValues(dims, scratch, count, begin == 0, heads);
  }
  for (int64_t h = 0; h < num_heads; ++h) {
    DivideByL(scratch.values + h * dims.value_width, heads.sum[h], entry.value_width,
              out + h * entry.value_width);
  }
}

void Attend(const Entry& entry, int64_t num_heads, const float* q, const void* const* blocks,
            int64_t num_positions, float scale, float* out) {
  for (int64_t h = 0; h < num_heads; h += kHeadsMax) {
    const int64_t n = HWY_MIN(kHeadsMax, num_heads - h);
    const auto attend =
        entry.cache_type == RowType::kF32 ? AttendHeads<float> : AttendHeads<uint16_t>;
    attend(entry, n, q + h * entry.key_width, blocks, num_positions, scale,
           out + h * entry.value_width);
  }
}

void MlaAttend(const LatentShape& shape, int64_t num_heads, const float* q,
               const void* const* blocks, int64_t num_positions, float scale, float* out) {
  Attend({shape.width(), shape.width(), 0, shape.kv_lora_rank, shape.cache_type}, num_heads, q,
         blocks, num_positions, scale, out);
}

void GqaAttend(const GroupedShape& shape, int64_t num_heads, const float* q,
               const void* const* blocks, int64_t num_positions, float scale, float* out) {
  Attend({shape.width(), shape.head_dim, shape.head_dim, shape.head_dim, shape.cache_type},
         num_heads, q, blocks, num_positions, scale, out);
}

#else

void MlaAttend(const LatentShape& shape, int64_t num_heads, const float* q,
               const void* const* blocks, int64_t num_positions, float scale, float* out) {
  const auto num_blocks = static_cast<size_t>(ceil_div(num_positions, kAttentionBlock));
  reference::mla_attend(shape, num_heads, q, {blocks, num_blocks}, num_positions, scale, out);
}

void GqaAttend(const GroupedShape& shape, int64_t num_heads, const float* q,
               const void* const* blocks, int64_t num_positions, float scale, float* out) {
  const auto num_blocks = static_cast<size_t>(ceil_div(num_positions, kAttentionBlock));
  reference::gqa_attend(shape, num_heads, q, {blocks, num_blocks}, num_positions, scale, out);
}

#endif
}  // namespace atl::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "base/check.h"
#include "base/memory.h"

namespace atl::kernels {

HWY_EXPORT(MlaAttend);
HWY_EXPORT(GqaAttend);

std::byte* attention_scratch(size_t bytes) {
  thread_local HostBuffer buffer;
  if (buffer.size() < bytes) buffer = HostBuffer(bytes);
  return buffer.data();
}

void mla_attend(const LatentShape& shape, int64_t num_heads, const float* q,
                std::span<const void* const> blocks, int64_t num_positions, float scale,
                float* out) {
  CHECK_GT(num_positions, 0);
  CHECK_GE(static_cast<int64_t>(blocks.size()), ceil_div(num_positions, kAttentionBlock));
  HWY_DYNAMIC_DISPATCH(MlaAttend)(shape, num_heads, q, blocks.data(), num_positions, scale, out);
}

void gqa_attend(const GroupedShape& shape, int64_t num_heads, const float* q,
                std::span<const void* const> blocks, int64_t num_positions, float scale,
                float* out) {
  CHECK_GT(num_positions, 0);
  CHECK_GE(static_cast<int64_t>(blocks.size()), ceil_div(num_positions, kAttentionBlock));
  HWY_DYNAMIC_DISPATCH(GqaAttend)(shape, num_heads, q, blocks.data(), num_positions, scale, out);
}

}  // namespace atl::kernels
#endif  // HWY_ONCE
