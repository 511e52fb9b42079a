// What the kernel tests share: seeded values, packed matrices, exact comparison, and running the
// same check on every SIMD target that this build has and this CPU can run.
#pragma once

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "base/memory.h"
#include "kernels/cpu/dispatch.h"
#include "kernels/panel.h"

namespace atl::kernels::testing {

inline constexpr WeightFormat kFormats[] = {WeightFormat::kF32, WeightFormat::kBf16,
                                            WeightFormat::kFp8E4m3, WeightFormat::kF16};

// Every arithmetic of linear layers: packed format and what is done to rows.
struct Arithmetic {
  WeightFormat format = WeightFormat::kF32;
  Activations activations = Activations::kF32;

  std::string name() const {
    return std::string(to_string(format)) + "/" + std::string(to_string(activations));
  }
  // Of the checkpoint's matrix that is packed; int4 is only ever made by packing.
  WeightFormat source_format() const {
    return is_packed_only(format) ? WeightFormat::kBf16 : format;
  }
};
inline constexpr Arithmetic kArithmetics[] = {
    {WeightFormat::kF32},
    {WeightFormat::kBf16},
    {WeightFormat::kFp8E4m3},
    {WeightFormat::kF16},
    {WeightFormat::kInt4, Activations::kF32},
    {WeightFormat::kInt4, Activations::kI8},
    {WeightFormat::kInt8, Activations::kI8},
};

// Runs check(name) on every target, the best first, and goes back to the best. AVX-512 counts
// thrice where the CPU has AMX and VNNI: with all, with VNNI alone and without both. The last one
// before the reference runs once more with an emulation of AMX. Once each where no bytes are
// multiplied.
template <typename Check>
void for_each_target(Check check, bool multiplies_bytes = true) {
  for (const std::string& target : cpu_targets()) {
    SCOPED_TRACE("target " + target);
    ASSERT_TRUE(use_cpu_target(target));
    check(target);
    if (!multiplies_bytes) continue;
    if (target.starts_with("AVX3")) {
      if (use_amx(AmxUse::kOn)) {
        SCOPED_TRACE("without AMX");
        use_amx(AmxUse::kOff);
        check(target);
      }
      if (use_vnni(true)) {
        SCOPED_TRACE("without VNNI");
        use_vnni(false);
        check(target);
        use_vnni(true);
      }
    }
    if (target == "AVX2" || target == "NEON") {
      SCOPED_TRACE("emulated AMX");
      use_amx(AmxUse::kEmulated);
      check(target);
    }
    use_amx(AmxUse::kOn);
  }
  ASSERT_TRUE(use_cpu_target(""));
}

// Equal bit for bit, except that any NaN equals any NaN.
inline bool same_bits(float a, float b) {
  return (a != a && b != b) || std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b);
}

inline void expect_same_bits(std::span<const float> expected, std::span<const float> found,
                             const std::string& what) {
  ASSERT_EQ(expected.size(), found.size()) << what;
  for (size_t i = 0; i < expected.size(); ++i) {
    ASSERT_TRUE(same_bits(expected[i], found[i]))
        << what << ": element " << i << " of " << expected.size() << " is " << std::hexfloat
        << found[i] << ", reference " << expected[i];
  }
}

inline std::vector<float> random_values(std::mt19937& rng, int64_t n, float scale = 1.0f) {
  std::normal_distribution<float> normal(0.0f, 1.0f);
  std::vector<float> values(static_cast<size_t>(n));
  for (float& value : values) value = normal(rng) * scale;
  return values;
}

// A checkpoint's matrix in one of the formats, with all finite FP8 codes equally likely.
struct TestMatrix {
  WeightFormat format = WeightFormat::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  std::vector<std::byte> data;
  std::vector<float> scale_grid;

  MatrixRows piece(int64_t first_row, int64_t num_rows) const {
    const size_t row_bytes = static_cast<size_t>(cols) * code_bytes(format);
    return {format, data.data() + static_cast<size_t>(first_row) * row_bytes, first_row, num_rows,
            cols,   scale_grid.empty() ? nullptr : scale_grid.data()};
  }
  MatrixRows all() const { return piece(0, rows); }

  // The unscaled code value and the scale of one element.
  float code(int64_t row, int64_t col) const {
    const std::byte* at = data.data() + static_cast<size_t>(row * cols + col) * code_bytes(format);
    if (format == WeightFormat::kFp8E4m3) return e4m3_to_float(std::to_integer<uint8_t>(*at));
    if (format == WeightFormat::kBf16) {
      uint16_t bits;
      std::memcpy(&bits, at, 2);
      return bf16_to_float(bits);
    }
    if (format == WeightFormat::kF16) {
      uint16_t bits;
      std::memcpy(&bits, at, 2);
      return f16_to_float(bits);
    }
    float value;
    std::memcpy(&value, at, 4);
    return value;
  }
  float scale(int64_t row, int64_t col) const {
    if (format != WeightFormat::kFp8E4m3) return 1.0f;
    return scale_grid[static_cast<size_t>((row / 128) * ceil_div(cols, 128) + col / 128)];
  }
};

inline TestMatrix random_matrix(std::mt19937& rng, WeightFormat format, int64_t rows,
                                int64_t cols) {
  TestMatrix m{format, rows, cols, {}, {}};
  m.data.resize(static_cast<size_t>(rows * cols) * code_bytes(format));
  const std::vector<float> values = random_values(rng, rows * cols);
  for (size_t i = 0; i < values.size(); ++i) {
    if (format == WeightFormat::kFp8E4m3) {
      uint8_t code = static_cast<uint8_t>(rng());
      if (e4m3_is_nan(code)) code = 0x80;  // -0
      m.data[i] = static_cast<std::byte>(code);
    } else if (format == WeightFormat::kBf16) {
      const uint16_t bits = float_to_bf16(values[i]);
      std::memcpy(m.data.data() + 2 * i, &bits, 2);
    } else if (format == WeightFormat::kF16) {
      auto bits = static_cast<uint16_t>(rng());  // subnormals among them
      if ((bits & 0x7c00) == 0x7c00) bits = 0x8000;
      std::memcpy(m.data.data() + 2 * i, &bits, 2);
    } else {
      std::memcpy(m.data.data() + 4 * i, &values[i], 4);
    }
  }
  if (format == WeightFormat::kFp8E4m3) {
    m.scale_grid = random_values(rng, ceil_div(rows, 128) * ceil_div(cols, 128), 0.01f);
  }
  return m;
}

// A packed matrix with memory of its own.
struct Packed {
  HostBuffer codes;
  std::vector<float> scales;
  PanelMatrix matrix;
};

inline Packed allocate_packed(const PanelShape& shape) {
  Packed p{HostBuffer(shape.total_code_bytes()),
           std::vector<float>(shape.total_scale_bytes() / sizeof(float)),
           {}};
  p.matrix = {shape, p.codes.data(), p.scales.empty() ? nullptr : p.scales.data()};
  return p;
}

inline Packed pack_as(const Arithmetic& arithmetic, const TestMatrix& m, int64_t outputs, int64_t k,
                      const PanelSource& source) {
  Packed p = allocate_packed(panel_shape(
      arithmetic.format, outputs, k, source, arithmetic.activations,
      arithmetic.format == m.format ? ScaleOrigin::kCheckpoint : ScaleOrigin::kPacking));
  pack(p.matrix.shape, source, m.all(), p.codes.data(), p.scales.data());
  return p;
}

inline Packed pack_all(const TestMatrix& m, int64_t outputs, int64_t k, const PanelSource& source) {
  return pack_as({m.format}, m, outputs, k, source);
}

// Rows of floats with a pointer to each.
struct Rows {
  std::vector<std::vector<float>> values;
  std::vector<const float*> read;
  std::vector<float*> write;

  Rows(size_t num_rows, size_t width, float fill = 0.0f)
      : values(num_rows, std::vector<float>(width, fill)) {
    bind();
  }
  explicit Rows(std::vector<std::vector<float>> rows) : values(std::move(rows)) { bind(); }
  Rows(const Rows&) = delete;

  size_t size() const { return values.size(); }

 private:
  void bind() {
    for (auto& row : values) {
      read.push_back(row.data());
      write.push_back(row.data());
    }
  }
};

}  // namespace atl::kernels::testing
