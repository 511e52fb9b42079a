#include "storage/pack/pack_reader.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <random>
#include <thread>

#include "base/memory.h"
#include "model/config.h"
#include "model/synthetic.h"
#include "model/weights_map.h"
#include "storage/checkpoint/checkpoint.h"
#include "storage/pack/pack_writer.h"
#include "tests/storage/small_spec.h"
#include "tests/support/temp_dir.h"

namespace atl::storage {
namespace {

namespace fs = std::filesystem;
using kernels::WeightFormat;
using test::message_of;
using test::TempDir;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsSupersetOf;

PackIo io_of(bool ring) { return ring ? PackIo::kAuto : PackIo::kThreads; }

constexpr int kTiles = 5;
constexpr int kExperts = 4;

// Five tiles of experts, two MoE layers and an MTP layer.
model::SyntheticSpec small_spec() { return storage::small_spec(576, 64, kExperts, 3, 1); }

// Writes a pack of a checkpoint that is made for it.
void write(const fs::path& out, const PackOptions& options = {},
           const model::SyntheticSpec& spec = small_spec()) {
  const TempDir source;
  model::write_synthetic_checkpoint(source.path(), spec);
  const Checkpoint checkpoint = Checkpoint::open(source.path());
  const ExpertCatalog catalog =
      model::map_experts(model::load_config(source.path()), checkpoint, model::MtpLayers::kAll);
  PackOptions small = options;
  small.window_bytes = 64 * 1024;
  NoProgress progress;
  write_pack(checkpoint, catalog, out, small, progress);
}

ExpertCatalog catalog_of(const Pack& pack) {
  ExpertCatalog catalog;
  catalog.hidden_size = pack.params().hidden_size;
  catalog.moe_intermediate_size = pack.params().moe_intermediate_size;
  catalog.n_routed_experts = pack.params().n_routed_experts;
  catalog.moe_layers = pack.params().layers;
  return catalog;
}

void flip(const fs::path& file, uint64_t offset) {
  const int fd = ::open(file.c_str(), O_RDWR | O_CLOEXEC);
  ASSERT_GE(fd, 0);
  unsigned char byte = 0;
  ASSERT_EQ(::pread(fd, &byte, 1, static_cast<off_t>(offset)), 1);
  byte = static_cast<unsigned char>(byte ^ 4);
  ASSERT_EQ(::pwrite(fd, &byte, 1, static_cast<off_t>(offset)), 1);
  ::close(fd);
}

// One read and what was said of each of its tiles.
class Asked {
 public:
  Asked(const Pack& pack, const std::vector<int>& tiles) : memory_(2 * kTiles * slot_bytes(pack)) {
    std::memset(memory_.data(), 0x5a, memory_.size());
    for (const int tile : tiles) {
      targets_.push_back({&pack.geometry().layouts()[static_cast<size_t>(tile)],
                          memory_.data() + 2 * targets_.size() * slot_bytes(pack)});
    }
    said_.resize(tiles.size());
  }
  uint64_t start(ExpertReader& reader, size_t place, int64_t expert, ReadUrgency urgency) {
    return reader.start(place, expert, targets_, urgency, [this](size_t target, const Status& s) {
      const std::lock_guard lock(mutex_);
      said_[target].push_back(s);
      ++count_;
      changed_.notify_all();
    });
  }
  Asked& wait() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return count_ >= said_.size(); });
    return *this;
  }
  size_t count() {
    const std::lock_guard lock(mutex_);
    return count_;
  }
  Status status(size_t target) {
    const std::lock_guard lock(mutex_);
    if (said_[target].size() == 1) return said_[target][0];
    return Error{ErrorCode::kInternal, fmt::format("told {} times", said_[target].size())};
  }
  std::string_view bytes(size_t target) const {
    return {reinterpret_cast<const char*>(targets_[target].data), targets_[target].layout->bytes};
  }

 private:
  static size_t slot_bytes(const Pack& pack) { return pack.geometry().layouts()[0].bytes; }
  HostBuffer memory_;
  std::vector<TileTarget> targets_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::vector<Status>> said_;
  size_t count_ = 0;
};

std::string tile_bytes(const Pack& pack, size_t place, int64_t expert, int tile) {
  std::string bytes(pack.geometry().layouts()[static_cast<size_t>(tile)].bytes, '\0');
  HostBuffer memory(bytes.size());
  EXPECT_TRUE(pack.read_tiles(place, expert, tile, 1, memory.span()));
  std::memcpy(bytes.data(), memory.data(), bytes.size());
  return bytes;
}

// Faults between disk and reader, and what was read. Threads read then, as it has no direct_fd().
class FaultyReader final : public ExtentReader {
 public:
  struct Plan {
    std::mutex mutex;
    std::vector<uint64_t> offsets;  // of all reads since the pack was opened
    uint64_t bytes = 0;
    int fail = 0;              // so many of the next reads fail,
    int wrong = 0;             // and so many of those then come back with a wrong bit
    uint64_t random_seed = 0;  // 0: no faults at random
    std::mt19937_64 random;
    std::condition_variable changed;
    bool hold = false;  // reads wait
    Error error{ErrorCode::kUnavailable, "layer file: read 0 bytes: Input/output error"};
    void set_hold(bool held) {
      const std::lock_guard lock(mutex);
      hold = held;
      changed.notify_all();
    }
    void wait_for_reads(size_t count) {
      std::unique_lock lock(mutex);
      changed.wait(lock, [&] { return offsets.size() >= count; });
    }
  };
  FaultyReader(std::unique_ptr<ExtentReader> base, Plan& plan)
      : base_(std::move(base)), plan_(plan) {}
  uint64_t file_bytes(size_t file) const override { return base_->file_bytes(file); }
  Status read(size_t file, uint64_t offset, std::span<std::byte> out) override {
    bool wrong = false;
    {
      std::unique_lock lock(plan_.mutex);
      plan_.offsets.push_back(offset);
      plan_.bytes += out.size();
      plan_.changed.notify_all();
      plan_.changed.wait(lock, [&] { return !plan_.hold; });
      const uint64_t dice = plan_.random_seed == 0 ? 0 : plan_.random() % 10;
      if (plan_.fail > 0 || dice == 1) {
        if (plan_.fail > 0) --plan_.fail;
        return plan_.error;
      }
      wrong = plan_.wrong > 0 || dice == 2;
      if (plan_.wrong > 0) --plan_.wrong;
    }
    const Status status = base_->read(file, offset, out);
    if (wrong) out[out.size() / 2] ^= std::byte{16};
    return status;
  }

 private:
  std::unique_ptr<ExtentReader> base_;
  Plan& plan_;
};

Pack open_faulty(const fs::path& dir, FaultyReader::Plan& plan) {
  Pack pack = Pack::open(dir, [&](std::vector<fs::path> files) {
    return std::make_unique<FaultyReader>(open_extent_files(std::move(files)), plan);
  });
  plan.offsets.clear();
  plan.bytes = 0;
  return pack;
}

// Two equal packs that all tests copy from.
class PackReader : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    original_ = new TempDir;
    write(*original_ / "pack");
  }
  static void TearDownTestSuite() { delete original_; }
  void SetUp() override {
    for (const char* name : {"a", "b"}) fs::copy(*original_ / "pack", dir_ / name);
  }
  fs::path file(const char* pack) const { return dir_ / pack / "layer-00001.tiles"; }

  static inline TempDir* original_ = nullptr;
  TempDir dir_;
};

const std::vector<int> kAllTiles = {0, 1, 2, 3, 4};

TEST_F(PackReader, gives_the_bytes_of_the_pack_by_ring_and_by_threads) {
  const Pack a = Pack::open(dir_ / "a"), b = Pack::open(dir_ / "b");
  const ExpertCatalog catalog = catalog_of(a);
  ASSERT_EQ(catalog.moe_layers.size(), 3u);
  for (const bool ring : {true, false}) {
    for (const std::vector<const Pack*>& packs :
         {std::vector<const Pack*>{&a}, std::vector<const Pack*>{&a, &b}}) {
      const auto reader = make_pack_expert_reader(
          packs, catalog,
          {.piece_bytes = 32 * kKiB, .in_flight_bytes = 64 * kKiB, .io = io_of(ring)});
      for (const std::vector<int>& tiles : {kAllTiles, {0, 2, 3}, {4}}) {
        std::vector<std::unique_ptr<Asked>> asked;
        for (size_t place = 0; place < 3; ++place) {
          for (int64_t expert = 0; expert < kExperts; ++expert) {
            asked.push_back(std::make_unique<Asked>(a, tiles));
            const auto urgency = expert == 1 ? ReadUrgency::kAhead : ReadUrgency::kNow;
            asked.back()->start(*reader, place, expert, urgency);
          }
        }
        for (size_t i = 0; i < asked.size(); ++i) {
          asked[i]->wait();
          for (size_t t = 0; t < tiles.size(); ++t) {
            ASSERT_TRUE(asked[i]->status(t)) << asked[i]->status(t).error().message;
            const auto expert = static_cast<int64_t>(i % kExperts);
            EXPECT_EQ(asked[i]->bytes(t) == tile_bytes(a, i / kExperts, expert, tiles[t]), true);
          }
        }
      }
      EXPECT_EQ(reader->tiles_reread(), 0u);
    }
  }
}

TEST_F(PackReader, copies_share_the_work_evenly) {
  FaultyReader::Plan plan_a, plan_b;
  const Pack a = open_faulty(dir_ / "a", plan_a), b = open_faulty(dir_ / "b", plan_b);
  const std::vector<const Pack*> packs = {&a, &b};
  const ExpertCatalog catalog = catalog_of(a);
  const auto reader = make_pack_expert_reader(packs, catalog, {.piece_bytes = 4 * kKiB});
  // Both stand still, so that who is faster does not count.
  plan_a.set_hold(true);
  plan_b.set_hold(true);
  std::vector<std::unique_ptr<Asked>> asked;
  for (int64_t i = 0; i < 12; ++i) {
    asked.push_back(std::make_unique<Asked>(a, kAllTiles));
    asked.back()->start(*reader, static_cast<size_t>(i) / kExperts, i % kExperts,
                        ReadUrgency::kNow);
  }
  plan_a.set_hold(false);
  plan_b.set_hold(false);
  for (auto& one : asked) one->wait();
  const uint64_t all = 12 * a.geometry().expert_bytes();
  EXPECT_EQ(plan_a.bytes + plan_b.bytes, all);
  EXPECT_NEAR(static_cast<double>(plan_a.bytes) / static_cast<double>(all), 0.5, 0.05);
}

TEST_F(PackReader, packs_of_different_tiles_make_a_whole) {
  PackOptions low, high;
  low.tiles = IndexRange{0, 2};
  high.tiles = IndexRange{2, 3};
  high.layers = IndexRange{1, 2};
  write(dir_ / "low", low);
  write(dir_ / "high", high);
  const Pack whole = Pack::open(dir_ / "a");
  const Pack first = Pack::open(dir_ / "low"), second = Pack::open(dir_ / "high");
  const std::vector<const Pack*> packs = {&first, &second};
  const ExpertCatalog catalog = catalog_of(whole);
  const auto source = make_pack_tiles(packs, catalog, {});
  const auto message = [&](size_t place, int tile) {
    const Status status = source->has(place, tile);
    return status ? "ok" : status.error().message;
  };
  for (int tile = 0; tile < 4; ++tile) EXPECT_EQ(message(0, tile), "ok");
  EXPECT_THAT(message(0, 4), HasSubstr("low, "));
  EXPECT_THAT(message(0, 4), HasSubstr("high: the pack leaves out tile 4 (it has tiles 0-2, 2-3)"));
  EXPECT_EQ(message(2, 2), "ok");
  EXPECT_THAT(message(2, 3), HasSubstr("leaves out tile 3"));

  const auto reader = make_pack_expert_reader(packs, catalog);
  const std::vector<int> tiles = {0, 1, 2, 3};
  for (int64_t expert = 0; expert < kExperts; ++expert) {
    Asked asked(whole, tiles);
    asked.start(*reader, 1, expert, ReadUrgency::kNow);
    asked.wait();
    for (size_t t = 0; t < tiles.size(); ++t) {
      const std::string expected = tile_bytes(whole, 1, expert, tiles[t]);
      EXPECT_TRUE(asked.status(t));
      EXPECT_EQ(asked.bytes(t) == expected, true);
    }
  }
}

TEST_F(PackReader, a_flipped_byte_is_read_again_then_named_or_taken_from_the_copy) {
  const Pack a = Pack::open(dir_ / "a"), b = Pack::open(dir_ / "b");
  const std::string expected = tile_bytes(b, 0, 2, 3);
  const uint64_t offset = a.geometry().offset(2, 3);
  flip(file("a"), offset + 5000);
  const ExpertCatalog catalog = catalog_of(a);
  for (const bool ring : {true, false}) {
    for (const bool with_copy : {false, true}) {
      const std::vector<const Pack*> packs =
          with_copy ? std::vector<const Pack*>{&a, &b} : std::vector<const Pack*>{&a};
      const auto reader = make_pack_expert_reader(packs, catalog, {.io = io_of(ring)});
      // The first expert that is asked for begins with the first pack.
      Asked asked(a, kAllTiles);
      asked.start(*reader, 0, 2, ReadUrgency::kNow);
      asked.wait();
      for (const size_t t : {0, 1, 2, 4}) EXPECT_TRUE(asked.status(t));
      if (with_copy) {
        ASSERT_TRUE(asked.status(3)) << asked.status(3).error().message;
        EXPECT_EQ(asked.bytes(3) == expected, true);
        EXPECT_EQ(reader->tiles_reread(), 2u);
        // From then on it is known which copy is bad.
        for (int i = 0; i < 4; ++i) {
          Asked again(a, kAllTiles);
          again.start(*reader, 0, 2, ReadUrgency::kNow);
          EXPECT_TRUE(again.wait().status(3));
          EXPECT_EQ(again.bytes(3) == expected, true);
        }
        EXPECT_EQ(reader->tiles_reread(), 2u);
        continue;
      }
      ASSERT_FALSE(asked.status(3));
      EXPECT_EQ(asked.status(3).error().code, ErrorCode::kCorrupt);
      EXPECT_THAT(asked.status(3).error().message,
                  AllOf(HasSubstr(file("a").string() + ": tile 3 of expert 1/2: checksum "),
                        HasSubstr(fmt::format("at offset {}, expected", offset))));
      EXPECT_EQ(reader->tiles_reread(), 1u);
    }
  }
  // Wrong in both: named for both.
  flip(file("b"), offset);
  const std::vector<const Pack*> packs = {&a, &b};
  const auto reader = make_pack_expert_reader(packs, catalog);
  Asked asked(a, {3});
  asked.start(*reader, 0, 2, ReadUrgency::kNow);
  asked.wait();
  EXPECT_EQ(asked.status(0).error().code, ErrorCode::kCorrupt);
  EXPECT_THAT(asked.status(0).error().message,
              AllOf(HasSubstr(file("a").string()), HasSubstr(file("b").string())));
}

TEST_F(PackReader, faults_that_pass_are_read_over) {
  FaultyReader::Plan plan, sound;
  const Pack faulty = open_faulty(dir_ / "a", plan), copy = open_faulty(dir_ / "b", sound);
  const ExpertCatalog catalog = catalog_of(faulty);
  // What is said of a tile, and how often the pack was read.
  const auto ask = [&](std::vector<const Pack*> packs, int fail, int wrong) {
    const auto reader = make_pack_expert_reader(packs, catalog, {.num_threads = 1});
    plan.offsets.clear();
    sound.offsets.clear();
    plan.fail = fail;
    plan.wrong = wrong;
    Asked asked(faulty, {1});
    asked.start(*reader, 1, 3, ReadUrgency::kNow);
    const Status status = asked.wait().status(0);
    EXPECT_EQ(reader->tiles_reread() + 1, plan.offsets.size() + sound.offsets.size());
    const std::string reads = fmt::format("{}+{}", plan.offsets.size(), sound.offsets.size());
    if (!status) return reads + " " + std::string(to_string(status.error().code));
    EXPECT_EQ(asked.bytes(0) == tile_bytes(copy, 1, 3, 1), true);
    return reads;
  };
  EXPECT_EQ(ask({&faulty}, 0, 0), "1+0");
  EXPECT_EQ(ask({&faulty}, 1, 0), "2+0");
  EXPECT_EQ(ask({&faulty}, 0, 1), "2+0");
  const std::string unavailable(to_string(ErrorCode::kUnavailable));
  const std::string corrupt(to_string(ErrorCode::kCorrupt));
  EXPECT_EQ(ask({&faulty}, 99, 0), "2+0 " + unavailable);
  EXPECT_EQ(ask({&faulty}, 1, 1), "2+0 " + corrupt);
  EXPECT_EQ(ask({&faulty}, 0, 99), "2+0 " + corrupt);
  EXPECT_EQ(ask({&faulty, &copy}, 99, 0), "2+1");
  EXPECT_EQ(ask({&faulty, &copy}, 0, 99), "2+1");
  EXPECT_EQ(ask({&faulty, &copy}, 1, 0), "2+0");
}

TEST_F(PackReader, io_errors_of_the_ring_are_kept_to_the_tile_they_belong_to) {
  const Pack a = Pack::open(dir_ / "a");
  const ExpertCatalog catalog = catalog_of(a);
  const uint64_t bad = a.geometry().offset(1, 2);
  std::atomic<int> left{1};
  std::atomic<bool> ring{false};
  const auto reader = make_pack_expert_reader(
      std::vector<const Pack*>{&a}, catalog,
      // All five tiles are one read at first.
      {.filter = [&](size_t file, uint64_t offset, int result) {
        ring = true;
        const bool hit = file == 0 && offset <= bad && bad < offset + static_cast<uint64_t>(result);
        return hit && left-- > 0 ? -EIO : result;
      }});
  Asked once(a, kAllTiles);
  once.start(*reader, 0, 1, ReadUrgency::kNow);
  once.wait();
  if (!ring) GTEST_SKIP() << "no io_uring here";
  for (size_t t = 0; t < kTiles; ++t) {
    EXPECT_TRUE(once.status(t));
    EXPECT_EQ(once.bytes(t) == tile_bytes(a, 0, 1, static_cast<int>(t)), true);
  }
  EXPECT_EQ(reader->tiles_reread(), 5u);
  left = 100;
  Asked always(a, kAllTiles);
  always.start(*reader, 0, 1, ReadUrgency::kNow);
  always.wait();
  for (const size_t t : {0, 1, 3, 4}) EXPECT_TRUE(always.status(t));
  ASSERT_FALSE(always.status(2));
  EXPECT_EQ(always.status(2).error().code, ErrorCode::kUnavailable);
  EXPECT_EQ(always.status(2).error().message,
            fmt::format("{}: read 0 of {} bytes at offset {}: Input/output error",
                        file("a").string(), a.geometry().layouts()[2].bytes, bad));
}

TEST_F(PackReader, a_file_that_shrinks_while_open_is_named_or_taken_from_the_copy) {
  const Pack a = Pack::open(dir_ / "a"), b = Pack::open(dir_ / "b");
  const ExpertCatalog catalog = catalog_of(a);
  const uint64_t offset = a.geometry().offset(3, 4);
  fs::resize_file(file("a"), offset + 100);
  for (const bool ring : {true, false}) {
    const auto alone =
        make_pack_expert_reader(std::vector<const Pack*>{&a}, catalog, {.io = io_of(ring)});
    Asked asked(a, kAllTiles);
    asked.start(*alone, 0, 3, ReadUrgency::kNow);
    asked.wait();
    for (size_t t = 0; t < 4; ++t) EXPECT_TRUE(asked.status(t));
    ASSERT_FALSE(asked.status(4));
    EXPECT_EQ(asked.status(4).error().code, ErrorCode::kCorrupt);
    EXPECT_THAT(asked.status(4).error().message,
                AllOf(HasSubstr(file("a").string()),
                      HasSubstr(fmt::format("at offset {}: the file shrank", offset))));
    const auto both =
        make_pack_expert_reader(std::vector<const Pack*>{&a, &b}, catalog, {.io = io_of(ring)});
    Asked again(a, kAllTiles);
    again.start(*both, 0, 3, ReadUrgency::kNow);
    again.wait();
    for (size_t t = 0; t < kTiles; ++t) {
      EXPECT_TRUE(again.status(t));
      EXPECT_EQ(again.bytes(t) == tile_bytes(b, 0, 3, static_cast<int>(t)), true);
    }
  }
}

TEST_F(PackReader, faults_at_random_never_give_wrong_bytes) {
  FaultyReader::Plan plan_a, plan_b;
  const Pack a = open_faulty(dir_ / "a", plan_a), b = open_faulty(dir_ / "b", plan_b);
  const Pack sound = Pack::open(dir_ / "a");
  const ExpertCatalog catalog = catalog_of(a);
  plan_a.random_seed = plan_b.random_seed = 11;
  plan_a.random.seed(11);
  plan_b.random.seed(12);
  const auto reader = make_pack_expert_reader(std::vector<const Pack*>{&a, &b}, catalog,
                                              {.piece_bytes = 8 * kKiB, .num_threads = 2});
  size_t right = 0, failed = 0;
  for (int round = 0; round < 10; ++round) {
    std::vector<std::unique_ptr<Asked>> asked;
    for (int64_t i = 0; i < 12; ++i) {
      asked.push_back(std::make_unique<Asked>(sound, kAllTiles));
      asked.back()->start(*reader, static_cast<size_t>(i) / kExperts, i % kExperts,
                          ReadUrgency::kNow);
    }
    for (size_t i = 0; i < asked.size(); ++i) {
      asked[i]->wait();
      for (size_t t = 0; t < kTiles; ++t) {
        const Status status = asked[i]->status(t);
        if (!status) {
          EXPECT_NE(status.error().code, ErrorCode::kInternal) << status.error().message;
          ++failed;
          continue;
        }
        ++right;
        const auto expert = static_cast<int64_t>(i % kExperts);
        ASSERT_EQ(
            asked[i]->bytes(t) == tile_bytes(sound, i / kExperts, expert, static_cast<int>(t)),
            true);
      }
    }
  }
  EXPECT_EQ(right + failed, 10u * 12 * kTiles);
  EXPECT_GT(reader->tiles_reread(), 50u);
  EXPECT_GT(right, failed);
}

TEST_F(PackReader, a_raised_read_overtakes) {
  FaultyReader::Plan plan;
  const Pack pack = open_faulty(dir_ / "a", plan);
  const ExpertCatalog catalog = catalog_of(pack);
  const auto reader =
      make_pack_expert_reader(std::vector<const Pack*>{&pack}, catalog, {.num_threads = 1});
  plan.set_hold(true);
  std::vector<std::unique_ptr<Asked>> asked;
  std::vector<uint64_t> tickets;
  for (int64_t expert = 0; expert < kExperts; ++expert) {
    asked.push_back(std::make_unique<Asked>(pack, std::vector<int>{2}));
    tickets.push_back(asked.back()->start(*reader, 0, expert, ReadUrgency::kAhead));
    if (expert == 0) plan.wait_for_reads(1);
  }
  reader->raise(tickets[3]);
  plan.set_hold(false);
  for (auto& one : asked) one->wait();
  reader->raise(tickets[3]);
  const PackGeometry& g = pack.geometry();
  EXPECT_THAT(plan.offsets,
              ElementsAre(g.offset(0, 2), g.offset(3, 2), g.offset(1, 2), g.offset(2, 2)));
}

TEST_F(PackReader, a_raised_read_is_tried_again_before_others) {
  FaultyReader::Plan plan;
  const Pack pack = open_faulty(dir_ / "a", plan);
  const ExpertCatalog catalog = catalog_of(pack);
  const auto reader =
      make_pack_expert_reader(std::vector<const Pack*>{&pack}, catalog, {.num_threads = 1});
  plan.set_hold(true);
  plan.fail = 1;
  Asked first(pack, {2}), second(pack, {2});
  const uint64_t ticket = first.start(*reader, 0, 0, ReadUrgency::kAhead);
  plan.wait_for_reads(1);
  second.start(*reader, 0, 1, ReadUrgency::kAhead);
  reader->raise(ticket);  // while its read is under way and about to fail
  plan.set_hold(false);
  first.wait();
  second.wait();
  const PackGeometry& g = pack.geometry();
  EXPECT_THAT(plan.offsets, ElementsAre(g.offset(0, 2), g.offset(0, 2), g.offset(1, 2)));
}

TEST_F(PackReader, ends_with_reads_and_second_tries_under_way) {
  flip(file("a"), Pack::open(dir_ / "a").geometry().offset(1, 1));
  const Pack a = Pack::open(dir_ / "a"), b = Pack::open(dir_ / "b");
  const ExpertCatalog catalog = catalog_of(a);
  std::mt19937 random(9);
  for (int round = 0; round < 100; ++round) {
    auto reader = make_pack_expert_reader(
        std::vector<const Pack*>{&a, &b}, catalog,
        {.piece_bytes = 8 * kKiB, .in_flight_bytes = 32 * kKiB, .io = io_of(round % 2 == 0)});
    std::vector<std::unique_ptr<Asked>> asked;
    for (int i = 0; i < 12; ++i) {
      asked.push_back(std::make_unique<Asked>(a, kAllTiles));
      asked.back()->start(*reader, 0, i % kExperts, ReadUrgency::kNow);
    }
    asked[random() % 12]->wait();
    reader.reset();
    std::vector<size_t> counts;
    for (auto& one : asked) counts.push_back(one->count());
    EXPECT_THAT(counts, IsSupersetOf({size_t{kTiles}}));
  }
}

TEST_F(PackReader, two_readers_of_one_pack_give_the_same) {
  const Pack pack = Pack::open(dir_ / "a");
  const ExpertCatalog catalog = catalog_of(pack);
  const auto read_all = [&](bool ring) {
    std::string bytes;
    const auto reader =
        make_pack_expert_reader(std::vector<const Pack*>{&pack}, catalog, {.io = io_of(ring)});
    for (int round = 0; round < 5; ++round) {
      for (int64_t expert = 0; expert < kExperts; ++expert) {
        Asked asked(pack, kAllTiles);
        asked.start(*reader, 2, expert, ReadUrgency::kNow);
        asked.wait();
        for (size_t t = 0; t < kTiles; ++t) bytes += asked.bytes(t);
      }
    }
    return bytes;
  };
  const std::string expected = read_all(true);
  std::string one, other;
  std::thread first([&] { one = read_all(true); });
  std::thread second([&] { other = read_all(false); });
  first.join();
  second.join();
  EXPECT_EQ(one == expected, true);
  EXPECT_EQ(other == expected, true);
}

TEST_F(PackReader, refuses_packs_that_do_not_fit_together) {
  const Pack a = Pack::open(dir_ / "a");
  const ExpertCatalog catalog = catalog_of(a);
  const auto refusal = [&](const fs::path& other_dir) {
    const Pack other = Pack::open(other_dir);
    const std::vector<const Pack*> packs = {&a, &other};
    return message_of<LoadError>(dir_.path(),
                                 [&] { (void)make_pack_expert_reader(packs, catalog); });
  };
  PackOptions int4;
  int4.format.weights = WeightFormat::kInt4;
  write(dir_ / "int4", int4);
  EXPECT_THAT(refusal(dir_ / "int4"),
              HasSubstr("DIR/int4: can't be read together with DIR/a: format: \"int4\" instead of "
                        "\"fp8\""));
  model::SyntheticSpec spec = small_spec();
  spec.seed = 99;
  write(dir_ / "seed", {}, spec);
  EXPECT_THAT(refusal(dir_ / "seed"),
              HasSubstr("DIR/seed: can't be read together with DIR/a: source_fingerprint: "));
  spec.config.hidden_size = 128;
  write(dir_ / "wide", {}, spec);
  EXPECT_EQ(refusal(dir_ / "wide"),
            "DIR/wide: hidden_size of the pack is 128, config.json says 64");
}

}  // namespace
}  // namespace atl::storage
