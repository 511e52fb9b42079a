// A drive that holds the world's pack: reads take time, fail, or bring other bytes.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "storage/io/extent_queue.h"
#include "tests/sim/world.h"

namespace atl::sim {

// The files of a pack as they lie on every drive.
using PackImage = std::vector<std::string>;

// What a node's drive is like; outlives its processes.
struct Disk {
  const PackImage* image = nullptr;
  Duration latency_min = std::chrono::microseconds(50),
           latency_max = std::chrono::microseconds(200);
  int slowness = 1;                               // times the latency
  double eio = 0;                                 // of reads: an error of the system
  double flip = 0;                                // of reads: a bit is another one
  std::set<std::pair<size_t, uint64_t>> damaged;  // file and offset: what lies there is wrong
  std::set<std::pair<size_t, uint64_t>> unreadable;
  uint64_t num_eio = 0, num_flipped = 0;
};

// Reads one after the other.
class SimQueue final : public storage::ExtentQueue {
 public:
  SimQueue(World& world, Machine& machine, Disk& disk)
      : world_(world), machine_(machine), disk_(disk) {}
  ~SimQueue() override { stop(); }
  void use_memory(std::span<std::byte>) override {}
  uint64_t start(size_t file, std::vector<storage::ExtentPart> parts, storage::ReadUrgency urgency,
                 Done done) override;
  void raise(uint64_t) override {}
  void stop() override { *alive_ = false; }
  std::string describe() const override { return "simulated"; }
  uint64_t memory_bytes() const override { return 0; }

 private:
  World& world_;
  Machine& machine_;
  Disk& disk_;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
  Time busy_until_{};
  uint64_t last_ticket_ = 0;
};

}  // namespace atl::sim
