#include "kernels/attention.h"

#include "kernels/reference/reference.h"

namespace atl::kernels {
void mla_attend(const LatentShape& shape, int64_t num_heads, const float* q,
                std::span<const void* const> blocks, int64_t num_positions, float scale,
                float* out) {
  reference::mla_attend(shape, num_heads, q, blocks, num_positions, scale, out);
}
}  // namespace atl::kernels
