// GET /stats: what the status page shows.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "coordinator/api/metrics.h"
#include "coordinator/cluster/cluster_snapshot.h"
#include "coordinator/serving/generation.h"
#include "model/config.h"

namespace atl::coordinator {

struct StatsRequest {
  std::string id, client;
  std::string state;  // waiting (no token yet) or running
  int64_t prompt_tokens = 0, cached_tokens = 0, generated_tokens = 0;
  double age_seconds = 0;
};

struct ServerStats {
  std::string model_name, version;
  int64_t context_tokens = 0;
  double uptime_seconds = 0;
  std::string state;              // ready, draining or failing
  std::string not_ready_because;  // empty: it is ready
  int64_t connections = 0;
  std::vector<StatsRequest> requests;
  RecentTimes times;
  std::map<int, int64_t> answers;  // by status
};

std::string stats_json(const ServerStats& server, const model::ModelConfig& config,
                       const GenerationStats& generation, const ClusterSnapshot& cluster);

}  // namespace atl::coordinator
