#include "storage/io/uring_queue.h"

#include <fmt/format.h>
#include <liburing.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <functional>
#include <mutex>
#include <thread>
#include <utility>

#include "base/check.h"
#include "base/log.h"
#include "storage/io/extent_pieces.h"

namespace atl::storage {
namespace {

// Reads under way at the same time: what drives of today need to reach their rate with the smallest
// tiles.
constexpr unsigned kPiecesMax = 128;
// Each piece has at most one entry that waits to be submitted; one more is for waking up.
constexpr unsigned kRingEntries = 2 * kPiecesMax;
constexpr uint64_t kWakeUp = UINT64_MAX;
// Of a read that was interrupted or found no room, without a byte in between.
constexpr int kRetriesMax = 16;

// A ring that may have been refused.
class Ring {
 public:
  Ring() : error_(-io_uring_queue_init(kRingEntries, &ring_, 0)) {}
  ~Ring() {
    if (error_ == 0) io_uring_queue_exit(&ring_);
  }
  Ring(const Ring&) = delete;
  Ring& operator=(const Ring&) = delete;
  int error() const { return error_; }
  io_uring* get() { return &ring_; }
  uint64_t memory_bytes() const {
    return ring_.sq.ring_sz + ring_.cq.ring_sz + ring_.sq.ring_entries * sizeof(io_uring_sqe);
  }

 private:
  io_uring ring_{};
  int error_;
};

class EventFd {
 public:
  EventFd() : fd_(::eventfd(0, EFD_CLOEXEC)) {
    if (fd_ < 0) throw LoadError(fmt::format("cannot make an eventfd: {}", std::strerror(errno)));
  }
  ~EventFd() { ::close(fd_); }
  EventFd(const EventFd&) = delete;
  EventFd& operator=(const EventFd&) = delete;
  int get() const { return fd_; }
  void signal() const {
    const uint64_t one = 1;
    while (::write(fd_, &one, sizeof one) < 0 && errno == EINTR) {
    }
  }

 private:
  int fd_;
};

// A read that is under way, or what a short one left to be read.
struct Flight {
  ExtentPiece piece;  // its memory: what is still to be filled
  size_t done = 0;
  int retries = 0;
};

void skip(std::vector<iovec>* memory, size_t bytes) {
  size_t whole = 0;
  while (whole < memory->size() && bytes >= (*memory)[whole].iov_len) {
    bytes -= (*memory)[whole++].iov_len;
  }
  memory->erase(memory->begin(), memory->begin() + static_cast<ptrdiff_t>(whole));
  if (bytes == 0) return;
  iovec& first = memory->front();
  first.iov_base = static_cast<std::byte*>(first.iov_base) + bytes;
  first.iov_len -= bytes;
}

class UringQueue final : public ExtentQueue {
 public:
  UringQueue(std::unique_ptr<Ring> ring, std::vector<int> fds,
             std::vector<std::filesystem::path> files, const ExtentQueueOptions& options)
      : ring_(std::move(ring)),
        fds_(std::move(fds)),
        files_(std::move(files)),
        options_(options),
        pieces_(options.piece_bytes),
        flights_(kPiecesMax) {
    // Without, the kernel looks the descriptor up for each read: nothing else changes.
    const int result =
        io_uring_register_files(ring_->get(), fds_.data(), static_cast<unsigned>(fds_.size()));
    registered_files_ = result == 0;
    if (result != 0) {
      log_debug("io_uring refuses to register {} files: {}", fds_.size(), std::strerror(-result));
    }
    for (unsigned slot = kPiecesMax; slot-- > 0;) free_.push_back(slot);
    thread_ = std::thread([this] { run(); });
  }
  ~UringQueue() override { stop(); }

  void use_memory(std::span<std::byte> memory) override {
    if (options_.io != PackIo::kRegistered) return;
    const size_t buffer_bytes = options_.registered_buffer_bytes;
    std::vector<iovec> buffers;
    for (size_t begin = 0; begin < memory.size(); begin += buffer_bytes) {
      buffers.push_back({memory.data() + begin, std::min(buffer_bytes, memory.size() - begin)});
    }
    log_info("{}: registering {} with io_uring", files_.front().parent_path().string(),
             format_bytes(memory.size()));
    const int result = io_uring_register_buffers(ring_->get(), buffers.data(),
                                                 static_cast<unsigned>(buffers.size()));
    if (result != 0) {
      throw LoadError(
          fmt::format("io_uring cannot register {} of memory: {}: raise the limit on locked memory "
                      "(`ulimit -l`, in KiB), or leave '--io registered' out",
                      format_bytes(memory.size()), std::strerror(-result)));
    }
    registered_ = memory;
  }

  uint64_t start(size_t file, std::vector<ExtentPart> parts, ReadUrgency urgency,
                 Done done) override {
    CHECK_LT(file, fds_.size());
    auto request = std::make_shared<ExtentRequest>();
    request->file = file;
    request->parts = std::move(parts);
    request->done = std::move(done);
    const std::lock_guard lock(mutex_);
    request->ticket = ++last_ticket_;
    if (stopping_) return last_ticket_;
    started_.emplace_back(std::move(request), urgency);
    wake();
    return last_ticket_;
  }

  void raise(uint64_t ticket) override {
    const std::lock_guard lock(mutex_);
    raised_.push_back(ticket);
    wake();
  }

  void stop() override {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
      wake();
    }
    if (thread_.joinable()) thread_.join();
  }

  std::string describe() const override {
    return fmt::format("io_uring, O_DIRECT, {} under way in reads of {}{}",
                       format_bytes(options_.in_flight_bytes), format_bytes(options_.piece_bytes),
                       registered_.empty() ? "" : ", memory registered");
  }
  uint64_t memory_bytes() const override {
    return ring_->memory_bytes() +
           flights_.size() * (sizeof(Flight) + kMemoryRangesMax * sizeof(iovec));
  }

 private:
  // With the lock held; once until the owner has looked.
  void wake() {
    if (!std::exchange(woken_, true)) wake_up_.signal();
  }

  // The owner's loop. All below is its own, but what the mutex guards.
  void run() {
    while (take_started()) {
      fill();
      submit(finished_.empty());
      reap();
      if (finished_.empty()) continue;
      fill();  // so that the drive works while `done` does
      submit(false);
      const FinishedPart part = std::move(finished_.front());
      finished_.pop_front();
      part.tell();
    }
    while (in_flight_ > 0 || waking_armed_) {
      submit(true);
      reap();
    }
  }

  // False: stop.
  bool take_started() {
    const std::lock_guard lock(mutex_);
    if (stopping_) {
      draining_ = true;
      return false;
    }
    woken_ = false;
    for (auto& [request, urgency] : started_) pieces_.add(std::move(request), urgency);
    started_.clear();
    for (const uint64_t ticket : raised_) pieces_.raise(ticket);
    raised_.clear();
    arm_waking();
    return true;
  }

  void arm_waking() {
    if (std::exchange(waking_armed_, true)) return;
    io_uring_sqe* sqe = next_entry();
    io_uring_prep_read(sqe, wake_up_.get(), &wake_count_, sizeof wake_count_, 0);
    sqe->user_data = kWakeUp;
  }

  io_uring_sqe* next_entry() {
    io_uring_sqe* sqe = io_uring_get_sqe(ring_->get());
    CHECK(sqe != nullptr);
    return sqe;
  }

  // Pieces, until the bound is reached.
  void fill() {
    while (!free_.empty() && in_flight_bytes_ < options_.in_flight_bytes) {
      const unsigned slot = free_.back();
      Flight& flight = flights_[slot];
      flight = {};
      const AheadReads ahead = in_flight_bytes_ < options_.ahead_in_flight_bytes
                                   ? AheadReads::kMayStart
                                   : AheadReads::kMustWait;
      if (!pieces_.next(&flight.piece, ahead)) return;
      free_.pop_back();
      ++in_flight_;
      in_flight_bytes_ += flight.piece.bytes;
      prepare(slot);
    }
  }

  void prepare(unsigned slot) {
    const Flight& flight = flights_[slot];
    const std::vector<iovec>& memory = flight.piece.memory;
    const size_t file = flight.piece.request->file;
    const int fd = registered_files_ ? static_cast<int>(file) : fds_[file];
    const uint64_t offset = flight.piece.offset + flight.done;
    io_uring_sqe* sqe = next_entry();
    if (const int buffer = registered_buffer(memory); buffer >= 0) {
      io_uring_prep_read_fixed(sqe, fd, memory[0].iov_base,
                               static_cast<unsigned>(memory[0].iov_len), offset, buffer);
    } else if (memory.size() == 1) {
      io_uring_prep_read(sqe, fd, memory[0].iov_base, static_cast<unsigned>(memory[0].iov_len),
                         offset);
    } else {
      io_uring_prep_readv(sqe, fd, memory.data(), static_cast<unsigned>(memory.size()), offset);
    }
    if (registered_files_) io_uring_sqe_set_flags(sqe, IOSQE_FIXED_FILE);
    sqe->user_data = slot;
  }

  // The registered buffer that has all of it, -1: none. A read into several places has no form with
  // registered ones in the kernels of today's distributions.
  int registered_buffer(const std::vector<iovec>& memory) const {
    if (registered_.empty() || memory.size() > 1) return -1;
    const auto* data = static_cast<const std::byte*>(memory[0].iov_base);
    const std::less<const std::byte*> before;
    if (before(data, registered_.data())) return -1;
    const auto begin = static_cast<size_t>(data - registered_.data());
    const size_t end = begin + memory[0].iov_len;
    const size_t buffer = begin / options_.registered_buffer_bytes;
    const bool whole =
        end <= registered_.size() && end <= (buffer + 1) * options_.registered_buffer_bytes;
    return whole ? static_cast<int>(buffer) : -1;
  }

  void submit(bool wait) {
    const int result = io_uring_submit_and_wait(ring_->get(), wait ? 1 : 0);
    // Interrupted, or no memory for a request now: what was not taken stays for the next time.
    CHECK(result >= 0 || result == -EINTR || result == -EAGAIN || result == -EBUSY ||
          result == -ENOMEM);
  }

  void reap() {
    io_uring_cqe* cqe = nullptr;
    while (io_uring_peek_cqe(ring_->get(), &cqe) == 0) {
      const uint64_t id = cqe->user_data;
      const int result = cqe->res;
      io_uring_cqe_seen(ring_->get(), cqe);
      if (id == kWakeUp) {
        waking_armed_ = false;
      } else {
        take_result(static_cast<unsigned>(id), result);
      }
    }
  }

  void take_result(unsigned slot, int result) {
    Flight& flight = flights_[slot];
    const uint64_t offset = flight.piece.offset + flight.done;
    if (options_.filter) result = options_.filter(flight.piece.request->file, offset, result);
    if (result > 0) {
      flight.done += static_cast<size_t>(result);
      flight.retries = 0;
      if (flight.done == flight.piece.bytes) return land(slot, {});
      // A short direct read ends inside a block only at the end of the file.
      if (flight.done % kExtentAlign != 0) return land(slot, failure(flight, 0));
      skip(&flight.piece.memory, static_cast<size_t>(result));
    } else if ((result != -EINTR && result != -EAGAIN) || ++flight.retries > kRetriesMax) {
      return land(slot, failure(flight, -result));
    }
    if (draining_) return land(slot, {});
    prepare(slot);
  }

  Error failure(const Flight& flight, int error) const {
    return extent_error(files_[flight.piece.request->file], flight.piece.offset, flight.done,
                        flight.piece.bytes, error);
  }

  void land(unsigned slot, const Status& status) {
    Flight& flight = flights_[slot];
    --in_flight_;
    in_flight_bytes_ -= flight.piece.bytes;
    free_.push_back(slot);
    ExtentPieces::finish(flight.piece, status, &finished_);
    flight.piece.request.reset();
  }

  const std::unique_ptr<Ring> ring_;
  const std::vector<int> fds_;
  const std::vector<std::filesystem::path> files_;
  const ExtentQueueOptions options_;
  const EventFd wake_up_;
  bool registered_files_ = false;
  std::span<std::byte> registered_;  // empty: none

  std::mutex mutex_;  // of the following
  std::vector<std::pair<std::shared_ptr<ExtentRequest>, ReadUrgency>> started_;
  std::vector<uint64_t> raised_;
  uint64_t last_ticket_ = 0;
  bool stopping_ = false, woken_ = false;

  ExtentPieces pieces_;
  std::vector<Flight> flights_;  // by slot
  std::vector<unsigned> free_;
  std::deque<FinishedPart> finished_;
  size_t in_flight_ = 0, in_flight_bytes_ = 0;
  uint64_t wake_count_ = 0;  // the kernel writes it
  bool waking_armed_ = false, draining_ = false;
  std::thread thread_;
};

}  // namespace

std::unique_ptr<ExtentQueue> try_make_uring_queue(ExtentReader& reader,
                                                  std::vector<std::filesystem::path> files,
                                                  const ExtentQueueOptions& options,
                                                  std::string* refused) {
  std::vector<int> fds;
  for (size_t file = 0; file < files.size(); ++file) {
    fds.push_back(reader.direct_fd(file));
    if (fds.back() >= 0) continue;
    *refused = "the files are not read with O_DIRECT";
    return nullptr;
  }
  auto ring = std::make_unique<Ring>();
  if (ring->error() != 0) {
    *refused = fmt::format("the kernel refuses io_uring: {}", std::strerror(ring->error()));
    return nullptr;
  }
  return std::make_unique<UringQueue>(std::move(ring), std::move(fds), std::move(files), options);
}

}  // namespace atl::storage
