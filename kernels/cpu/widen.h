// Values of stored weights by vectors, for packing.
#pragma once

#include <cstddef>
#include <cstdint>

namespace atl::kernels {

// values[i] = e4m3_to_float(codes[i]) * scale for n codes; the same bits on every CPU.
void widen_e4m3(const std::byte* codes, int64_t n, float scale, float* values);

}  // namespace atl::kernels
