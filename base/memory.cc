#include "base/memory.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include <cerrno>
#include <cstring>

#include "base/result.h"
#include "base/units.h"

namespace atl {
namespace {

// Below this a huge page wastes more than it saves: half of one 2 MiB page.
constexpr size_t kHugePageWorthBytes = 1 * kMiB;

}  // namespace

HostBuffer::HostBuffer(size_t bytes) : bytes_(bytes) {
  if (bytes == 0) return;
  void* mapped = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped == MAP_FAILED) {
    throw LoadError(fmt::format("cannot map {} of memory: {}", format_bytes(bytes),
                                std::strerror(errno)));
  }
  // Advice only: a kernel without transparent huge pages refuses and nothing is lost.
  if (bytes >= kHugePageWorthBytes) (void)madvise(mapped, bytes, MADV_HUGEPAGE);
  data_ = static_cast<std::byte*>(mapped);
}

HostBuffer::~HostBuffer() {
  if (data_ != nullptr) munmap(data_, bytes_);
}

HostBuffer& HostBuffer::operator=(HostBuffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

}  // namespace atl
