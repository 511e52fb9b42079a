// Where the numbers of a weight matrix are in a checkpoint, and how they become panels.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/progress.h"
#include "kernels/panel.h"
#include "kernels/tile.h"
#include "storage/checkpoint/tensor_source.h"

namespace atl::storage {

// A checked weight matrix [rows, cols] of the checkpoint: shape and dtype are what the model
// expects. The tensors are owned by the Checkpoint.
struct MatrixSource {
  kernels::WeightFormat format = kernels::WeightFormat::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  const TensorInfo* weight = nullptr;
  const TensorInfo* scale =
      nullptr;  // FP8: F32 or BF16 [ceil(rows/128), ceil(cols/128)], else null
};

// The three matrices of every routed expert: what an expert node needs to know of a model.
struct ExpertSource {
  MatrixSource gate, up;  // [moe_intermediate_size, hidden_size]
  MatrixSource down;      // [hidden_size, moe_intermediate_size]
};
struct ExpertCatalog {
  kernels::WeightFormat format = kernels::WeightFormat::kF32;  // of all routed experts
  int64_t hidden_size = 0;
  int64_t moe_intermediate_size = 0;
  int64_t n_routed_experts = 0;
  int64_t num_experts_per_tok = 0;
  int64_t num_layers = 0;                          // num_hidden_layers and MTP layers
  int64_t num_mtp_layers = 0;                      // of these, at the end
  std::vector<int32_t> moe_layers;                 // layer indices that have routed experts
  std::vector<std::vector<ExpertSource>> experts;  // [place in moe_layers][expert]
};

// What matrices become in memory: panels of their own format unless another is asked for.
struct HeldFormat {
  std::optional<kernels::WeightFormat> weights;
  kernels::Activations activations = kernels::Activations::kF32;  // of those that become int4

  kernels::WeightFormat format_of(kernels::WeightFormat from) const {
    return weights.value_or(from);
  }
  kernels::Activations activations_of(kernels::WeightFormat from) const {
    switch (format_of(from)) {
      case kernels::WeightFormat::kInt4:
        return activations;
      case kernels::WeightFormat::kInt8:
        return kernels::Activations::kI8;  // takes no others
      default:
        return kernels::Activations::kF32;
    }
  }
  kernels::ScaleOrigin scales_of(kernels::WeightFormat from) const {
    return from == kernels::WeightFormat::kFp8E4m3 ? kernels::ScaleOrigin::kCheckpoint
                                                   : kernels::ScaleOrigin::kPacking;
  }
  // The packed form of the part `outputs` x `k` at `source` of a matrix of format `from`.
  kernels::PanelShape shape(kernels::WeightFormat from, int64_t outputs, int64_t k,
                            const kernels::PanelSource& source) const {
    return kernels::panel_shape(format_of(from), outputs, k, source, activations_of(from),
                                scales_of(from));
  }
};

// One packed matrix to be filled from a part of a MatrixSource.
struct PackTarget {
  kernels::PanelShape shape;
  kernels::PanelSource source;
  std::byte* codes = nullptr;
  float* scales = nullptr;
};

// Streams rows [row_begin, row_end) of the matrix once through `window` (whole rows at a time, at
// least one must fit, or kTransposedPieceRows of them where a target is transposed and of another
// format than the matrix; 4-byte aligned) and packs them into every target, whose memory the caller
// has zero-filled. Refuses FP8 codes that are NaN and weights and scales that are not finite:
// LoadError names file, tensor and place. Bytes read are told to progress, source_bytes() in all.
void pack_matrix(const TensorSource& checkpoint, const MatrixSource& matrix, int64_t row_begin,
                 int64_t row_end, std::span<const PackTarget> targets, std::span<std::byte> window,
                 Progress& progress);

// Bytes that pack_matrix() reads for these rows: their codes and the rows of the scale grid that
// they touch.
uint64_t source_bytes(const MatrixSource& matrix, int64_t row_begin, int64_t row_end);
// Bytes of one row's codes: the least that a window must hold.
uint64_t row_bytes(const MatrixSource& matrix);

}  // namespace atl::storage
