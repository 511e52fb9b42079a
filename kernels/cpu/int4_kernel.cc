// The micro-kernels of int4 panels (kernels/int4.h), compiled once per target; docs/numbers.md
// defines both arithmetics.
//
// FP32 rows: a few rows decode in registers, as the other formats do; more rows decode a group to
// L1 first. Rounded rows (i8): the nibbles of a word are two sets of 4 adjacent bytes after a mask
// and a shift, which is what the instructions for dot products of bytes take.
#include "kernels/cpu/byte_units.h"
#include "kernels/cpu/targets.h"
#include "kernels/panel.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/int4_kernel.cc"
#include "hwy/foreach_target.h"  // compiles this file once per target

#include "hwy/highway.h"
#include "kernels/cpu/i8_rows-inl.h"
#include "kernels/cpu/int4_kernel-inl.h"
#include "kernels/cpu/panel_kernel-inl.h"

HWY_BEFORE_NAMESPACE();
namespace atl::kernels::HWY_NAMESPACE {
#if ATOLL_SIMD

using VU = hn::Vec<DU>;

// Without a permutation of 16 values by 4 bits, a code is moved to the top of its word (as two's
// complement) and converted there, which gives the code times 2^28; x is divided by that, exactly
// unless it is tiny.
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL
constexpr float kInt4RowScale = 1.0f;
constexpr float kInt4SmallestRow = 0.0f;
#else
constexpr float kInt4RowScale = 0x1p-28f;
constexpr float kInt4SmallestRow = 0x1p-98f;  // of a row's values but 0: times 2^-28 still normal
#endif

// What decoding needs beside the word.
struct Int4Decoder {
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL
  V table;
  HWY_INLINE Int4Decoder() {
    table = hn::Sub(hn::Iota(kD, 0.0f), hn::Set(kD, static_cast<float>(kInt4Zero)));
  }
  HWY_INLINE VU Word(VU word) const { return word; }
  // Code kJ of each word over kInt4RowScale. The permutation takes the low 4 bits of its index.
  template <int kJ>
  HWY_INLINE V Decode(VU word) const {
    const VU index = hn::ShiftRight<int4_shift(kJ)>(word);
    return V{_mm512_permutexvar_ps(index.raw, table.raw)};
  }
#else
  HWY_INLINE VU Word(VU word) const { return hn::Xor(word, hn::Set(kDU, 0x88888888u)); }
  template <int kJ>
  HWY_INLINE V Decode(VU word) const {
    const VU top = hn::And(hn::ShiftLeft<28 - int4_shift(kJ)>(word), hn::Set(kDU, 0xf0000000u));
    return hn::ConvertTo(kD, hn::BitCast(kDI, top));
  }
#endif
};

HWY_INLINE V LoadInt4Scales(const std::byte* at) {
  const hn::Rebind<uint16_t, D> d16;
  const auto bits = hn::LoadU(d16, reinterpret_cast<const uint16_t*>(at));
  return hn::BitCast(kD, hn::ShiftLeft<16>(hn::PromoteTo(kDU, bits)));
}

// Into the second level, as panel_kernel.cc does and says why.
HWY_INLINE void PrefetchToL2(const std::byte* at) { __builtin_prefetch(at, 0, 1); }
// What one panel has in a block.
HWY_INLINE void PrefetchBlock(const std::byte* at) {
  for (size_t i = 0; i < int4_block_bytes(0, kInt4Block); i += kInt4WordLine) PrefetchToL2(at + i);
}

// Bytes from a block of a panel to what is read next: the panel's next block or, at its end,
// `next`.
ptrdiff_t BytesAhead(const PanelShape& shape, const Int4Group& group, const std::byte* block,
                     const std::byte* next) {
  if (group.block + 1 < shape.num_groups()) {
    return static_cast<ptrdiff_t>(int4_block_bytes(0, kInt4Block));
  }
  return next == nullptr ? 0 : next - block;
}

// A group of some adjacent panels.
struct Int4Panels {
  const std::byte* codes;   // in the first panel
  const std::byte* scales;  // in the first panel
  size_t panel_bytes;       // from panel to panel
  int64_t length;           // in k
  ptrdiff_t ahead;          // bytes from a word or scale to the one to fetch now; 0: none

  Int4Panels from(int panel) const {
    Int4Panels p = *this;
    p.codes += static_cast<size_t>(panel) * panel_bytes;
    p.scales += static_cast<size_t>(panel) * panel_bytes;
    return p;
  }
};

// sum[row][lane] = fma(scale, acc[row], sum[row][lane]) of one panel.
template <int kRows>
HWY_INLINE void AddInt4Scaled(const std::byte* scales, const V (&acc)[kRows][kVectors],
                              int64_t stride, float* sums) {
  HWY_UNROLL(8)
  for (int i = 0; i < kVectors; ++i) {
    const V scale = LoadInt4Scales(scales + i * kLanes * 2);
    HWY_UNROLL(16)
    for (int r = 0; r < kRows; ++r) {
      float* sum = sums + r * stride + i * kLanes;
      hn::Store(hn::MulAdd(scale, acc[r][i], hn::Load(kD, sum)), kD, sum);
    }
  }
}

// acc[row][i] += x[row][kJ] * code kJ of the words, and so on for the codes behind it. All vectors
// of a panel together: one after the other their chains of 8 would be too long to overlap.
template <int kRows, int kJ = 0>
HWY_INLINE void AddInt4Codes(const Int4Decoder& decoder, const VU (&words)[kVectors],
                             const float* x, V (&acc)[kRows][kVectors]) {
  V w[kVectors];
  HWY_UNROLL(8)
  for (int i = 0; i < kVectors; ++i) w[i] = decoder.Decode<kJ>(words[i]);
  HWY_UNROLL(8)
  for (int r = 0; r < kRows; ++r) {
    const V xk = hn::Set(kD, x[r * kInt4Block + kJ]);
    HWY_UNROLL(8)
    for (int i = 0; i < kVectors; ++i) acc[r][i] = hn::MulAdd(xk, w[i], acc[r][i]);
  }
  if constexpr (kJ + 1 < kInt4PerWord) AddInt4Codes<kRows, kJ + 1>(decoder, words, x, acc);
}

// Whole words only; x is scaled by kInt4RowScale.
template <int kPanels, int kRows>
HWY_NOINLINE void AddInt4GroupDirect(const Int4Panels& group, const float* x, int64_t stride,
                                     float* sums) {
  const Int4Decoder decoder;
  V acc[kPanels][kRows][kVectors];
  HWY_UNROLL(8)
  for (int p = 0; p < kPanels; ++p) {
    HWY_UNROLL(8)
    for (int r = 0; r < kRows; ++r) {
      HWY_UNROLL(8)
      for (int i = 0; i < kVectors; ++i) acc[p][r][i] = hn::Zero(kD);
    }
  }
  const std::byte* codes = group.codes;
  const float* x_end = x + group.length;
  for (; x < x_end; x += kInt4PerWord, codes += kInt4WordLine) {
    HWY_UNROLL(8)
    for (int p = 0; p < kPanels; ++p) {
      const std::byte* at = codes + static_cast<size_t>(p) * group.panel_bytes;
      PrefetchToL2(at + group.ahead);
      const auto* from = reinterpret_cast<const uint32_t*>(at);
      VU words[kVectors];
      HWY_UNROLL(8)
      for (int i = 0; i < kVectors; ++i) {
        words[i] = decoder.Word(hn::Load(kDU, from + i * kLanes));
      }
      AddInt4Codes<kRows>(decoder, words, x, acc[p]);
      // Loads the broadcasts of x anew for each panel; the compiler would rather spill.
      if constexpr (kLanes < 16) asm volatile("" : : : "memory");
    }
  }
  HWY_UNROLL(8)
  for (int p = 0; p < kPanels; ++p) {
    const std::byte* scales = group.from(p).scales;
    PrefetchToL2(scales + group.ahead);
    AddInt4Scaled<kRows>(scales, acc[p], stride, sums + p * kPanelWidth);
  }
}

template <int kRows>
void AddInt4PanelsDirect(const Int4Panels& group, int num_panels, const float* x, int64_t stride,
                         float* sums) {
  constexpr int kPanels = DirectPanels(kRows);
  int p = 0;
  for (; p + kPanels <= num_panels; p += kPanels) {
    AddInt4GroupDirect<kPanels, kRows>(group.from(p), x, stride, sums + p * kPanelWidth);
  }
  for (; p < num_panels; ++p) {
    AddInt4GroupDirect<1, kRows>(group.from(p), x, stride, sums + p * kPanelWidth);
  }
}

template <int kJ = 0>
HWY_INLINE void StoreInt4Codes(const Int4Decoder& decoder, VU word, V scale, float* out) {
  hn::Store(hn::Mul(decoder.Decode<kJ>(word), scale), kD, out + kJ * kPanelWidth);
  if constexpr (kJ + 1 < kInt4PerWord) StoreInt4Codes<kJ + 1>(decoder, word, scale, out);
}

// Decodes the words of a group of one panel to [k][lane].
HWY_NOINLINE void DecodeInt4Group(const std::byte* codes, int64_t length, float* out) {
  const Int4Decoder decoder;
  const V scale = hn::Set(kD, kInt4RowScale);
  for (int64_t k = 0; k < length; k += kInt4PerWord, codes += kInt4WordLine) {
    HWY_UNROLL(8)
    for (int i = 0; i < kVectors; ++i) {
      const auto* words = reinterpret_cast<const uint32_t*>(codes) + i * kLanes;
      StoreInt4Codes(decoder, decoder.Word(hn::Load(kDU, words)), scale,
                     out + k * kPanelWidth + i * kLanes);
    }
  }
}

// Rows that share the loads of decoded codes: as many chains as the registers hold.
constexpr int kDecodedRows = kLanes == 16 ? 12 : kLanes == 8 ? 5 : 4;

// One panel, decoded.
template <int kRows>
HWY_NOINLINE void AddInt4Decoded(const float* decoded, const std::byte* scales, int64_t length,
                                 const float* x, int64_t stride, float* sums) {
  V acc[kRows][kVectors];
  HWY_UNROLL(16)
  for (int r = 0; r < kRows; ++r) {
    HWY_UNROLL(8)
    for (int i = 0; i < kVectors; ++i) acc[r][i] = hn::Zero(kD);
  }
  for (int64_t k = 0; k < length; ++k, decoded += kPanelWidth) {
    const V16 w = Load16(decoded);
    HWY_UNROLL(16)
    for (int r = 0; r < kRows; ++r) {
      const V xk = hn::Set(kD, x[r * kInt4Block + k]);
      HWY_UNROLL(8)
      for (int i = 0; i < kVectors; ++i) acc[r][i] = hn::MulAdd(xk, w.v[i], acc[r][i]);
    }
  }
  AddInt4Scaled<kRows>(scales, acc, stride, sums);
}

template <int kRows = kDecodedRows>
void AddInt4DecodedRows(int64_t num_rows, const float* decoded, const std::byte* scales,
                        int64_t length, const float* x, int64_t stride, float* sums) {
  if (num_rows == kRows) {
    AddInt4Decoded<kRows>(decoded, scales, length, x, stride, sums);
  } else if constexpr (kRows > 1) {
    AddInt4DecodedRows<kRows - 1>(num_rows, decoded, scales, length, x, stride, sums);
  }
}

void AddInt4GroupInMemory(const Int4Panels& group, int num_panels, const float* x, int64_t num_rows,
                          int64_t stride, float* sums) {
  HWY_ALIGN float decoded[kInt4Group * kPanelWidth];
  const int64_t num_blocks = ceil_div(num_rows, kDecodedRows);
  for (int p = 0; p < num_panels; ++p) {
    const Int4Panels panel = group.from(p);
    DecodeInt4Group(panel.codes, group.length, decoded);
    for (int64_t block = 0, row = 0; block < num_blocks; ++block) {
      const int64_t count = (num_rows - row) / (num_blocks - block);
      AddInt4DecodedRows(count, decoded, panel.scales, group.length, x + row * kInt4Block, stride,
                         sums + row * stride + p * kPanelWidth);
      row += count;
    }
  }
}

void AddInt4Group(const Int4Panels& group, int num_panels, bool direct, const float* x,
                  int64_t num_rows, int64_t stride, float* sums) {
  if (!direct) return AddInt4GroupInMemory(group, num_panels, x, num_rows, stride, sums);
  switch (num_rows) {
    case 1:
      return AddInt4PanelsDirect<1>(group, num_panels, x, stride, sums);
    case 2:
      return AddInt4PanelsDirect<2>(group, num_panels, x, stride, sums);
    case 3:
      return AddInt4PanelsDirect<3>(group, num_panels, x, stride, sums);
    default:
      return AddInt4PanelsDirect<4>(group, num_panels, x, stride, sums);
  }
}

// One 128-block of some adjacent panels and rows, for the kernels of rounded rows.
struct I8Block {
  const std::byte* panel = nullptr;  // the whole first panel: groups have offsets in it
  size_t panel_bytes = 0;
  Int4Group groups[2];
  int num_groups = 0;
  const int8_t* q = nullptr;          // [row][128]
  const int32_t* start = nullptr;     // [row][2]
  const float* row_scales = nullptr;  // [row]
  ptrdiff_t ahead = 0;                // bytes from a word or scale to the one to fetch now; 0: none
};

#if HWY_TARGET == HWY_AVX2
#define ATOLL_I8_VNNI 0
namespace i8 {
#include "kernels/cpu/i8_kernel-inl.h"
}  // namespace i8
#undef ATOLL_I8_VNNI

HWY_INLINE void AddI8Block(const I8Block& block, int num_panels, int64_t num_rows, int64_t stride,
                           float* sums) {
  i8::AddBlock(block, num_panels, num_rows, stride, sums);
}

#elif HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL
#define ATOLL_I8_VNNI 0
namespace i8 {
#include "kernels/cpu/i8_kernel-inl.h"
}  // namespace i8
#undef ATOLL_I8_VNNI
#define ATOLL_I8_VNNI 1
#pragma GCC push_options
#pragma GCC target("avx512vnni")
namespace i8_vnni {
#include "kernels/cpu/i8_kernel-inl.h"
}  // namespace i8_vnni
#pragma GCC pop_options
#undef ATOLL_I8_VNNI

HWY_INLINE void AddI8Block(const I8Block& block, int num_panels, int64_t num_rows, int64_t stride,
                           float* sums) {
  if (vnni_in_use()) {
    i8_vnni::AddBlock(block, num_panels, num_rows, stride, sums);
  } else {
    i8::AddBlock(block, num_panels, num_rows, stride, sums);
  }
}

#else

void AddI8Block(const I8Block& block, int num_panels, int64_t num_rows, int64_t stride,
                float* sums) {
  for (int p = 0; p < num_panels; ++p) {
    const std::byte* panel = block.panel + static_cast<size_t>(p) * block.panel_bytes;
    for (int64_t r = 0; r < num_rows; ++r) {
      for (int64_t lane = 0; lane < kPanelWidth; ++lane) {
        float total = 0.0f;
        for (int g = 0; g < block.num_groups; ++g) {
          const Int4Group& group = block.groups[g];
          const int8_t* q = block.q + r * kInt4Block + group.slot * kInt4Group;
          int32_t dot = block.start[2 * r + group.slot];
          for (int64_t i = 0; i < group.end - group.begin; ++i) {
            uint32_t word;
            memcpy(&word, panel + group.codes + i / kInt4PerWord * 64 + lane * 4, sizeof(word));
            dot += q[i] * static_cast<int32_t>((word >> int4_shift(i)) & 0xf);
          }
          uint16_t scale;
          memcpy(&scale, panel + group.scales + lane * 2, sizeof(scale));
          total = __builtin_fmaf(bf16_to_float(scale), static_cast<float>(dot), total);
        }
        float* sum = sums + r * stride + p * kPanelWidth + lane;
        *sum = __builtin_fmaf(block.row_scales[r], total, *sum);
      }
    }
  }
}

#endif

namespace tiles {
#include "kernels/cpu/amx-inl.h"
}  // namespace tiles

// 16 BF16 scales as floats.
HWY_INLINE void WidenInt4Scales(const std::byte* from, float* to) {
  HWY_UNROLL(8)
  for (int i = 0; i < kVectors; ++i) {
    hn::Store(LoadInt4Scales(from + i * kLanes * 2), kD, to + i * kLanes);
  }
}

// The words of a group of one panel as lines of signed bytes.
HWY_INLINE void DecodeInt4Lines(const std::byte* words, int64_t num_words, ptrdiff_t ahead,
                                int8_t* lines) {
  const hn::CappedTag<uint8_t, kInt4WordLine> d8;
  constexpr size_t kBytes = hn::MaxLanes(d8);
  const auto low_half = hn::Set(d8, uint8_t{15});
  const auto zero = hn::Set(d8, uint8_t{kInt4Zero});
  auto* to = reinterpret_cast<uint8_t*>(lines);
  for (int64_t word = 0; word < num_words; ++word, words += kInt4WordLine, to += 128) {
    PrefetchToL2(words + ahead);
    for (size_t i = 0; i < kInt4WordLine; i += kBytes) {
      const auto both = hn::Load(d8, reinterpret_cast<const uint8_t*>(words) + i);
      hn::Store(hn::Sub(hn::And(both, low_half), zero), d8, to + i);
      const hn::Repartition<uint16_t, decltype(d8)> d16;
      const auto high = hn::BitCast(d8, hn::ShiftRight<4>(hn::BitCast(d16, both)));
      hn::Store(hn::Sub(hn::And(high, low_half), zero), d8, to + kInt4WordLine + i);
    }
  }
}

// Blocks by tiles of bytes, each decoded once for all rows.
template <class Tiles>
class Int4Tiles {
 public:
  explicit Int4Tiles(int64_t stride) : sums_(stride) { memset(lines_, 0, sizeof(lines_)); }

  void Add(const I8Block& block, int num_panels, int64_t num_rows, float* sums) {
    tiles::TileBlock piece;
    piece.q = block.q;
    piece.row_scales = block.row_scales;
    piece.num_rows = num_rows;
    for (int g = 0; g < block.num_groups; ++g) piece.halves[block.groups[g].slot] = true;
    for (int p = 0; p < num_panels; p += tiles::TileBlock::kPanels) {
      piece.num_panels = HWY_MIN(tiles::TileBlock::kPanels, num_panels - p);
      scales_place_ ^= 1;  // the others are still wanted: see TileSums
      for (int i = 0; i < piece.num_panels; ++i) {
        const std::byte* panel = block.panel + static_cast<size_t>(p + i) * block.panel_bytes;
        piece.lines[i] = lines_[i][0];
        for (int g = 0; g < block.num_groups; ++g) {
          const Int4Group& group = block.groups[g];
          float* scales = scales_[scales_place_][i][group.slot];
          WidenInt4Scales(panel + group.scales, scales);
          piece.scales[i][group.slot] = scales;
          // What a shorter group leaves of its lines meets zeros of the rows.
          DecodeInt4Lines(panel + group.codes, ceil_div(group.end - group.begin, kInt4PerWord),
                          block.ahead, lines_[i][group.slot]);
        }
      }
      sums_.Add(piece, sums + p * kPanelWidth);
    }
  }

 private:
  alignas(64) int8_t lines_[tiles::TileBlock::kPanels][2][16 * kInt4WordLine];
  alignas(64) float scales_[2][tiles::TileBlock::kPanels][2][kPanelWidth];
  int scales_place_ = 0;
  tiles::TileSums<Tiles, 2> sums_;
};

// add(block) for every 128-block.
template <class Add>
HWY_INLINE void ForEachI8Block(const PanelMatrix& w, int64_t panel, const Int4Rows& rows,
                               int64_t num_rows, const std::byte* next, const Add& add) {
  I8Block block;
  block.panel = w.panel_codes(panel);
  block.panel_bytes = w.shape.panel_code_bytes();
  for_each_int4_group(w.shape.k, w.shape.k_offset, [&](const Int4Group& group) HWY_ATTR {
    block.groups[block.num_groups++] = group;
    if (!group.ends_block) return;
    const std::byte* at = block.panel + block.groups[0].scales;
    block.ahead = BytesAhead(w.shape, group, at, next);
    const int64_t first = group.block * num_rows;
    block.q = rows.q + first * kInt4Block;
    block.start = rows.start + first * 2;
    block.row_scales = rows.scales + first;
    add(block);
    block.num_groups = 0;
  });
}

template <class Tiles>
HWY_NOINLINE void Int4SumsByTiles(const PanelMatrix& w, int64_t panel, int num_panels,
                                  const Int4Rows& rows, int64_t num_rows, const std::byte* next,
                                  float* sums) {
  Int4Tiles<Tiles> by_tiles(num_panels * kPanelWidth);
  ForEachI8Block(w, panel, rows, num_rows, next, [&](const I8Block& block) HWY_ATTR {
    by_tiles.Add(block, num_panels, num_rows, sums);
  });
}

void Int4SumsOfI8(const PanelMatrix& w, int64_t panel, int num_panels, const Int4Rows& rows,
                  int64_t num_rows, const std::byte* next, float* sums) {
  const AmxUse amx = num_rows < tiles::kTileRowsMin ? AmxUse::kOff : amx_in_use();
  if (amx == AmxUse::kEmulated) {
    return Int4SumsByTiles<tiles::EmulatedTiles>(w, panel, num_panels, rows, num_rows, next, sums);
  }
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL
  if (amx == AmxUse::kOn) {
    return Int4SumsByTiles<tiles::AmxTiles>(w, panel, num_panels, rows, num_rows, next, sums);
  }
#endif
  ForEachI8Block(w, panel, rows, num_rows, next, [&](const I8Block& block) HWY_ATTR {
    AddI8Block(block, num_panels, num_rows, num_panels * kPanelWidth, sums);
  });
}

void Int4Sums(const PanelMatrix& w, int64_t panel, int num_panels, const Int4Rows& rows,
              int64_t num_rows, const std::byte* next, float* sums) {
  const int64_t stride = num_panels * kPanelWidth;
  for (int64_t i = 0; i < num_rows * stride; i += kLanes) hn::Store(hn::Zero(kD), kD, sums + i);
  if (w.shape.activations == Activations::kI8) {
    return Int4SumsOfI8(w, panel, num_panels, rows, num_rows, next, sums);
  }
  const std::byte* at = w.panel_codes(panel);
  const size_t panel_bytes = w.shape.panel_code_bytes();
  size_t block = 0;  // where the group's block begins
  for_each_int4_group(w.shape.k, w.shape.k_offset, [&](const Int4Group& place) HWY_ATTR {
    const Int4Panels group{at + place.codes, at + place.scales, panel_bytes,
                           place.end - place.begin, BytesAhead(w.shape, place, at + block, next)};
    const float* x = rows.x + place.block * num_rows * kInt4Block + place.slot * kInt4Group;
    AddInt4Group(group, num_panels, rows.direct[place.block] != 0, x, num_rows, stride, sums);
    const auto words = static_cast<size_t>(ceil_div(place.end - place.begin, kInt4PerWord));
    if (place.ends_block) block = place.codes + words * kInt4WordLine;
  });
}

// to[i] = from[i] * kInt4RowScale for n values; whether that is exact.
bool ScaleInt4Row(const float* from, int64_t n, float* to) {
  bool exact = true;
  for (int64_t i = 0; i < n; ++i) {
    const float magnitude = __builtin_fabsf(from[i]);
    exact &= !(magnitude < kInt4SmallestRow) || magnitude == 0.0f;
    to[i] = from[i] * kInt4RowScale;
  }
  return exact;
}

// Walks over the 128-blocks of a matrix: fn(block, begin, end, place of `begin` in its block).
template <class Fn>
HWY_INLINE void ForEachInt4Block(const PanelShape& shape, const Fn& fn) {
  for (int64_t block = 0, begin = 0, end; begin < shape.k; ++block, begin = end) {
    const int64_t place = (shape.k_offset + begin) % kInt4Block;
    end = HWY_MIN(shape.k, begin + kInt4Block - place);
    fn(block, begin, end, place);
  }
}

// Copies the part [begin, end) of a row to the groups' slots of a block: fn(from, n, to).
template <class T, class Fn>
HWY_INLINE void FillSlots(const float* row, int64_t begin, int64_t end, int64_t place, T* to,
                          const Fn& fn) {
  memset(to, 0, kInt4Block * sizeof(T));
  if (place % kInt4Group == 0) return fn(row + begin, end - begin, to + place);
  const int64_t slot = place / kInt4Group;
  const int64_t first = HWY_MIN(end - begin, (slot + 1) * kInt4Group - place);
  fn(row + begin, first, to + slot * kInt4Group);
  if (begin + first < end) fn(row + begin + first, end - begin - first, to + kInt4Group);
}

// Bytes of rounded rows: tiles read 15 more than there are.
size_t I8Bytes(size_t count) { return (count + tiles::kTileRowsOfAmx - 1) * kInt4Block; }

size_t Int4RowsBytes(const PanelShape& shape, int64_t num_rows) {
  const auto blocks = static_cast<size_t>(shape.num_groups());
  const auto count = blocks * static_cast<size_t>(num_rows);  // of block and row
  if (shape.activations == Activations::kI8) {
    return I8Bytes(count) + count * (2 * sizeof(int32_t) + sizeof(float));
  }
  return count * kInt4Block * sizeof(float) + blocks;
}

Int4Rows Int4RowsAt(const PanelShape& shape, int64_t num_rows, std::byte* memory) {
  const auto count = static_cast<size_t>(shape.num_groups() * num_rows);
  Int4Rows rows;
  if (shape.activations == Activations::kI8) {
    rows.q = reinterpret_cast<int8_t*>(memory);
    rows.start = reinterpret_cast<int32_t*>(memory + I8Bytes(count));
    rows.scales = reinterpret_cast<const float*>(rows.start + count * 2);
  } else {
    rows.x = reinterpret_cast<float*>(memory);
    rows.direct = reinterpret_cast<uint8_t*>(memory + count * kInt4Block * sizeof(float));
  }
  return rows;
}

void PrepareInt4F32(const PanelShape& shape, const float* const* rows, int64_t num_rows,
                    const Int4Rows& to_rows) {
  const size_t block_values = static_cast<size_t>(num_rows) * kInt4Block;
  auto* x = const_cast<float*>(to_rows.x);
  auto* direct = const_cast<uint8_t*>(to_rows.direct);
  ForEachInt4Block(shape, [&](int64_t block, int64_t begin, int64_t end, int64_t place) {
    float* to = x + static_cast<size_t>(block) * block_values;
    // Groups of whole words, as they begin at words.
    bool exact = num_rows <= kDirectRows && place % kInt4PerWord == 0 &&
                 end % kInt4PerWord == begin % kInt4PerWord;
    for (int64_t r = 0; exact && r < num_rows; ++r) {
      FillSlots(
          rows[r], begin, end, place, to + r * kInt4Block,
          [&](const float* from, int64_t n, float* slot) { exact &= ScaleInt4Row(from, n, slot); });
    }
    direct[block] = exact;
    for (int64_t r = 0; !exact && r < num_rows; ++r) {
      FillSlots(rows[r], begin, end, place, to + r * kInt4Block,
                [&](const float* from, int64_t n, float* slot) {
                  memcpy(slot, from, static_cast<size_t>(n) * sizeof(float));
                });
    }
  });
}

// One block of a row: q = x * (127 / largest), rounded, what the groups' sums start from, and the
// scale that it returns.
float RoundI8Block(const float* row, int64_t begin, int64_t end, int64_t place, int8_t* q,
                   int32_t* start) {
  start[0] = start[1] = 0;
  const I8Scale scale = I8ScaleOf(LargestBits(row + begin, end - begin));
  if (scale.inverse == 0.0f) {
    memset(q, 0, kInt4Block);
    return scale.scale;
  }
  if (end - begin < kInt4Block) memset(q, 0, kInt4Block);
  for (int64_t slot = place / kInt4Group; begin < end; ++slot, place = slot * kInt4Group) {
    const int64_t n = HWY_MIN((slot + 1) * kInt4Group - place, end - begin);
    // A group's first word starts at its slot, wherever its first k is.
    start[slot] = -kInt4Zero * RoundToI8(row + begin, n, scale.inverse, q + slot * kInt4Group);
    begin += n;
  }
  return scale.scale;
}

void PrepareI8(const PanelShape& shape, const float* const* rows, int64_t num_rows,
               const Int4Rows& to_rows) {
  const auto count = static_cast<size_t>(shape.num_groups() * num_rows);
  auto* q = const_cast<int8_t*>(to_rows.q);
  auto* start = const_cast<int32_t*>(to_rows.start);
  auto* scales = const_cast<float*>(to_rows.scales);
  memset(q + count * kInt4Block, 0, I8Bytes(count) - count * kInt4Block);
  ForEachInt4Block(shape, [&](int64_t block, int64_t begin, int64_t end, int64_t place) {
    for (int64_t r = 0; r < num_rows; ++r) {
      const int64_t at = block * num_rows + r;
      scales[at] = RoundI8Block(rows[r], begin, end, place, q + at * kInt4Block, start + at * 2);
    }
  });
}

void PrepareInt4Rows(const PanelShape& shape, const float* const* rows, int64_t num_rows,
                     std::byte* memory) {
  const Int4Rows to_rows = Int4RowsAt(shape, num_rows, memory);
  shape.activations == Activations::kI8 ? PrepareI8(shape, rows, num_rows, to_rows)
                                        : PrepareInt4F32(shape, rows, num_rows, to_rows);
}

// Sums of squares of weight - scale * code over a group, for the codes of -scale and of scale: both
// round weight / scale alike and keep it within [-7, 8] or [-8, 7]. kClamps: which of these bounds
// can matter, 0 none, 1 the near ones (7), 2 all.
template <int kClamps>
HWY_INLINE void SquaredErrorsInt4(const float* weights, float scale, float* of_minus,
                                  float* of_plus) {
  const V magic = hn::Set(kD, 0x1.8p+23f);  // adding it rounds to an integer, ties to even
  const V step = hn::Set(kD, scale);
  const V inverse = hn::Set(kD, 1.0f / scale);
  V16 minus = Zero16(), plus = Zero16();
  const auto add = [&](V weight, V code, V& sum) HWY_ATTR {
    const V error = hn::Sub(weight, hn::Mul(step, code));
    sum = hn::Add(sum, hn::Mul(error, error));
  };
  HWY_UNROLL(4)
  for (int64_t k = 0; k < kInt4Group; k += 16) {
    HWY_UNROLL(8)
    for (int i = 0; i < kVectors; ++i) {
      const V weight = hn::Load(kD, weights + k + i * kLanes);
      const V code = hn::Sub(hn::Add(hn::Mul(weight, inverse), magic), magic);
      if constexpr (kClamps == 0) {
        add(weight, code, minus.v[i]);
      } else if constexpr (kClamps == 1) {
        add(weight, hn::Max(code, hn::Set(kD, -7.0f)), minus.v[i]);
        add(weight, hn::Min(code, hn::Set(kD, 7.0f)), plus.v[i]);
      } else {
        add(weight, hn::Clamp(code, hn::Set(kD, -7.0f), hn::Set(kD, 8.0f)), minus.v[i]);
        add(weight, hn::Clamp(code, hn::Set(kD, -8.0f), hn::Set(kD, 7.0f)), plus.v[i]);
      }
    }
  }
  *of_minus = TreeSum(minus);
  *of_plus = kClamps == 0 ? *of_minus : TreeSum(plus);
}

float BestInt4Scale(const float* weights, float largest) {
  float scales[kInt4Divisors], minus[kInt4Divisors], plus[kInt4Divisors];
  for (int d = 0; d < kInt4Divisors; ++d) {
    scales[d] = bf16_to_float(float_to_bf16(largest / int4_divisor(d)));
  }
  // No weight is beyond the divisor times the scale, which is rounded by 2^-9 at most.
  int d = 0;
  for (; int4_divisor(d) < 7.4f; ++d) SquaredErrorsInt4<0>(weights, scales[d], &minus[d], &plus[d]);
  for (; int4_divisor(d) < 8.4f; ++d) SquaredErrorsInt4<1>(weights, scales[d], &minus[d], &plus[d]);
  for (; d < kInt4Divisors; ++d) SquaredErrorsInt4<2>(weights, scales[d], &minus[d], &plus[d]);
  Int4Choice best;
  for (d = 0; d < kInt4Divisors; ++d) {
    best.consider(-scales[d], minus[d]);
    best.consider(scales[d], plus[d]);
  }
  return best.scale;
}

#else

float BestInt4Scale(const float* weights, float largest) {
  return reference::best_int4_scale(weights, largest);
}

#endif  // ATOLL_SIMD
}  // namespace atl::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace atl::kernels {

HWY_EXPORT(BestInt4Scale);

float best_int4_scale(const float* weights, float largest) {
  return HWY_DYNAMIC_DISPATCH(BestInt4Scale)(weights, largest);
}

}  // namespace atl::kernels
#endif  // HWY_ONCE
