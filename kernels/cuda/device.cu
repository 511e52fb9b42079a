#include "kernels/cuda/device.h"

#include <cuda_runtime.h>

#include <optional>
#include <string>

namespace atl::kernels::cuda {
namespace {

Error error_of(const std::string& what, cudaError_t code) {
  return {ErrorCode::kUnavailable, what + ": " + cudaGetErrorString(code)};
}

class CudaDevice final : public Device {
 public:
  CudaDevice(int index, DeviceInfo info, cudaStream_t stream)
      : index_(index), info_(std::move(info)), stream_(stream) {}
  ~CudaDevice() override { cudaStreamDestroy(stream_); }

  const DeviceInfo& info() const override { return info_; }

  Result<void*> allocate(size_t bytes) override {
    use();
    if (failure_) return *failure_;
    void* memory = nullptr;
    const cudaError_t code = cudaMalloc(&memory, bytes);
    if (code == cudaErrorMemoryAllocation) {
      cudaGetLastError();  // this one leaves the device usable
      size_t free = 0, total = 0;
      cudaMemGetInfo(&free, &total);
      return Error{ErrorCode::kOverloaded, "cuda:" + std::to_string(index_) + ": " +
                                               std::to_string(bytes) + " bytes wanted, " +
                                               std::to_string(free) + " are free"};
    }
    note(code, "allocating device memory");
    if (failure_) return *failure_;
    return memory;
  }
  void free(void* memory) override { cudaFree(memory); }
  Result<void*> allocate_host(size_t bytes) override {
    use();
    if (failure_) return *failure_;
    void* memory = nullptr;
    note(cudaMallocHost(&memory, bytes), "allocating pinned memory");
    if (failure_) return *failure_;
    return memory;
  }
  void free_host(void* memory) override { cudaFreeHost(memory); }
  void upload(void* to, const void* from, size_t bytes) override {
    use();
    note(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream_),
         "copying to the device");
  }
  void download(void* to, const void* from, size_t bytes) override {
    use();
    note(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream_),
         "copying from the device");
  }
  void copy(void* to, const void* from, size_t bytes) override {
    use();
    note(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream_),
         "copying within the device");
  }
  void clear(void* memory, size_t bytes) override {
    use();
    note(cudaMemsetAsync(memory, 0, bytes, stream_), "clearing device memory");
  }
  Status wait() override {
    note(cudaGetLastError(), "launching a kernel");
    note(cudaStreamSynchronize(stream_), "a kernel");
    if (failure_) return *failure_;
    return {};
  }
  StreamHandle stream() override {
    use();
    return stream_;
  }

 private:
  // The runtime keeps a device for each thread of the host, and whoever steps may be another than
  // who loaded.
  void use() { note(cudaSetDevice(index_), "choosing the device"); }
  // The first failure is the cause of all others.
  void note(cudaError_t code, const char* what) {
    if (code != cudaSuccess && !failure_) {
      failure_ = error_of("cuda:" + std::to_string(index_) + ": " + what, code);
    }
  }

  const int index_;
  const DeviceInfo info_;
  const cudaStream_t stream_;
  std::optional<Error> failure_;
};

}  // namespace

Result<std::unique_ptr<Device>> open_device(int index) {
  const std::string name = "cuda:" + std::to_string(index);
  int count = 0;
  if (const cudaError_t code = cudaGetDeviceCount(&count); code != cudaSuccess) {
    return error_of(name, code);
  }
  if (index < 0 || index >= count) {
    return Error{ErrorCode::kUnavailable, name + ": this machine has " + std::to_string(count) +
                                              " CUDA devices, numbered from 0"};
  }
  cudaDeviceProp properties{};
  if (const cudaError_t code = cudaGetDeviceProperties(&properties, index); code != cudaSuccess) {
    return error_of(name, code);
  }
  DeviceInfo info;
  info.name = properties.name;
  info.compute_capability = properties.major * 10 + properties.minor;
  if (properties.major < 8) {
    return Error{ErrorCode::kUnavailable, name + ": " + info.name + " has compute capability " +
                                              std::to_string(properties.major) + "." +
                                              std::to_string(properties.minor) +
                                              ", expected 8.0 or later (Ampere)"};
  }
  if (const cudaError_t code = cudaSetDevice(index); code != cudaSuccess) {
    return error_of(name, code);
  }
  size_t free = 0, total = 0;
  if (const cudaError_t code = cudaMemGetInfo(&free, &total); code != cudaSuccess) {
    return error_of(name, code);
  }
  info.memory_free_bytes = free;
  info.memory_total_bytes = total;
  cudaStream_t stream = nullptr;
  if (const cudaError_t code = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
      code != cudaSuccess) {
    return error_of(name, code);
  }
  return std::unique_ptr<Device>(std::make_unique<CudaDevice>(index, std::move(info), stream));
}

}  // namespace atl::kernels::cuda
