// /metrics and /stats: what is exported, that it is well-formed, and that docs/metrics.md lists it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <sstream>
#include <string>

#include "tests/coordinator/api_server.h"
#include "tests/support/command.h"

namespace atl::test {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::UnorderedElementsAreArray;

coordinator::ClusterSnapshot small_cluster() {
  coordinator::ClusterSnapshot cluster;
  cluster.expert_rows = {{}, {4, 0, 2, 2}, {1, 1, 1, 1}};
  coordinator::ClusterSnapshot::Node& told = cluster.nodes.emplace_back();
  told.name = "n1";
  told.num_tiles = 4;
  told.num_threads = 2;
  told.traffic.rows = 12;
  told.traffic.bytes_out = 1200;
  told.stats_known = true;
  told.stats.cache.hits = 30;
  told.stats.cache.slots_used = 5;
  told.stats.cache.slot_bytes = 4096;
  told.stats.cache.stall_seconds = {0.25, 0.5};
  coordinator::ClusterSnapshot::Node& silent = cluster.nodes.emplace_back();
  silent.name = "n2";
  silent.alive = false;
  silent.lost_because = "no heartbeat";
  cluster.times[coordinator::Stage::kAttentionLinear] = 1.5;
  cluster.hints.hinted = 7;
  return cluster;
}

coordinator::GenerationStats some_stats() {
  coordinator::GenerationStats stats;
  stats.running = 2;
  stats.waiting = 1;
  stats.cache_blocks = 8;
  stats.cache_blocks_used = 2;
  stats.prompt_tokens = 100;
  stats.cached_tokens = 64;
  stats.generated_tokens = 42;
  stats.drafted_tokens = 12;
  stats.accepted_tokens = 9;
  stats.mtp_drafted_tokens = 8;
  stats.mtp_accepted_tokens = 6;
  stats.mtp_seconds = 0.5;
  stats.preempted = 3;
  return stats;
}

// A server that has seen an answer, a refusal and a failure, with a cluster.
std::unique_ptr<ApiServer> busy_server() {
  ApiServerOptions options;
  options.snapshot = small_cluster();
  auto server = std::make_unique<ApiServer>(options);
  server->backend().say(" the the");
  server->post("/v1/completions", R"({"prompt": "Once"})");
  server->post("/v1/completions", R"({"prompt": 3})");
  server->get("/nowhere");
  server->get("/none");
  server->backend().set_stats(some_stats());
  return server;
}

std::map<std::string, std::string> exported_types(const std::string& metrics) {
  std::map<std::string, std::string> types;
  std::istringstream lines(metrics);
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string hash, word, name, type;
    words >> hash >> word >> name >> type;
    if (hash == "#" && word == "TYPE") types[name] = type;
  }
  return types;
}

// | `name` | type | ...
std::map<std::string, std::string> documented_types() {
  std::map<std::string, std::string> types;
  std::ifstream page(ATOLL_SOURCE_DIR "/docs/metrics.md");
  for (std::string line; std::getline(page, line);) {
    if (!line.starts_with("| `")) continue;
    std::istringstream words(line);
    std::string bar, name, type;
    words >> bar >> name >> bar >> type;
    types[name.substr(1, name.size() - 2)] = type;
  }
  return types;
}

TEST(ApiMetrics, are_those_of_the_page) {
  const auto server = busy_server();
  const RawResponse response = server->get("/metrics");
  EXPECT_THAT(response.headers.at("content-type"), HasSubstr("text/plain"));
  EXPECT_THAT(exported_types(response.body), UnorderedElementsAreArray(documented_types()));
}

TEST(ApiMetrics, please_promtool) {
  const std::string promtool = "/usr/bin/promtool";
  if (!std::filesystem::exists(promtool)) GTEST_SKIP() << promtool << " is not installed";
  const auto server = busy_server();
  CommandOptions options;
  options.stdin_text = server->get("/metrics").body;
  const CommandResult result = run_command({promtool, "check", "metrics"}, options);
  EXPECT_EQ(result.exit_code, 0) << result.out << result.err;
  EXPECT_EQ(result.out + result.err, "");
}

TEST(ApiMetrics, have_the_values) {
  const auto server = busy_server();
  const std::string metrics = server->get("/metrics").body;
  for (const char* line : {
           "atoll_num_requests_running 2\n",
           "atoll_num_requests_waiting 1\n",
           "atoll_kv_cache_usage_perc 0.25\n",
           "atoll_generation_tokens_total 42\n",
           "atoll_prefix_cache_queries_total 100\n",
           "atoll_prefix_cache_hits_total 64\n",
           "atoll_num_preemptions_total 3\n",
           "atoll_time_to_first_token_seconds_count 1\n",
           "atoll_inter_token_latency_seconds_count 2\n",
           "atoll_e2e_request_latency_seconds_count 1\n",
           "atoll_request_generation_tokens_sum 3\n",
           "atoll_request_success_total{finished_reason=\"stop\"} 1\n",
           "atoll_http_requests_total{path=\"/v1/completions\",status=\"200\"} 1\n",
           "atoll_http_requests_total{path=\"/v1/completions\",status=\"400\"} 1\n",
           "atoll_http_refused_total{status=\"404\"} 2\n",
           "atoll_request_queue_time_seconds_count 1\n",
           "atoll_request_queue_time_seconds_sum 0.25\n",
           "atoll_node_up{node=\"n1\"} 1\n",
           "atoll_node_up{node=\"n2\"} 0\n",
           "atoll_node_rows_total{node=\"n1\"} 12\n",
           "atoll_node_cache_hits_total{node=\"n1\"} 30\n",
           "atoll_node_cache_resident_bytes{node=\"n1\"} 20480\n",
           "atoll_node_stall_seconds_total{node=\"n1\"} 0.75\n",
           "atoll_expert_rows_total{layer=\"1\"} 8\n",
           "atoll_expert_rows_max{layer=\"1\"} 4\n",
           "atoll_expert_rows_mean{layer=\"1\"} 2\n",
           "atoll_step_part_seconds_total{part=\"attention\"} 1.5\n",
           "atoll_prefetch_hinted_experts_total 7\n",
       }) {
    EXPECT_THAT(metrics, HasSubstr(line));
  }
  EXPECT_THAT(metrics, Not(HasSubstr("atoll_node_cache_hits_total{node=\"n2\"}")));
  EXPECT_THAT(metrics, Not(HasSubstr("layer=\"0\"")));
}

TEST(ApiStats, have_the_agreed_shape) {
  const auto server = busy_server();
  const Json stats = Json::parse(server->get("/stats").body);
  EXPECT_EQ(stats["model"]["name"], "tiny");
  EXPECT_EQ(stats["model"]["layers"], 6);
  EXPECT_EQ(stats["model"]["experts"], 32);
  EXPECT_EQ(stats["model"]["experts_per_token"], 4);
  EXPECT_EQ(stats["model"]["context_tokens"], 2048);
  EXPECT_EQ(stats["server"]["version"], "0.0-test");
  EXPECT_EQ(stats["server"]["connections"], 1);
  EXPECT_GE(stats["server"]["uptime_seconds"], 0.0);
  EXPECT_EQ(stats["requests"]["running"], 2);
  EXPECT_EQ(stats["requests"]["preempted"], 3);
  EXPECT_EQ(stats["tokens"], (Json{{"prompt", 100},
                                   {"cached", 64},
                                   {"generated", 42},
                                   {"drafted", 12},
                                   {"accepted", 9},
                                   {"mtp_drafted", 8},
                                   {"mtp_accepted", 6},
                                   {"mtp_seconds", 0.5}}));
  EXPECT_EQ(stats["cache"], (Json{{"blocks", 8}, {"used", 2}, {"kept", 0}}));
  EXPECT_EQ(stats["nodes"].size(), 2u);
  EXPECT_EQ(stats["nodes"][0]["hits"], 30);
  EXPECT_EQ(stats["nodes"][0]["resident_bytes"], 20480);
  EXPECT_EQ(stats["nodes"][1]["alive"], false);
  EXPECT_EQ(stats["experts"].size(), 2u);
  EXPECT_EQ(stats["experts"][0], (Json{{"layer", 1}, {"rows", {4, 0, 2, 2}}}));
}

TEST(ApiStats, list_what_is_under_way) {
  ApiServer server;
  server.backend().manual();
  RawClient client(server.port());
  ASSERT_TRUE(client.send(
      post("/v1/completions", R"({"prompt": [5, 6, 7], "user": "ann"})", "X-Request-Id: r1\r\n")));
  while (server.backend().submitted().empty()) std::this_thread::yield();
  const auto id = server.backend().submitted()[0].id;
  const Json waiting = Json::parse(server.get("/stats").body)["requests"]["list"];
  ASSERT_EQ(waiting.size(), 1u);
  EXPECT_EQ(waiting[0]["id"], "r1");
  EXPECT_EQ(waiting[0]["client"], "ann");
  EXPECT_EQ(waiting[0]["state"], "waiting");
  EXPECT_EQ(waiting[0]["prompt_tokens"], 3);
  server.backend().send(ScriptedBackend::event_of(id, 262));
  const Json running = Json::parse(server.get("/stats").body)["requests"]["list"];
  EXPECT_EQ(running[0]["state"], "running");
  EXPECT_EQ(running[0]["generated_tokens"], 1);
  server.backend().send(ScriptedBackend::event_of(id, 262, coordinator::FinishReason::kLength));
  EXPECT_EQ(client.read_response().status, 200);
  EXPECT_EQ(server.post("/v1/completions", "{}").status, 400);
  EXPECT_EQ(server.get("/nowhere").status, 404);
  const Json after = Json::parse(server.get("/stats").body);
  EXPECT_EQ(after["requests"]["list"].size(), 0u);
  EXPECT_EQ(after["latency"]["first_token"]["count"], 1);
  EXPECT_GT(after["latency"]["first_token"]["p50_seconds"], 0.0);
  EXPECT_EQ(after["latency"]["next_token"]["count"], 1);
  EXPECT_EQ(after["answers"], (Json{{"200", 1}, {"400", 1}, {"404", 1}}));
  EXPECT_EQ(after["server"]["not_ready_because"], "");
}

}  // namespace
}  // namespace atl::test
