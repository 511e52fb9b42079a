// The tensor types of GGUF files: how large their blocks are, and what numbers they stand for.
// Source: the definitions of ggml's block formats; values are compared bit by bit with those of the
// `gguf` package (tests/golden/gguf). docs/gguf.md draws the blocks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

namespace atl::storage {

// The numbers of the file format.
enum class GgmlType : uint32_t {
  kF32 = 0,
  kF16 = 1,
  kQ4_0 = 2,
  kQ4_1 = 3,
  kQ5_0 = 6,
  kQ5_1 = 7,
  kQ8_0 = 8,
  kQ2_K = 10,
  kQ3_K = 11,
  kQ4_K = 12,
  kQ5_K = 13,
  kQ6_K = 14,
  kIq4Nl = 20,
  kIq4Xs = 23,
  kBf16 = 30,
};

// A type of the format, whether or not Atoll reads it.
struct GgmlTypeInfo {
  uint32_t number = 0;
  std::string_view name;     // as the format's tools print it: "Q4_K"
  int64_t block_values = 0;  // 0: unknown
  size_t block_bytes = 0;
  bool readable = false;
};

// nullptr: no type that is known.
const GgmlTypeInfo* find_ggml_type(uint32_t number);
const GgmlTypeInfo& info_of(GgmlType type);
// "F32, F16, BF16, Q8_0, ...": those that are read.
std::string_view readable_ggml_types();

// The values of whole blocks as FP32, rounded where the definition's own products and sums are.
//   blocks  a whole number of blocks of the type
//   values  block_values for each
void dequantize(GgmlType type, std::span<const std::byte> blocks, std::span<float> values);

}  // namespace atl::storage
