// What is to be read from one drive, cut into pieces in the order in which they should start.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <vector>

#include "base/result.h"
#include "storage/io/extent_queue.h"

namespace atl::storage {

// One start() of an ExtentQueue.
struct ExtentRequest {
  uint64_t ticket = 0;
  size_t file = 0;
  std::vector<ExtentPart> parts;
  ExtentQueue::Done done;
  // Where the next piece begins.
  size_t next_part = 0, next_offset = 0;
  std::vector<size_t> bytes_left;            // of each part
  std::vector<std::optional<Error>> errors;  // of each part, the first one
};

// Places in memory that one read fills at most: 256 parts of 4 KiB are enough for a drive.
inline constexpr size_t kMemoryRangesMax = 256;

// One read: bytes of a file that are neighbours there, of one part or several.
struct ExtentPiece {
  std::shared_ptr<ExtentRequest> request;
  size_t part = 0;  // the first one
  size_t part_offset = 0;
  uint64_t offset = 0;  // in the file
  size_t bytes = 0;
  std::vector<iovec> memory;
};

// A part that is whole, or has failed and is no longer written to.
struct FinishedPart {
  std::shared_ptr<ExtentRequest> request;
  size_t part = 0;
  Status status;
  void tell() const { request->done(part, status); }
};

enum class AheadReads : uint8_t { kMayStart, kMustWait };

// Not thread-safe.
class ExtentPieces {
 public:
  // Pieces are of piece_bytes unless their neighbourhood ends before.
  explicit ExtentPieces(size_t piece_bytes) : piece_bytes_(piece_bytes) {}

  void add(std::shared_ptr<ExtentRequest> request, ReadUrgency urgency);
  // Puts what has not started of a request behind all others that somebody waits for.
  void raise(uint64_t ticket);
  // Cuts the next piece off; false if there is none that may start.
  bool next(ExtentPiece* piece, AheadReads ahead = AheadReads::kMayStart);
  // Appends the parts that have ended with this piece, to be told to the caller by tell().
  static void finish(const ExtentPiece& piece, const Status& status,
                     std::deque<FinishedPart>* finished);

 private:
  using Requests = std::deque<std::shared_ptr<ExtentRequest>>;
  ExtentPiece cut(const std::shared_ptr<ExtentRequest>& request) const;

  const size_t piece_bytes_;
  Requests now_, ahead_;
};

}  // namespace atl::storage
