// The panel micro-kernel, compiled once per target: sums of some adjacent panels for some rows, as
// kernels/linear.h defines them.
//
// Accumulators of kPanels panels x kRows rows stay in registers over a scale group; codes are
// decoded in registers and used at once for all kRows rows, which costs nothing where the fused
// multiply-adds of four rows keep their units busy meanwhile. With 16 registers the first of many
// rows leave what they decode in memory for the others. Rare groups (partial words, FP8 with large
// x) decode to memory first.
#include <type_traits>

#include "kernels/cpu/targets.h"
#include "kernels/panel.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/panel_kernel.cc"
#include "hwy/foreach_target.h"  // compiles this file once per target

#include "hwy/highway.h"
#include "kernels/cpu/panel_kernel-inl.h"

#ifndef ATOLL_KERNELS_ROW_SCRATCH
#define ATOLL_KERNELS_ROW_SCRATCH
namespace atl::kernels {
// Memory of this thread, page-aligned, kept for its next call.
std::byte* row_scratch(size_t bytes);
}  // namespace atl::kernels
#endif

HWY_BEFORE_NAMESPACE();
namespace atl::kernels::HWY_NAMESPACE {
#if ATOLL_SIMD

using VU = hn::Vec<DU>;
constexpr hn::Repartition<int16_t, D> kDI16{};

// How the codes of one 32-bit word per lane become FP32, code kJ of the word, times 1 / kRowScale.
struct F32Codes {
  static constexpr int kPerWord = 1;
  static constexpr float kRowScale = 1.0f;
  template <int kJ>
  static HWY_INLINE V Decode(VU word) {
    return hn::BitCast(kD, word);
  }
};

// Decoded before, so that there is nothing to fetch.
struct DecodedCodes : F32Codes {};

struct Bf16Codes {
  static constexpr int kPerWord = 2;
  static constexpr float kRowScale = 1.0f;
  template <int kJ>
  static HWY_INLINE V Decode(VU word) {
    if constexpr (kJ == 0) return hn::BitCast(kD, hn::ShiftLeft<16>(word));
    return hn::BitCast(kD, hn::And(word, hn::Set(kDU, 0xffff0000u)));
  }
};

// E4M3 s eeee mmm, moved to the sign, the low exponent bits and the high mantissa bits of an FP32,
// is the value times 2^-120, exactly: codes with eeee = 0 become FP32 subnormals. The direct
// kernels multiply x by 2^120 instead, which gives the same exact products as long as x doesn't
// overflow (|x| < 2^8); all others multiply the decoded value.
//
// A 16-bit shift moves the upper byte of both halves of a word at once (the compiler shares it
// between codes 1 and 3, 0 and 2): 9 instructions per 4 codes.
struct Fp8Codes {
  static constexpr int kPerWord = 4;
  static constexpr float kRowScale = 0x1p+120f;
  template <int kJ>
  static HWY_INLINE V Decode(VU word) {
    auto halves = hn::BitCast(kDI16, word);
    if constexpr (kJ % 2 == 0) halves = hn::ShiftLeft<8>(halves);
    VU bits = hn::BitCast(kDU, hn::ShiftRight<4>(halves));  // copies the sign
    if constexpr (kJ < 2) bits = hn::ShiftLeft<16>(bits);
    return hn::BitCast(kD, hn::And(bits, hn::Set(kDU, 0x87f00000u)));
  }
};
constexpr float kFp8RowBound = 0x1p+8f;

// binary16 s eeeee mmmmmmmmmm in the same way, times 2^-112; an arithmetic shift copies the sign,
// and what the other half of the word leaves below is masked off.
struct F16Codes {
  static constexpr int kPerWord = 2;
  static constexpr float kRowScale = 0x1p+112f;
  template <int kJ>
  static HWY_INLINE V Decode(VU word) {
    if constexpr (kJ == 0) word = hn::ShiftLeft<16>(word);
    const auto bits = hn::BitCast(kDU, hn::ShiftRight<3>(hn::BitCast(kDI, word)));
    return hn::BitCast(kD, hn::And(bits, hn::Set(kDU, 0x8fffe000u)));
  }
};
constexpr float kF16RowBound = 0x1p+16f;

constexpr size_t kWordBytes = kPanelWidth * sizeof(uint32_t);  // one word of each output

// Into the second level, not the first: a core has room for a dozen or two fetches under way into
// the first level, far fewer than memory needs to be busy, and several times as many into the
// second (Zen 4, one core, panels of 128 k: 24 GB/s so, 12 into the first level, 9.5 without).
HWY_INLINE void PrefetchToL2(const std::byte* at) { __builtin_prefetch(at, 0, 1); }

// One scale group of some adjacent panels, and where the following groups lie.
struct Group {
  const std::byte* codes;  // the group's first word in the first panel
  size_t panel_bytes;      // from panel to panel
  size_t group_bytes;      // from a whole group to the next
  const float* scales;     // of this group in the first panel; nullptr: 1
  int64_t panel_scales;    // from panel to panel
  int64_t group_scales;    // from group to group
  bool scale_per_output;
  int64_t length;            // in k
  ptrdiff_t prefetch_ahead;  // bytes from a word to the one to fetch now; 0: none

  Group panels_from(int panel) const {
    Group g = *this;
    g.codes += static_cast<size_t>(panel) * panel_bytes;
    if (scales != nullptr) g.scales += panel * panel_scales;
    return g;
  }
};

// Keeps the compiler from loading `v` anew wherever it is used, which would leave a core with more
// loads than multiply-adds.
HWY_INLINE void KeepInRegister(V& v) {
#if HWY_TARGET == HWY_AVX2
  asm volatile("" : "+x"(v.raw));
#else
  (void)v;
#endif
}

// acc[row][i] += x[row] * w[i], i of kCount vectors from kFirst on.
template <int kRows, int kFirst = 0, int kCount = kVectors>
HWY_INLINE void AddRows(const float* x, V (&w)[kVectors], V (&acc)[kRows][kVectors]) {
  if constexpr (kRows > 1) {
    HWY_UNROLL(8)
    for (int i = kFirst; i < kFirst + kCount; ++i) KeepInRegister(w[i]);
  }
  HWY_UNROLL(8)
  for (int r = 0; r < kRows; ++r) {
    const V xk = hn::Set(kD, x[r * kRowStride]);
    HWY_UNROLL(8)
    for (int i = kFirst; i < kFirst + kCount; ++i) acc[r][i] = hn::MulAdd(xk, w[i], acc[r][i]);
  }
}

// acc[row][i] += x[row][kJ] * code kJ of the words, and so on for the codes behind it; i of kCount
// vectors from kFirst on.
template <class Codes, int kRows, int kFirst, int kCount, int kJ = 0>
HWY_INLINE void AddCodes(const VU (&words)[kVectors], const float* x, V (&acc)[kRows][kVectors]) {
  V w[kVectors];
  HWY_UNROLL(8)
  for (int i = kFirst; i < kFirst + kCount; ++i) w[i] = Codes::template Decode<kJ>(words[i]);
  AddRows<kRows, kFirst, kCount>(x + kJ, w, acc);
  if constexpr (kJ + 1 < Codes::kPerWord) {
    AddCodes<Codes, kRows, kFirst, kCount, kJ + 1>(words, x, acc);
  }
}

// One row: vector after vector, so that the pieces of one word at a time are in registers.
template <class Codes, int kFirst = 0>
HWY_INLINE void AddCodesOfOneRow(const VU (&words)[kVectors], const float* x,
                                 V (&acc)[1][kVectors]) {
  AddCodes<Codes, 1, kFirst, 1>(words, x, acc);
  if constexpr (kFirst + 1 < kVectors) AddCodesOfOneRow<Codes, kFirst + 1>(words, x, acc);
}

// sum[lane] = fma(scale, acc, sum[lane]) of one panel's rows, group `index` from this one on.
template <int kRows>
HWY_INLINE void AddScaled(const Group& group, int panel, int index, const V (&acc)[kRows][kVectors],
                          int64_t sums_stride, float* sums) {
  HWY_UNROLL(8)
  for (int i = 0; i < kVectors; ++i) {
    V scale = hn::Set(kD, 1.0f);
    if (group.scales != nullptr) {
      const float* scales = group.scales + panel * group.panel_scales + index * group.group_scales;
      scale = group.scale_per_output ? hn::LoadU(kD, scales + i * kLanes) : hn::Set(kD, *scales);
    }
    HWY_UNROLL(8)
    for (int r = 0; r < kRows; ++r) {
      float* sum = sums + r * sums_stride + i * kLanes;
      hn::Store(hn::MulAdd(scale, acc[r][i], hn::Load(kD, sum)), kD, sum);
    }
  }
}

// sums[row][panel][lane] = fma(scale, sum over the group of x * code, sums[row][panel][lane]), of
// kGroups groups one after the other. Their products are independent: as good as more panels to
// keep enough additions under way. More than one group only for one row, whose groups lie
// kRowStride apart.
template <class Codes, int kPanels, int kGroups, int kRows>
HWY_NOINLINE void AddGroups(const Group& group, const float* x, int64_t sums_stride, float* sums) {
  static_assert(kGroups == 1 || kRows == 1);
  // Broadcasts of x serve all panels if they fit the registers with all else; or they are loaded
  // anew for each panel, as the compiler would rather spill than do so unasked.
  constexpr int kRegisters = kLanes == 8 ? 16 : 32;
  constexpr int kStreams = kPanels * kGroups;
  constexpr bool kReloadRows =
      kStreams > 1 && kRows * (Codes::kPerWord + kStreams * kVectors) + 2 + kVectors > kRegisters;
  V acc[kPanels][kGroups][kRows][kVectors];
  HWY_UNROLL(8)
  for (int p = 0; p < kPanels; ++p) {
    HWY_UNROLL(8)
    for (int g = 0; g < kGroups; ++g) {
      HWY_UNROLL(8)
      for (int r = 0; r < kRows; ++r) {
        HWY_UNROLL(8)
        for (int i = 0; i < kVectors; ++i) acc[p][g][r][i] = hn::Zero(kD);
      }
    }
  }
  const std::byte* codes = group.codes;
  const float* x_end = x + group.length;
  for (; x < x_end; x += Codes::kPerWord, codes += kWordBytes) {
    HWY_UNROLL(8)
    for (int p = 0; p < kPanels; ++p) {
      HWY_UNROLL(8)
      for (int g = 0; g < kGroups; ++g) {
        const std::byte* at = codes + static_cast<size_t>(p) * group.panel_bytes +
                              static_cast<size_t>(g) * group.group_bytes;
        if constexpr (!std::is_same_v<Codes, DecodedCodes>) PrefetchToL2(at + group.prefetch_ahead);
        VU words[kVectors];
        HWY_UNROLL(8)
        for (int i = 0; i < kVectors; ++i) {
          words[i] = hn::Load(kDU, reinterpret_cast<const uint32_t*>(at) + i * kLanes);
        }
        if constexpr (kRows == 1) {
          AddCodesOfOneRow<Codes>(words, x + g * kRowStride, acc[p][g]);
        } else {
          AddCodes<Codes, kRows, 0, kVectors>(words, x, acc[p][g]);
        }
        if constexpr (kReloadRows) asm volatile("" : : : "memory");
      }
    }
  }
  HWY_UNROLL(8)
  for (int p = 0; p < kPanels; ++p) {
    HWY_UNROLL(8)
    for (int g = 0; g < kGroups; ++g) {
      AddScaled<kRows>(group, p, g, acc[p][g], sums_stride, sums + p * kPanelWidth);
    }
  }
}

// The same for any number of panels, as many at once as fit the registers.
template <class Codes, int kRows>
HWY_INLINE void AddGroupPanels(const Group& group, int num_panels, const float* x,
                               int64_t sums_stride, float* sums) {
  constexpr int kPanels = DirectPanels(kRows);
  int p = 0;
  for (; p + kPanels <= num_panels; p += kPanels) {
    AddGroups<Codes, kPanels, 1, kRows>(group.panels_from(p), x, sums_stride,
                                        sums + p * kPanelWidth);
  }
  for (; p < num_panels; ++p) {
    AddGroups<Codes, 1, 1, kRows>(group.panels_from(p), x, sums_stride, sums + p * kPanelWidth);
  }
}

// Rows that share one decoding, or the loads of what is decoded already, where as many chains as
// the registers hold are needed to keep the units busy.
template <class Codes>
constexpr int kBlockRows = kDirectRows;
template <>
constexpr int kBlockRows<F32Codes> = kLanes == 16  ? 12
                                     : kLanes == 8 ? 6
                                                   : 4;
template <>
constexpr int kBlockRows<DecodedCodes> = kBlockRows<F32Codes>;

// A block of `count` rows, 1 to kRows.
template <class Codes, int kRows = kBlockRows<Codes>>
HWY_INLINE void AddRowBlock(const Group& group, int num_panels, int64_t count, const float* x,
                            int64_t stride, float* sums) {
  if (count == kRows) {
    AddGroupPanels<Codes, kRows>(group, num_panels, x, stride, sums);
  } else if constexpr (kRows > 1) {
    AddRowBlock<Codes, kRows - 1>(group, num_panels, count, x, stride, sums);
  }
}

// Any number of rows, in blocks of nearly equal size: the codes of later blocks come from L1.
template <class Codes>
void AddGroupDirect(const Group& group, int num_panels, const float* x, int64_t num_rows,
                    int64_t stride, float* sums) {
  const int64_t num_blocks = ceil_div(num_rows, kBlockRows<Codes>);
  for (int64_t block = 0, row = 0; block < num_blocks; ++block) {
    const int64_t count = (num_rows - row) / (num_blocks - block);
    // Only the last rows fetch what comes next: it would take L1 from the codes still in use.
    Group block_group = group;
    if (block + 1 < num_blocks) block_group.prefetch_ahead = 0;
    AddRowBlock<Codes>(block_group, num_panels, count, x + row * kRowStride, stride,
                       sums + row * stride);
    row += count;
  }
}

// Decodes `num_words` words of a panel to [k][lane], and fetches what lies `prefetch_ahead` behind.
template <class Codes>
HWY_NOINLINE void DecodeWords(const std::byte* codes, int64_t num_words, ptrdiff_t prefetch_ahead,
                              float* out) {
  const V scale = hn::Set(kD, Codes::kRowScale);
  const auto store = [&](V value, float* to) HWY_ATTR {
    hn::Store(Codes::kRowScale == 1.0f ? value : hn::Mul(value, scale), kD, to);
  };
  for (int64_t n = 0; n < num_words; ++n, codes += kWordBytes) {
    PrefetchToL2(codes + prefetch_ahead);
    HWY_UNROLL(8)
    for (int i = 0; i < kVectors; ++i, out += kLanes) {
      const VU word = hn::Load(kDU, reinterpret_cast<const uint32_t*>(codes) + i * kLanes);
      store(Codes::template Decode<0>(word), out);
      if constexpr (Codes::kPerWord >= 2) {
        store(Codes::template Decode<1>(word), out + kPanelWidth);
      }
      if constexpr (Codes::kPerWord >= 4) {
        store(Codes::template Decode<2>(word), out + 2 * kPanelWidth);
        store(Codes::template Decode<3>(word), out + 3 * kPanelWidth);
      }
    }
    out += (Codes::kPerWord - 1) * kPanelWidth;
  }
}

// What the direct kernels can't do: panel after panel decoded to memory, then as if it were F32.
// `skip`: codes of the first word that belong to the group before.
template <class Codes>
void AddGroupInMemory(const Group& group, int64_t skip, int num_panels, const float* x,
                      int64_t num_rows, int64_t stride, float* sums) {
  HWY_ALIGN float decoded[(kScaleBlock + kPanelKPad) * kPanelWidth];
  for (int panel = 0; panel < num_panels; ++panel) {
    Group plain = group.panels_from(panel);
    DecodeWords<Codes>(plain.codes, ceil_div(skip + group.length, Codes::kPerWord),
                       group.prefetch_ahead, decoded);
    plain.codes = reinterpret_cast<const std::byte*>(decoded + skip * kPanelWidth);
    plain.prefetch_ahead = 0;
    AddGroupDirect<DecodedCodes>(plain, 1, x, num_rows, stride, sums + panel * kPanelWidth);
  }
}

#if HWY_TARGET == HWY_AVX2
// Many rows with 16 registers. The first rows decode a panel's words, use them at once and leave
// them in memory for the other rows: most of the decoding fits beside their multiply-adds.

// The first rows: 8 sums, 4 vectors of words half decoded, what is decoded of them and a broadcast
// are all that 16 registers hold.
constexpr int kDecodingRows = 4;
constexpr int64_t kManyRowsMin = 8;  // fewer decode anew for each 4
static_assert(kManyRowsMin > kDecodingRows);

// acc[row][i] += x[row][kJ] * code kJ of the words, which is stored to `decoded`, and so on for the
// codes behind it.
template <class Codes, int kRows, int kJ = 0>
HWY_INLINE void DecodeAndAdd(const VU (&words)[kVectors], const float* x, float* decoded,
                             V (&acc)[kRows][kVectors]) {
  V w[kVectors];
  HWY_UNROLL(8)
  for (int i = 0; i < kVectors; ++i) {
    w[i] = Codes::template Decode<kJ>(words[i]);
    hn::Store(w[i], kD, decoded + kJ * kPanelWidth + i * kLanes);
  }
  AddRows<kRows>(x + kJ, w, acc);
  if constexpr (kJ + 1 < Codes::kPerWord) {
    DecodeAndAdd<Codes, kRows, kJ + 1>(words, x, decoded, acc);
  }
}

template <class Codes>
HWY_NOINLINE void DecodeForRows(const Group& group, const float* x, int64_t stride, float* decoded,
                                float* sums) {
  constexpr int kRows = kDecodingRows;
  V acc[kRows][kVectors];
  HWY_UNROLL(8)
  for (int r = 0; r < kRows; ++r) {
    HWY_UNROLL(8)
    for (int i = 0; i < kVectors; ++i) acc[r][i] = hn::Zero(kD);
  }
  const std::byte* codes = group.codes;
  for (const float* x_end = x + group.length; x < x_end;
       x += Codes::kPerWord, codes += kWordBytes, decoded += Codes::kPerWord * kPanelWidth) {
    PrefetchToL2(codes + group.prefetch_ahead);
    VU words[kVectors];
    HWY_UNROLL(8)
    for (int i = 0; i < kVectors; ++i) {
      words[i] = hn::Load(kDU, reinterpret_cast<const uint32_t*>(codes) + i * kLanes);
    }
    DecodeAndAdd<Codes, kRows>(words, x, decoded, acc);
  }
  AddScaled<kRows>(group, 0, 0, acc, stride, sums);
}

// As AddGroupDirect, for at least kManyRowsMin rows.
template <class Codes>
void AddGroupOfManyRows(const Group& group, int num_panels, const float* x, int64_t num_rows,
                        int64_t stride, float* sums) {
  HWY_ALIGN float decoded[kScaleBlock * kPanelWidth];
  for (int panel = 0; panel < num_panels; ++panel, sums += kPanelWidth) {
    Group plain = group.panels_from(panel);
    DecodeForRows<Codes>(plain, x, stride, decoded, sums);
    plain.codes = reinterpret_cast<const std::byte*>(decoded);
    plain.prefetch_ahead = 0;
    AddGroupDirect<DecodedCodes>(plain, 1, x + kDecodingRows * kRowStride, num_rows - kDecodingRows,
                                 stride, sums + kDecodingRows * stride);
  }
}
#endif

// First k of group g, which may be one past the last: then at least shape.k.
HWY_INLINE int64_t GroupBegin(const PanelShape& shape, int64_t g) {
  return g == 0 ? 0 : shape.first_group() + (g - 1) * kScaleBlock;
}
HWY_INLINE int64_t GroupEnd(const PanelShape& shape, int64_t g) {
  return HWY_MIN(GroupBegin(shape, g + 1), shape.k);
}

// One row: kGroups groups of kPanels panels, as many together as keep the additions under way.
template <class Codes, int kPanels>
HWY_INLINE void AddGroupsOfOneRow(const Group& group, int count, const float* x, float* sums) {
  if constexpr (kPanels <= DirectPanels(1)) {
    constexpr int kGroups = DirectPanels(1) / kPanels;
    if (count == 1) {
      AddGroups<Codes, kPanels, 1, 1>(group, x, 0, sums);
    } else {
      AddGroups<Codes, kPanels, kGroups, 1>(group, x, 0, sums);
    }
  }
}
template <class Codes>
HWY_INLINE void AddGroupsOfOneRow(const Group& group, int count, int num_panels, const float* x,
                                  float* sums) {
  switch (num_panels) {
    case 1:
      return AddGroupsOfOneRow<Codes, 1>(group, count, x, sums);
    case 2:
      return AddGroupsOfOneRow<Codes, 2>(group, count, x, sums);
    case 4:
      return AddGroupsOfOneRow<Codes, 4>(group, count, x, sums);
    case 8:
      return AddGroupsOfOneRow<Codes, 8>(group, count, x, sums);
  }
}

// Groups from g on that one row takes together: whole ones that the direct kernels can do, as many
// as AddGroupsOfOneRow has accumulators for, else one.
HWY_INLINE int GroupsAtOnce(const PanelShape& shape, const PreparedRows& rows, int64_t g,
                            int num_panels) {
  if (rows.num_rows > 1 || num_panels > DirectPanels(1)) return 1;
  const int count = DirectPanels(1) / num_panels;
  const int64_t end = GroupBegin(shape, g + count);
  if (end > shape.k || end - GroupBegin(shape, g) != count * kScaleBlock) return 1;
  for (int i = 0; i < count; ++i) {
    if (!rows.direct[g + i]) return 1;
  }
  return count;
}

// Fetches a group's rows: those of many rows and all groups are more than the second level holds.
HWY_INLINE void PrefetchRows(const float* x, int64_t num_rows) {
  constexpr int64_t kLine = 64 / sizeof(float);
  for (int64_t i = 0; i < num_rows * kRowStride; i += kLine) {
    PrefetchToL2(reinterpret_cast<const std::byte*>(x + i));
  }
}

template <class Codes>
void AllSums(const PanelMatrix& w, int64_t panel, int num_panels, const PreparedRows& rows,
             const std::byte* next, float* sums) {
  const PanelShape& shape = w.shape;
  const int64_t stride = num_panels * kPanelWidth;
  for (int64_t i = 0; i < rows.num_rows * stride; i += kLanes) {
    hn::Store(hn::Zero(kD), kD, sums + i);
  }
  const bool scaled = shape.format == WeightFormat::kFp8E4m3;
  Group group;
  group.panel_bytes = shape.panel_code_bytes();
  group.group_bytes = kScaleBlock / Codes::kPerWord * kWordBytes;
  group.scales = scaled ? w.panel_scales(panel) : nullptr;
  group.panel_scales = shape.panel_scales();
  group.scale_per_output = shape.scale_per_output;
  group.group_scales = shape.scale_per_output ? kPanelWidth : 1;
  const std::byte* codes = w.panel_codes(panel);
  const int64_t num_groups = shape.num_groups();
  for (int64_t g = 0; g < num_groups;) {
    const int64_t begin = GroupBegin(shape, g);
    const int count = GroupsAtOnce(shape, rows, g, num_panels);
    group.codes = codes + static_cast<size_t>(begin / Codes::kPerWord) * kWordBytes;
    group.length = GroupEnd(shape, g) - begin;
    group.prefetch_ahead = 0;
    if (g + count < num_groups) {
      group.prefetch_ahead = count * static_cast<ptrdiff_t>(group.group_bytes);
    } else if (next != nullptr) {
      group.prefetch_ahead = next - group.codes;
    }
    const float* x = rows.x + g * rows.num_rows * kRowStride;
    if (rows.num_rows > kDirectRows && g + 1 < num_groups) {
      PrefetchRows(x + rows.num_rows * kRowStride, rows.num_rows);
    }
    if (!rows.direct[g]) {
      AddGroupInMemory<Codes>(group, begin % Codes::kPerWord, num_panels, x, rows.num_rows, stride,
                              sums);
    } else if (rows.num_rows == 1) {
      AddGroupsOfOneRow<Codes>(group, count, num_panels, x, sums);
#if HWY_TARGET == HWY_AVX2
    } else if (rows.num_rows >= kManyRowsMin && Codes::kPerWord > 1) {
      AddGroupOfManyRows<Codes>(group, num_panels, x, rows.num_rows, stride, sums);
#endif
    } else {
      AddGroupDirect<Codes>(group, num_panels, x, rows.num_rows, stride, sums);
    }
    if (scaled) group.scales += count * group.group_scales;
    g += count;
  }
}

void PanelSums(const PanelMatrix& w, int64_t panel, int num_panels, const PreparedRows& rows,
               const std::byte* next, float* sums) {
  switch (w.shape.format) {
    case WeightFormat::kF32:
      return AllSums<F32Codes>(w, panel, num_panels, rows, next, sums);
    case WeightFormat::kBf16:
      return AllSums<Bf16Codes>(w, panel, num_panels, rows, next, sums);
    case WeightFormat::kFp8E4m3:
      return AllSums<Fp8Codes>(w, panel, num_panels, rows, next, sums);
    case WeightFormat::kF16:
      return AllSums<F16Codes>(w, panel, num_panels, rows, next, sums);
    case WeightFormat::kInt4:
      return Int4Sums(w, panel, num_panels, rows.int4, rows.num_rows, next, sums);
    case WeightFormat::kInt8:
      return Int8Sums(w, panel, num_panels, rows.int8, rows.num_rows, next, sums);
  }
}

// to[i] = from[i] * scale for n values; whether all |from[i]| < row_bound (a NaN is not).
bool ScaleRow(const float* from, int64_t n, float scale, float row_bound, float* to) {
  const V factor = hn::Set(kD, scale);
  const V bound = hn::Set(kD, row_bound);
  auto within = hn::Eq(factor, factor);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const V v = hn::LoadU(kD, from + i);
    within = hn::And(within, hn::Lt(hn::Abs(v), bound));
    hn::Store(hn::Mul(v, factor), kD, to + i);
  }
  bool tail_within = true;
  for (; i < n; ++i) {
    tail_within &= from[i] < row_bound && -from[i] < row_bound;
    to[i] = from[i] * scale;
  }
  return hn::AllTrue(kD, within) && tail_within;
}

// Whether decoding to memory first pays: NEON.
HWY_INLINE bool DecodeToMemory(WeightFormat format, int64_t num_rows) {
  return kLanes == 4 && format != WeightFormat::kF32 && num_rows >= 8;
}

// Copies one group of the rows; whether the direct kernels are to take it.
bool PrepareGroup(const PanelShape& shape, const float* const* rows, int64_t num_rows,
                  int64_t begin, int64_t end, float* x) {
  const int64_t per_word = 4 / static_cast<int64_t>(code_bytes(shape.format));
  const bool whole_words = begin % per_word == 0 && end % per_word == 0;
  bool direct = whole_words && !DecodeToMemory(shape.format, num_rows);
  const bool fp8 = shape.format == WeightFormat::kFp8E4m3;
  if (direct && (fp8 || shape.format == WeightFormat::kF16)) {
    const float scale = fp8 ? Fp8Codes::kRowScale : F16Codes::kRowScale;
    const float bound = fp8 ? kFp8RowBound : kF16RowBound;
    for (int64_t r = 0; r < num_rows; ++r) {
      direct &= ScaleRow(rows[r] + begin, end - begin, scale, bound, x + r * kRowStride);
    }
    if (direct) return true;
  }
  for (int64_t r = 0; r < num_rows; ++r) {
    memcpy(x + r * kRowStride, rows[r] + begin, static_cast<size_t>(end - begin) * sizeof(float));
  }
  return direct;
}

size_t PreparedBytes(const PanelShape& shape, int64_t num_rows) {
  if (shape.format == WeightFormat::kInt4) return Int4RowsBytes(shape, num_rows);
  if (shape.format == WeightFormat::kInt8) return Int8RowsBytes(shape, num_rows);
  const auto groups = static_cast<size_t>(shape.num_groups());
  return groups * (static_cast<size_t>(num_rows) * kRowStride * sizeof(float) + 1);
}

PreparedRows PreparedAt(const PanelShape& shape, int64_t num_rows, std::byte* memory) {
  PreparedRows rows{nullptr, nullptr, num_rows};
  if (shape.format == WeightFormat::kInt4) {
    rows.int4 = Int4RowsAt(shape, num_rows, memory);
  } else if (shape.format == WeightFormat::kInt8) {
    rows.int8 = Int8RowsAt(shape, num_rows, memory);
  } else {
    rows.x = reinterpret_cast<float*>(memory);
    rows.direct = reinterpret_cast<uint8_t*>(memory) +
                  static_cast<size_t>(shape.num_groups() * num_rows * kRowStride) * sizeof(float);
  }
  return rows;
}

void PrepareRowsAt(const PanelShape& shape, const float* const* rows, int64_t num_rows,
                   std::byte* memory) {
  if (shape.format == WeightFormat::kInt4) return PrepareInt4Rows(shape, rows, num_rows, memory);
  if (shape.format == WeightFormat::kInt8) return PrepareInt8Rows(shape, rows, num_rows, memory);
  const PreparedRows to_rows = PreparedAt(shape, num_rows, memory);
  auto* x = const_cast<float*>(to_rows.x);
  auto* direct = const_cast<uint8_t*>(to_rows.direct);
  for (int64_t g = 0; g < shape.num_groups(); ++g) {
    direct[g] = PrepareGroup(shape, rows, num_rows, GroupBegin(shape, g), GroupEnd(shape, g),
                             x + g * num_rows * kRowStride);
  }
}

PreparedRows PrepareRows(const PanelShape& shape, const float* const* rows, int64_t num_rows) {
  std::byte* memory = row_scratch(PreparedBytes(shape, num_rows));
  PrepareRowsAt(shape, rows, num_rows, memory);
  return PreparedAt(shape, num_rows, memory);
}

#endif  // ATOLL_SIMD
}  // namespace atl::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "base/memory.h"

namespace atl::kernels {

std::byte* row_scratch(size_t bytes) {
  thread_local HostBuffer buffer;
  if (buffer.size() < bytes) buffer = HostBuffer(bytes);
  return buffer.data();
}

}  // namespace atl::kernels
#endif  // HWY_ONCE
