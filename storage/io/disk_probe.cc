#include "storage/io/disk_probe.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <liburing.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <random>
#include <thread>

#include "base/check.h"
#include "base/clock.h"
#include "base/memory.h"
#include "base/result.h"
#include "base/units.h"
#include "storage/io/extent_reader.h"

namespace atl::storage {
namespace {

constexpr unsigned kRingEntries = 256;
// The kernel takes at most this much in one registered buffer.
constexpr size_t kRegisteredBytesMax = kGiB;

struct ProbeFile {
  std::filesystem::path path;
  int fd = -1;
  uint64_t bytes = 0;
};

ProbeFile open_direct(const std::filesystem::path& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECT);
  if (fd < 0) {
    throw LoadError(
        fmt::format("{}: cannot open for direct reads: {}", path.string(), std::strerror(errno)));
  }
  return {path, fd, static_cast<uint64_t>(::lseek(fd, 0, SEEK_END))};
}

// Random places, the same for each probe that is made.
class Places {
 public:
  explicit Places(const std::vector<ProbeFile>& files) : files_(files) {
    for (const ProbeFile& file : files) total_ += file.bytes;
  }
  // A file, by its share of all bytes, and a multiple of the block in it.
  std::pair<const ProbeFile*, uint64_t> next(size_t block_bytes) {
    for (;;) {
      uint64_t at = random_() % total_;
      for (const ProbeFile& file : files_) {
        if (at >= file.bytes) {
          at -= file.bytes;
          continue;
        }
        const uint64_t blocks = file.bytes / block_bytes;
        if (blocks == 0) break;
        return {&file, at % blocks * block_bytes};
      }
    }
  }

 private:
  const std::vector<ProbeFile>& files_;
  uint64_t total_ = 0;
  std::mt19937_64 random_{1};
};

[[noreturn]] void fail(const ProbeFile& file, uint64_t offset, int64_t result) {
  throw LoadError(fmt::format("{}: direct read at offset {}: {}", file.path.string(), offset,
                              result < 0 ? std::strerror(static_cast<int>(-result)) : "too short"));
}

class Probe final : public DiskProbe {
 public:
  Probe(const std::vector<std::filesystem::path>& files, size_t memory_bytes, bool registered)
      : buffer_(memory_bytes) {
    for (const std::filesystem::path& file : files) files_.push_back(open_direct(file));
    std::memset(buffer_.data(), 1, buffer_.size());
    uring_ = io_uring_queue_init(kRingEntries, &ring_, 0) == 0;
    if (uring_ && registered) register_buffer();
  }
  ~Probe() override {
    if (uring_) io_uring_queue_exit(&ring_);
    for (const ProbeFile& file : files_) ::close(file.fd);
  }

  bool uses_io_uring() const override { return uring_; }

  double run(size_t block_bytes, int depth, double seconds, ProbeMemory memory) override {
    CHECK(block_bytes % kExtentAlign == 0 && depth > 0);
    CHECK(depth <= static_cast<int>(kRingEntries));
    CHECK_LE(block_bytes * static_cast<size_t>(depth), buffer_.size());
    CHECK(std::any_of(files_.begin(), files_.end(),
                      [&](const ProbeFile& file) { return file.bytes >= block_bytes; }));
    num_blocks_ =
        memory == ProbeMemory::kSame ? static_cast<size_t>(depth) : buffer_.size() / block_bytes;
    return uring_ ? run_ring(block_bytes, depth, seconds)
                  : run_threads(block_bytes, depth, seconds);
  }

 private:
  void register_buffer() {
    CHECK_LE(buffer_.size(), kRegisteredBytesMax);
    const iovec all{buffer_.data(), buffer_.size()};
    if (const int result = io_uring_register_buffers(&ring_, &all, 1); result != 0) {
      throw LoadError(fmt::format("the kernel refuses to register {} with a ring: {}",
                                  format_bytes(buffer_.size()), std::strerror(-result)));
    }
    registered_ = true;
  }

  struct Flight {
    const ProbeFile* file;
    uint64_t offset;
    std::byte* memory;
  };

  // Of a read that starts now. With as many blocks as reads each keeps its own.
  std::byte* block(size_t slot, size_t block_bytes) {
    const size_t number = num_blocks_ == flights_.size() ? slot : next_block_++ % num_blocks_;
    return buffer_.data() + number * block_bytes;
  }

  void submit(size_t block_bytes, size_t slot, Places& places) {
    const auto [file, offset] = places.next(block_bytes);
    const Flight& flight = flights_[slot] = {file, offset, block(slot, block_bytes)};
    io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
    const auto bytes = static_cast<unsigned>(block_bytes);
    if (registered_) {
      io_uring_prep_read_fixed(sqe, file->fd, flight.memory, bytes, offset, 0);
    } else {
      io_uring_prep_read(sqe, file->fd, flight.memory, bytes, offset);
    }
    sqe->user_data = slot;
  }

  double run_ring(size_t block_bytes, int depth, double seconds) {
    Places places(files_);
    flights_.assign(static_cast<size_t>(depth), {});
    const SteadyClock clock;
    const auto begin = clock.now();
    for (size_t slot = 0; slot < flights_.size(); ++slot) submit(block_bytes, slot, places);
    uint64_t bytes = 0;
    double elapsed = 0;
    size_t in_flight = flights_.size();
    std::pair<Flight, int> failed{{}, 0};
    while (in_flight > 0) {
      io_uring_submit_and_wait(&ring_, 1);
      elapsed = seconds_between(begin, clock.now());
      io_uring_cqe* cqe = nullptr;
      while (io_uring_peek_cqe(&ring_, &cqe) == 0) {
        const auto slot = static_cast<size_t>(cqe->user_data);
        const int result = cqe->res;
        io_uring_cqe_seen(&ring_, cqe);
        --in_flight;
        if (result != static_cast<int>(block_bytes)) {
          if (failed.first.file == nullptr) failed = {flights_[slot], result};
          continue;
        }
        // The drive is as busy while the last ones end as it was before: all count.
        bytes += block_bytes;
        if (elapsed >= seconds || failed.first.file != nullptr) continue;
        submit(block_bytes, slot, places);
        ++in_flight;
      }
    }
    if (failed.first.file != nullptr) fail(*failed.first.file, failed.first.offset, failed.second);
    return static_cast<double>(bytes) / elapsed;
  }

  double run_threads(size_t block_bytes, int depth, double seconds) {
    const SteadyClock clock;
    const auto begin = clock.now();
    std::atomic<uint64_t> bytes{0};
    std::atomic<int64_t> failed{1};
    std::vector<std::thread> threads;
    for (int t = 0; t < depth; ++t) {
      threads.emplace_back([&, t] {
        // Each has a stretch of the blocks for itself.
        const size_t share = num_blocks_ / static_cast<size_t>(depth);
        std::byte* memory = buffer_.data() + static_cast<size_t>(t) * share * block_bytes;
        size_t turn = 0;
        Places places(files_);
        for (int skip = 0; skip < 1000 * t; ++skip) places.next(block_bytes);
        while (seconds_between(begin, clock.now()) < seconds && failed > 0) {
          const auto [file, offset] = places.next(block_bytes);
          const ssize_t got = ::pread(file->fd, memory + turn++ % share * block_bytes, block_bytes,
                                      static_cast<off_t>(offset));
          if (got == static_cast<ssize_t>(block_bytes)) {
            bytes += block_bytes;
          } else {
            failed = got < 0 ? -errno : 0;
          }
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    if (failed <= 0) fail(files_.front(), 0, failed);
    return static_cast<double>(bytes) / seconds_between(begin, clock.now());
  }

  std::vector<ProbeFile> files_;
  HostBuffer buffer_;
  io_uring ring_{};
  bool uring_ = false, registered_ = false;
  std::vector<Flight> flights_;
  size_t num_blocks_ = 0, next_block_ = 0;  // of buffer_ in this run
};

}  // namespace

std::unique_ptr<DiskProbe> make_disk_probe(const std::vector<std::filesystem::path>& files,
                                           size_t memory_bytes, bool registered) {
  return std::make_unique<Probe>(files, memory_bytes, registered);
}

}  // namespace atl::storage
