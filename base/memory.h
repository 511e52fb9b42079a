// Page-backed host memory for weights, caches and staging.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

namespace atl {

inline constexpr size_t kHugePageBytes = size_t{2} << 20;

// An anonymous mapping, zero-filled by the kernel. From 2 MiB on it starts on a huge page and asks
// for huge pages from its first byte to the last whole one; smaller ones are 4 KiB aligned.
// Move-only; unmaps itself. Untouched pages cost no memory. Throws LoadError when the kernel
// refuses the size.
class HostBuffer {
 public:
  HostBuffer() = default;
  explicit HostBuffer(size_t bytes);
  ~HostBuffer();
  HostBuffer(HostBuffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  HostBuffer& operator=(HostBuffer&& other) noexcept;

  std::byte* data() { return data_; }
  const std::byte* data() const { return data_; }
  size_t size() const { return bytes_; }
  std::span<std::byte> span() { return {data_, bytes_}; }
  std::span<const std::byte> span() const { return {data_, bytes_}; }

  // Makes the kernel back these bytes now, of whole pages, so that whoever uses them first does not
  // wait for it. What it can't give is left; from another thread than the memory's user, too.
  void populate(size_t begin, size_t bytes);

  template <typename T>
  T* as() {
    return reinterpret_cast<T*>(data_);
  }
  template <typename T>
  const T* as() const {
    return reinterpret_cast<const T*>(data_);
  }

 private:
  std::byte* data_ = nullptr;
  size_t bytes_ = 0;
};

// How much of this process's own memory lies on huge pages, as the kernel counts it now.
struct HugePageUse {
  uint64_t memory_bytes = 0;  // anonymous memory in RAM: weights, caches, heaps, stacks
  uint64_t huge_bytes = 0;    // of that
};
// Reads all page tables, some milliseconds per 10 GB. Zeros where the kernel doesn't tell.
HugePageUse huge_page_use();

}  // namespace atl
