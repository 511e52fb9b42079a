// An expert node's place: its drive and name stay, processes in it come and go. A process is what
// `atoll node` makes of the same parts: TileStore, ExpertNode, a thread that serves.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "expert_node/serve.h"
#include "storage/tiles/tile_store.h"
#include "tests/sim/disk.h"
#include "tests/sim/model.h"
#include "tests/sim/network.h"
#include "tests/sim/world.h"

namespace atl::sim {

class SimNode {
 public:
  SimNode(World& world, Network& network, const Model& model, std::string name);
  ~SimNode() { kill(Death::kProcess); }

  const std::string& name() const { return name_; }
  Disk disk;
  std::optional<uint64_t> ram_bytes_max;
  // That a Dispatch takes, beside what is read for it.
  Duration compute_min = std::chrono::microseconds(20),
           compute_max = std::chrono::microseconds(100);
  Duration compute_per_byte{};  // of a Dispatch, beside that
  size_t piece_bytes = 1;       // of answers: a panel
  int slowness = 1;             // times as long
  bool foreign = false;         // the next process has another checkpoint

  void start();
  bool is_running() const { return process_ != nullptr; }
  bool is_foreign() const { return is_running() && process_->foreign; }
  uint64_t life() const { return life_; }  // counts processes, from 1
  // kPower: the machine is gone with it, and nobody answers for it.
  enum class Death : uint8_t { kProcess, kPower };
  void kill(Death death);
  bool is_silent_when_gone() const { return silent_; }
  Machine& machine() const { return *machine_; }
  expert_node::ExpertNode& control() const { return *process_->node; }
  const storage::TileStore& tiles() const { return *process_->tiles; }
  const SimTransport& transport() const { return *process_->transport; }

 private:
  struct Process {
    bool foreign = false;
    std::unique_ptr<SimThreads> threads;
    std::unique_ptr<SimTransport> transport;
    std::unique_ptr<storage::TileStore> tiles;
    std::unique_ptr<expert_node::ExpertNode> node;
  };

  World& world_;
  Network& network_;
  const Model& model_;
  const std::string name_;
  Machine* machine_ = nullptr;  // of the last process
  uint64_t life_ = 0;
  bool silent_ = false;
  std::unique_ptr<Process> process_;
};

}  // namespace atl::sim
