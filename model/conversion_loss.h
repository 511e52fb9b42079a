// What weights lose where they are held in another format than they are read in: measured on some
// rows, so that a user who gives quantized weights is told.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "kernels/numeric_types.h"
#include "model/gguf_source.h"
#include "model/numerics_profile.h"
#include "model/weights_map.h"
#include "storage/checkpoint/matrix_source.h"

namespace atl::model {

// The profile with what a GGUF file's quantized weights are held in unless the user says: experts
// of 5 bits a weight or more in int8, of less in int4 (the sizes that were chosen for them); other
// linear layers in BF16.
NumericsProfile held_of_gguf(const GgufSummary& summary, const NumericsProfile& asked);

struct ConversionLoss {
  double relative_rms = 0;  // sqrt(sum (held - read)^2 / sum read^2)
  uint64_t rows = 0;        // that were read for it
};
// Of some rows, evenly spread, of some of the matrices; quantized as packing does it, groups
// counted from column 0. LoadError as reading.
ConversionLoss conversion_loss(const storage::TensorSource& source,
                               std::span<const storage::MatrixSource* const> matrices,
                               kernels::WeightFormat held);

// What a user of a GGUF model is told: what its metadata leave open, and one line each of experts and other linear layers that are held in a format that
// loses something: their types in the file, the format, and by how much. Reads some rows.
std::vector<std::string> conversion_notes(const GgufSource& source, const ModelConfig& config,
                                          const NumericsProfile& settled);

}  // namespace atl::model
