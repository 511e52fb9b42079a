// The kernels of int4 weights and rows rounded to int8, for x86 vectors: included by int4_kernel.cc
// for AVX2, for AVX-512 and once more for AVX-512 with VNNI (ATOLL_I8_VNNI 1), each time in a
// namespace of its own. No include guard for that reason.
//
// A word line (one 32-bit word per output) becomes two lines of unsigned bytes, stored codes of 4
// adjacent k per output. VNNI adds such a line's products with 4 bytes of a row to 32-bit sums.
// Without, maddubs adds two products to 16-bit numbers, of which 8 lines are added before they are
// widened: 8 x 2 x 15 x 127 = 30 480 is below 2^15, so nothing saturates.

#if HWY_TARGET == HWY_AVX2
using VI = __m256i;
constexpr int kColumns = 2;  // vectors per line of a panel
HWY_INLINE VI LoadLine(const void* p) { return _mm256_load_si256(static_cast<const VI*>(p)); }
HWY_INLINE void StoreLine(VI v, void* p) { _mm256_store_si256(static_cast<VI*>(p), v); }
HWY_INLINE VI Broadcast4(const void* p) {
  int32_t bits;
  memcpy(&bits, p, sizeof(bits));
  return _mm256_set1_epi32(bits);
}
HWY_INLINE VI LowCodes(VI words) { return _mm256_and_si256(words, _mm256_set1_epi8(15)); }
HWY_INLINE VI HighCodes(VI words) { return LowCodes(_mm256_srli_epi16(words, 4)); }
HWY_INLINE VI MulPairs(VI codes, VI x) { return _mm256_maddubs_epi16(codes, x); }
HWY_INLINE VI AddPairs(VI a, VI b) { return _mm256_add_epi16(a, b); }
HWY_INLINE VI AddWidened(VI sum, VI pairs) {
  return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
HWY_INLINE VI ZeroLine() { return _mm256_setzero_si256(); }
// Keeps the compiler from adding up several products first, which spills the sums.
HWY_INLINE void HoldSum(VI& sum) { asm volatile("" : "+x"(sum)); }
HWY_INLINE V ToFloat(VI sum) { return V{_mm256_cvtepi32_ps(sum)}; }
#else
using VI = __m512i;
constexpr int kColumns = 1;
HWY_INLINE VI LoadLine(const void* p) { return _mm512_load_si512(p); }
HWY_INLINE void StoreLine(VI v, void* p) { _mm512_store_si512(p, v); }
HWY_INLINE VI Broadcast4(const void* p) {
  int32_t bits;
  memcpy(&bits, p, sizeof(bits));
  return _mm512_set1_epi32(bits);
}
HWY_INLINE VI LowCodes(VI words) { return _mm512_and_si512(words, _mm512_set1_epi8(15)); }
HWY_INLINE VI HighCodes(VI words) { return LowCodes(_mm512_srli_epi16(words, 4)); }
HWY_INLINE VI MulPairs(VI codes, VI x) { return _mm512_maddubs_epi16(codes, x); }
HWY_INLINE VI AddPairs(VI a, VI b) { return _mm512_add_epi16(a, b); }
HWY_INLINE VI AddWidened(VI sum, VI pairs) {
  return _mm512_add_epi32(sum, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
}
HWY_INLINE VI ZeroLine() { return _mm512_setzero_si512(); }
HWY_INLINE void HoldSum(VI&) {}
HWY_INLINE V ToFloat(VI sum) { return V{_mm512_cvtepi32_ps(sum)}; }
#endif

constexpr int64_t kChunkWords = 4;  // 8 lines, as many as 16-bit sums hold
constexpr size_t kLineBytes = kInt4WordLine;

// Where a tile's columns get their lines: from packed words, or from lines decoded before.
struct PackedLines {
  const std::byte* words;
  HWY_INLINE void Get(int64_t word, int column, VI* low, VI* high) const {
    const VI both = LoadLine(words + static_cast<size_t>(word) * kLineBytes +
                             static_cast<size_t>(column) * sizeof(VI));
    *low = LowCodes(both);
    *high = HighCodes(both);
  }
};
struct DecodedLines {
  const uint8_t* lines;
  size_t column_bytes;  // from one column of the tile to the next
  HWY_INLINE void Get(int64_t word, int column, VI* low, VI* high) const {
    const uint8_t* at = lines + static_cast<size_t>(column) * column_bytes +
                        static_cast<size_t>(word) * 2 * kLineBytes;
    *low = LoadLine(at);
    *high = LoadLine(at + kLineBytes);
  }
};

// pairs[column][row] += a line's products with 4 bytes of each row.
template <int kCols, int kRows>
HWY_INLINE void AddLine(const VI (&codes)[kCols], const int8_t* q, VI (&pairs)[kCols][kRows]) {
  HWY_UNROLL(8)
  for (int r = 0; r < kRows; ++r) {
    const VI x = Broadcast4(q + r * kInt4Block);
    HWY_UNROLL(8)
    for (int c = 0; c < kCols; ++c) {
      pairs[c][r] = AddPairs(pairs[c][r], MulPairs(codes[c], x));
      HoldSum(pairs[c][r]);
    }
  }
}

// acc[column][row] += stored codes x q over `words` words.
template <int kCols, int kRows, class Lines>
HWY_INLINE void AddDots(const Lines& lines, int64_t words, const int8_t* q,
                        VI (&acc)[kCols][kRows]) {
#if ATOLL_I8_VNNI
  int64_t word = 0;
  do {  // at least one word: a plain loop makes the compiler copy all sums
    VI low[kCols], high[kCols];
    HWY_UNROLL(8)
    for (int c = 0; c < kCols; ++c) lines.Get(word, c, &low[c], &high[c]);
    HWY_UNROLL(8)
    for (int r = 0; r < kRows; ++r) {
      const VI x = Broadcast4(q + r * kInt4Block);
      HWY_UNROLL(8)
      for (int c = 0; c < kCols; ++c) acc[c][r] = _mm512_dpbusd_epi32(acc[c][r], low[c], x);
    }
    HWY_UNROLL(8)
    for (int r = 0; r < kRows; ++r) {
      const VI x = Broadcast4(q + r * kInt4Block + 4);
      HWY_UNROLL(8)
      for (int c = 0; c < kCols; ++c) acc[c][r] = _mm512_dpbusd_epi32(acc[c][r], high[c], x);
    }
    q += kInt4PerWord;
  } while (++word < words);
#else
  for (int64_t word = 0; word < words;) {
    VI pairs[kCols][kRows];
    HWY_UNROLL(8)
    for (int c = 0; c < kCols; ++c) {
      HWY_UNROLL(8)
      for (int r = 0; r < kRows; ++r) pairs[c][r] = ZeroLine();
    }
    for (const int64_t end = HWY_MIN(word + kChunkWords, words); word < end;
         ++word, q += kInt4PerWord) {
      VI low[kCols], high[kCols];
      HWY_UNROLL(8)
      for (int c = 0; c < kCols; ++c) lines.Get(word, c, &low[c], &high[c]);
      AddLine<kCols, kRows>(low, q, pairs);
      AddLine<kCols, kRows>(high, q + 4, pairs);
    }
    HWY_UNROLL(8)
    for (int c = 0; c < kCols; ++c) {
      HWY_UNROLL(8)
      for (int r = 0; r < kRows; ++r) acc[c][r] = AddWidened(acc[c][r], pairs[c][r]);
    }
  }
#endif
}

// total[column][row] = fma(scale, stored codes x q - 8 x sum of q, total) of one group.
template <int kCols, int kRows, class Lines>
HWY_INLINE void AddGroupOfBlock(const Lines& lines, int64_t words, const int8_t* q,
                                const int32_t* start, const V* scales, V (&total)[kCols][kRows]) {
  VI acc[kCols][kRows];
  HWY_UNROLL(8)
  for (int r = 0; r < kRows; ++r) {
    HWY_UNROLL(8)
    for (int c = 0; c < kCols; ++c) acc[c][r] = Broadcast4(start + 2 * r);
  }
  AddDots<kCols, kRows>(lines, words, q, acc);
  HWY_UNROLL(8)
  for (int c = 0; c < kCols; ++c) {
    HWY_UNROLL(8)
    for (int r = 0; r < kRows; ++r) {
      total[c][r] = hn::MulAdd(scales[c], ToFloat(acc[c][r]), total[c][r]);
    }
  }
}

// sums[row][lane] = fma(row scale, total, sums[row][lane]).
template <int kRows>
HWY_INLINE void AddRowScaled(const float* row_scales, const V (&total)[kRows], int64_t stride,
                             float* sums) {
  HWY_UNROLL(8)
  for (int r = 0; r < kRows; ++r) {
    float* sum = sums + r * stride;
    hn::Store(hn::MulAdd(hn::Set(kD, row_scales[r]), total[r], hn::Load(kD, sum)), kD, sum);
  }
}

// A few rows: each word line is decoded where it is used.
template <int kRows>
HWY_NOINLINE void AddBlockDirect(const I8Block& block, int num_panels, int64_t stride,
                                 float* sums) {
  for (int p = 0; p < num_panels; ++p) {
    const std::byte* panel = block.panel + static_cast<size_t>(p) * block.panel_bytes;
    // All at once: faster here than one beside each word.
    PrefetchBlock(panel + block.groups[0].scales + block.ahead);
    V total[kColumns][kRows];
    HWY_UNROLL(8)
    for (int c = 0; c < kColumns; ++c) {
      HWY_UNROLL(8)
      for (int r = 0; r < kRows; ++r) total[c][r] = hn::Zero(kD);
    }
    for (int g = 0; g < block.num_groups; ++g) {
      const Int4Group& group = block.groups[g];
      V scales[kColumns];
      HWY_UNROLL(8)
      for (int c = 0; c < kColumns; ++c) {
        scales[c] = LoadInt4Scales(panel + group.scales + c * kLanes * 2);
      }
      AddGroupOfBlock<kColumns, kRows>(
          PackedLines{panel + group.codes}, ceil_div(group.end - group.begin, kInt4PerWord),
          block.q + group.slot * kInt4Group, block.start + group.slot, scales, total);
    }
    HWY_UNROLL(8)
    for (int c = 0; c < kColumns; ++c) {
      AddRowScaled<kRows>(block.row_scales, total[c], stride, sums + p * kPanelWidth + c * kLanes);
    }
  }
}

// More rows: a tile of 16 or 32 outputs is decoded to L1 for all of them.
constexpr int kTilePanels = kLanes == 16 ? 2 : 1;
constexpr int kTileColumns = 2;
static_assert(kTilePanels * kColumns == kTileColumns);
constexpr int kTileRows = kLanes == 16 ? 8 : 6;
constexpr size_t kPanelLines = 2 * kInt4Block / kInt4PerWord;  // of a whole block

struct DecodedTile {
  alignas(64) uint8_t lines[kTilePanels][kPanelLines * kLineBytes];
  // From column to column: panels with AVX-512, halves of lines with AVX2.
  static constexpr size_t kColumnBytes =
      kTilePanels == 2 ? kPanelLines * kLineBytes : kLineBytes / 2;
};

HWY_INLINE void DecodePanel(const I8Block& block, const std::byte* panel, uint8_t* lines) {
  for (int g = 0; g < block.num_groups; ++g) {
    const Int4Group& group = block.groups[g];
    uint8_t* to = lines + static_cast<size_t>(g) * kPanelLines / 2 * kLineBytes;
    const int64_t words = ceil_div(group.end - group.begin, kInt4PerWord);
    for (int64_t word = 0; word < words; ++word, to += 2 * kLineBytes) {
      const std::byte* from = panel + group.codes + static_cast<size_t>(word) * kLineBytes;
      PrefetchToL2(from + block.ahead);
      for (size_t c = 0; c < kColumns; ++c) {
        const VI both = LoadLine(from + c * sizeof(VI));
        StoreLine(LowCodes(both), to + c * sizeof(VI));
        StoreLine(HighCodes(both), to + kLineBytes + c * sizeof(VI));
      }
    }
  }
}

template <int kCols, int kRows>
HWY_NOINLINE void AddTile(const I8Block& block, const std::byte* panel, const DecodedTile& tile,
                          int64_t row, int64_t stride, float* sums) {
  V total[kCols][kRows];
  HWY_UNROLL(8)
  for (int c = 0; c < kCols; ++c) {
    HWY_UNROLL(8)
    for (int r = 0; r < kRows; ++r) total[c][r] = hn::Zero(kD);
  }
  for (int g = 0; g < block.num_groups; ++g) {
    const Int4Group& group = block.groups[g];
    V scales[kCols];
    HWY_UNROLL(8)
    for (int c = 0; c < kCols; ++c) {
      const std::byte* from = kTilePanels == 2 ? panel + static_cast<size_t>(c) * block.panel_bytes
                                               : panel + c * kLanes * 2;
      scales[c] = LoadInt4Scales(from + group.scales);
    }
    const DecodedLines lines{tile.lines[0] + static_cast<size_t>(g) * kPanelLines / 2 * kLineBytes,
                             DecodedTile::kColumnBytes};
    AddGroupOfBlock<kCols, kRows>(lines, ceil_div(group.end - group.begin, kInt4PerWord),
                                  block.q + row * kInt4Block + group.slot * kInt4Group,
                                  block.start + 2 * row + group.slot, scales, total);
  }
  HWY_UNROLL(8)
  for (int c = 0; c < kCols; ++c) {
    AddRowScaled<kRows>(block.row_scales + row, total[c], stride, sums + row * stride + c * kLanes);
  }
}

template <int kCols, int kRows = kTileRows>
void AddTileRows(int64_t num_rows, const I8Block& block, const std::byte* panel,
                 const DecodedTile& tile, int64_t row, int64_t stride, float* sums) {
  if (num_rows == kRows) {
    AddTile<kCols, kRows>(block, panel, tile, row, stride, sums);
  } else if constexpr (kRows > 1) {
    AddTileRows<kCols, kRows - 1>(num_rows, block, panel, tile, row, stride, sums);
  }
}

void AddBlockDecoded(const I8Block& block, int num_panels, int64_t num_rows, int64_t stride,
                     float* sums) {
  DecodedTile tile;
  const int64_t num_tiles = ceil_div(num_rows, kTileRows);
  for (int p = 0; p < num_panels; p += kTilePanels) {
    const std::byte* panel = block.panel + static_cast<size_t>(p) * block.panel_bytes;
    const int panels = HWY_MIN(kTilePanels, num_panels - p);
    for (int i = 0; i < panels; ++i) {
      DecodePanel(block, panel + static_cast<size_t>(i) * block.panel_bytes, tile.lines[i]);
    }
    for (int64_t t = 0, row = 0; t < num_tiles; ++t) {
      const int64_t count = (num_rows - row) / (num_tiles - t);
      float* to = sums + p * kPanelWidth;
      if (panels * kColumns == kTileColumns) {
        AddTileRows<kTileColumns>(count, block, panel, tile, row, stride, to);
      } else {
        AddTileRows<1>(count, block, panel, tile, row, stride, to);
      }
      row += count;
    }
  }
}

// sums[row][panel][lane] += one 128-block, for all rows.
void AddBlock(const I8Block& block, int num_panels, int64_t num_rows, int64_t stride, float* sums) {
  switch (num_rows) {
    case 1:
      return AddBlockDirect<1>(block, num_panels, stride, sums);
    case 2:
      return AddBlockDirect<2>(block, num_panels, stride, sums);
    case 3:
      return AddBlockDirect<3>(block, num_panels, stride, sums);
    case 4:
      return AddBlockDirect<4>(block, num_panels, stride, sums);
    default:
      return AddBlockDecoded(block, num_panels, num_rows, stride, sums);
  }
}
