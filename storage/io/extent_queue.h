// Reads extents of the files of one drive at the drive's speed: asynchronously, straight to where
// they stay, large ones in pieces, small neighbours in one read (docs/disk.md).
//
// Two ways: one thread that owns an io_uring, where the kernel allows that and the file system
// takes O_DIRECT; else threads that call ExtentReader::read(). Both take pieces from the same queue
// (extent_pieces.h). The size of pieces and how much is under way were measured,
// docs/benchmarks.md.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/units.h"
#include "storage/io/extent_reader.h"
#include "storage/tiles/expert_reader.h"

namespace atl::storage {

// `bytes` bytes of a file from `offset` on, and where they go; all multiples of kExtentAlign.
struct ExtentPart {
  uint64_t offset = 0;
  std::byte* data = nullptr;
  size_t bytes = 0;
};

struct ExtentQueueOptions {
  size_t piece_bytes = 2 * kMiB;
  // Small pieces are under way in greater number: what counts is the bytes.
  size_t in_flight_bytes = 16 * kMiB;
  // A kAhead piece starts only while less than this is under way, which somebody who comes and
  // waits has before him.
  size_t ahead_in_flight_bytes = 4 * kMiB;
  PackIo io = PackIo::kAuto;
  int num_threads = 4;                    // where io_uring is not used
  size_t registered_buffer_bytes = kGiB;  // of registered memory: the kernel takes no more as one
  // For tests: sees what the ring says of each read (bytes or -errno), says what we take it for.
  std::function<int(size_t file, uint64_t offset, int result)> filter = nullptr;
};

// Any thread.
class ExtentQueue {
 public:
  // Called once for each part, in any order, on a thread of the queue's: kCorrupt where the file
  // ends before, kUnavailable for I/O errors, both with file and offset. Must not throw or block.
  // It may call start() and raise() of this queue and others.
  using Done = std::function<void(size_t part, const Status&)>;

  // As stop().
  virtual ~ExtentQueue() = default;

  // Memory that parts will lie in; once, before the first start(). With PackIo::kRegistered all of
  // it is backed and pinned now: LoadError where the kernel refuses that.
  virtual void use_memory(std::span<std::byte> memory) = 0;
  // Starts reading parts of one file, ascending. Their memory is the queue's until their `done`.
  // Parts that begin where the one before ends are read together. Returns a ticket for raise().
  virtual uint64_t start(size_t file, std::vector<ExtentPart> parts, ReadUrgency urgency,
                         Done done) = 0;
  // Makes a read kNow; nothing if it has ended.
  virtual void raise(uint64_t ticket) = 0;
  // Waits for reads that are under way and drops all others. When it returns no `done` runs or
  // will run, and no memory is written. Not from `done`. Later calls of start() do nothing.
  virtual void stop() = 0;
  virtual std::string describe() const = 0;
  // RAM beside the parts: rings and what stands for pieces.
  virtual uint64_t memory_bytes() const = 0;
};

//   files  of the reader, for messages; the reader is borrowed and must outlive the queue
// Where io_uring is refused, one log line says why; LoadError if PackIo::kRegistered asks for it.
std::unique_ptr<ExtentQueue> make_extent_queue(ExtentReader& reader,
                                               std::vector<std::filesystem::path> files,
                                               const ExtentQueueOptions& options = {});
// Or what a test puts in its place, such as a drive that fails.
using MakeExtentQueue = std::function<std::unique_ptr<ExtentQueue>(
    ExtentReader& reader, std::vector<std::filesystem::path> files, const ExtentQueueOptions&)>;

}  // namespace atl::storage
