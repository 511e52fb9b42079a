#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "base/check.h"
#include "kernels/cuda/launches.h"
#include "kernels/cuda/math.h"
#include "kernels/cuda/simt.h"

namespace atl::kernels::cuda {
namespace {

constexpr int kPanel = static_cast<int>(kPanelWidth);
constexpr int kGroupMax = static_cast<int>(kScaleBlock);

simt::Stream stream_of(StreamHandle stream) { return static_cast<simt::Stream>(stream); }
unsigned blocks_for(int64_t n, int64_t each) {
  return static_cast<unsigned>((n + each - 1) / each);
}

// ---- Linear layers ----------------------------------------------------------------------------
//
// A thread is an output, a warp 32 of them (two panels) in one scale group, a block 8 groups at a
// time. Inside a group k ascends; the groups' sums meet in shared memory and are added in ascending
// order, as on the CPU. The grid never cuts k.

constexpr int kWarps = 8;

template <int R>
struct LinearShared {
  float x[kWarps][R][kGroupMax];
  float acc[2][kWarps][R][32];
};

template <WeightFormat F>
struct Codes;
template <>
struct Codes<WeightFormat::kFp8E4m3> {
  static constexpr int kPerWord = 4;
  static SIMT_DEVICE float value(uint32_t word, int i) { return e4m3_value(word >> (8 * i)); }
};
template <>
struct Codes<WeightFormat::kBf16> {
  static constexpr int kPerWord = 2;
  static SIMT_DEVICE float value(uint32_t word, int i) {
    return simt::as_float(i == 0 ? word << 16 : word & 0xffff0000u);
  }
};
template <>
struct Codes<WeightFormat::kF32> {
  static constexpr int kPerWord = 1;
  static SIMT_DEVICE float value(uint32_t word, int) { return simt::as_float(word); }
};
template <>
struct Codes<WeightFormat::kInt4> {
  static constexpr int kPerWord = 8;
  static SIMT_DEVICE float value(uint32_t word, int i) {
    const int shift = i % 4 * 8 + i / 4 * 4;  // kernels/int4.h
    return simt::from_int(static_cast<int>(word >> shift & 0xfu) - kInt4Zero);
  }
};

template <WeightFormat F>
SIMT_DEVICE float group_scale(const DeviceMatrix& w, int panel, const PanelGroup& group, int lane) {
  if constexpr (F == WeightFormat::kFp8E4m3) {
    const float* scales = w.scales + static_cast<size_t>(panel) * w.panel_scales + group.scale;
    return w.scale_per_output ? scales[lane] : scales[0];
  } else if constexpr (F == WeightFormat::kInt4) {
    const auto* scales =
        reinterpret_cast<const uint16_t*>(w.codes + static_cast<size_t>(panel) * w.panel_words);
    return bf16_value(scales[group.scale + static_cast<uint32_t>(lane)]);
  } else {
    return 1.0f;
  }
}

// acc[r] = fma(x[r][k], code[k], acc[r]) for the group's k, ascending. A group that begins or ends
// within a word takes the careful way.
template <WeightFormat F, int R>
SIMT_DEVICE void add_group(const uint32_t* words, const PanelGroup& group,
                           const float (&x)[R][kGroupMax], float (&acc)[R]) {
  constexpr int kPerWord = Codes<F>::kPerWord;
  const int count = group.end - group.begin;
  // int4 groups start words of their own; elsewhere words are counted from k = 0.
  const int skip = F == WeightFormat::kInt4 ? 0 : group.begin % kPerWord;
  if (skip == 0 && count == (F == WeightFormat::kInt4 ? 64 : kGroupMax)) {
    constexpr int kWords = (F == WeightFormat::kInt4 ? 64 : kGroupMax) / kPerWord;
    constexpr int kAtOnce = R <= 2   ? 8
                            : R <= 4 ? 4
                                     : 2;  // loads under way, as many as registers allow
    SIMT_NO_UNROLL
    for (int i0 = 0; i0 < kWords; i0 += kAtOnce) {
      uint32_t word[kAtOnce];
      SIMT_UNROLL
      for (int i = 0; i < kAtOnce; ++i) word[i] = words[(i0 + i) * kPanel];
      SIMT_UNROLL
      for (int i = 0; i < kAtOnce; ++i) {
        SIMT_UNROLL
        for (int c = 0; c < kPerWord; ++c) {
          const float code = Codes<F>::value(word[i], c);
          SIMT_UNROLL
          for (int r = 0; r < R; ++r) {
            acc[r] = simt::fma_rn(x[r][(i0 + i) * kPerWord + c], code, acc[r]);
          }
        }
      }
    }
    return;
  }
  SIMT_NO_UNROLL
  for (int k = 0; k < count; ++k) {
    const int place = k + skip;
    const float code = Codes<F>::value(words[place / kPerWord * kPanel], place % kPerWord);
    SIMT_UNROLL
    for (int r = 0; r < R; ++r) acc[r] = simt::fma_rn(x[r][k], code, acc[r]);
  }
}

// grid (row tiles of R, pairs of panels, matrices).
template <WeightFormat F, int R>
SIMT_KERNEL(32 * kWarps)
linear_kernel(const DeviceMatrix* matrices, int num_rows, const float* x, int64_t x_row,
              int64_t x_matrix, float* y, int64_t y_row, int64_t y_matrix) {
  LinearShared<R>& s = *simt::shared<LinearShared<R>>();
  const DeviceMatrix w = matrices[simt::block_z()];
  x += simt::block_z() * x_matrix;
  y += simt::block_z() * y_matrix;
  const int warp = simt::thread_x() / 32, lane = simt::thread_x() % 32;
  const int row0 = simt::block_x() * R, output = simt::block_y() * 32 + lane;
  const int last_panel = (w.outputs + kPanel - 1) / kPanel - 1;
  const int panel = output / kPanel < last_panel ? output / kPanel : last_panel;
  constexpr int kRowsPerWarp = (R + kWarps - 1) / kWarps;
  float sum[kRowsPerWarp];
  for (int i = 0; i < kRowsPerWarp; ++i) sum[i] = 0.0f;
  SIMT_NO_UNROLL
  for (int wave = 0; wave * kWarps < w.num_groups; ++wave) {
    const int g = wave * kWarps + warp;
    if (g < w.num_groups) {
      const PanelGroup group = w.groups[g];
      for (int r = 0; r < R; ++r) {
        const int row = row0 + r < num_rows ? row0 + r : num_rows - 1;
        for (int k = lane; k < group.end - group.begin; k += 32) {
          s.x[warp][r][k] = x[row * x_row + group.begin + k];
        }
      }
      simt::sync_warp();
      float acc[R];
      for (int r = 0; r < R; ++r) acc[r] = 0.0f;
      const uint32_t* words =
          w.codes + static_cast<size_t>(panel) * w.panel_words + group.word + output % kPanel;
      add_group<F, R>(words, group, s.x[warp], acc);
      for (int r = 0; r < R; ++r) s.acc[wave & 1][warp][r][lane] = acc[r];
    }
    // One barrier a wave: the sums of this wave are read while the next one writes to the other
    // half.
    simt::sync_block();
    for (int i = 0; i < kRowsPerWarp; ++i) {
      const int r = i * kWarps + warp;
      if (r >= R) break;
      for (int j = 0; j < kWarps && wave * kWarps + j < w.num_groups; ++j) {
        const PanelGroup group = w.groups[wave * kWarps + j];
        sum[i] = simt::fma_rn(group_scale<F>(w, panel, group, output % kPanel),
                              s.acc[wave & 1][j][r][lane], sum[i]);
      }
    }
  }
  for (int i = 0; i < kRowsPerWarp; ++i) {
    const int r = i * kWarps + warp;
    if (r < R && row0 + r < num_rows && output < w.outputs) {
      y[(row0 + r) * y_row + output] = sum[i];
    }
  }
}

template <WeightFormat F, int R>
void launch_linear(StreamHandle stream, const LinearCall& call) {
  const dim3 grid(blocks_for(call.num_rows, R), blocks_for(call.outputs, 32),
                  static_cast<unsigned>(call.num_matrices));
  simt::launch(linear_kernel<F, R>, grid, 32 * kWarps, sizeof(LinearShared<R>), stream_of(stream),
               call.matrices, call.num_rows, call.x, call.x_row, call.x_matrix, call.y, call.y_row,
               call.y_matrix);
}

template <WeightFormat F>
void launch_linear(StreamHandle stream, const LinearCall& call) {
  if (call.num_rows == 1) {
    launch_linear<F, 1>(stream, call);
  } else if (call.num_rows <= 2) {
    launch_linear<F, 2>(stream, call);
  } else if (call.num_rows <= 4) {
    launch_linear<F, 4>(stream, call);
  } else {
    launch_linear<F, 8>(stream, call);
  }
}

// ---- Small operations ---------------------------------------------------------------------------

constexpr int kThreads = 256;

// A block has a row. 16 lanes have the 16 partial sums; both halves of the warp compute them, so
// that the tree may use all lanes.
SIMT_KERNEL(kThreads)
rms_norm_kernel(int n, const float* x, int64_t x_row, const float* weight, float eps, float* y,
                int64_t y_row) {
  float& inverse = *simt::shared<float>();
  x += simt::block_x() * x_row;
  y += simt::block_x() * y_row;
  if (simt::thread_x() < 32) {
    float partial = 0.0f;
    for (int i = simt::thread_x() % 16; i < n; i += 16) partial = simt::fma_rn(x[i], x[i], partial);
    const float mean = simt::div_rn(tree_sum16(partial), simt::from_int(n));
    if (simt::thread_x() == 0) {
      inverse = simt::div_rn(1.0f, simt::sqrt_rn(simt::add_rn(mean, eps)));
    }
  }
  simt::sync_block();
  for (int i = simt::thread_x(); i < n; i += kThreads) {
    y[i] = simt::mul_rn(simt::mul_rn(x[i], inverse), weight[i]);
  }
}

SIMT_KERNEL(kThreads)
rope_kernel(int num_parts, int pairs, const float* cos, const float* sin, float* x, int64_t x_row,
            int64_t x_part) {
  const int row = simt::block_x();
  for (int i = simt::thread_x(); i < num_parts * pairs; i += kThreads) {
    const int pair = i % pairs;
    float* at = x + row * x_row + i / pairs * x_part + 2 * pair;
    const float c = cos[row * pairs + pair], s = sin[row * pairs + pair];
    const float a = at[0], b = at[1];
    at[0] = simt::fma_rn(a, c, -simt::mul_rn(b, s));
    at[1] = simt::fma_rn(a, s, simt::mul_rn(b, c));
  }
}

SIMT_KERNEL(kThreads)
silu_mul_kernel(int64_t n, float* gate, const float* up) {
  const int64_t i = int64_t{simt::block_x()} * kThreads + simt::thread_x();
  if (i < n) gate[i] = simt::mul_rn(silu_f32(gate[i]), up[i]);
}

SIMT_KERNEL(kThreads)
add_kernel(int64_t n, const float* from, float* to) {
  const int64_t i = int64_t{simt::block_x()} * kThreads + simt::thread_x();
  if (i < n) to[i] = simt::add_rn(to[i], from[i]);
}

SIMT_KERNEL(kThreads)
copy_rows_kernel(int width, const float* from, int64_t from_row, float* to, int64_t to_row) {
  for (int i = simt::thread_x(); i < width; i += kThreads) {
    to[simt::block_x() * to_row + i] = from[simt::block_x() * from_row + i];
  }
}

// ---- The cache and attention --------------------------------------------------------------------

template <RowType T>
struct Entry;
template <>
struct Entry<RowType::kBf16> {
  using Type = uint16_t;
  static SIMT_DEVICE float value(uint16_t bits) { return bf16_value(bits); }
  static SIMT_DEVICE uint16_t rounded(float value) { return to_bf16(value); }
};
template <>
struct Entry<RowType::kF32> {
  using Type = float;
  static SIMT_DEVICE float value(float value) { return value; }
  static SIMT_DEVICE float rounded(float value) { return value; }
};

constexpr int kBlock = 64;  // kAttentionBlock

template <RowType T>
SIMT_KERNEL(kThreads)
write_cache_kernel(CacheCall cache, const float* latent) {
  using E = Entry<T>;
  const int row = simt::block_x(), width = cache.rank + cache.rope;
  const int position = cache.num_positions[row] - 1;
  const int block = cache.block_table[row * cache.blocks_max + position / kBlock];
  auto* to = static_cast<typename E::Type*>(cache.entries) +
             (static_cast<size_t>(block) * kBlock + position % kBlock) * width;
  for (int i = simt::thread_x(); i < width; i += kThreads) {
    to[i] = E::rounded(latent[static_cast<size_t>(row) * width + i]);
  }
}

// The parts of the scratch: of each row and head p [blocks_max * 64], of each row and block m and l
// [heads].
struct Scratch {
  float* p;
  float* m;
  float* l;
};
SIMT_DEVICE Scratch parts_of(float* scratch, int num_rows, int heads, int blocks_max) {
  const size_t blocks = static_cast<size_t>(num_rows) * heads * blocks_max;
  return {scratch, scratch + blocks * kBlock, scratch + blocks * (kBlock + 1)};
}

constexpr int kScoreHeads = 32;      // of a block: a half-warp has two
constexpr int kScorePositions = 32;  // whose entries are in shared memory

// Scores of one block of positions, their maximum, exponentials and sum. grid (blocks, groups of 32
// heads, rows).
template <RowType T>
SIMT_KERNEL(kThreads)
scores_kernel(CacheCall cache, const float* q, int heads, float scale, float* scratch) {
  using E = Entry<T>;
  const int b = simt::block_x(), row = simt::block_z();
  const int positions = cache.num_positions[row];
  if (b * kBlock >= positions) return;
  const int count = positions - b * kBlock < kBlock ? positions - b * kBlock : kBlock;
  const int width = cache.rank + cache.rope;
  float* scores = simt::shared<float>();           // [32][64]
  float* entries = scores + kScoreHeads * kBlock;  // [32][width]
  const auto* block =
      static_cast<const typename E::Type*>(cache.entries) +
      static_cast<size_t>(cache.block_table[row * cache.blocks_max + b]) * kBlock * width;
  const int half = simt::thread_x() / 16, j = simt::thread_x() % 16;
  const int head0 = simt::block_y() * kScoreHeads + half * 2;
  const int last = heads - 1;  // heads beyond it compute the last one's again, unseen
  const float* q0 = q + (static_cast<size_t>(row) * heads + (head0 < last ? head0 : last)) * width;
  const float* q1 =
      q + (static_cast<size_t>(row) * heads + (head0 + 1 < last ? head0 + 1 : last)) * width;
  for (int first = 0; first < count; first += kScorePositions) {
    const int n = count - first < kScorePositions ? count - first : kScorePositions;
    // All have read the entries before.
    simt::sync_block();
    for (int i = simt::thread_x(); i < n * width; i += kThreads) {
      entries[i] = E::value(block[static_cast<size_t>(first) * width + i]);
    }
    simt::sync_block();
    for (int t = 0; t < n; ++t) {
      const float* entry = entries + t * width;
      float a = 0.0f, c = 0.0f;
      for (int i = j; i < width; i += 16) {
        a = simt::fma_rn(q0[i], entry[i], a);
        c = simt::fma_rn(q1[i], entry[i], c);
      }
      a = tree_sum16(a);
      c = tree_sum16(c);
      if (j == 0) {
        scores[(half * 2) * kBlock + first + t] = simt::mul_rn(scale, a);
        scores[(half * 2 + 1) * kBlock + first + t] = simt::mul_rn(scale, c);
      }
    }
  }
  simt::sync_warp();
  const Scratch out = parts_of(scratch, cache.num_rows, heads, cache.blocks_max);
  for (int h = 0; h < 2; ++h) {
    const float* of_head = scores + (half * 2 + h) * kBlock;
    float most = of_head[0];
    for (int t = j; t < count; t += 16) most = of_head[t] > most ? of_head[t] : most;
    most = max16(most);
    const bool real = head0 + h < heads;
    float* p = out.p + (static_cast<size_t>(row) * heads + head0 + h) * cache.blocks_max * kBlock +
               b * kBlock;
    float sum = 0.0f;
    for (int t = j; t < count; t += 16) {
      const float e = exp_f32(simt::add_rn(of_head[t], -most));
      sum = simt::add_rn(sum, e);
      if (real) p[t] = e;
    }
    sum = tree_sum16(sum);
    if (j == 0 && real) {
      const size_t at = (static_cast<size_t>(row) * cache.blocks_max + b) * heads + head0 + h;
      out.m[at] = most;
      out.l[at] = sum;
    }
  }
}

constexpr int kValueHeads = 16, kValueColumns = 32;

struct ValuesShared {
  float p[kValueHeads][kBlock];
  float a[kValueHeads], b[kValueHeads], m[kValueHeads], l[kValueHeads];
};

// Values of 32 columns of 16 heads, block after block. Parallel over heads and columns, so that no
// partial results are needed. grid (columns / 32, heads / 16, rows); a thread has a column of two
// heads.
template <RowType T>
SIMT_KERNEL(kThreads)
values_kernel(CacheCall cache, int heads, float* scratch, float* out) {
  using E = Entry<T>;
  ValuesShared& s = *simt::shared<ValuesShared>();
  const int row = simt::block_z(), head0 = simt::block_y() * kValueHeads;
  const int positions = cache.num_positions[row], width = cache.rank + cache.rope;
  const int lane = simt::thread_x() % 32, pair = simt::thread_x() / 32;
  const int column = simt::block_x() * kValueColumns + lane;
  const Scratch from = parts_of(scratch, cache.num_rows, heads, cache.blocks_max);
  float total[2] = {0.0f, 0.0f};
  for (int b = 0; b * kBlock < positions; ++b) {
    const int count = positions - b * kBlock < kBlock ? positions - b * kBlock : kBlock;
    // All have read what the block before left in shared memory.
    simt::sync_block();
    for (int i = simt::thread_x(); i < kValueHeads * kBlock; i += kThreads) {
      const int h = i / kBlock, t = i % kBlock;
      const bool real = t < count && head0 + h < heads;
      s.p[h][t] =
          real ? from.p[(static_cast<size_t>(row) * heads + head0 + h) * cache.blocks_max * kBlock +
                        b * kBlock + t]
               : 0.0f;
    }
    if (simt::thread_x() < kValueHeads && head0 + simt::thread_x() < heads) {
      // The chain of maxima and sums.
      const int h = simt::thread_x();
      const size_t at = (static_cast<size_t>(row) * cache.blocks_max + b) * heads + head0 + h;
      if (b == 0) {
        s.m[h] = from.m[at];
        s.l[h] = from.l[at];
      } else {
        const float most = from.m[at] > s.m[h] ? from.m[at] : s.m[h];
        s.a[h] = exp_f32(simt::add_rn(s.m[h], -most));
        s.b[h] = exp_f32(simt::add_rn(from.m[at], -most));
        s.m[h] = most;
        s.l[h] = simt::fma_rn(from.l[at], s.b[h], simt::mul_rn(s.l[h], s.a[h]));
      }
    }
    simt::sync_block();
    if (column >= cache.rank) continue;
    const auto* entry =
        static_cast<const typename E::Type*>(cache.entries) +
        static_cast<size_t>(cache.block_table[row * cache.blocks_max + b]) * kBlock * width +
        column;
    float o[2] = {0.0f, 0.0f};
    for (int t = 0; t < count; ++t) {
      const float e = E::value(entry[static_cast<size_t>(t) * width]);
      o[0] = simt::fma_rn(s.p[pair * 2][t], e, o[0]);
      o[1] = simt::fma_rn(s.p[pair * 2 + 1][t], e, o[1]);
    }
    for (int h = 0; h < 2; ++h) {
      total[h] =
          b == 0 ? o[h]
                 : simt::fma_rn(o[h], s.b[pair * 2 + h], simt::mul_rn(total[h], s.a[pair * 2 + h]));
    }
  }
  if (column >= cache.rank) return;
  for (int h = 0; h < 2; ++h) {
    const int head = head0 + pair * 2 + h;
    if (head >= heads) continue;
    out[(static_cast<size_t>(row) * heads + head) * cache.rank + column] =
        simt::div_rn(total[h], s.l[pair * 2 + h]);
  }
}

template <RowType T>
void launch_attend(StreamHandle stream, const CacheCall& cache, const AttendCall& call) {
  const auto rows = static_cast<unsigned>(cache.num_rows);
  const size_t score_bytes =
      (kScoreHeads * kBlock + static_cast<size_t>(kScorePositions) * (cache.rank + cache.rope)) *
      sizeof(float);
  simt::launch(
      scores_kernel<T>,
      dim3(static_cast<unsigned>(cache.blocks_max), blocks_for(call.heads, kScoreHeads), rows),
      kThreads, score_bytes, stream_of(stream), cache, call.q, call.heads, call.scale,
      call.scratch);
  simt::launch(
      values_kernel<T>,
      dim3(blocks_for(cache.rank, kValueColumns), blocks_for(call.heads, kValueHeads), rows),
      kThreads, sizeof(ValuesShared), stream_of(stream), cache, call.heads, call.scratch, call.out);
}

// ---- Router
// ---------------------------------------------------------------------------------------

constexpr float kMasked = -__builtin_inff();

struct Best {
  float value;
  int index;  // -1: none
};
SIMT_DEVICE bool is_better(const Best& a, const Best& b) {
  if (a.index < 0 || b.index < 0) return b.index < 0 && a.index >= 0;
  return a.value > b.value || (!(b.value > a.value) && a.index < b.index);
}
// The largest of n values that are not taken, the lower index among equals; the warp's lanes look
// together and all get it.
SIMT_DEVICE Best warp_best(const float* values, const uint8_t* taken, int n) {
  Best best{0.0f, -1};
  for (int i = simt::thread_x(); i < n; i += 32) {
    const Best one{values[i], i};
    if (!taken[i] && is_better(one, best)) best = one;
  }
  for (int mask = 16; mask >= 1; mask /= 2) {
    const Best other{simt::shuffle_xor(best.value, mask), simt::shuffle_xor(best.index, mask)};
    if (is_better(other, best)) best = other;
  }
  return best;
}

// A warp has a row. Shared: choice [n] floats, group scores [n_group] floats, then marks [n] and
// [n_group] bytes.
SIMT_KERNEL(32)
route_kernel(RouterShape shape, float* logits, const float* bias, int32_t* ids, float* weights,
             uint8_t* finite) {
  const int lane = simt::thread_x(), n = shape.n_routed_experts, k = shape.num_experts_per_tok;
  float* scores = logits + static_cast<size_t>(simt::block_x()) * n;
  ids += static_cast<size_t>(simt::block_x()) * k;
  weights += static_cast<size_t>(simt::block_x()) * k;
  float* choice = simt::shared<float>();
  float* group_scores = choice + n;
  auto* taken = reinterpret_cast<uint8_t*>(group_scores + shape.n_group);
  uint8_t* group_kept = taken + n;

  bool all_finite = true;
  for (int e = lane; e < n; e += 32) {
    all_finite &= (simt::as_bits(scores[e]) & 0x7f800000u) != 0x7f800000u;
  }
  if (simt::ballot(!all_finite) != 0) {
    for (int i = lane; i < k; i += 32) {
      ids[i] = -1;
      weights[i] = 0.0f;
    }
    if (lane == 0) finite[simt::block_x()] = 0;
    return;
  }
  if (lane == 0) finite[simt::block_x()] = 1;

  if (shape.scoring_func == ScoringFunc::kSigmoid) {
    for (int e = lane; e < n; e += 32) scores[e] = sigmoid_f32(scores[e]);
  } else {
    float most = scores[0];
    for (int e = lane % 16; e < n; e += 16) most = scores[e] > most ? scores[e] : most;
    most = max16(most);
    simt::sync_warp();  // all have read the logits
    for (int e = lane; e < n; e += 32) scores[e] = exp_f32(simt::add_rn(scores[e], -most));
    simt::sync_warp();
    float sum = 0.0f;
    for (int e = lane % 16; e < n; e += 16) sum = simt::add_rn(sum, scores[e]);
    sum = tree_sum16(sum);
    for (int e = lane; e < n; e += 32) scores[e] = simt::div_rn(scores[e], sum);
  }
  simt::sync_warp();
  const bool biased = shape.topk_method == TopkMethod::kNoauxTc && bias != nullptr;
  for (int e = lane; e < n; e += 32) {
    choice[e] = biased ? simt::add_rn(scores[e], bias[e]) : scores[e];
    taken[e] = 0;
  }
  simt::sync_warp();

  if (shape.n_group > 1 && shape.topk_method != TopkMethod::kGreedy) {
    const int size = n / shape.n_group;
    for (int g = lane; g < shape.n_group; g += 32) {
      float first = kMasked, second = kMasked;
      for (int e = g * size; e < (g + 1) * size; ++e) {
        if (choice[e] > first) {
          second = first;
          first = choice[e];
        } else if (choice[e] > second) {
          second = choice[e];
        }
      }
      group_scores[g] = shape.topk_method == TopkMethod::kNoauxTc && size > 1
                            ? simt::add_rn(first, second)
                            : first;
      group_kept[g] = 0;
    }
    simt::sync_warp();
    for (int i = 0; i < shape.topk_group; ++i) {
      const Best best = warp_best(group_scores, group_kept, shape.n_group);
      simt::sync_warp();
      if (lane == 0) group_kept[best.index] = 1;
      simt::sync_warp();
    }
    for (int e = lane; e < n; e += 32) {
      if (!group_kept[e / size]) choice[e] = kMasked;
    }
    simt::sync_warp();
  }
  for (int i = 0; i < k; ++i) {
    const Best best = warp_best(choice, taken, n);
    simt::sync_warp();
    if (lane == 0) taken[best.index] = 1;
    simt::sync_warp();
  }
  if (lane != 0) return;
  float sum = 0.0f;
  for (int e = 0, i = 0; e < n; ++e) {
    if (!taken[e]) continue;
    ids[i++] = e;
    sum = simt::add_rn(sum, scores[e]);
  }
  for (int i = 0; i < k; ++i) {
    float weight = scores[ids[i]];
    if (shape.norm_topk_prob) weight = simt::div_rn(weight, simt::add_rn(sum, 1e-20f));
    weights[i] = simt::mul_rn(weight, shape.routed_scaling_factor);
  }
}

}  // namespace

void linear(StreamHandle stream, const LinearCall& call) {
  switch (call.format) {
    case WeightFormat::kFp8E4m3:
      return launch_linear<WeightFormat::kFp8E4m3>(stream, call);
    case WeightFormat::kBf16:
      return launch_linear<WeightFormat::kBf16>(stream, call);
    case WeightFormat::kF32:
      return launch_linear<WeightFormat::kF32>(stream, call);
    case WeightFormat::kInt4:
      return launch_linear<WeightFormat::kInt4>(stream, call);
    case WeightFormat::kInt8:
    case WeightFormat::kF16:
      CHECK(false);  // has no kernel: CudaCompute::make() refuses it
  }
}

void rms_norm(StreamHandle stream, int32_t num_rows, int32_t n, const float* x, int64_t x_row,
              const float* weight, float eps, float* y, int64_t y_row) {
  simt::launch(rms_norm_kernel, dim3(static_cast<unsigned>(num_rows)), kThreads, sizeof(float),
               stream_of(stream), n, x, x_row, weight, eps, y, y_row);
}

void rope(StreamHandle stream, int32_t num_rows, int32_t num_parts, int32_t pairs, const float* cos,
          const float* sin, float* x, int64_t x_row, int64_t x_part) {
  simt::launch(rope_kernel, dim3(static_cast<unsigned>(num_rows)), kThreads, 0, stream_of(stream),
               num_parts, pairs, cos, sin, x, x_row, x_part);
}

void silu_mul(StreamHandle stream, int64_t n, float* gate, const float* up) {
  simt::launch(silu_mul_kernel, dim3(blocks_for(n, kThreads)), kThreads, 0, stream_of(stream), n,
               gate, up);
}

void add(StreamHandle stream, int64_t n, const float* from, float* to) {
  simt::launch(add_kernel, dim3(blocks_for(n, kThreads)), kThreads, 0, stream_of(stream), n, from,
               to);
}

void copy_rows(StreamHandle stream, int32_t num_rows, int32_t width, const float* from,
               int64_t from_row, float* to, int64_t to_row) {
  simt::launch(copy_rows_kernel, dim3(static_cast<unsigned>(num_rows)), kThreads, 0,
               stream_of(stream), width, from, from_row, to, to_row);
}

void write_cache(StreamHandle stream, const CacheCall& cache, const float* latent) {
  const dim3 grid(static_cast<unsigned>(cache.num_rows));
  if (cache.type == RowType::kBf16) {
    simt::launch(write_cache_kernel<RowType::kBf16>, grid, kThreads, 0, stream_of(stream), cache,
                 latent);
  } else {
    simt::launch(write_cache_kernel<RowType::kF32>, grid, kThreads, 0, stream_of(stream), cache,
                 latent);
  }
}

int64_t attend_scratch_floats(int32_t num_rows, int32_t heads, int32_t blocks_max) {
  return int64_t{num_rows} * heads * blocks_max * (kBlock + 2);
}

void mla_attend(StreamHandle stream, const CacheCall& cache, const AttendCall& call) {
  if (cache.type == RowType::kBf16) {
    launch_attend<RowType::kBf16>(stream, cache, call);
  } else {
    launch_attend<RowType::kF32>(stream, cache, call);
  }
}

void route(StreamHandle stream, const RouterShape& shape, int32_t num_rows, float* logits,
           const float* bias, int32_t* ids, float* weights, uint8_t* finite) {
  const size_t shared_bytes =
      static_cast<size_t>(shape.n_routed_experts + shape.n_group) * (sizeof(float) + 1);
  simt::launch(route_kernel, dim3(static_cast<unsigned>(num_rows)), 32, shared_bytes,
               stream_of(stream), shape, logits, bias, ids, weights, finite);
}

}  // namespace atl::kernels::cuda
