#include "storage/tiles/tile_store.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <fstream>
#include <numeric>

#include "model/config.h"
#include "model/synthetic.h"
#include "model/weights_map.h"
#include "storage/checkpoint/checkpoint.h"
#include "tests/storage/small_spec.h"
#include "tests/support/temp_dir.h"

namespace atl::storage {
namespace {

using kernels::PanelMatrix;
using kernels::PanelShape;
using kernels::WeightFormat;
using test::TempDir;

const std::filesystem::path kModels = std::filesystem::path(ATOLL_SOURCE_DIR) / "tests/models";

class CountingProgress final : public Progress {
 public:
  void start(uint64_t total_bytes) override { total = total_bytes; }
  void advance(uint64_t bytes) override { done += bytes; }
  uint64_t total = 0;
  std::atomic<uint64_t> done{0};
};

struct OpenModel {
  explicit OpenModel(const std::filesystem::path& dir)
      : config(model::load_config(dir)),
        checkpoint(Checkpoint::open(dir)),
        catalog(model::map_experts(config, checkpoint)) {}
  model::ModelConfig config;
  Checkpoint checkpoint;
  ExpertCatalog catalog;
};

// A small V3 model whose experts have this shape.
model::SyntheticSpec expert_spec(int64_t intermediate, int64_t hidden, int64_t experts) {
  return small_spec(intermediate, hidden, experts, 2, 0);
}

// The naive side: a whole matrix as FP32, read and dequantised element by element.

struct NaiveMatrix {
  int64_t rows = 0, cols = 0;
  std::vector<float> values;
  float at(int64_t row, int64_t col) const { return values[static_cast<size_t>(row * cols + col)]; }
};

NaiveMatrix dequantise(const Checkpoint& checkpoint, const MatrixSource& source) {
  NaiveMatrix m{source.rows, source.cols, {}};
  std::vector<std::byte> raw(source.weight->bytes);
  checkpoint.read(*source.weight, 0, raw);
  std::vector<float> scales;
  if (source.scale != nullptr) {
    scales.resize(source.scale->bytes / 4);
    checkpoint.read(*source.scale, 0, std::as_writable_bytes(std::span(scales)));
  }
  const int64_t grid_cols = (source.cols + 127) / 128;
  for (int64_t i = 0; i < m.rows * m.cols; ++i) {
    float value = 0;
    uint16_t half;
    switch (source.format) {
      case WeightFormat::kF32:
        std::memcpy(&value, raw.data() + 4 * i, 4);
        break;
      case WeightFormat::kBf16:
        std::memcpy(&half, raw.data() + 2 * i, 2);
        value = kernels::bf16_to_float(half);
        break;
      case WeightFormat::kFp8E4m3:
        value = kernels::e4m3_to_float(static_cast<uint8_t>(raw[i])) *
                scales[(i / m.cols / 128) * grid_cols + i % m.cols / 128];
        break;
      case WeightFormat::kF16:
      case WeightFormat::kInt4:
      case WeightFormat::kInt8:
        break;  // never in a checkpoint with experts
    }
    m.values.push_back(value);
  }
  return m;
}

// Element (output, k) of a packed matrix, from the words of kernels/panel.h.
float unpacked(const PanelMatrix& m, int64_t output, int64_t k) {
  const auto bytes = static_cast<int64_t>(kernels::code_bytes(m.shape.format));
  const int64_t per_word = 4 / bytes;
  const std::byte* panel = m.panel_codes(output / 16);
  const std::byte* code = panel + ((k / per_word) * 16 + output % 16) * 4 + k % per_word * bytes;
  float value;
  uint16_t half;
  switch (m.shape.format) {
    case WeightFormat::kF32:
      std::memcpy(&value, code, 4);
      return value;
    case WeightFormat::kBf16:
      std::memcpy(&half, code, 2);
      return kernels::bf16_to_float(half);
    case WeightFormat::kFp8E4m3:
    case WeightFormat::kF16:
    case WeightFormat::kInt4:
    case WeightFormat::kInt8:  // not packed here
      break;
  }
  const int64_t group = (m.shape.k_offset + k) / 128 - m.shape.k_offset / 128;
  const float* scales = m.panel_scales(output / 16);
  const float scale = m.shape.scale_per_output ? scales[group * 16 + output % 16] : scales[group];
  return kernels::e4m3_to_float(static_cast<uint8_t>(*code)) * scale;
}

// Worst element that differs, as text; empty if none does.
std::string difference(const PanelMatrix& packed, const NaiveMatrix& naive, int64_t row_begin,
                       int64_t col_begin) {
  for (int64_t output = 0; output < packed.shape.outputs; ++output) {
    for (int64_t k = 0; k < packed.shape.k; ++k) {
      const float got = unpacked(packed, output, k);
      const float expected = naive.at(row_begin + output, col_begin + k);
      if (std::memcmp(&got, &expected, sizeof got) != 0) {
        return fmt::format("output {} k {}: {} instead of {}", output, k, got, expected);
      }
    }
  }
  return "";
}

// Codes past the matrix (padded k, padded outputs) and the extent's tail are zero.
bool padding_is_zero(const PanelMatrix& m) {
  const auto bytes = static_cast<int64_t>(kernels::code_bytes(m.shape.format));
  const int64_t per_word = 4 / bytes;
  for (int64_t panel = 0; panel < m.shape.num_panels(); ++panel) {
    for (int64_t at = 0; at < static_cast<int64_t>(m.shape.panel_code_bytes()); ++at) {
      const int64_t k = at / 64 * per_word + at % 4 / bytes;
      const int64_t output = panel * 16 + at % 64 / 4;
      const bool padding = k >= m.shape.k || output >= m.shape.outputs;
      if (padding && m.panel_codes(panel)[at] != std::byte{0}) return false;
    }
  }
  return true;
}

void expect_tiles_equal_naive(TileStore& store, const OpenModel& model,
                              std::span<const int> tiles) {
  for (size_t place = 0; place < model.catalog.experts.size(); ++place) {
    for (size_t e = 0; e < model.catalog.experts[place].size(); ++e) {
      const ExpertSource& source = model.catalog.experts[place][e];
      const NaiveMatrix gate = dequantise(model.checkpoint, source.gate);
      const NaiveMatrix up = dequantise(model.checkpoint, source.up);
      const NaiveMatrix down = dequantise(model.checkpoint, source.down);
      for (const int tile : tiles) {
        const auto pinned =
            store.pin({model.catalog.moe_layers[place], static_cast<int32_t>(e)}, tile);
        ASSERT_TRUE(pinned) << pinned.error().message;
        const kernels::TileView& view = pinned->view();
        const int64_t begin = store.layout(tile).begin;
        ASSERT_EQ(reinterpret_cast<uintptr_t>(view.data) % kernels::kTileAlign, 0u);
        ASSERT_EQ(difference(view.gate(), gate, begin, 0), "") << "gate " << e << " " << tile;
        ASSERT_EQ(difference(view.up(), up, begin, 0), "") << "up " << e << " " << tile;
        ASSERT_EQ(difference(view.down(), down, 0, begin), "") << "down " << e << " " << tile;
        ASSERT_TRUE(padding_is_zero(view.gate()) && padding_is_zero(view.up()) &&
                    padding_is_zero(view.down()));
      }
    }
  }
}

TileStoreOptions reading(int num_threads, size_t window_bytes) {
  TileStoreOptions options;
  options.reader.num_threads = num_threads;
  options.reader.window_bytes = window_bytes;
  return options;
}

void load(TileStore& store, std::span<const int> tiles) {
  NoProgress progress;
  store.plan(tiles);
  store.fill(progress);
}

std::vector<int> all_tiles(const TileStore& store) {
  std::vector<int> tiles(static_cast<size_t>(store.num_tiles()));
  std::iota(tiles.begin(), tiles.end(), 0);
  return tiles;
}

// Bytes of these tiles of all experts, one after the other.
std::string tile_bytes(TileStore& store, std::span<const int> tiles) {
  std::string bytes;
  const ExpertCatalog& catalog = store.catalog();
  for (const int32_t layer : catalog.moe_layers) {
    for (int32_t e = 0; e < catalog.n_routed_experts; ++e) {
      for (const int tile : tiles) {
        const auto pinned = store.pin({layer, e}, tile);
        if (!pinned) return pinned.error().message;
        bytes.append(reinterpret_cast<const char*>(pinned->view().data), store.layout(tile).bytes);
      }
    }
  }
  return bytes;
}

TEST(TileStore, tiles_of_published_style_models_equal_naive_dequantisation) {
  for (const char* name : {"tiny-fp8", "tiny-bf16", "rand-ragged", "rand-v2", "rand-long"}) {
    SCOPED_TRACE(name);
    const OpenModel model(kModels / name);
    TileStore store(model.checkpoint, model.catalog, {}, reading(2, 1 << 20));
    const std::vector<int> tiles = all_tiles(store);
    load(store, tiles);
    expect_tiles_equal_naive(store, model, tiles);
    EXPECT_EQ(store.stats().misses, 0u);
  }
}

struct GeneratedCase {
  int64_t intermediate, hidden;
  int num_tiles;
  WeightFormat format;
};

class GeneratedTiles : public testing::TestWithParam<GeneratedCase> {};

TEST_P(GeneratedTiles, equal_naive_dequantisation_resident_or_cold) {
  TempDir dir;
  model::SyntheticSpec spec = expert_spec(GetParam().intermediate, GetParam().hidden, 2);
  spec.format = GetParam().format;
  model::write_synthetic_checkpoint(dir.path(), spec);
  const OpenModel model(dir.path());
  TileStore store(model.checkpoint, model.catalog, {}, reading(2, 1 << 16));
  ASSERT_EQ(store.num_tiles(), GetParam().num_tiles);
  load(store, std::vector<int>{0, 2, store.num_tiles() - 1});
  expect_tiles_equal_naive(store, model, all_tiles(store));
  EXPECT_EQ(store.stats().misses, 2u * (static_cast<uint64_t>(store.num_tiles()) - 3));
}

INSTANTIATE_TEST_SUITE_P(TileStore, GeneratedTiles,
                         testing::Values(GeneratedCase{2048, 320, 16, WeightFormat::kFp8E4m3},
                                         GeneratedCase{1408, 320, 11, WeightFormat::kFp8E4m3},
                                         GeneratedCase{1000, 200, 8, WeightFormat::kFp8E4m3},
                                         GeneratedCase{330, 130, 4, WeightFormat::kFp8E4m3},
                                         GeneratedCase{1408, 64, 11, WeightFormat::kBf16},
                                         GeneratedCase{640, 66, 5, WeightFormat::kF32}),
                         [](const auto& info) {
                           return fmt::format("{}x{}_{}", info.param.intermediate,
                                              info.param.hidden, to_string(info.param.format));
                         });

TEST(TileStore, bytes_do_not_depend_on_threads_window_or_other_tiles) {
  TempDir dir;
  const model::SyntheticSpec spec = expert_spec(1408, 320, 4);
  model::write_synthetic_checkpoint(dir.path(), spec);
  const OpenModel model(dir.path());
  const std::vector<int> scattered = {1, 2, 5, 10};
  TileStore cold(model.checkpoint, model.catalog);
  cold.plan({});
  const std::string expected = tile_bytes(cold, scattered);
  EXPECT_EQ(cold.stats().misses, 16u);

  const size_t one_row = 1408;  // of down; a row of gate has 320 bytes
  for (const int threads : {1, 2, 7}) {
    for (const size_t window : {one_row, size_t{5000}, size_t{4} << 20}) {
      TileStore store(model.checkpoint, model.catalog, {}, reading(threads, window));
      CountingProgress progress;
      store.plan(scattered);
      store.fill(progress);
      EXPECT_TRUE(tile_bytes(store, scattered) == expected)
          << threads << " threads, window " << window;
      EXPECT_EQ(store.stats().misses, 0u);
      EXPECT_EQ(progress.total, store.read_bytes(scattered));
      EXPECT_EQ(progress.done, store.read_bytes(scattered));
    }
  }
  // All tiles in RAM: those four are the same bytes again.
  TileStore store(model.checkpoint, model.catalog, {}, reading(2, 1 << 16));
  load(store, all_tiles(store));
  EXPECT_TRUE(tile_bytes(store, scattered) == expected);
}

TEST(TileStore, tells_what_a_plan_takes_and_asks_before_it_takes_it) {
  TempDir dir;
  model::write_synthetic_checkpoint(dir.path(), expert_spec(1408, 320, 4));
  const OpenModel model(dir.path());
  const std::vector<int> tiles = {1, 2, 5};
  TileStoreOptions options = reading(1, 1 << 16);
  std::vector<uint64_t> asked;
  bool refuses = false;
  options.admit = [&](uint64_t bytes) {
    asked.push_back(bytes);
    if (refuses) throw LoadError("too much");
  };
  TileStore all(model.checkpoint, model.catalog, {}, options);
  all.plan(tiles);
  EXPECT_EQ(asked, std::vector<uint64_t>{all.ram_bytes(tiles)});
  const uint64_t slots = all.stats().slots * all.stats().slot_bytes;
  EXPECT_GT(all.ram_bytes(tiles), slots);

  options.ram_bytes_max = all.ram_bytes_min() + 5 * all.layout(0).bytes;
  TileStore some(model.checkpoint, model.catalog, {}, options);
  EXPECT_LE(some.ram_bytes(tiles), *options.ram_bytes_max);
  EXPECT_GT(some.ram_bytes(tiles) + all.layout(0).bytes, *options.ram_bytes_max);
  refuses = true;
  EXPECT_THROW(some.plan(tiles), LoadError);
  EXPECT_FALSE(some.is_planned());
}

// The tiles of a store whose format is asked for are those that packing makes of whole matrices.
TEST(TileStore, converted_tiles_are_packed_from_the_whole_matrix_whatever_the_window) {
  TempDir dir;
  model::write_synthetic_checkpoint(dir.path(), expert_spec(600, 320, 2));
  const OpenModel model(dir.path());
  const ExpertSource& source = model.catalog.experts[0][1];
  const HeldFormat formats[] = {{WeightFormat::kInt4, kernels::Activations::kI8},
                                {WeightFormat::kBf16, {}},
                                {WeightFormat::kF32, {}}};
  for (const HeldFormat& format : formats) {
    SCOPED_TRACE(to_string(*format.weights));
    TileStore cold(model.checkpoint, model.catalog, format);
    cold.plan({});
    const std::vector<int> tiles = all_tiles(cold);
    const std::string expected = tile_bytes(cold, tiles);
    for (const size_t window : {size_t{600}, size_t{1} << 20}) {
      TileStore store(model.checkpoint, model.catalog, format, reading(2, window));
      load(store, tiles);
      EXPECT_TRUE(tile_bytes(store, tiles) == expected) << "window " << window;
    }
    const auto pinned = cold.pin({model.catalog.moe_layers[0], 1}, 4);  // columns 512 to 600
    ASSERT_TRUE(pinned) << pinned.error().message;
    const PanelMatrix found = pinned->view().down();
    EXPECT_EQ(found.shape.format, *format.weights);
    EXPECT_EQ(found.shape.activations, format.activations);
    std::vector<std::byte> codes(source.down.weight->bytes);
    model.checkpoint.read(*source.down.weight, 0, codes);
    std::vector<float> scales(source.down.scale->bytes / sizeof(float));
    model.checkpoint.read(*source.down.scale, 0, std::as_writable_bytes(std::span(scales)));
    HostBuffer packed(found.shape.total_code_bytes());
    kernels::pack(found.shape, {.col_begin = 512},
                  {source.down.format, codes.data(), 0, 320, 600, scales.data()}, packed.data(),
                  nullptr);
    EXPECT_EQ(std::memcmp(packed.data(), found.codes, packed.size()), 0);
  }
}

TEST(TileStore, says_beforehand_what_it_reads_and_keeps) {
  TempDir dir;
  model::write_synthetic_checkpoint(dir.path(), expert_spec(2048, 320, 2));
  const OpenModel model(dir.path());
  TileStore store(model.checkpoint, model.catalog);
  // Per expert and tile: gate and up 128 rows of 320 codes and one grid row of 3 scales, twice;
  // down all of [320, 2048] and its [3, 16] scales.
  const uint64_t down = 320 * 2048 + 3 * 16 * 4;
  const uint64_t gate_up = 2 * (128 * 320 + 3 * 4);
  EXPECT_EQ(store.read_bytes({}), 0u);
  EXPECT_EQ(store.read_bytes(std::vector<int>{3}), 2 * (down + gate_up));
  EXPECT_EQ(store.read_bytes(std::vector<int>{3, 4, 9}), 2 * (down + 3 * gate_up));
  EXPECT_EQ(store.resident_bytes(std::vector<int>{3, 4}), 2 * 2 * store.layout(3).bytes);
  CountingProgress progress;
  store.plan({});
  store.fill(progress);
  EXPECT_EQ(progress.done, 0u);
  EXPECT_TRUE(store.planned_tiles().empty());
  store.plan(std::vector<int>{3, 4, 9});
  store.fill(progress);
  EXPECT_EQ(progress.done, store.read_bytes(std::vector<int>{3, 4, 9}));
  EXPECT_THAT(store.planned_tiles(), testing::ElementsAre(3, 4, 9));
  EXPECT_EQ(store.held_bytes(), store.resident_bytes(std::vector<int>{3, 4, 9}));
}

TEST(TileStore, fills_free_slots_with_other_tiles_and_puts_none_out) {
  const OpenModel model(kModels / "tiny-fp8");
  TileStoreOptions options = reading(2, 1 << 20);
  const std::vector<int> own = {0}, more = {0, 1, 2};
  {
    TileStore store(model.checkpoint, model.catalog, {}, options);
    load(store, own);
    NoProgress progress;
    store.fill_free(more, progress);
    EXPECT_EQ(store.held_bytes(), store.resident_bytes(more));
    expect_tiles_equal_naive(store, model, more);
  }
  // With room for the own ones and three others.
  TileStore unbound(model.checkpoint, model.catalog, {}, options);
  const uint64_t slot = unbound.layout(0).bytes;
  options.ram_bytes_max = unbound.ram_bytes_min() + unbound.resident_bytes(own) + slot;
  TileStore store(model.checkpoint, model.catalog, {}, options);
  load(store, own);
  const uint64_t slots = store.stats().slots;
  NoProgress progress;
  store.fill_free(more, progress);
  EXPECT_LE(store.held_bytes(), slots * slot);
  const uint64_t read = store.stats().bytes_read;
  expect_tiles_equal_naive(store, model, own);
  EXPECT_EQ(store.stats().bytes_read, read) << "its own tiles are all here";
}

TEST(TileStore, refuses_what_the_model_does_not_have) {
  const OpenModel model(kModels / "tiny-fp8");
  TileStore store(model.checkpoint, model.catalog);
  store.plan({});
  const auto error_of = [&](ExpertKey key, int tile) {
    const auto pinned = store.pin(key, tile);
    return pinned ? "no error"
                  : fmt::format("{}: {}", to_string(pinned.error().code), pinned.error().message);
  };
  EXPECT_EQ(error_of({0, 0}, 0),
            fmt::format("{}: layer 0 has no routed experts", to_string(ErrorCode::kInvalid)));
  EXPECT_THAT(error_of({-1, 0}, 0), testing::HasSubstr("layer -1 has no routed experts"));
  EXPECT_THAT(error_of({6, 0}, 0), testing::HasSubstr("layer 6 has no routed experts"));
  EXPECT_THAT(error_of({1, 32}, 0),
              testing::HasSubstr("expert 1/32: expected an expert from 0 to 31"));
  EXPECT_THAT(error_of({1, -1}, 0), testing::HasSubstr("expert 1/-1: expected"));
  EXPECT_THAT(error_of({1, 3}, 4),
              testing::HasSubstr("tile 4 of layer 1: expected a tile from 0 to 3"));
  EXPECT_THAT(error_of({1, 3}, -1), testing::HasSubstr("tile -1 of layer 1"));
  EXPECT_EQ(error_of({5, 31}, 3), "no error");
  EXPECT_EQ(store.stats().misses, 1u);
}

TEST(TileStore, refuses_tile_lists_and_windows_that_cannot_be) {
  const OpenModel model(kModels / "tiny-fp8");
  const auto error_of = [&](const std::vector<int>& tiles, size_t window) {
    TileStore store(model.checkpoint, model.catalog, {}, reading(1, window));
    return test::message_of<LoadError>("/none", [&] { load(store, tiles); });
  };
  EXPECT_EQ(error_of({4}, 4096), "tile 4 in a tile list: expected ascending tiles from 0 to 3");
  EXPECT_EQ(error_of({-1}, 4096), "tile -1 in a tile list: expected ascending tiles from 0 to 3");
  EXPECT_EQ(error_of({1, 1}, 4096), "tile 1 in a tile list: expected ascending tiles from 0 to 3");
  EXPECT_EQ(error_of({2, 1}, 4096), "tile 1 in a tile list: expected ascending tiles from 0 to 3");
  EXPECT_EQ(error_of({1}, 255),
            "a staging window of 255 bytes is too small: one row of a matrix has 256 bytes");
}

TEST(TileStore, says_so_when_the_tiles_do_not_fit_into_the_address_space) {
  const OpenModel model(kModels / "tiny-fp8");  // for its files only
  ExpertCatalog catalog;
  catalog.hidden_size = catalog.moe_intermediate_size = 1 << 20;
  catalog.n_routed_experts = 1 << 16;
  catalog.num_layers = 1;
  catalog.moe_layers = {0};
  catalog.experts.resize(1);
  catalog.experts[0].resize(1 << 16);
  TileStore store(model.checkpoint, catalog);
  // Two tiles of 3 * 128 * 2^20 * 4 B = 1.5 GiB of 65536 experts: 192 TiB; all 8192 tiles of two
  // more: 24 TiB.
  EXPECT_EQ(test::message_of<LoadError>("/none",
                                        [&] {
                                          store.plan(std::vector<int>{0, 1});
                                        }),
            "cannot map 216 TiB of memory: Cannot allocate memory");
  EXPECT_FALSE(store.is_planned());
  EXPECT_TRUE(store.planned_tiles().empty());
  EXPECT_EQ(store.stats().slots, 0u);
}

// Overwrites bytes of a tensor in its file.
void damage(const OpenModel& model, const TensorInfo& tensor, uint64_t at,
            const std::string& bytes) {
  const Shard& shard = model.checkpoint.shards()[tensor.shard];
  std::fstream file(model.checkpoint.directory() / shard.file_name,
                    std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(static_cast<std::streamoff>(tensor.offset + at));
  file << bytes << std::flush;
  ASSERT_TRUE(file.good());
}

TEST(TileStore, names_file_tensor_and_place_of_a_damaged_value_once) {
  TempDir dir;
  model::write_synthetic_checkpoint(dir.path(), expert_spec(640, 256, 4));
  const OpenModel model(dir.path());
  const ExpertSource& expert = model.catalog.experts[0][2];
  struct Damage {
    const TensorInfo* tensor;
    uint64_t at;
    std::string bytes;
    std::string message;
  };
  const std::string prefix = "tensor \"model.layers.1.mlp.experts.2.";
  const std::string suffix = ": the file is damaged, fetch it again";
  const std::vector<Damage> cases = {
      {expert.gate.weight, 130 * 256 + 17, "\x7f",
       prefix + "gate_proj.weight\": value [130, 17] is an FP8 NaN" + suffix},
      {expert.up.weight, 128 * 256, "\xff",
       prefix + "up_proj.weight\": value [128, 0] is an FP8 NaN" + suffix},
      {expert.down.weight, 255 * 640 + 639, "\xff",
       prefix + "down_proj.weight\": value [255, 639] is an FP8 NaN" + suffix},
      {expert.up.scale, 4 * (1 * 2 + 1), std::string("\x00\x00\x80\x7f", 4),
       prefix + "up_proj.weight_scale_inv\": value [1, 1] is not finite" + suffix},
      {expert.down.scale, 4 * (0 * 5 + 4), std::string("\x00\x00\xc0\x7f", 4),
       prefix + "down_proj.weight_scale_inv\": value [0, 4] is not finite" + suffix},
  };
  for (const Damage& c : cases) {
    std::string before(c.bytes.size(), '\0');
    model.checkpoint.read(*c.tensor, c.at, std::as_writable_bytes(std::span(before)));
    damage(model, *c.tensor, c.at, c.bytes);
    const std::string expected =
        "DIR/" + model.checkpoint.shards()[c.tensor->shard].file_name + ": " + c.message;
    TileStore store(model.checkpoint, model.catalog, {}, reading(4, 2000));
    EXPECT_EQ(test::message_of<LoadError>(dir.path(),
                                          [&] {
                                            load(store, std::vector<int>{0, 1, 4});
                                          }),
              expected);
    const auto pinned = store.pin({1, 2}, 1);
    ASSERT_FALSE(pinned);
    EXPECT_EQ(pinned.error().code, ErrorCode::kCorrupt);
    damage(model, *c.tensor, c.at, before);
    EXPECT_TRUE(store.pin({1, 2}, 1));
  }
}

TEST(TileStore, refuses_bf16_weights_that_are_not_finite) {
  TempDir dir;
  model::SyntheticSpec spec = expert_spec(640, 256, 2);
  spec.format = WeightFormat::kBf16;
  model::write_synthetic_checkpoint(dir.path(), spec);
  const OpenModel model(dir.path());
  damage(model, *model.catalog.experts[0][1].gate.weight, 2 * (3 * 256 + 5),
         std::string("\x80\xff", 2));
  TileStore store(model.checkpoint, model.catalog, {}, reading(2, 1 << 16));
  EXPECT_THAT(test::message_of<LoadError>(dir.path(), [&] { load(store, std::vector<int>{0}); }),
              testing::HasSubstr("experts.1.gate_proj.weight\": value [3, 5] is not finite"));
}

// The k half of kv_b, absorbed: outputs are columns.
TEST(PackMatrix, packs_transposed_parts_and_several_targets_in_one_pass) {
  const OpenModel model(kModels / "rand-ragged");
  const model::ModelTensors tensors = model::map_tensors(model.config, model.checkpoint);
  const MatrixSource& kv_b =
      std::get<model::MlaTensors>(tensors.layers[0].attention).kv_b_proj;  // [6 * 44, 40]
  const NaiveMatrix naive = dequantise(model.checkpoint, kv_b);

  const kernels::PanelSource k_source{.row_begin = 44 * 3, .col_begin = 0, .transposed = true};
  const kernels::PanelSource v_source{.row_begin = 44 * 3 + 24, .col_begin = 0};
  const PanelShape k_shape = kernels::panel_shape(kv_b.format, 40, 24, k_source);
  const PanelShape v_shape = kernels::panel_shape(kv_b.format, 20, 40, v_source);
  HostBuffer k_codes(k_shape.total_code_bytes()), k_scales(k_shape.total_scale_bytes());
  HostBuffer v_codes(v_shape.total_code_bytes()), v_scales(v_shape.total_scale_bytes());
  const std::vector<PackTarget> targets = {
      {k_shape, k_source, k_codes.data(), k_scales.as<float>()},
      {v_shape, v_source, v_codes.data(), v_scales.as<float>()}};
  HostBuffer window(40 * 3);
  CountingProgress progress;
  pack_matrix(model.checkpoint, kv_b, 44 * 3, 44 * 4, targets, window.span(), progress);
  EXPECT_EQ(progress.done, source_bytes(kv_b, 44 * 3, 44 * 4));
  EXPECT_EQ(source_bytes(kv_b, 44 * 3, 44 * 4), 44u * 40 + 4);  // one row of the [3, 1] grid

  const PanelMatrix v{v_shape, v_codes.data(), v_scales.as<float>()};
  EXPECT_EQ(difference(v, naive, 44 * 3 + 24, 0), "");
  const PanelMatrix k{k_shape, k_codes.data(), k_scales.as<float>()};
  for (int64_t output = 0; output < 40; ++output) {
    for (int64_t i = 0; i < 24; ++i) {
      ASSERT_EQ(unpacked(k, output, i), naive.at(44 * 3 + i, output)) << output << " " << i;
    }
  }
}

// Quantizing takes all k of a group at once, which are rows here: windows are cut to suit.
TEST(PackMatrix, quantizes_transposed_parts_the_same_in_any_window) {
  TempDir dir;
  model::SyntheticSpec spec = expert_spec(512, 64, 2);
  spec.config.kv_lora_rank = 64;
  spec.config.qk_nope_head_dim = 144;
  spec.config.v_head_dim = 112;  // heads of 256 rows
  model::write_synthetic_checkpoint(dir.path(), spec);
  const OpenModel model(dir.path());
  const model::ModelTensors tensors = model::map_tensors(model.config, model.checkpoint);
  const MatrixSource& kv_b =
      std::get<model::MlaTensors>(tensors.layers[0].attention).kv_b_proj;  // [2 * 256, 64]
  const HeldFormat format{WeightFormat::kInt4, {}};
  const kernels::PanelSource source{.row_begin = 256, .col_begin = 0, .transposed = true};
  const PanelShape shape = format.shape(kv_b.format, 64, 144, source);
  const auto packed = [&](size_t window_rows) {
    HostBuffer codes(shape.total_code_bytes());
    HostBuffer window(64 * window_rows);
    const PackTarget target{shape, source, codes.data(), nullptr};
    NoProgress progress;
    pack_matrix(model.checkpoint, kv_b, 0, kv_b.rows, {&target, 1}, window.span(), progress);
    return std::string(reinterpret_cast<const char*>(codes.data()), codes.size());
  };
  const std::string expected = packed(512);
  EXPECT_NE(expected.find_first_not_of('\0'), std::string::npos);
  EXPECT_TRUE(packed(130) == expected);
  EXPECT_TRUE(packed(300) == expected);
}

}  // namespace
}  // namespace atl::storage
