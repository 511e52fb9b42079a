// The int8 weight format: signed codes with one FP32 scale per output and 128-block of k.
//
// A weight is scale * code, code in [-127, 127]. Blocks are those of the whole matrix, cut at the
// packed matrix's ends (as the scale groups of kernels/panel.h are). A panel is its blocks one
// after the other, each
//
//   [16] FP32 scales | [2 * ceil(length / 8)][16] 32-bit words
//
// A word holds 4 adjacent codes of one output, the first k in its lowest byte: what VNNI adds up,
// and 16 of these lines are an operand of AMX as they lie. Words behind a block's last k, up to a
// whole 8, are zero. A whole block is 2112 bytes for 16 x 128 weights: 8.25 bits per weight.
// docs/numbers.md has the arithmetic.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "base/units.h"
#include "kernels/numeric_types.h"

namespace atl::kernels {

inline constexpr int64_t kInt8Block = 128;
inline constexpr size_t kInt8ScaleLine = 64;  // one FP32 scale of each of a panel's 16 outputs
inline constexpr size_t kInt8WordLine = 64;   // one word of each
inline constexpr int64_t kInt8PerStep = 8;    // codes of an output in two lines
inline constexpr int kInt8CodeMax = 127;

// The part of a 128-block that a panel has.
struct Int8Block {
  int64_t begin = 0;  // in k of the packed matrix
  int64_t end = 0;
  int64_t block = 0;  // counted from the packed matrix's first
  size_t scales = 0;  // byte offset in the panel
  size_t codes = 0;   // byte offset in the panel
};

constexpr size_t int8_block_bytes(int64_t length) {
  return kInt8ScaleLine + static_cast<size_t>(2 * ceil_div(length, kInt8PerStep)) * kInt8WordLine;
}

// Walks over the blocks of a panel of k columns, the first of which is column k_offset of the whole
// matrix: fn(const Int8Block&).
template <class Fn>
constexpr void for_each_int8_block(int64_t k, int64_t k_offset, const Fn& fn) {
  Int8Block block;
  for (size_t at = 0; block.begin < k; ++block.block, block.begin = block.end) {
    const int64_t place = (k_offset + block.begin) % kInt8Block;
    block.end = std::min(k, block.begin + kInt8Block - place);
    block.scales = at;
    block.codes = at + kInt8ScaleLine;
    at += int8_block_bytes(block.end - block.begin);
    fn(block);
  }
}

// Bytes of such a panel.
constexpr size_t int8_panel_bytes(int64_t k, int64_t k_offset) {
  if (k == 0) return 0;
  const int64_t first = std::min(k, kInt8Block - k_offset % kInt8Block);
  const int64_t last = (k - first) % kInt8Block;
  return int8_block_bytes(first) +
         static_cast<size_t>((k - first) / kInt8Block) * int8_block_bytes(kInt8Block) +
         (last == 0 ? 0 : int8_block_bytes(last));
}

// Where in a block's codes that of output `lane` and the block's i-th k lies, in bytes.
constexpr size_t int8_code_offset(int64_t lane, int64_t i) {
  return static_cast<size_t>(i / 4) * kInt8WordLine + static_cast<size_t>(lane * 4 + i % 4);
}

// The codes and the scale of one block of n <= 128 weights: scale = largest magnitude / 127, code =
// weight * (127 / largest), rounded to nearest, ties to even. Zeros where the largest is below
// 2^-100 (its inverse could overflow). Not finite: a NaN scale, so that no result is.
void quantize_int8(const float* weights, int64_t n, int8_t* codes, float* scale);

// The same with vectors (cpu/int4_kernel.cc) and without. Also how a row meets int8 products, a
// 128-block of it (Activations::kI8).
float round_to_int8(const float* values, int64_t n, int8_t* codes);
namespace reference {
float round_to_int8(const float* values, int64_t n, int8_t* codes);
}  // namespace reference

}  // namespace atl::kernels
