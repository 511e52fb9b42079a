// The bytes of an expert pack (docs/pack.md): its header file and the heads of its layer files.
//
// A pack is a directory that holds the routed experts as tiles the way they lie in memory, and
// everything else of the model that the coordinator needs. Every byte of every file is covered by a
// checksum: a header or head by its own, tiles and carried files by those in the head or header.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/panel.h"
#include "kernels/tile.h"

namespace atl::storage {

inline constexpr std::string_view kPackHeaderFile = "pack.atoll";
// In place of the header until the pack is whole.
inline constexpr std::string_view kPackUnfinishedFile = "pack.unfinished";
inline constexpr uint32_t kPackVersion = 1;
// Of the header file. Checksums of 17 GB of carried files are 2 MB.
inline constexpr uint64_t kPackHeaderBytesMax = uint64_t{256} << 20;
inline constexpr size_t kPackAlign = kernels::kTileAlign;
// Carried files have a checksum for each stretch of this many bytes, so that a tensor can be
// checked when it is read, without reading the rest: 8 bytes for 64 KiB.
inline constexpr uint64_t kSumBlockBytes = 64 * 1024;

// XXH3-64 of the bytes.
uint64_t checksum(std::span<const std::byte> bytes);

// What decides every byte of a pack.
struct PackParams {
  kernels::WeightFormat format = kernels::WeightFormat::kF32;
  // What int4 tiles ask rows to be rounded to unless the user says; kI8 for int8, kF32
  // for other formats.
  kernels::Activations activations = kernels::Activations::kF32;
  kernels::ScaleOrigin scales = kernels::ScaleOrigin::kCheckpoint;
  int64_t hidden_size = 0;
  int64_t moe_intermediate_size = 0;
  int64_t n_routed_experts = 0;
  std::vector<int32_t> layers;       // ascending, MTP layers too
  int tile_begin = 0, tile_end = 0;  // the tiles of every expert that are here
  std::string source_format;         // of the routed experts in the checkpoint
  std::string source_fingerprint;    // Checkpoint::fingerprint()
  friend bool operator==(const PackParams&, const PackParams&) = default;
};
// "format: fp8 instead of int4" for the first that differs, "" if none does.
std::string difference(const PackParams& found, const PackParams& expected);
// Identifies the parameters: XXH3-128 of their text.
std::array<uint64_t, 2> pack_id(const PackParams& params);

// Where tiles are in a layer file.
class PackGeometry {
 public:
  explicit PackGeometry(const PackParams& params);
  std::span<const kernels::TileLayout> layouts() const { return layouts_; }  // all of the model
  int tile_begin() const { return tile_begin_; }
  int tile_end() const { return tile_end_; }
  int num_tiles() const { return tile_end_ - tile_begin_; }  // here
  uint64_t head_bytes() const { return head_bytes_; }
  uint64_t expert_bytes() const { return expert_bytes_; }  // the tiles that are here
  uint64_t file_bytes() const { return file_bytes_; }
  // From the start of the file. The tile is here.
  uint64_t offset(int64_t expert, int tile) const {
    return head_bytes_ + static_cast<uint64_t>(expert) * expert_bytes_ + offset_in_expert(tile);
  }
  uint64_t offset_in_expert(int tile) const {
    return offsets_[static_cast<size_t>(tile - tile_begin_)];
  }
  // Place of a tile's checksum in the head.
  size_t sum_index(int64_t expert, int tile) const {
    return static_cast<size_t>(expert * num_tiles() + tile - tile_begin_);
  }

 private:
  std::vector<kernels::TileLayout> layouts_;
  std::vector<uint64_t> offsets_;
  int tile_begin_, tile_end_;
  uint64_t head_bytes_ = 0, expert_bytes_ = 0, file_bytes_ = 0;
};

struct PackLayerFile {
  int32_t layer = 0;
  uint64_t head_checksum = 0;
};
// A file of the checkpoint, or one made of its tensors, that travels along.
struct PackCarriedFile {
  std::string name;
  uint64_t bytes = 0;
  std::vector<uint64_t> checksums;  // of each kSumBlockBytes
};
struct PackHeader {
  PackParams params;
  std::vector<PackLayerFile> layer_files;  // as params.layers; empty while unfinished
  std::vector<PackCarriedFile> carried;    // likewise
};
// "layer-00003.tiles".
std::string layer_file_name(int32_t layer);

std::string encode_pack_header(const PackHeader& header);
// LoadError in one line: not a pack, another version, truncated, damaged, or values that can't be.
PackHeader decode_pack_header(std::string_view bytes, const std::filesystem::path& file);

// The head of a layer file: geometry.head_bytes() bytes. Checksums as in sum_index().
std::string encode_layer_head(const PackParams& params, const PackGeometry& geometry, int32_t layer,
                              std::span<const uint64_t> checksums);
// The checksum of the tiles, after all else is found to be as encode_layer_head() writes it.
//   head_checksum  told by the header; nullptr: not known yet
// LoadError as above.
std::vector<uint64_t> decode_layer_head(std::string_view head, const PackParams& params,
                                        const PackGeometry& geometry, int32_t layer,
                                        const uint64_t* head_checksum,
                                        const std::filesystem::path& file);
// Of encoded bytes: what stands in the field for it.
uint64_t head_checksum(std::string_view head);

}  // namespace atl::storage
