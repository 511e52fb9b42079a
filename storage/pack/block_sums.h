// Checksums of each kSumBlockBytes of a file: made while it is written, checked where it is read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <vector>

#include "storage/pack/pack_format.h"

namespace atl::storage {

// Takes a file's bytes in order.
class BlockSummer {
 public:
  void add(std::span<const std::byte> bytes);
  // Of all that was added; the last block may be shorter.
  std::vector<uint64_t> finish();
  uint64_t bytes() const { return bytes_; }

 private:
  std::vector<std::byte> block_;  // what is there of the next one
  std::vector<uint64_t> sums_;
  uint64_t bytes_ = 0;
};

// An open file of which the checksums are known.
struct SummedFile {
  int fd = -1;
  const std::filesystem::path& path;
  uint64_t bytes = 0;
  std::span<const uint64_t> checksums;
};

// Reads out.size() bytes from `offset` on, all of them in the file, and checks every block they lie
// in (those at the edges are read whole). A wrong block is read once more. LoadError with file and
// offset if it is wrong again, or if the file can't be read.
void read_summed(const SummedFile& file, uint64_t offset, std::span<std::byte> out);

}  // namespace atl::storage
