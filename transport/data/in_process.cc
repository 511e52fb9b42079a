// Two transport ends joined by two queues. A payload travels by reference: the receiver reads the
// sender's buffer, which stays referenced until the message is dropped.
#include <fmt/core.h>

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <mutex>

#include "transport/data/end_address.h"
#include "transport/data/transport.h"

namespace atl::transport {

namespace {

using Clock = std::chrono::steady_clock;

// As many as a UCX peer may have under way.
constexpr size_t kQueuedMax = 256;
// How often wait() runs the pump while nothing arrives: the far end may be waiting for a disk.
constexpr std::chrono::milliseconds kPumpInterval{1};

class BorrowedMessage final : public Message {
 public:
  BorrowedMessage(std::span<const std::byte> header, SharedBuffer payload, size_t payload_bytes)
      : header_(header.begin(), header.end()),
        payload_(std::move(payload)),
        payload_bytes_(payload_bytes) {}
  std::span<const std::byte> header() const override { return header_; }
  std::span<const std::byte> payload() const override {
    return {payload_ ? payload_->data() : nullptr, payload_bytes_};
  }

 private:
  std::vector<std::byte> header_;
  SharedBuffer payload_;
  size_t payload_bytes_;
};

// What the two ends share. One mutex: the in-process path is about being the same, not about
// nanoseconds.
struct Side {
  uint64_t end_id = random_end_id();
  bool alive = true;
  uint32_t num_connects = 0;  // the peer id of the latest connection
  bool connected = false;     // this side sends to the other and takes its messages
  bool lost = false;          // connected, but the other side has gone
  bool woken = false;
  bool has_pump = false;
  std::string peer_name;
  std::deque<Event> inbox;
  std::condition_variable changed;
};
struct Shared {
  std::mutex mutex;
  Side sides[2];
  size_t message_bytes_max = 0;  // 0: none
};

class InProcessEnd final : public Transport {
 public:
  InProcessEnd(std::shared_ptr<Shared> shared, int index)
      : shared_(std::move(shared)),
        own_(shared_->sides[index]),
        other_(shared_->sides[1 - index]) {}
  ~InProcessEnd() override;

  std::vector<std::byte> address() const override {
    return encode_address({EndAddress::Kind::kInProcess, own_.end_id, {}, {}});
  }
  Result<PeerId> connect(std::span<const std::byte> address, const std::string& name) override;
  void close(PeerId peer) override;
  Status send(PeerId peer, std::span<const std::byte> header, SharedBuffer payload,
              size_t payload_bytes) override;
  std::optional<Event> poll() override;
  void wait(std::chrono::microseconds timeout) override;
  void wake() override;
  std::string selected_links(PeerId) const override { return "in-process"; }

  void set_pump(std::function<void()> pump) {
    pump_ = std::move(pump);
    own_.has_pump = true;
  }

 private:
  void disconnect();  // with the mutex held
  static void lose_peer(Side& side, ErrorCode code, const std::string& reason);
  bool is_current(PeerId peer) const {
    CHECK_GE(peer.value, 1u);
    CHECK_LE(peer.value, own_.num_connects);
    return peer.value == own_.num_connects && own_.connected;
  }

  std::shared_ptr<Shared> shared_;
  Side& own_;
  Side& other_;
  std::function<void()> pump_;
};

InProcessEnd::~InProcessEnd() {
  std::lock_guard lock(shared_->mutex);
  own_.alive = false;
  disconnect();
}

Result<PeerId> InProcessEnd::connect(std::span<const std::byte> bytes, const std::string& name) {
  auto address = decode_address(bytes, EndAddress::Kind::kInProcess);
  if (!address) return Error{address.error().code, name + ": " + address.error().message};
  std::lock_guard lock(shared_->mutex);
  if (address->end_id != other_.end_id)
    return Error{ErrorCode::kInvalid,
                 name + ": transport address: is not the other end of this in-process pair"};
  if (own_.connected && !own_.lost)
    return Error{ErrorCode::kInvalid, name + ": transport address: is connected already"};
  if (!other_.alive)
    return Error{ErrorCode::kUnavailable, fmt::format("connect {}: the other end is gone", name)};
  own_.connected = true;
  own_.lost = false;
  own_.peer_name = name;
  return PeerId{++own_.num_connects};
}

void InProcessEnd::lose_peer(Side& side, ErrorCode code, const std::string& reason) {
  if (!side.connected || side.lost) return;
  side.lost = true;
  Error error{code, fmt::format("lost {}: {}", side.peer_name, reason)};
  side.inbox.push_back(
      {Event::Kind::kPeerLost, PeerId{side.num_connects}, nullptr, std::move(error)});
  side.changed.notify_all();
}

void InProcessEnd::disconnect() {
  // Messages that are still queued die with the connection on both sides: the ones to the other
  // side release their buffers, the ones to us have nobody to read them.
  const auto is_message = [](const Event& event) { return event.kind == Event::Kind::kMessage; };
  std::erase_if(other_.inbox, is_message);
  own_.inbox.clear();
  own_.connected = false;
  lose_peer(other_, ErrorCode::kUnavailable, "it closed the connection");
}

void InProcessEnd::close(PeerId peer) {
  std::lock_guard lock(shared_->mutex);
  if (is_current(peer)) disconnect();
}

Status InProcessEnd::send(PeerId peer, std::span<const std::byte> header, SharedBuffer payload,
                          size_t payload_bytes) {
  CHECK_LE(header.size(), kHeaderBytesMax);
  CHECK_LE(payload_bytes, payload ? payload->size() : 0);
  std::lock_guard lock(shared_->mutex);
  if (!is_current(peer))
    return Error{ErrorCode::kUnavailable, fmt::format("send to {}: it was closed", own_.peer_name)};
  if (own_.lost)
    return Error{ErrorCode::kUnavailable, fmt::format("send to {}: it is lost", own_.peer_name)};
  // A pump's end can't wait for room: who makes it is the thread that it runs on.
  if (other_.inbox.size() >= kQueuedMax && !other_.has_pump)
    return Error{ErrorCode::kOverloaded, fmt::format("send to {}: {} sends are under way",
                                                     own_.peer_name, other_.inbox.size())};
  if (!other_.connected || other_.lost) return {};  // a stranger to it: dropped there
  if (shared_->message_bytes_max > 0 && payload_bytes > shared_->message_bytes_max) {
    lose_peer(other_, ErrorCode::kInvalid,
              fmt::format("it sent a message of {} bytes, at most {} are allowed", payload_bytes,
                          shared_->message_bytes_max));
    lose_peer(own_, ErrorCode::kUnavailable, "it closed the connection");
    return {};
  }
  other_.inbox.push_back(
      {Event::Kind::kMessage,
       PeerId{other_.num_connects},
       std::make_unique<BorrowedMessage>(header, std::move(payload), payload_bytes),
       {}});
  other_.changed.notify_all();
  return {};
}

std::optional<Event> InProcessEnd::poll() {
  if (pump_) pump_();
  std::lock_guard lock(shared_->mutex);
  if (own_.inbox.empty()) return std::nullopt;
  Event event = std::move(own_.inbox.front());
  own_.inbox.pop_front();
  return event;
}

void InProcessEnd::wait(std::chrono::microseconds timeout) {
  const auto deadline = Clock::now() + timeout;
  for (;;) {
    if (pump_) pump_();
    std::unique_lock lock(shared_->mutex);
    const auto now = Clock::now();
    const auto slice = pump_ ? std::min(deadline, now + kPumpInterval) : deadline;
    own_.changed.wait_until(lock, slice, [this] { return own_.woken || !own_.inbox.empty(); });
    const bool done = own_.woken || !own_.inbox.empty() || Clock::now() >= deadline;
    own_.woken = false;
    if (done) return;
  }
}

void InProcessEnd::wake() {
  std::lock_guard lock(shared_->mutex);
  own_.woken = true;
  own_.changed.notify_all();
}

}  // namespace

InProcessPair make_in_process_pair(size_t message_bytes_max) {
  auto shared = std::make_shared<Shared>();
  shared->message_bytes_max = message_bytes_max;
  return {std::make_unique<InProcessEnd>(shared, 0), std::make_unique<InProcessEnd>(shared, 1)};
}

void set_in_process_pump(Transport& near_end, std::function<void()> pump) {
  auto* end = dynamic_cast<InProcessEnd*>(&near_end);
  CHECK(end != nullptr);
  end->set_pump(std::move(pump));
}

}  // namespace atl::transport
