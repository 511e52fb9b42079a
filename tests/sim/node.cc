#include "tests/sim/node.h"

#include <fmt/format.h>

#include <utility>

namespace atl::sim {
using namespace std::chrono_literals;

SimNode::SimNode(World& world, Network& network, const Model& model, std::string name)
    : world_(world), network_(network), model_(model), name_(std::move(name)) {
  disk.image = &model.image();
}

void SimNode::start() {
  CHECK(!process_);
  ++life_;
  silent_ = false;
  world_.trace([&] { return fmt::format("{} starts, life {}", name_, life_); });
  machine_ = &world_.add_machine(name_);
  process_ = std::make_unique<Process>();
  Process& p = *process_;
  p.threads = std::make_unique<SimThreads>(world_, *machine_);
  p.transport = std::make_unique<SimTransport>(network_, *machine_);
  p.transport->cost = [this](const transport::Message& message) {
    const auto bytes = static_cast<int64_t>(message.payload().size());
    if (bytes == 0) return 0ns;
    return slowness * world_.draw().between(compute_min, compute_max) + bytes * compute_per_byte;
  };
  storage::TileStoreOptions options;
  options.ram_bytes_max = ram_bytes_max;
  options.clock = &world_;
  options.threads = p.threads.get();
  options.reader.num_threads = 0;  // none that back memory ahead
  options.reader.make_queue = [this](storage::ExtentReader&, std::vector<std::filesystem::path>,
                                     const storage::ExtentQueueOptions&) {
    return std::make_unique<SimQueue>(world_, *machine_, disk);
  };
  p.tiles = std::make_unique<storage::TileStore>(model_.pack(), model_.catalog(),
                                                 storage::HeldFormat{}, options);
  expert_node::NodeOptions node;
  node.name = name_;
  node.identity = model_.identity();
  if (foreign) node.identity.checkpoint_fingerprint += "0";
  p.foreign = foreign;
  node.rows_max = kRowsMax;
  node.piece_bytes = piece_bytes;
  node.clock = &world_;
  node.threads = p.threads.get();
  p.node = std::make_unique<expert_node::ExpertNode>(node, model_.team(), *p.tiles, *p.transport);
  world_.start(*machine_, [this, life = life_] {
    process_->node->serve_until_stopped();
    // It was told to stop: its process ends when this fiber has.
    world_.after(0ns, [this, life] {
      if (life_ == life) kill(Death::kProcess);
    });
  });
}

void SimNode::kill(Death death) {
  if (!process_) return;
  silent_ = death == Death::kPower;
  if (silent_) process_->transport->vanish();
  machine_->kill();
  const std::unique_ptr<Process> gone = std::move(process_);
  // In the order in which `atoll node` lets go of them.
  gone->node.reset();
  gone->tiles.reset();
  gone->transport.reset();
}

}  // namespace atl::sim
