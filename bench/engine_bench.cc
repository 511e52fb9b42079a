#include "bench/engine_bench.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/log.h"
#include "base/rng.h"
#include "base/thread_team.h"
#include "base/units.h"
#include "kernels/attention.h"
#include "storage/io/disk_probe.h"
#include "storage/pack/pack.h"
#include "storage/tiles/tile_store.h"
#include "topology/machine_limit.h"

namespace atl::bench {
namespace {

using coordinator::Sequence;
using coordinator::SequenceRows;
using coordinator::Stage;
using coordinator::StepTimes;
using coordinator::WantLogits;
using topology::MachineLimit;

// Of the probe of the drive: the largest block, the memory that blocks go to in turn, as experts go
// to slots, and how many reads are under way.
constexpr size_t kProbeBlockBytes = 2 * kMiB, kProbeBytes = 256 * kMiB;
constexpr std::array kProbeDepths = {4, 8, 16, 32};
static_assert(kProbeBytes >= kProbeBlockBytes * kProbeDepths.back());

// What one repeat took.
struct Measured {
  double seconds = 0;
  StepTimes times;
  double expert_bytes = 0;    // weights of experts read, over all nodes
  double expert_seconds = 0;  // of the node that computed longest
  double disk_bytes = 0;      // read by all nodes
  double resident_bytes = 0;  // of expert_bytes, those that were in RAM when asked for
};

// The time of each part.
using SecondsOf = double (*)(const Measured&);
template <Stage stage>
double seconds_of(const Measured& m) {
  return m.times[stage];
}
constexpr std::array<SecondsOf, kNumEngineParts> kSecondsOf = {
    [](const Measured& m) { return m.times.attention(); },
    seconds_of<Stage::kAttentionLinear>,
    seconds_of<Stage::kAttentionAbsorbed>,
    seconds_of<Stage::kAttentionCore>,
    seconds_of<Stage::kRouter>,
    seconds_of<Stage::kDispatch>,
    seconds_of<Stage::kSharedExperts>,
    seconds_of<Stage::kCombine>,
    seconds_of<Stage::kDenseFfn>,
    seconds_of<Stage::kHead>,
    seconds_of<Stage::kPrefetch>,
    // Norms and residuals, and what the engine does around the step.
    [](const Measured& m) { return m.seconds - m.times.total() + m.times[Stage::kOther]; },
};

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
using StepWork = std::array<Work, kNumEngineParts>;

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
    const auto add = [&](const coordinator::Linear& linear, EnginePart part, int64_t passes,
                         int64_t n) {
      (*work)[part].add(
          matrix_work(linear.matrix.shape, static_cast<double>(passes), static_cast<double>(n)));
    };
    const coordinator::Weights& weights = deployment_.engine().weights();
    for (size_t layer = 0; layer < weights.layers().size(); ++layer) {
      const coordinator::LayerWeights& w = weights.layers()[layer];
      if (const auto* mla = std::get_if<coordinator::MlaWeights>(&w.attention)) {
        for (const auto* linear : {&mla->q_a_proj, &mla->q_proj, &mla->kv_a_proj, &mla->o_proj}) {
          add(*linear, kProjections, steps, rows);
        }
        for (const auto* heads : {&mla->w_k, &mla->w_v}) {
          for (const coordinator::Linear& linear : *heads) add(linear, kAbsorbed, steps, rows);
        }
      } else {
        const auto& gqa = std::get<coordinator::GqaWeights>(w.attention);
        for (const auto* linear : {&gqa.q_proj, &gqa.k_proj, &gqa.v_proj, &gqa.o_proj}) {
          add(*linear, kProjections, steps, rows);
        }
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
    const bool mla = c.attention_kind() == model::AttentionKind::kMla;
    const auto width = static_cast<double>(
        coordinator::cache_shape(c, options_.deployment.numerics.cache).values());
    const double flop = mla ? 2 * width + 2 * static_cast<double>(c.kv_lora_rank)
                            : 4 * static_cast<double>(c.head_dim);
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
    for (size_t i = 0; i < kNumEngineParts; ++i) {
      EngineCase::PartFigures& part = result->parts[i];
      const double seconds = kSecondsOf[i](measured), floor = work[i].floor_seconds(limit);
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
    if (after.tiles.empty()) return measured;  // a model without experts
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

}  // namespace

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

}  // namespace atl::bench
