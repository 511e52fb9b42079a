#include "cli/machine_probe.h"

#include <fcntl.h>
#include <fmt/chrono.h>
#include <fmt/format.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <ctime>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/json_reader.h"
#include "base/log.h"
#include "base/thread_team.h"
#include "base/units.h"
#include "bench/expert_runner.h"
#include "cli/progress_bar.h"
#include "cli/thread_options.h"
#include "kernels/attention.h"
#include "kernels/cpu/dispatch.h"
#include "storage/io/disk_probe.h"
#include "storage/io/file_io.h"
#include "topology/machine_limit.h"

namespace atl::cli {
namespace {

namespace fs = std::filesystem;
using topology::Kernel;
using topology::KernelPoint;
using topology::MachineRates;
using Json = nlohmann::ordered_json;

constexpr int kVersion = 1;
constexpr uint64_t kFileBytesMax = kMiB;

// DeepSeek-V3's expert. Every kernel is measured with each of these numbers of rows.
constexpr int64_t kHidden = 7168, kIntermediate = 2048;
constexpr std::array<int64_t, 8> kRows = {1, 2, 4, 8, 16, 32, 64, 256};
// A pass, of which the middle of three counts.
constexpr double kPassSeconds = 0.08;
constexpr int kPasses = 3;

constexpr int64_t kAttentionHeads = 128, kAttentionPositions = 4096;

constexpr uint64_t kExtentBytes = 2 * kMiB, kDriveFileBytes = kGiB, kDriveMemoryBytes = 256 * kMiB;
constexpr int kDriveDepth = 16;

std::string first_line(const std::string& path) {
  const std::string text = topology::read_system_file(path);
  return text.substr(0, text.find('\n'));
}

// The machine's own id; else its name: guests that were never booted have none.
std::string machine_id() {
  for (const char* path : {"/etc/machine-id", "/var/lib/dbus/machine-id"}) {
    if (std::string id = first_line(path); !id.empty()) return id;
  }
  return first_line("/proc/sys/kernel/hostname");
}

std::string kernel_release() {
  utsname name{};
  return uname(&name) == 0 ? name.release : "";
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

std::vector<KernelPoint> measure_kernel(ThreadTeam& team, Kernel kernel) {
  const bench::ExpertShape shape = bench::expert_shape(
      *bench::parse_kernel_format(topology::to_string(kernel)), kHidden, kIntermediate);
  const uint64_t bytes = std::max(512 * kMiB, 4 * topology::last_level_cache_bytes());
  const auto experts = static_cast<int64_t>(bytes / shape.extent_bytes() + 2);
  const bench::ExpertMemory memory(team, shape, experts);
  std::vector<KernelPoint> points;
  for (const int64_t rows : kRows) {
    bench::ExpertRunner runner(team, memory, rows);
    const int64_t count = runner.experts_for(kPassSeconds);
    std::vector<double> seconds;
    for (int pass = 0; pass < kPasses; ++pass) seconds.push_back(runner.time(count));
    points.push_back({static_cast<double>(rows), median(seconds) / runner.weights_of(count)});
  }
  // More rows never take less: noise would let the planner say so.
  for (size_t i = 1; i < points.size(); ++i) {
    points[i].seconds_per_weight =
        std::max(points[i].seconds_per_weight, points[i - 1].seconds_per_weight);
  }
  return points;
}

// Of attention's core, as the coordinator cuts it: heads shared out among all threads.
double measure_attention(ThreadTeam& team) {
  const kernels::LatentShape shape{512, 64, kernels::RowType::kBf16};
  const int64_t blocks_count = kAttentionPositions / kernels::kAttentionBlock;
  const size_t block_values = static_cast<size_t>(kernels::kAttentionBlock * shape.width());
  const std::vector<uint16_t> cache(static_cast<size_t>(blocks_count) * block_values, 0x3c00);
  std::vector<const void*> blocks;
  for (int64_t b = 0; b < blocks_count; ++b) {
    blocks.push_back(cache.data() + static_cast<size_t>(b) * block_values);
  }
  const std::vector<float> q(static_cast<size_t>(kAttentionHeads * shape.width()), 0.01f);
  std::vector<float> out(static_cast<size_t>(kAttentionHeads * shape.kv_lora_rank));
  const int64_t pieces = std::min<int64_t>(kAttentionHeads / 4, 2L * team.num_threads());
  const int64_t heads = kAttentionHeads / pieces;
  const auto attend = [&] {
    team.parallel_for(pieces, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t piece = begin; piece < end; ++piece) {
        kernels::mla_attend(shape, heads, q.data() + piece * heads * shape.width(), blocks,
                            kAttentionPositions, 0.1f,
                            out.data() + piece * heads * shape.kv_lora_rank);
      }
    });
  };
  const double flop = 2.0 * static_cast<double>(heads * pieces) *
                      static_cast<double>(shape.width() + shape.kv_lora_rank) *
                      static_cast<double>(kAttentionPositions);
  attend();
  std::vector<double> rates;
  for (int pass = 0; pass < kPasses; ++pass) {
    constexpr int kCalls = 10;
    const double start = topology::team_seconds(team);
    for (int i = 0; i < kCalls; ++i) attend();
    rates.push_back(kCalls * flop / (topology::team_seconds(team) - start));
  }
  return median(rates);
}

// Starting the team and waiting for it, as often as a layer does: norms, two or more for each of
// its matrices.
double measure_overhead(ThreadTeam& team) {
  constexpr int kRounds = 2000, kRoundsPerLayer = 20;
  std::atomic<int64_t> sink{0};
  const double start = topology::team_seconds(team);
  for (int i = 0; i < kRounds; ++i) {
    team.parallel_for(team.num_threads(), 1, [&](int64_t begin, int64_t, int) { sink += begin; });
  }
  return kRoundsPerLayer * (topology::team_seconds(team) - start) / kRounds;
}

std::vector<DomainRate> measure_domains(const topology::Machine& machine, double whole) {
  std::vector<DomainRate> rates;
  int with_cores = 0;
  for (const topology::NumaNode& node : machine.numa_nodes) with_cores += node.num_cores > 0;
  for (const topology::NumaNode& node : machine.numa_nodes) {
    if (node.num_cores == 0) continue;
    if (with_cores == 1 || !machine.is_this_system) {
      rates.push_back({node.id, whole});
      continue;
    }
    std::vector<int> cpus;
    for (const topology::Core& core : machine.cores) {
      if (core.numa_node == node.id) cpus.push_back(core.cpu);
    }
    ThreadTeam team(static_cast<int>(cpus.size()), cpus);
    const auto pin = team.pin_caller();
    rates.push_back({node.id, topology::MachineProbe(team).measure().read_bytes_per_second});
  }
  return rates;
}

// A file that is gone when this ends, however it ends.
class DriveFile {
 public:
  explicit DriveFile(const fs::path& directory) {
    fd_ = ::open(directory.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (fd_ < 0) storage::throw_file_error(directory, "cannot make a file to measure with", errno);
    std::vector<std::byte> block(8 * kMiB);
    for (size_t i = 0; i < block.size(); ++i) block[i] = static_cast<std::byte>(i * 2654435761u);
    for (uint64_t at = 0; at < kDriveFileBytes; at += block.size()) {
      const auto written = ::pwrite(fd_, block.data(), block.size(), static_cast<off_t>(at));
      if (written != static_cast<ssize_t>(block.size())) {
        const int error = errno;
        ::close(fd_);
        storage::throw_file_error(directory, "cannot write a file to measure with", error);
      }
    }
    ::fsync(fd_);
  }
  ~DriveFile() { ::close(fd_); }
  DriveFile(const DriveFile&) = delete;
  DriveFile& operator=(const DriveFile&) = delete;
  fs::path path() const { return fmt::format("/proc/self/fd/{}", fd_); }

 private:
  int fd_;
};

DriveRate measure_drive(const fs::path& directory) {
  const DriveFile file(directory);
  const auto probe = storage::make_disk_probe({file.path()}, kDriveMemoryBytes);
  std::vector<double> rates;
  for (int pass = 0; pass < kPasses; ++pass) {
    rates.push_back(probe->run(kExtentBytes, kDriveDepth, 0.5, storage::ProbeMemory::kInTurn));
  }
  return {directory, kExtentBytes, median(rates)};
}

// On a terminal one line that tells what is being measured and is gone afterwards.
class MeasuringLine {
 public:
  explicit MeasuringLine(int num_steps)
      : num_steps_(num_steps), is_terminal_(stderr_progress_style().terminal) {}
  ~MeasuringLine() {
    if (is_terminal_) fmt::print(stderr, "\r\x1b[K");
  }
  void next(std::string_view what) {
    ++step_;
    if (is_terminal_) {
      fmt::print(stderr, "\rmeasuring this machine: {} of {}, {}\x1b[K", step_, num_steps_, what);
    } else {
      log_debug("measuring this machine: {} of {}, {}", step_, num_steps_, what);
    }
  }

 private:
  const int num_steps_;
  const bool is_terminal_;
  int step_ = 0;
};

std::string simd_target() { return kernels::cpu_targets().front(); }

MeasuredMachine measure(const topology::Machine& machine, const ProbeOptions& options) {
  const topology::TeamPlan plan = plan_threads({});
  MeasuredMachine measured;
  measured.machine_id = machine_id();
  measured.kernel = kernel_release();
  measured.simd = simd_target();
  measured.threads = plan.num_threads;
  measured.date = fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(std::time(nullptr)));
  ThreadTeam team(plan.num_threads, plan.cpus);
  const auto pin = team.pin_caller();
  MachineRates& rates = measured.rates;
  rates.cores = plan.num_threads;
  const bool with_drive = !options.drive_dir.empty();
  MeasuringLine line(4 + topology::kNumKernels + (with_drive ? 1 : 0));
  line.next("memory and arithmetic");
  {
    const topology::MachineLimit limit = topology::MachineProbe(team).measure();
    rates.read_bytes_per_second = limit.read_bytes_per_second;
    rates.fma_flop_per_second = limit.fma_flop_per_second;
    rates.int8_op_per_second = limit.int8_op_per_second;
  }
  line.next("attention");
  rates.attention_flop_per_second = measure_attention(team);
  line.next("starting threads");
  rates.step_overhead_seconds = measure_overhead(team);
  for (int kernel = 0; kernel < topology::kNumKernels; ++kernel) {
    line.next(fmt::format("experts in {}", topology::to_string(static_cast<Kernel>(kernel))));
    rates.measured[static_cast<size_t>(kernel)] = measure_kernel(team, static_cast<Kernel>(kernel));
  }
  line.next("NUMA domains");
  measured.domains = measure_domains(machine, rates.read_bytes_per_second);
  if (with_drive) {
    line.next("the drive");
    measured.drive = measure_drive(options.drive_dir);
  }
  return measured;
}

Json rates_json(const MeasuredMachine& measured) {
  const MachineRates& rates = measured.rates;
  Json kernels = Json::object();
  for (int k = 0; k < topology::kNumKernels; ++k) {
    Json points = Json::array();
    for (const KernelPoint& point : rates.measured[static_cast<size_t>(k)]) {
      points.push_back({{"rows", point.rows}, {"seconds_per_weight", point.seconds_per_weight}});
    }
    kernels[topology::to_string(static_cast<Kernel>(k))] = points;
  }
  Json domains = Json::array();
  for (const DomainRate& domain : measured.domains) {
    domains.push_back(
        {{"numa_node", domain.numa_node}, {"read_bytes_per_second", domain.read_bytes_per_second}});
  }
  Json drive = nullptr;
  if (measured.drive) {
    drive = {{"directory", measured.drive->directory.string()},
             {"extent_bytes", measured.drive->extent_bytes},
             {"bytes_per_second", measured.drive->bytes_per_second}};
  }
  return {{"atoll_probe", kVersion},
          {"machine_id", measured.machine_id},
          {"kernel", measured.kernel},
          {"date", measured.date},
          {"simd", measured.simd},
          {"threads", measured.threads},
          {"read_bytes_per_second", rates.read_bytes_per_second},
          {"fma_flop_per_second", rates.fma_flop_per_second},
          {"int8_op_per_second", rates.int8_op_per_second},
          {"attention_flop_per_second", rates.attention_flop_per_second},
          {"layer_overhead_seconds", rates.step_overhead_seconds},
          {"domains", domains},
          {"drive", drive},
          {"kernels", kernels}};
}

// Positive and finite, as everything that is measured.
double positive(const Json& value) {
  const double number = value.get<double>();
  if (!(number > 0) || !std::isfinite(number)) throw std::invalid_argument("not positive");
  return number;
}

uint64_t free_memory(const std::vector<topology::MemoryBound>& bounds) {
  const auto bound = topology::tightest(bounds, topology::MemoryBound::Of::kMachine);
  return bound ? bound->free_bytes : 0;
}

double fastest_nic(const MachineFacts& facts) {
  double fastest = 0;
  for (const topology::NicFacts& nic : facts.nics) {
    if (nic.is_up) fastest = std::max(fastest, nic.bytes_per_second);
  }
  return fastest;
}

// What the file has; nothing if it isn't there. A file that is damaged, or somebody else's, is not
// written over unless that is asked for.
std::optional<MeasuredMachine> kept_figures(const fs::path& file) {
  std::error_code error;
  if (!fs::exists(file, error)) return {};
  const std::string text = storage::read_whole_file(file, kFileBytesMax);
  if (auto kept = parse_measured(text)) return kept;
  throw LoadError(fmt::format(
      "{}: {} that are no whole file of `atoll probe` of version {}: expected its JSON; "
      "`atoll probe --remeasure` writes it anew",
      file.string(), format_bytes(text.size()), kVersion));
}

// Whether they are this machine's as it runs now.
bool suits(const MeasuredMachine& kept, const ProbeOptions& options) {
  const auto differs = [](const char* what, const auto& then, const auto& now) {
    if (then == now) return false;
    log_info("the kept figures are of another {} ({}, now {}): measured anew", what, then, now);
    return true;
  };
  if (differs("machine", kept.machine_id, machine_id()) ||
      differs("kernel", kept.kernel, kernel_release()) ||
      differs("SIMD target", kept.simd, simd_target()) ||
      differs("number of threads", kept.threads, plan_threads({}).num_threads)) {
    return false;
  }
  return options.drive_dir.empty() || (kept.drive && kept.drive->directory == options.drive_dir);
}

MachineFacts look_at_machine(const ProbeOptions& options) {
  MachineFacts facts;
  facts.machine = topology::this_machine(topology::Devices::kFind);
  facts.nics = topology::nic_facts(topology::read_system_file, topology::list_system_names);
  facts.drives = topology::drive_facts(topology::read_system_file, topology::list_system_names);
  facts.bounds = topology::memory_bounds();
  facts.cache_file = options.cache_file.empty() ? default_probe_file() : options.cache_file;
  return facts;
}

}  // namespace

fs::path default_probe_file() {
  if (const char* cache = std::getenv("XDG_CACHE_HOME"); cache && *cache) {
    return fs::path(cache) / "atoll/probe.json";
  }
  if (const char* home = std::getenv("HOME"); home && *home) {
    return fs::path(home) / ".cache/atoll/probe.json";
  }
  return fmt::format("/var/tmp/atoll-{}-probe.json", getuid());
}

std::string measured_json(const MeasuredMachine& measured) {
  return rates_json(measured).dump(2) + "\n";
}

std::optional<MeasuredMachine> parse_measured(const std::string& text) {
  const auto read = read_json(text, bounds_of_file(text.size()));
  if (!read || !read->is_object() || read->value("atoll_probe", 0) != kVersion) return {};
  try {
    const Json& json = *read;
    MeasuredMachine measured;
    measured.machine_id = json.at("machine_id");
    measured.kernel = json.at("kernel");
    measured.date = json.at("date");
    measured.simd = json.at("simd");
    measured.threads = json.at("threads");
    MachineRates& rates = measured.rates;
    rates.cores = measured.threads;
    rates.read_bytes_per_second = positive(json.at("read_bytes_per_second"));
    rates.fma_flop_per_second = positive(json.at("fma_flop_per_second"));
    rates.int8_op_per_second = json.at("int8_op_per_second");
    rates.attention_flop_per_second = positive(json.at("attention_flop_per_second"));
    rates.step_overhead_seconds = positive(json.at("layer_overhead_seconds"));
    for (const Json& domain : json.at("domains")) {
      measured.domains.push_back(
          {domain.at("numa_node"), positive(domain.at("read_bytes_per_second"))});
    }
    if (const Json& drive = json.at("drive"); !drive.is_null()) {
      measured.drive = DriveRate{drive.at("directory").get<std::string>(), drive.at("extent_bytes"),
                                 positive(drive.at("bytes_per_second"))};
    }
    for (int k = 0; k < topology::kNumKernels; ++k) {
      auto& points = rates.measured[static_cast<size_t>(k)];
      for (const Json& point :
           json.at("kernels").at(std::string(topology::to_string(static_cast<Kernel>(k))))) {
        points.push_back({positive(point.at("rows")), positive(point.at("seconds_per_weight"))});
      }
      if (points.empty()) return {};
    }
    return measured;
  } catch (const std::exception&) {  // a missing key or another type: not ours
    return {};
  }
}

MachineFacts kept_probe() {
  MachineFacts facts = look_at_machine({});
  auto kept = kept_figures(facts.cache_file);
  if (!kept || !suits(*kept, {})) {
    throw LoadError("this machine was not measured yet: run `atoll probe` on it");
  }
  facts.measured = std::move(*kept);
  facts.from_cache = true;
  return facts;
}

MachineFacts probe_machine(const ProbeOptions& options) {
  MachineFacts facts = look_at_machine(options);
  if (!options.remeasure) {
    if (auto kept = kept_figures(facts.cache_file); kept && suits(*kept, options)) {
      facts.measured = std::move(*kept);
      facts.from_cache = true;
      return facts;
    }
  }
  log_info("measuring this machine, about half a minute; kept in {}", facts.cache_file.string());
  facts.measured = measure(facts.machine, options);
  std::error_code error;
  fs::create_directories(facts.cache_file.parent_path(), error);
  try {
    storage::write_file_atomically(facts.cache_file, measured_json(facts.measured));
  } catch (const LoadError& failure) {
    log_warn("the figures of this machine are not kept: {}", failure.what());
  }
  return facts;
}

std::string probe_json(const MachineFacts& facts) {
  Json numa = Json::array(), caches = Json::array(), nics = Json::array(), drives = Json::array();
  Json gpus = Json::array(), bounds = Json::array();
  for (const topology::NumaNode& node : facts.machine.numa_nodes) {
    Json one = {{"id", node.id}, {"cores", node.num_cores}, {"memory_bytes", node.memory_bytes}};
    for (const DomainRate& rate : facts.measured.domains) {
      if (rate.numa_node == node.id) one["read_bytes_per_second"] = rate.read_bytes_per_second;
    }
    numa.push_back(one);
  }
  for (const topology::CacheLevel& cache : facts.machine.caches) {
    caches.push_back({{"level", cache.level}, {"bytes", cache.bytes}, {"count", cache.count}});
  }
  for (const topology::NicFacts& nic : facts.nics) {
    nics.push_back(
        {{"name", nic.name},
         {"bytes_per_second", nic.bytes_per_second > 0 ? Json(nic.bytes_per_second) : Json()},
         {"numa_node", nic.numa_node},
         {"mtu", nic.mtu},
         {"up", nic.is_up}});
  }
  for (const topology::DriveFacts& drive : facts.drives) {
    drives.push_back({{"name", drive.name},
                      {"model", drive.model},
                      {"bytes", drive.bytes},
                      {"numa_node", drive.numa_node},
                      {"rotates", drive.rotates}});
  }
  for (const topology::Device& device : facts.machine.devices) {
    if (device.kind != topology::Device::Kind::kGpu) continue;
    gpus.push_back(
        {{"name", device.name}, {"model", device.model}, {"numa_node", device.numa_node}});
  }
  for (const topology::MemoryBound& bound : facts.bounds) {
    bounds.push_back({{"name", bound.name},
                      {"limit_bytes", bound.limit_bytes},
                      {"free_bytes", bound.free_bytes}});
  }
  const Json json = {{"cores", facts.machine.cores.size()},
                     {"usable_cores", facts.machine.usable_cores},
                     {"packages", facts.machine.num_packages},
                     {"numa_nodes", numa},
                     {"caches", caches},
                     {"memory_bounds", bounds},
                     {"free_bytes", free_memory(facts.bounds)},
                     {"nics", nics},
                     {"drives", drives},
                     {"gpus", gpus},
                     {"from_cache", facts.from_cache},
                     {"cache_file", facts.cache_file.string()},
                     {"measured", rates_json(facts.measured)}};
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

std::string probe_text(const MachineFacts& facts) {
  const MeasuredMachine& measured = facts.measured;
  const MachineRates& rates = measured.rates;
  std::string text =
      fmt::format("{} cores, {} can be used; {} of memory free\n", facts.machine.cores.size(),
                  facts.machine.usable_cores, format_bytes(free_memory(facts.bounds)));
  for (const topology::CacheLevel& cache : facts.machine.caches) {
    text += fmt::format("L{}: {} of {}\n", cache.level, cache.count, format_bytes(cache.bytes));
  }
  for (const topology::NicFacts& nic : facts.nics) {
    text += fmt::format("network {}: {}, MTU {}{}{}\n", nic.name,
                        nic.bytes_per_second > 0
                            ? fmt::format("{:.4g} Gbit/s", nic.bytes_per_second * 8e-9)
                            : "speed not told",
                        nic.mtu, nic.is_up ? "" : ", down",
                        nic.numa_node >= 0 ? fmt::format(", NUMA domain {}", nic.numa_node) : "");
  }
  for (const topology::DriveFacts& drive : facts.drives) {
    text += fmt::format("drive {}: {}{}{}\n", drive.name, format_bytes(drive.bytes),
                        drive.model.empty() ? "" : ", " + drive.model,
                        drive.rotates ? ", rotates" : "");
  }
  for (const topology::Device& device : facts.machine.devices) {
    if (device.kind == topology::Device::Kind::kGpu) {
      text += fmt::format("GPU {}: {}\n", device.name, device.model);
    }
  }
  text += fmt::format("\nmeasured {}{}, {} threads, {}\n", measured.date,
                      facts.from_cache ? " (kept; --remeasure measures again)" : "",
                      measured.threads, measured.simd);
  text += fmt::format(
      "memory read {}, FMA {:.4g} GFLOP/s, int8 {:.4g} Gop/s, attention {:.4g} "
      "GFLOP/s\n",
      format_rate(rates.read_bytes_per_second), rates.fma_flop_per_second * 1e-9,
      rates.int8_op_per_second * 1e-9, rates.attention_flop_per_second * 1e-9);
  if (measured.domains.size() > 1) {
    for (const DomainRate& domain : measured.domains) {
      text += fmt::format("NUMA domain {}: read {}\n", domain.numa_node,
                          format_rate(domain.read_bytes_per_second));
    }
  }
  if (measured.drive) {
    text += fmt::format("drive of {}: {} at {}\n", measured.drive->directory.string(),
                        format_rate(measured.drive->bytes_per_second),
                        format_bytes(measured.drive->extent_bytes));
  }
  text += "experts, 1e9 weights/s with rows at once:\n";
  text += fmt::format("  {:<8}", "");
  for (const int64_t rows : kRows) text += fmt::format(" {:>7}", rows);
  text += "\n";
  for (int k = 0; k < topology::kNumKernels; ++k) {
    text += fmt::format("  {:<8}", topology::to_string(static_cast<Kernel>(k)));
    for (const KernelPoint& point : rates.measured[static_cast<size_t>(k)]) {
      text += fmt::format(" {:>7.3g}", 1e-9 / point.seconds_per_weight);
    }
    text += "\n";
  }
  return text;
}

std::string probe_yaml(const MachineFacts& facts, const std::string& name) {
  const MeasuredMachine& measured = facts.measured;
  std::string text = fmt::format("nodes:\n  - name: {}\n    ram: {}GiB\n    cores: {}\n", name,
                                 free_memory(facts.bounds) / kGiB, measured.threads);
  text += fmt::format("    mem_bw: {:.1f}GB/s\n", measured.rates.read_bytes_per_second * 1e-9);
  if (measured.drive) {
    text += fmt::format("    drives: [{{rate: {:.2f}GB/s}}]\n",
                        measured.drive->bytes_per_second * 1e-9);
  }
  if (const double nic = fastest_nic(facts); nic > 0) {
    text += fmt::format("    nic: {:.4g}Gbit/s\n", nic * 8e-9);
  }
  return text;
}

}  // namespace atl::cli
