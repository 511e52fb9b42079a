// A source of tiles whose reads a test ends itself, to show what happens while they are under way.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "storage/tiles/expert_reader.h"
#include "storage/checkpoint/matrix_source.h"
#include "storage/tiles/tile_source.h"

namespace atl::test {

constexpr int kManualExperts = 20;
constexpr int kManualTiles = 2;

// Reads that a test ends itself. Every tile is filled with its expert's number + 1.
struct ManualDrive {
  struct Read {
    uint64_t ticket;
    int64_t expert;
    storage::ReadUrgency urgency;
    std::vector<storage::TileTarget> targets;
    storage::ExpertReader::Done done;
  };
  std::mutex mutex;
  std::condition_variable started;
  std::deque<Read> reads;
  std::vector<int64_t> order;  // of all experts that were started
  uint64_t raised = 0;
  bool automatic = false;  // ends each read at once, on a thread of its own
  std::vector<std::thread> threads;

  static void end(const Read& read, const Status& status) {
    for (size_t i = 0; i < read.targets.size(); ++i) {
      std::memset(read.targets[i].data, static_cast<int>(read.expert) + 1,
                  read.targets[i].layout->bytes);
      read.done(i, status);
    }
  }
  // Ends the read of this expert.
  void finish(int64_t expert, const Status& status = {}) {
    Read read;
    {
      const std::lock_guard lock(mutex);
      const auto found = find(expert);
      ASSERT_NE(found, reads.end()) << "expert " << expert << " is not being read";
      read = *found;
      reads.erase(found);
    }
    end(read, status);
  }
  // Ends all reads, and later ones at once.
  void finish_all() {
    std::deque<Read> rest;
    {
      const std::lock_guard lock(mutex);
      automatic = true;
      rest.swap(reads);
    }
    for (const Read& read : rest) end(read, {});
  }
  // Returns when this expert is being read.
  void wait_for(int64_t expert) {
    std::unique_lock lock(mutex);
    const bool found = started.wait_for(lock, std::chrono::seconds(30),
                                        [&] { return find(expert) != reads.end(); });
    EXPECT_TRUE(found) << "expert " << expert << " is not being read";
  }
  std::vector<int64_t> under_way() {
    const std::lock_guard lock(mutex);
    std::vector<int64_t> experts;
    for (const Read& read : reads) experts.push_back(read.expert);
    return experts;
  }

 private:
  std::deque<Read>::iterator find(int64_t expert) {
    return std::find_if(reads.begin(), reads.end(),
                        [&](const Read& r) { return r.expert == expert; });
  }
};

class ManualReader final : public storage::ExpertReader {
 public:
  explicit ManualReader(ManualDrive& drive) : drive_(drive) {}
  ~ManualReader() override {
    for (std::thread& thread : drive_.threads) thread.join();
    drive_.threads.clear();
  }
  uint64_t start(size_t, int64_t expert, std::vector<storage::TileTarget> targets,
                 storage::ReadUrgency urgency, Done done) override {
    const std::lock_guard lock(drive_.mutex);
    drive_.order.push_back(expert);
    ManualDrive::Read read{drive_.order.size(), expert, urgency, std::move(targets),
                           std::move(done)};
    if (drive_.automatic) {
      drive_.threads.emplace_back([read] { ManualDrive::end(read, {}); });
    } else {
      drive_.reads.push_back(std::move(read));
      drive_.started.notify_all();
    }
    return drive_.order.size();
  }
  void raise(uint64_t ticket) override { drive_.raised = ticket; }
  void use_memory(std::span<std::byte>) override {}
  std::string describe() const override { return "hand"; }
  uint64_t memory_bytes() const override { return 0; }
  uint64_t tiles_reread() const override { return 0; }

 private:
  ManualDrive& drive_;
};

// FP32 tiles of one layer.
class ManualTiles final : public storage::TileSource {
 public:
  ManualTiles(ManualDrive& drive, const storage::ExpertCatalog& catalog) : drive_(drive) {
    for (int tile = 0; tile < kManualTiles; ++tile) {
      layouts_.push_back(kernels::tile_layout(kernels::WeightFormat::kF32, catalog.hidden_size,
                                              catalog.moe_intermediate_size, tile));
    }
  }
  static storage::ExpertCatalog catalog() {
    storage::ExpertCatalog catalog;
    catalog.hidden_size = 16;
    catalog.moe_intermediate_size = 4 * 16;  // four tiles of 16; two are enough here
    catalog.n_routed_experts = kManualExperts;
    catalog.num_experts_per_tok = 3;
    catalog.num_layers = 2;
    catalog.moe_layers = {1};
    return catalog;
  }
  std::span<const kernels::TileLayout> layouts() const override { return layouts_; }
  Status has(size_t, int) const override { return {}; }
  uint64_t read_bytes(std::span<const int> tiles) const override {
    return kManualExperts * tiles.size() * layouts_[0].bytes;
  }
  bool reads_tiles_alone() const override { return true; }
  std::unique_ptr<storage::ExpertReader> make_reader(const storage::ReaderOptions&) const override {
    return std::make_unique<ManualReader>(drive_);
  }
  uint64_t memory_bytes(const storage::ReaderOptions&) const override { return 0; }

 private:
  ManualDrive& drive_;
  std::vector<kernels::TileLayout> layouts_;
};

}  // namespace atl::test
