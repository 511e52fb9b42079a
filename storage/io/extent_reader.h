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
  // kExtentAlign. Errors: extent_error().
  virtual Status read(size_t file, uint64_t offset, std::span<std::byte> out) = 0;
  virtual uint64_t file_bytes(size_t file) const = 0;
  // The file, open with O_DIRECT, for somebody who reads many extents at the same time; -1: only
  // read() reads it.
  virtual int direct_fd(size_t) const { return -1; }
};

// Of a read of `wanted` bytes from `offset` that ended after `done`: kUnavailable for a system
// error (errno's), kCorrupt where error is 0: the file ends there.
Error extent_error(const std::filesystem::path& file, uint64_t offset, size_t done, size_t wanted,
                   int error);

// By pread() past the page cache (O_DIRECT), or, where the file system refuses that, through it
// (said once in the log; pages are dropped after use). LoadError if a file can't be opened.
std::unique_ptr<ExtentReader> open_extent_files(std::vector<std::filesystem::path> files);

}  // namespace atl::storage
