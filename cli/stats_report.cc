#include "cli/stats_report.h"

#include <fmt/format.h>

#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "base/memory.h"
#include "base/units.h"
#include "cli/table.h"

namespace atl::cli {
namespace {

double rate(double count, double seconds) { return seconds > 0 ? count / seconds : 0; }

nlohmann::json cache_to_json(const ExpertCacheStats& cache) {
  return {{"slot_bytes", cache.slot_bytes},
          {"slots", cache.slots},
          {"slots_used", cache.slots_used},
          {"hits", cache.hits},
          {"misses", cache.misses},
          {"late", cache.late},
          {"evictions", cache.evictions},
          {"bytes_read", cache.bytes_read},
          {"tiles_reread", cache.tiles_reread},
          {"tiles_bad", cache.tiles_bad},
          {"hinted", cache.hinted},
          {"hints_used", cache.hints_used},
          {"hints_wasted", cache.hints_wasted},
          {"read_latency_log2_us", cache.read_latency},
          {"stall_seconds_by_layer", cache.stall_seconds}};
}

nlohmann::json hints_to_json(const coordinator::HintStats& hints) {
  return {{"layers", hints.layers},     {"hinted", hints.hinted},   {"chosen", hints.chosen},
          {"foretold", hints.foretold}, {"recall", hints.recall()}, {"waste", hints.waste()}};
}

nlohmann::json nodes_to_json(const std::vector<deployment::Deployment::NodeReport>& nodes) {
  nlohmann::json list = nlohmann::json::array();
  for (const deployment::Deployment::NodeReport& node : nodes) {
    list.push_back({{"name", node.name},
                    {"tiles", node.num_tiles},
                    {"threads", node.num_threads},
                    {"links", node.stats.links},
                    {"dispatches", node.stats.dispatches},
                    {"rows", node.stats.rows},
                    {"expert_rows", node.stats.expert_rows},
                    {"bytes_in", node.stats.bytes_in},
                    {"bytes_out", node.stats.bytes_out},
                    {"tiles_computed", node.stats.tiles_computed},
                    {"refused", node.stats.refused},
                    {"hints", node.traffic.hints},
                    {"compute_seconds", node.stats.compute_seconds},
                    {"cache", cache_to_json(node.stats.cache)}});
  }
  return list;
}

}  // namespace

double RunFigures::prefill_tokens_per_second() const {
  return rate(static_cast<double>(prompt_tokens), prefill_seconds);
}
double RunFigures::decode_tokens_per_second() const {
  return generated_tokens > 1 ? rate(static_cast<double>(generated_tokens - 1), decode_seconds) : 0;
}

RunFigures run_figures(int64_t prompt_tokens, const coordinator::GenerateResult& result) {
  return {prompt_tokens, static_cast<int64_t>(result.tokens.size()), result.prefill_seconds,
          result.decode_seconds};
}

std::string run_json(const RunFigures& figures, const std::string& text,
                     const coordinator::GenerateResult& result,
                     deployment::Deployment& deployment) {
  const HugePageUse memory = huge_page_use();
  const nlohmann::json json = {
      {"text", text},
      {"tokens", result.tokens},
      {"finish_reason", result.finish == coordinator::FinishReason::kStop ? "stop" : "length"},
      {"prompt_tokens", figures.prompt_tokens},
      {"generated_tokens", figures.generated_tokens},
      {"load_seconds", deployment.load_seconds()},
      {"prefill_seconds", figures.prefill_seconds},
      {"decode_seconds", figures.decode_seconds},
      {"prefill_tokens_per_second", figures.prefill_tokens_per_second()},
      {"decode_tokens_per_second", figures.decode_tokens_per_second()},
      {"threads", deployment.threads().num_threads},
      {"pinned_to", deployment.threads().cpus},
      {"memory_bytes", memory.memory_bytes},
      {"huge_page_bytes", memory.huge_bytes},
      {"prefetch", hints_to_json(deployment.engine().hint_stats())},
      {"nodes", nodes_to_json(deployment.node_reports())}};
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

void print_step_times(const coordinator::StepTimes& times) {
  using coordinator::Stage;
  if (times.steps == 0) return;
  struct Part {
    const char* name;
    double seconds;
  };
  const Part parts[] = {{"attention", times.attention()},
                        {"router", times[Stage::kRouter]},
                        {"dispatch", times[Stage::kDispatch]},
                        {"shared experts", times[Stage::kSharedExperts]},
                        {"combine (wait)", times[Stage::kCombine]},
                        {"dense FFN", times[Stage::kDenseFfn]},
                        {"head", times[Stage::kHead]},
                        {"prefetch", times[Stage::kPrefetch]},
                        {"others", times[Stage::kOther]}};
  double sum = 0;
  for (const Part& part : parts) sum += part.seconds;
  fmt::print(stderr, "\n{} steps, {} rows; mean per step:\n", times.steps, times.rows);
  for (const Part& part : parts) {
    if (part.seconds == 0) continue;
    fmt::print(stderr, "  {:<15} {:>10}  {:>4.1f} %\n", part.name,
               format_duration(part.seconds / static_cast<double>(times.steps)),
               sum > 0 ? 100 * part.seconds / sum : 0);
  }
  if (times.moe_layers) {
    fmt::print(stderr, "  dispatch and combine per MoE layer: {}\n",
               format_duration((times[Stage::kDispatch] + times[Stage::kCombine]) /
                               static_cast<double>(times.moe_layers)));
  }
}

std::optional<ReadLatency> read_latency(const ExpertCacheStats& stats, double q) {
  uint64_t all = 0;
  for (const uint64_t n : stats.read_latency) all += n;
  if (all == 0) return std::nullopt;
  const auto wanted = static_cast<uint64_t>(std::ceil(q * static_cast<double>(all)));
  uint64_t seen = 0;
  size_t bucket = 0;
  while ((seen += stats.read_latency[bucket]) < wanted) ++bucket;
  const bool last = bucket + 1 == ExpertCacheStats::kLatencyBuckets;
  return ReadLatency{std::ldexp(1e-6, static_cast<int>(last ? bucket : bucket + 1)), last};
}

double stall_seconds(const ExpertCacheStats& stats) {
  double sum = 0;
  for (const double seconds : stats.stall_seconds) sum += seconds;
  return sum;
}

std::string cache_text(const std::vector<deployment::Deployment::NodeReport>& nodes,
                       const coordinator::HintStats& hints, uint64_t num_steps) {
  const auto latency = [](const ExpertCacheStats& cache, double q) -> std::string {
    const std::optional<ReadLatency> time = read_latency(cache, q);
    if (!time) return "-";
    return (time->at_least ? "> " : "< ") + format_duration(time->seconds);
  };
  std::string text;
  Table use({{"expert cache", Align::kLeft},
             {"slots", Align::kRight},
             {"used", Align::kRight},
             {"hits", Align::kRight},
             {"misses", Align::kRight},
             {"late", Align::kRight},
             {"hit rate", Align::kRight}});
  Table reads({{"expert reads", Align::kLeft},
               {"read", Align::kRight},
               {"p50", Align::kRight},
               {"p99", Align::kRight},
               {"stall/step", Align::kRight},
               {"evicted", Align::kRight}});
  bool any = false;
  for (const deployment::Deployment::NodeReport& node : nodes) {
    const ExpertCacheStats& cache = node.stats.cache;
    const uint64_t asked = cache.hits + cache.misses;
    any = any || asked > 0;
    const double stall = num_steps ? stall_seconds(cache) / static_cast<double>(num_steps) : 0;
    use.add_row({node.name, format_count(cache.slots), format_count(cache.slots_used),
                 format_count(cache.hits), format_count(cache.misses), format_count(cache.late),
                 asked ? fmt::format("{:.1f} %", 100 * rate(static_cast<double>(cache.hits),
                                                            static_cast<double>(asked)))
                       : "-"});
    reads.add_row({node.name, format_bytes(cache.bytes_read), latency(cache, 0.5),
                   latency(cache, 0.99), format_duration(stall), format_count(cache.evictions)});
    if (cache.tiles_reread || cache.tiles_bad) {
      text +=
          fmt::format("{}: {} tiles were read again because they were wrong, {} stayed so\n",
                      node.name, format_count(cache.tiles_reread), format_count(cache.tiles_bad));
    }
    if (cache.hinted) {
      text +=
          fmt::format("{}: {} experts read ahead, {} of them wanted in time, {} evicted before\n",
                      node.name, format_count(cache.hinted), format_count(cache.hints_used),
                      format_count(cache.hints_wasted));
    }
  }
  if (any) text = use.to_string("") + "\n" + reads.to_string("") + text;
  if (hints.layers) {
    text += fmt::format(
        "prefetch: {:.1f} % of the experts that the routers chose were foretold,\n"
        "  {:.1f} % of those foretold were not chosen\n",
        100 * hints.recall(), 100 * hints.waste());
  }
  return text;
}

std::string nodes_json(deployment::Deployment& deployment) {
  return nlohmann::json{{"prefetch", hints_to_json(deployment.engine().hint_stats())},
                        {"nodes", nodes_to_json(deployment.node_reports())}}
      .dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

std::string nodes_text(const std::vector<deployment::Deployment::NodeReport>& nodes) {
  Table places({{"node"}, {"tiles", Align::kRight}, {"threads", Align::kRight}, {"links"}});
  Table work({{"node"},
              {"dispatches", Align::kRight},
              {"rows", Align::kRight},
              {"expert rows", Align::kRight},
              {"in", Align::kRight},
              {"out", Align::kRight},
              {"compute", Align::kRight}});
  for (const deployment::Deployment::NodeReport& node : nodes) {
    const transport::NodeStats& stats = node.stats;
    places.add_row(
        {node.name, std::to_string(node.num_tiles), std::to_string(node.num_threads), stats.links});
    work.add_row({node.name, format_count(stats.dispatches), format_count(stats.rows),
                  format_count(stats.expert_rows), format_bytes(stats.bytes_in),
                  format_bytes(stats.bytes_out), format_duration(stats.compute_seconds)});
  }
  return places.to_string("") + "\n" + work.to_string("");
}

void print_nodes(deployment::Deployment& deployment) {
  const std::vector<deployment::Deployment::NodeReport> nodes = deployment.node_reports();
  if (nodes.empty()) return;  // a model without experts
  fmt::print(stderr, "\n{}", nodes_text(nodes));
  const std::string caches =
      cache_text(nodes, deployment.engine().hint_stats(), deployment.engine().times().steps);
  if (!caches.empty()) fmt::print(stderr, "\n{}", caches);
}

// Where this process's threads run and what of its memory lies on huge pages.
void print_placement(const deployment::Deployment& deployment) {
  const HugePageUse memory = huge_page_use();
  const double share =
      rate(static_cast<double>(memory.huge_bytes) * 100, static_cast<double>(memory.memory_bytes));
  fmt::print(stderr, "{}\nmemory {}, {:.0f} % of it on huge pages\n",
             topology::describe(deployment.threads()), format_bytes(memory.memory_bytes), share);
}

void print_stats(const RunFigures& figures, deployment::Deployment& deployment) {
  fmt::print(stderr,
             "\nload {}; prompt {} tokens in {} ({:.1f} tokens/s);\n"
             "generated {} tokens, the last {} at {:.1f} tokens/s\n",
             format_duration(deployment.load_seconds()), figures.prompt_tokens,
             format_duration(figures.prefill_seconds), figures.prefill_tokens_per_second(),
             figures.generated_tokens, std::max<int64_t>(0, figures.generated_tokens - 1),
             figures.decode_tokens_per_second());
  print_placement(deployment);
  print_step_times(deployment.engine().times());
  print_nodes(deployment);
}

}  // namespace atl::cli
