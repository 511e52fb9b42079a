// atoll bench kernels: whole experts out of memory, beside the machine's read rate and FMA peak.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/check.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/result.h"
#include "base/thread_team.h"
#include "base/units.h"
#include "cli/bench_report.h"
#include "cli/output.h"
#include "cli/table.h"
#include "kernels/cpu/dispatch.h"
#include "kernels/tile.h"
#include "topology/machine_limit.h"

namespace atl::cli {
namespace {

using kernels::TileLayout;
using kernels::WeightFormat;
using topology::MachineLimit;
using Json = nlohmann::ordered_json;

// A repeat is at least this long, so that the clock and a thread's wake-up don't count.
constexpr double kRepeatSeconds = 0.2;
constexpr double kL2PassSeconds = 0.02;
constexpr int kL2Passes = 5;
// How the expert node cuts a phase into units (expert_node/executor.cc).
constexpr int64_t kUnitsPerThread = 4;
constexpr int64_t kPanelsPerUnitMax = 8;
// Experts in memory unless the user says how many: what no cache holds any of when their turn comes
// again.
constexpr uint64_t kExpertBytesMin = 512 * kMiB;

struct KernelOptions {
  std::vector<std::string> formats{"fp8", "bf16"};
  std::vector<int64_t> rows{1, 2, 4, 8, 16, 64, 256};
  int threads = 0;  // 0: all usable cores
  int64_t hidden = 7168;
  int64_t intermediate = 2048;
  int64_t experts_in_ram = 0;  // 0: see kExpertBytesMin
  int repeats = 5;
  bool json = false;
};

WeightFormat parse_format(const std::string& name) {
  return name == "f32"    ? WeightFormat::kF32
         : name == "bf16" ? WeightFormat::kBf16
                          : WeightFormat::kFp8E4m3;
}

// MemAvailable of the kernel; 0 where it doesn't tell.
uint64_t available_memory_bytes() {
  std::ifstream in("/proc/meminfo");
  for (std::string line; std::getline(in, line);) {
    unsigned long long kib = 0;
    if (std::sscanf(line.c_str(), "MemAvailable: %llu kB", &kib) == 1) return kib * kKiB;
  }
  return 0;
}

// Sizes of an expert, or of its first tiles.
struct ExpertShape {
  WeightFormat format = WeightFormat::kFp8E4m3;
  int64_t hidden = 0;
  std::vector<TileLayout> tiles;

  int64_t weights() const {
    int64_t columns = 0;
    for (const TileLayout& tile : tiles) columns += tile.width;
    return 3 * hidden * columns;
  }
  // What the kernels read: codes and scales, without the padding between tiles.
  uint64_t weight_bytes() const {
    uint64_t bytes = 0;
    for (const TileLayout& tile : tiles) {
      bytes += 2 * (tile.gate_up.total_code_bytes() + tile.gate_up.total_scale_bytes()) +
               tile.down.total_code_bytes() + tile.down.total_scale_bytes();
    }
    return bytes;
  }
  uint64_t extent_bytes() const {
    uint64_t bytes = 0;
    for (const TileLayout& tile : tiles) bytes += tile.bytes;
    return bytes;
  }
};

ExpertShape expert_shape(WeightFormat format, int64_t hidden, int64_t intermediate) {
  ExpertShape shape{format, hidden, {}};
  for (int tile = 0; tile < kernels::num_tiles(intermediate); ++tile) {
    shape.tiles.push_back(kernels::tile_layout(format, hidden, intermediate, tile));
  }
  return shape;
}

// One tile of the regular width whose hidden size is cut until it fills half of a core's second
// level, so that rows and sums stay there, too.
ExpertShape l2_shape(WeightFormat format) {
  constexpr int64_t kWidth = 128;
  const uint64_t column_bytes = 3 * kWidth * kernels::code_bits(format) / 8;
  const auto fitting = static_cast<int64_t>(topology::l2_cache_bytes() / 2 / column_bytes);
  const int64_t hidden = std::max<int64_t>(kWidth, fitting / kWidth * kWidth);
  return {format, hidden, {kernels::tile_layout(format, hidden, 4 * kWidth, 0)}};
}

// Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014 (splitmix64).
uint64_t mix(uint64_t value) {
  value += 0x9e3779b97f4a7c15u;
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9u;
  value = (value ^ (value >> 27)) * 0x94d049bb133111ebu;
  return value ^ (value >> 31);
}

// Bits of a code that are random and those that are set: magnitudes below 2; BF16 and F32 from 2^-7
// on, as subnormals would cost what real weights don't.
struct CodeBits {
  uint64_t random, set;
};
CodeBits random_code_bits(WeightFormat format) {
  switch (format) {
    case WeightFormat::kFp8E4m3:
      return {0xb7b7b7b7b7b7b7b7u, 0};
    case WeightFormat::kBf16:
    case WeightFormat::kInt4:  // whose scales are BF16, among codes that may be anything
      return {0x83ff83ff83ff83ffu, 0x3c003c003c003c00u};
    case WeightFormat::kF32:
      return {0x83ffffff83ffffffu, 0x3c0000003c000000u};
  }
  return {};
}

// Random experts as a node holds them: tile after tile, each in panels.
class ExpertMemory {
 public:
  ExpertMemory(ThreadTeam& team, ExpertShape shape, int64_t num_experts)
      : shape_(std::move(shape)),
        num_experts_(num_experts),
        buffer_(shape_.extent_bytes() * static_cast<uint64_t>(num_experts)) {
    const auto num_tiles = static_cast<int64_t>(shape_.tiles.size());
    team.parallel_for(num_experts * num_tiles, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) fill(i / num_tiles, i % num_tiles);
    });
  }

  const ExpertShape& shape() const { return shape_; }
  int64_t num_experts() const { return num_experts_; }
  kernels::TileView tile(int64_t expert, size_t tile) const {
    return {&shape_.tiles[tile], buffer_.data() + offset(expert, tile)};
  }

 private:
  // All tiles but the last have the same size.
  uint64_t offset(int64_t expert, size_t tile) const {
    return static_cast<uint64_t>(expert) * shape_.extent_bytes() + tile * shape_.tiles[0].bytes;
  }
  void fill(int64_t expert, size_t tile) {
    const TileLayout& layout = shape_.tiles[tile];
    std::byte* data = buffer_.data() + offset(expert, tile);
    auto* words = reinterpret_cast<uint64_t*>(data);
    const CodeBits bits = random_code_bits(shape_.format);
    const uint64_t first = offset(expert, tile) / sizeof(uint64_t);
    for (size_t i = 0; i < layout.bytes / sizeof(uint64_t); ++i) {
      words[i] = (mix(first + i) & bits.random) | bits.set;
    }
    if (layout.gate_up.total_scale_bytes() == 0) return;
    // Scales are all that follows the codes.
    auto* scales = reinterpret_cast<float*>(data + layout.gate_scales);
    std::fill(scales, reinterpret_cast<float*>(data + layout.bytes), 0.01f);
  }

  ExpertShape shape_;
  int64_t num_experts_;
  HostBuffer buffer_;
};

// Rows through whole experts with the functions and the cutting of the expert node's executor.
class ExpertRunner {
 public:
  ExpertRunner(ThreadTeam& team, const ExpertMemory& memory, int64_t num_rows)
      : team_(team), memory_(memory), bad_(team.num_threads()) {
    const int64_t hidden = memory.shape().hidden;
    x_.resize(num_rows * hidden);
    for (size_t i = 0; i < x_.size(); ++i) {
      x_[i] = static_cast<float>(static_cast<int64_t>(mix(i) % 2001) - 1000) * 1e-3f;
    }
    sums_.assign(num_rows * hidden, 0);
    weights_.assign(num_rows, 0.125f);
    for (std::vector<uint8_t>& bad : bad_) bad.assign(num_rows, 0);
    for (int64_t row = 0; row < num_rows; ++row) {
      x_rows_.push_back(&x_[row * hidden]);
      sum_rows_.push_back(&sums_[row * hidden]);
    }
    for (const TileLayout& tile : memory.shape().tiles) {
      std::vector<float>& h = h_.emplace_back(num_rows * tile.width);
      std::vector<float*>& rows = h_rows_.emplace_back();
      for (int64_t row = 0; row < num_rows; ++row) rows.push_back(&h[row * tile.width]);
      h_read_.emplace_back(rows.begin(), rows.end());
    }
    cut_gate_up();
  }

  // gate, up, SiLU; then down and the integer sum.
  void run(int64_t expert) {
    team_.parallel_for(
        static_cast<int64_t>(units_.size()), 1, [&](int64_t begin, int64_t end, int) {
          for (int64_t u = begin; u < end; ++u) {
            const Unit& unit = units_[u];
            kernels::tile_gate_up(memory_.tile(expert, unit.tile), unit.panel_begin, unit.panel_end,
                                  x_rows_, weights_, h_rows_[unit.tile]);
          }
        });
    const int64_t panels = ceil_div(memory_.shape().hidden, kernels::kPanelWidth);
    team_.parallel_for(panels, panels_per_unit(panels),
                       [&](int64_t begin, int64_t end, int member) {
                         for (size_t tile = 0; tile < h_.size(); ++tile) {
                           kernels::tile_down_accumulate(memory_.tile(expert, tile), begin, end,
                                                         h_read_[tile], sum_rows_, bad_[member]);
                         }
                       });
  }

  // Seconds for `count` experts in turn, beginning after the last one of the call before.
  double time(int64_t count) {
    const double start = topology::team_seconds(team_);
    for (int64_t i = 0; i < count; ++i) {
      run(next_);
      next_ = (next_ + 1) % memory_.num_experts();
    }
    const double seconds = topology::team_seconds(team_) - start;
    for (const std::vector<uint8_t>& bad : bad_) {
      CHECK(std::all_of(bad.begin(), bad.end(), [](uint8_t flag) { return flag == 0; }));
    }
    return seconds;
  }

  // How many experts take `seconds` or a little more, at least one.
  int64_t experts_for(double seconds) {
    const double one = std::min(time(1), time(1));
    return std::max<int64_t>(1, static_cast<int64_t>(seconds / std::max(one, 1e-7)) + 1);
  }

 private:
  struct Unit {
    size_t tile;
    int64_t panel_begin, panel_end;
  };
  int64_t panels_per_unit(int64_t panels) const {
    return std::clamp<int64_t>(panels / (kUnitsPerThread * team_.num_threads()), 1,
                               kPanelsPerUnitMax);
  }
  void cut_gate_up() {
    int64_t all = 0;
    const std::vector<TileLayout>& tiles = memory_.shape().tiles;
    for (const TileLayout& tile : tiles) all += tile.gate_up.num_panels();
    const int64_t step = panels_per_unit(all);
    for (size_t tile = 0; tile < tiles.size(); ++tile) {
      const int64_t panels = tiles[tile].gate_up.num_panels();
      for (int64_t panel = 0; panel < panels; panel += step) {
        units_.push_back({tile, panel, std::min(panel + step, panels)});
      }
    }
  }

  ThreadTeam& team_;
  const ExpertMemory& memory_;
  std::vector<float> x_;        // [rows, hidden]
  std::vector<float> weights_;  // [rows]
  std::vector<int64_t> sums_;   // [rows, hidden]
  std::vector<const float*> x_rows_;
  std::vector<int64_t*> sum_rows_;
  std::vector<std::vector<float>> h_;  // [tile][rows, width]
  std::vector<std::vector<float*>> h_rows_;
  std::vector<std::vector<const float*>> h_read_;
  std::vector<std::vector<uint8_t>> bad_;  // [thread][rows]
  std::vector<Unit> units_;
  int64_t next_ = 0;
};

// One format and number of rows. A value of each counted repeat.
struct KernelCase {
  std::string format;
  int64_t rows = 0;
  std::vector<double> bytes_per_second, of_read;
  std::vector<double> flop_per_second, of_peak;
  std::vector<double> of_bound;
  double cycles_per_weight_l2 = 0;
  double clock = 0;     // Hz
  double core_fma = 0;  // operations per second of one core, in its processor time
  int voided = 0;
};

struct KernelReport {
  int threads = 0;
  std::string target;
  uint64_t probe_bytes = 0;
  std::vector<double> read, fma;  // of the counted repeats
  std::vector<KernelCase> cases;
};

// Cycles of one core per weight of a tile that lies in its second level, and the core's clock.
void measure_l2(WeightFormat format, KernelCase* result) {
  ThreadTeam one(1);
  const ExpertMemory memory(one, l2_shape(format), 1);
  ExpertRunner runner(one, memory, result->rows);
  const int64_t count = runner.experts_for(kL2PassSeconds);
  std::vector<double> cycles, clocks, peaks;
  for (int pass = 0; pass < kL2Passes; ++pass) {
    const double clock_before = topology::cycles_per_second();
    const double seconds = runner.time(count);
    peaks.push_back(topology::thread_fma_flop_per_second());
    clocks.push_back((clock_before + topology::cycles_per_second()) / 2);
    cycles.push_back(seconds * clocks.back() /
                     static_cast<double>(count * memory.shape().weights()));
  }
  result->cycles_per_weight_l2 = summarize(cycles).median;
  result->clock = summarize(clocks).median;
  result->core_fma = summarize(peaks).median;
}

KernelCase measure_case(const KernelOptions& options, ThreadTeam& team, const ExpertMemory& memory,
                        topology::MachineProbe& probe, int64_t rows, KernelReport* report) {
  KernelCase result;
  result.format = kernels::to_string(memory.shape().format);
  result.rows = rows;
  measure_l2(memory.shape().format, &result);

  ExpertRunner runner(team, memory, rows);
  const int64_t count = runner.experts_for(kRepeatSeconds);
  const double weights = static_cast<double>(count * memory.shape().weights());
  const double bytes =
      static_cast<double>(count) * static_cast<double>(memory.shape().weight_bytes());
  const double flop = 2 * weights * static_cast<double>(rows);
  // Of one core, in processor time.
  const double compute_seconds = weights * result.cycles_per_weight_l2 / result.clock;
  double seconds = 0;
  result.voided = run_repeats(
      options.repeats, [&] { return probe.measure(); }, [&] { seconds = runner.time(count); },
      [&](const MachineLimit& limit) {
        result.bytes_per_second.push_back(bytes / seconds);
        result.of_read.push_back(bytes / seconds / limit.read_bytes_per_second);
        result.flop_per_second.push_back(flop / seconds);
        result.of_peak.push_back(flop / seconds / limit.fma_flop_per_second);
        const double read_seconds = bytes / limit.read_bytes_per_second;
        // What all threads got of the cores: as many as there are on a machine of our own.
        const double cores = limit.fma_flop_per_second / result.core_fma;
        result.of_bound.push_back(std::max(read_seconds, compute_seconds / cores) / seconds);
        report->read.push_back(limit.read_bytes_per_second);
        report->fma.push_back(limit.fma_flop_per_second);
      });
  return result;
}

int64_t experts_in_memory(const KernelOptions& options, const ExpertShape& shape) {
  const uint64_t wanted = std::max(kExpertBytesMin, 4 * topology::last_level_cache_bytes());
  const int64_t experts =
      options.experts_in_ram > 0
          ? options.experts_in_ram
          : std::max<int64_t>(2, ceil_div(static_cast<int64_t>(wanted),
                                          static_cast<int64_t>(shape.extent_bytes())));
  const uint64_t available = available_memory_bytes();
  const double bytes = static_cast<double>(experts) * static_cast<double>(shape.extent_bytes());
  if (available > 0 && bytes > static_cast<double>(available)) {
    throw LoadError(fmt::format(
        "{} experts of {} in {} take {:.1f} GiB, {} of memory are available; give fewer "
        "--experts-in-ram",
        experts, format_bytes(shape.extent_bytes()), kernels::to_string(shape.format),
        bytes / static_cast<double>(kGiB), format_bytes(available)));
  }
  return experts;
}

KernelReport measure(const KernelOptions& options) {
  ThreadTeam team(options.threads > 0 ? options.threads : usable_cores());
  topology::MachineProbe probe(team);
  KernelReport report;
  report.threads = team.num_threads();
  report.target = kernels::cpu_targets().front();
  kernels::use_cpu_target("");
  report.probe_bytes = probe.read_bytes();
  for (const std::string& format : options.formats) {
    const ExpertShape shape =
        expert_shape(parse_format(format), options.hidden, options.intermediate);
    const int64_t experts = experts_in_memory(options, shape);
    log_debug("{}: {} experts of {}", format, experts, format_bytes(shape.extent_bytes()));
    const ExpertMemory memory(team, shape, experts);
    for (const int64_t rows : options.rows) {
      report.cases.push_back(measure_case(options, team, memory, probe, rows, &report));
    }
  }
  return report;
}

std::string to_text(const KernelOptions& options, const KernelReport& report) {
  Table table({{"format"},
               {"rows", Align::kRight},
               {"GB/s", Align::kRight},
               {"of read", Align::kRight},
               {"GFLOP/s", Align::kRight},
               {"of peak", Align::kRight},
               {"of bound", Align::kRight},
               {"spread", Align::kRight},
               {"cycles/weight in L2", Align::kRight},
               {"counted", Align::kRight},
               {"void", Align::kRight}});
  const auto giga = [](const std::vector<double>& values) {
    return median_text(in_giga(values), "{:.2f}");
  };
  for (const KernelCase& c : report.cases) {
    table.add_row({c.format, std::to_string(c.rows), giga(c.bytes_per_second),
                   median_text(c.of_read, "{:.3f}"), giga(c.flop_per_second),
                   median_text(c.of_peak, "{:.3f}"), median_text(c.of_bound, "{:.3f}"),
                   spread_text(c.bytes_per_second), fmt::format("{:.3f}", c.cycles_per_weight_l2),
                   std::to_string(c.of_read.size()), std::to_string(c.voided)});
  }
  return fmt::format(
             "expert of [{}, {}], {} threads, {}; limits by all threads: read {} GB/s (over {}), "
             "FMA {} GFLOP/s; clock {:.2f} GHz\n",
             options.intermediate, options.hidden, report.threads, report.target, giga(report.read),
             format_bytes(report.probe_bytes), giga(report.fma),
             report.cases.front().clock * 1e-9) +
         table.to_string("");
}

Json to_json(const KernelOptions& options, const KernelReport& report) {
  Json cases = Json::array();
  for (const KernelCase& c : report.cases) {
    cases.push_back({{"format", c.format},
                     {"rows", c.rows},
                     {"bytes_per_second", summary_json<Json>(c.bytes_per_second)},
                     {"of_read", summary_json<Json>(c.of_read)},
                     {"flop_per_second", summary_json<Json>(c.flop_per_second)},
                     {"of_peak", summary_json<Json>(c.of_peak)},
                     {"of_bound", summary_json<Json>(c.of_bound)},
                     {"cycles_per_weight_l2", c.cycles_per_weight_l2},
                     {"clock_hz", c.clock},
                     {"repeats", c.of_read.size()},
                     {"voided", c.voided}});
  }
  return {{"hidden", options.hidden},
          {"intermediate", options.intermediate},
          {"threads", report.threads},
          {"target", report.target},
          {"limit",
           {{"read_bytes_per_second", summary_json<Json>(report.read)},
            {"fma_flop_per_second", summary_json<Json>(report.fma)},
            {"read_over_bytes", report.probe_bytes}}},
          {"cases", cases}};
}

// Empty if there are kernels for it, else why not.
std::string refuse_format(const std::string& name) {
  if (name == "fp8" || name == "bf16" || name == "f32") return "";
  if (name == "int4") return "int4 kernels are not built yet; choose from fp8, bf16, f32";
  return fmt::format("'{}' is none of fp8, bf16, f32", name);
}

}  // namespace

void add_bench_kernels_command(CLI::App& bench, int* exit_code) {
  auto options = std::make_shared<KernelOptions>();
  CLI::App* command = bench.add_subcommand(
      "kernels", "Whole experts out of memory: share of read rate and FMA peak");
  command->add_option("--format", options->formats, "Weight formats: fp8, bf16, f32")
      ->delimiter(',')
      ->check(
          CLI::Validator([](const std::string& name) { return refuse_format(name); }, "", "format"))
      ->type_name("F,F,...")
      ->default_str("fp8,bf16");
  add_list_option(*command, "--rows", "Rows that go through each expert at once", 1, 8192,
                  &options->rows);
  command->add_option("--threads", options->threads, "Threads; 0: all usable cores")
      ->check(CLI::Range(0, 4096))
      ->capture_default_str();
  command->add_option("--hidden", options->hidden, "Width of a row")
      ->check(CLI::Range(16, 65536))
      ->capture_default_str();
  command->add_option("--intermediate", options->intermediate, "Width of an expert")
      ->check(CLI::Range(16, 65536))
      ->capture_default_str();
  command
      ->add_option("--experts-in-ram", options->experts_in_ram,
                   "Different experts in memory, used in turn; 0: 512 MiB or four times the caches")
      ->check(CLI::Range(0, 1 << 20))
      ->capture_default_str();
  add_repeats_option(*command, &options->repeats);
  command->add_flag("--json", options->json, "One JSON object in place of the table");
  command->footer("Example:\n  atoll bench kernels --format fp8,bf16 --rows 1,16,256");
  command->callback([options, exit_code] {
    const KernelReport report = measure(*options);
    write_stdout(options->json ? to_json(*options, report).dump(2) + "\n"
                               : to_text(*options, report));
    *exit_code = 0;
  });
}

}  // namespace atl::cli
