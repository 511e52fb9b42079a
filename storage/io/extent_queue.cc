#include "storage/io/extent_queue.h"

#include <fmt/format.h>

#include <condition_variable>
#include <mutex>
#include <thread>
#include <utility>

#include "base/check.h"
#include "base/log.h"
#include "storage/io/extent_pieces.h"
#include "storage/io/uring_queue.h"

namespace atl::storage {
namespace {

// A piece is several reads where its memory is in several places.
Status read_piece(ExtentReader& reader, const ExtentPiece& piece) {
  uint64_t offset = piece.offset;
  for (const iovec& memory : piece.memory) {
    const std::span<std::byte> out(static_cast<std::byte*>(memory.iov_base), memory.iov_len);
    if (Status status = reader.read(piece.request->file, offset, out); !status) return status;
    offset += memory.iov_len;
  }
  return {};
}

class ThreadedQueue final : public ExtentQueue {
 public:
  ThreadedQueue(ExtentReader& reader, const ExtentQueueOptions& options, bool direct)
      : reader_(reader), options_(options), direct_(direct), pieces_(options.piece_bytes) {
    for (int t = 0; t < options.num_threads; ++t) threads_.emplace_back([this] { run(); });
  }
  ~ThreadedQueue() override { stop(); }

  void use_memory(std::span<std::byte>) override {}

  uint64_t start(size_t file, std::vector<ExtentPart> parts, ReadUrgency urgency,
                 Done done) override {
    auto request = std::make_shared<ExtentRequest>();
    request->file = file;
    request->parts = std::move(parts);
    request->done = std::move(done);
    const std::lock_guard lock(mutex_);
    request->ticket = ++last_ticket_;
    if (stopping_) return last_ticket_;
    pieces_.add(std::move(request), urgency);
    changed_.notify_all();
    return last_ticket_;
  }

  void raise(uint64_t ticket) override {
    const std::lock_guard lock(mutex_);
    pieces_.raise(ticket);
  }

  void stop() override {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
      changed_.notify_all();
    }
    for (std::thread& thread : threads_) {
      if (thread.joinable()) thread.join();
    }
  }

  std::string describe() const override {
    return fmt::format("{} threads with pread, {}, in reads of {}", options_.num_threads,
                       direct_ ? "O_DIRECT" : "through the page cache",
                       format_bytes(options_.piece_bytes));
  }
  uint64_t memory_bytes() const override { return 0; }

 private:
  void run() {
    std::unique_lock lock(mutex_);
    for (;;) {
      ExtentPiece piece;
      changed_.wait(lock, [&] { return stopping_ || pieces_.next(&piece); });
      if (stopping_) return;
      lock.unlock();
      const Status status = read_piece(reader_, piece);
      std::deque<FinishedPart> finished;
      lock.lock();
      ExtentPieces::finish(piece, status, &finished);
      if (stopping_) return;
      lock.unlock();
      for (const FinishedPart& part : finished) part.tell();
      finished.clear();  // a caller's captures go without the lock
      lock.lock();
    }
  }

  ExtentReader& reader_;
  const ExtentQueueOptions options_;
  const bool direct_;
  std::mutex mutex_;  // of the following
  std::condition_variable changed_;
  ExtentPieces pieces_;
  uint64_t last_ticket_ = 0;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace

std::unique_ptr<ExtentQueue> make_extent_queue(ExtentReader& reader,
                                               std::vector<std::filesystem::path> files,
                                               const ExtentQueueOptions& options) {
  CHECK(!files.empty());
  const std::filesystem::path directory = files.front().parent_path();
  const bool direct = reader.direct_fd(0) >= 0;
  std::string refused = "told not to use io_uring";
  if (options.io != PackIo::kThreads) {
    std::unique_ptr<ExtentQueue> queue =
        try_make_uring_queue(reader, std::move(files), options, &refused);
    if (queue != nullptr) return queue;
  }
  if (options.io == PackIo::kRegistered) {
    throw LoadError(
        fmt::format("{}: cannot read into registered memory: {}: leave '--io registered' "
                    "out, to read without",
                    directory.string(), refused));
  }
  log_info("{}: reading with {} threads: {}", directory.string(), options.num_threads, refused);
  return std::make_unique<ThreadedQueue>(reader, options, direct);
}

}  // namespace atl::storage
