#include "storage/gguf/gguf_types.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "base/check.h"
#include "kernels/numeric_types.h"

namespace atl::storage {
namespace {

constexpr GgmlTypeInfo kTypes[] = {
    {0, "F32", 1, 4, true},          {1, "F16", 1, 2, true},
    {2, "Q4_0", 32, 18, true},       {3, "Q4_1", 32, 20, true},
    {6, "Q5_0", 32, 22, true},       {7, "Q5_1", 32, 24, true},
    {8, "Q8_0", 32, 34, true},       {9, "Q8_1", 32, 40, false},
    {10, "Q2_K", 256, 84, true},     {11, "Q3_K", 256, 110, true},
    {12, "Q4_K", 256, 144, true},    {13, "Q5_K", 256, 176, true},
    {14, "Q6_K", 256, 210, true},    {15, "Q8_K", 256, 292, false},
    {16, "IQ2_XXS", 256, 66, false}, {17, "IQ2_XS", 256, 74, false},
    {18, "IQ3_XXS", 256, 98, false}, {19, "IQ1_S", 256, 50, false},
    {20, "IQ4_NL", 32, 18, true},    {21, "IQ3_S", 256, 110, false},
    {22, "IQ2_S", 256, 82, false},   {23, "IQ4_XS", 256, 136, true},
    {24, "I8", 1, 1, false},         {25, "I16", 1, 2, false},
    {26, "I32", 1, 4, false},        {27, "I64", 1, 8, false},
    {28, "F64", 1, 8, false},        {29, "IQ1_M", 256, 56, false},
    {30, "BF16", 1, 2, true},        {34, "TQ1_0", 256, 54, false},
    {35, "TQ2_0", 256, 66, false},   {39, "MXFP4", 32, 17, false},
    {40, "NVFP4", 64, 36, false},    {41, "Q1_0", 128, 18, false},
};

// The 16 values of IQ4_NL and IQ4_XS. Source: ggml's definition of the two.
constexpr int8_t kIq4Values[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                   1,    13,   25,  38,  53,  69,  89,  113};

uint16_t u16_at(const uint8_t* at) { return static_cast<uint16_t>(at[0] | at[1] << 8); }
float f16_at(const uint8_t* at) { return kernels::f16_to_float(u16_at(at)); }
int low(uint8_t byte) { return byte & 15; }
int high(uint8_t byte) { return byte >> 4; }

// Q4_0: F16 d | 16 bytes: value i in the low half of byte i, value 16 + i in the high one.
void q4_0(const uint8_t* in, float* out) {
  const float d = f16_at(in);
  for (int i = 0; i < 16; ++i) {
    out[i] = d * static_cast<float>(low(in[2 + i]) - 8);
    out[16 + i] = d * static_cast<float>(high(in[2 + i]) - 8);
  }
}

// Q4_1: F16 d, m | as Q4_0.
void q4_1(const uint8_t* in, float* out) {
  const float d = f16_at(in), m = f16_at(in + 2);
  for (int i = 0; i < 16; ++i) {
    out[i] = d * static_cast<float>(low(in[4 + i])) + m;
    out[16 + i] = d * static_cast<float>(high(in[4 + i])) + m;
  }
}

// The 5-bit codes of Q5_0 and Q5_1: bit i of `high_bits` is the fifth of value i.
void five_bit_codes(const uint8_t* high_bits, const uint8_t* nibbles, int* codes) {
  for (int i = 0; i < 32; ++i) {
    const int fifth = high_bits[i / 8] >> (i % 8) & 1;
    codes[i] = (i < 16 ? low(nibbles[i]) : high(nibbles[i - 16])) | fifth << 4;
  }
}

// Q5_0: F16 d | 4 bytes of fifth bits | as Q4_0.
void q5_0(const uint8_t* in, float* out) {
  const float d = f16_at(in);
  int codes[32];
  five_bit_codes(in + 2, in + 6, codes);
  for (int i = 0; i < 32; ++i) out[i] = d * static_cast<float>(codes[i] - 16);
}

// Q5_1: F16 d, m | as Q5_0.
void q5_1(const uint8_t* in, float* out) {
  const float d = f16_at(in), m = f16_at(in + 2);
  int codes[32];
  five_bit_codes(in + 4, in + 8, codes);
  for (int i = 0; i < 32; ++i) out[i] = d * static_cast<float>(codes[i]) + m;
}

// Q8_0: F16 d | 32 signed bytes.
void q8_0(const uint8_t* in, float* out) {
  const float d = f16_at(in);
  for (int i = 0; i < 32; ++i) out[i] = static_cast<float>(static_cast<int8_t>(in[2 + i])) * d;
}

// 2-bit codes of Q2_K and Q3_K: 64 bytes, of which 32 hold 128 values: value i of them is in byte
// i % 32, at bit 2 (i / 32).
int two_bit_code(const uint8_t* codes, int i) {
  return codes[i / 128 * 32 + i % 32] >> (2 * (i / 32 % 4)) & 3;
}

// Q2_K: 16 bytes, scale (low) and minimum (high half) of 16 values each | codes | F16 d, dmin.
void q2_k(const uint8_t* in, float* out) {
  const float d = f16_at(in + 80), dmin = f16_at(in + 82);
  for (int i = 0; i < 256; ++i) {
    const uint8_t packed = in[i / 16];
    const float scale = d * static_cast<float>(low(packed));
    const float minimum = dmin * static_cast<float>(high(packed));
    out[i] = scale * static_cast<float>(two_bit_code(in + 16, i)) - minimum;
  }
}

// Q3_K: 32 bytes of third bits (bit i / 32 of byte i % 32; a 0 subtracts 4) | codes | 12 bytes of
// 6-bit scales + 32: four low bits of scale j in byte j % 8, its low or high half, two high bits in
// byte 8 + j % 4 at bit 2 (j / 4) | F16 d.
void q3_k(const uint8_t* in, float* out) {
  const uint8_t* packed = in + 96;
  const float d = f16_at(in + 108);
  float scales[16];
  for (int j = 0; j < 16; ++j) {
    const int four = j < 8 ? low(packed[j]) : high(packed[j - 8]);
    const int two = packed[8 + j % 4] >> (2 * (j / 4)) & 3;
    scales[j] = d * static_cast<float>((four | two << 4) - 32);
  }
  for (int i = 0; i < 256; ++i) {
    const int third = in[i % 32] >> (i / 32) & 1;
    const int code = two_bit_code(in + 32, i) - (third ? 0 : 4);
    out[i] = scales[i / 16] * static_cast<float>(code);
  }
}

// The 12 bytes of Q4_K and Q5_K: 6-bit scales and minima of 8 times 32 values. The first four are
// the low 6 bits of bytes 0..3 and 4..7; of the others the low 4 bits are the halves of
// bytes 8..11, the high 2 the high bits of bytes 0..3 and 4..7.
void scales_and_minima(const uint8_t* packed, int* scales, int* minima) {
  for (int j = 0; j < 4; ++j) {
    scales[j] = packed[j] & 63;
    minima[j] = packed[4 + j] & 63;
    scales[4 + j] = low(packed[8 + j]) | packed[j] >> 6 << 4;
    minima[4 + j] = high(packed[8 + j]) | packed[4 + j] >> 6 << 4;
  }
}

// 4-bit codes of Q4_K and Q5_K: 32 bytes hold 64 values, the first 32 in their low halves.
int four_bit_code(const uint8_t* codes, int i) {
  const uint8_t byte = codes[i / 64 * 32 + i % 32];
  return i / 32 % 2 == 0 ? low(byte) : high(byte);
}

// Q4_K: F16 d, dmin | 12 bytes of scales | 128 bytes of codes. Q5_K: 32 bytes of fifth bits (bit
// i / 32 of byte i % 32) between the two.
void q4_or_q5_k(const uint8_t* in, const uint8_t* fifth_bits, const uint8_t* codes, float* out) {
  const float d = f16_at(in), dmin = f16_at(in + 2);
  int scales[8], minima[8];
  scales_and_minima(in + 4, scales, minima);
  for (int i = 0; i < 256; ++i) {
    const float scale = d * static_cast<float>(scales[i / 32]);
    const float minimum = dmin * static_cast<float>(minima[i / 32]);
    const int fifth = fifth_bits == nullptr ? 0 : fifth_bits[i % 32] >> (i / 32) & 1;
    out[i] = scale * static_cast<float>(four_bit_code(codes, i) | fifth << 4) - minimum;
  }
}
void q4_k(const uint8_t* in, float* out) { q4_or_q5_k(in, nullptr, in + 16, out); }
void q5_k(const uint8_t* in, float* out) { q4_or_q5_k(in, in + 16, in + 48, out); }

// Q6_K: 128 bytes of low halves (64 bytes hold 128 values, the first 64 in their low halves) | 64
// of upper bit pairs (as the codes of Q2_K) | 16 signed scales | F16 d. Codes count from -32.
void q6_k(const uint8_t* in, float* out) {
  const float d = f16_at(in + 208);
  for (int i = 0; i < 256; ++i) {
    const uint8_t byte = in[i / 128 * 64 + i % 64];
    const int four = i / 64 % 2 == 0 ? low(byte) : high(byte);
    const int code = (four | two_bit_code(in + 128, i) << 4) - 32;
    const float scale = d * static_cast<float>(static_cast<int8_t>(in[192 + i / 16]));
    out[i] = scale * static_cast<float>(code);
  }
}

// IQ4_NL: as Q4_0, but codes name the 16 values.
void iq4_nl(const uint8_t* in, float* out) {
  const float d = f16_at(in);
  for (int i = 0; i < 16; ++i) {
    out[i] = d * static_cast<float>(kIq4Values[low(in[2 + i])]);
    out[16 + i] = d * static_cast<float>(kIq4Values[high(in[2 + i])]);
  }
}

// IQ4_XS: F16 d | 2 bytes: the upper two bits of 8 scales | 4 bytes: their low four | 8 times 16
// bytes of 32 codes as in IQ4_NL. Scales count from -32.
void iq4_xs(const uint8_t* in, float* out) {
  const float d = f16_at(in);
  for (int j = 0; j < 8; ++j) {
    const uint8_t byte = in[4 + j / 2];
    const int two = u16_at(in + 2) >> (2 * j) & 3;
    const int scale = ((j % 2 == 0 ? low(byte) : high(byte)) | two << 4) - 32;
    const float dl = d * static_cast<float>(scale);
    const uint8_t* codes = in + 8 + 16 * j;
    for (int i = 0; i < 16; ++i) {
      out[32 * j + i] = dl * static_cast<float>(kIq4Values[low(codes[i])]);
      out[32 * j + 16 + i] = dl * static_cast<float>(kIq4Values[high(codes[i])]);
    }
  }
}

using DequantizeBlock = void (*)(const uint8_t* in, float* out);

DequantizeBlock block_function(GgmlType type) {
  switch (type) {
    case GgmlType::kF32:
      return [](const uint8_t* in, float* out) { std::memcpy(out, in, sizeof *out); };
    case GgmlType::kF16:
      return [](const uint8_t* in, float* out) { *out = f16_at(in); };
    case GgmlType::kBf16:
      return [](const uint8_t* in, float* out) { *out = kernels::bf16_to_float(u16_at(in)); };
    case GgmlType::kQ4_0:
      return q4_0;
    case GgmlType::kQ4_1:
      return q4_1;
    case GgmlType::kQ5_0:
      return q5_0;
    case GgmlType::kQ5_1:
      return q5_1;
    case GgmlType::kQ8_0:
      return q8_0;
    case GgmlType::kQ2_K:
      return q2_k;
    case GgmlType::kQ3_K:
      return q3_k;
    case GgmlType::kQ4_K:
      return q4_k;
    case GgmlType::kQ5_K:
      return q5_k;
    case GgmlType::kQ6_K:
      return q6_k;
    case GgmlType::kIq4Nl:
      return iq4_nl;
    case GgmlType::kIq4Xs:
      return iq4_xs;
  }
  return nullptr;
}

}  // namespace

const GgmlTypeInfo* find_ggml_type(uint32_t number) {
  const auto* found = std::find_if(std::begin(kTypes), std::end(kTypes),
                                   [&](const GgmlTypeInfo& type) { return type.number == number; });
  return found == std::end(kTypes) ? nullptr : found;
}

const GgmlTypeInfo& info_of(GgmlType type) {
  const GgmlTypeInfo* info = find_ggml_type(static_cast<uint32_t>(type));
  CHECK(info != nullptr);
  return *info;
}

std::string_view readable_ggml_types() {
  return "F32, F16, BF16, Q8_0, Q6_K, Q5_K, Q5_1, Q5_0, Q4_K, Q4_1, Q4_0, IQ4_XS, IQ4_NL, Q3_K, "
         "Q2_K";
}

void dequantize(GgmlType type, std::span<const std::byte> blocks, std::span<float> values) {
  const GgmlTypeInfo& info = info_of(type);
  const DequantizeBlock dequantize_block = block_function(type);
  CHECK(dequantize_block != nullptr);
  CHECK_EQ(blocks.size() % info.block_bytes, 0u);
  CHECK_EQ(values.size(),
           blocks.size() / info.block_bytes * static_cast<size_t>(info.block_values));
  const auto* in = reinterpret_cast<const uint8_t*>(blocks.data());
  float* out = values.data();
  for (size_t at = 0; at < blocks.size(); at += info.block_bytes, out += info.block_values) {
    dequantize_block(in + at, out);
  }
}

}  // namespace atl::storage
