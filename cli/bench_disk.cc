// atoll bench disk: what a drive gives by itself, and what the reader of packs makes of it.
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <cstring>
#include <filesystem>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "base/check.h"
#include "base/clock.h"
#include "base/memory.h"
#include "base/result.h"
#include "base/units.h"
#include "cli/bench_report.h"
#include "cli/fio_rate.h"
#include "cli/memory_options.h"
#include "cli/output.h"
#include "cli/table.h"
#include "storage/io/disk_probe.h"
#include "storage/pack/pack.h"
#include "storage/pack/pack_reader.h"
#include "topology/machine_limit.h"

namespace atl::cli {
namespace {

namespace fs = std::filesystem;
using storage::Pack;
using storage::ProbeMemory;
using Json = nlohmann::ordered_json;

// Experts that are under way at the same time, as when a layer misses several.
constexpr int kExpertsAtOnce = 4;
// The last comparison takes so many times longer than a case: its figures are the ones to quote.
constexpr double kTurnsOverCase = 4;
constexpr uint64_t kMemoryBytesMin = 512 * kMiB;

struct DiskOptions {
  fs::path dir;
  std::vector<std::string> blocks{"64KiB", "256KiB", "1MiB", "2MiB", "4MiB"};
  std::vector<int64_t> depths{1, 2, 4, 8, 16};
  std::string file_bytes = "4GiB";
  double seconds_per_case = 0.1;
  int repeats = 5;
  bool use_fio = true;
  storage::PackIo io = storage::PackIo::kAuto;  // of the reader
  bool json = false;
};

struct DiskCase {
  size_t block_bytes = 0;
  int depth = 0;
  std::vector<double> in_turn, same;  // bytes per second, by the memory read to
  std::optional<FioRate> fio;
};

// A way to read and its rates in the last comparison, all taken in turns.
struct Contender {
  size_t block_bytes = 0;
  int depth = 0;
  std::vector<double> rates;
};

struct DiskReport {
  std::string files;  // "1 file of 10.5 GiB"
  bool io_uring = false;
  uint64_t memory_bytes = 0;
  std::string no_fio;  // why there is none
  bool fio_huge_pages = true;
  std::vector<DiskCase> cases;
  std::string reader;  // "" where the directory is no pack
  uint64_t expert_bytes = 0;
  std::vector<double> reader_rates, of_in_turn, of_best;
  Contender in_turn, same, fio;
};

// A file full of noise without a name, which is gone with this process however it ends.
class ScratchFile {
 public:
  ScratchFile(const fs::path& dir, uint64_t bytes) : dir_(dir) {
    struct statvfs space {};
    if (::statvfs(dir.c_str(), &space) != 0) fail("cannot look at the directory", errno);
    if (const uint64_t free = space.f_bavail * space.f_frsize; free < bytes) {
      throw LoadError(fmt::format("{}: {} are free, the scratch file takes {}: give --file-bytes",
                                  dir.string(), format_bytes(free), format_bytes(bytes)));
    }
    const fs::path name = dir / fmt::format("atoll-bench-disk-{}", ::getpid());
    fd_ = ::open(name.c_str(), O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, 0600);
    if (fd_ < 0) fail("cannot make a scratch file", errno);
    ::unlink(name.c_str());
    write_noise(bytes);
  }
  ~ScratchFile() {
    if (fd_ >= 0) ::close(fd_);
  }
  ScratchFile(const ScratchFile&) = delete;
  ScratchFile& operator=(const ScratchFile&) = delete;
  fs::path path() const { return fmt::format("/proc/{}/fd/{}", ::getpid(), fd_); }

 private:
  [[noreturn]] void fail(const char* what, int error) const {
    throw LoadError(fmt::format("{}: {}: {}", dir_.string(), what, std::strerror(error)));
  }
  void write_noise(uint64_t bytes) {
    std::vector<uint64_t> noise(kMiB / sizeof(uint64_t));
    std::mt19937_64 random(1);
    for (uint64_t done = 0; done < bytes;) {
      for (uint64_t& word : noise) word = random();
      const size_t step = std::min<uint64_t>(bytes - done, kMiB);
      const ssize_t wrote = ::write(fd_, noise.data(), step);
      if (wrote < 0 && errno == EINTR) continue;
      if (wrote <= 0) {
        const int error = errno;
        ::close(std::exchange(fd_, -1));
        fail("cannot write the scratch file", error);
      }
      done += static_cast<uint64_t>(wrote);
    }
    if (::fsync(fd_) != 0) fail("cannot write the scratch file", errno);
    (void)::posix_fadvise(fd_, 0, 0, POSIX_FADV_DONTNEED);
  }

  fs::path dir_;
  int fd_ = -1;
};

// Reads whole experts of a pack at random into slots of huge-page memory.
class ReaderBench {
 public:
  ReaderBench(const Pack& pack, uint64_t memory_bytes, storage::PackIo io)
      : pack_(pack),
        catalog_(catalog_of(pack)),
        slot_bytes_(pack.geometry().expert_bytes()),
        memory_(std::max<uint64_t>(memory_bytes / slot_bytes_, 2 * kExpertsAtOnce) * slot_bytes_) {
    std::memset(memory_.data(), 1, memory_.size());
    const Pack* const one = &pack_;
    reader_ = storage::make_pack_expert_reader(std::span(&one, 1), catalog_, {.io = io});
    reader_->use_memory(memory_.span());
  }
  // Ends what is under way before what it tells to goes.
  ~ReaderBench() { reader_.reset(); }

  std::string describe() const { return reader_->describe(); }
  uint64_t expert_bytes() const { return slot_bytes_; }

  // Bytes per second. LoadError for a tile that can't be read.
  double run(double seconds) {
    const SteadyClock clock;
    const auto begin = clock.now();
    uint64_t bytes = 0;
    std::unique_lock lock(mutex_);
    while (seconds_between(begin, clock.now()) < seconds && error_.empty()) {
      changed_.wait(lock, [&] { return tiles_left_ <= tiles_at_once_max(); });
      lock.unlock();
      bytes += start_expert();
      lock.lock();
    }
    changed_.wait(lock, [&] { return tiles_left_ == 0; });
    if (!error_.empty()) throw LoadError(error_);
    return static_cast<double>(bytes) / seconds_between(begin, clock.now());
  }

 private:
  static storage::ExpertCatalog catalog_of(const Pack& pack) {
    storage::ExpertCatalog catalog;
    catalog.hidden_size = pack.params().hidden_size;
    catalog.moe_intermediate_size = pack.params().moe_intermediate_size;
    catalog.n_routed_experts = pack.params().n_routed_experts;
    catalog.moe_layers = pack.params().layers;
    return catalog;
  }
  // Of those before the next expert.
  size_t tiles_at_once_max() const {
    return static_cast<size_t>(pack_.geometry().num_tiles()) * (kExpertsAtOnce - 1);
  }

  uint64_t start_expert() {
    const storage::PackGeometry& geometry = pack_.geometry();
    const size_t num_slots = memory_.size() / slot_bytes_;
    std::byte* slot = memory_.data() + next_slot_++ % num_slots * slot_bytes_;
    std::vector<storage::TileTarget> targets;
    for (int tile = geometry.tile_begin(); tile < geometry.tile_end(); ++tile) {
      targets.push_back(
          {&geometry.layouts()[static_cast<size_t>(tile)], slot + geometry.offset_in_expert(tile)});
    }
    {
      const std::lock_guard lock(mutex_);
      tiles_left_ += targets.size();
    }
    const size_t place = random_() % catalog_.moe_layers.size();
    const auto expert =
        static_cast<int64_t>(random_() % static_cast<uint64_t>(catalog_.n_routed_experts));
    reader_->start(place, expert, std::move(targets), storage::ReadUrgency::kNow,
                   [this](size_t, const Status& status) { arrive(status); });
    return slot_bytes_;
  }

  void arrive(const Status& status) {
    const std::lock_guard lock(mutex_);
    if (!status) error_ = status.error().message;
    --tiles_left_;
    if (tiles_left_ == 0 || tiles_left_ == tiles_at_once_max()) changed_.notify_all();
  }

  const Pack& pack_;
  const storage::ExpertCatalog catalog_;
  const uint64_t slot_bytes_;
  HostBuffer memory_;
  size_t next_slot_ = 0;
  std::mt19937_64 random_{2};
  std::mutex mutex_;
  std::condition_variable changed_;
  size_t tiles_left_ = 0;
  std::string error_;
  std::unique_ptr<storage::ExpertReader> reader_;
};

double median_of(const std::vector<double>& values) { return summarize(values).median; }

// The case with the highest rate.
template <typename Rate>
Contender best_of(const std::vector<DiskCase>& cases, const Rate& rate) {
  const auto best =
      std::max_element(cases.begin(), cases.end(),
                       [&](const DiskCase& a, const DiskCase& b) { return rate(a) < rate(b); });
  return {best->block_bytes, best->depth, {}};
}
// Turn by turn.
std::vector<double> ratios(const std::vector<double>& rates, const std::vector<double>& of) {
  std::vector<double> result;
  for (size_t turn = 0; turn < rates.size(); ++turn) result.push_back(rates[turn] / of[turn]);
  return result;
}
double fio_rate(const DiskCase& one) { return one.fio ? one.fio->bytes_per_second : 0; }

// Cases whose block some file has, and whose blocks the memory has.
std::vector<DiskCase> make_cases(const DiskOptions& options, uint64_t file_bytes_max,
                                 uint64_t memory_bytes) {
  std::vector<DiskCase> cases;
  for (const std::string& text : options.blocks) {
    const size_t block = *parse_bytes(text);
    for (const int64_t depth : options.depths) {
      if (block > file_bytes_max || block * static_cast<uint64_t>(depth) > memory_bytes) continue;
      cases.push_back({block, static_cast<int>(depth), {}, {}, std::nullopt});
    }
  }
  if (cases.empty()) {
    throw LoadError(fmt::format("{}: its largest file has {}: give a --block that fits",
                                options.dir.string(), format_bytes(file_bytes_max)));
  }
  return cases;
}

void sweep(const DiskOptions& options, const std::vector<fs::path>& files, const std::string& fio,
           storage::DiskProbe& probe, DiskReport* report) {
  const double seconds = options.seconds_per_case;
  for (int repeat = 0; repeat < options.repeats; ++repeat) {
    for (DiskCase& one : report->cases) {
      one.in_turn.push_back(probe.run(one.block_bytes, one.depth, seconds, ProbeMemory::kInTurn));
      one.same.push_back(probe.run(one.block_bytes, one.depth, seconds, ProbeMemory::kSame));
    }
  }
  for (DiskCase& one : report->cases) {
    if (fio.empty()) break;
    one.fio = measure_fio(fio, files, one.block_bytes, one.depth, seconds);
    if (one.fio && !one.fio->huge_pages) report->fio_huge_pages = false;
  }
}

// The best ways against each other and the reader, in turns, so that all see the same minute.
void compare(const DiskOptions& options, const std::vector<fs::path>& files, const std::string& fio,
             storage::DiskProbe& probe, ReaderBench* reader, DiskReport* report) {
  const double seconds = kTurnsOverCase * options.seconds_per_case;
  report->in_turn =
      best_of(report->cases, [](const DiskCase& one) { return median_of(one.in_turn); });
  report->same = best_of(report->cases, [](const DiskCase& one) { return median_of(one.same); });
  report->fio = best_of(report->cases, fio_rate);
  const auto run_probe = [&](Contender* contender, ProbeMemory memory) {
    contender->rates.push_back(
        probe.run(contender->block_bytes, contender->depth, seconds, memory));
  };
  for (int repeat = 0; repeat < options.repeats; ++repeat) {
    run_probe(&report->in_turn, ProbeMemory::kInTurn);
    if (reader != nullptr) report->reader_rates.push_back(reader->run(seconds));
    run_probe(&report->same, ProbeMemory::kSame);
    if (fio.empty()) continue;
    const auto rate = measure_fio(fio, files, report->fio.block_bytes, report->fio.depth, seconds);
    if (rate) report->fio.rates.push_back(rate->bytes_per_second);
  }
  if (reader == nullptr) return;
  report->of_in_turn = ratios(report->reader_rates, report->in_turn.rates);
  // The best in the median: the highest of each turn would be the one that luck favoured.
  const Contender* best = &report->in_turn;
  for (const Contender* other : {&report->same, &report->fio}) {
    const bool whole = other->rates.size() == report->reader_rates.size();
    if (whole && median_of(other->rates) > median_of(best->rates)) best = other;
  }
  report->of_best = ratios(report->reader_rates, best->rates);
}

DiskReport measure(const DiskOptions& options) {
  DiskReport report;
  std::vector<fs::path> files;
  std::optional<Pack> pack;
  std::unique_ptr<ScratchFile> scratch;
  uint64_t file_bytes = 0;
  if (Pack::is_pack(options.dir)) {
    pack.emplace(Pack::open(options.dir));
    for (size_t p = 0; p < pack->params().layers.size(); ++p) files.push_back(pack->layer_file(p));
    if (files.empty()) throw LoadError(options.dir.string() + ": the pack has no layers");
    file_bytes = pack->geometry().file_bytes();
  } else {
    file_bytes = *parse_bytes(options.file_bytes);
    scratch = std::make_unique<ScratchFile>(options.dir, file_bytes);
    files.push_back(scratch->path());
  }
  report.files = fmt::format("{} file{} of {}", files.size(), files.size() == 1 ? "" : "s",
                             format_bytes(file_bytes));
  report.memory_bytes = std::max(kMemoryBytesMin, 4 * topology::last_level_cache_bytes());
  report.cases = make_cases(options, file_bytes, report.memory_bytes);
  const std::string fio = options.use_fio ? find_fio() : "";
  if (fio.empty()) report.no_fio = options.use_fio ? "not installed" : "not asked for";

  const std::unique_ptr<storage::DiskProbe> probe =
      storage::make_disk_probe(files, report.memory_bytes);
  report.io_uring = probe->uses_io_uring();
  std::unique_ptr<ReaderBench> reader;
  if (pack) {
    reader = std::make_unique<ReaderBench>(*pack, report.memory_bytes, options.io);
    report.reader = reader->describe();
    report.expert_bytes = reader->expert_bytes();
  }
  sweep(options, files, fio, *probe, &report);
  compare(options, files, fio, *probe, reader.get(), &report);
  return report;
}

std::string giga_text(const std::vector<double>& values) {
  return median_text(in_giga(values), "{:.2f}");
}

std::string case_table(const DiskReport& report) {
  Table table({{"block", Align::kRight},
               {"depth", Align::kRight},
               {"GB/s", Align::kRight},
               {"spread", Align::kRight},
               {"same memory GB/s", Align::kRight},
               {"spread", Align::kRight},
               {"fio GB/s", Align::kRight}});
  for (const DiskCase& one : report.cases) {
    table.add_row({format_bytes(one.block_bytes), std::to_string(one.depth), giga_text(one.in_turn),
                   spread_text(one.in_turn), giga_text(one.same), spread_text(one.same),
                   one.fio ? fmt::format("{:.2f}", one.fio->bytes_per_second * 1e-9) : "-"});
  }
  return table.to_string("");
}

std::string comparison_table(const DiskReport& report) {
  Table table({{"in turns"}, {"GB/s", Align::kRight}, {"spread", Align::kRight}});
  const auto add = [&](const std::string& name, const std::vector<double>& rates) {
    if (!rates.empty()) table.add_row({name, giga_text(rates), spread_text(rates)});
  };
  const auto add_best = [&](const char* name, const Contender& best) {
    add(fmt::format("{}, {} x {}", name, format_bytes(best.block_bytes), best.depth), best.rates);
  };
  add_best("drive", report.in_turn);
  add_best("drive into the same memory", report.same);
  add_best("fio", report.fio);
  add("reader, whole experts, checked", report.reader_rates);
  return table.to_string("");
}

std::string to_text(const DiskOptions& options, const DiskReport& report) {
  std::string text = fmt::format(
      "{}: {}, random O_DIRECT reads by {} into {} on huge pages in turn\n", options.dir.string(),
      report.files, report.io_uring ? "io_uring" : "threads", format_bytes(report.memory_bytes));
  if (!report.no_fio.empty()) {
    text += fmt::format("fio: {}\n", report.no_fio);
  } else if (!report.fio_huge_pages) {
    text += "fio: into pages of 4 KiB: too few huge pages are set aside (sysctl vm.nr_hugepages)\n";
  }
  text += "\n" + case_table(report) + "\n" + comparison_table(report);
  if (report.reader.empty()) {
    return text + "\nno pack is here: the reader was not measured\n";
  }
  text += fmt::format("\nreader: {} experts of {} at a time by {}\n", kExpertsAtOnce,
                      format_bytes(report.expert_bytes), report.reader);
  text += fmt::format("reader / drive: {} {}\n", median_text(report.of_in_turn, "{:.3f}"),
                      spread_text(report.of_in_turn));
  text += fmt::format("reader / best of all: {} {}\n", median_text(report.of_best, "{:.3f}"),
                      spread_text(report.of_best));
  return text;
}

Json contender_json(const Contender& contender) {
  if (contender.rates.empty()) return nullptr;
  return {{"block_bytes", contender.block_bytes},
          {"depth", contender.depth},
          {"bytes_per_second", summary_json<Json>(contender.rates)}};
}

Json to_json(const DiskOptions& options, const DiskReport& report) {
  Json cases = Json::array();
  for (const DiskCase& one : report.cases) {
    cases.push_back(
        {{"block_bytes", one.block_bytes},
         {"depth", one.depth},
         {"bytes_per_second", summary_json<Json>(one.in_turn)},
         {"same_memory_bytes_per_second", summary_json<Json>(one.same)},
         {"fio_bytes_per_second", one.fio ? Json(one.fio->bytes_per_second) : Json(nullptr)}});
  }
  Json reader = nullptr;
  if (!report.reader.empty()) {
    reader = {{"how", report.reader},
              {"experts_at_once", kExpertsAtOnce},
              {"expert_bytes", report.expert_bytes},
              {"bytes_per_second", summary_json<Json>(report.reader_rates)},
              {"of_drive", summary_json<Json>(report.of_in_turn)},
              {"of_best", summary_json<Json>(report.of_best)}};
  }
  return {{"directory", options.dir.string()},
          {"files", report.files},
          {"io_uring", report.io_uring},
          {"memory_bytes", report.memory_bytes},
          {"fio", report.no_fio.empty() ? "used" : report.no_fio},
          {"fio_huge_pages", report.fio_huge_pages},
          {"cases", cases},
          {"drive", contender_json(report.in_turn)},
          {"drive_same_memory", contender_json(report.same)},
          {"fio_best", contender_json(report.fio)},
          {"reader", reader}};
}

// "" for a size that direct reads can have, else why not.
std::string refuse_size(const std::string& text) {
  const Result<uint64_t> bytes = parse_bytes(text);
  if (!bytes) return bytes.error().message;
  if (*bytes > 0 && *bytes % storage::kExtentAlign == 0 && *bytes < (uint64_t{1} << 50)) return "";
  return fmt::format("'{}' is no multiple of 4 KiB", text);
}

}  // namespace

void add_bench_disk_command(CLI::App& bench, int* exit_code) {
  auto options = std::make_shared<DiskOptions>();
  CLI::App* command = bench.add_subcommand(
      "disk", "A drive's O_DIRECT rate, and what reading experts of a pack makes of it");
  command
      ->add_option("DIR", options->dir,
                   "An expert pack, or any directory, where a scratch file is then made")
      ->required()
      ->check(CLI::ExistingDirectory);
  command->add_option("--block", options->blocks, "Sizes of a read")
      ->delimiter(',')
      ->check(CLI::Validator(refuse_size, "", "size"))
      ->type_name("SIZE,SIZE,...")
      ->default_str(fmt::format("{}", fmt::join(options->blocks, ",")));
  add_list_option(*command, "--depth", "Reads under way at the same time", 1, 256,
                  &options->depths);
  command->add_option("--file-bytes", options->file_bytes, "Of the scratch file")
      ->check(CLI::Validator(refuse_size, "", "size"))
      ->type_name("SIZE")
      ->capture_default_str();
  command
      ->add_option("--seconds-per-case", options->seconds_per_case,
                   "Of each repeat; four times that in the comparison at the end")
      ->check(CLI::Range(0.001, 3600.0))
      ->capture_default_str();
  command->add_option("--repeats", options->repeats, "Repeats of each case, taken in turns")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  command->add_flag("!--no-fio", options->use_fio, "Don't ask fio, even if it is installed");
  add_io_option(*command, &options->io);
  command->add_flag("--json", options->json, "One JSON object in place of the tables");
  command->footer("Example:\n  atoll bench disk /nvme0/pack --block 1MiB,4MiB --depth 1,4");
  command->callback([options, exit_code] {
    const DiskReport report = measure(*options);
    write_stdout(options->json ? to_json(*options, report).dump(2) + "\n"
                               : to_text(*options, report));
    *exit_code = 0;
  });
}

}  // namespace atl::cli
