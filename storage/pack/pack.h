// An expert pack on disk, open for reading (docs/pack.md).
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/progress.h"
#include "base/result.h"
#include "storage/io/extent_reader.h"
#include "storage/pack/pack_format.h"

namespace atl::storage {

// How layer files are opened: by open_extent_files(), or by a test that injects faults.
using OpenExtents =
    std::function<std::unique_ptr<ExtentReader>(std::vector<std::filesystem::path>)>;

// Immutable after open(); reading is safe from any thread.
class Pack {
 public:
  // Whether the directory is a pack. LoadError if it is one that was never finished.
  static bool is_pack(const std::filesystem::path& dir);

  // Checks header, heads of all layer files, sizes of all files, and the contents of all carried
  // files but the shards, which are checked as they are read. LoadError names file, what was
  // expected and what was found.
  static Pack open(const std::filesystem::path& dir,
                   const OpenExtents& open_extents = open_extent_files);

  const std::filesystem::path& directory() const { return directory_; }
  const PackParams& params() const { return header_.params; }
  const PackGeometry& geometry() const { return geometry_; }
  std::span<const PackCarriedFile> carried() const { return header_.carried; }
  uint64_t total_bytes() const;  // of all files

  // Place of a layer in params().layers, if it is here.
  std::optional<size_t> find_layer(int32_t layer) const;
  std::filesystem::path layer_file(size_t place) const;

  // The layer files, by place; nullptr without layers. It lives as long as the pack.
  ExtentReader* extents() const { return reader_.get(); }
  // Whether the bytes of a tile are those that were packed.
  bool tile_is_right(size_t place, int64_t expert, int tile, std::span<const std::byte> data) const;
  // kCorrupt, of a tile that is not right: file, offset and both checksums.
  Error wrong_tile(size_t place, int64_t expert, int tile, std::span<const std::byte> data) const;

  // Reads tiles [first, first + count) of an expert, which are here, into memory where they lie
  // one after the other (4 KiB aligned), and checks each. A tile whose checksum is wrong is read
  // once more; kCorrupt, with file and offset, if it is wrong again.
  Status read_tiles(size_t place, int64_t expert, int first, int count,
                    std::span<std::byte> out) const;

 private:
  Pack(std::filesystem::path directory, PackHeader header);
  void open_layer_files(const OpenExtents& open_extents);
  void check_carried_files() const;

  std::filesystem::path directory_;
  PackHeader header_;
  PackGeometry geometry_;
  uint64_t header_bytes_ = 0;
  std::unique_ptr<ExtentReader> reader_;          // layer files by place; null without layers
  std::vector<std::vector<uint64_t>> checksums_;  // by place, then PackGeometry::sum_index()
};

// Reads every byte of the pack and compares. One line for each thing that is wrong; none: it is
// whole. At most `problems_max` lines, then one that counts the rest.
std::vector<std::string> verify_pack(const std::filesystem::path& dir, int num_threads,
                                     Progress& progress, size_t problems_max = 20);

}  // namespace atl::storage
