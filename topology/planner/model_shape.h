// What a model costs, as numbers: what every step reads and computes, and what processes take.
//
// The planner knows neither tensors nor formats of files; whoever opens a model fills this in. All
// plain values.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace atl::topology {

// How weights are held and what is done with the rows: one speed each.
enum class Kernel : uint8_t { kF32, kBf16, kFp8, kInt4, kInt4I8, kInt8I8 };
inline constexpr int kNumKernels = 6;
std::string_view to_string(Kernel kernel);  // "fp8", "int4-i8": as `atoll bench kernels` calls it

// Matrices that rows go through together.
struct Work {
  double weights = 0;
  double bytes = 0;  // as they lie in memory, scales included
  Kernel kernel = Kernel::kBf16;
};

// How often experts are chosen. Of (layer, expert) pairs that are chosen alike, as many as `count`.
struct UsageClass {
  double probability = 0;  // that a token chooses it
  double count = 0;        // such pairs, over all MoE layers
};

struct ModelShape {
  // Of one layer each.
  int dense_layers = 0, moe_layers = 0;
  Work projections, absorbed;  // attention: q_a, q_b, kv_a, o; kv_b, head by head
  Work kv_a;                   // of the projections, what the cache's entries are made with
  Work router, shared;         // of an MoE layer
  Work dense_ffn;              // of a dense layer
  Work head;                   // of the model
  Work expert;                 // one routed expert
  double heads = 0, kv_lora_rank = 0, rope_dim = 0;
  double cache_entry_bytes = 0;  // of a position in one layer
  double hidden = 0, wire_value_bytes = 2;
  int n_routed_experts = 0, num_experts_per_tok = 0;
  int num_tiles = 0;                // of an expert
  double tile_bytes = 0;            // as it lies on a drive, the largest
  std::vector<UsageClass> classes;  // empty: all experts alike

  // Memory, in bytes.
  // [tiles, 0 to num_tiles] RAM of a node's process that keeps so many of each expert, with what it
  // computes and reads with; and the least that it runs with.
  std::vector<uint64_t> node_bytes;
  uint64_t node_bytes_min = 0;
  uint64_t program_bytes = 0;      // of these and of coordinator_bytes: program and libraries
  uint64_t coordinator_bytes = 0;  // RAM of its process; without experts
  uint64_t kv_cache_bytes = 0;     // of it
  uint64_t device_bytes = 0;       // of a GPU's memory, if it computes there; 0: it can't
  std::vector<uint64_t> node_read_bytes;  // [tiles] from drives, at load
  uint64_t coordinator_read_bytes = 0;

  int layers() const { return dense_layers + moe_layers; }
};

// Expected distinct experts of a layer that `rows` tokens choose: sum over experts of
// 1 - (1 - p)^rows; and of those, how many are not among the share `resident` of all (layer,
// expert) pairs that is used most.
struct DistinctExperts {
  double all = 0, missing = 0;
  double hit_rate() const { return all > 0 ? 1 - missing / all : 1; }
};
DistinctExperts distinct_experts(const ModelShape& model, double rows, double resident);

}  // namespace atl::topology
