#include "expert_node/executor.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstring>
#include <optional>

#include "kernels/ops.h"
#include "model/weights_map.h"
#include "storage/checkpoint/checkpoint.h"
#include "storage/pack/pack_writer.h"
#include "tests/support/golden.h"
#include "tests/support/synthetic_model.h"
#include "tests/support/temp_dir.h"

namespace atl::expert_node {
namespace {

using transport::Dispatch;

constexpr int64_t kHidden = 320, kIntermediate = 600;  // 5 tiles, the last of 88 columns
constexpr int32_t kLayer = 1;

// One generated layer of experts, and weights of any element in FP32 for a naive reference.
class ExecutorTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    dir_ = new test::TempDir;
    test::write_small_model(dir_->path(), kHidden, kIntermediate);
    config_ = new model::ModelConfig(model::load_config(dir_->path()));
    checkpoint_ = new storage::Checkpoint(storage::Checkpoint::open(dir_->path()));
    catalog_ = new storage::ExpertCatalog(model::map_experts(*config_, *checkpoint_));
  }
  static void TearDownTestSuite() {
    delete catalog_;
    delete checkpoint_;
    delete config_;
    delete dir_;
  }

  static std::vector<float> dense(const storage::MatrixSource& matrix) {
    std::vector<uint8_t> codes(matrix.weight->bytes);
    checkpoint_->read(*matrix.weight, 0, std::as_writable_bytes(std::span(codes)));
    std::vector<float> scales(matrix.scale->bytes / sizeof(float));
    checkpoint_->read(*matrix.scale, 0, std::as_writable_bytes(std::span(scales)));
    const int64_t blocks = ceil_div(matrix.cols, 128);
    std::vector<float> values(codes.size());
    for (int64_t row = 0; row < matrix.rows; ++row) {
      for (int64_t col = 0; col < matrix.cols; ++col) {
        values[row * matrix.cols + col] = kernels::e4m3_to_float(codes[row * matrix.cols + col]) *
                                          scales[row / 128 * blocks + col / 128];
      }
    }
    return values;
  }

  // sum of w_e Expert_e(x) in double.
  static std::vector<double> naive(std::span<const float> x, std::span<const int32_t> ids,
                                   std::span<const float> weights) {
    std::vector<double> y(kHidden, 0.0);
    for (size_t choice = 0; choice < ids.size(); ++choice) {
      if (ids[choice] < 0) continue;
      const storage::ExpertSource& expert = catalog_->experts[0][ids[choice]];
      const std::vector<float> gate = dense(expert.gate), up = dense(expert.up),
                               down = dense(expert.down);
      for (int64_t i = 0; i < kIntermediate; ++i) {
        double g = 0, u = 0;
        for (int64_t k = 0; k < kHidden; ++k) {
          g += double{gate[i * kHidden + k]} * x[k];
          u += double{up[i * kHidden + k]} * x[k];
        }
        const double h = weights[choice] * (g / (1 + std::exp(-g))) * u;
        for (int64_t o = 0; o < kHidden; ++o) y[o] += down[o * kIntermediate + i] * h;
      }
    }
    return y;
  }

  // A dispatch of these rows in FP32, and the storage behind its spans.
  struct Request {
    std::vector<float> rows, weights;
    std::vector<int32_t> ids;
    Dispatch dispatch;
  };
  static std::unique_ptr<Request> request(uint32_t num_rows,
                                          std::vector<transport::TileRange> tiles) {
    auto request = std::make_unique<Request>();
    uint32_t state = 12345;
    const auto uniform = [&state] {
      state = state * 1664525 + 1013904223;
      return static_cast<float>(state >> 8) / (1 << 24) - 0.5f;
    };
    for (uint32_t i = 0; i < num_rows * kHidden; ++i) request->rows.push_back(4 * uniform());
    for (uint32_t row = 0; row < num_rows; ++row) {
      for (int32_t k = 0; k < 3; ++k) {
        request->ids.push_back((static_cast<int32_t>(row) * 5 + k * 2) % 8);
        request->weights.push_back(1 + uniform());
      }
    }
    request->ids[1] = -1;
    Dispatch& dispatch = request->dispatch;
    dispatch.names.layer = kLayer;
    dispatch.row_type = transport::WireRowType::kF32;
    dispatch.num_rows = num_rows;
    dispatch.hidden_size = kHidden;
    dispatch.top_k = 3;
    dispatch.tiles = std::move(tiles);
    dispatch.topk_ids = request->ids;
    dispatch.topk_weights = request->weights;
    dispatch.rows = std::as_bytes(std::span(request->rows));
    return request;
  }

  struct Outcome {
    std::vector<int64_t> sums;  // [rows, hidden]
    std::vector<transport::FailedRow> failed;
    int pieces = 0;
  };
  static Outcome run(Executor& executor, const Dispatch& dispatch) {
    Outcome outcome;
    outcome.sums.assign(dispatch.num_rows * kHidden, 0);
    uint32_t next_output = 0;
    auto counts = executor.run(dispatch, [&](const Piece& piece) {
      EXPECT_EQ(piece.output_begin, next_output);
      next_output += piece.num_outputs;
      ++outcome.pieces;
      outcome.failed = piece.failed_rows;
      for (uint32_t row = 0; row < dispatch.num_rows; ++row) {
        std::memcpy(&outcome.sums[row * kHidden + piece.output_begin],
                    &piece.sums[row * piece.sums_stride + piece.output_begin],
                    piece.num_outputs * sizeof(int64_t));
      }
    });
    EXPECT_TRUE(counts) << (counts ? "" : counts.error().message);
    EXPECT_EQ(next_output, kHidden);
    return outcome;
  }
  // One row of a dispatch, alone.
  static Dispatch row_of(const Dispatch& many, uint32_t row) {
    Dispatch one = many;
    one.num_rows = 1;
    one.rows = one.rows.subspan(row * kHidden * sizeof(float), kHidden * sizeof(float));
    one.topk_ids = one.topk_ids.subspan(row * 3, 3);
    one.topk_weights = one.topk_weights.subspan(row * 3, 3);
    return one;
  }

  static inline test::TempDir* dir_;
  static inline model::ModelConfig* config_;
  static inline storage::Checkpoint* checkpoint_;
  static inline storage::ExpertCatalog* catalog_;
};

TEST_F(ExecutorTest, all_tiles_give_the_weighted_sum_of_the_experts) {
  ThreadTeam team(2);
  storage::TileStore tiles(*checkpoint_, *catalog_);
  NoProgress silent;
  const std::vector<int> all = {0, 1, 2, 3, 4};
  tiles.plan(all);
  tiles.fill(silent);
  Executor executor(team, tiles);
  const auto request = this->request(3, {{0, 5}});
  const Outcome outcome = run(executor, request->dispatch);
  EXPECT_TRUE(outcome.failed.empty());
  for (uint32_t row = 0; row < 3; ++row) {
    const std::vector<double> expected =
        naive(std::span(request->rows).subspan(row * kHidden, kHidden),
              std::span(request->ids).subspan(row * 3, 3),
              std::span(request->weights).subspan(row * 3, 3));
    double norm = 0;
    for (const double v : expected) norm = std::max(norm, std::fabs(v));
    for (int64_t o = 0; o < kHidden; ++o) {
      // FP32 sums of 320 and 600 terms: sqrt(n) rounding errors of 2^-24 of the largest output.
      ASSERT_NEAR(std::ldexp(outcome.sums[row * kHidden + o], -24), expected[o],
                  norm * 30 * 0x1p-24)
          << "row " << row << ", output " << o;
    }
  }
  EXPECT_EQ(tiles.stats().misses, 0u);
}

TEST_F(ExecutorTest, parts_of_the_tiles_add_up_and_cold_ones_give_the_same) {
  ThreadTeam team(1);
  NoProgress silent;
  storage::TileStore resident(*checkpoint_, *catalog_), cold(*checkpoint_, *catalog_);
  resident.plan(std::vector<int>{0, 1, 2, 3, 4});
  resident.fill(silent);
  cold.plan(std::vector<int>{2});
  cold.fill(silent);
  Executor executor(team, resident), cold_executor(team, cold);
  const Outcome whole = run(executor, request(4, {{0, 5}})->dispatch);
  std::vector<int64_t> sum(whole.sums.size(), 0);
  const auto add = [&sum](const Outcome& part) {
    for (size_t i = 0; i < sum.size(); ++i) sum[i] += part.sums[i];
  };
  add(run(executor, request(4, {{1, 2}, {4, 5}})->dispatch));
  add(run(cold_executor, request(4, {{0, 1}, {2, 4}})->dispatch));
  EXPECT_EQ(sum, whole.sums);
  EXPECT_GT(cold.stats().misses, 0u);
}

TEST_F(ExecutorTest, many_rows_come_in_several_pieces_and_equal_single_rows) {
  ThreadTeam team(3);
  NoProgress silent;
  storage::TileStore tiles(*checkpoint_, *catalog_);
  tiles.plan(std::vector<int>{0, 1, 2, 3, 4});
  tiles.fill(silent);
  Executor executor(team, tiles);
  const auto many = request(1500, {{0, 5}});
  const Outcome together = run(executor, many->dispatch);
  EXPECT_GT(together.pieces, 1);
  for (const uint32_t row : {0u, 7u, 1499u}) {
    const Outcome alone = run(executor, row_of(many->dispatch, row));
    EXPECT_EQ(alone.sums, std::vector<int64_t>(together.sums.begin() + row * kHidden,
                                               together.sums.begin() + (row + 1) * kHidden));
  }
}

TEST_F(ExecutorTest, a_row_out_of_range_is_named_with_its_lowest_expert) {
  ThreadTeam team(2);
  NoProgress silent;
  storage::TileStore tiles(*checkpoint_, *catalog_);
  tiles.plan(std::vector<int>{0, 1, 2, 3, 4});
  tiles.fill(silent);
  Executor executor(team, tiles);
  for (const float huge :
       {3e38f, std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    const auto request = this->request(4, {{0, 5}});
    std::fill_n(&request->rows[2 * kHidden], kHidden, huge);
    const Outcome outcome = run(executor, request->dispatch);
    const int32_t lowest = *std::min_element(&request->ids[6], &request->ids[9]);
    EXPECT_THAT(outcome.failed, testing::ElementsAre(transport::FailedRow{2, lowest})) << huge;
  }
}

TEST_F(ExecutorTest, rows_without_a_choice_are_zero_and_a_wrong_layer_is_refused) {
  ThreadTeam team(1);
  storage::TileStore tiles(*checkpoint_, *catalog_);
  tiles.plan({});
  Executor executor(team, tiles);
  auto request = this->request(2, {{0, 5}});
  std::fill(request->ids.begin(), request->ids.end(), -1);
  EXPECT_THAT(run(executor, request->dispatch).sums, testing::Each(0));

  request->ids[0] = 3;
  request->dispatch.names.layer = 0;  // dense: has no experts
  auto refused = executor.run(request->dispatch, [](const Piece&) { FAIL() << "handed out"; });
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ErrorCode::kInvalid);
}

// The checkpoint as a pack, on stores with room for so many tiles.
class PackExecutorTest : public ExecutorTest {
 protected:
  static constexpr uint64_t kAllTiles = 8 * 5;  // experts, tiles of each

  static void SetUpTestSuite() {
    ExecutorTest::SetUpTestSuite();
    NoProgress silent;
    storage::write_pack(*checkpoint_, *catalog_, *dir_ / "pack", {}, silent);
    pack_ = new storage::Pack(storage::Pack::open(*dir_ / "pack"));
  }
  static void TearDownTestSuite() {
    delete pack_;
    ExecutorTest::TearDownTestSuite();
  }

  void open(uint64_t slots, storage::TileStoreOptions options = {}) {
    const storage::TileStore sizes(*pack_, *catalog_, {}, options);
    const uint64_t slot = sizes.layout(0).bytes;
    options.ram_bytes_max = sizes.ram_bytes_min() + (slots - 2) * slot + slot / 2;
    tiles_.emplace(*pack_, *catalog_, storage::HeldFormat{}, options);
    tiles_->plan(std::vector<int>{0, 1, 2, 3, 4});
    ASSERT_EQ(tiles_->stats().slots, slots);
  }

  // Sums of Dispatches of one row and of many, of all tiles and of some.
  static std::vector<std::vector<int64_t>> sums_of(
      Executor& executor, const std::function<void()>& after_each = [] {}) {
    const auto many = request(24, {{0, 5}}), some = request(12, {{1, 3}, {4, 5}});
    std::vector<Dispatch> dispatches = {many->dispatch, some->dispatch};
    for (uint32_t row = 0; row < 12; ++row) {
      dispatches.push_back(row_of((row % 3 == 0 ? some : many)->dispatch, row));
    }
    dispatches.push_back(many->dispatch);
    std::vector<std::vector<int64_t>> sums;
    for (const Dispatch& dispatch : dispatches) {
      sums.push_back(run(executor, dispatch).sums);
      after_each();
    }
    return sums;
  }

  static inline storage::Pack* pack_;
  std::optional<storage::TileStore> tiles_;
};

TEST_F(PackExecutorTest, any_room_for_tiles_gives_the_same_bits) {
  ThreadTeam team(1);
  NoProgress silent;
  storage::TileStore resident(*checkpoint_, *catalog_);
  resident.plan(std::vector<int>{0, 1, 2, 3, 4});
  resident.fill(silent);
  Executor of_checkpoint(team, resident);
  const auto expected = sums_of(of_checkpoint);

  // 100 %, 25 %, a room in which the five tiles of an expert are computed as 3 + 2, and the least.
  for (const uint64_t slots : {kAllTiles, kAllTiles / 4, uint64_t{6}, uint64_t{2}}) {
    for (const auto& [eviction, io_uring] :
         {std::pair(storage::Eviction::kLru, true), std::pair(storage::Eviction::kLfu, true),
          std::pair(storage::Eviction::kLfu, false)}) {
      SCOPED_TRACE(fmt::format("{} slots, {}, {}", slots,
                               eviction == storage::Eviction::kLru ? "lru" : "lfu",
                               io_uring ? "io_uring" : "threads"));
      storage::TileStoreOptions options;
      options.eviction = eviction;
      options.reader.io = io_uring ? storage::PackIo::kAuto : storage::PackIo::kThreads;
      ASSERT_NO_FATAL_FAILURE(open(slots, options));
      tiles_->fill(silent);
      Executor executor(team, *tiles_);
      EXPECT_EQ(sums_of(executor), expected);
      const ExpertCacheStats warm = tiles_->stats();
      EXPECT_EQ(warm.misses > 0, slots < kAllTiles);
      EXPECT_EQ(warm.evictions > 0, slots < kAllTiles);

      EXPECT_EQ(sums_of(executor, [this] { tiles_->evict_all(); }), expected);
      EXPECT_EQ(tiles_->stats().slots_used, 0u);
      EXPECT_GE(tiles_->stats().misses, warm.misses + 12 * 2);  // of 12 rows, 2 or 3 experts each
    }
  }
}

TEST_F(PackExecutorTest, tiles_of_which_more_are_wanted_than_half_of_the_slots_come_in_parts) {
  ThreadTeam team(1);
  const auto request = this->request(4, {{0, 5}});  // experts 0, 2, 4, 5, 6, 7, 1, 3
  ASSERT_NO_FATAL_FAILURE(open(kAllTiles));
  Executor whole(team, *tiles_);
  const Outcome expected = run(whole, request->dispatch);
  const uint64_t experts = tiles_->stats().misses;  // each asked for once

  for (const auto& [slots, parts] : {std::pair{9u, 2u}, {6u, 2u}, {4u, 3u}, {2u, 5u}}) {
    SCOPED_TRACE(slots);
    ASSERT_NO_FATAL_FAILURE(open(slots));
    Executor executor(team, *tiles_);
    EXPECT_EQ(run(executor, request->dispatch).sums, expected.sums);
    const ExpertCacheStats stats = tiles_->stats();
    EXPECT_EQ(stats.misses, experts * parts);
    EXPECT_EQ(stats.bytes_read, experts * 4 * stats.slot_bytes + experts * tiles_->layout(4).bytes);
  }
}

// While pieces are handed out somebody else asks for as much as there is room for.
TEST_F(PackExecutorTest, tiles_stay_until_the_last_piece_was_handed_out) {
  ThreadTeam team(1);
  const auto request = this->request(1500, {{0, 5}});
  for (size_t i = 0; i < request->ids.size(); ++i) request->ids[i] = std::array{1, 4, 6}[i % 3];
  ASSERT_NO_FATAL_FAILURE(open(kAllTiles));
  Executor roomy(team, *tiles_);
  const Outcome expected = run(roomy, request->dispatch);
  ASSERT_GT(expected.pieces, 1);

  ASSERT_NO_FATAL_FAILURE(open(3 * 5 + 1));
  Executor executor(team, *tiles_);
  run(executor, request->dispatch);  // the next time all are here at once
  std::vector<storage::PinnedTile> others;
  std::vector<int64_t> sums(expected.sums.size());
  const auto counts = executor.run(request->dispatch, [&](const Piece& piece) {
    for (size_t row = 0; row < 1500; ++row) {
      std::copy_n(&piece.sums[row * kHidden + piece.output_begin], piece.num_outputs,
                  &sums[row * kHidden + piece.output_begin]);
    }
    if (!others.empty()) return;
    tiles_->evict_all();
    for (int tile = 0; tile < 5; ++tile) {
      for (const int32_t expert : {0, 2, 3}) {
        auto pinned = tiles_->pin({kLayer, expert}, tile);
        if (pinned) others.push_back(std::move(*pinned));
      }
    }
  });
  ASSERT_TRUE(counts);
  EXPECT_EQ(sums, expected.sums);
  EXPECT_EQ(others.size(), 1u);
}

}  // namespace
}  // namespace atl::expert_node
