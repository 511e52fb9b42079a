// Requests for experts that are not all in RAM: what is waited for, in what order it is read, what
// has to go, and what is said when it can't be had. The reads are ended by hand.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <numeric>
#include <thread>

#include "base/units.h"
#include "storage/tiles/tile_store.h"
#include "storage/tiles/usage_file.h"
#include "tests/support/manual_tiles.h"
#include "tests/support/temp_dir.h"

namespace atl::storage {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

using test::ManualDrive;
using test::ManualTiles;

constexpr int kExperts = test::kManualExperts;
constexpr int kTiles = test::kManualTiles;
const std::vector<int> kBoth = {0, 1};

// Of each expert.
std::vector<double> some_uses() {
  std::vector<double> uses = {0, 5, 1, 0, 9, 2, 0, 0};
  uses.resize(kExperts);
  return uses;
}

class ColdTiles : public testing::Test {
 protected:
  // Room for so many experts.
  void open(size_t experts, TileStoreOptions options = {}) {
    options.ram_bytes_max = 1;
    const TileStore sizes(std::make_unique<ManualTiles>(drive_, catalog_), catalog_, options);
    const uint64_t slot = sizes.layout(0).bytes;
    options.ram_bytes_max =
        sizes.ram_bytes_min() - 2 * slot + experts * kTiles * slot + kSpareTables;
    store_.emplace(std::make_unique<ManualTiles>(drive_, catalog_), catalog_, options);
    store_->plan(kBoth);
    ASSERT_EQ(store_->stats().slots, experts * kTiles);
  }
  void load(std::vector<int32_t> experts) {
    drive_.automatic = true;
    for (const int32_t expert : experts) {
      ASSERT_TRUE(store_->pin({1, expert}, 0));
      ASSERT_TRUE(store_->pin({1, expert}, 1));
    }
    drive_.automatic = false;
    drive_.order.clear();
  }
  TileBatch request(std::vector<int32_t> experts) {
    auto batch = store_->request(1, experts, kBoth);
    EXPECT_TRUE(batch);
    return std::move(*batch);
  }
  static std::vector<size_t> next(TileBatch& batch) {
    auto ready = batch.next();
    EXPECT_TRUE(ready) << (ready ? "" : ready.error().message);
    return ready ? *ready : std::vector<size_t>{};
  }
  static std::string message_of(TileBatch& batch) {
    auto ready = batch.next();
    return ready ? "no error"
                 : fmt::format("{}: {}", to_string(ready.error().code), ready.error().message);
  }

  // Tables of the slots themselves, less than a slot.
  static constexpr uint64_t kSpareTables = 512;
  const ExpertCatalog catalog_ = ManualTiles::catalog();
  ManualDrive drive_;
  std::optional<TileStore> store_;
};

TEST_F(ColdTiles, what_is_here_is_handed_out_at_once_and_the_rest_as_it_comes) {
  open(6);
  load({4, 2});
  TileBatch batch = request({5, 4, 1, 2});
  EXPECT_THAT(drive_.under_way(), ElementsAre(5, 1));  // in the order of the request
  EXPECT_THAT(next(batch), ElementsAre(1, 3));
  EXPECT_FALSE(batch.all_handed_out());
  drive_.finish(1);
  EXPECT_THAT(next(batch), ElementsAre(2));
  EXPECT_EQ(static_cast<int>(batch.tile(2, 1).data[0]), 2);
  drive_.finish(5);
  EXPECT_THAT(next(batch), ElementsAre(0));
  EXPECT_TRUE(batch.all_handed_out());
  EXPECT_THAT(next(batch), IsEmpty());
  const ExpertCacheStats stats = store_->stats();
  EXPECT_EQ(stats.hits, 2u);
  EXPECT_EQ(stats.slots_used, 8u);
}

// A second passes each time somebody looks.
class TickingClock final : public Clock {
 public:
  TimePoint now() const override {
    const std::lock_guard lock(mutex_);
    ++looks_;
    looked_.notify_all();
    return TimePoint(std::chrono::seconds(looks_));
  }
  void wait_for_looks(int number) const {
    std::unique_lock lock(mutex_);
    looked_.wait(lock, [&] { return looks_ >= number; });
  }

 private:
  mutable std::mutex mutex_;
  mutable std::condition_variable looked_;
  mutable int looks_ = 0;
};

TEST_F(ColdTiles, waiting_for_a_read_is_counted_for_its_layer) {
  const TickingClock clock;
  TileStoreOptions options;
  options.clock = &clock;
  open(6, options);
  TileBatch batch = request({3});  // looks when the read starts
  std::thread later([&] {
    clock.wait_for_looks(2);  // next() waits: it looks with the lock that finish() needs
    drive_.finish(3);         // looks when the read has ended
  });
  EXPECT_THAT(next(batch), ElementsAre(0));
  later.join();
  const ExpertCacheStats stats = store_->stats();
  EXPECT_THAT(stats.stall_seconds, ElementsAre(0, 2));
  EXPECT_EQ(stats.read_latency[20], 1u);  // 2 s: from 2^20 us on
}

TEST_F(ColdTiles, with_little_room_experts_are_read_as_others_are_released) {
  open(2);
  TileBatch batch = request({0, 1, 2, 3});
  EXPECT_THAT(drive_.under_way(), ElementsAre(0, 1));
  drive_.finish(1);
  EXPECT_THAT(next(batch), ElementsAre(1));
  EXPECT_THAT(drive_.under_way(), ElementsAre(0));  // expert 1 is in use
  batch.release();
  EXPECT_THAT(drive_.under_way(), ElementsAre(0, 2));
  drive_.finish(0);
  drive_.finish(2);
  EXPECT_THAT(next(batch), ElementsAre(0, 2));
  batch.release();
  drive_.finish(3);
  EXPECT_THAT(next(batch), ElementsAre(3));
  EXPECT_TRUE(batch.all_handed_out());
  EXPECT_EQ(store_->stats().evictions, 2u);
}

TEST_F(ColdTiles, experts_of_the_request_that_are_here_are_not_put_out_by_the_others) {
  open(3);
  load({0, 1, 2});
  TileBatch batch = request({5, 0, 1});  // 5 takes the place of 2
  EXPECT_THAT(drive_.under_way(), ElementsAre(5));
  EXPECT_THAT(next(batch), ElementsAre(1, 2));
  drive_.finish(5);
  EXPECT_THAT(next(batch), ElementsAre(0));
  EXPECT_EQ(store_->stats().evictions, 1u);
}

// 5 takes the place of 2. For 6 there is none: were 1 not held from the beginning, it would go.
TEST_F(ColdTiles, what_is_here_and_wanted_last_stays_while_there_is_room_for_one_only) {
  open(2);
  load({1, 2});
  TileBatch batch = request({5, 6, 1});
  EXPECT_THAT(drive_.under_way(), ElementsAre(5));
  EXPECT_THAT(next(batch), ElementsAre(2));
}

TEST_F(ColdTiles, tiles_in_use_stay_until_the_batch_goes) {
  open(2);
  load({0, 1});
  {
    TileBatch batch = request({0, 1});
    EXPECT_THAT(next(batch), ElementsAre(0, 1));
    TileBatch other = request({2});
    EXPECT_THAT(drive_.under_way(), IsEmpty());
    EXPECT_THAT(message_of(other), HasSubstr("2 tiles of an expert don't fit beside what is in "
                                             "use: 4 slots of"));
    EXPECT_EQ(static_cast<int>(batch.tile(0, 0).data[0]), 1);
  }
  TileBatch batch = request({2});
  EXPECT_THAT(drive_.under_way(), ElementsAre(2));
  drive_.finish(2);
  EXPECT_THAT(next(batch), ElementsAre(0));
}

TEST_F(ColdTiles, what_is_under_way_already_is_raised_and_counted_as_late) {
  open(4);
  const std::vector<int32_t> hinted = {3, 6};
  store_->hint(1, hinted, kBoth);
  EXPECT_THAT(drive_.under_way(), ElementsAre(3, 6));
  EXPECT_EQ(drive_.reads[0].urgency, ReadUrgency::kAhead);
  TileBatch batch = request({6});
  EXPECT_EQ(drive_.raised, 2u);
  drive_.finish(6);
  EXPECT_THAT(next(batch), ElementsAre(0));
  drive_.finish(3);
  const ExpertCacheStats stats = store_->stats();
  EXPECT_EQ(stats.hinted, 2u);
  EXPECT_EQ(stats.hints_used, 1u);
  EXPECT_EQ(stats.late, 1u);
  EXPECT_EQ(stats.misses, 1u);
  EXPECT_EQ(stats.hits, 0u);
}

TEST_F(ColdTiles, hints_that_are_evicted_unused_are_counted_as_wasted) {
  open(2);
  const std::vector<int32_t> hinted = {3, 6};
  store_->hint(1, hinted, kBoth);
  drive_.finish(3);
  drive_.finish(6);
  load({0, 1});
  EXPECT_EQ(store_->stats().hints_wasted, 2u);
  EXPECT_EQ(store_->stats().hints_used, 0u);
}

TEST_F(ColdTiles, hints_start_no_more_than_so_many_reads_at_once) {
  open(kExperts);
  std::vector<int32_t> all(kExperts);
  std::iota(all.begin(), all.end(), 0);
  store_->hint(1, all, kBoth);
  EXPECT_EQ(store_->stats().hinted, 16u);
  EXPECT_EQ(drive_.under_way().size(), 16u);
  store_->hint(1, all, kBoth);
  EXPECT_EQ(drive_.under_way().size(), 16u);
  drive_.finish(3);
  store_->hint(1, all, kBoth);
  EXPECT_THAT(drive_.under_way(), testing::Contains(16));
  EXPECT_EQ(drive_.under_way().size(), 16u);
  drive_.finish_all();
}

TEST_F(ColdTiles, a_bad_tile_is_never_read_again_and_named_each_time) {
  open(4);
  {
    TileBatch batch = request({2, 3});
    drive_.finish(2, Error{ErrorCode::kCorrupt, "layer file, offset 4096: checksum"});
    EXPECT_THAT(message_of(batch), HasSubstr("layer file, offset 4096: checksum"));
    drive_.finish(3);
  }
  TileBatch again = request({2});
  EXPECT_THAT(message_of(again), HasSubstr("layer file, offset 4096: checksum"));
  EXPECT_THAT(drive_.under_way(), IsEmpty());
  EXPECT_EQ(store_->stats().tiles_bad, 2u);
  TileBatch sound = request({3});
  EXPECT_THAT(next(sound), ElementsAre(0));
}

TEST_F(ColdTiles, a_tile_that_could_not_be_read_is_tried_again) {
  open(4);
  {
    TileBatch batch = request({2});
    drive_.finish(2, Error{ErrorCode::kUnavailable, "Input/output error"});
    EXPECT_THAT(message_of(batch), HasSubstr("Input/output error"));
  }
  EXPECT_EQ(store_->stats().slots_used, 0u);
  TileBatch again = request({2});
  drive_.finish(2);
  EXPECT_THAT(next(again), ElementsAre(0));
}

TEST_F(ColdTiles, filling_takes_the_most_used_first_and_stops_when_slots_are_full) {
  const test::TempDir dir;
  TileStoreOptions options;
  options.usage_file = dir / "usage";
  options.checkpoint_fingerprint = "abc";
  write_usage_file(options.usage_file, catalog_, "abc", some_uses());
  open(3, options);
  drive_.automatic = true;
  NoProgress progress;
  store_->fill(progress);
  EXPECT_THAT(drive_.order, ElementsAre(4, 1, 5));
  TileBatch batch = request({1, 4, 5});
  EXPECT_THAT(next(batch), ElementsAre(0, 1, 2));
}

TEST_F(ColdTiles, begins_with_the_counts_of_a_server_while_it_has_none_of_its_own) {
  const test::TempDir dir;
  TileStoreOptions options;
  options.usage_file = dir / "usage";
  options.first_usage = dir / "experts.json";
  options.checkpoint_fingerprint = "abc";
  std::vector<double> uses = some_uses();
  for (double& use : uses) use *= 1e9;  // of a server that has run for long
  write_usage_file(options.first_usage, catalog_, "abc", uses);
  open(3, options);
  drive_.automatic = true;
  NoProgress progress;
  store_->fill(progress);
  EXPECT_THAT(drive_.order, ElementsAre(4, 1, 5));
  store_->save_usage();
  const std::vector<double> saved = read_usage_file(options.usage_file, catalog_, "abc");
  EXPECT_LE(std::accumulate(saved.begin(), saved.end(), 0.0), 1024.0 * 3 + 1);  // not of days
  EXPECT_GT(saved[4], saved[1]);
  // From now on its own file counts.
  std::swap(uses[0], uses[4]);
  write_usage_file(options.first_usage, catalog_, "abc", uses);
  drive_.order.clear();
  open(3, options);
  drive_.automatic = true;
  store_->fill(progress);
  EXPECT_THAT(drive_.order, ElementsAre(4, 1, 5));
}

TEST_F(ColdTiles, uses_are_saved_and_of_another_checkpoint_refused) {
  const test::TempDir dir;
  TileStoreOptions options;
  options.usage_file = dir / "usage";
  options.checkpoint_fingerprint = "abc";
  open(4, options);
  load({7, 7, 2});
  store_->save_usage();
  const std::vector<double> uses = read_usage_file(options.usage_file, catalog_, "abc");
  EXPECT_NEAR(uses[7], 4, 0.1);  // two tiles, twice
  EXPECT_NEAR(uses[2], 2, 0.1);
  EXPECT_EQ(uses[0], 0);
  const auto refused = [&](const std::string& fingerprint) {
    return test::message_of<LoadError>(
        dir.path(), [&] { (void)read_usage_file(dir / "usage", catalog_, fingerprint); });
  };
  EXPECT_EQ(
      refused("xyz"),
      "DIR/usage: counts the experts of checkpoint \"abc\", expected \"xyz\": remove the file "
      "or name another one with --usage-file or --usage");
  std::ofstream(dir / "usage")
      << "{\"atoll_expert_usage\": 1, \"checkpoint\": \"abc\", \"layers\": "
         "[{\"layer\": 1, \"uses\": [1, -1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, "
         "0]}]}";
  EXPECT_THAT(refused("abc"), HasSubstr("uses of expert 1/1 are -1, expected a number from 0 on"));
  std::ofstream(dir / "usage")
      << "{\"atoll_expert_usage\": 1, \"checkpoint\": \"abc\", \"layers\": "
         "[{\"layer\": 1, \"uses\": [1]}]}";
  EXPECT_THAT(refused("abc"), HasSubstr("a layer without a number or without 20 uses"));
  std::ofstream(dir / "usage") << "{\"atoll";
  EXPECT_THAT(refused("abc"), HasSubstr("not an expert usage file of version 1"));
  std::ofstream(dir / "usage") << "{\"layers\": [{\"layer\": 1}]}";
  EXPECT_THAT(refused("abc"), HasSubstr("not an expert usage file of version 1"));
  // Neither depth nor what small values take in memory grows with what a stranger wrote.
  std::ofstream(dir / "usage") << std::string(1'000'000, '[');
  EXPECT_THAT(refused("abc"), HasSubstr("nested deeper than 64 levels"));
  std::ofstream out(dir / "usage");
  for (int i = 0; i < 500'000; ++i) out << (i == 0 ? "[[]" : ",[]");
  out << ']';
  out.close();
  EXPECT_THAT(refused("abc"), HasSubstr("more values than"));
}

TEST_F(ColdTiles, a_usage_file_may_be_named_without_a_folder) {
  const test::TempDir dir;
  const auto before = std::filesystem::current_path();
  std::filesystem::current_path(dir.path());
  const std::vector<double> uses = some_uses();
  write_usage_file("usage", catalog_, "abc", uses);
  EXPECT_EQ(read_usage_file("usage", catalog_, "abc"), uses);
  std::filesystem::current_path(before);
}

TEST_F(ColdTiles, a_usage_file_that_was_refused_stays_as_it_is) {
  const test::TempDir dir;
  TileStoreOptions options;
  options.usage_file = dir / "usage";
  options.checkpoint_fingerprint = "abc";
  const std::vector<double> uses = some_uses();
  write_usage_file(options.usage_file, catalog_, "xyz", uses);
  EXPECT_THROW(open(4, options), LoadError);
  store_->save_usage();
  EXPECT_EQ(read_usage_file(options.usage_file, catalog_, "xyz"), uses);
  EXPECT_EQ(store_->stats().slots_used, 0u);
}

TEST_F(ColdTiles, too_little_ram_says_what_is_the_least) {
  TileStoreOptions options;
  options.ram_bytes_max = 1000;
  TileStore store(std::make_unique<ManualTiles>(drive_, catalog_), catalog_, options);
  EXPECT_EQ(test::message_of<LoadError>("/none", [&] { store.plan(kBoth); }),
            fmt::format("1000 B of RAM for expert tiles: expected at least {}",
                        format_bytes(store.ram_bytes_min())));
  options.ram_bytes_max = store.ram_bytes_min() - 1;
  TileStore almost(std::make_unique<ManualTiles>(drive_, catalog_), catalog_, options);
  EXPECT_THROW(almost.plan(kBoth), LoadError);
  options.ram_bytes_max = store.ram_bytes_min();
  TileStore enough(std::make_unique<ManualTiles>(drive_, catalog_), catalog_, options);
  enough.plan(kBoth);
  EXPECT_EQ(enough.stats().slots, 2u);
}

TEST_F(ColdTiles, an_emptied_cache_reads_again) {
  open(4);
  load({0, 1});
  {
    TileBatch batch = request({0});
    EXPECT_THAT(next(batch), ElementsAre(0));
    store_->evict_all();
    EXPECT_EQ(store_->stats().slots_used, 2u);  // what is in use stays
  }
  store_->evict_all();
  EXPECT_EQ(store_->stats().slots_used, 0u);
  TileBatch batch = request({0});
  EXPECT_THAT(drive_.under_way(), ElementsAre(0));
  drive_.finish(0);
  EXPECT_THAT(next(batch), ElementsAre(0));
}

// Two threads ask for random experts of a drive that ends reads at any time.
TEST_F(ColdTiles, every_tile_handed_out_is_the_one_asked_for) {
  open(3);
  drive_.automatic = true;
  uint64_t random = 7;
  for (int step = 0; step < 300; ++step) {
    std::vector<int32_t> experts;
    for (int32_t expert = 0; expert < kExperts; ++expert) {
      random = random * 6364136223846793005ull + 1442695040888963407ull;
      if ((random >> 40) % 3 == 0) experts.push_back(expert);
    }
    if (step % 5 == 0)
      store_->hint(1, std::vector<int32_t>{static_cast<int32_t>(random >> 61)}, kBoth);
    TileBatch batch = request(experts);
    while (!batch.all_handed_out()) {
      for (const size_t i : next(batch)) {
        for (size_t tile = 0; tile < kTiles; ++tile) {
          const kernels::TileView view = batch.tile(i, tile);
          ASSERT_EQ(static_cast<int>(view.data[0]), experts[i] + 1);
          ASSERT_EQ(static_cast<int>(view.data[view.layout->bytes - 1]), experts[i] + 1);
        }
      }
      batch.release();
    }
  }
}

}  // namespace
}  // namespace atl::storage
