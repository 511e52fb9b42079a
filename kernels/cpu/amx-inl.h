// Tiles of bytes as AMX has them: 8 of 16 rows x 64 bytes, and C += A B of 8-bit integers into
// 32-bit ones. The instructions, and an emulation that does what the manual says of them (Intel's
// Architecture Instruction Set Extensions, LDTILECFG, TILELOADD, TDPBSSD, TILESTORED). Kernels are
// templates over the two, and are included per target inside its namespace: no include guard.
//
//   TDPBSSD: C[m][n] += sum over k < 16, i < 4 of A[m][4 k + i] * B[k][4 n + i], all signed

constexpr int64_t kTileRowsOfAmx = 16;
constexpr int64_t kTileBytesOfAmx = 64;  // of a row
// Fewer rows of a step are as fast without tiles, and need no state of the thread.
constexpr int64_t kTileRowsMin = 5;

// All tiles at full size. A fresh one each time: the state belongs to the thread.
struct EmulatedTiles {
  using State = EmulatedTileState;
  static State& Get() { return emulated_tiles(); }
  static void Configure() {
    memset(Get().bytes, 0xcd, sizeof(Get().bytes));  // what a kernel may not count on
    Get().configured = true;
  }
  static void Release() { Get().configured = false; }
  static void Require() {
    if (!Get().configured) __builtin_trap();  // as the CPU: #UD
  }
  template <int kTile>
  static void Zero() {
    Require();
    memset(Get().bytes[kTile], 0, sizeof(Get().bytes[kTile]));
  }
  template <int kTile>
  static void Load(const void* from, int64_t stride) {
    Require();
    for (int64_t r = 0; r < kTileRowsOfAmx; ++r) {
      memcpy(Get().bytes[kTile][r], static_cast<const uint8_t*>(from) + r * stride,
             kTileBytesOfAmx);
    }
  }
  template <int kTile>
  static void Store(void* to, int64_t stride) {
    Require();
    for (int64_t r = 0; r < kTileRowsOfAmx; ++r) {
      memcpy(static_cast<uint8_t*>(to) + r * stride, Get().bytes[kTile][r], kTileBytesOfAmx);
    }
  }
  template <int kC, int kA, int kB>
  static void MulAdd() {
    Require();
    State& state = Get();
    for (int64_t m = 0; m < kTileRowsOfAmx; ++m) {
      int32_t c[16];
      memcpy(c, state.bytes[kC][m], sizeof(c));
      for (int64_t k = 0; k < 16; ++k) {
        for (int64_t n = 0; n < 16; ++n) {
          for (int64_t i = 0; i < 4; ++i) {
            c[n] += static_cast<int8_t>(state.bytes[kA][m][4 * k + i]) *
                    static_cast<int8_t>(state.bytes[kB][k][4 * n + i]);
          }
        }
      }
      memcpy(state.bytes[kC][m], c, sizeof(c));
    }
  }
};

#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL
// By assembly, as the numbers of tiles are part of the instructions: the intrinsics can't take them
// from a template.
struct AmxTiles {
  HWY_INLINE static void Configure() {
    struct alignas(64) Config {
      uint8_t palette = 1;
      uint8_t start_row = 0;
      uint8_t reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    };
    static constexpr Config kConfig;
    asm volatile("ldtilecfg %0" : : "m"(kConfig));
  }
  HWY_INLINE static void Release() { asm volatile("tilerelease"); }
  template <int kTile>
  HWY_INLINE static void Zero() {
    asm volatile("tilezero %%tmm%c0" : : "i"(kTile));
  }
  template <int kTile>
  HWY_INLINE static void Load(const void* from, int64_t stride) {
    asm volatile("tileloadd (%1,%2,1), %%tmm%c0" : : "i"(kTile), "r"(from), "r"(stride) : "memory");
  }
  template <int kTile>
  HWY_INLINE static void Store(void* to, int64_t stride) {
    asm volatile("tilestored %%tmm%c0, (%1,%2,1)" : : "i"(kTile), "r"(to), "r"(stride) : "memory");
  }
  template <int kC, int kA, int kB>
  HWY_INLINE static void MulAdd() {
    asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kC), "i"(kA), "i"(kB));
  }
};
#endif

// One 128-block of adjacent panels and rows as the tiles take them.
struct TileBlock {
  static constexpr int kPanels = 2;   // that are taken together
  const int8_t* lines[kPanels];       // 16 lines of signed codes for each half of the block
  int num_panels = 0;                 // at most kPanels
  bool halves[2] = {};                // those that the panels have any k of
  const float* scales[kPanels][2];    // [panel][half][16] of the outputs
  const int8_t* q = nullptr;          // [row][128]; 15 more rows may be read
  const float* row_scales = nullptr;  // [row]
  int64_t num_rows = 0;
};

// What the tiles are used for: 0 to 3 sums, 4 and 5 rows, 6 and 7 codes.
//   kHalves == 1 (a scale for a whole block): sums are [row tile][panel], of both halves
//   kHalves == 2 (a scale for each half, int4's groups): [half][panel], of one row tile
//
// The sums of some blocks, rows and panels one after the other. Tiles are slow to answer and the
// vectors have as much to do as they: each piece's sums are scaled and added while the tiles work
// on the next one, and before they are stored, since a load waits for an older store that is
// unfinished and equal in its low 12 bits.
template <class Tiles, int kHalves>
class TileSums {
 public:
  explicit TileSums(int64_t stride) : stride_(stride) {}
  ~TileSums() { Finish(); }
  TileSums(const TileSums&) = delete;
  TileSums& operator=(const TileSums&) = delete;

  // sums[row][num_panels * 16] += the block, for all rows. What the block points to may go; its
  // scales, the rows' and the sums stay until the last one.
  HWY_INLINE void Add(const TileBlock& block, float* sums) {
    constexpr int64_t kRows = (kHalves == 1 ? 2 : 1) * kTileRowsOfAmx;
    for (int64_t row = 0; row < block.num_rows; row += kRows) {
      const int64_t rows = HWY_MIN(block.num_rows - row, kRows);
      const bool pair = block.num_panels == TileBlock::kPanels;
      if constexpr (kHalves == 1) {
        if (rows > kTileRowsOfAmx) {
          pair ? AddPiece<2, 2>(block, row) : AddPiece<2, 1>(block, row);
        } else {
          pair ? AddPiece<1, 2>(block, row) : AddPiece<1, 1>(block, row);
        }
      } else {
        pair ? AddPiece<1, 2>(block, row) : AddPiece<1, 1>(block, row);
      }
      pending_.row_scales = block.row_scales + row;
      pending_.sums = sums + row * stride_;
      pending_.rows = rows;
      pending_.num_panels = block.num_panels;
      for (int h = 0; h < kHalves; ++h) {
        pending_.halves[h] = block.halves[h];
        for (int p = 0; p < block.num_panels; ++p) pending_.scales[p][h] = block.scales[p][h];
      }
    }
  }

 private:
  // What has its sums in dots_.
  struct Pending {
    const float* row_scales = nullptr;
    float* sums = nullptr;
    int64_t rows = 0;
    int num_panels = 0;
    const float* scales[TileBlock::kPanels][2];
    bool halves[2];
  };

  template <int kRowTiles, int kPanels>
  HWY_INLINE void AddPiece(const TileBlock& block, int64_t row) {
    constexpr bool kBoth = kPanels == 2;
    constexpr bool kSecond = kHalves == 2 || kRowTiles == 2;  // sums 2 and 3 are used
    Tiles::template Zero<0>();
    if constexpr (kBoth) Tiles::template Zero<1>();
    if constexpr (kSecond) Tiles::template Zero<2>();
    if constexpr (kSecond && kBoth) Tiles::template Zero<3>();
    const int8_t* q = block.q + row * kInt8Block;
    if (block.halves[0]) MulAddHalf<0, kRowTiles, kPanels>(block, q);
    if (block.halves[1]) MulAddHalf<1, kRowTiles, kPanels>(block, q);
    Finish();
    Tiles::template Store<0>(dots_[0][0], kTileBytesOfAmx);
    if constexpr (kBoth) Tiles::template Store<1>(dots_[0][1], kTileBytesOfAmx);
    if constexpr (kSecond) Tiles::template Store<2>(dots_[1][0], kTileBytesOfAmx);
    if constexpr (kSecond && kBoth) Tiles::template Store<3>(dots_[1][1], kTileBytesOfAmx);
  }

  template <int kHalf, int kRowTiles, int kPanels>
  HWY_INLINE void MulAddHalf(const TileBlock& block, const int8_t* q) {
    constexpr int kSum = kHalves == 2 ? 2 * kHalf : 0;
    constexpr int64_t kLines = kHalf * kTileRowsOfAmx * kTileBytesOfAmx;
    q += kHalf * kTileBytesOfAmx;
    Tiles::template Load<4>(q, kInt8Block);
    Tiles::template Load<6>(block.lines[0] + kLines, kTileBytesOfAmx);
    Tiles::template MulAdd<kSum, 4, 6>();
    if constexpr (kPanels == 2) {
      Tiles::template Load<7>(block.lines[1] + kLines, kTileBytesOfAmx);
      Tiles::template MulAdd<kSum + 1, 4, 7>();
    }
    if constexpr (kRowTiles == 2) {
      static_assert(kHalves == 1);
      Tiles::template Load<5>(q + kTileRowsOfAmx * kInt8Block, kInt8Block);
      Tiles::template MulAdd<2, 5, 6>();
      if constexpr (kPanels == 2) Tiles::template MulAdd<3, 5, 7>();
    }
  }

  // sums = fma(row scale, total, sums), total the chain of fma(scale, dot, .) over the halves.
  HWY_INLINE void Finish() {
    for (int p = 0; p < pending_.num_panels; ++p) {
      float* sum = pending_.sums + p * kPanelWidth;
      if constexpr (kHalves == 1) {
        const V16 scale = Load16(pending_.scales[p][0]);
        for (int64_t row = 0; row < pending_.rows; row += kTileRowsOfAmx) {
          FinishRows(HWY_MIN(pending_.rows - row, kTileRowsOfAmx), pending_.row_scales + row,
                     sum + row * stride_, dots_[row / kTileRowsOfAmx][p], &scale, nullptr, nullptr);
        }
      } else {
        const int first = pending_.halves[0] ? 0 : 1;
        const V16 scale = Load16(pending_.scales[p][first]);
        const bool both = pending_.halves[0] && pending_.halves[1];
        const V16 second = both ? Load16(pending_.scales[p][1]) : scale;
        FinishRows(pending_.rows, pending_.row_scales, sum, dots_[first][p], &scale,
                   both ? dots_[1][p] : nullptr, &second);
      }
    }
    pending_.num_panels = 0;
  }

  // Everything in registers or by pointers of its own: stores may alias members.
  HWY_INLINE void FinishRows(int64_t rows, const float* row_scales, float* sum,
                             const int32_t (*dots)[16], const V16* scale, const int32_t (*more)[16],
                             const V16* second) {
    const int64_t stride = stride_;
    const V16 s = *scale;
    const bool both = kHalves == 2 && more != nullptr;
    const V16 s2 = both ? *second : s;
    int64_t r = 0;
    for (; r + 4 <= rows; r += 4, sum += 4 * stride) {
      V16 totals[4];
      HWY_UNROLL(4)
      for (int j = 0; j < 4; ++j) {
        totals[j] = Total(dots[r + j], s, both ? more[r + j] : nullptr, s2);
      }
      HWY_UNROLL(4)
      for (int j = 0; j < 4; ++j) AddRow(totals[j], row_scales + r + j, sum + j * stride);
    }
    for (; r < rows; ++r, sum += stride) {
      AddRow(Total(dots[r], s, both ? more[r] : nullptr, s2), row_scales + r, sum);
    }
  }
  HWY_INLINE static V16 Total(const int32_t* dots, const V16& scale, const int32_t* more,
                              const V16& second) {
    V16 total;
    HWY_UNROLL(8)
    for (int i = 0; i < kVectors; ++i) {
      const V dot = hn::ConvertTo(kD, hn::Load(kDI, dots + i * kLanes));
      total.v[i] = hn::MulAdd(scale.v[i], dot, hn::Zero(kD));
      if (kHalves == 1 || more == nullptr) continue;
      const V dot2 = hn::ConvertTo(kD, hn::Load(kDI, more + i * kLanes));
      total.v[i] = hn::MulAdd(second.v[i], dot2, total.v[i]);
    }
    return total;
  }
  HWY_INLINE static void AddRow(const V16& total, const float* row_scale, float* sum) {
    const V factor = Broadcast(row_scale);
    HWY_UNROLL(8)
    for (int i = 0; i < kVectors; ++i) {
      const V old = hn::Load(kD, sum + i * kLanes);
      hn::Store(hn::MulAdd(factor, total.v[i], old), kD, sum + i * kLanes);
    }
  }

  const int64_t stride_;
  Pending pending_;
  alignas(64) int32_t dots_[2][TileBlock::kPanels][kTileRowsOfAmx][16];
};
