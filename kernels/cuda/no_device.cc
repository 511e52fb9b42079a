// A build without CUDA: no device can be opened, so that nothing is ever launched.
#include "base/check.h"
#include "kernels/cuda/device.h"

namespace atl::kernels::cuda {

Result<std::unique_ptr<Device>> open_device(int index) {
  return Error{ErrorCode::kUnsupported,
               "cuda:" + std::to_string(index) +
                   ": this program was built without CUDA (cmake -DATOLL_CUDA=ON where nvcc is)"};
}

void linear(StreamHandle, const LinearCall&) { CHECK(false); }
void rms_norm(StreamHandle, int32_t, int32_t, const float*, int64_t, const float*, float, float*,
              int64_t) {
  CHECK(false);
}
void rope(StreamHandle, int32_t, int32_t, int32_t, const float*, const float*, float*, int64_t,
          int64_t) {
  CHECK(false);
}
void silu_mul(StreamHandle, int64_t, float*, const float*) { CHECK(false); }
void add(StreamHandle, int64_t, const float*, float*) { CHECK(false); }
void copy_rows(StreamHandle, int32_t, int32_t, const float*, int64_t, float*, int64_t) {
  CHECK(false);
}
void write_cache(StreamHandle, const CacheCall&, const float*) { CHECK(false); }
int64_t attend_scratch_floats(int32_t, int32_t, int32_t) { return 0; }
void mla_attend(StreamHandle, const CacheCall&, const AttendCall&) { CHECK(false); }
void route(StreamHandle, const RouterShape&, int32_t, float*, const float*, int32_t*, float*,
           uint8_t*) {
  CHECK(false);
}

}  // namespace atl::kernels::cuda
