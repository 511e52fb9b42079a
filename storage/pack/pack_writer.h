// Writes expert packs (docs/pack.md).
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>

#include "base/progress.h"
#include "storage/checkpoint/matrix_source.h"
#include "storage/checkpoint/tensor_source.h"

namespace atl::storage {

// First and last, both included.
struct IndexRange {
  int first = 0;
  int last = 0;
};

struct PackOptions {
  HeldFormat format;  // of the experts
  std::optional<IndexRange> layers;
  std::optional<IndexRange> tiles;
  int num_threads = 1;
  size_t window_bytes = size_t{8} << 20;  // at least one row of any matrix
};

struct PackReport {
  size_t layers_written = 0;
  size_t layers_kept = 0;  // were whole already
  bool was_whole = false;  // nothing had to be done
};

// Packs the layers of the catalog (which names MTP layers, too, if they are to be packed) and all
// other tensors, which must be those of a known model; config and tokenizer files are copied.
//
// What is there is finished, layer by layer, if it was written with the same parameters from the
// same checkpoint. Nothing is taken for whole that isn't: layer files get their names when they are
// on the disk, the header comes last. Peak memory per thread: the window and one expert's tiles.
// Bytes read from the checkpoint are told to progress.
//
// LoadError in one line: ranges that the model doesn't have, another pack or foreign files in
// `out`, another process that packs there, a full disk, I/O errors, damaged weights.
PackReport write_pack(const TensorSource& checkpoint, const ExpertCatalog& catalog,
                      const std::filesystem::path& out, const PackOptions& options,
                      Progress& progress);

}  // namespace atl::storage
