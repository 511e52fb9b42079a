// Reads aligned extents of files into aligned memory: the one way from a pack's tiles to RAM.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <vector>

#include "base/result.h"

namespace atl::storage {

inline constexpr size_t kExtentAlign = 4096;

// Any thread.
class ExtentReader {
 public:
  virtual ~ExtentReader() = default;
  // Fills out from byte `offset` of files[file]; offset, address and size are multiples of
  // kExtentAlign. kCorrupt, with file and offset, on I/O errors and where the file ends before.
  virtual Status read(size_t file, uint64_t offset, std::span<std::byte> out) = 0;
  virtual uint64_t file_bytes(size_t file) const = 0;
};

// By pread() past the page cache (O_DIRECT), or, where the file system refuses that, through it
// (said once in the log; pages are dropped after use). LoadError if a file can't be opened.
std::unique_ptr<ExtentReader> open_extent_files(std::vector<std::filesystem::path> files);

}  // namespace atl::storage
