#include "storage/pack/block_sums.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "base/result.h"

namespace atl::storage {
namespace {

void read_exactly(const SummedFile& file, uint64_t offset, std::span<std::byte> out) {
  size_t done = 0;
  while (done < out.size()) {
    const ssize_t got =
        ::pread(file.fd, out.data() + done, out.size() - done, static_cast<off_t>(offset + done));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) {
      throw LoadError(fmt::format("{}: read {} of {} bytes at offset {}: {}", file.path.string(),
                                  done, out.size(), offset,
                                  got < 0 ? std::strerror(errno) : "the file shrank"));
    }
    done += static_cast<size_t>(got);
  }
}

// `data` are whole blocks (the file's last may be shorter) from block `first` on.
void check_blocks(const SummedFile& file, uint64_t first, std::span<std::byte> data) {
  for (uint64_t block = first; !data.empty(); ++block) {
    const auto bytes = data.first(std::min<size_t>(data.size(), kSumBlockBytes));
    data = data.subspan(bytes.size());
    if (checksum(bytes) == file.checksums[block]) continue;
    const uint64_t offset = block * kSumBlockBytes;
    // The page may have been damaged in memory: what is on the disk counts.
    (void)::posix_fadvise(file.fd, static_cast<off_t>(offset), static_cast<off_t>(bytes.size()),
                          POSIX_FADV_DONTNEED);
    read_exactly(file, offset, bytes);
    const uint64_t found = checksum(bytes);
    if (found == file.checksums[block]) continue;
    throw LoadError(fmt::format(
        "{}: checksum {:016x} of {} bytes at offset {}, expected {:016x}: the file is damaged: "
        "remove it and pack again",
        file.path.string(), found, bytes.size(), offset, file.checksums[block]));
  }
}

// The part of `out` in one block that it does not cover.
void read_in_block(const SummedFile& file, uint64_t offset, std::span<std::byte> out) {
  const uint64_t block = offset / kSumBlockBytes;
  const uint64_t begin = block * kSumBlockBytes;
  std::vector<std::byte> whole(std::min(kSumBlockBytes, file.bytes - begin));
  read_exactly(file, begin, whole);
  check_blocks(file, block, whole);
  std::memcpy(out.data(), whole.data() + (offset - begin), out.size());
}

}  // namespace

void BlockSummer::add(std::span<const std::byte> bytes) {
  bytes_ += bytes.size();
  while (!bytes.empty()) {
    if (block_.empty() && bytes.size() >= kSumBlockBytes) {
      sums_.push_back(checksum(bytes.first(kSumBlockBytes)));
      bytes = bytes.subspan(kSumBlockBytes);
      continue;
    }
    const auto part = bytes.first(std::min<size_t>(bytes.size(), kSumBlockBytes - block_.size()));
    block_.insert(block_.end(), part.begin(), part.end());
    bytes = bytes.subspan(part.size());
    if (block_.size() < kSumBlockBytes) continue;
    sums_.push_back(checksum(block_));
    block_.clear();
  }
}

std::vector<uint64_t> BlockSummer::finish() {
  if (!block_.empty()) sums_.push_back(checksum(block_));
  block_.clear();
  return std::exchange(sums_, {});
}

void read_summed(const SummedFile& file, uint64_t offset, std::span<std::byte> out) {
  CHECK_LE(offset, file.bytes);
  CHECK_LE(out.size(), file.bytes - offset);
  while (!out.empty()) {
    const uint64_t block_begin = offset / kSumBlockBytes * kSumBlockBytes;
    const uint64_t block_end = std::min(block_begin + kSumBlockBytes, file.bytes);
    if (offset != block_begin || out.size() < block_end - block_begin) {
      const auto part = out.first(std::min<size_t>(out.size(), block_end - offset));
      read_in_block(file, offset, part);
      offset += part.size();
      out = out.subspan(part.size());
      continue;
    }
    const bool to_the_end = offset + out.size() == file.bytes;
    const auto whole =
        out.first(to_the_end ? out.size() : out.size() / kSumBlockBytes * kSumBlockBytes);
    read_exactly(file, offset, whole);
    check_blocks(file, offset / kSumBlockBytes, whole);
    offset += whole.size();
    out = out.subspan(whole.size());
  }
}

}  // namespace atl::storage
