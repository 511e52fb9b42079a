#include "tests/sim/network.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

namespace atl::sim {
using namespace std::chrono_literals;
namespace {

using transport::Event;
using transport::PeerId;

constexpr size_t kSendsPerPeerMax = 256;  // as UCX's
// How long it takes to notice that the other end is gone.
constexpr Duration kNoticeMin = 100us, kNoticeMax = 5ms;

class SimMessage final : public transport::Message {
 public:
  SimMessage(std::span<const std::byte> header, transport::SharedBuffer payload, size_t bytes,
             std::shared_ptr<void> sent)
      : header_(header.begin(), header.end()),
        payload_(std::move(payload)),
        bytes_(bytes),
        sent_(std::move(sent)) {}
  std::span<const std::byte> header() const override { return header_; }
  std::span<const std::byte> payload() const override {
    return {payload_ ? payload_->data() : nullptr, bytes_};
  }

 private:
  std::vector<std::byte> header_;
  transport::SharedBuffer payload_;
  size_t bytes_;
  std::shared_ptr<void> sent_;
};

}  // namespace

void Network::deliver(Plane plane, const std::string& from, const std::string& to,
                      std::function<void()> arrive, std::shared_ptr<Time> last) {
  const Direction& direction = directions_[{from, to}];
  const bool closed = plane == Plane::kData ? direction.data_closed : direction.control_closed;
  if (closed) {
    if (plane == Plane::kData && direction.drops) {
      ++num_lost;
      return;
    }
    ++num_held;
    held_.push_back({plane, from, to, std::move(arrive), std::move(last)});
    return;
  }
  Draw& draw = world_.draw();
  Time time = world_.now() + draw.between(direction.latency_min, direction.latency_max) +
              draw.between(direction.extra / 8, direction.extra);
  if (plane == Plane::kData) {
    if (draw.chance(direction.loss)) {
      ++num_lost;
      return;
    }
    if (draw.chance(direction.late)) time += draw.between(0ns, direction.lateness);
  }
  if (last != nullptr) time = *last = std::max(time, *last + 1ns);
  world_.at(time, std::move(arrive));
}

void Network::reopen() {
  for (Held& held : std::exchange(held_, {})) {
    deliver(held.plane, held.from, held.to, std::move(held.arrive), std::move(held.last));
  }
}

void Network::heal() {
  for (auto& [machines, direction] : directions_) {
    direction.loss = direction.duplicate = direction.late = 0;
    direction.extra = 0ns;
    direction.data_closed = direction.control_closed = false;
  }
  reopen();
}

// ---- One end -----------------------------------------------------------------------------------

SimTransport::SimTransport(Network& network, Machine& machine)
    : network_(network), world_(network.world_), machine_(machine), end_(network.next_end_++) {
  network_.ends_[end_] = this;
}

// Whoever is connected to it will notice.
SimTransport::~SimTransport() {
  *alive_ = false;
  network_.ends_.erase(end_);
  if (vanishes_) return;
  for (const auto& [id, peer] : peers_) {
    const auto other = network_.ends_.find(peer.end);
    if (!peer.open || other == network_.ends_.end()) continue;
    other->second->lose(*this, world_.now(), "it has ended");
  }
}

std::vector<std::byte> SimTransport::address() const {
  std::vector<std::byte> bytes(sizeof(end_));
  std::memcpy(bytes.data(), &end_, sizeof(end_));
  return bytes;
}

Result<PeerId> SimTransport::connect(std::span<const std::byte> address, const std::string& name) {
  uint64_t end = 0;
  if (address.size() != sizeof(end)) return Error{ErrorCode::kInvalid, name + ": is no address"};
  std::memcpy(&end, address.data(), sizeof(end));
  if (open_peer_of(end) != nullptr) {
    return Error{ErrorCode::kInvalid, name + ": transport address: is connected already"};
  }
  if (!network_.ends_.contains(end)) {
    return Error{ErrorCode::kUnavailable, fmt::format("connect {}: its process has ended", name)};
  }
  const PeerId id{next_peer_++};
  peers_[id.value] = {end, name, world_.now(), true, false, 0, 0};
  world_.trace(
      [&] { return fmt::format("{} connects {} as {}", machine_.name(), name, id.value); });
  return id;
}

SimTransport::Peer* SimTransport::open_peer_of(uint64_t end) {
  for (auto& [id, peer] : peers_) {
    if (peer.open && peer.end == end) return &peer;
  }
  return nullptr;
}

void SimTransport::close(PeerId id) {
  const auto found = peers_.find(id.value);
  if (found == peers_.end() || !found->second.open) return;
  found->second.open = false;
  std::erase_if(inbox_, [&](const Event& event) { return event.peer == id; });
  world_.trace([&] {
    return fmt::format("{} closes {} ({})", machine_.name(), found->second.name, id.value);
  });
  const auto other = network_.ends_.find(found->second.end);
  if (other != network_.ends_.end()) {
    other->second->lose(*this, world_.now(), "it closed the connection");
  }
}

// The other end is gone, or was closed there at this time: what was connected before is lost when
// that is noticed, if it is.
void SimTransport::lose(const SimTransport& other, Time closed, const std::string& why) {
  const uint64_t end = other.end_;
  const Peer* connected = open_peer_of(end);
  if (connected == nullptr) return;
  const auto notice = [this, alive = alive_, end, closed, why] {
    if (!*alive) return;
    Peer* peer = open_peer_of(end);
    if (peer == nullptr || peer->since > closed || peer->lost) return;
    peer->lost = true;
    Event event;
    event.kind = Event::Kind::kPeerLost;
    for (const auto& [id, candidate] : peers_) {
      if (&candidate == peer) event.peer = PeerId{id};
    }
    event.status = Error{ErrorCode::kUnavailable, fmt::format("lost {}: {}", peer->name, why)};
    inbox_.push_back(std::move(event));
    notify();
  };
  const std::string &from = other.machine_.name(), &to = machine_.name();
  const Direction& direction = network_.directions_[{from, to}];
  if (!direction.data_closed) {
    world_.after(world_.draw().between(kNoticeMin, kNoticeMax), notice);
  } else if (!direction.drops) {
    network_.held_.push_back({Network::Plane::kData, from, to, notice, nullptr});
  }
}

Status SimTransport::send(PeerId id, std::span<const std::byte> header,
                          transport::SharedBuffer payload, size_t payload_bytes) {
  CHECK_LE(header.size(), transport::kHeaderBytesMax);
  CHECK_LE(payload_bytes, payload ? payload->size() : 0);
  const auto found = peers_.find(id.value);
  const bool dead = machine_.is_dead();  // its objects are let go of; nobody sends for it
  if (dead || found == peers_.end() || !found->second.open || found->second.lost) {
    return Error{ErrorCode::kUnavailable, "send: the peer is lost or closed"};
  }
  Peer& peer = found->second;
  if (peer.under_way >= kSendsPerPeerMax) {
    return Error{ErrorCode::kOverloaded,
                 fmt::format("send to {}: {} sends are under way", peer.name, peer.under_way)};
  }
  const auto to = network_.ends_.find(peer.end);
  if (to == network_.ends_.end()) return {};  // nobody has noticed yet
  ++peer.under_way;
  peer.bytes_under_way += payload_bytes;
  bytes_under_way_max_ = std::max(bytes_under_way_max_, peer.bytes_under_way);
  const std::string& name = to->second->machine_.name();
  const Direction& direction = network_.directions_[{machine_.name(), name}];
  const bool twice = world_.draw().chance(direction.duplicate);
  network_.num_doubled += twice;
  // It is under way until the receiver drops it, or it is lost.
  const std::shared_ptr<void> sent(
      nullptr, [this, alive = alive_, peer_id = id.value, payload_bytes](std::nullptr_t) {
        if (!*alive) return;
        Peer& peer_of = peers_.at(peer_id);
        --peer_of.under_way;
        peer_of.bytes_under_way -= payload_bytes;
      });
  const auto copy = std::make_shared<std::vector<std::byte>>(header.begin(), header.end());
  for (int i = 0; i < 1 + twice; ++i) {
    network_.deliver(Network::Plane::kData, machine_.name(), name,
                     [sent, copy, payload, payload_bytes, from = end_, network = &network_,
                      receiver = peer.end] {
                       const auto end = network->ends_.find(receiver);
                       if (end == network->ends_.end()) return;
                       end->second->arrive(
                           from, std::make_unique<SimMessage>(*copy, payload, payload_bytes, sent));
                     });
  }
  return {};
}

void SimTransport::arrive(uint64_t from_end, std::unique_ptr<transport::Message> message) {
  for (const auto& [id, peer] : peers_) {
    if (!peer.open || peer.lost || peer.end != from_end) continue;
    Event event;
    event.peer = PeerId{id};
    event.message = std::move(message);
    inbox_.push_back(std::move(event));
    inbox_max_ = std::max(inbox_max_, inbox_.size());
    notify();
    return;
  }
  // A stranger's.
}

std::optional<Event> SimTransport::poll() {
  if (inbox_.empty()) return std::nullopt;
  if (cost && inbox_.front().kind == Event::Kind::kMessage) {
    const Duration time = cost(*inbox_.front().message);
    if (time > 0ns) world_.sleep(time);
    if (inbox_.empty()) return std::nullopt;
  }
  Event event = std::move(inbox_.front());
  inbox_.pop_front();
  return event;
}

void SimTransport::notify() {
  if (waiting_ != nullptr) world_.wake(*waiting_, ticket_);
}

void SimTransport::wait(std::chrono::microseconds timeout) {
  const Time until = world_.now() + timeout;
  while (inbox_.empty() && !woken_ && world_.now() < until) {
    waiting_ = world_.current();
    ticket_ = world_.next_ticket();
    world_.park(until);
    waiting_ = nullptr;
  }
  woken_ = false;
}

void SimTransport::wake() {
  woken_ = true;
  notify();
}

}  // namespace atl::sim
