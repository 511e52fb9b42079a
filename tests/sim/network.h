// Links between machines, and what goes over them: data (an implementation of transport::Transport)
// and the calls of control connections.
//
// Each pair of machines has two directions, each with a latency of its own and faults that come and
// go: messages that are lost (data; a control connection sends them again, which takes as long as
// the fault), that come twice or late, or a direction through which nothing comes. What is sent
// into a closed direction waits there, as in a TCP connection that is not given up, or is lost.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tests/sim/world.h"
#include "transport/data/transport.h"

namespace atl::sim {

// One direction of a link.
struct Direction {
  Duration latency_min = std::chrono::microseconds(100),
           latency_max = std::chrono::microseconds(200);
  Duration extra = Duration(0);  // at most so much more, while the link is slow
  double loss = 0;               // of data messages
  double duplicate = 0;          // likewise
  double late = 0;               // likewise: takes `lateness` longer
  Duration lateness = Duration(0);
  bool data_closed = false, control_closed = false;
  bool drops = false;  // what is sent while it is closed is lost, not late; data only
};

class SimTransport;

class Network {
 public:
  explicit Network(World& world) : world_(world) {}

  // Machines by name.
  Direction& direction(const std::string& from, const std::string& to) {
    return directions_[{from, to}];
  }
  // Everything that waits in a direction that is open again goes on.
  void reopen();
  // Of all directions.
  void heal();

  enum class Plane : uint8_t { kData, kControl };
  // Calls `arrive` when a message sent now arrives. kControl: `last` is the time of the message
  // before it on its connection, which it doesn't overtake.
  void deliver(Plane plane, const std::string& from, const std::string& to,
               std::function<void()> arrive, std::shared_ptr<Time> last = nullptr);

  uint64_t num_lost = 0, num_doubled = 0, num_held = 0;

 private:
  friend class SimTransport;
  struct Held {
    Plane plane;
    std::string from, to;
    std::function<void()> arrive;
    std::shared_ptr<Time> last;
  };

  World& world_;
  std::map<std::pair<std::string, std::string>, Direction> directions_;
  std::vector<Held> held_;
  std::map<uint64_t, SimTransport*> ends_;
  uint64_t next_end_ = 1;
};

// One end on one machine. As over UCX, an end has at most one open peer for each other end, and a
// message is whoever's is the peer of its sender's end when it arrives.
class SimTransport final : public transport::Transport {
 public:
  SimTransport(Network& network, Machine& machine);
  ~SimTransport() override;

  std::vector<std::byte> address() const override;
  Result<transport::PeerId> connect(std::span<const std::byte> address,
                                    const std::string& name) override;
  void close(transport::PeerId peer) override;
  Status send(transport::PeerId peer, std::span<const std::byte> header,
              transport::SharedBuffer payload, size_t payload_bytes) override;
  std::optional<transport::Event> poll() override;
  void wait(std::chrono::microseconds timeout) override;
  void wake() override;
  std::string selected_links(transport::PeerId) const override { return "simulated"; }

  // What a message costs the thread that takes it; 0: nothing.
  std::function<Duration(const transport::Message&)> cost;
  // Its machine's power fails: nobody is told when this goes.
  void vanish() { vanishes_ = true; }
  size_t bytes_under_way_max() const { return bytes_under_way_max_; }
  size_t inbox_max() const { return inbox_max_; }

 private:
  friend class Network;
  struct Peer {
    uint64_t end = 0;
    std::string name;
    Time since;
    bool open = true, lost = false;
    size_t under_way = 0;
    size_t bytes_under_way = 0;
  };
  Peer* open_peer_of(uint64_t end);
  void lose(const SimTransport& other, Time closed, const std::string& why);
  void arrive(uint64_t from_end, std::unique_ptr<transport::Message> message);
  void notify();

  Network& network_;
  World& world_;
  Machine& machine_;
  const uint64_t end_;
  // Outlives this: what is under way asks whether it is still there.
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
  std::map<uint32_t, Peer> peers_;
  uint32_t next_peer_ = 1;
  std::deque<transport::Event> inbox_;
  bool woken_ = false, vanishes_ = false;
  Fiber* waiting_ = nullptr;
  uint64_t ticket_ = 0;
  size_t bytes_under_way_max_ = 0, inbox_max_ = 0;
};

}  // namespace atl::sim
