#include "cli/stats_report.h"

#include <fmt/format.h>

#include <cstdio>
#include <nlohmann/json.hpp>

#include "base/memory.h"
#include "base/units.h"

namespace atl::cli {
namespace {

double rate(double count, double seconds) { return seconds > 0 ? count / seconds : 0; }

nlohmann::json nodes_to_json(const std::vector<Deployment::NodeReport>& nodes) {
  nlohmann::json list = nlohmann::json::array();
  for (const Deployment::NodeReport& node : nodes) {
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
                    {"compute_seconds", node.stats.compute_seconds}});
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
                     const coordinator::GenerateResult& result, Deployment& deployment) {
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
      {"nodes", nodes_to_json(deployment.node_reports())}};
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

void print_step_times(const coordinator::StepTimes& times) {
  if (times.steps == 0) return;
  struct Part {
    const char* name;
    double seconds;
  };
  const Part parts[] = {{"attention", times.attention},
                        {"router", times.router},
                        {"dispatch", times.dispatch},
                        {"shared experts", times.shared_experts},
                        {"combine (wait)", times.combine},
                        {"dense FFN", times.dense_ffn},
                        {"head", times.head}};
  double sum = 0;
  for (const Part& part : parts) sum += part.seconds;
  fmt::print(stderr, "\n{} steps, {} rows; mean per step:\n", times.steps, times.rows);
  for (const Part& part : parts) {
    fmt::print(stderr, "  {:<15} {:>10}  {:>4.1f} %\n", part.name,
               format_duration(part.seconds / static_cast<double>(times.steps)),
               sum > 0 ? 100 * part.seconds / sum : 0);
  }
  if (times.moe_layers) {
    fmt::print(
        stderr, "  dispatch and combine per MoE layer: {}\n",
        format_duration((times.dispatch + times.combine) / static_cast<double>(times.moe_layers)));
  }
}

void print_nodes(const std::vector<Deployment::NodeReport>& nodes) {
  fmt::print(stderr, "\n{:<8} {:>5} {:>7}  {:<18} {:>10} {:>10} {:>12} {:>10} {:>10} {:>10}\n",
             "node", "tiles", "threads", "links", "dispatches", "rows", "expert rows", "in", "out",
             "compute");
  for (const Deployment::NodeReport& node : nodes) {
    fmt::print(stderr, "{:<8} {:>5} {:>7}  {:<18} {:>10} {:>10} {:>12} {:>10} {:>10} {:>10}\n",
               node.name, node.num_tiles, node.num_threads, node.stats.links,
               format_count(node.stats.dispatches), format_count(node.stats.rows),
               format_count(node.stats.expert_rows), format_bytes(node.stats.bytes_in),
               format_bytes(node.stats.bytes_out), format_duration(node.stats.compute_seconds));
  }
}

// Where this process's threads run and what of its memory lies on huge pages.
void print_placement(const Deployment& deployment) {
  const HugePageUse memory = huge_page_use();
  const double share =
      rate(static_cast<double>(memory.huge_bytes) * 100, static_cast<double>(memory.memory_bytes));
  fmt::print(stderr, "\n{}; memory {}, {:.0f} % of it on huge pages\n",
             topology::describe(deployment.threads()), format_bytes(memory.memory_bytes), share);
}

void print_stats(const RunFigures& figures, Deployment& deployment) {
  fmt::print(
      stderr,
      "\nload {}; prompt {} tokens in {} ({:.1f} tokens/s); generated {} tokens, the last {} "
      "at {:.1f} tokens/s\n",
      format_duration(deployment.load_seconds()), figures.prompt_tokens,
      format_duration(figures.prefill_seconds), figures.prefill_tokens_per_second(),
      figures.generated_tokens, std::max<int64_t>(0, figures.generated_tokens - 1),
      figures.decode_tokens_per_second());
  print_placement(deployment);
  print_step_times(deployment.engine().times());
  print_nodes(deployment.node_reports());
}

}  // namespace atl::cli
