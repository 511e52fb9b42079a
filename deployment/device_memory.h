// Whether what a GPU computes fits its memory, known before anything is loaded: dense matrices, KV
// cache, buffers (docs/cuda.md).
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "coordinator/engine/cuda_compute.h"
#include "deployment/memory_check.h"
#include "model/open.h"

namespace atl::deployment {

// Weights as the host holds them, each part from a multiple of 64 bytes on: up to 1 % more than the
// device takes. kUnsupported: the dense matrices would meet rows rounded to int8, for which there
// is no kernel.
Result<coordinator::CudaMemoryNeed> device_memory_need(const model::OpenedModel& model,
                                                       const model::ModelTensors& tensors,
                                                       const MemoryRequest& request);

// Most tokens that the KV cache may hold on a device of this memory, in whole blocks; 0: none.
int64_t device_cache_tokens(const model::OpenedModel& model, const model::ModelTensors& tensors,
                            const MemoryRequest& request, uint64_t device_bytes);

// nullopt: it fits. Else one line: what is needed, what there is and what would fit.
std::optional<std::string> device_shortage(const model::OpenedModel& model,
                                           const MemoryRequest& request, const CacheOption& cache,
                                           uint64_t device_bytes);

}  // namespace atl::deployment
