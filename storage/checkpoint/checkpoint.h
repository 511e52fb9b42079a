// A Hugging Face checkpoint directory: safetensors shards and their index.
//
// open() reads and checks every header, never the data: container format (docs/model.md 2.1), the
// index's map against the shards, sizes against files. Reading is positional (pread) into the
// caller's buffer; pages are dropped from the page cache afterwards, so a 700 GB checkpoint
// streams through a small machine.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace atl::storage {

class Pack;

enum class DType : uint8_t { kF8E4m3, kBf16, kF32, kF16, kI64, kI32, kI8, kU8, kOther };
std::string_view to_string(DType dtype);
size_t dtype_bytes(DType dtype);  // 0 for kOther

struct TensorInfo {
  std::string name;
  DType dtype = DType::kOther;
  std::string dtype_name;  // as in the file
  std::vector<int64_t> shape;
  uint32_t shard = 0;   // index into Checkpoint::shards()
  uint64_t offset = 0;  // of the first byte, from the start of the file
  uint64_t bytes = 0;

  int64_t elements() const;
};

struct Shard {
  std::string file_name;
  uint64_t file_bytes = 0;
  uint64_t data_offset = 0;
  std::vector<uint64_t> checksums;  // of each kSumBlockBytes; of a pack's shards only
  int fd = -1;
};

// Immutable after open(); reading is safe from any thread.
class Checkpoint {
 public:
  // Whether a model can do without the tensor of this name.
  using MayBeAbsent = std::function<bool(std::string_view name)>;

  // A shard that isn't there is left out if the index says that it holds nothing but tensors that
  // may be absent. LoadError: one line that names file, tensor, what was expected and what was
  // found.
  static Checkpoint open(const std::filesystem::path& model_dir,
                         const MayBeAbsent& may_be_absent = nullptr);
  // What a pack carries besides its experts, which are not among the tensors. Everything that is
  // read, here and later, is checked against the pack's checksums.
  static Checkpoint open(const Pack& pack);
  ~Checkpoint();
  Checkpoint(Checkpoint&&) noexcept;
  Checkpoint& operator=(Checkpoint&&) = delete;

  const std::filesystem::path& directory() const { return directory_; }
  std::span<const Shard> shards() const { return shards_; }
  std::span<const TensorInfo> tensors() const { return tensors_; }  // sorted by name
  const TensorInfo* find(std::string_view name) const;

  // Names that the index has, of shards that were left out; sorted.
  std::span<const std::string> absent() const { return absent_; }

  // Reads out.size() bytes from byte `begin` of the tensor. LoadError on short reads and I/O
  // errors, naming file, tensor, offset.
  void read(const TensorInfo& tensor, uint64_t begin, std::span<std::byte> out) const;

  // Identifies the weights, not only their shapes: a hash (XXH3-128, 32 hex digits) over the tensor
  // table, the file sizes and 16 evenly spread 4 KiB samples of every shard's data. Equal
  // directories on two machines have equal fingerprints. Reads the samples at each call.
  std::string fingerprint() const;

 private:
  Checkpoint() = default;
  static Checkpoint open(const std::filesystem::path& model_dir, const Pack* pack,
                         const MayBeAbsent& may_be_absent);
  void read_file(const Shard& shard, const TensorInfo* tensor, uint64_t offset,
                 std::span<std::byte> out) const;
  std::filesystem::path directory_;
  std::vector<Shard> shards_;
  std::vector<TensorInfo> tensors_;
  std::vector<std::string> absent_;
};

}  // namespace atl::storage
