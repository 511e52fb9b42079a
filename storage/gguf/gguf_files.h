// The GGUF files of one model: a single one, or splits named NAME-00001-of-0000N.gguf.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <vector>

#include "storage/gguf/gguf_header.h"
#include "storage/io/file_io.h"

namespace atl::storage {

inline constexpr int kGgufSplitsMax = 1024;

// The GGUF file that is meant by a path: the file itself (any split of a model), or, of a directory
// that has GGUF files and no safetensors or pack, its only model's. nullopt: something else is
// meant. LoadError for a directory with several models, whose names it tells.
std::optional<std::filesystem::path> find_gguf(const std::filesystem::path& path);

struct GgufFile {
  FileHandle file;
  uint64_t file_bytes = 0;
  GgufHeader header;
};
// All files of the model in order, headers parsed and checked, together too: numbers of the splits,
// no tensor twice. LoadError: how many of how many are missing with their names, and as
// parse_gguf_header().
std::vector<GgufFile> open_gguf_files(const std::filesystem::path& path);

}  // namespace atl::storage
