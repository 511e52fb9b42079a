// Whether a deployment fits this machine, known before the first byte is loaded: what it will take,
// held against what the kernel says is free. Memory is mapped without being reserved, so that
// nothing else would stop it before the kernel ends a process in the middle of loading.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "coordinator/engine/decode_step.h"
#include "deployment/memory_options.h"
#include "model/open.h"
#include "topology/memory_bounds.h"
#include "topology/placement.h"

namespace atl::deployment {

// Of one process, in bytes.
struct MemoryNeed {
  uint64_t experts = 0;   // slots for tiles, also spare ones, tables, what reading tiles takes
  uint64_t weights = 0;   // all other weights, as they are held
  uint64_t kv_cache = 0;  // filled
  uint64_t buffers = 0;   // of a step and of what is exchanged; windows for reading; the program

  uint64_t total() const { return experts + weights + kv_cache + buffers; }
  MemoryNeed& operator+=(const MemoryNeed& other);
  friend bool operator==(const MemoryNeed&, const MemoryNeed&) = default;
};

struct DeploymentNeed {
  MemoryNeed coordinator;         // without processes for nodes: with the experts
  std::vector<MemoryNeed> nodes;  // of each such process
  MemoryNeed sum() const;
};

// All that decides what a deployment takes.
struct MemoryRequest {
  model::NumericsProfile numerics;  // settled
  topology::Placement placement;
  bool local_node = true;  // the one node lives in the coordinator's process
  int coordinator_threads = 1;
  int node_threads = 1;  // of each node
  int64_t rows_max = 512;
  int64_t cache_tokens = 0;
  coordinator::Prefetch prefetch = coordinator::Prefetch::kOff;
  MemoryOptions memory;
};

// LoadError if the model can't be kept so (open_tiles()).
DeploymentNeed memory_need(const model::OpenedModel& model, const MemoryRequest& request);
// The parts of that: of a process for one node with these tiles, and of the coordinator's without
// experts, whose tensors are at hand. Both with the program.
MemoryNeed node_memory_need(const model::OpenedModel& model, const MemoryRequest& request,
                            const std::vector<int>& tiles);
MemoryNeed coordinator_memory_need(const model::OpenedModel& model,
                                   const model::ModelTensors& tensors,
                                   const MemoryRequest& request);

// How many tiles of every expert a node keeps in RAM that is planned these, ascending; with a
// budget, whatever it is planned. 0: its budget is less than the least.
int room_of_node(const model::OpenedModel& model, const MemoryRequest& request,
                 const std::vector<int>& tiles);

// Program, libraries, tokenizer, thread stacks and the transport's own queues, of one process.
// Measured on x86-64 with the tiny model: 28 MiB a node, 47 MiB a coordinator that serves; a
// vocabulary of 129k tokens takes 42 MiB more.
inline constexpr uint64_t kProgramBytes = uint64_t{96} << 20;

// How a user changes the room of the KV cache.
struct CacheOption {
  std::string bytes_option;  // takes bytes: "--kv-cache"; or
  std::string advice;        // in words: "a smaller --max-tokens"
};

// Of the model's KV cache: one block more than `cache_tokens` need, as the engine takes it.
uint64_t kv_cache_bytes(const model::OpenedModel& model, const model::NumericsProfile& numerics,
                        int64_t cache_tokens);

// nullopt if all bounds are kept; else one line: what is needed and its parts, what is free, what
// would fit.
std::optional<std::string> memory_shortage(const model::OpenedModel& model,
                                           const MemoryRequest& request, const CacheOption& cache,
                                           const std::vector<topology::MemoryBound>& bounds);

// Of `atoll node`, which knows its tiles when a coordinator tells it. For TileStoreOptions::admit.
void refuse_shortage_of_node(const MemoryNeed& need,
                             const std::vector<topology::MemoryBound>& bounds);

}  // namespace atl::deployment
