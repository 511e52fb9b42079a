#include "storage/pack/pack.h"

#include <fcntl.h>
#include <fmt/format.h>

#include <algorithm>
#include <mutex>
#include <utility>

#include "base/check.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/units.h"
#include "storage/io/file_io.h"
#include "storage/io/unit_queue.h"
#include "storage/pack/block_sums.h"

namespace atl::storage {
namespace {

constexpr uint64_t kVerifyPieceBytes = 1 * kMiB;
static_assert(kVerifyPieceBytes % kSumBlockBytes == 0);

bool is_shard(const PackCarriedFile& file) { return file.name.ends_with(".safetensors"); }

SummedFile summed(const FileHandle& handle, const PackCarriedFile& file) {
  return {handle.fd(), handle.path(), file.bytes, file.checksums};
}

FileHandle open_carried(const std::filesystem::path& dir, const PackCarriedFile& file) {
  FileHandle handle = open_for_reading(dir / file.name);
  if (const uint64_t bytes = file_bytes(handle); bytes != file.bytes) {
    throw LoadError(
        fmt::format("{}: {} bytes, expected {}: the file is damaged: remove it and pack again",
                    handle.path().string(), bytes, file.bytes));
  }
  return handle;
}

PackHeader read_header(const std::filesystem::path& file, uint64_t* bytes) {
  const std::string contents = read_whole_file(file, kPackHeaderBytesMax);
  *bytes = contents.size();
  return decode_pack_header(contents, file);
}

}  // namespace

bool Pack::is_pack(const std::filesystem::path& dir) {
  std::error_code ignored;
  if (std::filesystem::exists(dir / kPackHeaderFile, ignored)) return true;
  if (std::filesystem::exists(dir / kPackUnfinishedFile, ignored)) {
    throw LoadError(fmt::format(
        "{}: an expert pack that was never finished: run the same 'atoll pack' again to finish it",
        dir.string()));
  }
  return false;
}

Pack::Pack(std::filesystem::path directory, PackHeader header)
    : directory_(std::move(directory)), header_(std::move(header)), geometry_(header_.params) {}

Pack Pack::open(const std::filesystem::path& dir, const OpenExtents& open_extents) {
  if (!is_pack(dir)) {
    throw LoadError(
        fmt::format("{}: not an expert pack: there is no {}", dir.string(), kPackHeaderFile));
  }
  uint64_t header_bytes = 0;
  Pack pack(dir, read_header(dir / kPackHeaderFile, &header_bytes));
  pack.header_bytes_ = header_bytes;
  pack.open_layer_files(open_extents);
  pack.check_carried_files();
  return pack;
}

void Pack::open_layer_files(const OpenExtents& open_extents) {
  const std::vector<int32_t>& layers = params().layers;
  const auto as_listed = [&] {
    if (header_.layer_files.size() != layers.size()) return false;
    for (size_t place = 0; place < layers.size(); ++place) {
      if (header_.layer_files[place].layer != layers[place]) return false;
    }
    return true;
  };
  if (!as_listed()) {
    throw LoadError(fmt::format("{}: its layer files are not those of its layers",
                                (directory_ / kPackHeaderFile).string()));
  }
  if (layers.empty()) return;
  std::vector<std::filesystem::path> files;
  for (size_t place = 0; place < layers.size(); ++place) files.push_back(layer_file(place));
  reader_ = open_extents(files);
  HostBuffer head(geometry_.head_bytes());
  for (size_t place = 0; place < layers.size(); ++place) {
    if (const uint64_t bytes = reader_->file_bytes(place); bytes != geometry_.file_bytes()) {
      throw LoadError(
          fmt::format("{}: {} bytes, expected {}: the file is damaged: remove it and pack again",
                      files[place].string(), bytes, geometry_.file_bytes()));
    }
    if (const Status status = reader_->read(place, 0, head.span()); !status) {
      throw LoadError(status.error().message);
    }
    checksums_.push_back(decode_layer_head(
        {reinterpret_cast<const char*>(head.data()), head.size()}, params(), geometry_,
        layers[place], &header_.layer_files[place].head_checksum, files[place]));
  }
}

void Pack::check_carried_files() const {
  for (const PackCarriedFile& file : header_.carried) {
    const FileHandle handle = open_carried(directory_, file);
    if (is_shard(file)) continue;
    std::vector<std::byte> contents(file.bytes);
    read_summed(summed(handle, file), 0, contents);
  }
}

uint64_t Pack::total_bytes() const {
  uint64_t bytes = header_bytes_ + params().layers.size() * geometry_.file_bytes();
  for (const PackCarriedFile& file : header_.carried) bytes += file.bytes;
  return bytes;
}

std::optional<size_t> Pack::find_layer(int32_t layer) const {
  const std::vector<int32_t>& layers = params().layers;
  const auto place = std::lower_bound(layers.begin(), layers.end(), layer);
  if (place == layers.end() || *place != layer) return std::nullopt;
  return static_cast<size_t>(place - layers.begin());
}

std::filesystem::path Pack::layer_file(size_t place) const {
  return directory_ / layer_file_name(params().layers[place]);
}

bool Pack::tile_is_right(size_t place, int64_t expert, int tile,
                         std::span<const std::byte> data) const {
  return checksum(data) == checksums_[place][geometry_.sum_index(expert, tile)];
}

Error Pack::wrong_tile(size_t place, int64_t expert, int tile,
                       std::span<const std::byte> data) const {
  return {ErrorCode::kCorrupt,
          fmt::format("{}: tile {} of expert {}/{}: checksum {:016x} of {} bytes at offset {}, "
                      "expected {:016x}: the file is damaged: remove it and pack again",
                      layer_file(place).string(), tile, params().layers[place], expert,
                      checksum(data), data.size(), geometry_.offset(expert, tile),
                      checksums_[place][geometry_.sum_index(expert, tile)])};
}

Status Pack::read_tiles(size_t place, int64_t expert, int first, int count,
                        std::span<std::byte> out) const {
  CHECK(geometry_.tile_begin() <= first && count > 0 && first + count <= geometry_.tile_end());
  const uint64_t begin = geometry_.offset(expert, first);
  if (const Status status = reader_->read(place, begin, out); !status) return status;
  for (int tile = first; tile < first + count; ++tile) {
    const uint64_t offset = geometry_.offset(expert, tile);
    const auto data =
        out.subspan(offset - begin, geometry_.layouts()[static_cast<size_t>(tile)].bytes);
    if (tile_is_right(place, expert, tile, data)) continue;
    if (const Status status = reader_->read(place, offset, data); !status) return status;
    if (tile_is_right(place, expert, tile, data)) {
      log_warn("{}: tile {} of expert {} at offset {} was read wrongly once",
               layer_file(place).string(), tile, expert, offset);
      continue;
    }
    return wrong_tile(place, expert, tile, data);
  }
  return {};
}

namespace {

// Lines from many threads, the first of them kept.
class Problems {
 public:
  explicit Problems(size_t most) : most_(most) {}
  void add(std::string line) {
    const std::lock_guard lock(mutex_);
    if (lines_.size() < most_) {
      lines_.push_back(std::move(line));
    } else {
      ++more_;
    }
  }
  std::vector<std::string> take() {
    if (more_ > 0) lines_.push_back(fmt::format("and {} more", more_));
    return std::move(lines_);
  }

 private:
  const size_t most_;
  std::mutex mutex_;
  std::vector<std::string> lines_;
  uint64_t more_ = 0;
};

void verify_tiles(const Pack& pack, int num_threads, Progress& progress, Problems& problems) {
  const PackGeometry& geometry = pack.geometry();
  const int64_t experts = pack.params().n_routed_experts;
  const auto num_layers = static_cast<int64_t>(pack.params().layers.size());
  run_units(num_layers * experts, num_threads, [&]() -> UnitWorker {
    const auto buffer = std::make_shared<HostBuffer>(geometry.expert_bytes());
    return [&, buffer](int64_t unit) {
      for (int tile = geometry.tile_begin(); tile < geometry.tile_end(); ++tile) {
        const uint64_t bytes = geometry.layouts()[static_cast<size_t>(tile)].bytes;
        const Status status = pack.read_tiles(static_cast<size_t>(unit / experts), unit % experts,
                                              tile, 1, buffer->span().first(bytes));
        if (!status) problems.add(status.error().message);
        progress.advance(bytes);
      }
    };
  });
}

void verify_carried(const Pack& pack, const PackCarriedFile& file, int num_threads,
                    Progress& progress, Problems& problems) {
  const FileHandle handle = open_carried(pack.directory(), file);
  // What the disk has, not what was written or read a moment ago.
  (void)::posix_fadvise(handle.fd(), 0, 0, POSIX_FADV_DONTNEED);
  const auto num_pieces =
      static_cast<int64_t>((file.bytes + kVerifyPieceBytes - 1) / kVerifyPieceBytes);
  run_units(num_pieces, num_threads, [&]() -> UnitWorker {
    const auto buffer = std::make_shared<std::vector<std::byte>>(kVerifyPieceBytes);
    return [&, buffer](int64_t piece) {
      const uint64_t offset = static_cast<uint64_t>(piece) * kVerifyPieceBytes;
      const uint64_t bytes = std::min(kVerifyPieceBytes, file.bytes - offset);
      try {
        read_summed(summed(handle, file), offset, std::span(*buffer).first(bytes));
      } catch (const LoadError& error) {
        problems.add(error.what());
      }
      progress.advance(bytes);
    };
  });
}

}  // namespace

std::vector<std::string> verify_pack(const std::filesystem::path& dir, int num_threads,
                                     Progress& progress, size_t problems_max) {
  try {
    const Pack pack = Pack::open(dir);
    uint64_t total = pack.params().layers.size() * pack.geometry().expert_bytes() *
                     static_cast<uint64_t>(pack.params().n_routed_experts);
    for (const PackCarriedFile& file : pack.carried()) total += file.bytes;
    progress.start(total);
    Problems problems(problems_max);
    verify_tiles(pack, num_threads, progress, problems);
    for (const PackCarriedFile& file : pack.carried()) {
      verify_carried(pack, file, num_threads, progress, problems);
    }
    return problems.take();
  } catch (const LoadError& error) {
    return {error.what()};
  }
}

}  // namespace atl::storage
