// Control RPC between coordinator and expert nodes: Cap'n Proto over TCP or, with child processes,
// a pair of sockets; schema in control.capnp.
//
// The coordinator dials a node, says hello (protocol version, model, checkpoint and profile
// fingerprint; a mismatch is refused with both values named), gives it a session key and the data
// plane's address, hands it the plan (epoch, tiles), polls its state and at last closes the session
// or stops the node. kj types stay in control.cc; both sides here are plain values.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/cache_stats.h"
#include "base/ids.h"
#include "base/result.h"
#include "transport/data/wire.h"

namespace atl::transport {

// Raised with kWireVersion, too: only the handshake can refuse a peer of another data plane by
// name.
inline constexpr uint32_t kControlVersion = 4;

// Who serves what; compared field by field in the handshake.
struct ModelIdentity {
  std::string model;                   // "deepseek_v3 6 layers, 32 experts, hidden 256"
  std::string checkpoint_fingerprint;  // storage::Checkpoint::fingerprint()
  std::string profile;  // numerics profile: "f32/absorbed/wire-bf16/kv-bf16/experts-fp8"
  friend bool operator==(const ModelIdentity&, const ModelIdentity&) = default;
};

// kInvalid names the first thing that differs with both values; `ours` is the node's.
Status check_identity(const ModelIdentity& ours, const ModelIdentity& theirs);
// kInvalid names both versions. The server asks it before NodeControl::hello().
Status check_control_version(uint32_t theirs);

struct Hello {
  uint32_t version = kControlVersion;
  std::string coordinator;  // name for logs
  ModelIdentity identity;
  WireLimits limits;
  SessionId session;                    // random key, also in every Dispatch
  std::vector<std::byte> data_address;  // of the coordinator's transport
};
struct HelloReply {
  std::string node;
  uint32_t num_threads = 0;
  uint64_t memory_total_bytes = 0;
  std::vector<std::byte> data_address;  // of the node's transport
};

struct Plan {
  Epoch epoch;
  std::vector<TileRange> tiles;  // of every expert of every MoE layer; empty: owns nothing
};

// A node is ready as soon as it can answer. Experts that the plan wants in RAM may load on
// afterwards: bytes_total does not change any more, and bytes_loaded grows until it equals that and
// the node is warm. An expert whose load was given up or is not needed any more counts as loaded.
struct NodeState {
  enum class Phase : uint8_t { kIdle, kLoading, kReady, kFailed };
  Phase phase = Phase::kIdle;
  Epoch epoch;
  uint64_t bytes_loaded = 0, bytes_total = 0;  // read from the checkpoint or pack
  uint64_t resident_bytes = 0;
  std::string error;  // kFailed: one line
};

struct NodeStats {
  uint64_t dispatches = 0;
  uint64_t rows = 0;                     // rows received
  uint64_t expert_rows = 0;              // (row, expert) pairs computed
  uint64_t bytes_in = 0, bytes_out = 0;  // payloads
  uint64_t tiles_computed = 0;
  uint64_t refused = 0;
  double compute_seconds = 0;
  std::string links;       // selected_links() towards this session's coordinator
  ExpertCacheStats cache;  // of the node, over all its sessions
};

// Implemented by the node; called on the control thread, never concurrently. Must return quickly:
// apply_plan starts loading, state() tells how far it is. What the server checked before: version,
// sizes of texts and addresses, limits above zero, tiles ascending and disjoint, and that the
// session was opened by the connection that names it.
class NodeControl {
 public:
  virtual ~NodeControl() = default;
  virtual Result<HelloReply> hello(const Hello& hello) = 0;
  virtual Status apply_plan(SessionId session, const Plan& plan) = 0;
  virtual NodeState state(SessionId session) = 0;
  virtual NodeStats stats(SessionId session) = 0;
  // Also called when the connection that opened the session breaks.
  virtual void close_session(SessionId session) = 0;
  virtual void stop() = 0;
};

// What a coordinator has to know to be spoken to by a node that listens: 32 hexadecimal digits, new
// for every node.
std::string random_secret();

// Serves NodeControl on its own thread until destroyed (not from inside a NodeControl call).
// listen is "host:port", port 0 for any. LoadError if it can't listen. A hello without the secret
// is answered "refused", whatever else is wrong with it, and the log says why. A connection that
// sends garbage, more than 8 MiB at once, no good hello within 10 s or nothing for a minute is
// dropped; the 65th one, too. A connection may have 16 sessions, and stop the node if no other has
// any.
class ControlServer {
 public:
  virtual ~ControlServer() = default;
  virtual uint16_t port() const = 0;
};
std::unique_ptr<ControlServer> serve_control(const std::string& listen, const std::string& secret,
                                             NodeControl& node);
// Serves whoever holds the other end of this connected stream socket, and nobody else: a child and
// its parent. When that connection ends the node is stopped. Owns fd; port() is 0.
std::unique_ptr<ControlServer> serve_control_over(int fd, NodeControl& node);

// The coordinator's side of one node. Blocking calls with a deadline; any thread, several at once.
// Errors: kUnavailable (not reachable, connection lost), kTimeout, kInvalid (refused: the node's
// own words), all naming the node's address.
class NodeClient {
 public:
  virtual ~NodeClient() = default;
  virtual Result<HelloReply> hello(const Hello& hello) = 0;
  virtual Status apply_plan(SessionId session, const Plan& plan) = 0;
  virtual Result<NodeState> state(SessionId session) = 0;
  virtual Result<NodeStats> stats(SessionId session) = 0;
  virtual Status close_session(SessionId session) = 0;
  virtual Status stop() = 0;

  // From here on the node is pinged, each time so long after its last answer; called once.
  virtual void send_heartbeats(std::chrono::milliseconds every) = 0;
  struct Pulse {
    uint64_t heartbeats = 0;  // answered so far
    bool connected = true;    // false: it is gone, and no call will be answered any more
  };
  virtual Pulse pulse() const = 0;  // doesn't block
};
// Connects to "host:port" within `timeout`, which is also the deadline of each later call. A
// refused connection is kUnavailable at once: whether to try again is the caller's decision. The
// secret goes with every hello, in the clear: over loopback only.
Result<std::unique_ptr<NodeClient>> dial_node(const std::string& address, const std::string& secret,
                                              std::chrono::milliseconds timeout);
// The same over a connected stream socket, which it owns; `name` stands for the address in errors.
Result<std::unique_ptr<NodeClient>> control_over(int fd, const std::string& name,
                                                 std::chrono::milliseconds timeout);

}  // namespace atl::transport
