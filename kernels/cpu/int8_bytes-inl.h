// The kernels of int8 weights by products of bytes, for x86 vectors: included by int8_kernel.cc for
// AVX2, for AVX-512 and once more for AVX-512 with VNNI (ATOLL_BYTES_VNNI 1), each time in a
// namespace of its own. No include guard for that reason.

#if HWY_TARGET == HWY_AVX2
using VI = __m256i;
constexpr int kColumns = 2;  // vectors per line of a panel
HWY_INLINE VI Broadcast4(const void* p) {
  int32_t bits;
  memcpy(&bits, p, sizeof(bits));
  return _mm256_set1_epi32(bits);
}
HWY_INLINE V ToFloat(VI sum) { return V{_mm256_cvtepi32_ps(sum)}; }
#else
using VI = __m512i;
constexpr int kColumns = 1;
HWY_INLINE VI LoadCodes(const std::byte* p) {
  return _mm512_xor_si512(_mm512_load_si512(p), _mm512_set1_epi8(-128));
}
HWY_INLINE VI Broadcast4(const void* p) {
  int32_t bits;
  memcpy(&bits, p, sizeof(bits));
  return _mm512_set1_epi32(bits);
}
HWY_INLINE VI LowHalves(VI codes) { return _mm512_and_si512(codes, _mm512_set1_epi8(15)); }
HWY_INLINE VI HighHalves(VI codes) { return LowHalves(_mm512_srli_epi16(codes, 4)); }
HWY_INLINE VI AddPairs(VI sum, VI codes, VI x) {
  return _mm512_add_epi16(sum, _mm512_maddubs_epi16(codes, x));
}
HWY_INLINE VI AddWidened(VI sum, VI pairs, short factor) {
  return _mm512_add_epi32(sum, _mm512_madd_epi16(pairs, _mm512_set1_epi16(factor)));
}
HWY_INLINE VI ZeroLine() { return _mm512_setzero_si512(); }
HWY_INLINE V ToFloat(VI sum) { return V{_mm512_cvtepi32_ps(sum)}; }
#endif

#if HWY_TARGET == HWY_AVX2
// acc[column][row] += codes x q over all lines of a block; `codes` of column c are
// column_bytes * c further. A code's sign goes to q, so that maddubs takes its magnitude: pairs of
// at most 2 x 127 x 127 stay below 2^15 and are widened at once. (Half bytes, whose pairs need be
// widened only each 8 lines, cost two products: 0.45 of the int8 peak where this has 0.77.)
template <int kCols, int kRows>
HWY_INLINE void AddLines(const std::byte* codes, size_t column_bytes, int64_t num_lines,
                         const int8_t* q, VI (&acc)[kCols][kRows]) {
  const VI ones = _mm256_set1_epi16(1);
  for (int64_t line = 0; line < num_lines; ++line, codes += kInt8WordLine, q += 4) {
    HWY_UNROLL(8)
    for (int c = 0; c < kCols; ++c) {
      const auto* at = reinterpret_cast<const VI*>(codes + static_cast<size_t>(c) * column_bytes);
      const VI w = _mm256_load_si256(at), magnitude = _mm256_abs_epi8(w);
      HWY_UNROLL(8)
      for (int r = 0; r < kRows; ++r) {
        const VI x = _mm256_sign_epi8(Broadcast4(q + r * kInt8Block), w);
        const VI pairs = _mm256_maddubs_epi16(magnitude, x);
        acc[c][r] = _mm256_add_epi32(acc[c][r], _mm256_madd_epi16(pairs, ones));
        asm volatile(""
                     : "+x"(acc[c][r]));  // else sums of several lines are made first, and spilled
      }
    }
  }
}
HWY_INLINE VI FirstSum(const int32_t*) { return _mm256_setzero_si256(); }

#else
// acc[column][row] += unsigned codes x q over all lines of a block; `codes` of column c are
// column_bytes * c further.
template <int kCols, int kRows>
HWY_INLINE void AddLines(const std::byte* codes, size_t column_bytes, int64_t num_lines,
                         const int8_t* q, VI (&acc)[kCols][kRows]) {
#if ATOLL_BYTES_VNNI
  int64_t line = 0;
  do {  // at least one: a plain loop makes the compiler copy all sums
    VI w[kCols];
    HWY_UNROLL(8)
    for (int c = 0; c < kCols; ++c) w[c] = LoadCodes(codes + static_cast<size_t>(c) * column_bytes);
    HWY_UNROLL(16)
    for (int r = 0; r < kRows; ++r) {
      const VI x = Broadcast4(q + r * kInt8Block);
      HWY_UNROLL(8)
      for (int c = 0; c < kCols; ++c) acc[c][r] = _mm512_dpbusd_epi32(acc[c][r], w[c], x);
    }
    codes += kInt8WordLine;
    q += 4;
  } while (++line < num_lines);
#else
  constexpr int64_t kLinesAtOnce = 8;  // as many as 16-bit sums hold
  for (int64_t line = 0; line < num_lines;) {
    VI low[kCols][kRows], high[kCols][kRows];
    HWY_UNROLL(8)
    for (int c = 0; c < kCols; ++c) {
      HWY_UNROLL(8)
      for (int r = 0; r < kRows; ++r) low[c][r] = high[c][r] = ZeroLine();
    }
    for (const int64_t end = HWY_MIN(line + kLinesAtOnce, num_lines); line < end;
         ++line, codes += kInt8WordLine, q += 4) {
      HWY_UNROLL(8)
      for (int c = 0; c < kCols; ++c) {
        const VI w = LoadCodes(codes + static_cast<size_t>(c) * column_bytes);
        const VI w_low = LowHalves(w), w_high = HighHalves(w);
        HWY_UNROLL(8)
        for (int r = 0; r < kRows; ++r) {
          const VI x = Broadcast4(q + r * kInt8Block);
          low[c][r] = AddPairs(low[c][r], w_low, x);
          high[c][r] = AddPairs(high[c][r], w_high, x);
        }
      }
    }
    HWY_UNROLL(8)
    for (int c = 0; c < kCols; ++c) {
      HWY_UNROLL(8)
      for (int r = 0; r < kRows; ++r) {
        acc[c][r] = AddWidened(AddWidened(acc[c][r], low[c][r], 1), high[c][r], 16);
      }
    }
  }
#endif
}

// What the sum of unsigned codes starts from.
HWY_INLINE VI FirstSum(const int32_t* start) { return Broadcast4(start); }
#endif

// Columns that rows share: two panels with AVX-512, both halves of one with AVX2.
constexpr int kGroupColumns = 2;
constexpr int kGroupPanels = kGroupColumns / kColumns;
constexpr int kGroupRows = ATOLL_BYTES_VNNI ? 8 : 4;

// sums[row][lane of the columns] = fma(row scale, scale * dot, sum).
template <int kCols, int kRows>
HWY_NOINLINE void AddRows(const Int8Work& work, int panel, int64_t row, int64_t stride,
                          float* sums) {
  const size_t column_bytes = kColumns == 1 ? work.panel_bytes : sizeof(VI);
  VI acc[kCols][kRows];
  HWY_UNROLL(16)
  for (int r = 0; r < kRows; ++r) {
    HWY_UNROLL(8)
    for (int c = 0; c < kCols; ++c) acc[c][r] = FirstSum(work.start + row + r);
  }
  AddLines<kCols, kRows>(work.codes(panel), column_bytes, work.num_lines(),
                         work.q + row * kInt8Block, acc);
  HWY_UNROLL(8)
  for (int c = 0; c < kCols; ++c) {
    const float* scales = kColumns == 1 ? work.scales(panel + c) : work.scales(panel) + c * kLanes;
    const V scale = hn::Load(kD, scales);
    HWY_UNROLL(16)
    for (int r = 0; r < kRows; ++r) {
      float* sum = sums + (row + r) * stride + c * kLanes;
      const V total = hn::MulAdd(scale, ToFloat(acc[c][r]), hn::Zero(kD));
      const V row_scale = hn::Set(kD, work.row_scales[row + r]);
      hn::Store(hn::MulAdd(row_scale, total, hn::Load(kD, sum)), kD, sum);
    }
  }
}

template <int kCols, int kRows = kGroupRows>
void AddSomeRows(int64_t num_rows, const Int8Work& work, int panel, int64_t row, int64_t stride,
                 float* sums) {
  if (num_rows == kRows) {
    AddRows<kCols, kRows>(work, panel, row, stride, sums);
  } else if constexpr (kRows > 1) {
    AddSomeRows<kCols, kRows - 1>(num_rows, work, panel, row, stride, sums);
  }
}

// sums[row][panel][lane] += one 128-block, for all rows.
void AddBlock(const Int8Work& work, int num_panels, int64_t num_rows, int64_t stride, float* sums) {
  const int64_t groups = ceil_div(num_rows, int64_t{kGroupRows});
  for (int p = 0; p < num_panels; p += kGroupPanels) {
    const int panels = HWY_MIN(kGroupPanels, num_panels - p);
    for (int i = 0; i < panels; ++i) PrefetchLines(work, p + i);
    for (int64_t g = 0, row = 0; g < groups; ++g) {
      const int64_t count = (num_rows - row) / (groups - g);  // as equal as may be
      float* to = sums + p * kPanelWidth;
      if (panels == kGroupPanels) {
        AddSomeRows<kGroupColumns>(count, work, p, row, stride, to);
      } else {
        AddSomeRows<1>(count, work, p, row, stride, to);
      }
      row += count;
    }
  }
}
