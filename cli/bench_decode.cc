// atoll bench decode, atoll bench prefill: whole steps of the engine, beside what this machine
// could do with the same bytes and operations.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/log.h"
#include "base/rng.h"
#include "base/thread_team.h"
#include "base/units.h"
#include "cli/bench_report.h"
#include "cli/deployment.h"
#include "cli/output.h"
#include "cli/table.h"
#include "kernels/attention.h"
#include "model/weights_map.h"
#include "topology/machine_limit.h"

namespace atl::cli {
namespace {

using coordinator::Sequence;
using coordinator::SequenceRows;
using coordinator::StepTimes;
using coordinator::WantLogits;
using topology::MachineLimit;
using Json = nlohmann::ordered_json;

struct EngineBenchOptions {
  DeploymentOptions deployment;
  std::vector<int64_t> rows{1, 2, 4, 8, 16};  // decode
  int64_t context = 128;                      // decode: tokens in each cache before
  int64_t steps = 8;                          // decode: of one repeat
  int64_t tokens = 512;                       // prefill
  uint64_t seed = 1;
  int repeats = 5;
  bool json = false;
};

// A part of a step, its name in the table and in JSON.
struct Part {
  const char* name;
  const char* key;
  double StepTimes::*seconds;
};
constexpr std::array<Part, 7> kParts = {{{"attention", "attention", &StepTimes::attention},
                                         {"router", "router", &StepTimes::router},
                                         {"hand-off", "dispatch", &StepTimes::dispatch},
                                         {"shared", "shared_experts", &StepTimes::shared_experts},
                                         {"experts", "combine", &StepTimes::combine},
                                         {"dense", "dense_ffn", &StepTimes::dense_ffn},
                                         {"head", "head", &StepTimes::head}}};

// What some steps have to read and to compute, matrix by matrix.
class Work {
 public:
  void add(double bytes, double flop) { items_.emplace_back(bytes, flop); }
  // Seconds that no machine of this limit can beat: of each item the longer of reading its bytes
  // and doing its operations.
  double floor_seconds(const MachineLimit& limit) const {
    double seconds = 0;
    for (const auto& [bytes, flop] : items_) {
      seconds += std::max(bytes / limit.read_bytes_per_second, flop / limit.fma_flop_per_second);
    }
    return seconds;
  }

 private:
  std::vector<std::pair<double, double>> items_;  // bytes, operations
};

// Bytes and parameters of the coordinator's matrices and of one routed expert.
struct ModelSize {
  struct Size {
    double bytes = 0, parameters = 0;
  };
  Size layers;  // attention, routers, shared experts, dense layers
  Size head;
  Size expert;
  int64_t moe_layers = 0;
};

ModelSize model_size(const DeploymentOptions& options) {
  const auto loaded = LoadedModel::open(options.model_dir);
  const model::ModelConfig& config = loaded->config;
  ModelSize size;
  for (int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    if (config.is_moe_layer(layer)) ++size.moe_layers;
  }
  const auto experts = static_cast<double>(size.moe_layers * config.n_routed_experts);
  for (const auto& row : model::component_table(config, loaded->checkpoint)) {
    const auto bytes = static_cast<double>(row.bytes);
    const auto parameters = static_cast<double>(row.parameters);
    switch (row.component) {
      case model::Component::kAttention:
      case model::Component::kRouter:
      case model::Component::kSharedExperts:
      case model::Component::kDenseMlp:
        size.layers.bytes += bytes;
        size.layers.parameters += parameters;
        break;
      case model::Component::kHead:
        size.head.bytes += bytes;
        size.head.parameters += parameters;
        break;
      case model::Component::kRoutedExperts:
        size.expert.bytes += bytes / experts;
        size.expert.parameters += parameters / experts;
        break;
      default:
        break;
    }
  }
  return size;
}

// What one repeat took.
struct Measured {
  double seconds = 0;
  StepTimes times;
  double expert_bytes = 0;    // weights of experts read, over all nodes
  double expert_seconds = 0;  // of the node that computed longest
};

// A number of rows (decode) or the whole prompt (prefill). A value of each counted repeat.
struct EngineCase {
  int64_t rows = 0;
  std::vector<double> tokens_per_second, seconds_per_step;
  std::array<std::vector<double>, kParts.size()> part_seconds;  // per step
  std::vector<double> expert_bytes_per_step, expert_bytes_per_second, experts_of_read;
  std::vector<double> of_floor;
  int voided = 0;
};

struct EngineReport {
  std::vector<double> read, fma;  // of the counted repeats
  std::vector<EngineCase> cases;
};

StepTimes difference(const StepTimes& after, const StepTimes& before) {
  StepTimes times = after;
  for (const Part& part : kParts) times.*part.seconds -= before.*part.seconds;
  times.steps -= before.steps;
  times.rows -= before.rows;
  times.moe_layers -= before.moe_layers;
  return times;
}

// The model, its sequences and the probe. Steps take random tokens, so that the router's choices
// spread as those of different texts do.
class EngineBench {
 public:
  EngineBench(const EngineBenchOptions& options, DeploymentOptions deployment,
              int64_t num_sequences)
      : options_(options),
        size_(model_size(deployment)),
        deployment_(deployment),
        team_(deployment_.threads().num_threads, deployment_.threads().cpus),
        probe_(team_),
        sequences_(num_sequences) {}

  const model::ModelConfig& config() const { return deployment_.config(); }

  // One step: `count` random tokens for each of the first num_sequences.
  void step(int64_t num_sequences, int64_t count, WantLogits logits) {
    std::vector<std::vector<int32_t>> tokens(num_sequences);
    std::vector<SequenceRows> work(num_sequences);
    for (int64_t s = 0; s < num_sequences; ++s) {
      for (int64_t i = 0; i < count; ++i) {
        tokens[s].push_back(random_token(s, sequences_[s].num_tokens + i));
      }
      work[s] = {&sequences_[s], tokens[s], logits};
    }
    std::vector<std::optional<Error>> errors(num_sequences);
    const Status status = deployment_.engine().step(
        work, [](size_t, size_t, std::span<const float>) {}, errors);
    if (!status) throw LoadError(status.error().message);
    for (const std::optional<Error>& error : errors) {
      if (error) throw LoadError(error->message);
    }
  }

  // Tokens of one sequence up to `end`, in chunks; logits of the last one if wanted.
  void prefill(int64_t sequence, int64_t end, WantLogits logits) {
    std::swap(sequences_[0], sequences_[sequence]);
    while (sequences_[0].num_tokens < end) {
      const int64_t count = std::min(options_.deployment.chunk, end - sequences_[0].num_tokens);
      const bool last = sequences_[0].num_tokens + count == end;
      step(1, count, last ? logits : WantLogits::kNone);
    }
    std::swap(sequences_[0], sequences_[sequence]);
  }

  // Takes the first sequences back to `num_tokens`: later entries of their blocks are written anew
  // before they are read.
  void rewind(int64_t num_sequences, int64_t num_tokens) {
    for (int64_t s = 0; s < num_sequences; ++s) sequences_[s].num_tokens = num_tokens;
  }

  // Runs `work` in counted repeats; `tokens` and `work` describe one of them.
  template <typename Run>
  EngineCase measure(int64_t rows, int64_t tokens, EngineReport* report, const Run& run,
                     const std::function<Work(const Measured&)>& work) {
    EngineCase result;
    result.rows = rows;
    Measured measured;
    result.voided = run_repeats(
        options_.repeats, [this] { return probe_.measure(); }, [&] { measured = timed(run); },
        [&](const MachineLimit& limit) {
          const auto steps = static_cast<double>(measured.times.steps);
          result.tokens_per_second.push_back(static_cast<double>(tokens) / measured.seconds);
          result.seconds_per_step.push_back(measured.seconds / steps);
          for (size_t i = 0; i < kParts.size(); ++i) {
            result.part_seconds[i].push_back(measured.times.*kParts[i].seconds / steps);
          }
          if (measured.expert_seconds > 0) {
            const double rate = measured.expert_bytes / measured.expert_seconds;
            result.expert_bytes_per_step.push_back(measured.expert_bytes / steps);
            result.expert_bytes_per_second.push_back(rate);
            result.experts_of_read.push_back(rate / limit.read_bytes_per_second);
          }
          result.of_floor.push_back(work(measured).floor_seconds(limit) / measured.seconds);
          report->read.push_back(limit.read_bytes_per_second);
          report->fma.push_back(limit.fma_flop_per_second);
        });
    return result;
  }

  // `steps` passes over the coordinator's matrices, `rows` rows in all.
  void add_layers(int64_t steps, int64_t rows, Work* work) const {
    work->add(static_cast<double>(steps) * size_.layers.bytes,
              2 * static_cast<double>(rows) * size_.layers.parameters);
  }
  void add_head(int64_t steps, int64_t rows, Work* work) const {
    work->add(static_cast<double>(steps) * size_.head.bytes,
              2 * static_cast<double>(rows) * size_.head.parameters);
  }
  void add_experts(const Measured& measured, int64_t rows, Work* work) const {
    const auto pairs = static_cast<double>(rows * config().num_experts_per_tok * size_.moe_layers);
    work->add(measured.expert_bytes, 2 * pairs * size_.expert.parameters);
  }
  // Attention over the cache: `attended` positions summed over rows, `read` positions summed over
  // passes through a cache. Per head and position 2 (C + dr) operations for the score, 2 C for the
  // sum.
  void add_attention(double attended, double read, Work* work) const {
    const model::ModelConfig& c = config();
    const auto layers = static_cast<double>(c.num_hidden_layers);
    const auto width = static_cast<double>(c.kv_lora_rank + c.qk_rope_head_dim);
    const double flop = 2 * width + 2 * static_cast<double>(c.kv_lora_rank);
    const auto element = static_cast<double>(kernels::element_bytes(options_.deployment.numerics.cache));
    work->add(layers * read * width * element,
              layers * attended * flop * static_cast<double>(c.num_attention_heads));
  }

 private:
  struct NodeTotals {
    std::vector<uint64_t> tiles;
    std::vector<double> seconds;
  };
  NodeTotals node_totals() {
    NodeTotals totals;
    for (const Deployment::NodeReport& node : deployment_.node_reports()) {
      totals.tiles.push_back(node.stats.tiles_computed);
      totals.seconds.push_back(node.stats.compute_seconds);
    }
    return totals;
  }

  template <typename Run>
  Measured timed(const Run& run) {
    const NodeTotals before = node_totals();
    const StepTimes times_before = deployment_.engine().times();
    const auto start = deployment_.clock().now();
    run();
    Measured measured;
    measured.seconds = seconds_between(start, deployment_.clock().now());
    measured.times = difference(deployment_.engine().times(), times_before);
    const NodeTotals after = node_totals();
    if (after.tiles.size() != before.tiles.size()) throw LoadError("an expert node was lost");
    // Each expert is computed as all of its tiles, whoever owns them.
    const auto tiles_per_expert =
        static_cast<double>(kernels::num_tiles(config().moe_intermediate_size));
    for (size_t n = 0; n < after.tiles.size(); ++n) {
      const auto tiles = static_cast<double>(after.tiles[n] - before.tiles[n]);
      measured.expert_bytes += tiles / tiles_per_expert * size_.expert.bytes;
      measured.expert_seconds =
          std::max(measured.expert_seconds, after.seconds[n] - before.seconds[n]);
    }
    return measured;
  }

  int32_t random_token(int64_t sequence, int64_t position) const {
    const double u = uniform_f64(options_.seed, {.sample_index = static_cast<uint64_t>(sequence),
                                                 .position = static_cast<uint64_t>(position)});
    return static_cast<int32_t>(u * static_cast<double>(config().vocab_size));
  }

  const EngineBenchOptions& options_;
  const ModelSize size_;
  Deployment deployment_;
  ThreadTeam team_;
  const std::unique_ptr<ScopedThreadPin> pin_ = deployment_.pin_engine_thread();
  topology::MachineProbe probe_;
  std::vector<Sequence> sequences_;
};

void check_positions(const EngineBenchOptions& options, int64_t positions, const char* what) {
  const model::ModelConfig config = model::load_config(options.deployment.model_dir);
  if (positions > config.max_position_embeddings) {
    throw LoadError(fmt::format("{} is {} positions, the model has {}", what, positions,
                                config.max_position_embeddings));
  }
}

EngineReport measure_decode(const EngineBenchOptions& options) {
  const int64_t rows_max = *std::max_element(options.rows.begin(), options.rows.end());
  const int64_t end = options.context + options.steps;
  check_positions(options, end, "--context with --steps");
  DeploymentOptions deployment = options.deployment;
  deployment.chunk = std::max(deployment.chunk, rows_max);
  deployment.cache_tokens = rows_max * round_up(end, kernels::kAttentionBlock);
  EngineBench bench(options, deployment, rows_max);
  log_info("filling {} contexts of {} tokens", rows_max, options.context);
  for (int64_t s = 0; s < rows_max; ++s) bench.prefill(s, options.context, WantLogits::kNone);

  EngineReport report;
  for (const int64_t rows : options.rows) {
    const auto run = [&] {
      bench.rewind(rows, options.context);
      for (int64_t i = 0; i < options.steps; ++i) bench.step(rows, 1, WantLogits::kLast);
    };
    run();  // touches buffers and pages
    const int64_t tokens = rows * options.steps;
    report.cases.push_back(bench.measure(rows, tokens, &report, run, [&](const Measured& measured) {
      Work work;
      bench.add_layers(options.steps, tokens, &work);
      bench.add_head(options.steps, tokens, &work);
      bench.add_experts(measured, tokens, &work);
      double positions = 0;
      for (int64_t i = 1; i <= options.steps; ++i) {
        positions += static_cast<double>(rows * (options.context + i));
      }
      bench.add_attention(positions, positions, &work);
      return work;
    }));
  }
  return report;
}

EngineReport measure_prefill(const EngineBenchOptions& options) {
  check_positions(options, options.tokens, "--tokens");
  DeploymentOptions deployment = options.deployment;
  deployment.cache_tokens = options.tokens;
  EngineBench bench(options, deployment, 1);
  const auto run = [&] {
    bench.rewind(1, 0);
    bench.prefill(0, options.tokens, WantLogits::kLast);
  };
  run();  // touches buffers and pages
  const int64_t chunk = options.deployment.chunk;
  EngineReport report;
  report.cases.push_back(
      bench.measure(options.tokens, options.tokens, &report, run, [&](const Measured& measured) {
        Work work;
        bench.add_layers(ceil_div(options.tokens, chunk), options.tokens, &work);
        bench.add_head(1, 1, &work);
        bench.add_experts(measured, options.tokens, &work);
        const auto n = static_cast<double>(options.tokens);
        double read = 0;
        for (int64_t begin = 0; begin < options.tokens; begin += chunk) {
          read += static_cast<double>(std::min(begin + chunk, options.tokens));
        }
        bench.add_attention(n * (n + 1) / 2, read, &work);
        return work;
      }));
  return report;
}

std::string to_text(const EngineReport& report, const char* rows_heading) {
  std::vector<Table::Column> columns = {{rows_heading, Align::kRight},
                                        {"tokens/s", Align::kRight},
                                        {"spread", Align::kRight},
                                        {"ms/step", Align::kRight}};
  for (const Part& part : kParts) columns.push_back({part.name, Align::kRight});
  for (const char* name : {"expert GB/s", "of read", "of floor", "counted", "void"}) {
    columns.push_back({name, Align::kRight});
  }
  Table table(std::move(columns));
  const auto ms = [](std::vector<double> values) {
    for (double& value : values) value *= 1e3;
    return median_text(values, "{:.3g}");
  };
  for (const EngineCase& c : report.cases) {
    std::vector<std::string> cells = {std::to_string(c.rows),
                                      median_text(c.tokens_per_second, "{:.4g}"),
                                      spread_text(c.tokens_per_second), ms(c.seconds_per_step)};
    for (const std::vector<double>& seconds : c.part_seconds) cells.push_back(ms(seconds));
    cells.push_back(median_text(in_giga(c.expert_bytes_per_second), "{:.2f}"));
    cells.push_back(median_text(c.experts_of_read, "{:.3f}"));
    cells.push_back(median_text(c.of_floor, "{:.3f}"));
    cells.push_back(std::to_string(c.of_floor.size()));
    cells.push_back(std::to_string(c.voided));
    table.add_row(std::move(cells));
  }
  return fmt::format("limits: read {} GB/s, FMA {} GFLOP/s; parts in ms per step\n",
                     median_text(in_giga(report.read), "{:.2f}"),
                     median_text(in_giga(report.fma), "{:.1f}")) +
         table.to_string("");
}

Json to_json(const EngineBenchOptions& options, const EngineReport& report, const char* rows_key) {
  Json cases = Json::array();
  for (const EngineCase& c : report.cases) {
    Json parts = Json::object();
    for (size_t i = 0; i < kParts.size(); ++i) {
      parts[kParts[i].key] = summary_json<Json>(c.part_seconds[i]);
    }
    cases.push_back({{rows_key, c.rows},
                     {"tokens_per_second", summary_json<Json>(c.tokens_per_second)},
                     {"seconds_per_step", summary_json<Json>(c.seconds_per_step)},
                     {"part_seconds_per_step", parts},
                     {"expert_bytes_per_step", summary_json<Json>(c.expert_bytes_per_step)},
                     {"expert_bytes_per_second", summary_json<Json>(c.expert_bytes_per_second)},
                     {"experts_of_read", summary_json<Json>(c.experts_of_read)},
                     {"of_floor", summary_json<Json>(c.of_floor)},
                     {"repeats", c.of_floor.size()},
                     {"voided", c.voided}});
  }
  return {{"nodes", options.deployment.nodes},
          {"chunk", options.deployment.chunk},
          {"limit",
           {{"read_bytes_per_second", summary_json<Json>(report.read)},
            {"fma_flop_per_second", summary_json<Json>(report.fma)}}},
          {"cases", cases}};
}

void add_shared_options(CLI::App& command, EngineBenchOptions* options) {
  add_deployment_options(command, &options->deployment);
  add_repeats_option(command, &options->repeats);
  command.add_option("--seed", options->seed, "Of the random tokens")->capture_default_str();
  command.add_flag("--json", options->json, "One JSON object in place of the table");
}

}  // namespace

void add_bench_decode_command(CLI::App& bench, int* exit_code) {
  auto options = std::make_shared<EngineBenchOptions>();
  CLI::App* command =
      bench.add_subcommand("decode", "Steps of one token per sequence: tokens/s, time per part");
  add_shared_options(*command, options.get());
  add_list_option(*command, "--rows", "Sequences that are stepped together", 1, 512,
                  &options->rows);
  command->add_option("--context", options->context, "Tokens in each cache before")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 30))
      ->capture_default_str();
  command->add_option("--steps", options->steps, "Steps of one repeat")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str();
  command->footer(
      "Example:\n  atoll bench decode tests/models/tiny-fp8 --rows 1,4 --context 256 --nodes 2");
  command->callback([options, exit_code] {
    const EngineReport report = measure_decode(*options);
    Json json = to_json(*options, report, "rows");
    json["context"] = options->context;
    json["steps"] = options->steps;
    write_stdout(options->json ? json.dump(2) + "\n" : to_text(report, "rows"));
    *exit_code = 0;
  });
}

void add_bench_prefill_command(CLI::App& bench, int* exit_code) {
  auto options = std::make_shared<EngineBenchOptions>();
  CLI::App* command =
      bench.add_subcommand("prefill", "One prompt of random tokens in chunks: tokens/s, parts");
  add_shared_options(*command, options.get());
  command->add_option("--tokens", options->tokens, "Tokens of the prompt")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 30))
      ->capture_default_str();
  command->footer(
      "Example:\n  atoll bench prefill tests/models/tiny-fp8 --tokens 1024 --chunk 256");
  command->callback([options, exit_code] {
    const EngineReport report = measure_prefill(*options);
    write_stdout(options->json ? to_json(*options, report, "tokens").dump(2) + "\n"
                               : to_text(report, "tokens"));
    *exit_code = 0;
  });
}

}  // namespace atl::cli
