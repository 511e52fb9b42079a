#include "kernels/tile.h"

#include "kernels/cpu/targets.h"
#include "kernels/reference/reference.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/tile.cc"
#include "hwy/foreach_target.h"  // compiles this file once per target

#include "hwy/highway.h"
#include "kernels/cpu/panel_kernel-inl.h"

HWY_BEFORE_NAMESPACE();
namespace atl::kernels::HWY_NAMESPACE {
#if ATOLL_SIMD

// h[i] = (weight * silu(gate[i])) * up[i] for n values.
void CombineGateUp(const float* gate, const float* up, float weight, int64_t n, float* h) {
  const V w = hn::Set(kD, weight);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const V g = hn::LoadU(kD, gate + i);
    hn::StoreU(hn::Mul(hn::Mul(w, Silu(g)), hn::LoadU(kD, up + i)), kD, h + i);
  }
  if (i == n) return;
  HWY_ALIGN float last_gate[kLanes] = {};
  HWY_ALIGN float last_up[kLanes] = {};
  const size_t bytes = static_cast<size_t>(n - i) * sizeof(float);
  memcpy(last_gate, gate + i, bytes);
  memcpy(last_up, up + i, bytes);
  const V last = hn::Mul(hn::Mul(w, Silu(hn::Load(kD, last_gate))), hn::Load(kD, last_up));
  hn::Store(last, kD, last_gate);
  memcpy(h + i, last_gate, bytes);
}

// One tile, `rows` rows that are prepared.
void GateUpOfRows(const TileView& tile, int64_t panel_begin, int64_t panel_end,
                  const PreparedRows& prepared, const float* weights, const std::byte* next,
                  float* const* h) {
  HWY_ALIGN float gate_sums[kSumsMax];
  HWY_ALIGN float up_sums[kSumsMax];
  const PanelMatrix gate = tile.gate();
  const PanelMatrix up = tile.up();
  int panels;
  for (int64_t panel = panel_begin; panel < panel_end; panel += panels) {
    panels = NextPanels(gate.shape.format, panel_end - panel, prepared.num_rows);
    PanelSums(gate, panel, panels, prepared, up.panel_codes(panel), gate_sums);
    PanelSums(up, panel, panels, prepared, NextCodes(gate, panel, panels, panel_end, next),
              up_sums);
    const int64_t first = panel * kPanelWidth;
    const int64_t count = HWY_MIN(panels * kPanelWidth, gate.shape.outputs - first);
    for (int64_t r = 0; r < prepared.num_rows; ++r) {
      const int64_t at = r * panels * kPanelWidth;
      CombineGateUp(gate_sums + at, up_sums + at, weights[r], count, h[r] + first);
    }
  }
}

void TileGateUp(const TileView* tiles, int64_t num_tiles, int64_t panel_begin, int64_t panel_end,
                const float* const* x, const float* weights, float* const* h, int64_t num_rows) {
  for (int64_t row = 0; row < num_rows; row += kRowChunk) {
    const int64_t rows = HWY_MIN(kRowChunk, num_rows - row);
    const PreparedRows prepared = PrepareRows(tiles[0].layout->gate_up, x + row, rows);
    const TilesInUse byte_tiles(tiles[0].layout->gate_up, rows);
    for (int64_t t = 0; t < num_tiles; ++t) {
      const std::byte* next =
          t + 1 < num_tiles ? tiles[t + 1].gate().panel_codes(panel_begin) : nullptr;
      const int64_t end = HWY_MIN(panel_end, tiles[t].layout->gate_up.num_panels());
      GateUpOfRows(tiles[t], panel_begin, end, prepared, weights + row, next,
                   h + t * num_rows + row);
    }
  }
}

using DD = hn::CappedTag<double, 8>;
constexpr DD kDD{};
constexpr hn::RebindToSigned<DD> kDI64{};
constexpr hn::Rebind<float, DD> kDHalf{};
constexpr int kDoubleLanes = static_cast<int>(hn::MaxLanes(DD()));
constexpr double kMagic =
    0x1.8p+52;  // one unit in the last place is 1: adding it rounds to integer

// acc[0..16) += values rounded to multiples of 2^-24, as integers. False if one is out of bounds.
bool AddFixedPoint(const float* values, int64_t* acc) {
  const auto magic = hn::Set(kDD, kMagic);
  const V16 all = Load16(values);
  auto within = hn::Lt(hn::Abs(all.v[0]), hn::Set(kD, 0x1p+23f));
  HWY_UNROLL(8)
  for (int i = 1; i < kVectors; ++i) {
    within = hn::And(within, hn::Lt(hn::Abs(all.v[i]), hn::Set(kD, 0x1p+23f)));
  }
  HWY_UNROLL(8)
  for (int i = 0; i < 16; i += kDoubleLanes) {
    const auto value = hn::LoadU(kDHalf, values + i);
    const auto rounded = hn::MulAdd(hn::PromoteTo(kDD, value), hn::Set(kDD, 0x1p+24), magic);
    const auto units = hn::Sub(hn::BitCast(kDI64, rounded), hn::BitCast(kDI64, magic));
    hn::StoreU(hn::Add(hn::LoadU(kDI64, acc + i), units), kDI64, acc + i);
  }
  return hn::AllTrue(kD, within);
}

bool AccumulateOutputs(const float* values, int64_t count, int64_t* acc) {
  bool within = true;
  int64_t o = 0;
  for (; o + kPanelWidth <= count; o += kPanelWidth) within &= AddFixedPoint(values + o, acc + o);
  if (o == count) return within;
  HWY_ALIGN float last_values[kPanelWidth] = {};
  HWY_ALIGN int64_t last_acc[kPanelWidth] = {};
  memcpy(last_values, values + o, static_cast<size_t>(count - o) * sizeof(float));
  memcpy(last_acc, acc + o, static_cast<size_t>(count - o) * sizeof(int64_t));
  within &= AddFixedPoint(last_values, last_acc);
  memcpy(acc + o, last_acc, static_cast<size_t>(count - o) * sizeof(int64_t));
  return within;
}

void TileDownAccumulate(const TileView& tile, int64_t panel_begin, int64_t panel_end,
                        const float* const* h, int64_t* const* acc, uint8_t* bad, int64_t num_rows,
                        const TileView* next) {
  HWY_ALIGN float sums[kSumsMax];
  const PanelMatrix down = tile.down();
  const std::byte* next_codes = nullptr;
  if (next != nullptr) next_codes = next->down().panel_codes(panel_begin);
  for (int64_t row = 0; row < num_rows; row += kRowChunk) {
    const int64_t rows = HWY_MIN(kRowChunk, num_rows - row);
    const PreparedRows prepared = PrepareRows(down.shape, h + row, rows);
    const TilesInUse byte_tiles(down.shape, rows);
    int panels;
    for (int64_t panel = panel_begin; panel < panel_end; panel += panels) {
      panels = NextPanels(down.shape.format, panel_end - panel, rows);
      PanelSums(down, panel, panels, prepared,
                NextCodes(down, panel, panels, panel_end, next_codes), sums);
      const int64_t first = panel * kPanelWidth;
      const int64_t count = HWY_MIN(panels * kPanelWidth, down.shape.outputs - first);
      for (int64_t r = 0; r < rows; ++r) {
        const float* values = sums + r * panels * kPanelWidth;
        if (!AccumulateOutputs(values, count, acc[row + r] + first)) bad[row + r] = 1;
      }
    }
  }
}

// Integers up to 2^47 are exact in double; the only rounding is the one to FP32.
bool AddFixedPointRow(const int64_t* sum, int64_t n, float* out) {
  const auto magic = hn::Set(kDD, kMagic);
  const auto bound = hn::Set(kDI64, kContributionBound);
  auto beyond = hn::Zero(kDI64);
  int64_t i = 0;
  for (; i + kDoubleLanes <= n; i += kDoubleLanes) {
    const auto units = hn::LoadU(kDI64, sum + i);
    beyond = hn::Or(beyond, hn::VecFromMask(kDI64, hn::Gt(units, bound)));
    beyond = hn::Or(beyond, hn::VecFromMask(kDI64, hn::Gt(hn::Neg(bound), units)));
    const auto shifted = hn::BitCast(kDD, hn::Add(units, hn::BitCast(kDI64, magic)));
    const auto value = hn::Mul(hn::Sub(shifted, magic), hn::Set(kDD, 0x1p-24));
    const auto total = hn::Add(hn::LoadU(kDHalf, out + i), hn::DemoteTo(kDHalf, value));
    hn::StoreU(total, kDHalf, out + i);
  }
  const bool within = hn::AllTrue(kDI64, hn::Eq(beyond, hn::Zero(kDI64)));
  return reference::add_fixed_point_row(sum + i, n - i, out + i) && within;
}

#else

void CombineGateUp(const float* gate, const float* up, float weight, int64_t n, float* h) {
  for (int64_t i = 0; i < n; ++i) h[i] = (weight * reference::silu_f32(gate[i])) * up[i];
}
void TileGateUp(const TileView* tiles, int64_t num_tiles, int64_t panel_begin, int64_t panel_end,
                const float* const* x, const float* weights, float* const* h, int64_t num_rows) {
  const auto n = static_cast<size_t>(num_rows);
  for (int64_t t = 0; t < num_tiles; ++t) {
    const int64_t end = std::min(panel_end, tiles[t].layout->gate_up.num_panels());
    reference::tile_gate_up(tiles[t], panel_begin, end, {x, n}, {weights, n},
                            {h + t * num_rows, n});
  }
}
void TileDownAccumulate(const TileView& tile, int64_t panel_begin, int64_t panel_end,
                        const float* const* h, int64_t* const* acc, uint8_t* bad, int64_t num_rows,
                        const TileView*) {
  const auto n = static_cast<size_t>(num_rows);
  reference::tile_down_accumulate(tile, panel_begin, panel_end, {h, n}, {acc, n}, {bad, n});
}
bool AddFixedPointRow(const int64_t* sum, int64_t n, float* out) {
  return reference::add_fixed_point_row(sum, n, out);
}

#endif
}  // namespace atl::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "base/check.h"

namespace atl::kernels {

HWY_EXPORT(CombineGateUp);
HWY_EXPORT(TileGateUp);
HWY_EXPORT(TileDownAccumulate);
HWY_EXPORT(AddFixedPointRow);

void tile_gate_up(std::span<const TileView> tiles, int64_t panel_begin, int64_t panel_end,
                  std::span<const float* const> x, std::span<const float> weights,
                  std::span<float* const> h) {
  CHECK(!tiles.empty());
  CHECK_EQ(x.size(), weights.size());
  CHECK_EQ(h.size(), tiles.size() * x.size());
  HWY_DYNAMIC_DISPATCH(TileGateUp)
  (tiles.data(), static_cast<int64_t>(tiles.size()), panel_begin, panel_end, x.data(),
   weights.data(), h.data(), static_cast<int64_t>(x.size()));
}

void tile_combine_gate_up(const float* gate, const float* up, float weight, int64_t n, float* h) {
  HWY_DYNAMIC_DISPATCH(CombineGateUp)(gate, up, weight, n, h);
}

void tile_down_accumulate(const TileView& tile, int64_t panel_begin, int64_t panel_end,
                          std::span<const float* const> h, std::span<int64_t* const> acc,
                          std::span<uint8_t> bad, const TileView* next) {
  CHECK_EQ(h.size(), acc.size());
  CHECK_EQ(h.size(), bad.size());
  CHECK_LE(panel_end, tile.layout->down.num_panels());
  HWY_DYNAMIC_DISPATCH(TileDownAccumulate)
  (tile, panel_begin, panel_end, h.data(), acc.data(), bad.data(), static_cast<int64_t>(h.size()),
   next);
}

bool add_fixed_point_row(const int64_t* sum, int64_t n, float* out) {
  return HWY_DYNAMIC_DISPATCH(AddFixedPointRow)(sum, n, out);
}

}  // namespace atl::kernels
#endif  // HWY_ONCE
