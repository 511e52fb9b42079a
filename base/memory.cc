#include "base/memory.h"

#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <string>

#include "base/result.h"
#include "base/units.h"

namespace atl {
namespace {

void* map_anonymous(size_t bytes) {
  void* mapped = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped == MAP_FAILED) {
    throw LoadError(
        fmt::format("cannot map {} of memory: {}", format_bytes(bytes), std::strerror(errno)));
  }
  return mapped;
}

// Maps up to a huge page more than asked for and gives back what lies before the first boundary and
// behind the end: the kernel itself aligns such mappings only from version 6.7 on.
void* map_huge_aligned(size_t bytes) {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t kept = (bytes + page - 1) / page * page;
  const auto begin = reinterpret_cast<uintptr_t>(map_anonymous(kept + kHugePageBytes));
  const uintptr_t end = begin + kept + kHugePageBytes;
  const uintptr_t aligned = (begin + kHugePageBytes - 1) / kHugePageBytes * kHugePageBytes;
  if (aligned > begin) munmap(reinterpret_cast<void*>(begin), aligned - begin);
  munmap(reinterpret_cast<void*>(aligned + kept), end - aligned - kept);
  return reinterpret_cast<void*>(aligned);
}

}  // namespace

HostBuffer::HostBuffer(size_t bytes) : bytes_(bytes) {
  if (bytes == 0) return;
  // An address space has 2^47 bytes: what would overflow the sum is refused as it is.
  const bool huge = bytes >= kHugePageBytes && bytes < (size_t{1} << 62);
  void* mapped = huge ? map_huge_aligned(bytes) : map_anonymous(bytes);
  // Advice only: a kernel without transparent huge pages refuses and nothing is lost.
  if (huge) (void)madvise(mapped, bytes, MADV_HUGEPAGE);
  data_ = static_cast<std::byte*>(mapped);
}

HostBuffer::~HostBuffer() {
  if (data_ != nullptr) munmap(data_, bytes_);
}

void HostBuffer::populate(size_t begin, size_t bytes) {
#ifdef MADV_POPULATE_WRITE
  // Advice like any other: kernels before 5.14 don't know it.
  if (begin < bytes_)
    (void)madvise(data_ + begin, std::min(bytes, bytes_ - begin), MADV_POPULATE_WRITE);
#else
  (void)begin, (void)bytes;
#endif
}

HostBuffer& HostBuffer::operator=(HostBuffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

HugePageUse huge_page_use() {
  HugePageUse use;
  std::ifstream in("/proc/self/smaps_rollup");
  for (std::string line; std::getline(in, line);) {
    unsigned long long kib = 0;
    if (std::sscanf(line.c_str(), "Anonymous: %llu kB", &kib) == 1) use.memory_bytes = kib * kKiB;
    if (std::sscanf(line.c_str(), "AnonHugePages: %llu kB", &kib) == 1) use.huge_bytes = kib * kKiB;
  }
  return use;
}

}  // namespace atl
