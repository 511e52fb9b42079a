// The cluster file as plain values: one file for all roles, which every process of a cluster reads.
//
// What a key is called, which values it takes, its default and what it means stand in one table
// (keys.h); the parser, the JSON Schema, the environment's names and the table in docs/cluster.md
// come from that. A value is looked for in this order: flag, environment, file, default. This
// header knows neither YAML nor JSON.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "config/keys.h"
#include "config/settings.h"

namespace atl::config {

// HOST:PORT; an IPv6 host stands in brackets in text and without them here.
struct Address {
  std::string host;
  uint16_t port = 0;

  std::string text() const;
  bool is_loopback() const;  // 127.x.x.x, ::1, localhost
  friend bool operator==(const Address&, const Address&) = default;
};
// kInvalid says what is wrong with the text. Port 0 only where `any_port`.
Result<Address> parse_address(std::string_view text, bool any_port = false);

// What a machine has, as its owner says: for planning ahead, before it is there. 0: not said.
struct MachineConfig {
  uint64_t ram_bytes = 0;
  int cores = 0;
  double memory_bytes_per_second = 0;
  std::vector<double> drive_bytes_per_second;  // of each drive
  double nic_bytes_per_second = 0;
};

// A GPU that is described, not there. 0: not said.
struct DeviceConfig {
  std::string name;
  uint64_t memory_bytes = 0;
  double memory_bytes_per_second = 0;

  bool is_described() const { return memory_bytes > 0 || memory_bytes_per_second > 0; }
};

// What `atoll plan` plans for.
struct PlanConfig {
  bool for_throughput = false;  // of all sequences; else for the latency of one
  int sequences = 1;
  int64_t context = 0;          // tokens of each; 0: coordinator.context
  int64_t prompt = 1024;        // tokens
  std::filesystem::path usage;  // "": none
};

struct NumericsConfig {  // as the options of the same names; "": not said
  std::string format, dense_format, activations, wire, kv;
};

struct CoordinatorConfig {
  std::string name = "coordinator";  // of its certificate
  Address listen;                    // of HTTP
  std::optional<Address> admin;      // of `atoll cluster`
  std::string device = "auto";       // cpu, cuda:N, auto
  int threads = 0;                   // 0: one per core
  std::optional<uint64_t> kv_cache_bytes;
  int64_t context = 0;             // tokens; 0: what model and cache hold
  std::string draft = "off";       // off, mtp, lookup, auto
  int64_t draft_tokens = 8;        // of a request and step
  int64_t rows_max = 512;          // `chunk`: of a step, and of a dispatch
  std::filesystem::path api_keys;  // "": no keys
  std::string model_name;          // "": the directory's
  MachineConfig machine;
  DeviceConfig described_device;  // for planning only
};

enum class Trust : uint8_t { kTrusted, kEncrypted };
struct NetworkConfig {
  Trust trust = Trust::kTrusted;
  std::string transport = "auto";  // auto, shm, tcp
  std::string device;              // of UCX; "": its choice, and lo on one machine
  PortRange ports;                 // where rows are taken over TCP
};

struct SecurityConfig {
  std::filesystem::path keys;         // directory of certificates; "": none
  std::filesystem::path secret_file;  // without keys; always a path
};

struct TimeoutsConfig {
  std::chrono::milliseconds dispatch{};  // silence about a dispatch before others are asked
  std::chrono::milliseconds heartbeat{}, suspect{}, lost{};
  std::chrono::milliseconds grace{};        // a lost node's tiles are planned anew after so long
  std::chrono::milliseconds backoff_max{};  // longest pause before a node is tried again
  std::chrono::milliseconds comeback{};     // a request waits so long when no node is left
};

struct NodeConfig {
  std::string name;
  Address control;                             // port 0: a node that is only planned
  std::filesystem::path model;                 // main directory or pack
  std::vector<std::filesystem::path> stripes;  // further packs, on other drives
  std::optional<uint64_t> ram_bytes;           // budget; none: all its tiles
  int threads = 0;                             // 0: one per core
  std::optional<int> numa_node;
  std::optional<int> tiles;  // of each expert
  double share = 1;          // of the tiles, if nobody's number is given
  std::string device;        // of UCX; "": the network's
  MachineConfig machine;
};

enum class Choice : uint8_t { kAuto, kOn, kOff };
// Of a checked text.
Choice parse_choice(std::string_view text);

struct ClusterConfig {
  std::filesystem::path file;  // absolute
  std::string cluster;
  std::filesystem::path model;
  std::vector<std::filesystem::path> stripes;
  NumericsConfig numerics;
  CoordinatorConfig coordinator;  // that was asked for, or the first
  // Of all: with `coordinators` theirs, in the file's order, else this one's alone.
  std::vector<std::string> coordinator_names;
  NetworkConfig network;
  SecurityConfig security;
  int redundancy = 1;
  Choice hedging = Choice::kAuto;
  double hedge_after = 4;  // times the usual
  Choice balance = Choice::kAuto;
  TimeoutsConfig timeouts;
  PlanConfig plan;
  std::vector<NodeConfig> nodes;  // in the file's order; names and addresses are each other's

  const NodeConfig* node(std::string_view name) const;  // nullptr: there is none
};

// What a file is read for. To plan, nodes need no address, and no keys to know each other by.
enum class Purpose : uint8_t { kServe, kPlan };

// Settings as values, checked against each other. LoadError, one line, says where and what.
//   coordinator  which of several `coordinator` is; "": the first. LoadError if there is no such
ClusterConfig make_cluster_config(const Settings& settings, Purpose purpose = Purpose::kServe,
                                  std::string_view coordinator = "");

// A file read, with what else may say something. LoadError likewise.
ClusterConfig load_cluster_config(const std::filesystem::path& file, const Overrides& overrides);

// What the configuration asks for and this program doesn't do, one sentence each; to be refused
// before anything is started. Empty: all of it can be had.
std::vector<std::string> not_built(const ClusterConfig& config);
// LoadError with the first of these.
void require_built(const ClusterConfig& config);

// Tiles of each node: the numbers given, or by shares, the largest remainders first, and at least
// one for a node with a share, if there are enough. LoadError if the numbers don't sum up.
//   num_tiles  of an expert
std::vector<int> tiles_of_nodes(const ClusterConfig& config, int num_tiles);

}  // namespace atl::config
