// Writes a checkpoint directory: safetensors shards and their index.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "storage/checkpoint/checkpoint.h"

namespace atl::storage {

struct TensorSpec {
  std::string name;  // letters, digits and "._-"
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
};

// The constructor lays out all tensors in the given order (a new shard where one would exceed
// shard_bytes; a tensor is never cut), writes every header and the index and sets the files' sizes;
// data follows in any order. A checkpoint whose data is never written is valid, sparse and all
// zeros. One file is called model.safetensors and has no index, as published checkpoints do it.
// LoadError if a file can't be written, with the system's reason.
class CheckpointWriter {
 public:
  CheckpointWriter(const std::filesystem::path& model_dir, std::span<const TensorSpec> tensors,
                   uint64_t shard_bytes);
  ~CheckpointWriter();
  CheckpointWriter(const CheckpointWriter&) = delete;
  CheckpointWriter& operator=(const CheckpointWriter&) = delete;

  // In the order given to the constructor.
  std::span<const TensorInfo> tensors() const { return tensors_; }
  std::span<const Shard> shards() const { return shards_; }
  uint64_t data_bytes() const { return data_bytes_; }

  // Writes data to byte `begin` of the tensor. Any thread, any order, each byte once.
  void write(const TensorInfo& tensor, uint64_t begin, std::span<const std::byte> data);
  // Every byte must have been written: hands the files to the disk and closes them.
  void finish();

 private:
  void plan(std::span<const TensorSpec> tensors, uint64_t shard_bytes);
  void create_shard(uint32_t shard);
  void write_index() const;
  std::filesystem::path path_of(uint32_t shard) const;

  std::filesystem::path directory_;
  std::vector<TensorInfo> tensors_;
  std::vector<Shard> shards_;
  uint64_t data_bytes_ = 0;
  std::atomic<uint64_t> written_{0};
};

}  // namespace atl::storage
