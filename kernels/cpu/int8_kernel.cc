// The micro-kernels of int8 panels (kernels/int8.h), compiled once per target; docs/numbers.md
// defines the arithmetic: a 128-block's products are added as integers, so that instructions,
// order and tiles don't show in the result.
#include "kernels/cpu/byte_units.h"
#include "kernels/cpu/targets.h"
#include "kernels/panel.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/int8_kernel.cc"
#include "hwy/foreach_target.h"  // compiles this file once per target

#include "hwy/highway.h"
#include "kernels/cpu/i8_rows-inl.h"
#include "kernels/cpu/int8_kernel-inl.h"

HWY_BEFORE_NAMESPACE();
namespace atl::kernels::HWY_NAMESPACE {
#if ATOLL_SIMD

// One 128-block of some adjacent panels and rows.
struct Int8Work {
  const std::byte* panel = nullptr;  // the whole first panel
  size_t panel_bytes = 0;
  Int8Block at;
  const int8_t* q = nullptr;          // [row][128]
  const int32_t* start = nullptr;     // [row]
  const float* row_scales = nullptr;  // [row]
  ptrdiff_t ahead = 0;                // bytes from a line to the one to fetch now; 0: none

  const std::byte* panel_at(int p) const { return panel + static_cast<size_t>(p) * panel_bytes; }
  const std::byte* codes(int p) const { return panel_at(p) + at.codes; }
  const float* scales(int p) const {
    return reinterpret_cast<const float*>(panel_at(p) + at.scales);
  }
  int64_t length() const { return at.end - at.begin; }
  int64_t num_lines() const { return 2 * ceil_div(length(), kInt8PerStep); }
};

// Into the second level, as panel_kernel.cc does and says why.
HWY_INLINE void PrefetchLines(const Int8Work& work, int p) {
  if (work.ahead == 0) return;
  const std::byte* at = work.panel_at(p) + work.at.scales + work.ahead;
  for (size_t i = 0; i < int8_block_bytes(kInt8Block); i += kInt8WordLine) {
    __builtin_prefetch(at + i, 0, 1);
  }
}

#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL
// AVX-512: codes made unsigned by adding 128 (turning their top bit). VNNI multiplies them as they
// are; maddubs would saturate, so it takes each half byte on its own: 8 lines of 2 x 15 x 127 stay
// below 2^15, and the high half counts 16 when it is widened.
#if HWY_TARGET == HWY_AVX2
#define ATOLL_BYTES_VNNI 0
namespace int8_bytes {
#include "kernels/cpu/int8_bytes-inl.h"
}  // namespace int8_bytes
#undef ATOLL_BYTES_VNNI
#else
#define ATOLL_BYTES_VNNI 0
namespace int8_bytes {
#include "kernels/cpu/int8_bytes-inl.h"
}  // namespace int8_bytes
#undef ATOLL_BYTES_VNNI
#define ATOLL_BYTES_VNNI 1
#pragma GCC push_options
#pragma GCC target("avx512vnni")
namespace int8_vnni {
#include "kernels/cpu/int8_bytes-inl.h"
}  // namespace int8_vnni
#pragma GCC pop_options
#undef ATOLL_BYTES_VNNI
#endif

HWY_INLINE void AddInt8Block(const Int8Work& work, int num_panels, int64_t num_rows, int64_t stride,
                             float* sums) {
#if HWY_TARGET != HWY_AVX2
  if (vnni_in_use()) return int8_vnni::AddBlock(work, num_panels, num_rows, stride, sums);
#endif
  int8_bytes::AddBlock(work, num_panels, num_rows, stride, sums);
}

#else

void AddInt8Block(const Int8Work& work, int num_panels, int64_t num_rows, int64_t stride,
                  float* sums) {
  for (int p = 0; p < num_panels; ++p) {
    const auto* codes = reinterpret_cast<const int8_t*>(work.codes(p));
    for (int64_t r = 0; r < num_rows; ++r) {
      for (int64_t lane = 0; lane < kPanelWidth; ++lane) {
        int32_t dot = 0;
        for (int64_t i = 0; i < work.length(); ++i) {
          dot += work.q[r * kInt8Block + i] * codes[int8_code_offset(lane, i)];
        }
        float* sum = sums + r * stride + p * kPanelWidth + lane;
        const float total = __builtin_fmaf(work.scales(p)[lane], static_cast<float>(dot), 0.0f);
        *sum = __builtin_fmaf(work.row_scales[r], total, *sum);
      }
    }
  }
}

#endif

namespace tiles {
#include "kernels/cpu/amx-inl.h"
}  // namespace tiles

// `sums` as TileSums has them.
template <class Sums>
HWY_INLINE void AddInt8Tiles(const Int8Work& work, int num_panels, int64_t num_rows, Sums& tiles,
                             float* sums) {
  alignas(64) int8_t copies[2][kInt8Block / 4 * kInt8WordLine];
  const auto bytes = static_cast<size_t>(work.num_lines()) * kInt8WordLine;
  tiles::TileBlock block;
  block.halves[0] = true;
  block.halves[1] = work.length() > kInt8Block / 2;
  block.q = work.q;
  block.row_scales = work.row_scales;
  block.num_rows = num_rows;
  for (int p = 0; p < num_panels; p += tiles::TileBlock::kPanels) {
    block.num_panels = HWY_MIN(tiles::TileBlock::kPanels, num_panels - p);
    for (int i = 0; i < block.num_panels; ++i) {
      PrefetchLines(work, p + i);
      block.scales[i][0] = work.scales(p + i);
      block.lines[i] = reinterpret_cast<const int8_t*>(work.codes(p + i));
      if (bytes == sizeof(copies[i])) continue;
      memcpy(copies[i], block.lines[i], bytes);  // a tile reads 16 lines: no more are there
      memset(copies[i] + bytes, 0, sizeof(copies[i]) - bytes);
      block.lines[i] = copies[i];
    }
    tiles.Add(block, sums + p * kPanelWidth);
  }
}

// Bytes from a block of a panel to what is read next: the panel's next block or, at its end,
// `next`.
ptrdiff_t BytesAhead(const PanelShape& shape, const Int8Block& block, const std::byte* panel,
                     const std::byte* next) {
  const auto here = static_cast<ptrdiff_t>(block.scales);
  if (block.block + 1 < shape.num_groups()) {
    return static_cast<ptrdiff_t>(int8_block_bytes(block.end - block.begin));
  }
  return next == nullptr ? 0 : next - panel - here;
}

template <class Add>
HWY_INLINE void ForEachBlock(const PanelMatrix& w, int64_t panel, const Int8Rows& rows,
                             int64_t num_rows, const std::byte* next, const Add& add) {
  Int8Work work;
  work.panel = w.panel_codes(panel);
  work.panel_bytes = w.shape.panel_code_bytes();
  for_each_int8_block(w.shape.k, w.shape.k_offset, [&](const Int8Block& block) HWY_ATTR {
    work.at = block;
    work.ahead = BytesAhead(w.shape, block, work.panel, next);
    const int64_t first = block.block * num_rows;
    work.q = rows.q + first * kInt8Block;
    work.start = rows.start + first;
    work.row_scales = rows.scales + first;
    add(work);
  });
}

template <class Tiles>
HWY_NOINLINE void SumsByTiles(const PanelMatrix& w, int64_t panel, int num_panels,
                              const Int8Rows& rows, int64_t num_rows, const std::byte* next,
                              float* sums) {
  tiles::TileSums<Tiles, 1> by_tiles(num_panels * kPanelWidth);
  ForEachBlock(w, panel, rows, num_rows, next, [&](const Int8Work& work) HWY_ATTR {
    AddInt8Tiles(work, num_panels, num_rows, by_tiles, sums);
  });
}

void Int8Sums(const PanelMatrix& w, int64_t panel, int num_panels, const Int8Rows& rows,
              int64_t num_rows, const std::byte* next, float* sums) {
  const int64_t stride = num_panels * kPanelWidth;
  for (int64_t i = 0; i < num_rows * stride; i += kLanes) hn::Store(hn::Zero(kD), kD, sums + i);
  const AmxUse amx = num_rows < tiles::kTileRowsMin ? AmxUse::kOff : amx_in_use();
  if (amx == AmxUse::kEmulated) {
    return SumsByTiles<tiles::EmulatedTiles>(w, panel, num_panels, rows, num_rows, next, sums);
  }
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL
  if (amx == AmxUse::kOn) {
    return SumsByTiles<tiles::AmxTiles>(w, panel, num_panels, rows, num_rows, next, sums);
  }
#endif
  ForEachBlock(w, panel, rows, num_rows, next, [&](const Int8Work& work) HWY_ATTR {
    AddInt8Block(work, num_panels, num_rows, stride, sums);
  });
}

TilesInUse::TilesInUse(const PanelShape& shape, int64_t num_rows)
    : use_(shape.activations == Activations::kI8 && num_rows >= tiles::kTileRowsMin
               ? amx_in_use()
               : AmxUse::kOff) {
  if (use_ == AmxUse::kEmulated) tiles::EmulatedTiles::Configure();
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL
  if (use_ == AmxUse::kOn) tiles::AmxTiles::Configure();
#endif
}

TilesInUse::~TilesInUse() {
  if (use_ == AmxUse::kEmulated) tiles::EmulatedTiles::Release();
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL
  if (use_ == AmxUse::kOn) tiles::AmxTiles::Release();
#endif
}

constexpr size_t kSlack = (tiles::kTileRowsOfAmx - 1) * kInt8Block;  // see Int8Rows::q

size_t Int8RowsBytes(const PanelShape& shape, int64_t num_rows) {
  const auto count = static_cast<size_t>(shape.num_groups() * num_rows);  // of block and row
  return count * (kInt8Block + sizeof(int32_t) + sizeof(float)) + kSlack;
}

Int8Rows Int8RowsAt(const PanelShape& shape, int64_t num_rows, std::byte* memory) {
  const auto count = static_cast<size_t>(shape.num_groups() * num_rows);
  auto* start = reinterpret_cast<int32_t*>(memory);
  auto* scales = reinterpret_cast<float*>(start + count);
  return {reinterpret_cast<int8_t*>(scales + count), start, scales};
}

void PrepareInt8Rows(const PanelShape& shape, const float* const* rows, int64_t num_rows,
                     std::byte* memory) {
  const auto count = static_cast<size_t>(shape.num_groups() * num_rows);
  const Int8Rows to_rows = Int8RowsAt(shape, num_rows, memory);
  auto* q = const_cast<int8_t*>(to_rows.q);
  auto* start = const_cast<int32_t*>(to_rows.start);
  auto* scales = const_cast<float*>(to_rows.scales);
  memset(q + count * kInt8Block, 0, kSlack);
  for_each_int8_block(shape.k, shape.k_offset, [&](const Int8Block& block) HWY_ATTR {
    const int64_t length = block.end - block.begin;
    for (int64_t r = 0; r < num_rows; ++r) {
      const int64_t at = block.block * num_rows + r;
      int8_t* to = q + at * kInt8Block;
      const float* from = rows[r] + block.begin;
      const I8Scale scale = I8ScaleOf(LargestBits(from, length));
      scales[at] = scale.scale;
      start[at] = 0;
      if (scale.inverse == 0.0f || length < kInt8Block) memset(to, 0, kInt8Block);
      if (scale.inverse != 0.0f) start[at] = -128 * RoundToI8(from, length, scale.inverse, to);
    }
  });
}

float RoundToInt8(const float* values, int64_t n, int8_t* codes) {
  const I8Scale scale = I8ScaleOf(LargestBits(values, n));
  if (scale.inverse == 0.0f) {
    memset(codes, 0, static_cast<size_t>(n));
  } else {
    (void)RoundToI8(values, n, scale.inverse, codes);
  }
  return scale.scale;
}

#else

float RoundToInt8(const float* values, int64_t n, int8_t* codes) {
  return reference::round_to_int8(values, n, codes);
}

#endif  // ATOLL_SIMD
}  // namespace atl::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace atl::kernels {

HWY_EXPORT(RoundToInt8);

float round_to_int8(const float* values, int64_t n, int8_t* codes) {
  return HWY_DYNAMIC_DISPATCH(RoundToInt8)(values, n, codes);
}

}  // namespace atl::kernels
#endif  // HWY_ONCE
