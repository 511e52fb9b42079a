// Control RPC between coordinator and expert nodes: Cap'n Proto over TCP or, with child processes,
// a pair of sockets; schema in control.capnp.
//
// Between machines the connection is TLS 1.3 with a certificate from either side (ControlSecurity).
// The coordinator dials a node, says hello (protocol version, model, checkpoint and profile
// fingerprint; a mismatch is refused with both values named), gives it a session key and the data
// plane's address, hands it the plan (epoch, tiles), polls its state and at last closes the session
// or stops the node. kj types stay in control.cc; both sides here are plain values.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/cache_stats.h"
#include "base/ids.h"
#include "base/result.h"
#include "base/trace_ring.h"
#include "transport/data/wire.h"
#include "transport/tls/tls_keys.h"

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
  // For logs. A server with keys puts the name of the peer's certificate in its place.
  std::string coordinator;
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
  // To be kept in RAM, of every expert of every MoE layer; empty: nothing.
  std::vector<TileRange> tiles;
  // Of these, those that another node is asked for first: left out if there is no memory for all.
  std::vector<TileRange> standby = {};
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
  std::string error;              // kFailed: one line
  bool standby_left_out = false;  // there was no memory for the first plan's standby tiles
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

// What a node's data plane does with a dispatch, as kinds of its trace's events.
enum class NodeWork : uint8_t {
  kQueue,   // taken from the transport, not begun
  kRead,    // waiting for tiles that are not in RAM
  kGateUp,  // gate and up of what is there
  kDown,
  kSend,      // packing and sending partial rows
  kDispatch,  // all of it: the others lie within
};
inline constexpr size_t kNumNodeWorks = static_cast<size_t>(NodeWork::kDispatch) + 1;
const char* node_work_name(
    NodeWork work);  // "queue", "read", "gate_up", "down", "send", "dispatch"

struct TraceAsk {
  bool on = false;          // whether it records from now on
  uint32_t events_max = 0;  // to be taken; at most kTraceEventsMax are
};
inline constexpr uint32_t kTraceEventsMax = 8192;
struct NodeTrace {
  int64_t now_ns = 0;  // of the node's clock, when it was asked
  std::vector<TraceEvent> events;
  uint64_t lost = 0;  // overwritten since it was asked last
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
  // kUnsupported unless it is a node that traces.
  virtual Result<NodeTrace> trace(SessionId session, const TraceAsk& ask);
  // JSON about the node's machine; what: "doctor" or "probe". kUnsupported: of nothing else.
  virtual Result<std::string> inspect(const std::string& what);
  // Also called when the connection that opened the session breaks.
  virtual void close_session(SessionId session) = 0;
  virtual void stop() = 0;
};

// 32 hexadecimal digits, new for every node.
std::string random_secret();

// How the two sides of a control connection know each other.
struct ControlSecurity {
  // TLS 1.3 with certificates of both sides. Null: in the clear, on loopback only; then a
  // coordinator has to know the node's secret.
  std::shared_ptr<const TlsKeys> keys;
  // With keys: the names that a node's server takes from coordinators.
  std::vector<std::string> coordinators = kCoordinatorNames;
  std::string secret;  // without keys
  // Of a server: who has not shaken hands within it is dropped.
  std::chrono::milliseconds handshake_time{10'000};
};

// True for 127.x.x.x, ::1 and localhost.
bool is_loopback(std::string_view host);

// Serves NodeControl on its own thread until destroyed (not from inside a NodeControl call).
// listen is "host:port", port 0 for any. LoadError if it can't listen, or without keys if the host
// is none of this machine alone. A peer without a good certificate of one of the names is told so
// by TLS and nothing else; a hello without the secret is answered "refused", whatever else is wrong
// with it; the log says why. A connection that sends garbage, more than 8 MiB at once, no handshake
// or no good hello in time (10 s) or nothing for a minute is dropped; the 65th one, too; and the
// oldest of more than 32 that are in their handshake. A connection may have 16 sessions, and stop
// the node if no other has any.
class ControlServer {
 public:
  virtual ~ControlServer() = default;
  virtual uint16_t port() const = 0;
};
std::unique_ptr<ControlServer> serve_control(const std::string& listen,
                                             const ControlSecurity& security, NodeControl& node);
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
  // kUnsupported: an older node, which knows no traces.
  virtual Result<NodeTrace> trace(SessionId session, const TraceAsk& ask);
  // Needs no hello; as NodeControl::inspect().
  virtual Result<std::string> inspect(const std::string& what);
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
// Connects to the node that `name` is and that listens on "host:port", within `timeout`, which is
// also the deadline of each later call. A refused connection is kUnavailable at once: whether to
// try again is the caller's decision. With keys the node's certificate must have the name, and
// kInvalid says which of the two sides refused the other and why; without, the secret goes with
// every hello, in the clear: over loopback only.
//   given_up  null, or set by another thread: then what is under way, connecting or a call, and
//             what follows fails within kGiveUpLook as kUnavailable
Result<std::unique_ptr<NodeClient>> dial_node(
    const std::string& address, const std::string& name, const ControlSecurity& security,
    std::chrono::milliseconds timeout, std::shared_ptr<const std::atomic<bool>> given_up = nullptr);
inline constexpr std::chrono::milliseconds kGiveUpLook{20};
// The same over a connected stream socket, which it owns; `name` stands for the address in errors.
Result<std::unique_ptr<NodeClient>> control_over(int fd, const std::string& name,
                                                 std::chrono::milliseconds timeout);

}  // namespace atl::transport
