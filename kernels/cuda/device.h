// A GPU: its memory, its one stream, and what goes wrong with them.
//
// Two sources implement it: device.cu, over the CUDA runtime, and device_emulated.cc, over this
// machine's memory. A program links one of them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "base/result.h"
#include "kernels/cuda/launches.h"

namespace atl::kernels::cuda {

struct DeviceInfo {
  std::string name;            // "NVIDIA GeForce RTX 4090"
  int compute_capability = 0;  // 89
  uint64_t memory_total_bytes = 0;
  uint64_t memory_free_bytes = 0;
};

// One thread. After the first error every call returns that error: the device's state is unknown.
class Device {
 public:
  virtual ~Device() = default;
  virtual const DeviceInfo& info() const = 0;
  // 256-byte aligned. kOverloaded: not as much is free; the message says how much is.
  virtual Result<void*> allocate(size_t bytes) = 0;
  virtual void free(void* memory) = 0;
  // Host memory that copies to and from the device without a detour.
  virtual Result<void*> allocate_host(size_t bytes) = 0;
  virtual void free_host(void* memory) = 0;
  // Queued behind what came before; the host's memory is left alone until wait().
  virtual void upload(void* to, const void* from, size_t bytes) = 0;
  virtual void download(void* to, const void* from, size_t bytes) = 0;
  // Within the device; the two don't overlap.
  virtual void copy(void* to, const void* from, size_t bytes) = 0;
  virtual void clear(void* memory, size_t bytes) = 0;
  // Until all that was queued is done. kUnavailable: what the device failed with.
  virtual Status wait() = 0;
  virtual StreamHandle stream() = 0;
};

// kUnavailable: no such device, no driver, or one that is too old, each in one line.
Result<std::unique_ptr<Device>> open_device(int index);

// Memory of the device or of the host beside it; frees itself. Move-only.
class DeviceBuffer {
 public:
  enum class Place { kDevice, kHost };
  DeviceBuffer() = default;
  static Result<DeviceBuffer> make(Device& device, size_t bytes, Place place = Place::kDevice) {
    auto memory = place == Place::kDevice ? device.allocate(bytes) : device.allocate_host(bytes);
    if (!memory) return memory.error();
    DeviceBuffer buffer;
    buffer.device_ = &device;
    buffer.place_ = place;
    buffer.data_ = *memory;
    buffer.bytes_ = bytes;
    return Result<DeviceBuffer>(std::move(buffer));
  }
  ~DeviceBuffer() { reset(); }
  DeviceBuffer(DeviceBuffer&& other) noexcept { *this = std::move(other); }
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
    if (this == &other) return *this;
    reset();
    device_ = other.device_;
    place_ = other.place_;
    data_ = std::exchange(other.data_, nullptr);
    bytes_ = std::exchange(other.bytes_, 0);
    return *this;
  }

  void* data() const { return data_; }
  size_t size() const { return bytes_; }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void reset() {
    if (data_ == nullptr) return;
    place_ == Place::kDevice ? device_->free(data_) : device_->free_host(data_);
    data_ = nullptr;
  }

  Device* device_ = nullptr;
  Place place_ = Place::kDevice;
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace atl::kernels::cuda
