// A device that is this machine: memory is the host's, and what is queued is done at once. Memory
// starts as NaNs, so that what was never written shows; sizes are exact, so that the address
// sanitizer sees the ends.
#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "base/check.h"
#include "base/units.h"
#include "kernels/cuda/device.h"

namespace atl::kernels::cuda {
namespace {

constexpr size_t kAlign = 256;

class EmulatedDevice final : public Device {
 public:
  EmulatedDevice() {
    info_.name = "emulated on this CPU";
    info_.compute_capability = 80;
  }
  const DeviceInfo& info() const override { return info_; }

  Result<void*> allocate(size_t bytes) override {
    // malloc and not aligned_alloc, whose sizes are multiples: the end is exact.
    auto* memory = static_cast<std::byte*>(std::malloc(bytes + kAlign));
    CHECK(memory != nullptr);
    const size_t gap = kAlign - reinterpret_cast<uintptr_t>(memory) % kAlign;
    std::byte* at = memory + gap;
    at[-1] = static_cast<std::byte>(gap - 1);
    std::memset(at, 0xff, bytes);
    return static_cast<void*>(at);
  }
  void free(void* memory) override {
    auto* at = static_cast<std::byte*>(memory);
    std::free(at - std::to_integer<size_t>(at[-1]) - 1);
  }
  Result<void*> allocate_host(size_t bytes) override { return allocate(bytes); }
  void free_host(void* memory) override { free(memory); }
  void upload(void* to, const void* from, size_t bytes) override {
    if (bytes > 0) std::memcpy(to, from, bytes);
  }
  void download(void* to, const void* from, size_t bytes) override {
    if (bytes > 0) std::memcpy(to, from, bytes);
  }
  void copy(void* to, const void* from, size_t bytes) override {
    if (bytes > 0) std::memcpy(to, from, bytes);
  }
  void clear(void* memory, size_t bytes) override { std::memset(memory, 0, bytes); }
  Status wait() override { return {}; }
  StreamHandle stream() override { return nullptr; }

 private:
  DeviceInfo info_;
};

}  // namespace

Result<std::unique_ptr<Device>> open_device(int index) {
  if (index != 0) return Error{ErrorCode::kUnavailable, "the emulator has one device, cuda:0"};
  return std::unique_ptr<Device>(std::make_unique<EmulatedDevice>());
}

}  // namespace atl::kernels::cuda
