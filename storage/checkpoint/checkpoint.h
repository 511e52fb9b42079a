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
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "storage/checkpoint/tensor_source.h"

namespace atl::storage {

class Pack;

// Immutable after open(); reading is safe from any thread.
class Checkpoint final : public TensorSource {
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
  Checkpoint(Checkpoint&&) noexcept = default;

  void read(const TensorInfo& tensor, uint64_t begin, std::span<std::byte> out) const override;
  std::optional<std::string> small_file(std::string_view name, uint64_t bytes_max) const override;

 private:
  Checkpoint() = default;
  static Checkpoint open(const std::filesystem::path& model_dir, const Pack* pack,
                         const MayBeAbsent& may_be_absent);
  void read_file(const Shard& shard, uint64_t offset, std::span<std::byte> out,
                 std::string_view what) const override;
};

}  // namespace atl::storage
