// What a node's cache of experts did; told by the node, shown by the coordinator.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

namespace atl {

// An expert counts once for each Dispatch that names it, however many rows chose it.
struct ExpertCacheStats {
  static constexpr size_t kLatencyBuckets = 24;

  uint64_t slot_bytes = 0;  // one tile
  uint64_t slots = 0, slots_used = 0;
  uint64_t hits = 0;    // experts whose tiles were all here when asked for
  uint64_t misses = 0;  // experts of which at least one tile had to be read
  uint64_t late = 0;    // of these: the read was already on its way
  uint64_t evictions = 0;
  uint64_t bytes_read = 0;    // from disk or checkpoint, for whatever reason
  uint64_t tiles_reread = 0;  // wrong or failed once
  uint64_t tiles_bad = 0;     // wrong twice: never computed with
  uint64_t hinted = 0;        // experts read because of a hint
  uint64_t hints_used = 0;    // of these: asked for before they were evicted
  uint64_t hints_wasted = 0;  // of these: evicted before they were asked for
  // Experts by the time from the start of their read to its end: bucket b counts [2^b, 2^(b+1))
  // microseconds, the first one less than 2, the last one all that is longer.
  std::array<uint64_t, kLatencyBuckets> read_latency{};
  std::vector<double> stall_seconds;  // [layers] time in which a Dispatch had nothing to compute
  friend bool operator==(const ExpertCacheStats&, const ExpertCacheStats&) = default;
};

}  // namespace atl
