// The number formats of weights and rows, converted one at a time.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace atl::kernels {

// How the weights of a matrix are stored. kFp8E4m3 carries FP32 scales, one per 128x128 block of
// the checkpoint's matrix; kInt4 (kernels/int4.h) and kInt8 (kernels/int8.h) are only ever made by
// packing and have their scales among their codes; the others have no scale.
// kF16 (IEEE binary16) is a checkpoint's own: nothing is converted to it.
enum class WeightFormat : uint8_t { kF32, kBf16, kFp8E4m3, kInt4, kInt8, kF16 };

// Made by packing alone: no checkpoint has it.
constexpr bool is_packed_only(WeightFormat format) {
  return format == WeightFormat::kInt4 || format == WeightFormat::kInt8;
}

// What a linear layer does with its rows: takes them as they are, or rounds them to int8 per block
// of 128 (kInt4, which has the choice, and kInt8, which has only this). Part of the arithmetic, not
// of the weights' bytes.
enum class Activations : uint8_t { kF32, kI8 };

// Rows on the wire and entries of the KV cache.
enum class RowType : uint8_t { kBf16, kF32 };

constexpr int code_bits(WeightFormat format) {
  switch (format) {
    case WeightFormat::kF32:
      return 32;
    case WeightFormat::kBf16:
    case WeightFormat::kF16:
      return 16;
    case WeightFormat::kFp8E4m3:
      return 8;
    case WeightFormat::kInt4:
      return 4;
    case WeightFormat::kInt8:
      return 8;
  }
  return 0;
}
// Bytes of one element of a checkpoint's matrix, which is never packed only.
constexpr size_t code_bytes(WeightFormat format) {
  return static_cast<size_t>(code_bits(format)) / 8;
}
constexpr size_t element_bytes(RowType type) { return type == RowType::kBf16 ? 2 : 4; }

constexpr std::string_view to_string(WeightFormat format) {
  switch (format) {
    case WeightFormat::kF32:
      return "f32";
    case WeightFormat::kBf16:
      return "bf16";
    case WeightFormat::kFp8E4m3:
      return "fp8";
    case WeightFormat::kInt4:
      return "int4";
    case WeightFormat::kInt8:
      return "int8";
    case WeightFormat::kF16:
      return "f16";
  }
  return "?";
}
constexpr std::string_view to_string(Activations activations) {
  return activations == Activations::kF32 ? "f32" : "i8";
}
// The format or activations of that name, if there is one.
constexpr std::optional<WeightFormat> parse_weight_format(std::string_view name) {
  for (WeightFormat format : {WeightFormat::kF32, WeightFormat::kBf16, WeightFormat::kFp8E4m3,
                              WeightFormat::kInt4, WeightFormat::kInt8, WeightFormat::kF16}) {
    if (name == to_string(format)) return format;
  }
  return std::nullopt;
}
constexpr std::optional<Activations> parse_activations(std::string_view name) {
  for (Activations activations : {Activations::kF32, Activations::kI8}) {
    if (name == to_string(activations)) return activations;
  }
  return std::nullopt;
}
constexpr std::string_view to_string(RowType type) {
  return type == RowType::kBf16 ? "bf16" : "f32";
}

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

// binary16: 1 sign, 5 exponent (bias 15), 10 mantissa bits. Moved to the sign, the low exponent
// bits and the high mantissa bits of an FP32, a number is itself times 2^-112, subnormals included.
constexpr float f16_to_float(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(bits & 0x7fffu) << 13;
  if ((bits & 0x7c00u) == 0x7c00u) return std::bit_cast<float>(sign | 0x70000000u | magnitude);
  return std::bit_cast<float>(sign | magnitude) * 0x1p+112f;
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

// Rounds to nearest, ties to even. Beyond +-448, the largest finite value, and for a NaN: NaN.
constexpr uint8_t float_to_e4m3(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const auto sign = static_cast<uint8_t>((bits >> 24) & 0x80);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude >= 0x3c800000u) {  // 2^-6, the smallest normal number: 3 of 23 mantissa bits stay
    const uint32_t rounded = (magnitude + 0x7ffffu + ((magnitude >> 20) & 1u)) >> 20;
    const uint32_t code = rounded - (120u << 3);
    return static_cast<uint8_t>(sign | (code < 0x7f ? code : 0x7f));
  }
  // Subnormal: adding 2^14, whose last bit is 2^-9, rounds to a multiple of 2^-9.
  const float shifted = std::bit_cast<float>(magnitude) + 0x1p+14f;
  return static_cast<uint8_t>(sign | (std::bit_cast<uint32_t>(shifted) & 0xf));
}

}  // namespace atl::kernels
