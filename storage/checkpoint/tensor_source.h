// The tensors of a model on disk, whatever files they are in: by name, with type and shape, and
// readable from any byte on. Who loads a model is handed one and knows no file format.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace atl::storage {

enum class DType : uint8_t { kF8E4m3, kBf16, kF32, kF16, kI64, kI32, kI8, kU8, kOther };
std::string_view to_string(DType dtype);
size_t dtype_bytes(DType dtype);  // 0 for kOther

struct TensorInfo {
  std::string name;
  DType dtype = DType::kOther;  // of what read() gives
  std::string dtype_name;       // as in the file
  std::vector<int64_t> shape;
  uint32_t shard = 0;         // index into TensorSource::shards()
  uint64_t offset = 0;        // of the first byte, from the start of the file
  uint64_t bytes = 0;         // of what read() gives
  uint64_t stored_bytes = 0;  // of it in the file

  int64_t elements() const;
};

struct Shard {
  std::string file_name;
  uint64_t file_bytes = 0;
  uint64_t data_offset = 0;
  std::vector<uint64_t> checksums;  // of each kSumBlockBytes; of a pack's shards only
  int fd = -1;
};

// Immutable once it is open; reading is safe from any thread.
class TensorSource {
 public:
  virtual ~TensorSource();

  const std::filesystem::path& directory() const { return directory_; }
  std::span<const Shard> shards() const { return shards_; }
  std::span<const TensorInfo> tensors() const { return tensors_; }  // sorted by name
  const TensorInfo* find(std::string_view name) const;

  // Names that an index has, of shards that were left out; sorted.
  std::span<const std::string> absent() const { return absent_; }

  // Reads out.size() bytes from byte `begin` of the tensor: row-major, little-endian values of its
  // dtype, whole ones. LoadError on short reads and I/O errors, naming file, tensor, offset.
  virtual void read(const TensorInfo& tensor, uint64_t begin, std::span<std::byte> out) const = 0;

  // A small file that goes with the tensors (config.json, tokenizer.json, a licence), or nullopt.
  // LoadError if it is there and can't be read, or has more than bytes_max.
  virtual std::optional<std::string> small_file(std::string_view name,
                                                uint64_t bytes_max) const = 0;

  // Identifies the weights, not only their shapes: a hash (XXH3-128, 32 hex digits) over the tensor
  // table, the file sizes and 16 evenly spread 4 KiB samples of every shard's data. Equal files on
  // two machines have equal fingerprints. Reads the samples at each call.
  std::string fingerprint() const;

 protected:
  // What one read leaves in the page cache before it is dropped again: large enough for the disk,
  // small beside any machine's memory.
  static constexpr size_t kReadStepBytes = size_t{4} << 20;

  TensorSource() = default;
  TensorSource(TensorSource&&) noexcept;
  // Bytes of a shard as they are in the file; `what` is for messages ("tensor \"x\"").
  virtual void read_file(const Shard& shard, uint64_t offset, std::span<std::byte> out,
                         std::string_view what) const;

  std::filesystem::path directory_;
  std::vector<Shard> shards_;  // their descriptors are closed with the source
  std::vector<TensorInfo> tensors_;
  std::vector<std::string> absent_;
};

}  // namespace atl::storage
