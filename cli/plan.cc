// atoll plan: what a cluster would take and do, before it is there.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/units.h"
#include "cli/cluster_file_option.h"
#include "cli/commands.h"
#include "cli/numerics.h"
#include "cli/output.h"
#include "cli/plan_model.h"
#include "cli/plan_report.h"
#include "cli/plan_request.h"
#include "config/write_tiles.h"
#include "deployment/memory_check.h"
#include "deployment/numerics.h"
#include "kernels/attention.h"
#include "model/open.h"
#include "storage/io/file_io.h"

namespace atl::cli {
namespace {

struct PlanOptions {
  ClusterFileOption file;
  std::filesystem::path describe, usage;
  std::vector<std::string> what_if;
  ProbeOptions probe;
  bool keep_tiles = false, json = false, write = false;
};

// Short names of what is planned for.
std::string full_key(const std::string& flag) {
  for (const char* name : {"aim", "sequences", "context", "prompt", "usage"}) {
    if (flag.starts_with(std::string(name) + "=")) return "plan." + flag;
  }
  return flag;
}

config::ClusterConfig load_config(const PlanOptions& options, bool with_what_if) {
  ClusterFileOption file = options.file;
  std::vector<std::string> flags;
  if (!options.describe.empty()) flags = described_flags(options.describe);
  if (!options.usage.empty()) {
    flags.push_back("plan.usage=" + std::filesystem::absolute(options.usage).string());
  }
  for (const std::string& flag : options.file.flags) flags.push_back(full_key(flag));
  if (with_what_if) {
    for (const std::string& flag : options.what_if) flags.push_back(full_key(flag));
  }
  file.flags = flags;
  return config::make_cluster_config(file.settings(), config::Purpose::kPlan);
}

// What the KV cache has room for: as much as the file gives it, or all sequences' contexts.
uint64_t cache_tokens(const config::ClusterConfig& config, const model::OpenedModel& model,
                      const topology::PlanRequest& request) {
  const auto bytes = config.coordinator.kv_cache_bytes;
  if (!bytes) {
    const auto context = static_cast<int64_t>(request.context);
    return static_cast<uint64_t>(request.sequences * round_up(context, kernels::kAttentionBlock));
  }
  const model::NumericsProfile numerics = deployment::numerics_of(config.numerics);
  const uint64_t block = deployment::kv_cache_bytes(model, numerics, 1) -
                         deployment::kv_cache_bytes(model, numerics, 0);
  return (std::max(*bytes / block, uint64_t{2}) - 1) * kernels::kAttentionBlock;
}

struct Planned {
  topology::PlanRequest request;
  topology::Plan plan;
  std::vector<std::string> assumed;
  double seconds = 0;  // of planning alone
};

Planned plan_of(const PlanOptions& options, bool with_what_if) {
  const config::ClusterConfig config = load_config(options, with_what_if);
  const bool drafts = config.coordinator.draft == "mtp" || config.coordinator.draft == "auto";
  const auto opened = model::open(config.model, config.stripes,
                                  drafts ? model::MtpLayers::kFirst : model::MtpLayers::kLeaveOut);
  if (!opened->config.has_experts()) {
    throw LoadError(fmt::format(
        "{}: a {} model has no routed experts to be planned for: it runs on the coordinator alone; "
        "atoll inspect says whether it fits",
        config.model.string(), opened->config.model_type));
  }
  PlanSubject subject = plan_subject(config, opened->config.max_position_embeddings,
                                     [&] { return probe_machine(options.probe); });
  topology::PlanRequest& request = subject.request;
  PlanModelOptions model_options;
  model_options.numerics = deployment::numerics_of(config.numerics);
  model_options.num_nodes = static_cast<int>(request.cluster.nodes.size());
  model_options.coordinator_threads = subject.coordinator_threads;
  model_options.node_threads = subject.node_threads;
  model_options.rows_max = config.coordinator.rows_max;
  model_options.usage_file = config.plan.usage;
  model_options.cache_tokens = cache_tokens(config, *opened, request);
  const PlanModel model(*opened, model_options);
  request.cluster.model = model.shape();
  share_memory_here(&subject);
  if (options.keep_tiles) {
    for (size_t n = 0; n < config.nodes.size(); ++n) {
      request.fixed_tiles[n] = config.nodes[n].tiles.value_or(-1);
    }
  }
  Planned planned;
  const std::vector<topology::Alternative> alternatives = model.alternatives();
  const SteadyClock clock;
  const auto start = clock.now();
  planned.plan = topology::make_plan(request, alternatives);
  planned.seconds = seconds_between(start, clock.now());
  planned.request = request;
  planned.assumed = subject.assumed;
  return planned;
}

void write_tiles(const PlanOptions& options, const topology::Plan& plan) {
  if (!plan.fits) throw LoadError("--write: the plan does not fit, nothing is written");
  std::map<std::string, int> tiles;
  for (const topology::NodePlan& node : plan.nodes) tiles[node.name] = node.share.tiles;
  const std::string text = storage::read_whole_file(options.file.path, config::kFileBytesMax);
  storage::write_file_atomically(
      options.file.path, config::with_tiles(text, options.file.path.filename().string(), tiles));
}

int plan(const PlanOptions& options) {
  Planned planned = plan_of(options, true);
  PlanReport report;
  report.request = planned.request;
  report.plan = planned.plan;
  report.assumed = planned.assumed;
  report.what_if = options.what_if;
  report.plan_seconds = planned.seconds;
  if (!options.what_if.empty()) report.base = plan_of(options, false).plan;
  if (options.write && !planned.request.cluster.local_node) write_tiles(options, planned.plan);
  write_stdout(options.json ? plan_json(report) : plan_text(report));
  return planned.plan.fits ? 0 : 1;
}

}  // namespace

void add_plan_command(CLI::App& app, int* exit_code) {
  auto options = std::make_shared<PlanOptions>();
  CLI::App* command = app.add_subcommand(
      "plan", "Who keeps what, what it takes and how fast it will be, before it is there");
  command->add_option("FILE", options->file.path, "Cluster file (YAML)")->required()->type_name("");
  options->file.add_set_option(*command);
  command
      ->add_option("--describe", options->describe,
                   "File (YAML) that describes machines: nodes by name, coordinator; stronger than "
                   "the cluster file")
      ->type_name("FILE");
  command
      ->add_option("--usage", options->usage,
                   "How often each expert is used, of `atoll experts dump`; unless given, "
                   "plan.usage of the file, else all alike")
      ->check(CLI::ExistingFile)
      ->type_name("FILE");
  command
      ->add_option("--what-if", options->what_if,
                   "As --set, and also aim, sequences, context, prompt; the report compares with "
                   "the plan without; several times")
      ->allow_extra_args(true)
      ->type_name("KEY=VALUE");
  command->add_flag("--keep-tiles", options->keep_tiles,
                    "Plan with the file's tiles in place of the best; off unless given");
  command->add_flag("--write", options->write,
                    "Put the tiles into the file, whose comments stay; off unless given");
  command
      ->add_option("--probe-cache", options->probe.cache_file,
                   "File that keeps this machine's figures, as of `atoll probe --cache`")
      ->type_name("FILE");
  command->add_flag("--json", options->json, "One JSON object in place of text; off unless given");
  command->footer(
      "Exit code 1: it does not fit; what would do is said.\n\n"
      "Example:\n  atoll plan cluster.yaml --what-if nodes.n3.drives=6GB/s,6GB/s sequences=16");
  command->callback([options, exit_code] { *exit_code = plan(*options); });
}

}  // namespace atl::cli
