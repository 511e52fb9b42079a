#include "storage/checkpoint/tensor_source.h"

#include <fmt/format.h>
#include <unistd.h>
#include <xxhash.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "base/result.h"
#include "storage/io/file_io.h"

namespace atl::storage {
namespace {

constexpr int kFingerprintSamples = 16;
constexpr uint64_t kFingerprintSampleBytes = 4096;

// Numbers and texts with their lengths, so that no two tables give the same stream of bytes.
class TableHash {
 public:
  TableHash() : state_(XXH3_createState()) {
    CHECK(state_ != nullptr);
    XXH3_128bits_reset(state_);
  }
  ~TableHash() { XXH3_freeState(state_); }
  TableHash(const TableHash&) = delete;
  TableHash& operator=(const TableHash&) = delete;

  void add(uint64_t value) {
    unsigned char bytes[8];
    for (int i = 0; i < 8; ++i) bytes[i] = static_cast<unsigned char>(value >> (8 * i));
    XXH3_128bits_update(state_, bytes, sizeof bytes);
  }
  void add(std::span<const std::byte> data) {
    add(data.size());
    XXH3_128bits_update(state_, data.data(), data.size());
  }
  void add(std::string_view text) { add(std::as_bytes(std::span(text))); }
  std::string hex() const {
    const XXH128_hash_t hash = XXH3_128bits_digest(state_);
    return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
  }

 private:
  XXH3_state_t* state_;
};

}  // namespace

int64_t TensorInfo::elements() const {
  int64_t count = 1;
  for (const int64_t size : shape) count *= size;
  return count;
}

TensorSource::~TensorSource() {
  for (const Shard& shard : shards_) ::close(shard.fd);
}

TensorSource::TensorSource(TensorSource&& other) noexcept
    : directory_(std::move(other.directory_)),
      shards_(std::exchange(other.shards_, {})),
      tensors_(std::exchange(other.tensors_, {})),
      absent_(std::exchange(other.absent_, {})) {}

const TensorInfo* TensorSource::find(std::string_view name) const {
  const auto place = std::lower_bound(
      tensors_.begin(), tensors_.end(), name,
      [](const TensorInfo& tensor, std::string_view wanted) { return tensor.name < wanted; });
  return place != tensors_.end() && place->name == name ? &*place : nullptr;
}

void TensorSource::read_file(const Shard& shard, uint64_t offset, std::span<std::byte> out,
                             std::string_view what) const {
  while (!out.empty()) {
    const auto step = out.first(std::min(out.size(), kReadStepBytes));
    bool failed = false;
    const size_t got = pread_all(shard.fd, offset, step, &failed);
    if (got != step.size()) {
      const std::string reason = failed ? std::strerror(errno) : "the file shrank";
      throw LoadError(fmt::format("{}: {}: read {} of {} bytes at offset {}: {}",
                                  (directory_ / shard.file_name).string(), what, got, step.size(),
                                  offset, reason));
    }
    drop_from_page_cache(shard.fd, offset, step.size());
    offset += step.size();
    out = out.subspan(step.size());
  }
}

std::string TensorSource::fingerprint() const {
  TableHash hash;
  hash.add(tensors_.size());
  for (const TensorInfo& tensor : tensors_) {
    hash.add(tensor.name);
    hash.add(tensor.dtype_name);
    hash.add(tensor.shape.size());
    for (const int64_t size : tensor.shape) hash.add(static_cast<uint64_t>(size));
    hash.add(tensor.shard);
    hash.add(tensor.offset);
    hash.add(tensor.stored_bytes);
  }
  std::vector<std::byte> sample(kFingerprintSampleBytes);
  for (const Shard& shard : shards_) {
    const uint64_t data_bytes = shard.file_bytes - shard.data_offset;
    const uint64_t bytes = std::min(kFingerprintSampleBytes, data_bytes);
    hash.add(shard.file_bytes);
    for (int i = 0; i < kFingerprintSamples; ++i) {
      const uint64_t offset =
          (data_bytes - bytes) * static_cast<uint64_t>(i) / (kFingerprintSamples - 1);
      read_file(shard, shard.data_offset + offset, std::span(sample).first(bytes), "data");
      hash.add(std::span<const std::byte>(sample).first(bytes));
    }
  }
  return hash.hex();
}

}  // namespace atl::storage
