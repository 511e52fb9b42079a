#include "coordinator/api/stats_json.h"

#include <nlohmann/json.hpp>

namespace atl::coordinator {
namespace {

using Json = nlohmann::ordered_json;

Json request_json(const StatsRequest& request) {
  return {{"id", request.id},
          {"client", request.client},
          {"state", request.state},
          {"prompt_tokens", request.prompt_tokens},
          {"cached_tokens", request.cached_tokens},
          {"generated_tokens", request.generated_tokens},
          {"age_seconds", request.age_seconds}};
}

Json node_json(const ClusterSnapshot::Node& node) {
  const ExpertCacheStats& cache = node.stats.cache;
  return {{"name", node.name},
          {"alive", node.alive},
          {"state", node.state},
          {"lost_because", node.lost_because},
          {"losses", node.losses},
          {"restarts", node.restarts},
          {"tiles", node.num_tiles},
          {"standby", node.num_standby},
          {"threads", node.num_threads},
          {"rows", node.traffic.rows},
          {"dispatches", node.traffic.dispatches},
          {"hedged", node.traffic.hedged},
          {"hedges_won", node.traffic.hedges_won},
          {"overdue", node.traffic.overdue},
          {"tried", node.traffic.tried},
          {"bytes_out", node.traffic.bytes_out},
          {"bytes_in", node.traffic.bytes_in},
          {"hits", cache.hits},
          {"misses", cache.misses},
          {"bytes_read", cache.bytes_read},
          {"resident_bytes", cache.slots_used * cache.slot_bytes},
          {"slot_bytes", cache.slot_bytes},
          {"tiles_computed", node.stats.tiles_computed},
          {"compute_seconds", node.stats.compute_seconds},
          {"link", node.stats.links}};
}

Json quantiles_json(const RecentTimes::Quantiles& times) {
  return {{"count", times.count}, {"p50_seconds", times.p50}, {"p99_seconds", times.p99}};
}

Json requests_json(const ServerStats& server, const GenerationStats& generation) {
  Json json = {{"running", generation.running},     {"waiting", generation.waiting},
               {"finished", generation.finished},   {"failed", generation.failed},
               {"cancelled", generation.cancelled}, {"preempted", generation.preempted}};
  Json& list = json["list"] = Json::array();
  for (const StatsRequest& request : server.requests) list.push_back(request_json(request));
  return json;
}

}  // namespace

std::string stats_json(const ServerStats& server, const model::ModelConfig& config,
                       const GenerationStats& generation, const ClusterSnapshot& cluster) {
  Json json;
  json["model"] = {{"name", server.model_name},
                   {"layers", config.num_hidden_layers},
                   {"experts", config.n_routed_experts},
                   {"experts_per_token", config.num_experts_per_tok},
                   {"context_tokens", server.context_tokens}};
  json["server"] = {{"version", server.version},
                    {"uptime_seconds", server.uptime_seconds},
                    {"state", server.state},
                    {"not_ready_because", server.not_ready_because},
                    {"connections", server.connections}};
  json["latency"] = {{"first_token", quantiles_json(server.times.first_token)},
                     {"next_token", quantiles_json(server.times.next_token)}};
  Json& answers = json["answers"] = Json::object();
  for (const auto& [status, number] : server.answers) answers[std::to_string(status)] = number;
  json["requests"] = requests_json(server, generation);
  json["tokens"] = {{"prompt", generation.prompt_tokens},
                    {"cached", generation.cached_tokens},
                    {"generated", generation.generated_tokens},
                    {"drafted", generation.drafted_tokens},
                    {"accepted", generation.accepted_tokens},
                    {"mtp_drafted", generation.mtp_drafted_tokens},
                    {"mtp_accepted", generation.mtp_accepted_tokens},
                    {"mtp_seconds", generation.mtp_seconds}};
  json["cache"] = {{"blocks", generation.cache_blocks},
                   {"used", generation.cache_blocks_used},
                   {"kept", generation.cache_blocks_kept}};
  Json& nodes = json["nodes"] = Json::array();
  for (const auto& node : cluster.nodes) nodes.push_back(node_json(node));
  Json& experts = json["experts"] = Json::array();
  for (size_t layer = 0; layer < cluster.expert_rows.size(); ++layer) {
    if (cluster.expert_rows[layer].empty()) continue;
    experts.push_back({{"layer", layer}, {"rows", cluster.expert_rows[layer]}});
  }
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace atl::coordinator
