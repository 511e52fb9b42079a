#include "storage/checkpoint/checkpoint.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <optional>
#include <unordered_set>
#include <utility>

#include "base/check.h"
#include "base/result.h"
#include "storage/checkpoint/model_dir.h"
#include "storage/checkpoint/safetensors_header.h"
#include "storage/io/file_io.h"
#include "storage/io/printable.h"
#include "storage/pack/block_sums.h"
#include "storage/pack/pack.h"

namespace atl::storage {
namespace {

constexpr std::string_view kIndexFile = "model.safetensors.index.json";
constexpr std::string_view kSingleFile = "model.safetensors";
constexpr uint64_t kLengthFieldBytes = 8;

// What a pack knows of a file; without a pack nothing.
const PackCarriedFile* find_carried(const Pack* pack, const std::filesystem::path& file) {
  if (pack == nullptr) return nullptr;
  const std::string name = file.filename().string();
  for (const PackCarriedFile& carried : pack->carried()) {
    if (carried.name == name) return &carried;
  }
  throw LoadError(fmt::format("{}: not one of the pack's files", file.string()));
}

// Opens a regular file for reading. O_NONBLOCK so that a pipe of that name does not hang us.
Shard open_file(const std::filesystem::path& file, const Pack* pack) {
  const PackCarriedFile* carried = find_carried(pack, file);
  Shard shard;
  shard.file_name = file.filename().string();
  shard.fd = ::open(file.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (shard.fd < 0) throw_file_error(file, "open", errno);
  struct stat info {};
  const bool known = ::fstat(shard.fd, &info) == 0;
  if (!known || !S_ISREG(info.st_mode)) {
    ::close(shard.fd);
    if (!known) throw_file_error(file, "stat", errno);
    throw LoadError(fmt::format("{}: not a regular file", file.string()));
  }
  shard.file_bytes = static_cast<uint64_t>(info.st_size);
  if (carried == nullptr) return shard;
  shard.checksums = carried->checksums;
  if (shard.file_bytes != carried->bytes) {
    ::close(shard.fd);
    throw LoadError(
        fmt::format("{}: {} bytes, expected {}: the file is damaged: remove it and pack again",
                    file.string(), shard.file_bytes, carried->bytes));
  }
  return shard;
}

void read_exactly(const Shard& shard, const std::filesystem::path& file, uint64_t offset,
                  std::span<std::byte> out, const char* what) {
  if (!shard.checksums.empty()) {
    read_summed({shard.fd, file, shard.file_bytes, shard.checksums}, offset, out);
    return;
  }
  bool failed = false;
  const size_t got = pread_all(shard.fd, offset, out, &failed);
  if (failed) throw_file_error(file, "read", errno);
  if (got != out.size()) {
    throw LoadError(fmt::format("{}: {}: {} of {} bytes at offset {}: the file shrank",
                                file.string(), what, got, out.size(), offset));
  }
}

std::string read_small_file(const std::filesystem::path& file, const Pack* pack) {
  const Shard shard = open_file(file, pack);
  std::string text;
  try {
    if (shard.file_bytes > kHeaderBytesMax) {
      throw LoadError(fmt::format("{}: {} bytes, expected at most {}", file.string(),
                                  shard.file_bytes, kHeaderBytesMax));
    }
    text.resize(shard.file_bytes);
    read_exactly(shard, file, 0, std::as_writable_bytes(std::span(text)), "contents");
  } catch (...) {
    ::close(shard.fd);
    throw;
  }
  ::close(shard.fd);
  return text;
}

uint64_t read_header_length(const Shard& shard, const std::filesystem::path& file) {
  if (shard.file_bytes < kLengthFieldBytes) {
    throw LoadError(fmt::format("{}: {} bytes, too short for a safetensors file", file.string(),
                                shard.file_bytes));
  }
  unsigned char field[kLengthFieldBytes];
  read_exactly(shard, file, 0, std::as_writable_bytes(std::span(field)), "header length");
  uint64_t length = 0;
  for (int i = 7; i >= 0; --i) length = length << 8 | field[i];
  const uint64_t length_max = std::min(kHeaderBytesMax, shard.file_bytes - kLengthFieldBytes);
  if (length > length_max) {
    throw LoadError(fmt::format("{}: header length {} is beyond {} ({})", file.string(), length,
                                length_max,
                                length_max == kHeaderBytesMax ? "the limit" : "the file's end"));
  }
  return length;
}

std::vector<TensorInfo> read_header(Shard& shard, const std::filesystem::path& file) {
  const uint64_t length = read_header_length(shard, file);
  std::string json(length, '\0');
  read_exactly(shard, file, kLengthFieldBytes, std::as_writable_bytes(std::span(json)), "header");
  shard.data_offset = kLengthFieldBytes + length;
  return parse_safetensors_header(json, shard.data_offset, shard.file_bytes, file);
}

const IndexEntry* find_entry(const std::vector<IndexEntry>& index, std::string_view tensor) {
  const auto place = std::lower_bound(
      index.begin(), index.end(), tensor,
      [](const IndexEntry& entry, std::string_view name) { return entry.tensor < name; });
  return place != index.end() && place->tensor == tensor ? &*place : nullptr;
}

std::vector<std::string> shard_files(const std::vector<IndexEntry>& index) {
  std::vector<std::string> files;
  for (const IndexEntry& entry : index) files.push_back(entry.shard_file);
  std::sort(files.begin(), files.end());
  files.erase(std::unique(files.begin(), files.end()), files.end());
  return files;
}

// Takes those entries out of the index whose shard isn't there and holds nothing else; their names.
std::vector<std::string> leave_out(std::vector<IndexEntry>& index,
                                   const std::filesystem::path& directory,
                                   const Checkpoint::MayBeAbsent& may_be_absent) {
  std::error_code error;
  std::unordered_set<std::string> gone;
  for (const std::string& file : shard_files(index)) {
    if (!std::filesystem::exists(directory / file, error)) gone.insert(file);
  }
  for (const IndexEntry& entry : index) {
    if (!may_be_absent(entry.tensor)) gone.erase(entry.shard_file);
  }
  std::vector<std::string> names;
  std::erase_if(index, [&](const IndexEntry& entry) {
    if (!gone.contains(entry.shard_file)) return false;
    names.push_back(entry.tensor);
    return true;
  });
  return names;
}

// Both directions: every tensor of a shard stands in the index with that shard, every entry of the
// index is in its shard. `tensors` sorted by name, without duplicates.
void check_against_index(const std::vector<TensorInfo>& tensors, const std::vector<Shard>& shards,
                         const std::vector<IndexEntry>& index,
                         const std::filesystem::path& directory) {
  for (const TensorInfo& tensor : tensors) {
    const std::string& shard_file = shards[tensor.shard].file_name;
    const IndexEntry* entry = find_entry(index, tensor.name);
    if (entry == nullptr) {
      throw LoadError(fmt::format("{}: tensor {} is not in {}", (directory / shard_file).string(),
                                  printable(tensor.name), kIndexFile));
    }
    if (entry->shard_file != shard_file) {
      throw LoadError(fmt::format("{}: tensor {} is here, but {} says {}",
                                  (directory / shard_file).string(), printable(tensor.name),
                                  kIndexFile, printable(entry->shard_file)));
    }
  }
  if (tensors.size() == index.size()) return;
  for (const IndexEntry& entry : index) {
    const auto place = std::lower_bound(
        tensors.begin(), tensors.end(), entry.tensor,
        [](const TensorInfo& tensor, const std::string& name) { return tensor.name < name; });
    if (place == tensors.end() || place->name != entry.tensor) {
      throw LoadError(fmt::format("{}: tensor {} is missing, {} says it is here",
                                  (directory / entry.shard_file).string(), printable(entry.tensor),
                                  kIndexFile));
    }
  }
}

void refuse_tensor_in_two_shards(const std::vector<TensorInfo>& tensors,
                                 const std::vector<Shard>& shards,
                                 const std::filesystem::path& directory) {
  const auto twice =
      std::adjacent_find(tensors.begin(), tensors.end(),
                         [](const TensorInfo& a, const TensorInfo& b) { return a.name == b.name; });
  if (twice == tensors.end()) return;
  throw LoadError(fmt::format(
      "{}: tensor {} is in {}, too", (directory / shards[twice->shard].file_name).string(),
      printable(twice->name), printable(shards[std::next(twice)->shard].file_name)));
}

}  // namespace

Checkpoint Checkpoint::open(const std::filesystem::path& model_dir,
                            const MayBeAbsent& may_be_absent) {
  return open(model_dir, nullptr, may_be_absent);
}

Checkpoint Checkpoint::open(const Pack& pack) { return open(pack.directory(), &pack, nullptr); }

Checkpoint Checkpoint::open(const std::filesystem::path& model_dir, const Pack* pack,
                            const MayBeAbsent& may_be_absent) {
  require_directory(model_dir);
  std::error_code error;
  std::optional<std::vector<IndexEntry>> index;
  std::vector<std::string> files = {std::string(kSingleFile)}, absent;
  if (std::filesystem::exists(model_dir / kIndexFile, error)) {
    index = parse_safetensors_index(read_small_file(model_dir / kIndexFile, pack),
                                    model_dir / kIndexFile);
    if (may_be_absent) absent = leave_out(*index, model_dir, may_be_absent);
    files = shard_files(*index);
  } else if (!std::filesystem::exists(model_dir / kSingleFile, error)) {
    refuse_without_weights(model_dir);
  }
  require_shards(model_dir, files);

  Checkpoint checkpoint;
  checkpoint.directory_ = model_dir;
  checkpoint.absent_ = std::move(absent);
  for (const std::string& file : files) {
    checkpoint.shards_.push_back(open_file(model_dir / file, pack));
    const auto shard = static_cast<uint32_t>(checkpoint.shards_.size() - 1);
    for (TensorInfo& tensor : read_header(checkpoint.shards_.back(), model_dir / file)) {
      tensor.shard = shard;
      checkpoint.tensors_.push_back(std::move(tensor));
    }
  }
  std::stable_sort(checkpoint.tensors_.begin(), checkpoint.tensors_.end(),
                   [](const TensorInfo& a, const TensorInfo& b) { return a.name < b.name; });
  refuse_tensor_in_two_shards(checkpoint.tensors_, checkpoint.shards_, model_dir);
  if (index) check_against_index(checkpoint.tensors_, checkpoint.shards_, *index, model_dir);
  return checkpoint;
}

void Checkpoint::read(const TensorInfo& tensor, uint64_t begin, std::span<std::byte> out) const {
  CHECK_LE(begin, tensor.bytes);
  CHECK_LE(out.size(), tensor.bytes - begin);
  read_file(shards_[tensor.shard], tensor.offset + begin, out, "tensor " + printable(tensor.name));
}

std::optional<std::string> Checkpoint::small_file(std::string_view name, uint64_t bytes_max) const {
  std::error_code error;
  if (!std::filesystem::exists(directory_ / name, error)) return std::nullopt;
  return read_whole_file(directory_ / name, bytes_max);
}

void Checkpoint::read_file(const Shard& shard, uint64_t offset, std::span<std::byte> out,
                           std::string_view what) const {
  if (shard.checksums.empty()) return TensorSource::read_file(shard, offset, out, what);
  const std::filesystem::path file = directory_ / shard.file_name;
  while (!out.empty()) {
    const auto step = out.first(std::min(out.size(), kReadStepBytes));
    read_summed({shard.fd, file, shard.file_bytes, shard.checksums}, offset, step);
    drop_from_page_cache(shard.fd, offset, step.size());
    offset += step.size();
    out = out.subspan(step.size());
  }
}

}  // namespace atl::storage
