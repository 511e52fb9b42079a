#include "storage/checkpoint/safetensors_writer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/result.h"
#include "storage/checkpoint/checkpoint.h"
#include "tests/support/temp_dir.h"

namespace atl::storage {
namespace {

using test::TempDir;

TEST(CheckpointWriter, writes_one_file_byte_for_byte_as_the_format_says) {
  TempDir dir;
  const std::vector<TensorSpec> specs = {{"b", DType::kBf16, {2}}, {"a", DType::kU8, {1, 3}}};
  CheckpointWriter writer(dir.path(), specs, 1 << 20);
  const std::string data = "wxyzABC";
  writer.write(writer.tensors()[1], 0, std::as_bytes(std::span(data)).subspan(4));
  writer.write(writer.tensors()[0], 0, std::as_bytes(std::span(data)).first(4));
  writer.finish();
  std::string json = R"({"__metadata__":{"format":"pt"},)"
                     R"("b":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]},)"
                     R"("a":{"dtype":"U8","shape":[1,3],"data_offsets":[4,7]}})";
  json.resize((json.size() + 8 + 63) / 64 * 64 - 8, ' ');
  const std::string length = {static_cast<char>(json.size()), 0, 0, 0, 0, 0, 0, 0};
  EXPECT_EQ(test::read_file(dir / "model.safetensors"), length + json + data);
  EXPECT_FALSE(std::filesystem::exists(dir / "model.safetensors.index.json"));
}

TEST(CheckpointWriter, cuts_shards_by_size_and_never_a_tensor) {
  TempDir dir;
  const std::vector<TensorSpec> specs = {{"a", DType::kU8, {60}},
                                         {"b", DType::kU8, {40}},
                                         {"c", DType::kU8, {1}},
                                         {"d", DType::kU8, {500}},
                                         {"e", DType::kU8, {0}}};
  { CheckpointWriter writer(dir.path(), specs, 100); }  // headers and sizes only
  const Checkpoint checkpoint = Checkpoint::open(dir.path());
  std::vector<std::string> files;
  for (const Shard& shard : checkpoint.shards()) files.push_back(shard.file_name);
  EXPECT_THAT(files, testing::ElementsAre(
                         "model-00001-of-000004.safetensors", "model-00002-of-000004.safetensors",
                         "model-00003-of-000004.safetensors", "model-00004-of-000004.safetensors"));
  EXPECT_EQ(checkpoint.find("a")->shard, 0u);
  EXPECT_EQ(checkpoint.find("b")->shard, 0u);
  EXPECT_EQ(checkpoint.find("c")->shard, 1u);
  EXPECT_EQ(checkpoint.find("d")->shard, 2u);
  EXPECT_EQ(checkpoint.find("e")->shard, 3u);
}

TEST(CheckpointWriter, says_why_it_cannot_write) {
  TempDir dir;
  test::write_file(dir / "file", "");
  const std::vector<TensorSpec> specs = {{"a", DType::kU8, {1}}};
  EXPECT_EQ(test::message_of<LoadError>(
                dir.path(), [&] { CheckpointWriter writer(dir / "file" / "x", specs, 100); }),
            "DIR/file/x: cannot create: Not a directory");
  std::filesystem::create_directories(dir / "model.safetensors");
  EXPECT_EQ(test::message_of<LoadError>(dir.path(),
                                        [&] { CheckpointWriter writer(dir.path(), specs, 100); }),
            "DIR/model.safetensors: cannot create: Is a directory");
}

}  // namespace
}  // namespace atl::storage
