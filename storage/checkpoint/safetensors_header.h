// The two JSON texts of a checkpoint, parsed strictly: the header of a safetensors file and the
// index of a sharded one. Source: docs/model.md 2.1; the safetensors format's own rules (no
// duplicate keys, no holes, no overlaps).
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "storage/checkpoint/checkpoint.h"

namespace atl::storage {

// An index of 92,000 tensors is 8 MB, one of the largest known headers below 20 MB; the
// safetensors library has the same bound for headers.
inline constexpr uint64_t kHeaderBytesMax = 100'000'000;

// The tensors of one safetensors header, offsets counted from the start of the file, sorted by
// name; shard is left 0. `file` is for messages only. LoadError: one line with file and tensor.
//   json         header text without its length field
//   data_offset  start of the data section: 8 + json.size()
//   file_bytes   size of the whole file
std::vector<TensorInfo> parse_safetensors_header(std::string_view json, uint64_t data_offset,
                                                 uint64_t file_bytes,
                                                 const std::filesystem::path& file);

struct IndexEntry {
  std::string tensor;
  std::string shard_file;  // a plain file name, no folders
};
// The weight_map of model.safetensors.index.json, sorted by tensor name. LoadError as above.
std::vector<IndexEntry> parse_safetensors_index(std::string_view json,
                                                const std::filesystem::path& file);

}  // namespace atl::storage
