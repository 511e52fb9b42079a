#include "bench/disk_bench.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <cstring>
#include <filesystem>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "base/check.h"
#include "base/clock.h"
#include "base/memory.h"
#include "base/result.h"
#include "base/units.h"
#include "bench/fio_rate.h"
#include "bench/repeats.h"
#include "storage/io/disk_probe.h"
#include "storage/pack/pack.h"
#include "storage/pack/pack_reader.h"
#include "topology/machine_limit.h"

namespace atl::bench {
namespace {

namespace fs = std::filesystem;
using storage::Pack;
using storage::ProbeMemory;

// The last comparison takes so many times longer than a case: its figures are the ones to quote.
constexpr double kTurnsOverCase = 4;
constexpr uint64_t kMemoryBytesMin = 512 * kMiB;

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
        memory_(std::max<uint64_t>(memory_bytes / slot_bytes_, 2 * kDiskExpertsAtOnce) * slot_bytes_) {
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
    return static_cast<size_t>(pack_.geometry().num_tiles()) * (kDiskExpertsAtOnce - 1);
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
DiskContender best_of(const std::vector<DiskCase>& cases, const Rate& rate) {
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
std::vector<DiskCase> make_cases(const DiskBenchOptions& options, uint64_t file_bytes_max,
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

void sweep(const DiskBenchOptions& options, const std::vector<fs::path>& files, const std::string& fio,
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
void compare(const DiskBenchOptions& options, const std::vector<fs::path>& files, const std::string& fio,
             storage::DiskProbe& probe, ReaderBench* reader, DiskReport* report) {
  const double seconds = kTurnsOverCase * options.seconds_per_case;
  report->in_turn =
      best_of(report->cases, [](const DiskCase& one) { return median_of(one.in_turn); });
  report->same = best_of(report->cases, [](const DiskCase& one) { return median_of(one.same); });
  report->fio = best_of(report->cases, fio_rate);
  const auto run_probe = [&](DiskContender* contender, ProbeMemory memory) {
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
  const DiskContender* best = &report->in_turn;
  for (const DiskContender* other : {&report->same, &report->fio}) {
    const bool whole = other->rates.size() == report->reader_rates.size();
    if (whole && median_of(other->rates) > median_of(best->rates)) best = other;
  }
  report->of_best = ratios(report->reader_rates, best->rates);
}

}  // namespace

DiskReport measure_disk(const DiskBenchOptions& options) {
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

}  // namespace atl::bench
