#include "deployment/device_memory.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <vector>

#include "base/units.h"
#include "coordinator/engine/kv_cache.h"
#include "coordinator/engine/weights.h"

namespace atl::deployment {
namespace {

using coordinator::CudaCompute;
using coordinator::CudaMemoryNeed;
using coordinator::KvCache;
using kernels::WeightFormat;

bool rounds_rows(const model::NumericsProfile& numerics) {
  return numerics.dense_format &&
         numerics.dense().activations_of(*numerics.dense_format) == kernels::Activations::kI8;
}

}  // namespace

Result<CudaMemoryNeed> device_memory_need(const model::OpenedModel& model,
                                          const model::ModelTensors& tensors,
                                          const MemoryRequest& request) {
  if (model.config.attention_kind() == model::AttentionKind::kGqa) {
    return Error{ErrorCode::kUnsupported, std::string(coordinator::kNoGqaKernels)};
  }
  if (rounds_rows(request.numerics)) {
    return Error{ErrorCode::kUnsupported,
                 "dense weights that meet rows rounded to int8 have no GPU kernel: another "
                 "--dense-format, or --activations f32 for int4"};
  }
  const uint64_t matrices =
      coordinator::Weights::held_bytes(model.config, tensors, request.numerics.dense()) -
      tensors.embed_tokens.weight->bytes;
  return CudaCompute::memory_need(model.config, matrices,
                                  coordinator::cache_shape(model.config, request.numerics.cache),
                                  model.config.num_hidden_layers + (model.has_mtp ? 1 : 0),
                                  KvCache::blocks_for(request.cache_tokens) + 1, request.rows_max);
}

int64_t device_cache_tokens(const model::OpenedModel& model, const model::ModelTensors& tensors,
                            const MemoryRequest& request, uint64_t device_bytes) {
  MemoryRequest without = request;
  without.cache_tokens = 0;
  const auto need = device_memory_need(model, tensors, without);
  if (!need || need->total() > device_bytes) return 0;
  // One more block takes its entries and a column of the table of blocks.
  without.cache_tokens = 1;
  const uint64_t block = device_memory_need(model, tensors, without)->total() - need->total();
  return static_cast<int64_t>((device_bytes - need->total()) / block) * kernels::kAttentionBlock;
}

std::optional<std::string> device_shortage(const model::OpenedModel& model,
                                           const MemoryRequest& request, const CacheOption& cache,
                                           uint64_t device_bytes) {
  const model::ModelTensors tensors = model.tensors();
  const auto need = device_memory_need(model, tensors, request);
  if (!need) return need.error().message;
  if (need->total() <= device_bytes) return std::nullopt;
  std::vector<std::string> ways;
  const auto try_with = [&](const MemoryRequest& tried, const std::string& options) {
    const auto less = device_memory_need(model, tensors, tried);
    if (less && less->total() <= device_bytes) return ways.push_back(options);
    const int64_t tokens = device_cache_tokens(model, tensors, tried, device_bytes);
    if (tokens == 0) return;
    ways.push_back(fmt::format("{}{}{} ({} tokens in the KV cache fit)", options,
                               options.empty() ? "" : " with ",
                               cache.bytes_option.empty() ? cache.advice : cache.bytes_option,
                               format_count(static_cast<uint64_t>(tokens))));
  };
  try_with(request, "");
  MemoryRequest int4 = request;
  int4.numerics.dense_format = WeightFormat::kInt4;
  int4.numerics.activations = kernels::Activations::kF32;
  if (request.numerics.dense_format != WeightFormat::kInt4) {
    try_with(int4, "--dense-format int4 --activations f32");
  }
  return fmt::format(
      "not enough memory on the device: {} are needed (weights {}, KV cache {}, buffers {}), there "
      "are {}; {}",
      format_bytes(need->total()), format_bytes(need->weights), format_bytes(need->kv_cache),
      format_bytes(need->buffers), format_bytes(device_bytes),
      ways.empty() ? std::string("nothing smaller fits either")
                   : fmt::format("what fits: {}", fmt::join(ways, ", or ")));
}

}  // namespace atl::deployment
