#include "storage/pack/pack.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <map>
#include <numeric>
#include <random>
#include <thread>

#include "model/config.h"
#include "model/synthetic.h"
#include "model/weights_map.h"
#include "storage/checkpoint/checkpoint.h"
#include "storage/pack/pack_writer.h"
#include "storage/tiles/tile_store.h"
#include "tests/storage/small_spec.h"
#include "tests/support/temp_dir.h"

namespace atl::storage {
namespace {

namespace fs = std::filesystem;
using kernels::Activations;
using kernels::WeightFormat;
using test::message_of;
using test::read_file;
using test::TempDir;
using test::write_file;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

constexpr size_t kWindowBytes = 64 * 1024;

// A checkpoint written for the test, and what the packer takes of it.
struct Source {
  explicit Source(const model::SyntheticSpec& spec) : Source(written(spec), spec.config) {}

  PackReport pack(const fs::path& out, const PackOptions& options, Progress& progress) const {
    return write_pack(checkpoint, with_mtp, out, options, progress);
  }
  PackReport pack(const fs::path& out, const PackOptions& options = {}) const {
    NoProgress progress;
    PackOptions small = options;
    small.window_bytes = kWindowBytes;
    return pack(out, small, progress);
  }

  std::unique_ptr<TempDir> dir;
  Checkpoint checkpoint;
  ExpertCatalog catalog, with_mtp;

 private:
  static std::unique_ptr<TempDir> written(const model::SyntheticSpec& spec) {
    auto dir = std::make_unique<TempDir>();
    model::write_synthetic_checkpoint(dir->path(), spec);
    return dir;
  }
  Source(std::unique_ptr<TempDir> written, const model::ModelConfig&)
      : dir(std::move(written)),
        checkpoint(Checkpoint::open(dir->path())),
        catalog(model::map_experts(model::load_config(dir->path()), checkpoint)),
        with_mtp(model::map_experts(model::load_config(dir->path()), checkpoint,
                                    model::MtpLayers::kAll)) {}
};

// Five tiles, the last one narrower, in FP8.
const Source& five_tiles() {
  static const Source source(small_spec(576, 64, 4, 3, 1));
  return source;
}

std::vector<int> all_tiles(const TileStore& store) {
  std::vector<int> tiles(static_cast<size_t>(store.num_tiles()));
  std::iota(tiles.begin(), tiles.end(), 0);
  return tiles;
}

std::string tile_bytes(TileStore& store) {
  if (!store.is_planned()) store.plan({});
  std::string bytes;
  for (const int32_t layer : store.catalog().moe_layers) {
    for (int32_t expert = 0; expert < store.catalog().n_routed_experts; ++expert) {
      for (int tile = 0; tile < store.num_tiles(); ++tile) {
        const auto pinned = store.pin({layer, expert}, tile);
        if (!pinned) throw LoadError(pinned.error().message);
        bytes.append(reinterpret_cast<const char*>(pinned->view().data), store.layout(tile).bytes);
      }
    }
  }
  return bytes;
}

// Every tensor that a pack carries, as it is read from it.
std::string tensor_bytes(const Checkpoint& checkpoint, const Checkpoint& names_from) {
  std::string bytes;
  for (const TensorInfo& name : names_from.tensors()) {
    const TensorInfo* tensor = checkpoint.find(name.name);
    if (tensor == nullptr) throw LoadError("no tensor " + name.name);
    std::string data(tensor->bytes, '\0');
    checkpoint.read(*tensor, 0, std::as_writable_bytes(std::span(data)));
    bytes += name.name + name.dtype_name + data;
  }
  return bytes;
}

std::map<std::string, std::string> files_of(const fs::path& dir) {
  std::map<std::string, std::string> files;
  for (const fs::directory_entry& entry : fs::directory_iterator(dir)) {
    files[entry.path().filename().string()] = read_file(entry.path());
  }
  return files;
}

void flip(const fs::path& file, uint64_t bit) {
  const int fd = ::open(file.c_str(), O_RDWR | O_CLOEXEC);
  ASSERT_GE(fd, 0);
  unsigned char byte = 0;
  ASSERT_EQ(::pread(fd, &byte, 1, static_cast<off_t>(bit / 8)), 1);
  byte = static_cast<unsigned char>(byte ^ (1u << (bit % 8)));
  ASSERT_EQ(::pwrite(fd, &byte, 1, static_cast<off_t>(bit / 8)), 1);
  ::close(fd);
}

std::vector<std::string> verify(const fs::path& dir) {
  NoProgress progress;
  return verify_pack(dir, 1, progress);
}

std::string open_message(const fs::path& dir) {
  return message_of<LoadError>(dir, [&] { (void)Pack::open(dir); });
}

struct Held {
  const char* name;
  WeightFormat source;
  HeldFormat format;
};

class PackFormats : public ::testing::TestWithParam<Held> {};

TEST_P(PackFormats, holds_the_tiles_and_tensors_of_the_checkpoint) {
  model::SyntheticSpec spec = small_spec(576, 64, 3, 3, 1);
  spec.format = GetParam().source;
  const Source source(spec);
  const TempDir dir;
  PackOptions options;
  options.format = GetParam().format;
  options.num_threads = 2;
  source.pack(dir / "pack", options);

  const Pack pack = Pack::open(dir / "pack");
  const HeldFormat as_packed{{}, pack.params().activations};
  ExpertCatalog packed = source.with_mtp;  // the MTP layer, too
  packed.experts.clear();
  packed.format = pack.params().format;
  TileStore from_pack(pack, packed, as_packed);
  TileStore from_checkpoint(source.checkpoint, source.with_mtp, GetParam().format);
  ASSERT_EQ(from_pack.num_tiles(), 5);
  for (int tile = 0; tile < 5; ++tile) {
    const kernels::TileLayout &a = from_pack.layout(tile), &b = from_checkpoint.layout(tile);
    EXPECT_EQ(a.gate_up, b.gate_up);
    EXPECT_EQ(a.down, b.down);
    EXPECT_EQ(a.bytes, b.bytes);
  }
  const std::string expected = tile_bytes(from_checkpoint);
  EXPECT_EQ(tile_bytes(from_pack) == expected, true) << "cold";
  NoProgress progress;
  for (const std::vector<int>& tiles : {std::vector<int>{0, 1, 2, 3, 4}, {0, 2, 3}}) {
    from_pack.plan(tiles);
    from_pack.fill(progress);
    EXPECT_EQ(tile_bytes(from_pack) == expected, true) << tiles.size() << " tiles resident";
  }
  const Checkpoint carried = Checkpoint::open(pack);
  EXPECT_EQ(tensor_bytes(carried, carried), tensor_bytes(source.checkpoint, carried));
  const model::ModelConfig config = model::load_config(dir / "pack");
  EXPECT_NO_THROW(model::map_tensors(config, carried, model::RoutedExperts::kInPack));
  EXPECT_THAT(verify(dir / "pack"), IsEmpty());
}

INSTANTIATE_TEST_SUITE_P(
    Pack, PackFormats,
    ::testing::Values(
        Held{"fp8", WeightFormat::kFp8E4m3, {}},
        Held{"fp8_to_int4", WeightFormat::kFp8E4m3, {WeightFormat::kInt4, Activations::kI8}},
        Held{"fp8_to_bf16", WeightFormat::kFp8E4m3, {WeightFormat::kBf16, {}}},
        Held{"bf16_to_fp8", WeightFormat::kBf16, {WeightFormat::kFp8E4m3, {}}},
        Held{"f32", WeightFormat::kF32, {}}),
    [](const auto& info) { return info.param.name; });

TEST(Pack, bytes_do_not_depend_on_threads_or_window) {
  const TempDir dir;
  five_tiles().pack(dir / "one");
  const auto expected = files_of(dir / "one");
  EXPECT_TRUE(expected.contains("layer-00003.tiles"));  // MTP
  PackOptions options;
  options.num_threads = 3;
  options.window_bytes = 1 << 20;
  NoProgress progress;
  five_tiles().pack(dir / "three", options, progress);
  EXPECT_EQ(files_of(dir / "three") == expected, true);
}

TEST(Pack, is_asked_for_tiles_and_layers_that_it_leaves_out) {
  const TempDir dir;
  PackOptions options;
  options.tiles = IndexRange{1, 2};
  options.layers = IndexRange{2, 3};
  five_tiles().pack(dir / "pack", options);
  EXPECT_THAT(verify(dir / "pack"), IsEmpty());
  const Pack pack = Pack::open(dir / "pack");
  ExpertCatalog catalog = five_tiles().catalog;
  catalog.experts.clear();
  NoProgress progress;
  TileStore store(pack, catalog);
  const auto load = [&](std::vector<int> tiles) {
    return message_of<LoadError>(dir / "pack", [&] { store.plan(tiles); });
  };
  EXPECT_EQ(load({1}), "DIR: the pack leaves out layer 1: pack it, too, or use a pack that has it");
  catalog.moe_layers = {2};
  TileStore one_layer(pack, catalog);
  EXPECT_EQ(message_of<LoadError>(dir / "pack",
                                  [&] {
                                    one_layer.plan(std::vector{0, 1});
                                  }),
            "DIR: the pack leaves out tile 0 (it has tiles 1-2): pack it, too, or use a pack that "
            "has it");
  one_layer.plan(std::vector{1, 2});
  one_layer.fill(progress);
  EXPECT_EQ(one_layer.pin({2, 0}, 3).error().code, ErrorCode::kUnavailable);
  ExpertCatalog whole = five_tiles().with_mtp;
  TileStore expected(five_tiles().checkpoint, whole);
  expected.plan({});
  const auto found = one_layer.pin({2, 3}, 2), wanted = expected.pin({2, 3}, 2);
  ASSERT_TRUE(found && wanted);
  EXPECT_EQ(std::memcmp(found->view().data, wanted->view().data, expected.layout(2).bytes), 0);

  catalog.hidden_size = 128;
  EXPECT_THAT(message_of<LoadError>(dir / "pack", [&] { TileStore(pack, catalog); }),
              HasSubstr("hidden_size of the pack is 64, config.json says 128"));
  EXPECT_THAT(message_of<LoadError>(
                  dir / "pack",
                  [&] { TileStore(pack, five_tiles().catalog, HeldFormat{WeightFormat::kInt4}); }),
              HasSubstr("holds experts in fp8, not in int4"));
}

TEST(Pack, refuses_what_it_cannot_write_or_must_not_overwrite) {
  const TempDir dir;
  const auto message = [&](const fs::path& out, const PackOptions& options = {}) {
    return message_of<LoadError>(dir.path(), [&] { five_tiles().pack(out, options); });
  };
  PackOptions options;
  options.layers = IndexRange{4, 9};
  EXPECT_EQ(message(dir / "x", options), "layers 4-9: the model has routed experts in layers 1-3");
  options = {};
  options.tiles = IndexRange{2, 5};
  EXPECT_EQ(message(dir / "x", options), "tiles 2-5: the experts have tiles 0-4");

  fs::create_directory(dir / "used");
  write_file(dir / "used/model.safetensors", "precious");
  EXPECT_THAT(message(dir / "used"), HasSubstr("neither a pack nor empty"));
  EXPECT_EQ(read_file(dir / "used/model.safetensors"), "precious");
  EXPECT_THAT(message(five_tiles().dir->path()), HasSubstr("neither a pack nor empty"));

  ASSERT_EQ(message(dir / "pack"), "no error");
  options = {};
  options.tiles = IndexRange{2, 4};
  EXPECT_THAT(message(dir / "pack", options),
              HasSubstr("DIR/pack: a pack of other contents is here (tile_begin: 2 instead of 0)"));
  options = {};
  options.format = {WeightFormat::kInt4, Activations::kI8};
  EXPECT_THAT(message(dir / "pack", options), HasSubstr("format: \"int4\" instead of \"fp8\""));
  model::SyntheticSpec spec = small_spec(576, 64, 4, 3, 1);
  spec.seed = 2;
  const Source other(spec);
  EXPECT_THAT(message_of<LoadError>(dir.path(), [&] { other.pack(dir / "pack"); }),
              HasSubstr("source_fingerprint: "));
  EXPECT_THAT(verify(dir / "pack"), IsEmpty());

  // Another process packs here: a lock by another open file, as flock() counts them.
  const int fd = ::open((dir / "pack").c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  ASSERT_EQ(::flock(fd, LOCK_EX), 0);
  EXPECT_EQ(message(dir / "pack"), "DIR/pack: another 'atoll pack' is writing here");
  ::close(fd);
}

TEST(Pack, finishes_only_what_is_missing_or_not_whole) {
  const TempDir dir;
  const fs::path pack = dir / "pack";
  five_tiles().pack(pack);
  const auto expected = files_of(pack);
  EXPECT_TRUE(five_tiles().pack(pack).was_whole);

  fs::remove(pack / "layer-00002.tiles");
  const auto kept = fs::last_write_time(pack / "layer-00001.tiles");
  PackReport report = five_tiles().pack(pack);
  EXPECT_FALSE(report.was_whole);
  EXPECT_EQ(report.layers_written, 1u);
  EXPECT_EQ(report.layers_kept, 2u);
  EXPECT_EQ(fs::last_write_time(pack / "layer-00001.tiles"), kept);
  EXPECT_EQ(files_of(pack) == expected, true);

  // Heads that are wrong, of another layer, or of files that are too short.
  flip(pack / "layer-00001.tiles", 8 * 100);
  fs::resize_file(pack / "layer-00002.tiles", fs::file_size(pack / "layer-00002.tiles") - 4096);
  fs::copy_file(pack / "layer-00001.tiles", pack / "layer-00003.tiles",
                fs::copy_options::overwrite_existing);
  report = five_tiles().pack(pack);
  EXPECT_EQ(report.layers_written, 3u);
  EXPECT_EQ(files_of(pack) == expected, true);

  // A header or a carried file that is gone or damaged: the layers stay.
  for (const char* file : {"pack.atoll", "config.json", "model.safetensors"}) {
    fs::remove(pack / file);
    report = five_tiles().pack(pack);
    EXPECT_EQ(report.layers_kept, 3u) << file;
    EXPECT_EQ(files_of(pack) == expected, true) << file;
  }
  flip(pack / "pack.atoll", 8 * 70);
  report = five_tiles().pack(pack);
  EXPECT_EQ(report.layers_kept, 3u);
  EXPECT_EQ(files_of(pack) == expected, true);
}

TEST(Pack, names_what_is_damaged) {
  const TempDir dir;
  five_tiles().pack(dir / "whole");
  const fs::path bad = dir / "bad";
  const auto fresh = [&] {
    fs::remove_all(bad);
    fs::copy(dir / "whole", bad);
  };
  const auto header_with = [&](size_t at, const std::string& bytes) {
    fresh();
    std::string header = read_file(bad / "pack.atoll");
    header.replace(at, bytes.size(), bytes);
    write_file(bad / "pack.atoll", header);
    return open_message(bad);
  };
  EXPECT_THAT(header_with(0, "SAFETENS"), HasSubstr("DIR/pack.atoll: starts with \"SAFETENS\""));
  EXPECT_THAT(header_with(8, std::string("\2\0\0\0", 4)),
              HasSubstr("DIR/pack.atoll: version 2 of the pack format, this program reads "
                        "version 1"));
  EXPECT_THAT(header_with(200, "?"), HasSubstr("DIR/pack.atoll: checksum "));

  fresh();
  fs::resize_file(bad / "pack.atoll", 40);
  EXPECT_THAT(open_message(bad), HasSubstr("DIR/pack.atoll: 40 bytes, expected at least 64"));
  fresh();
  fs::resize_file(bad / "pack.atoll", 400);
  EXPECT_THAT(open_message(bad), HasSubstr("DIR/pack.atoll: checksum "));
  fresh();
  const uint64_t bytes = fs::file_size(bad / "layer-00002.tiles");
  fs::resize_file(bad / "layer-00002.tiles", bytes - 1);
  EXPECT_EQ(open_message(bad), fmt::format("DIR/layer-00002.tiles: {} bytes, expected {}: the file "
                                           "is damaged: remove it and pack again",
                                           bytes - 1, bytes));
  fresh();
  flip(bad / "layer-00002.tiles", 8 * 2000);  // the zeros behind the checksums
  EXPECT_THAT(open_message(bad), HasSubstr("DIR/layer-00002.tiles: checksum "));
  fresh();
  fs::rename(bad / "layer-00002.tiles", bad / "x");
  fs::rename(bad / "layer-00001.tiles", bad / "layer-00002.tiles");
  fs::rename(bad / "x", bad / "layer-00001.tiles");
  EXPECT_THAT(open_message(bad),
              HasSubstr("DIR/layer-00001.tiles: holds layer 2, expected layer 1"));
  fresh();
  PackOptions options;
  options.tiles = IndexRange{0, 4};
  model::SyntheticSpec spec = small_spec(576, 64, 4, 3, 1);
  spec.seed = 2;
  Source(spec).pack(dir / "other");
  fs::copy_file(dir / "other/layer-00002.tiles", bad / "layer-00002.tiles",
                fs::copy_options::overwrite_existing);
  EXPECT_THAT(
      open_message(bad),
      HasSubstr("DIR/layer-00002.tiles: belongs to another pack than the header beside it"));
  fresh();
  flip(bad / "config.json", 8 * 30);
  EXPECT_THAT(open_message(bad),
              AllOf(HasSubstr("DIR/config.json: checksum "), HasSubstr("at offset 0, expected ")));
  fresh();
  fs::remove(bad / "pack.atoll");
  EXPECT_EQ(open_message(bad), "DIR: not an expert pack: there is no pack.atoll");

  // Tiles and shards are checked when they are read: kCorrupt with file and offset.
  fresh();
  {
    const Pack pack = Pack::open(bad);
    const uint64_t offset = pack.geometry().offset(2, 3);
    flip(bad / "layer-00001.tiles", 8 * (offset + 5000) + 3);
    ExpertCatalog catalog = five_tiles().catalog;
    catalog.experts.clear();
    TileStore store(pack, catalog);
    store.plan({});
    const auto pinned = store.pin({1, 2}, 3);
    ASSERT_FALSE(pinned);
    EXPECT_EQ(pinned.error().code, ErrorCode::kCorrupt);
    EXPECT_THAT(pinned.error().message,
                AllOf(HasSubstr((bad / "layer-00001.tiles").string() + ": tile 3 of expert 1/2"),
                      HasSubstr(fmt::format("at offset {}", offset))));
    EXPECT_TRUE(store.pin({1, 2}, 2));
    NoProgress progress;
    store.plan(all_tiles(store));
    EXPECT_THAT(message_of<LoadError>(bad, [&] { store.fill(progress); }),
                HasSubstr("DIR/layer-00001.tiles: tile 3 of expert 1/2"));
    EXPECT_TRUE(store.pin({1, 3}, 3));  // the others are here
    EXPECT_EQ(store.pin({1, 2}, 3).error().code, ErrorCode::kCorrupt);
    EXPECT_THAT(verify(bad), SizeIs(1));
  }
  fresh();
  flip(bad / "model.safetensors", 8 * (fs::file_size(bad / "model.safetensors") - 10));
  const Pack pack = Pack::open(bad);
  const Checkpoint carried = Checkpoint::open(pack);
  EXPECT_THAT(message_of<LoadError>(bad, [&] { (void)tensor_bytes(carried, carried); }),
              HasSubstr("DIR/model.safetensors: checksum "));
}

// Reads everything that a run reads. What differs is told by an exception.
std::string everything(const fs::path& dir) {
  const Pack pack = Pack::open(dir);
  const Checkpoint carried = Checkpoint::open(pack);
  ExpertCatalog catalog = five_tiles().with_mtp;
  catalog.experts.clear();
  TileStore store(pack, catalog);
  return read_file(dir / "config.json") + tensor_bytes(carried, carried) + tile_bytes(store);
}

// ATOLL_PACK_FLIPS=10000 for more of them.
TEST(Pack, any_flipped_bit_is_found_and_never_used) {
  const TempDir dir;
  five_tiles().pack(dir.path() / "pack");
  const fs::path pack = dir / "pack";
  const std::string expected = everything(pack);
  std::vector<std::pair<fs::path, uint64_t>> files;  // and bits
  uint64_t bits = 0;
  for (const fs::directory_entry& entry : fs::directory_iterator(pack)) {
    files.emplace_back(entry.path(), 8 * entry.file_size());
    bits += files.back().second;
  }
  const char* wanted = std::getenv("ATOLL_PACK_FLIPS");
  const int count = wanted == nullptr ? 500 : std::atoi(wanted);
  std::mt19937_64 random(4);
  int named = 0, equal = 0;
  // Every bit of the small files' first bytes would take long: uniform over all, and each file
  // once.
  for (int i = 0; i < count + static_cast<int>(files.size()); ++i) {
    size_t f = 0;
    uint64_t bit = 0;
    if (i < count) {
      bit = random() % bits;
      while (bit >= files[f].second) bit -= files[f++].second;
    } else {
      f = static_cast<size_t>(i - count);
      bit = random() % files[f].second;
    }
    flip(files[f].first, bit);
    const std::vector<std::string> problems = verify(pack);
    ASSERT_THAT(problems, SizeIs(1)) << files[f].first << " bit " << bit;
    EXPECT_THAT(problems[0], HasSubstr(files[f].first.filename().string()));
    try {
      ASSERT_EQ(everything(pack) == expected, true)
          << "silently changed by " << files[f].first << " bit " << bit;
      ++equal;
    } catch (const LoadError& error) {
      ++named;
    }
    flip(files[f].first, bit);
  }
  EXPECT_THAT(verify(pack), IsEmpty());
  std::printf("%d flips in %.1f MB, all found by verify; reads: %d named errors, %d equal\n",
              named + equal, static_cast<double>(bits) / 8e6, named, equal);
}

// Faults between the disk and us.
class FaultyReader final : public ExtentReader {
 public:
  struct Plan {
    std::atomic<int> reads{0};
    int flip_at = -1;  // of all reads, this one comes back with a wrong bit
    int flip_for = 1;  // and so many from it on
    int fail_at = -1;  // this one and all after it fail
  };
  FaultyReader(std::unique_ptr<ExtentReader> base, Plan& plan)
      : base_(std::move(base)), plan_(plan) {}
  uint64_t file_bytes(size_t file) const override { return base_->file_bytes(file); }
  Status read(size_t file, uint64_t offset, std::span<std::byte> out) override {
    const int number = plan_.reads++;
    if (plan_.fail_at >= 0 && number >= plan_.fail_at) {
      return Error{ErrorCode::kCorrupt, "layer file: read 0 bytes: Input/output error"};
    }
    Status status = base_->read(file, offset, out);
    if (plan_.flip_at >= 0 && number >= plan_.flip_at && number < plan_.flip_at + plan_.flip_for) {
      out[out.size() / 2] ^= std::byte{16};
    }
    return status;
  }

 private:
  std::unique_ptr<ExtentReader> base_;
  Plan& plan_;
};

TEST(Pack, reads_a_tile_that_is_wrong_or_fails_once_more) {
  const TempDir dir;
  five_tiles().pack(dir / "pack");
  const auto pin_with = [&](int flips, int fail_after) {
    FaultyReader::Plan plan;
    const Pack pack = Pack::open(dir / "pack", [&](std::vector<fs::path> files) {
      return std::make_unique<FaultyReader>(open_extent_files(std::move(files)), plan);
    });
    ExpertCatalog catalog = five_tiles().catalog;
    catalog.experts.clear();
    TileStore store(pack, catalog);
    store.plan({});
    plan.reads = 0;
    if (flips > 0) plan.flip_at = 0;
    plan.flip_for = flips;
    plan.fail_at = fail_after;
    const auto pinned = store.pin({1, 1}, 1);
    EXPECT_EQ(plan.reads, flips > 0 || fail_after >= 0 ? 2 : 1);
    return pinned ? "no error" : pinned.error().message;
  };
  EXPECT_EQ(pin_with(0, -1), "no error");
  EXPECT_EQ(pin_with(1, -1), "no error");
  EXPECT_THAT(pin_with(2, -1), HasSubstr("tile 1 of expert 1/1: checksum "));
  EXPECT_THAT(pin_with(0, 0), HasSubstr("Input/output error"));
  EXPECT_THAT(pin_with(1, 1), HasSubstr("Input/output error"));
}

TEST(Pack, a_file_that_shrinks_while_open_is_an_error) {
  const TempDir dir;
  five_tiles().pack(dir / "pack");
  const Pack pack = Pack::open(dir / "pack");
  ExpertCatalog catalog = five_tiles().catalog;
  catalog.experts.clear();
  TileStore store(pack, catalog);
  store.plan({});
  fs::resize_file(dir / "pack/layer-00001.tiles", pack.geometry().offset(3, 4) + 100);
  EXPECT_THAT(store.pin({1, 3}, 4).error().message, HasSubstr("the file shrank"));
  EXPECT_TRUE(store.pin({1, 0}, 0));
}

TEST(Pack, two_readers_at_once_read_the_same) {
  const TempDir dir;
  five_tiles().pack(dir / "pack");
  const std::string expected = everything(dir / "pack");
  std::string other;
  std::thread thread([&] { other = everything(dir / "pack"); });
  EXPECT_EQ(everything(dir / "pack") == expected, true);
  thread.join();
  EXPECT_EQ(other == expected, true);
}

// Runs in a child process and gives its wait status.
int in_child(const std::function<void()>& work) {
  const pid_t pid = ::fork();
  if (pid == 0) {
    work();
    ::_exit(0);
  }
  int status = 0;
  ::waitpid(pid, &status, 0);
  return status;
}

// Calls `act` once, when this many bytes have been read from the checkpoint.
class ActingProgress final : public Progress {
 public:
  ActingProgress(uint64_t at, std::function<void()> act) : at_(at), act_(std::move(act)) {}
  void start(uint64_t total_bytes) override { total = total_bytes; }
  void advance(uint64_t bytes) override {
    done_ += bytes;
    if (done_ < at_ || acted_) return;
    acted_ = true;
    act_();
  }
  uint64_t total = 0;

 private:
  uint64_t at_, done_ = 0;
  bool acted_ = false;
  std::function<void()> act_;
};

TEST(Pack, killed_at_any_time_it_is_not_taken_for_whole_and_can_be_finished) {
  const TempDir dir;
  five_tiles().pack(dir / "whole");
  const auto expected = files_of(dir / "whole");
  PackOptions options;
  options.window_bytes = kWindowBytes;
  ActingProgress counter(UINT64_MAX, [] {});
  five_tiles().pack(dir / "counted", options, counter);
  ASSERT_GT(counter.total, 0u);
  size_t kept_once = 0;
  for (int part = 0; part <= 16; ++part) {
    const fs::path out = dir / ("killed" + std::to_string(part));
    const int status = in_child([&] {
      ActingProgress kill(counter.total * static_cast<uint64_t>(part) / 16,
                          [] { ::kill(::getpid(), SIGKILL); });
      five_tiles().pack(out, options, kill);
    });
    ASSERT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    EXPECT_THAT(open_message(out), HasSubstr("DIR: an expert pack that was never finished"));
    EXPECT_THAT(verify(out), SizeIs(1));
    for (const auto& [name, bytes] : files_of(out)) {
      if (!name.ends_with(".tiles")) continue;
      EXPECT_EQ(bytes == expected.at(name), true) << name << " has its name and is not whole";
    }
    // Other arguments are refused, the same ones finish.
    PackOptions other = options;
    other.tiles = IndexRange{0, 3};
    EXPECT_THAT(message_of<LoadError>(out, [&] { five_tiles().pack(out, other); }),
                HasSubstr("tile_end: 4 instead of 5"));
    const PackReport report = five_tiles().pack(out);
    EXPECT_FALSE(report.was_whole);
    kept_once = std::max(kept_once, report.layers_kept);
    EXPECT_EQ(files_of(out) == expected, true) << part;
  }
  EXPECT_EQ(kept_once, 3u);
}

TEST(Pack, a_write_that_fails_leaves_nothing_that_looks_whole) {
  const TempDir dir;
  five_tiles().pack(dir / "whole");
  const auto expected = files_of(dir / "whole");
  // Limits below a layer file, and between it and the shard: the system refuses to go on.
  const int status = in_child([&] {
    std::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{200'000, 200'000};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    const std::string message =
        message_of<LoadError>(dir / "out", [&] { five_tiles().pack(dir / "out"); });
    const bool named = message.starts_with("DIR/layer-0000") &&
                       message.ends_with("File too large") && message.find('\n') == message.npos;
    if (!named) std::fprintf(stderr, "found: %s\n", message.c_str());
    ::_exit(named ? 0 : 1);
  });
  EXPECT_EQ(status, 0);
  for (const fs::directory_entry& entry : fs::directory_iterator(dir / "out")) {
    EXPECT_EQ(entry.path().filename(), kPackUnfinishedFile);
  }
  EXPECT_THAT(open_message(dir / "out"), HasSubstr("never finished"));
  five_tiles().pack(dir / "out");
  EXPECT_EQ(files_of(dir / "out") == expected, true);
}

// A small disk of its own, in a mount namespace that ends with the child.
bool mount_small_disk(const fs::path& dir, const char* size) {
  const bool root = ::unshare(CLONE_NEWNS) == 0;
  if (!root && ::unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0) return false;
  if (::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) return false;
  return ::mount("tmpfs", dir.c_str(), "tmpfs", 0, size) == 0;
}

TEST(Pack, a_full_disk_is_told_before_and_while_packing) {
  constexpr int kNoDisk = 77;
  const TempDir dir;
  fs::create_directory(dir / "disk");
  const auto out = dir / "disk/pack";
  const int status = in_child([&] {
    if (!mount_small_disk(dir / "disk", "size=1m")) ::_exit(kNoDisk);
    std::string message = message_of<LoadError>(out, [&] { five_tiles().pack(out); });
    if (!message.starts_with("DIR: ") || message.find("are free, the pack needs") == message.npos) {
      std::fprintf(stderr, "found: %s\n", message.c_str());
      ::_exit(1);
    }
    ::umount((dir / "disk").c_str());
    ::mount("tmpfs", (dir / "disk").c_str(), "tmpfs", 0, "size=64m");
    // Somebody else fills the disk meanwhile.
    for (const int percent : {1, 50, 97}) {
      PackOptions options;
      options.window_bytes = kWindowBytes;
      ActingProgress counter(UINT64_MAX, [] {});
      five_tiles().pack(dir / ("counted" + std::to_string(percent)), options, counter);
      ActingProgress fill(counter.total * static_cast<uint64_t>(percent) / 100, [&] {
        std::ofstream junk(dir / "disk/junk");
        const std::string piece(1 << 16, 'x');
        while (junk << piece << std::flush) {
        }
      });
      message = message_of<LoadError>(out, [&] { five_tiles().pack(out, options, fill); });
      const bool told = message.ends_with("No space left on device") &&
                        message.starts_with("DIR/") && message.find('\n') == message.npos;
      const bool unfinished =
          fs::exists(out / kPackUnfinishedFile) && !fs::exists(out / kPackHeaderFile);
      if (!told || !unfinished) {
        std::fprintf(stderr, "%d %%: found: %s\n", percent, message.c_str());
        ::_exit(2);
      }
      fs::remove(dir / "disk/junk");
      if (percent < 97) fs::remove_all(out);  // or layers would be kept, and less read
    }
    five_tiles().pack(out);
    ::_exit(verify(out).empty() ? 0 : 3);
  });
  if (WIFEXITED(status) && WEXITSTATUS(status) == kNoDisk) GTEST_SKIP() << "no mount allowed here";
  EXPECT_EQ(status, 0);
}

}  // namespace
}  // namespace atl::storage
