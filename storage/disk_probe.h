// What a drive gives by itself: the limit that the reader of packs is measured against.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <vector>

namespace atl::storage {

// Reads blocks at random places of some files with O_DIRECT into memory on huge pages that was
// touched before: by io_uring where the kernel lets us, else by threads. One thread may use it.
class DiskProbe {
 public:
  virtual ~DiskProbe() = default;
  // Bytes per second over about `seconds`: block_bytes, a multiple of 4096 and at most a file's
  // size, `depth` reads under way at any time. LoadError where a read fails.
  virtual double run(size_t block_bytes, int depth, double seconds) = 0;
  virtual bool uses_io_uring() const = 0;
};

//   in_flight_bytes_max  the largest block_bytes * depth that will be asked for
//   registered           the buffers are registered with the ring (ignored without io_uring)
// LoadError if a file can't be opened or refuses O_DIRECT, or if the kernel refuses to register.
std::unique_ptr<DiskProbe> make_disk_probe(const std::vector<std::filesystem::path>& files,
                                           size_t in_flight_bytes_max, bool registered = false);

}  // namespace atl::storage
