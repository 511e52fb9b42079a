// What a kernel may say, in two worlds. Compiled by nvcc it is CUDA; compiled by a plain C++
// compiler it runs on the emulator (kernels/cuda/emulator.h), thread by thread, so that the same
// source is tested on a machine without a GPU, bit by bit.
//
// Arithmetic is by name only (fma_rn, mul_rn, ...): each rounds once, to nearest, and is never
// fused with another. That is what gives the CPU's bits (docs/numbers.md).
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef __CUDACC__

#include <cuda_runtime.h>

#define SIMT_KERNEL(threads) __global__ void __launch_bounds__(threads)
#define SIMT_DEVICE __device__ __forceinline__
#define SIMT_UNROLL _Pragma("unroll")
#define SIMT_NO_UNROLL _Pragma("unroll 1")

namespace simt {

using Stream = cudaStream_t;

SIMT_DEVICE int thread_x() { return static_cast<int>(threadIdx.x); }
SIMT_DEVICE int block_x() { return static_cast<int>(blockIdx.x); }
SIMT_DEVICE int block_y() { return static_cast<int>(blockIdx.y); }
SIMT_DEVICE int block_z() { return static_cast<int>(blockIdx.z); }
SIMT_DEVICE void sync_block() { __syncthreads(); }
SIMT_DEVICE void sync_warp() { __syncwarp(); }

SIMT_DEVICE float fma_rn(float a, float b, float c) { return __fmaf_rn(a, b, c); }
SIMT_DEVICE float mul_rn(float a, float b) { return __fmul_rn(a, b); }
SIMT_DEVICE float add_rn(float a, float b) { return __fadd_rn(a, b); }
SIMT_DEVICE float div_rn(float a, float b) { return __fdiv_rn(a, b); }
SIMT_DEVICE float sqrt_rn(float a) { return __fsqrt_rn(a); }
SIMT_DEVICE float as_float(uint32_t bits) { return __uint_as_float(bits); }
SIMT_DEVICE uint32_t as_bits(float value) { return __float_as_uint(value); }
SIMT_DEVICE float from_int(int value) { return __int2float_rn(value); }

template <class T>
SIMT_DEVICE T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(~0u, value, mask);
}
SIMT_DEVICE uint32_t ballot(bool value) { return __ballot_sync(~0u, value); }

// The block's shared memory, as large as the launch said.
template <class T>
SIMT_DEVICE T* shared() {
  extern __shared__ __align__(128) unsigned char raw[];
  return reinterpret_cast<T*>(raw);
}

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, int threads, size_t shared_bytes,
            Stream stream, Arguments... arguments) {
  if (shared_bytes > 48 * 1024) {
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                         static_cast<int>(shared_bytes));
  }
  kernel<<<grid, threads, shared_bytes, stream>>>(Parameters(arguments)...);
}

}  // namespace simt

#else
#include "kernels/cuda/emulator.h"
#endif
