// Moving messages between the coordinator and the expert nodes.
//
// One Transport is one end: it has an address to hand to peers (over the control connection),
// connects to peers' addresses, sends messages and yields events. Implementations: UCX (shared
// memory, TCP, RDMA where there is a NIC), TLS (an encrypted link) and in-process. A message is a
// small header and one payload; it arrives whole or not at all, messages of one peer in any order.
// Completion of a send says nothing of delivery. Both ends connect to each other: what comes from
// an end that isn't connected here is dropped.
//
// One thread owns a Transport; no call is thread-safe and none blocks but wait().
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/memory.h"
#include "base/result.h"
#include "transport/tls/tls_keys.h"

namespace atl::transport {

inline constexpr size_t kHeaderBytesMax = 4096;  // below UCX's limit for active-message headers

// A peer of this transport, from 1 up. Never reused within its life.
struct PeerId {
  uint32_t value = 0;
  friend auto operator<=>(const PeerId&, const PeerId&) = default;
};

// A payload that the transport may still be reading: it keeps a reference until the send is done,
// so an owner with use_count() == 1 may write to the buffer again.
using SharedBuffer = std::shared_ptr<HostBuffer>;

// A received message. Owns its bytes; the payload is 64-byte aligned.
class Message {
 public:
  virtual ~Message() = default;
  virtual std::span<const std::byte> header() const = 0;
  virtual std::span<const std::byte> payload() const = 0;
};

struct Event {
  enum class Kind : uint8_t { kMessage, kPeerLost };
  Kind kind = Kind::kMessage;
  PeerId peer;                       // who sent it, or who is lost
  std::unique_ptr<Message> message;  // kMessage
  Status status;                     // kPeerLost: what the transport says, once per peer
};

class Transport {
 public:
  virtual ~Transport() = default;

  // What a peer needs for connect(). Opaque, below 4 KiB.
  virtual std::vector<std::byte> address() const = 0;

  // `name` stands in errors and logs. kInvalid for an address that isn't one.
  virtual Result<PeerId> connect(std::span<const std::byte> address, const std::string& name) = 0;
  // Frees the peer at once: unfinished sends to it are abandoned and their buffers released, its
  // unread events dropped; the peer sees kPeerLost (over UCX only
  // if anything was exchanged before). A second close does nothing. A lost peer should
  // be closed, too; a new connect() to the same address is a new peer.
  virtual void close(PeerId peer) = 0;

  // Starts a send of header (copied before return, at most kHeaderBytesMax) and the first
  // payload_bytes of payload. kUnavailable if the peer is lost, kOverloaded if too many sends are
  // under way (bounded), with nothing sent.
  virtual Status send(PeerId peer, std::span<const std::byte> header, SharedBuffer payload,
                      size_t payload_bytes) = 0;

  // Moves communication along and returns one event, if there is one.
  virtual std::optional<Event> poll() = 0;

  // Returns when poll() may have something new, or after `timeout`. Spins for a bounded time if
  // this transport was told that it has a core of its own, then sleeps.
  virtual void wait(std::chrono::microseconds timeout) = 0;
  // Ends a wait() in progress or the next one. The only call allowed from another thread.
  virtual void wake() = 0;

  // The links really selected for this peer, such as "posix", "tcp/lo" or "in-process".
  virtual std::string selected_links(PeerId peer) const = 0;
};

// kShm: memory that only processes of this user can open, and no port. kAuto: shared memory on one
// host, TCP between hosts; listens for both.
enum class TransportKind : uint8_t { kAuto, kShm, kTcp };

// TCP ports that an end may listen on, both ends with it; 0 and 0: any.
struct PortRange {
  uint16_t first = 0, last = 0;
};

struct UcxOptions {
  TransportKind kind = TransportKind::kAuto;
  std::string net_device;  // UCX_NET_DEVICES; "" = "lo" for peers on this host
  bool spin = false;       // wait() may spin: this thread has a core of its own
  // Larger incoming messages are refused before memory is taken for them, their peer is lost;
  // 0: 64 MiB.
  size_t message_bytes_max = 0;
  PortRange ports;  // UCX_TCP_PORT_RANGE
};

// Throws LoadError naming what UCX said and what to do. A UCX_* variable that the user set wins.
std::unique_ptr<Transport> make_ucx_transport(const UcxOptions& options);

// The same messages through TLS 1.3, for networks that are not trusted: each connection has
// certificates of both sides, and the name given to connect() is the one that the peer's must have.
// Who listens is dialled, and there is one connection for both directions, so that only nodes need
// an open port. A thread of its own greets: whoever has no certificate costs the owner's thread
// nothing.
struct TlsOptions {
  std::shared_ptr<const TlsKeys> keys;
  // "host:port", port 0 for any of `ports`; "": doesn't listen, connects to ends that do.
  std::string listen;
  PortRange ports;
  // Of an end that listens: the names that may dial it.
  std::vector<std::string> peers = kCoordinatorNames;
  bool spin = false;             // as UcxOptions
  size_t message_bytes_max = 0;  // as UcxOptions
  // Who dialled and has not shaken hands within it is dropped.
  std::chrono::milliseconds handshake_time{10'000};
  // A key encrypts at most so many records of 16 KiB before it is changed. AES-GCM is good for
  // 2^24.5 (RFC 8446, sec. 5.5); 2^22 are 64 GiB.
  uint64_t records_per_key = 1u << 22;
};
// LoadError if it can't listen.
std::unique_ptr<Transport> make_tls_transport(const TlsOptions& options);

// Two ends in one process. `pump` is called by the first end's poll() and wait() so that whoever
// serves the second end can do its work on the same thread.
struct InProcessPair {
  std::unique_ptr<Transport> near_end;
  std::unique_ptr<Transport> far_end;
};
InProcessPair make_in_process_pair(size_t message_bytes_max = 0);  // 0: no limit
// The far end's work, run inside near_end's poll() and wait(); set before the first call. It may
// send as much as it likes in one go: nobody could take any of it before it returns.
void set_in_process_pump(Transport& near_end, std::function<void()> pump);

// UCX takes signals for itself when its library is loaded: SIGHUP would do nothing any more, and a
// crash would print UCX's report in place of a core. Gives them back; before any thread starts.
void release_ucx_signals();

}  // namespace atl::transport
