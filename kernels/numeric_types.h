// The number formats of weights and rows, converted one at a time.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace atl::kernels {

// How the weights of a matrix are stored. kFp8E4m3 carries one FP32 scale per 128x128 block of the
// checkpoint's matrix; the others have no scale.
enum class WeightFormat : uint8_t { kF32, kBf16, kFp8E4m3 };

// Rows on the wire and entries of the KV cache.
enum class RowType : uint8_t { kBf16, kF32 };

constexpr size_t code_bytes(WeightFormat format) {
  switch (format) {
    case WeightFormat::kF32: return 4;
    case WeightFormat::kBf16: return 2;
    case WeightFormat::kFp8E4m3: return 1;
  }
  return 0;
}
constexpr size_t element_bytes(RowType type) { return type == RowType::kBf16 ? 2 : 4; }

constexpr std::string_view to_string(WeightFormat format) {
  switch (format) {
    case WeightFormat::kF32: return "f32";
    case WeightFormat::kBf16: return "bf16";
    case WeightFormat::kFp8E4m3: return "fp8";
  }
  return "?";
}
constexpr std::string_view to_string(RowType type) { return type == RowType::kBf16 ? "bf16" : "f32"; }

// BF16 is the upper half of an FP32.
constexpr float bf16_to_float(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

// Rounds to nearest, ties to even; overflow goes to infinity, a NaN stays a (quiet) NaN.
constexpr uint16_t float_to_bf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// E4M3 "fn": 1 sign, 4 exponent (bias 7), 3 mantissa bits, no infinities; 0x7F and 0xFF are NaN
// (docs/model.md 2.4; OCP 8-bit floating point specification).
constexpr bool e4m3_is_nan(uint8_t code) { return (code & 0x7f) == 0x7f; }
constexpr float e4m3_to_float(uint8_t code) {
  const uint32_t sign = static_cast<uint32_t>(code & 0x80) << 24;
  const uint32_t exponent = (code >> 3) & 0xf;
  const uint32_t mantissa = code & 0x7;
  if (e4m3_is_nan(code)) return std::bit_cast<float>(sign | 0x7fc00000u);
  if (exponent == 0) {  // subnormal: mantissa * 2^-9
    const float magnitude = static_cast<float>(mantissa) * 0x1p-9f;
    return sign ? -magnitude : magnitude;
  }
  return std::bit_cast<float>(sign | ((exponent + 120) << 23) | (mantissa << 20));
}

}  // namespace atl::kernels
