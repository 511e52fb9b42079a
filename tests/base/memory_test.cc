#include "base/memory.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cinttypes>
#include <fstream>
#include <string>

#include "base/result.h"
#include "base/units.h"

#include <vector>

namespace atl {
namespace {

uintptr_t address(const HostBuffer& buffer) { return reinterpret_cast<uintptr_t>(buffer.data()); }

// Bytes on huge pages among the mappings that overlap the buffer.
uint64_t huge_bytes_of(const HostBuffer& buffer) {
  std::ifstream in("/proc/self/smaps");
  const uintptr_t begin = address(buffer), end = begin + buffer.size();
  bool inside = false;
  uint64_t bytes = 0;
  for (std::string line; std::getline(in, line);) {
    uintptr_t low = 0, high = 0;
    unsigned long long kib = 0;
    if (std::sscanf(line.c_str(), "%" SCNxPTR "-%" SCNxPTR " ", &low, &high) == 2) {
      inside = low < end && high > begin;
    } else if (inside && std::sscanf(line.c_str(), "AnonHugePages: %llu kB", &kib) == 1) {
      bytes += kib * kKiB;
    }
  }
  return bytes;
}

// Whether the kernel has huge pages for somebody who asks for them without our code.
bool kernel_gives_huge_pages(size_t bytes) {
  const uint64_t before = huge_page_use().huge_bytes;
  void* mapped = mmap(nullptr, bytes + kHugePageBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) return false;
  madvise(mapped, bytes + kHugePageBytes, MADV_HUGEPAGE);
  std::fill_n(static_cast<std::byte*>(mapped), bytes + kHugePageBytes, std::byte{1});
  const bool given = huge_page_use().huge_bytes >= before + bytes;
  munmap(mapped, bytes + kHugePageBytes);
  return given;
}

TEST(HostBuffer, large_ones_start_on_a_huge_page_whatever_was_mapped_before) {
  for (const size_t bytes : {kHugePageBytes, kHugePageBytes + 1, 5 * kMiB + 4097, 64 * kMiB}) {
    const HostBuffer odd(4096);  // shifts where the kernel puts the next one
    const HostBuffer buffer(bytes);
    EXPECT_EQ(address(buffer) % kHugePageBytes, 0) << bytes;
    EXPECT_EQ(buffer.size(), bytes);
  }
}

TEST(HostBuffer, is_zero_and_writable_to_its_last_byte) {
  for (const size_t bytes : {size_t{1}, size_t{4097}, 3 * kMiB + 1}) {
    HostBuffer buffer(bytes);
    EXPECT_TRUE(std::all_of(buffer.span().begin(), buffer.span().end(),
                            [](std::byte b) { return b == std::byte{0}; }));
    std::fill(buffer.span().begin(), buffer.span().end(), std::byte{7});
    EXPECT_EQ(buffer.data()[bytes - 1], std::byte{7});
  }
}

TEST(HostBuffer, lies_on_huge_pages_where_the_kernel_has_them) {
  constexpr size_t kBytes = 16 * kMiB;
  if (!kernel_gives_huge_pages(kBytes)) {
    GTEST_SKIP() << "transparent huge pages are off, or none is free";
  }
  const uint64_t before = huge_page_use().huge_bytes;
  HostBuffer buffer(kBytes);
  std::fill(buffer.span().begin(), buffer.span().end(), std::byte{1});
  EXPECT_GE(huge_bytes_of(buffer), kBytes);  // from the first byte to the last
  EXPECT_GE(huge_page_use().huge_bytes, before + kBytes);
  EXPECT_GE(huge_page_use().memory_bytes, huge_page_use().huge_bytes);
}

TEST(HostBuffer, gives_all_of_its_memory_back) {
  const auto mapped_pages = [] {
    long pages = 0;
    std::ifstream("/proc/self/statm") >> pages;
    return pages;
  };
  const long before = mapped_pages();
  for (int i = 0; i < 100; ++i) HostBuffer buffer(4 * kMiB + 1);
  EXPECT_LT(mapped_pages() - before, 1024);  // a huge page left each time would be 51,200
}

TEST(HostBuffer, a_size_that_no_machine_has_is_refused_in_words) {
  EXPECT_THROW(HostBuffer(size_t{1} << 60), LoadError);
  EXPECT_THROW(HostBuffer(~size_t{0} - 8192), LoadError);
}

// Pages of a buffer that are in RAM.
size_t pages_in_ram(const HostBuffer& buffer) {
  std::vector<unsigned char> there(buffer.size() / 4096);
  EXPECT_EQ(mincore(const_cast<std::byte*>(buffer.data()), buffer.size(), there.data()), 0);
  return static_cast<size_t>(
      std::count_if(there.begin(), there.end(), [](unsigned char page) { return page & 1; }));
}

TEST(HostBuffer, populated_pages_are_in_ram_and_no_others) {
  if (sysconf(_SC_PAGESIZE) != 4096) GTEST_SKIP() << "pages are not of 4 KiB";
  HostBuffer buffer(64 * 4096);
  EXPECT_EQ(pages_in_ram(buffer), 0u);
  buffer.populate(8 * 4096, 16 * 4096);
  if (pages_in_ram(buffer) == 0) GTEST_SKIP() << "this kernel does not populate (before 5.14)";
  EXPECT_EQ(pages_in_ram(buffer), 16u);
  buffer.populate(60 * 4096, 100 * 4096);  // cut at the end
  EXPECT_EQ(pages_in_ram(buffer), 20u);
  buffer.populate(200 * 4096, 4096);  // behind it: nothing
  EXPECT_EQ(pages_in_ram(buffer), 20u);
}

}  // namespace
}  // namespace atl
