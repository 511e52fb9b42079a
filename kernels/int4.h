// The int4 weight format: signed 4-bit codes with one BF16 scale per output and group of 64 k.
//
// A weight is scale * code, code in [-8, 7], stored as code + 8. Groups are the stretches of k
// inside a 64-block of the whole matrix, cut at the tile's ends (as the 128-blocks of
// kernels/panel.h are, which each hold up to two groups). A panel is its 128-blocks one after the
// other, each
//
//   [groups][16] BF16 scales, zeros to 64 bytes | per group [ceil(length / 8)][16] 32-bit words
//
// A word holds 8 codes of one output: byte j has k + j in its low and k + 4 + j in its high half,
// so that a mask (and a shift by 4) gives the 4 adjacent bytes that maddubs, VNNI and AMX take.
// Every group starts a word of its own; the rest of its last word is zero bits. A whole block is
// 1088 bytes for 16 x 128 weights: 4.25 bits per weight. docs/numbers.md has the arithmetic, and
// what was measured to choose all this.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "base/units.h"
#include "kernels/numeric_types.h"

namespace atl::kernels {

inline constexpr int64_t kInt4Group = 64;
inline constexpr int64_t kInt4Block = 128;  // k that share an int8 scale of a row: two groups
inline constexpr int64_t kInt4PerWord = 8;
inline constexpr size_t kInt4WordLine = 64;   // one word of each of a panel's 16 outputs
inline constexpr size_t kInt4ScaleLine = 32;  // one BF16 scale of each
inline constexpr int kInt4Zero = 8;           // what is stored for code 0

// Activations::kI8: a row's 128-block whose largest magnitude is below this counts as zero (its
// inverse could overflow).
inline constexpr float kI8SmallestBlock = 0x1p-100f;

// One scale group of a panel.
struct Int4Group {
  int64_t begin = 0;  // in k of the packed matrix
  int64_t end = 0;
  int64_t block = 0;  // 128-block, counted from the packed matrix's first
  int64_t slot = 0;   // which 64 of the whole 128-block
  size_t scales = 0;  // byte offset in the panel of its 16 scales
  size_t codes = 0;   // byte offset in the panel of its words
  bool ends_block = false;
};

// Bytes of the scales, and of all, of the part [begin, end) of a 128-block, 0 <= begin < end <=
// 128.
constexpr size_t int4_block_scale_bytes(int64_t begin, int64_t end) {
  const int64_t groups = (end - 1) / kInt4Group - begin / kInt4Group + 1;
  return static_cast<size_t>(ceil_div(groups, 2)) * kInt4WordLine;
}
constexpr size_t int4_block_bytes(int64_t begin, int64_t end) {
  size_t bytes = int4_block_scale_bytes(begin, end);
  while (begin < end) {
    const int64_t group_end = std::min(end, (begin / kInt4Group + 1) * kInt4Group);
    bytes += static_cast<size_t>(ceil_div(group_end - begin, kInt4PerWord)) * kInt4WordLine;
    begin = group_end;
  }
  return bytes;
}

// Bytes of a panel of k columns, the first of which is column k_offset of the whole matrix.
constexpr size_t int4_panel_bytes(int64_t k, int64_t k_offset) {
  if (k == 0) return 0;
  const int64_t first = k_offset % kInt4Block;
  const int64_t end = first + k;
  if (end <= kInt4Block) return int4_block_bytes(first, end);
  const int64_t last = end % kInt4Block;
  return int4_block_bytes(first, kInt4Block) +
         static_cast<size_t>(end / kInt4Block - 1) * int4_block_bytes(0, kInt4Block) +
         (last == 0 ? 0 : int4_block_bytes(0, last));
}

// Walks over the groups of such a panel: fn(const Int4Group&).
template <class Fn>
constexpr void for_each_int4_group(int64_t k, int64_t k_offset, const Fn& fn) {
  Int4Group group;
  const int64_t first = k_offset % kInt4Block;  // places below count from the first block's begin
  size_t at = 0;
  for (int64_t place = first, stop = first + k; place < stop; ++group.block) {
    const int64_t block = place / kInt4Block * kInt4Block;
    const int64_t block_end = std::min(stop, block + kInt4Block);
    group.scales = at;
    group.codes = at + int4_block_scale_bytes(place - block, block_end - block);
    while (place < block_end) {
      const int64_t end = std::min(block_end, (place / kInt4Group + 1) * kInt4Group);
      group.begin = place - first;
      group.end = end - first;
      group.slot = (place - block) / kInt4Group;
      group.ends_block = end == block_end;
      fn(group);
      group.scales += kInt4ScaleLine;
      group.codes += static_cast<size_t>(ceil_div(end - place, kInt4PerWord)) * kInt4WordLine;
      place = end;
    }
    at = group.codes;
  }
}

// Where in its word the code of place `i` of a group (i mod 8) lies: bits to shift right.
constexpr int int4_shift(int64_t i) {
  return static_cast<int>(i % 4 * 8 + i % kInt4PerWord / 4 * 4);
}

// The codes (-8..7) and the BF16 scale of one group of n <= 64 finite weights. The scale is the one
// of 38 candidates, m / t with m the (first) weight of largest magnitude and |t| from 6.5 to 11 by
// 0.25, of either sign, rounded to BF16, that has the least sum of squared errors of
// weight - scale * code, code the nearest (ties to even) in range; FP32 throughout, 16 partial sums
// (docs/numbers.md). Same results on every CPU. Not finite: a NaN scale, so that no result is.
void quantize_int4(const float* weights, int64_t n, int8_t* codes, uint16_t* scale);

// The candidates: divisors from 6.5 to 11 by 0.25, of which 8 would just use all of [-8, 7].
inline constexpr int kInt4Divisors = 19;
constexpr float int4_divisor(int d) { return 6.5f + 0.25f * static_cast<float>(d); }

// The choice among them, candidates in order: of least error, the first one where even errors
// overflow.
struct Int4Choice {
  float scale = 0.0f, error = 0.0f;
  void consider(float candidate, float candidate_error) {
    if (!(candidate > 0x1p-126f || candidate < -0x1p-126f)) return;  // its inverse may overflow
    if (!(candidate_error < error || scale == 0.0f)) return;
    scale = candidate;
    error = candidate_error;
  }
};

// The same with vectors (cpu/int4_kernel.cc) and without, for kInt4Group finite weights.
float best_int4_scale(const float* weights, float largest);
namespace reference {
float best_int4_scale(const float* weights, float largest);
}  // namespace reference

}  // namespace atl::kernels
