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
#include "cli/deployment_options.h"
#include "cli/help_formatter.h"
#include "cli/output.h"
#include "cli/table.h"
#include "kernels/attention.h"
#include "storage/io/disk_probe.h"
#include "storage/pack/pack.h"
#include "storage/tiles/tile_store.h"
#include "topology/machine_limit.h"

namespace atl::cli {
namespace {

using coordinator::Sequence;
using coordinator::SequenceRows;
using coordinator::Stage;
using coordinator::StepTimes;
using coordinator::WantLogits;
using topology::MachineLimit;
using Json = nlohmann::ordered_json;

// Of the probe of the drive: the largest block, the memory that blocks go to in turn, as experts go
// to slots, and how many reads are under way.
constexpr size_t kProbeBlockBytes = 2 * kMiB, kProbeBytes = 256 * kMiB;
constexpr std::array kProbeDepths = {4, 8, 16, 32};
static_assert(kProbeBytes >= kProbeBlockBytes * kProbeDepths.back());

struct EngineBenchOptions {
  deployment::DeploymentOptions deployment;
  std::vector<int64_t> rows{1, 2, 4, 8, 16};  // decode
  std::vector<int64_t> contexts{128};         // decode: tokens in each cache before
  int64_t steps = 8;                          // decode: of one repeat
  int64_t tokens = 512;                       // prefill
  uint64_t seed = 1;
  RepeatOptions repeats;
  double disk_gb_per_second = 0;  // of the cold tier's bound; 0: see disk_rate()
  bool cold_start = false;
  bool json = false;
};

// What one repeat took.
struct Measured {
  double seconds = 0;
  StepTimes times;
  double expert_bytes = 0;    // weights of experts read, over all nodes
  double expert_seconds = 0;  // of the node that computed longest
  double disk_bytes = 0;      // read by all nodes
  double resident_bytes = 0;  // of expert_bytes, those that were in RAM when asked for
};

// The parts of a step; the first details are of attention, and together they are its time.
enum PartId {
  kAttention,
  kProjections,
  kAbsorbed,
  kCore,
  kRouter,
  kHandOff,
  kShared,
  kExperts,
  kDense,
  kHead,
  kPrefetch,
  kOthers,
  kNumParts
};
constexpr bool is_detail(size_t part) { return part >= kProjections && part <= kCore; }

// A part's name in the table and in JSON, and its time.
struct Part {
  const char* name;
  const char* key;
  double (*seconds)(const Measured&);
};
template <Stage stage>
double seconds_of(const Measured& m) {
  return m.times[stage];
}
constexpr std::array<Part, kNumParts> kParts = {{
    {"attention", "attention", [](const Measured& m) { return m.times.attention(); }},
    {"- projections", "projections", seconds_of<Stage::kAttentionLinear>},
    {"- kv_b by head", "absorbed", seconds_of<Stage::kAttentionAbsorbed>},
    {"- core", "core", seconds_of<Stage::kAttentionCore>},
    {"router", "router", seconds_of<Stage::kRouter>},
    {"hand-off", "dispatch", seconds_of<Stage::kDispatch>},
    {"shared", "shared_experts", seconds_of<Stage::kSharedExperts>},
    {"experts", "combine", seconds_of<Stage::kCombine>},
    {"dense", "dense_ffn", seconds_of<Stage::kDenseFfn>},
    {"head", "head", seconds_of<Stage::kHead>},
    {"prefetch", "prefetch", seconds_of<Stage::kPrefetch>},
    // Norms and residuals, and what the engine does around the step.
    {"others", "others",
     [](const Measured& m) { return m.seconds - m.times.total() + m.times[Stage::kOther]; }},
}};

// Something to read and to compute.
struct WorkItem {
  double bytes = 0;
  double operations = 0;
  kernels::Activations activations = kernels::Activations::kF32;  // which peak bounds them

  double read_seconds(const MachineLimit& limit) const {
    return bytes / limit.read_bytes_per_second;
  }
  double compute_seconds(const MachineLimit& limit) const {
    const bool int8 = activations == kernels::Activations::kI8 && limit.int8_op_per_second > 0;
    return operations / (int8 ? limit.int8_op_per_second : limit.fma_flop_per_second);
  }
};

// What a part of some steps has to read and to compute, matrix by matrix.
class Work {
 public:
  void add(const WorkItem& item) { items_.push_back(item); }
  void add(const Work& other) {
    items_.insert(items_.end(), other.items_.begin(), other.items_.end());
  }
  // Seconds that no machine of this limit can beat: of each item the longer of reading its bytes
  // and doing its operations.
  double floor_seconds(const MachineLimit& limit) const {
    double seconds = 0;
    for (const WorkItem& item : items_) {
      seconds += std::max(item.read_seconds(limit), item.compute_seconds(limit));
    }
    return seconds;
  }
  // Which of the two is longer over all: "read" or "compute"; "none" of no work.
  const char* bound(const MachineLimit& limit) const {
    double read = 0, compute = 0;
    for (const WorkItem& item : items_) {
      read += item.read_seconds(limit);
      compute += item.compute_seconds(limit);
    }
    return read + compute == 0 ? "none" : read >= compute ? "read" : "compute";
  }

 private:
  std::vector<WorkItem> items_;
};
using StepWork = std::array<Work, kNumParts>;

// A matrix as it lies in memory, read `passes` times, for `rows` rows in all.
WorkItem matrix_work(const kernels::PanelShape& shape, double passes, double rows) {
  return {
      .bytes = passes * static_cast<double>(shape.total_code_bytes() + shape.total_scale_bytes()),
      .operations = 2 * rows * static_cast<double>(shape.outputs * shape.k),
      .activations = shape.activations};
}

// One routed expert, read once for one row.
WorkItem expert_work(const deployment::DeploymentOptions& options) {
  const auto loaded = model::open(options.model_dir);
  WorkItem expert;
  if (loaded->catalog.moe_layers.empty()) return expert;
  const auto tiles = deployment::open_tiles(*loaded, loaded->settle(options.numerics), {});
  for (int tile = 0; tile < tiles->num_tiles(); ++tile) {
    const kernels::TileLayout& layout = tiles->layout(tile);
    for (const auto* shape : {&layout.gate_up, &layout.gate_up, &layout.down}) {
      const WorkItem matrix = matrix_work(*shape, 1, 1);
      expert.bytes += matrix.bytes;
      expert.operations += matrix.operations;
      expert.activations = matrix.activations;
    }
  }
  return expert;
}

// A number of rows (decode) or the whole prompt (prefill). A value of each counted repeat, or of
// each void one where none counted.
struct EngineCase {
  int64_t rows = 0;
  int64_t context = 0;  // decode
  std::vector<double> tokens_per_second, seconds_per_step, floor_per_step;
  struct PartFigures {
    std::vector<double> seconds, floor;  // per step
    std::vector<double> of_floor;        // empty if nothing has to be read or computed
    const char* bound = "none";
  };
  std::array<PartFigures, kNumParts> parts;
  std::vector<double> expert_bytes_per_step, expert_bytes_per_second, experts_of_read;
  std::vector<double> of_floor;
  // With a cold tier: per step, of all nodes.
  struct Cold {
    std::vector<double> disk_bytes, resident_bytes, coordinator_seconds, bound_seconds, of_bound;
  } cold;
  RepeatsDone repeats;
};

struct EngineReport {
  std::vector<double> read, fma, int8;  // of all repeats
  double disk_bytes_per_second = 0;     // 0: no cold tier
  std::vector<EngineCase> cases;
};

// The drives' own rate where nodes are to read from packs: what the user says, or the best of a few
// short probes of the packs' files; 0 where nothing is to be read.
double disk_rate(const EngineBenchOptions& options) {
  if (options.disk_gb_per_second > 0) return options.disk_gb_per_second * 1e9;
  if (!options.deployment.memory.ram_budget) return 0;
  std::vector<std::filesystem::path> files;
  size_t smallest = SIZE_MAX;
  std::vector<std::filesystem::path> dirs = options.deployment.memory.stripes;
  dirs.insert(dirs.begin(), options.deployment.model_dir);
  for (const std::filesystem::path& dir : dirs) {
    if (!storage::Pack::is_pack(dir)) return 0;  // a checkpoint is re-laid: no bound by the disk
    const storage::Pack pack = storage::Pack::open(dir);
    for (size_t place = 0; place < pack.params().layers.size(); ++place) {
      files.push_back(pack.layer_file(place));
      smallest = std::min<size_t>(smallest, std::filesystem::file_size(files.back()));
    }
  }
  if (files.empty()) return 0;
  const size_t block = std::min<size_t>(kProbeBlockBytes, smallest / 4096 * 4096);
  const auto probe = storage::make_disk_probe(files, kProbeBytes);
  double best = 0;
  for (const int depth : kProbeDepths) {
    best = std::max(best, probe->run(block, depth, 0.5, storage::ProbeMemory::kInTurn));
  }
  return best;
}

// The model, its sequences and the probe. Steps take random tokens, so that the router's choices
// spread as those of different texts do.
class EngineBench {
 public:
  EngineBench(const EngineBenchOptions& options, deployment::DeploymentOptions deployment,
              int64_t num_sequences)
      : options_(options),
        expert_(expert_work(deployment)),
        deployment_(deployment),
        team_(deployment_.threads().num_threads, deployment_.threads().cpus),
        probe_(team_),
        sequences_(num_sequences) {
    if (!options.cold_start) deployment_.wait_until_warm();
  }

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
      const int64_t count = std::min(options_.deployment.rows_max, end - sequences_[0].num_tokens);
      const bool last = sequences_[0].num_tokens + count == end;
      step(1, count, last ? logits : WantLogits::kNone);
    }
    std::swap(sequences_[0], sequences_[sequence]);
  }

  // All sequences at `num_tokens` positions of made-up cache entries.
  void fill_contexts(int64_t num_tokens) {
    for (Sequence& sequence : sequences_) {
      deployment_.engine().release(sequence);
      const Status filled = deployment_.engine().fill_context(sequence, num_tokens, options_.seed);
      if (!filled) throw LoadError(filled.error().message);
    }
  }

  // Takes the first sequences back to `num_tokens`: later entries of their blocks are written anew
  // before they are read.
  void rewind(int64_t num_sequences, int64_t num_tokens) {
    for (int64_t s = 0; s < num_sequences; ++s) sequences_[s].num_tokens = num_tokens;
  }

  // Tokens of the following steps are others than those before, so that a cache of experts does not
  // hold what the last pass has left.
  void begin_pass() { ++pass_; }

  // Runs `work` in counted repeats; `tokens` and `work` describe one of them.
  template <typename Run>
  EngineCase measure(int64_t rows, int64_t tokens, EngineReport* report, const Run& run,
                     const std::function<StepWork(const Measured&)>& work) {
    EngineCase counted, voided;
    Measured measured;
    const RepeatsDone repeats = run_repeats(
        options_.repeats, deployment_.clock(), [this] { return probe_.measure(); },
        [&] { measured = timed(run); },
        [&](const MachineLimit& limit, bool counts) {
          add_repeat(measured, static_cast<double>(tokens), work(measured), limit,
                     report->disk_bytes_per_second, counts ? &counted : &voided);
          report->read.push_back(limit.read_bytes_per_second);
          report->fma.push_back(limit.fma_flop_per_second);
          report->int8.push_back(limit.int8_op_per_second);
        });
    EngineCase result = repeats.reliable() ? std::move(counted) : std::move(voided);
    result.rows = rows;
    result.repeats = repeats;
    return result;
  }

  // `steps` passes over the coordinator's matrices, `rows` rows in all, of which `head_rows` in
  // `head_steps` passes get logits.
  void add_matrices(int64_t steps, int64_t rows, int64_t head_steps, int64_t head_rows,
                    StepWork* work) {
    const auto add = [&](const coordinator::Linear& linear, PartId part, int64_t passes,
                         int64_t n) {
      (*work)[part].add(
          matrix_work(linear.matrix.shape, static_cast<double>(passes), static_cast<double>(n)));
    };
    const coordinator::Weights& weights = deployment_.engine().weights();
    for (size_t layer = 0; layer < weights.layers().size(); ++layer) {
      const coordinator::LayerWeights& w = weights.layers()[layer];
      const coordinator::AttentionWeights& a = w.attention;
      for (const auto* linear : {&a.q_a_proj, &a.q_proj, &a.kv_a_proj, &a.o_proj}) {
        add(*linear, kProjections, steps, rows);
      }
      for (const auto* heads : {&a.w_k, &a.w_v}) {
        for (const coordinator::Linear& linear : *heads) add(linear, kAbsorbed, steps, rows);
      }
      add(w.router, kRouter, steps, rows);
      const bool moe = config().is_moe_layer(static_cast<int64_t>(layer));
      for (const auto* linear : {&w.ffn.gate_proj, &w.ffn.up_proj, &w.ffn.down_proj}) {
        add(*linear, moe ? kShared : kDense, steps, rows);
      }
    }
    add(weights.lm_head(), kHead, head_steps, head_rows);
  }
  void add_experts(const Measured& measured, int64_t rows, StepWork* work) const {
    int64_t moe_layers = 0;
    for (int64_t layer = 0; layer < config().num_hidden_layers; ++layer) {
      if (config().is_moe_layer(layer)) ++moe_layers;
    }
    const auto pairs = static_cast<double>(rows * config().num_experts_per_tok * moe_layers);
    (*work)[kExperts].add({measured.expert_bytes, pairs * expert_.operations, expert_.activations});
  }
  // Attention over the cache: `attended` positions summed over rows, `read` positions summed over
  // passes through a cache. Per head and position 2 (C + dr) operations for the score, 2 C for the
  // sum.
  void add_attention(double attended, double read, StepWork* work) const {
    const model::ModelConfig& c = config();
    const auto layers = static_cast<double>(c.num_hidden_layers);
    const auto width = static_cast<double>(c.kv_lora_rank + c.qk_rope_head_dim);
    const double flop = 2 * width + 2 * static_cast<double>(c.kv_lora_rank);
    const auto element =
        static_cast<double>(kernels::element_bytes(options_.deployment.numerics.cache));
    (*work)[kCore].add(
        {.bytes = layers * read * width * element,
         .operations = layers * attended * flop * static_cast<double>(c.num_attention_heads)});
  }

 private:
  static void add_repeat(const Measured& measured, double tokens, StepWork work,
                         const MachineLimit& limit, double disk_rate, EngineCase* result) {
    const auto steps = static_cast<double>(measured.times.steps);
    result->tokens_per_second.push_back(tokens / measured.seconds);
    result->seconds_per_step.push_back(measured.seconds / steps);
    const double floor = add_parts(measured, std::move(work), limit, result);
    if (measured.expert_seconds > 0) {
      const double rate = measured.expert_bytes / measured.expert_seconds;
      result->expert_bytes_per_step.push_back(measured.expert_bytes / steps);
      result->expert_bytes_per_second.push_back(rate);
      result->experts_of_read.push_back(rate / limit.read_bytes_per_second);
    }
    if (disk_rate > 0) add_cold(measured, limit, disk_rate, &result->cold);
    result->floor_per_step.push_back(floor / steps);
    result->of_floor.push_back(floor / measured.seconds);
  }

  // Time and floor of each part of the repeat; the floor of all.
  static double add_parts(const Measured& measured, StepWork work, const MachineLimit& limit,
                          EngineCase* result) {
    const auto steps = static_cast<double>(measured.times.steps);
    for (size_t detail : {kProjections, kAbsorbed, kCore}) work[kAttention].add(work[detail]);
    double all = 0;
    for (size_t i = 0; i < kNumParts; ++i) {
      EngineCase::PartFigures& part = result->parts[i];
      const double seconds = kParts[i].seconds(measured), floor = work[i].floor_seconds(limit);
      part.seconds.push_back(seconds / steps);
      part.floor.push_back(floor / steps);
      part.bound = work[i].bound(limit);
      if (floor > 0 && seconds > 0) part.of_floor.push_back(floor / seconds);
      if (!is_detail(i)) all += floor;
    }
    return all;
  }

  // What no cold tier could beat: the missing experts at the drive's rate while the resident ones
  // are read from RAM, and what the coordinator does besides waiting.
  static void add_cold(const Measured& measured, const MachineLimit& limit, double disk_rate,
                       EngineCase::Cold* cold) {
    const auto steps = static_cast<double>(measured.times.steps);
    const double coordinator = measured.seconds - measured.times[Stage::kCombine];
    const double bound = std::max(measured.disk_bytes / disk_rate,
                                  measured.resident_bytes / limit.read_bytes_per_second) +
                         coordinator;
    cold->disk_bytes.push_back(measured.disk_bytes / steps);
    cold->resident_bytes.push_back(measured.resident_bytes / steps);
    cold->coordinator_seconds.push_back(coordinator / steps);
    cold->bound_seconds.push_back(bound / steps);
    cold->of_bound.push_back(bound / measured.seconds);
  }

  struct NodeTotals {
    std::vector<uint64_t> tiles, hits, misses, disk_bytes;
    std::vector<double> seconds;
  };
  NodeTotals node_totals() {
    NodeTotals totals;
    for (const deployment::Deployment::NodeReport& node : deployment_.node_reports()) {
      totals.tiles.push_back(node.stats.tiles_computed);
      totals.seconds.push_back(node.stats.compute_seconds);
      totals.hits.push_back(node.stats.cache.hits);
      totals.misses.push_back(node.stats.cache.misses);
      totals.disk_bytes.push_back(node.stats.cache.bytes_read);
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
    measured.times = deployment_.engine().times().since(times_before);
    const NodeTotals after = node_totals();
    if (after.tiles.size() != before.tiles.size()) throw LoadError("an expert node was lost");
    // Each expert is computed as all of its tiles, whoever owns them.
    const auto tiles_per_expert =
        static_cast<double>(kernels::num_tiles(config().moe_intermediate_size));
    for (size_t n = 0; n < after.tiles.size(); ++n) {
      const auto tiles = static_cast<double>(after.tiles[n] - before.tiles[n]);
      const double bytes = tiles / tiles_per_expert * expert_.bytes;
      const auto hits = static_cast<double>(after.hits[n] - before.hits[n]);
      const auto asked = hits + static_cast<double>(after.misses[n] - before.misses[n]);
      measured.expert_bytes += bytes;
      measured.resident_bytes += asked > 0 ? bytes * hits / asked : bytes;
      measured.disk_bytes += static_cast<double>(after.disk_bytes[n] - before.disk_bytes[n]);
      measured.expert_seconds =
          std::max(measured.expert_seconds, after.seconds[n] - before.seconds[n]);
    }
    return measured;
  }

  int32_t random_token(int64_t sequence, int64_t position) const {
    const double u =
        uniform_f64(options_.seed, {.sample_index = (pass_ << 32) + static_cast<uint64_t>(sequence),
                                    .position = static_cast<uint64_t>(position)});
    return static_cast<int32_t>(u * static_cast<double>(config().vocab_size));
  }

  const EngineBenchOptions& options_;
  const WorkItem expert_;
  deployment::Deployment deployment_;
  ThreadTeam team_;
  const std::unique_ptr<ScopedThreadPin> pin_ = deployment_.pin_engine_thread();
  topology::MachineProbe probe_;
  std::vector<Sequence> sequences_;
  uint64_t pass_ = 0;
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
  const int64_t longest = *std::max_element(options.contexts.begin(), options.contexts.end());
  const int64_t end = longest + options.steps;
  check_positions(options, end, "--context with --steps");
  deployment::DeploymentOptions deployment = options.deployment;
  deployment.rows_max = std::max(deployment.rows_max, rows_max);
  deployment.cache_tokens = rows_max * round_up(end, kernels::kAttentionBlock);
  deployment.cache_option.advice = "fewer --rows or a shorter --context";
  EngineReport report;
  report.disk_bytes_per_second = disk_rate(options);
  EngineBench bench(options, deployment, rows_max);
  for (const int64_t context : options.contexts) {
    bench.fill_contexts(context);
    for (const int64_t rows : options.rows) {
      const auto run = [&] {
        bench.rewind(rows, context);
        bench.begin_pass();
        for (int64_t i = 0; i < options.steps; ++i) bench.step(rows, 1, WantLogits::kLast);
      };
      run();  // touches buffers and pages
      const int64_t tokens = rows * options.steps;
      const auto work = [&](const Measured& measured) {
        StepWork work;
        bench.add_matrices(options.steps, tokens, options.steps, tokens, &work);
        bench.add_experts(measured, tokens, &work);
        double positions = 0;
        for (int64_t i = 1; i <= options.steps; ++i) {
          positions += static_cast<double>(rows * (context + i));
        }
        bench.add_attention(positions, positions, &work);
        return work;
      };
      report.cases.push_back(bench.measure(rows, tokens, &report, run, work));
      report.cases.back().context = context;
    }
  }
  return report;
}

EngineReport measure_prefill(const EngineBenchOptions& options) {
  check_positions(options, options.tokens, "--tokens");
  deployment::DeploymentOptions deployment = options.deployment;
  deployment.cache_tokens = options.tokens;
  deployment.cache_option.advice = "fewer --tokens";
  EngineReport report;
  report.disk_bytes_per_second = disk_rate(options);
  EngineBench bench(options, deployment, 1);
  const auto run = [&] {
    bench.rewind(1, 0);
    bench.begin_pass();
    bench.prefill(0, options.tokens, WantLogits::kLast);
  };
  run();  // touches buffers and pages
  const int64_t chunk = options.deployment.rows_max;
  report.cases.push_back(
      bench.measure(options.tokens, options.tokens, &report, run, [&](const Measured& measured) {
        StepWork work;
        bench.add_matrices(ceil_div(options.tokens, chunk), options.tokens, 1, 1, &work);
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

std::string ms(std::vector<double> values) {
  for (double& value : values) value *= 1e3;
  return median_text(values, "{:.3g}");
}

// Where one case's time goes, part by part.
std::string parts_text(const EngineCase& c) {
  Table table({{"part", Align::kLeft},
               {"ms/step", Align::kRight},
               {"of step", Align::kRight},
               {"floor ms", Align::kRight},
               {"bound", Align::kLeft},
               {"of floor", Align::kRight}});
  const double step = summarize(c.seconds_per_step).median;
  for (size_t i = 0; i < kNumParts; ++i) {
    const EngineCase::PartFigures& part = c.parts[i];
    const bool has_floor = !part.of_floor.empty();
    table.add_row({kParts[i].name, ms(part.seconds),
                   fmt::format("{:.3f}", summarize(part.seconds).median / step),
                   has_floor ? ms(part.floor) : "-", has_floor ? part.bound : "-",
                   has_floor ? median_text(part.of_floor, "{:.3f}") : "-"});
  }
  return table.to_string("  ");
}

// What bounds a case with a cold tier, in one line.
std::string cold_text(const EngineCase& c, double disk_bytes_per_second) {
  const double disk = summarize(c.cold.disk_bytes).median;
  const double resident = summarize(c.cold.resident_bytes).median;
  const double bound = summarize(c.cold.bound_seconds).median;
  return fmt::format(
      "  cold tier: {} a step from disk at {} = {}; {} from RAM; coordinator {}; bound {}, {:.4g} "
      "tokens/s; of bound {}\n",
      format_bytes(static_cast<uint64_t>(disk)), format_rate(disk_bytes_per_second),
      format_duration(disk / disk_bytes_per_second), format_bytes(static_cast<uint64_t>(resident)),
      format_duration(summarize(c.cold.coordinator_seconds).median), format_duration(bound),
      summarize(c.tokens_per_second).median / summarize(c.cold.of_bound).median,
      median_text(c.cold.of_bound, "{:.3f}"));
}

// `heading` of the rows (decode) or tokens (prefill), with a column for the context in decode.
std::string to_text(const EngineReport& report, const char* heading, bool with_context) {
  std::vector<Table::Column> columns;
  if (with_context) columns.push_back({"context", Align::kRight});
  for (const char* name : {heading, "tokens/s", "spread", "ms/step", "floor ms", "of floor",
                           "expert GB/s", "of read", "counted", "void"}) {
    columns.push_back({name, Align::kRight});
  }
  Table table(std::move(columns));
  std::string parts;
  for (const EngineCase& c : report.cases) {
    std::vector<std::string> cells;
    if (with_context) cells.push_back(std::to_string(c.context));
    for (std::string cell : {std::to_string(c.rows), median_text(c.tokens_per_second, "{:.4g}"),
                             spread_text(c.tokens_per_second), ms(c.seconds_per_step),
                             ms(c.floor_per_step), median_text(c.of_floor, "{:.3f}"),
                             median_text(in_giga(c.expert_bytes_per_second), "{:.2f}"),
                             median_text(c.experts_of_read, "{:.3f}"), counted_text(c.repeats),
                             std::to_string(c.repeats.voided)}) {
      cells.push_back(std::move(cell));
    }
    table.add_row(std::move(cells));
    if (c.of_floor.empty()) continue;
    parts += with_context ? fmt::format("\n{} {}, context {}:\n", c.rows, heading, c.context)
                          : fmt::format("\n{} {}:\n", c.rows, heading);
    parts += parts_text(c);
    if (!c.cold.of_bound.empty()) parts += cold_text(c, report.disk_bytes_per_second);
  }
  return fmt::format("limits: read {} GB/s, FMA {} GFLOP/s, int8 {} Gop/s\n",
                     median_text(in_giga(report.read), "{:.2f}"),
                     median_text(in_giga(report.fma), "{:.1f}"),
                     median_text(in_giga(report.int8), "{:.1f}")) +
         table.to_string("") + unreliable_note(report.cases) + parts;
}

Json cold_json(const EngineCase& c) {
  return {{"disk_bytes_per_step", summary_json<Json>(c.cold.disk_bytes)},
          {"resident_bytes_per_step", summary_json<Json>(c.cold.resident_bytes)},
          {"coordinator_seconds_per_step", summary_json<Json>(c.cold.coordinator_seconds)},
          {"bound_seconds_per_step", summary_json<Json>(c.cold.bound_seconds)},
          {"of_bound", summary_json<Json>(c.cold.of_bound)}};
}

Json case_json(const EngineCase& c, const char* rows_key) {
  Json seconds = Json::object(), details = Json::object(), floors = Json::object();
  for (size_t i = 0; i < kNumParts; ++i) {
    const EngineCase::PartFigures& part = c.parts[i];
    (is_detail(i) ? details : seconds)[kParts[i].key] = summary_json<Json>(part.seconds);
    if (part.of_floor.empty()) continue;
    floors[kParts[i].key] = {{"bound", part.bound},
                             {"seconds_per_step", summary_json<Json>(part.floor)},
                             {"of_floor", summary_json<Json>(part.of_floor)}};
  }
  return {{rows_key, c.rows},
          {"tokens_per_second", summary_json<Json>(c.tokens_per_second)},
          {"seconds_per_step", summary_json<Json>(c.seconds_per_step)},
          {"floor_seconds_per_step", summary_json<Json>(c.floor_per_step)},
          {"of_floor", summary_json<Json>(c.of_floor)},
          {"part_seconds_per_step", seconds},
          {"attention_seconds_per_step", details},
          {"part_floors", floors},
          {"expert_bytes_per_step", summary_json<Json>(c.expert_bytes_per_step)},
          {"expert_bytes_per_second", summary_json<Json>(c.expert_bytes_per_second)},
          {"experts_of_read", summary_json<Json>(c.experts_of_read)},
          {"repeats", c.repeats.counted},
          {"voided", c.repeats.voided},
          {"reliable", c.repeats.reliable()}};
}

Json to_json(const EngineBenchOptions& options, const EngineReport& report, const char* rows_key,
             bool with_context) {
  Json cases = Json::array();
  for (const EngineCase& c : report.cases) {
    cases.push_back(case_json(c, rows_key));
    if (with_context) cases.back()["context"] = c.context;
    if (report.disk_bytes_per_second > 0) cases.back()["cold_tier"] = cold_json(c);
  }
  return {{"nodes", options.deployment.nodes},
          {"chunk", options.deployment.rows_max},
          {"limit",
           {{"read_bytes_per_second", summary_json<Json>(report.read)},
            {"fma_flop_per_second", summary_json<Json>(report.fma)},
            {"int8_op_per_second", summary_json<Json>(report.int8)},
            {"disk_bytes_per_second", report.disk_bytes_per_second}}},
          {"cases", cases}};
}

void add_shared_options(CLI::App& command, EngineBenchOptions* options) {
  add_deployment_options(command, &options->deployment);
  add_repeats_option(command, &options->repeats);
  add_cold_start_option(command, &options->cold_start);
  command
      .add_option("--disk-rate", options->disk_gb_per_second,
                  "Rate of the drives, for the bound of a cold tier; with --ram-budget and a pack "
                  "it is measured before unless given")
      ->check(CLI::Range(1e-3, 1e6))
      ->type_name("GB/s");
  command.add_option("--seed", options->seed, "Of the random tokens")->capture_default_str();
  command.add_flag("--json", options->json, "One JSON object in place of the table");
  group_options(command, "Memory", {"--cold-start", "--disk-rate"});
  group_options(command, "Report", {"--repeats", "--seconds-max", "--json"});
}

}  // namespace

void add_bench_decode_command(CLI::App& bench, int* exit_code) {
  auto options = std::make_shared<EngineBenchOptions>();
  CLI::App* command =
      bench.add_subcommand("decode", "Steps of one token per sequence: tokens/s, time per part");
  add_shared_options(*command, options.get());
  add_list_option(*command, "--rows", "Sequences that are stepped together", 1, 512,
                  &options->rows);
  add_list_option(*command, "--context", "Tokens in each cache before, made up", 0,
                  int64_t{1} << 30, &options->contexts);
  command->add_option("--steps", options->steps, "Steps of one repeat")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str();
  command->footer(
      "Example:\n  atoll bench decode tests/models/tiny-fp8 --rows 1,4 --context 0,4096");
  command->callback([options, exit_code] {
    const EngineReport report = measure_decode(*options);
    Json json = to_json(*options, report, "rows", true);
    json["contexts"] = options->contexts;
    json["steps"] = options->steps;
    write_stdout(options->json ? json.dump(2) + "\n" : to_text(report, "rows", true));
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
    write_stdout(options->json ? to_json(*options, report, "tokens", false).dump(2) + "\n"
                               : to_text(report, "tokens", false));
    *exit_code = 0;
  });
}

}  // namespace atl::cli
