// Page-backed host memory for weights, caches and staging.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

namespace atl {

// An anonymous mapping, zero-filled by the kernel, 4 KiB aligned, on huge pages where they can be
// had (madvise) and the size makes that worthwhile. Move-only; unmaps itself. Untouched pages cost
// no memory. Throws LoadError when the kernel refuses the size.
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

}  // namespace atl
