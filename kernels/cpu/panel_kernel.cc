// The panel micro-kernel, compiled once per target: sums of some adjacent panels for some rows, as
// kernels/linear.h defines them.
//
// Accumulators of kPanels panels x kRows rows stay in registers over a scale group. A few rows
// decode the codes in registers and use them at once; more rows decode a group's codes into a small
// FP32 panel in L1 first, so that the fused multiply-adds dominate.
#include "kernels/cpu/targets.h"
#include "kernels/panel.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/panel_kernel.cc"
#include "hwy/foreach_target.h"  // compiles this file once per target

#include "hwy/highway.h"
#include "kernels/cpu/panel_kernel-inl.h"

HWY_BEFORE_NAMESPACE();
namespace atl::kernels::HWY_NAMESPACE {
#if ATOLL_SIMD

using VU = hn::Vec<DU>;
template <int kValue>
struct Index {
  static constexpr int value = kValue;
};

// How the codes of one 32-bit word per lane become FP32: code j of the word, j known to the
// compiler or not.
struct F32Codes {
  static constexpr int kPerWord = 1;
  static constexpr int kDirectRows = kRowsMax;  // more rows go through a decoded panel
  template <int kJ>
  static HWY_INLINE V Decode(VU word) {
    return hn::BitCast(kD, word);
  }
  static HWY_INLINE V DecodeAt(VU word, int) { return hn::BitCast(kD, word); }
};

struct Bf16Codes {
  static constexpr int kPerWord = 2;
  static constexpr int kDirectRows = 4;
  template <int kJ>
  static HWY_INLINE V Decode(VU word) {
    if constexpr (kJ == 0) return hn::BitCast(kD, hn::ShiftLeft<16>(word));
    return hn::BitCast(kD, hn::And(word, hn::Set(kDU, 0xffff0000u)));
  }
  static HWY_INLINE V DecodeAt(VU word, int j) {
    return j == 0 ? Decode<0>(word) : Decode<1>(word);
  }
};

// E4M3 s eeee mmm, moved to the sign, the low exponent bits and the high mantissa bits of an FP32,
// is the value times 2^-120: exactly, subnormals (eeee = 0) being FP32 subnormals then. So one
// exact multiplication by 2^120 decodes all finite codes.
struct Fp8Codes {
  static constexpr int kPerWord = 4;
  static constexpr int kDirectRows = 4;
  static HWY_INLINE V FromTopByte(VU word) {
    const auto spread = hn::ShiftRight<4>(hn::BitCast(kDI, word));  // copies the sign
    const auto bits = hn::And(hn::BitCast(kDU, spread), hn::Set(kDU, 0x87f00000u));
    return hn::Mul(hn::BitCast(kD, bits), hn::Set(kD, 0x1p+120f));
  }
  template <int kJ>
  static HWY_INLINE V Decode(VU word) {
    if constexpr (kJ == 3) return FromTopByte(word);
    return FromTopByte(hn::ShiftLeft<(3 - kJ) * 8>(word));
  }
  static HWY_INLINE V DecodeAt(VU word, int j) {
    return FromTopByte(hn::ShiftLeftSame(word, (3 - j) * 8));
  }
};

// One scale group of kPanels adjacent panels.
struct Group {
  const std::byte* codes;  // of the first panel
  size_t panel_bytes;      // from panel to panel
  const float* scales;     // of this group in the first panel; nullptr: 1
  int64_t panel_scales;    // from panel to panel
  bool scale_per_output;
  int64_t begin, end;  // k
};

// sums[row][panel][lane] = fma(scale, sum over the group of x * code, sums[row][panel][lane]).
template <class Codes, int kPanels, int kRows>
HWY_NOINLINE void AddGroup(const Group& group, const float* const* rows, int64_t sums_stride,
                           float* sums) {
  constexpr int kColumns = kPanels * kVectors;
  constexpr int kPerWord = Codes::kPerWord;
  V acc[kRows][kColumns];
  const float* x[kRows];
  HWY_UNROLL(8)
  for (int r = 0; r < kRows; ++r) {
    x[r] = rows[r];
    HWY_UNROLL(32)
    for (int c = 0; c < kColumns; ++c) acc[r][c] = hn::Zero(kD);
  }
  const auto load_word = [&](int64_t k, int c) HWY_ATTR {
    const std::byte* at = group.codes + static_cast<size_t>(c / kVectors) * group.panel_bytes +
                          (k / kPerWord) * (4 * kPanelWidth) + (c % kVectors) * (4 * kLanes);
    return hn::Load(kDU, reinterpret_cast<const uint32_t*>(at));
  };
  const auto add_one = [&](int64_t k) HWY_ATTR {  // one k, at the ragged ends of a group
    V xk[kRows];
    HWY_UNROLL(8)
    for (int r = 0; r < kRows; ++r) xk[r] = hn::Set(kD, x[r][k]);
    HWY_UNROLL(32)
    for (int c = 0; c < kColumns; ++c) {
      const V w = Codes::DecodeAt(load_word(k, c), static_cast<int>(k % kPerWord));
      HWY_UNROLL(8)
      for (int r = 0; r < kRows; ++r) acc[r][c] = hn::MulAdd(xk[r], w, acc[r][c]);
    }
  };
  // Code j of every column's word. Of x and the weights, the smaller set is held in registers.
  const auto add_code = [&](auto j, int64_t k, const VU* words) HWY_ATTR {
    constexpr int kJ = decltype(j)::value;
    if constexpr (kColumns <= kRows) {
      V w[kColumns];
      HWY_UNROLL(32)
      for (int c = 0; c < kColumns; ++c) w[c] = Codes::template Decode<kJ>(words[c]);
      HWY_UNROLL(8)
      for (int r = 0; r < kRows; ++r) {
        const V xk = hn::Set(kD, x[r][k + kJ]);
        HWY_UNROLL(32)
        for (int c = 0; c < kColumns; ++c) acc[r][c] = hn::MulAdd(xk, w[c], acc[r][c]);
      }
    } else {
      V xk[kRows];
      HWY_UNROLL(8)
      for (int r = 0; r < kRows; ++r) xk[r] = hn::Set(kD, x[r][k + kJ]);
      HWY_UNROLL(32)
      for (int c = 0; c < kColumns; ++c) {
        const V w = Codes::template Decode<kJ>(words[c]);
        HWY_UNROLL(8)
        for (int r = 0; r < kRows; ++r) acc[r][c] = hn::MulAdd(xk[r], w, acc[r][c]);
      }
    }
  };
  // One row: column after column, so that one word at a time is in a register.
  const auto add_word_of_one_row = [&](int64_t k) HWY_ATTR {
    V xk[kPerWord];
    HWY_UNROLL(4)
    for (int j = 0; j < kPerWord; ++j) xk[j] = hn::Set(kD, x[0][k + j]);
    HWY_UNROLL(32)
    for (int c = 0; c < kColumns; ++c) {
      const VU word = load_word(k, c);
      V sum = hn::MulAdd(xk[0], Codes::template Decode<0>(word), acc[0][c]);
      if constexpr (kPerWord >= 2) sum = hn::MulAdd(xk[1], Codes::template Decode<1>(word), sum);
      if constexpr (kPerWord >= 4) {
        sum = hn::MulAdd(xk[2], Codes::template Decode<2>(word), sum);
        sum = hn::MulAdd(xk[3], Codes::template Decode<3>(word), sum);
      }
      acc[0][c] = sum;
    }
  };

  int64_t k = group.begin;
  for (; k < group.end && k % kPerWord != 0; ++k) add_one(k);
  for (; k + kPerWord <= group.end; k += kPerWord) {
    if constexpr (kRows == 1) {
      add_word_of_one_row(k);
      continue;
    }
    VU words[kColumns];
    HWY_UNROLL(32)
    for (int c = 0; c < kColumns; ++c) words[c] = load_word(k, c);
    add_code(Index<0>(), k, words);
    if constexpr (kPerWord >= 2) add_code(Index<1>(), k, words);
    if constexpr (kPerWord >= 4) {
      add_code(Index<2>(), k, words);
      add_code(Index<3>(), k, words);
    }
  }
  for (; k < group.end; ++k) add_one(k);

  HWY_UNROLL(32)
  for (int c = 0; c < kColumns; ++c) {
    V scale = hn::Set(kD, 1.0f);
    if (group.scales != nullptr) {
      const float* scales = group.scales + (c / kVectors) * group.panel_scales;
      scale = group.scale_per_output ? hn::LoadU(kD, scales + (c % kVectors) * kLanes)
                                     : hn::Set(kD, *scales);
    }
    HWY_UNROLL(8)
    for (int r = 0; r < kRows; ++r) {
      float* sum = sums + r * sums_stride + c * kLanes;
      hn::Store(hn::MulAdd(scale, acc[r][c], hn::Load(kD, sum)), kD, sum);
    }
  }
}

// The same for a number of rows known at run time, at most Codes::kDirectRows.
template <class Codes, int kPanels, int kRows = 1>
HWY_INLINE void AddGroupRows(const Group& group, const float* const* rows, int64_t num_rows,
                             int64_t sums_stride, float* sums) {
  if constexpr (kRows <= Codes::kDirectRows && kPanels <= PanelsFor(kRows)) {
    if (num_rows == kRows) return AddGroup<Codes, kPanels, kRows>(group, rows, sums_stride, sums);
    AddGroupRows<Codes, kPanels, kRows + 1>(group, rows, num_rows, sums_stride, sums);
  }
}

// Decodes a group's codes of all kPanels panels to [panel][k - begin][lane].
template <class Codes, int kPanels>
HWY_NOINLINE void DecodeGroup(const Group& group, float* out) {
  constexpr int kPerWord = Codes::kPerWord;
  for (int c = 0; c < kPanels * kVectors; ++c) {
    const std::byte* codes = group.codes + static_cast<size_t>(c / kVectors) * group.panel_bytes +
                             (c % kVectors) * (4 * kLanes);
    float* to = out + (c / kVectors) * (kScaleBlock * kPanelWidth) + (c % kVectors) * kLanes;
    const auto load_word = [&](int64_t k) HWY_ATTR {
      const std::byte* at = codes + (k / kPerWord) * (4 * kPanelWidth);
      return hn::Load(kDU, reinterpret_cast<const uint32_t*>(at));
    };
    const auto store = [&](V value) HWY_ATTR {
      hn::Store(value, kD, to);
      to += kPanelWidth;
    };
    const auto store_one = [&](int64_t k) HWY_ATTR {
      store(Codes::DecodeAt(load_word(k), static_cast<int>(k % kPerWord)));
    };
    int64_t k = group.begin;
    for (; k < group.end && k % kPerWord != 0; ++k) store_one(k);
    for (; k + kPerWord <= group.end; k += kPerWord) {
      const VU word = load_word(k);
      store(Codes::template Decode<0>(word));
      if constexpr (kPerWord >= 2) store(Codes::template Decode<1>(word));
      if constexpr (kPerWord >= 4) {
        store(Codes::template Decode<2>(word));
        store(Codes::template Decode<3>(word));
      }
    }
    for (; k < group.end; ++k) store_one(k);
  }
}

// More than kDirectRows rows: decode once, then row blocks of nearly equal size.
template <class Codes, int kPanels>
HWY_INLINE void AddGroupManyRows(const Group& group, const float* const* rows, int64_t num_rows,
                                 int64_t sums_stride, float* sums) {
  HWY_ALIGN float decoded[kPanels * kScaleBlock * kPanelWidth];
  Group plain = group;
  plain.begin = 0;
  plain.end = group.end - group.begin;
  if constexpr (Codes::kPerWord == 1) {
    plain.codes += group.begin * static_cast<int64_t>(kPanelWidth * sizeof(float));
  } else {
    DecodeGroup<Codes, kPanels>(group, decoded);
    plain.codes = reinterpret_cast<const std::byte*>(decoded);
    plain.panel_bytes = kScaleBlock * kPanelWidth * sizeof(float);
  }
  const int64_t num_blocks = ceil_div(num_rows, kRowsMax);
  for (int64_t block = 0, row = 0; block < num_blocks; ++block) {
    const int64_t count = (num_rows - row) / (num_blocks - block);
    const float* x[kRowsMax];
    for (int64_t r = 0; r < count; ++r) x[r] = rows[row + r] + group.begin;
    AddGroupRows<F32Codes, kPanels>(plain, x, count, sums_stride, sums + row * sums_stride);
    row += count;
  }
}

// More rows than kDirectRows come with at most kManyRowsPanels panels (NextPanels).
template <class Codes, int kPanels>
void BlockSums(const PanelMatrix& w, int64_t panel, const float* const* rows, int64_t num_rows,
               float* sums) {
  static_assert(PanelsFor(Codes::kDirectRows + 1) <= kManyRowsPanels ||
                Codes::kDirectRows == kRowsMax);
  const PanelShape& shape = w.shape;
  constexpr int64_t kStride = kPanels * kPanelWidth;
  for (int64_t i = 0; i < num_rows * kStride; i += kLanes) hn::Store(hn::Zero(kD), kD, sums + i);
  const bool scaled = shape.format == WeightFormat::kFp8E4m3;
  Group group;
  group.codes = w.panel_codes(panel);
  group.panel_bytes = shape.panel_code_bytes();
  group.scales = scaled ? w.panel_scales(panel) : nullptr;
  group.panel_scales = shape.panel_scales();
  group.scale_per_output = shape.scale_per_output;
  group.begin = 0;
  int64_t end = shape.first_group();
  while (group.begin < shape.k) {
    group.end = end < shape.k ? end : shape.k;
    if (num_rows <= Codes::kDirectRows) {
      AddGroupRows<Codes, kPanels>(group, rows, num_rows, kStride, sums);
    } else if constexpr (kPanels <= kManyRowsPanels) {
      AddGroupManyRows<Codes, kPanels>(group, rows, num_rows, kStride, sums);
    }
    if (scaled) group.scales += shape.scale_per_output ? kPanelWidth : 1;
    group.begin = group.end;
    end += kScaleBlock;
  }
}

template <class Codes>
void BlockSums(const PanelMatrix& w, int64_t panel, int num_panels, const float* const* rows,
               int64_t num_rows, float* sums) {
  switch (num_panels) {
    case 1:
      return BlockSums<Codes, 1>(w, panel, rows, num_rows, sums);
    case 2:
      return BlockSums<Codes, 2>(w, panel, rows, num_rows, sums);
    case 4:
      return BlockSums<Codes, 4>(w, panel, rows, num_rows, sums);
    case 8:
      return BlockSums<Codes, 8>(w, panel, rows, num_rows, sums);
  }
}

void PanelSums(const PanelMatrix& w, int64_t panel, int num_panels, const float* const* rows,
               int64_t num_rows, float* sums) {
  switch (w.shape.format) {
    case WeightFormat::kF32:
      return BlockSums<F32Codes>(w, panel, num_panels, rows, num_rows, sums);
    case WeightFormat::kBf16:
      return BlockSums<Bf16Codes>(w, panel, num_panels, rows, num_rows, sums);
    case WeightFormat::kFp8E4m3:
      return BlockSums<Fp8Codes>(w, panel, num_panels, rows, num_rows, sums);
  }
}

#endif  // ATOLL_SIMD
}  // namespace atl::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
