#include "storage/pack/pack_writer.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <memory>
#include <mutex>
#include <numeric>
#include <string>
#include <string_view>
#include <unordered_set>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/units.h"
#include "storage/checkpoint/safetensors_writer.h"
#include "storage/io/file_io.h"
#include "storage/io/printable.h"
#include "storage/io/unit_queue.h"
#include "storage/pack/block_sums.h"
#include "storage/pack/pack.h"
#include "storage/pack/pack_format.h"
#include "storage/tiles/checkpoint_tiles.h"

namespace atl::storage {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kPartialSuffix = ".partial";
constexpr uint64_t kShardBytes = 4 * kGiB;
constexpr uint64_t kCopiedFileBytesMax = 256 * kMiB;

// Whatever of these a checkpoint has is copied as it is; config.json it must have.
constexpr std::array<std::string_view, 15> kCopiedFiles = {"config.json",
                                                           "generation_config.json",
                                                           "tokenizer.json",
                                                           "tiktoken.model",
                                                           "tokenizer_config.json",
                                                           "special_tokens_map.json",
                                                           "added_tokens.json",
                                                           "vocab.json",
                                                           "merges.txt",
                                                           "tokenizer.model",
                                                           "chat_template.json",
                                                           "chat_template.jinja",
                                                           "LICENSE",
                                                           "LICENSE-MODEL",
                                                           "LICENSE-CODE"};

PackParams make_params(const TensorSource& checkpoint, const ExpertCatalog& catalog,
                       const PackOptions& options) {
  if (catalog.moe_layers.empty()) {
    throw LoadError(fmt::format("{}: the model has no routed experts: there is nothing to pack",
                                checkpoint.directory().string()));
  }
  PackParams params;
  params.format = options.format.format_of(catalog.format);
  params.activations = options.format.activations_of(catalog.format);
  params.scales = options.format.scales_of(catalog.format);
  params.hidden_size = catalog.hidden_size;
  params.moe_intermediate_size = catalog.moe_intermediate_size;
  params.n_routed_experts = catalog.n_routed_experts;
  params.source_format = to_string(catalog.format);
  params.source_fingerprint = checkpoint.fingerprint();

  const int32_t first = catalog.moe_layers.front(), last = catalog.moe_layers.back();
  const IndexRange layers = options.layers.value_or(IndexRange{first, last});
  for (const int32_t layer : catalog.moe_layers) {
    if (layer >= layers.first && layer <= layers.last) params.layers.push_back(layer);
  }
  if (layers.first > layers.last || layers.last > last || params.layers.empty()) {
    throw LoadError(fmt::format("layers {}-{}: the model has routed experts in layers {}-{}",
                                layers.first, layers.last, first, last));
  }
  const int count = kernels::num_tiles(catalog.moe_intermediate_size);
  const IndexRange tiles = options.tiles.value_or(IndexRange{0, count - 1});
  if (tiles.first < 0 || tiles.first > tiles.last || tiles.last >= count) {
    throw LoadError(fmt::format("tiles {}-{}: the experts have tiles 0-{}", tiles.first, tiles.last,
                                count - 1));
  }
  params.tile_begin = tiles.first;
  params.tile_end = tiles.last + 1;
  return params;
}

// One process at a time writes to the directory; the kernel ends the lock with the process.
FileHandle lock_directory(const fs::path& dir) {
  FileHandle handle(::open(dir.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC), dir);
  if (!handle.is_open()) throw_file_error(dir, "open", errno);
  if (::flock(handle.fd(), LOCK_EX | LOCK_NB) != 0) {
    if (errno == EWOULDBLOCK) {
      throw LoadError(fmt::format("{}: another 'atoll pack' is writing here", dir.string()));
    }
    throw_file_error(dir, "lock", errno);
  }
  return handle;
}

bool is_layer_file(std::string_view name) {
  return name.starts_with("layer-") && name.ends_with(".tiles");
}

// A directory that has other things in it than a pack may be somebody's checkpoint.
void refuse_foreign_directory(const fs::path& dir) {
  std::string foreign;
  for (const fs::directory_entry& entry : fs::directory_iterator(dir)) {
    const std::string name = entry.path().filename().string();
    if (is_layer_file(name)) return;  // a pack whose header was removed
    if (!name.ends_with(".tmp")) foreign = name;
  }
  if (foreign.empty()) return;
  throw LoadError(
      fmt::format("{}: neither a pack nor empty (it has {}): choose another directory for the pack",
                  dir.string(), printable(foreign)));
}

void refuse_other_pack(const fs::path& file, const PackParams& params) {
  PackParams found;
  try {
    found = decode_pack_header(read_whole_file(file, kPackHeaderBytesMax), file).params;
  } catch (const LoadError& error) {
    // Damaged: whatever layer files are there name their pack.
    log_warn("{}", error.what());
    return;
  }
  if (const std::string text = difference(params, found); !text.empty()) {
    throw LoadError(
        fmt::format("{}: a pack of other contents is here ({}): choose another directory, or "
                    "remove this one",
                    file.parent_path().string(), text));
  }
}

bool is_whole(const fs::path& dir) {
  if (!fs::exists(dir / kPackHeaderFile)) return false;
  try {
    (void)Pack::open(dir);
    return true;
  } catch (const LoadError& error) {
    log_warn("{}", error.what());
    return false;
  }
}

// The file whose descriptor takes writes of whole pages past the page cache, if the file system
// lets it.
FileHandle create_extent_file(const fs::path& path) {
  const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_DIRECT, 0644);
  if (fd < 0 && errno == EINVAL) return create_file(path);
  if (fd < 0) throw_file_error(path, "create", errno);
  return FileHandle(fd, path);
}

void write_extent(const FileHandle& file, uint64_t offset, std::span<const std::byte> data) {
  while (!data.empty()) {
    const ssize_t put = ::pwrite(file.fd(), data.data(), data.size(), static_cast<off_t>(offset));
    if (put < 0 && errno == EINTR) continue;
    if (put == static_cast<ssize_t>(data.size())) return;
    // Some file systems refuse O_DIRECT only now; and after a short write, whose reason the next
    // one will tell, the rest may not be aligned.
    const int flags = ::fcntl(file.fd(), F_GETFL);
    const bool direct = (flags & O_DIRECT) != 0;
    if (put < 0 && !(errno == EINVAL && direct)) throw_file_error(file.path(), "write", errno);
    if (direct) (void)::fcntl(file.fd(), F_SETFL, flags & ~O_DIRECT);
    if (put <= 0) continue;
    offset += static_cast<uint64_t>(put);
    data = data.subspan(static_cast<size_t>(put));
  }
}

// All of the file's blocks at once: few extents on the disk, and a full disk is known early.
void reserve(const FileHandle& file, uint64_t bytes) {
  if (::fallocate(file.fd(), 0, 0, static_cast<off_t>(bytes)) == 0) return;
  const bool unsupported = errno == EOPNOTSUPP || errno == ENOSYS || errno == EINVAL;
  if (!unsupported) {
    throw_file_error(file.path(), fmt::format("reserve {}", format_bytes(bytes)).c_str(), errno);
  }
}

// One layer while its experts are being written, by any threads.
struct LayerJob {
  size_t place = 0;  // in the catalog
  int32_t layer = 0;
  fs::path final_path, partial_path;
  std::once_flag created;
  FileHandle file;
  std::vector<uint64_t> checksums;
  std::atomic<int64_t> experts_left{0};
  uint64_t head_checksum = 0;
};

class ExpertWriter {
 public:
  ExpertWriter(const CheckpointTiles& source, const PackParams& params, const PackOptions& options,
               Progress& progress)
      : source_(source),
        params_(params),
        geometry_(params),
        options_(options),
        progress_(progress) {}

  // Writes these layers; on an error their unfinished files are removed.
  void write(std::vector<std::unique_ptr<LayerJob>>& jobs) {
    try {
      const int64_t experts = params_.n_routed_experts;
      run_units(static_cast<int64_t>(jobs.size()) * experts, options_.num_threads,
                [&]() -> UnitWorker {
                  const auto tiles = std::make_shared<HostBuffer>(geometry_.expert_bytes());
                  const auto window = std::make_shared<HostBuffer>(options_.window_bytes);
                  return [this, &jobs, experts, tiles, window](int64_t unit) {
                    LayerJob& job = *jobs[static_cast<size_t>(unit / experts)];
                    write_expert(job, unit % experts, tiles->span(), window->span());
                  };
                });
    } catch (...) {
      for (const auto& job : jobs) {
        std::error_code ignored;
        if (job->file.is_open()) fs::remove(job->partial_path, ignored);
      }
      throw;
    }
  }

 private:
  void write_expert(LayerJob& job, int64_t expert, std::span<std::byte> extent,
                    std::span<std::byte> window) {
    std::call_once(job.created, [&] {
      job.file = create_extent_file(job.partial_path);
      reserve(job.file, geometry_.file_bytes());
    });
    std::memset(extent.data(), 0, extent.size());
    std::vector<TileTarget> targets;
    for (int tile = geometry_.tile_begin(); tile < geometry_.tile_end(); ++tile) {
      targets.push_back({&geometry_.layouts()[static_cast<size_t>(tile)],
                         extent.data() + geometry_.offset_in_expert(tile)});
    }
    source_.read(job.place, expert, targets, window, progress_);
    for (const TileTarget& target : targets) {
      job.checksums[geometry_.sum_index(expert, target.layout->tile)] =
          checksum({target.data, target.layout->bytes});
    }
    write_extent(job.file, geometry_.offset(expert, geometry_.tile_begin()), extent);
    if (job.experts_left.fetch_sub(1) == 1) finish(job);
  }

  void finish(LayerJob& job) {
    const std::string head = encode_layer_head(params_, geometry_, job.layer, job.checksums);
    HostBuffer aligned(head.size());
    std::memcpy(aligned.data(), head.data(), head.size());
    write_extent(job.file, 0, aligned.span());
    job.head_checksum = head_checksum(head);
    sync_file(job.file);
    (void)::posix_fadvise(job.file.fd(), 0, 0, POSIX_FADV_DONTNEED);
    rename_durably(job.partial_path, job.final_path);
    job.file = FileHandle();
  }

  const CheckpointTiles& source_;
  const PackParams& params_;
  const PackGeometry geometry_;
  const PackOptions& options_;
  Progress& progress_;
};

// The layer file's own checksum if it is whole and of this pack.
std::optional<uint64_t> whole_layer(const fs::path& path, const PackParams& params,
                                    const PackGeometry& geometry, int32_t layer) {
  std::error_code ignored;
  if (!fs::exists(path, ignored)) return std::nullopt;
  try {
    const FileHandle file = open_for_reading(path);
    if (file_bytes(file) != geometry.file_bytes()) return std::nullopt;
    std::string head(geometry.head_bytes(), '\0');
    read_exactly(file, 0, std::as_writable_bytes(std::span(head)));
    (void)decode_layer_head(head, params, geometry, layer, nullptr, path);
    return head_checksum(head);
  } catch (const LoadError& error) {
    log_warn("{}: it is written anew", error.what());
    return std::nullopt;
  }
}

// Everything but the routed experts: tensors that the model maps, in file order.
std::vector<const TensorInfo*> carried_tensors(const TensorSource& checkpoint,
                                               const ExpertCatalog& catalog) {
  std::unordered_set<const TensorInfo*> experts;
  for (const std::vector<ExpertSource>& layer : catalog.experts) {
    for (const ExpertSource& expert : layer) {
      for (const MatrixSource* matrix : {&expert.gate, &expert.up, &expert.down}) {
        experts.insert(matrix->weight);
        if (matrix->scale != nullptr) experts.insert(matrix->scale);
      }
    }
  }
  std::vector<const TensorInfo*> carried;
  for (const TensorInfo& tensor : checkpoint.tensors()) {
    if (experts.contains(&tensor)) continue;
    const bool plain = tensor.name.find_first_not_of(
                           "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") ==
                       std::string::npos;
    if (!plain || tensor.name.empty() || dtype_bytes(tensor.dtype) == 0) {
      throw LoadError(fmt::format("{}: tensor {} of dtype {} can't be packed",
                                  checkpoint.directory().string(), printable(tensor.name),
                                  printable(tensor.dtype_name)));
    }
    carried.push_back(&tensor);
  }
  std::stable_sort(carried.begin(), carried.end(), [](const TensorInfo* a, const TensorInfo* b) {
    return std::pair(a->shard, a->offset) < std::pair(b->shard, b->offset);
  });
  return carried;
}

uint64_t bytes_of(std::span<const TensorInfo* const> tensors) {
  uint64_t bytes = 0;
  for (const TensorInfo* tensor : tensors) bytes += tensor->bytes;
  return bytes;
}

// Copies the tensors of one shard in the order of their bytes, so that each byte is summed as it
// is written, never as it is read back.
PackCarriedFile copy_shard(const TensorSource& checkpoint, std::span<const TensorInfo* const> from,
                           CheckpointWriter& writer, uint32_t shard, const fs::path& out,
                           std::span<std::byte> window, Progress& progress) {
  PackCarriedFile file;
  file.name = writer.shards()[shard].file_name;
  file.bytes = writer.shards()[shard].file_bytes;
  BlockSummer sums;
  std::vector<std::byte> header(writer.shards()[shard].data_offset);
  read_exactly(open_for_reading(out / file.name), 0, header);
  sums.add(header);
  for (size_t i = 0; i < from.size(); ++i) {
    const TensorInfo& to = writer.tensors()[i];
    if (to.shard != shard) continue;
    for (uint64_t begin = 0; begin < to.bytes; begin += window.size()) {
      const auto piece = window.first(std::min<uint64_t>(window.size(), to.bytes - begin));
      checkpoint.read(*from[i], begin, piece);
      sums.add(piece);
      writer.write(to, begin, piece);
      progress.advance(piece.size());
    }
  }
  CHECK_EQ(sums.bytes(), file.bytes);
  file.checksums = sums.finish();
  return file;
}

PackCarriedFile summed_copy(const fs::path& path, std::string_view contents) {
  BlockSummer sums;
  sums.add(std::as_bytes(std::span(contents)));
  return {path.filename().string(), contents.size(), sums.finish()};
}

std::vector<PackCarriedFile> write_carried(const TensorSource& checkpoint,
                                           std::span<const TensorInfo* const> tensors,
                                           const fs::path& out, const PackOptions& options,
                                           Progress& progress) {
  std::vector<PackCarriedFile> files;
  for (const std::string_view name : kCopiedFiles) {
    const std::optional<std::string> contents = checkpoint.small_file(name, kCopiedFileBytesMax);
    if (!contents && name == "config.json") {
      throw_file_error(checkpoint.directory() / name, "open", ENOENT);
    }
    if (!contents) continue;
    write_file_atomically(out / name, *contents);
    files.push_back(summed_copy(out / name, *contents));
  }
  std::vector<TensorSpec> specs;
  for (const TensorInfo* tensor : tensors) {
    specs.push_back({tensor->name, tensor->dtype, tensor->shape});
  }
  CheckpointWriter writer(out, specs, kShardBytes);
  std::vector<PackCarriedFile> shards(writer.shards().size());
  run_units(static_cast<int64_t>(shards.size()), options.num_threads, [&]() -> UnitWorker {
    const auto window = std::make_shared<HostBuffer>(options.window_bytes);
    return [&, window](int64_t shard) {
      shards[static_cast<size_t>(shard)] = copy_shard(
          checkpoint, tensors, writer, static_cast<uint32_t>(shard), out, window->span(), progress);
    };
  });
  writer.finish();
  files.insert(files.end(), shards.begin(), shards.end());
  if (shards.size() > 1) {
    const fs::path index = out / "model.safetensors.index.json";
    const std::string contents = read_whole_file(index, kCopiedFileBytesMax);
    write_file_atomically(index, contents);  // once more, onto the disk
    files.push_back(summed_copy(index, contents));
  }
  return files;
}

void check_space(const fs::path& out, uint64_t needed) {
  struct statvfs info {};
  if (::statvfs(out.c_str(), &info) != 0) return;
  const uint64_t available = static_cast<uint64_t>(info.f_bavail) * info.f_frsize;
  if (available >= needed) return;
  throw LoadError(
      fmt::format("{}: {} are free, the pack needs {}: make room or choose another disk",
                  out.string(), format_bytes(available), format_bytes(needed)));
}

void remove_unfinished_layers(const fs::path& out) {
  std::vector<fs::path> stale;
  for (const fs::directory_entry& entry : fs::directory_iterator(out)) {
    if (entry.path().extension() == kPartialSuffix) stale.push_back(entry.path());
  }
  for (const fs::path& path : stale) fs::remove(path);
}

}  // namespace

PackReport write_pack(const TensorSource& checkpoint, const ExpertCatalog& catalog,
                      const fs::path& out, const PackOptions& options, Progress& progress) {
  CHECK_GE(options.num_threads, 1);
  const PackParams params = make_params(checkpoint, catalog, options);
  const PackGeometry geometry(params);
  const CheckpointTiles source(checkpoint, catalog, options.format);
  const std::vector<const TensorInfo*> tensors = carried_tensors(checkpoint, catalog);
  if (options.window_bytes < source.window_bytes_min()) {
    throw LoadError(fmt::format("a window of {} bytes is too small: one row of a matrix has {}",
                                options.window_bytes, source.window_bytes_min()));
  }

  std::error_code error;
  fs::create_directories(out, error);
  if (error) throw_file_error(out, "create", error.value());
  const FileHandle lock = lock_directory(out);
  const bool has_header = fs::exists(out / kPackHeaderFile);
  const bool has_plan = fs::exists(out / kPackUnfinishedFile);
  if (!has_header && !has_plan) refuse_foreign_directory(out);
  if (has_header) refuse_other_pack(out / kPackHeaderFile, params);
  if (has_plan) refuse_other_pack(out / kPackUnfinishedFile, params);

  PackReport report;
  if (is_whole(out)) {
    fs::remove(out / kPackUnfinishedFile);  // a crash may have left it beside the header
    report.was_whole = true;
    report.layers_kept = params.layers.size();
    return report;
  }
  PackHeader header;
  header.params = params;
  write_file_atomically(out / kPackUnfinishedFile, encode_pack_header(header));
  fs::remove(out / kPackHeaderFile);
  remove_unfinished_layers(out);

  std::vector<std::unique_ptr<LayerJob>> jobs;
  for (size_t place = 0; place < catalog.moe_layers.size(); ++place) {
    const int32_t layer = catalog.moe_layers[place];
    if (!std::binary_search(params.layers.begin(), params.layers.end(), layer)) continue;
    const fs::path path = out / layer_file_name(layer);
    const auto whole = whole_layer(path, params, geometry, layer);
    header.layer_files.push_back({layer, whole.value_or(0)});
    if (whole) {
      ++report.layers_kept;
      continue;
    }
    fs::remove(path);
    auto job = std::make_unique<LayerJob>();
    job->place = place;
    job->layer = layer;
    job->final_path = path;
    job->partial_path = path.string() + std::string(kPartialSuffix);
    job->checksums.resize(static_cast<size_t>(params.n_routed_experts * geometry.num_tiles()));
    job->experts_left = params.n_routed_experts;
    jobs.push_back(std::move(job));
  }
  report.layers_written = jobs.size();
  const uint64_t carried_bytes = bytes_of(tensors);
  check_space(out, jobs.size() * geometry.file_bytes() + carried_bytes);

  std::vector<int> tiles(static_cast<size_t>(geometry.num_tiles()));
  std::iota(tiles.begin(), tiles.end(), geometry.tile_begin());
  progress.start(source.read_bytes(tiles) / catalog.moe_layers.size() * jobs.size() +
                 carried_bytes);
  ExpertWriter(source, params, options, progress).write(jobs);
  for (const auto& job : jobs) {
    for (PackLayerFile& file : header.layer_files) {
      if (file.layer == job->layer) file.head_checksum = job->head_checksum;
    }
  }
  header.carried = write_carried(checkpoint, tensors, out, options, progress);
  sync_directory(out);
  write_file_atomically(out / kPackHeaderFile, encode_pack_header(header));
  fs::remove(out / kPackUnfinishedFile);
  sync_directory(out);
  return report;
}

}  // namespace atl::storage
