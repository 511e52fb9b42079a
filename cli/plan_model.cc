#include "cli/plan_model.h"

#include <algorithm>
#include <memory>
#include <numeric>

#include "base/check.h"
#include "coordinator/engine/cpu_compute.h"
#include "deployment/memory_check.h"
#include "deployment/model_parts.h"
#include "kernels/panel.h"
#include "storage/tiles/tile_store.h"
#include "storage/tiles/usage_file.h"

namespace atl::cli {
namespace {

using kernels::WeightFormat;
using storage::MatrixSource;
using topology::Kernel;
using topology::ModelShape;
using topology::Work;

// Experts that are chosen about as often count as one class: enough for what a cache keeps.
constexpr size_t kUsageClasses = 64;

Kernel kernel_of(const kernels::PanelShape& shape) {
  const bool i8 = shape.activations == kernels::Activations::kI8;
  switch (shape.format) {
    case WeightFormat::kF32:
      return Kernel::kF32;
    case WeightFormat::kBf16:
    case WeightFormat::kF16:  // as many bytes and about as many instructions
      return Kernel::kBf16;
    case WeightFormat::kFp8E4m3:
      return Kernel::kFp8;
    case WeightFormat::kInt4:
      return i8 ? Kernel::kInt4I8 : Kernel::kInt4;
    case WeightFormat::kInt8:
      return Kernel::kInt8I8;
  }
  CHECK(false);
}

void add(const kernels::PanelShape& shape, Work* work) {
  work->weights += static_cast<double>(shape.outputs * shape.k);
  work->bytes += static_cast<double>(shape.total_code_bytes() + shape.total_scale_bytes());
  work->kernel = kernel_of(shape);
}
void add(const MatrixSource& matrix, const storage::HeldFormat& held, Work* work) {
  if (matrix.weight == nullptr) return;
  add(held.shape(matrix.format, matrix.rows, matrix.cols, {}), work);
}

uint64_t stored_bytes(const MatrixSource& matrix) {
  if (matrix.weight == nullptr) return 0;
  return matrix.weight->bytes + (matrix.scale ? matrix.scale->bytes : 0);
}

std::vector<int> first_tiles(int count) {
  std::vector<int> tiles(static_cast<size_t>(count));
  std::iota(tiles.begin(), tiles.end(), 0);
  return tiles;
}

}  // namespace

PlanModel::PlanModel(const model::OpenedModel& model, PlanModelOptions options)
    : model_(model), options_(std::move(options)), tensors_(model.tensors()) {}

ModelShape PlanModel::shape(const model::NumericsProfile& asked) const {
  const model::NumericsProfile numerics = model_.settle(asked);
  const model::ModelConfig& config = model_.config;
  ModelShape shape;
  for (int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    ++(config.is_moe_layer(layer) ? shape.moe_layers : shape.dense_layers);
  }
  shape.heads = static_cast<double>(config.num_attention_heads);
  shape.kv_lora_rank = static_cast<double>(config.kv_lora_rank);
  shape.rope_dim = static_cast<double>(config.qk_rope_head_dim);
  shape.cache_entry_bytes = static_cast<double>(kernels::element_bytes(numerics.cache)) *
                            (shape.kv_lora_rank + shape.rope_dim);
  shape.hidden = static_cast<double>(config.hidden_size);
  shape.wire_value_bytes = static_cast<double>(kernels::element_bytes(numerics.wire));
  shape.n_routed_experts = static_cast<int>(config.n_routed_experts);
  shape.num_experts_per_tok = static_cast<int>(config.num_experts_per_tok);
  add_matrices(numerics, &shape);
  if (shape.moe_layers > 0) {
    add_experts(numerics, &shape);
    add_usage(&shape);
  }
  add_memory(numerics, &shape);
  return shape;
}

// Layers of a kind have the same matrices: the first of each counts.
void PlanModel::add_matrices(const model::NumericsProfile& numerics, ModelShape* shape) const {
  const storage::HeldFormat held = numerics.dense();
  bool has_dense = false, has_moe = false;
  for (size_t layer = 0; layer < tensors_.layers.size(); ++layer) {
    const model::LayerTensors& tensors = tensors_.layers[layer];
    if (layer == 0) {
      for (const MatrixSource* matrix : model::whole_matrices(tensors.attention)) {
        add(*matrix, held, &shape->projections);
      }
      const auto& attention = std::get<model::MlaTensors>(tensors.attention);
      add(attention.kv_a_proj_with_mqa, held, &shape->kv_a);
      add(attention.kv_b_proj, held, &shape->absorbed);
    }
    const bool is_moe = model_.config.is_moe_layer(static_cast<int64_t>(layer));
    bool& seen = is_moe ? has_moe : has_dense;
    if (seen) continue;
    seen = true;
    for (const MatrixSource* matrix :
         {&tensors.ffn.gate_proj, &tensors.ffn.up_proj, &tensors.ffn.down_proj}) {
      add(*matrix, held, is_moe ? &shape->shared : &shape->dense_ffn);
    }
    if (is_moe) add(tensors.router, {}, &shape->router);
  }
  add(tensors_.lm_head, held, &shape->head);
  for (const model::LayerTensors& tensors : tensors_.layers) {
    for (const MatrixSource* matrix : model::whole_matrices(tensors.attention)) {
      shape->coordinator_read_bytes += stored_bytes(*matrix);
    }
    for (const MatrixSource* matrix :
         {&std::get<model::MlaTensors>(tensors.attention).kv_b_proj, &tensors.ffn.gate_proj,
          &tensors.ffn.up_proj, &tensors.ffn.down_proj, &tensors.router}) {
      shape->coordinator_read_bytes += stored_bytes(*matrix);
    }
  }
  shape->coordinator_read_bytes +=
      stored_bytes(tensors_.lm_head) + stored_bytes(tensors_.embed_tokens);
}

void PlanModel::add_experts(const model::NumericsProfile& numerics, ModelShape* shape) const {
  const auto store = deployment::open_tiles(model_, numerics, {});
  shape->num_tiles = store->num_tiles();
  for (int tile = 0; tile < store->num_tiles(); ++tile) {
    const kernels::TileLayout& layout = store->layout(tile);
    add(layout.gate_up, &shape->expert);
    add(layout.gate_up, &shape->expert);
    add(layout.down, &shape->expert);
    shape->tile_bytes = std::max(shape->tile_bytes, static_cast<double>(layout.bytes));
  }
  for (int count = 0; count <= shape->num_tiles; ++count) {
    const std::vector<int> tiles = first_tiles(count);
    shape->node_read_bytes.push_back(count == 0 ? 0 : store->read_bytes(tiles));
  }
}

void PlanModel::add_usage(ModelShape* shape) const {
  if (options_.usage_file.empty()) return;
  const std::vector<double> uses =
      storage::read_usage_file(options_.usage_file, model_.catalog, model_.fingerprint());
  const auto experts = static_cast<size_t>(model_.catalog.n_routed_experts);
  std::vector<double> probabilities;
  for (size_t begin = 0; begin + experts <= uses.size(); begin += experts) {
    const double sum = std::accumulate(uses.begin() + static_cast<ptrdiff_t>(begin),
                                       uses.begin() + static_cast<ptrdiff_t>(begin + experts), 0.0);
    for (size_t expert = 0; expert < experts; ++expert) {
      // A layer without counts: all alike.
      const double share =
          sum > 0 ? uses[begin + expert] / sum : 1.0 / static_cast<double>(experts);
      probabilities.push_back(std::min(1.0, share * shape->num_experts_per_tok));
    }
  }
  std::sort(probabilities.begin(), probabilities.end(), std::greater<>());
  const size_t per_class = (probabilities.size() + kUsageClasses - 1) / kUsageClasses;
  for (size_t begin = 0; begin < probabilities.size(); begin += per_class) {
    const size_t end = std::min(begin + per_class, probabilities.size());
    const double sum = std::accumulate(probabilities.begin() + static_cast<ptrdiff_t>(begin),
                                       probabilities.begin() + static_cast<ptrdiff_t>(end), 0.0);
    const auto count = static_cast<double>(end - begin);
    shape->classes.push_back({sum / count, count});
  }
}

void PlanModel::add_memory(const model::NumericsProfile& numerics, ModelShape* shape) const {
  deployment::MemoryRequest request;
  request.numerics = numerics;
  request.placement.tiles_of_node.resize(static_cast<size_t>(std::max(1, options_.num_nodes)));
  request.coordinator_threads = options_.coordinator_threads;
  request.node_threads = options_.node_threads;
  request.rows_max = options_.rows_max;
  request.cache_tokens = static_cast<int64_t>(options_.cache_tokens);
  const deployment::MemoryNeed coordinator =
      deployment::coordinator_memory_need(model_, tensors_, request);
  shape->program_bytes = deployment::kProgramBytes;
  shape->coordinator_bytes = coordinator.total();
  shape->kv_cache_bytes = coordinator.kv_cache;
  const bool int8_rows =
      shape->projections.kernel == Kernel::kInt4I8 || shape->projections.kernel == Kernel::kInt8I8;
  if (!int8_rows) {
    // The embedding stays on the host. Buffers are about the CPU's and the scores' 128 MiB
    // (docs/cuda.md, "Memory of the device").
    constexpr uint64_t kScoresBytes = uint64_t{128} << 20;
    uint64_t weights = 0;
    const auto add_work = [&](const Work& work, int times) {
      weights += static_cast<uint64_t>(work.bytes * times);
    };
    add_work(shape->projections, shape->layers());
    add_work(shape->absorbed, shape->layers());
    add_work(shape->router, shape->moe_layers);
    add_work(shape->shared, shape->moe_layers);
    add_work(shape->dense_ffn, shape->dense_layers);
    add_work(shape->head, 1);
    shape->device_bytes = weights + coordinator.kv_cache + kScoresBytes +
                          coordinator::CpuCompute::buffer_bytes(model_.config, options_.rows_max);
  }
  for (int count = 0; count <= shape->num_tiles; ++count) {
    const deployment::MemoryNeed need =
        deployment::node_memory_need(model_, request, first_tiles(count));
    shape->node_bytes.push_back(need.total() - deployment::kProgramBytes);
    if (count > 0) continue;
    const auto store = deployment::open_tiles(model_, numerics, {});
    shape->node_bytes_min = need.buffers - deployment::kProgramBytes + store->ram_bytes_min();
  }
}

std::vector<topology::Alternative> PlanModel::alternatives() const {
  std::vector<topology::Alternative> alternatives;
  const model::NumericsProfile& asked = options_.numerics;
  const bool experts = !model_.pack && !model_.catalog.moe_layers.empty() &&
                       asked.format.value_or(model_.catalog.format) != WeightFormat::kInt4;
  const bool dense = asked.dense_format != WeightFormat::kInt4;
  const auto add_profile = [&](const char* what, bool with_experts, bool with_dense) {
    model::NumericsProfile numerics = asked;
    if (with_experts) numerics.format = WeightFormat::kInt4;
    if (with_dense) numerics.dense_format = WeightFormat::kInt4;
    alternatives.push_back({what, shape(numerics)});
  };
  if (experts) add_profile("numerics.format int4", true, false);
  if (dense) add_profile("numerics.dense_format int4", false, true);
  if (experts && dense) {
    add_profile("numerics.format and dense_format int4", true, true);
  }
  return alternatives;
}

}  // namespace atl::cli
