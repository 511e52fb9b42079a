// What a drive gives by itself: the limit that the reader of packs is measured against.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <vector>

namespace atl::storage {

// Where a probe's blocks go. On virtual machines whose host copies each block the difference is
// large; a device that writes to memory itself shows little of it.
enum class ProbeMemory : uint8_t {
  kInTurn,  // through all of the probe's memory, as an expert's tiles go to slots
  kSame,    // `depth` blocks of it, over and over, which stay in the caches
};

// Reads blocks at random places of some files with O_DIRECT into memory on huge pages that was
// touched before: by io_uring where the kernel lets us, else by threads. One thread may use it.
class DiskProbe {
 public:
  virtual ~DiskProbe() = default;
  // Bytes per second over about `seconds`: block_bytes, a multiple of 4096 and at most the largest
  // file's size, `depth` reads (at most 256) under way at any time. LoadError where a read fails.
  virtual double run(size_t block_bytes, int depth, double seconds, ProbeMemory memory) = 0;
  virtual bool uses_io_uring() const = 0;
};

//   memory_bytes  to read to; at least block_bytes * depth of each run()
//   registered    all of it is registered with the ring (ignored without io_uring)
// LoadError if a file can't be opened or refuses O_DIRECT, or if the kernel refuses to register.
std::unique_ptr<DiskProbe> make_disk_probe(const std::vector<std::filesystem::path>& files,
                                           size_t memory_bytes, bool registered = false);

}  // namespace atl::storage
