#include "storage/checkpoint/safetensors_writer.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string_view>
#include <utility>

#include "base/check.h"
#include "base/result.h"
#include "base/units.h"
#include "storage/io/file_io.h"

namespace atl::storage {
namespace {

// The data section starts on a multiple of this; the header is padded with spaces.
constexpr int64_t kHeaderAlign = 64;

void check_name(std::string_view name) {
  CHECK(!name.empty());
  for (const char c : name) {
    const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                       c == '.' || c == '_' || c == '-';
    CHECK(plain);
  }
}

void pwrite_all(int fd, const std::filesystem::path& file, uint64_t offset,
                std::span<const std::byte> data) {
  while (!data.empty()) {
    const ssize_t put = ::pwrite(fd, data.data(), data.size(), static_cast<off_t>(offset));
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) throw_file_error(file, "write", errno);
    offset += static_cast<uint64_t>(put);
    data = data.subspan(static_cast<size_t>(put));
  }
}

std::string header_entry(const TensorInfo& tensor) {
  return fmt::format(R"("{}":{{"dtype":"{}","shape":[{}],"data_offsets":[{},{}]}})", tensor.name,
                     tensor.dtype_name, fmt::join(tensor.shape, ","), tensor.offset,
                     tensor.offset + tensor.bytes);
}

int open_new_file(const std::filesystem::path& file) {
  const int fd = ::open(file.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd < 0) throw_file_error(file, "create", errno);
  return fd;
}

}  // namespace

CheckpointWriter::CheckpointWriter(const std::filesystem::path& model_dir,
                                   std::span<const TensorSpec> tensors, uint64_t shard_bytes)
    : directory_(model_dir) {
  std::error_code error;
  std::filesystem::create_directories(directory_, error);
  if (error) {
    throw LoadError(fmt::format("{}: cannot create: {}", directory_.string(), error.message()));
  }
  plan(tensors, shard_bytes);
  try {
    for (uint32_t shard = 0; shard < shards_.size(); ++shard) create_shard(shard);
    if (shards_.size() > 1) write_index();
  } catch (...) {
    for (const Shard& shard : shards_) {
      if (shard.fd >= 0) ::close(shard.fd);
    }
    throw;
  }
}

CheckpointWriter::~CheckpointWriter() {
  for (const Shard& shard : shards_) {
    if (shard.fd >= 0) ::close(shard.fd);
  }
}

// Offsets are relative to the data sections until create_shard() knows the headers' lengths.
void CheckpointWriter::plan(std::span<const TensorSpec> tensors, uint64_t shard_bytes) {
  for (const TensorSpec& spec : tensors) {
    check_name(spec.name);
    CHECK_GT(dtype_bytes(spec.dtype), 0u);
    TensorInfo tensor;
    tensor.name = spec.name;
    tensor.dtype = spec.dtype;
    tensor.dtype_name = to_string(spec.dtype);
    tensor.shape = spec.shape;
    tensor.bytes = static_cast<uint64_t>(tensor.elements()) * dtype_bytes(spec.dtype);
    tensor.stored_bytes = tensor.bytes;
    if (shards_.empty() ||
        (shards_.back().file_bytes > 0 && shards_.back().file_bytes + tensor.bytes > shard_bytes)) {
      shards_.emplace_back();
    }
    tensor.shard = static_cast<uint32_t>(shards_.size() - 1);
    tensor.offset = shards_.back().file_bytes;
    shards_.back().file_bytes += tensor.bytes;
    data_bytes_ += tensor.bytes;
    tensors_.push_back(std::move(tensor));
  }
  for (size_t i = 0; i < shards_.size(); ++i) {
    shards_[i].file_name = shards_.size() == 1 ? "model.safetensors"
                                               : fmt::format("model-{:05}-of-{:06}.safetensors",
                                                             i + 1, shards_.size());
  }
}

void CheckpointWriter::create_shard(uint32_t index) {
  Shard& shard = shards_[index];
  std::string json = R"({"__metadata__":{"format":"pt"})";
  for (const TensorInfo& tensor : tensors_) {
    if (tensor.shard == index) json += "," + header_entry(tensor);
  }
  json += "}";
  json.resize(
      static_cast<size_t>(round_up(static_cast<int64_t>(json.size()) + 8, kHeaderAlign) - 8), ' ');
  std::string bytes(8, '\0');
  for (int i = 0; i < 8; ++i) bytes[i] = static_cast<char>(json.size() >> (8 * i));
  bytes += json;

  const std::filesystem::path file = path_of(index);
  shard.fd = open_new_file(file);
  shard.data_offset = bytes.size();
  shard.file_bytes += bytes.size();
  pwrite_all(shard.fd, file, 0, std::as_bytes(std::span(bytes)));
  if (::ftruncate(shard.fd, static_cast<off_t>(shard.file_bytes)) != 0) {
    throw_file_error(file, "set the size", errno);
  }
  for (TensorInfo& tensor : tensors_) {
    if (tensor.shard == index) tensor.offset += shard.data_offset;
  }
}

void CheckpointWriter::write_index() const {
  std::string json = fmt::format(
      "{{\n \"metadata\": {{\n  \"total_size\": {}\n }},\n"
      " \"weight_map\": {{\n",
      data_bytes_);
  for (size_t i = 0; i < tensors_.size(); ++i) {
    json += fmt::format("  \"{}\": \"{}\"{}\n", tensors_[i].name,
                        shards_[tensors_[i].shard].file_name, i + 1 < tensors_.size() ? "," : "");
  }
  json += " }\n}\n";
  const std::filesystem::path file = directory_ / "model.safetensors.index.json";
  const int fd = open_new_file(file);
  try {
    pwrite_all(fd, file, 0, std::as_bytes(std::span(json)));
  } catch (...) {
    ::close(fd);
    throw;
  }
  if (::close(fd) != 0) throw_file_error(file, "close", errno);
}

std::filesystem::path CheckpointWriter::path_of(uint32_t shard) const {
  return directory_ / shards_[shard].file_name;
}

void CheckpointWriter::write(const TensorInfo& tensor, uint64_t begin,
                             std::span<const std::byte> data) {
  CHECK_LE(begin, tensor.bytes);
  CHECK_LE(data.size(), tensor.bytes - begin);
  pwrite_all(shards_[tensor.shard].fd, path_of(tensor.shard), tensor.offset + begin, data);
  written_.fetch_add(data.size(), std::memory_order_relaxed);
}

void CheckpointWriter::finish() {
  CHECK_EQ(written_.load(), data_bytes_);
  for (uint32_t i = 0; i < shards_.size(); ++i) {
    Shard& shard = shards_[i];
    if (::fdatasync(shard.fd) != 0) throw_file_error(path_of(i), "write to the disk", errno);
    // Advice only: hundreds of gigabytes just written need not stay in the page cache.
    (void)::posix_fadvise(shard.fd, 0, 0, POSIX_FADV_DONTNEED);
    const int fd = std::exchange(shard.fd, -1);
    if (::close(fd) != 0) throw_file_error(path_of(i), "close", errno);
  }
}

}  // namespace atl::storage
