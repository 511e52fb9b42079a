// Reads of experts' tiles that go on while others are computed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "kernels/tile.h"

namespace atl::storage {

// One tile of one expert that is to be filled.
struct TileTarget {
  const kernels::TileLayout* layout = nullptr;
  std::byte* data = nullptr;  // the tile's extent, layout->bytes on kernels::kTileAlign
};

// How packs are read (docs/disk.md).
enum class PackIo : uint8_t {
  kAuto,        // io_uring where the kernel allows it and files are read directly, else threads
  kRegistered,  // io_uring with the memory registered; refused where that can't be
  kThreads,     // threads that block
};

enum class ReadUrgency : uint8_t {
  kNow,    // somebody waits for it
  kAhead,  // may be needed later: gives way to every kNow that has not started yet
};

// Any thread.
class ExpertReader {
 public:
  // Called once for each target, in any order, on a thread of the reader's; must not throw or
  // block. ok: the tile is whole and, where the source has checksums, right. kCorrupt, with file
  // and place: damaged, wrong at a second reading, too. kUnavailable: it could not be read.
  using Done = std::function<void(size_t target, const Status&)>;

  // Ends what is under way; reads that have not begun are dropped. After it no `done` is called.
  virtual ~ExpertReader() = default;

  // Starts reading tiles, ascending, of one expert: `place` in the catalog's moe_layers. The
  // targets' memory is the reader's until their `done`. Returns a ticket for raise().
  virtual uint64_t start(size_t place, int64_t expert, std::vector<TileTarget> targets,
                         ReadUrgency urgency, Done done) = 0;
  // Makes a read kNow; nothing if it has ended.
  virtual void raise(uint64_t ticket) = 0;
  // Memory that targets will lie in. Once, before the first start(). LoadError if it was to be
  // registered with the kernel (PackIo::kRegistered) and that is refused.
  virtual void use_memory(std::span<std::byte> memory) = 0;
  // How it reads, for the log: "io_uring, O_DIRECT, 4 reads of 2 MiB at a time".
  virtual std::string describe() const = 0;
  // RAM beside the targets: windows, rings.
  virtual uint64_t memory_bytes() const = 0;
  virtual uint64_t tiles_reread() const = 0;
};

// Reads all targets, blocking, with a window of the calling thread's. LoadError: kCorrupt.
using ReadExpert =
    std::function<void(size_t place, int64_t expert, std::span<const TileTarget> targets,
                       std::span<std::byte> window)>;
// Threads that call read_expert(), each with a window of window_bytes: for checkpoints.
std::unique_ptr<ExpertReader> make_threaded_expert_reader(ReadExpert read_expert, int num_threads,
                                                          size_t window_bytes);

}  // namespace atl::storage
