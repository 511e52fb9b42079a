#include "storage/checkpoint/checkpoint.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>
#include <thread>

#include "base/result.h"
#include "storage/checkpoint/safetensors_writer.h"
#include "tests/support/temp_dir.h"

namespace atl::storage {
namespace {

using test::TempDir;
using test::write_file;

std::string length_field(uint64_t length) {
  std::string bytes(8, '\0');
  for (int i = 0; i < 8; ++i) bytes[i] = static_cast<char>(length >> (8 * i));
  return bytes;
}

std::string safetensors(const std::string& json, size_t data_bytes) {
  std::string data(data_bytes, '\0');
  for (size_t i = 0; i < data_bytes; ++i) data[i] = static_cast<char>(i * 7 + 1);
  return length_field(json.size()) + json + data;
}

std::string open_error(const std::filesystem::path& dir) {
  return test::message_of<LoadError>(dir, [&] { (void)Checkpoint::open(dir); });
}

TEST(Checkpoint, opens_single_file_and_reads_any_part) {
  TempDir dir;
  write_file(dir / "model.safetensors",
             safetensors(R"({"b":{"dtype":"F32","shape":[2,3],"data_offsets":[4,28]},)"
                         R"("a":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]},)"
                         R"("__metadata__":{"format":"pt","x":[{"y":null}]},)"
                         R"("empty":{"dtype":"U8","shape":[0,7],"data_offsets":[28,28]},)"
                         R"("odd":{"dtype":"F6_E2M3","shape":[4],"data_offsets":[28,31]}}   )",
                         31));
  const Checkpoint checkpoint = Checkpoint::open(dir.path());
  ASSERT_EQ(checkpoint.tensors().size(), 4u);
  EXPECT_EQ(checkpoint.tensors()[0].name, "a");
  const TensorInfo* b = checkpoint.find("b");
  ASSERT_NE(b, nullptr);
  EXPECT_EQ(b->dtype, DType::kF32);
  EXPECT_THAT(b->shape, testing::ElementsAre(2, 3));
  EXPECT_EQ(b->elements(), 6);
  EXPECT_EQ(b->bytes, 24u);
  EXPECT_EQ(checkpoint.find("c"), nullptr);
  EXPECT_EQ(checkpoint.find("odd")->dtype, DType::kOther);
  EXPECT_EQ(checkpoint.find("odd")->dtype_name, "F6_E2M3");
  EXPECT_EQ(checkpoint.find("empty")->bytes, 0u);

  std::vector<std::byte> bytes(5);
  checkpoint.read(*b, 3, bytes);
  for (size_t i = 0; i < bytes.size(); ++i) {
    EXPECT_EQ(static_cast<char>(bytes[i]), static_cast<char>((4 + 3 + i) * 7 + 1)) << i;
  }
}

// Every header that must be refused, and what the user is told.
struct BadHeader {
  const char* name;
  std::string json;
  size_t data_bytes;
  std::string message;
};

std::vector<BadHeader> bad_headers() {
  const std::string t = R"("dtype":"F32","shape":[2],"data_offsets":[0,8])";
  return {
      {"not_json", "{\"a\":", 0, "tensor \"a\": not valid JSON at byte 6"},
      {"empty", "", 0, "header: not valid JSON at byte 1"},
      {"garbage_behind", "{}x", 0, "header: not valid JSON at byte 3"},
      {"bad_utf8", "{\"\xff\":{}}", 0, "header: not valid JSON at byte 3"},
      {"array", "[]", 0, "header: unexpected array"},
      {"null", "null", 0, "header: unexpected null"},
      {"deep_nesting", std::string(100000, '['), 0, "header: unexpected array"},
      {"deep_metadata", "{\"__metadata__\":" + std::string(100000, '['), 0,
       "header: unexpected array"},
      {"metadata_twice", R"({"__metadata__":{},"__metadata__":{}})", 0,
       "header: \"__metadata__\" stands there twice"},
      {"tensor_is_number", R"({"a":5})", 0, "tensor \"a\": unexpected number"},
      {"dtype_missing", R"({"a":{"shape":[2],"data_offsets":[0,8]}})", 8,
       "tensor \"a\": \"dtype\" is missing"},
      {"shape_missing", R"({"a":{"dtype":"F32","data_offsets":[0,8]}})", 8,
       "tensor \"a\": \"shape\" is missing"},
      {"offsets_missing", R"({"a":{"dtype":"F32","shape":[2]}})", 8,
       "tensor \"a\": \"data_offsets\" is missing"},
      {"unknown_key", R"({"a":{"dtyp":"F32"}})", 8, "tensor \"a\": unknown key \"dtyp\""},
      {"key_twice", R"({"a":{"dtype":"F32","dtype":"F32"}})", 8,
       "tensor \"a\": key \"dtype\" stands there twice"},
      {"dtype_number", R"({"a":{"dtype":4}})", 8, "tensor \"a\": unexpected number"},
      {"shape_text", R"({"a":{"shape":"2"}})", 8, "tensor \"a\": unexpected string \"2\""},
      {"shape_nested", R"({"a":{"shape":[[2]]}})", 8, "tensor \"a\": unexpected array"},
      {"shape_negative", R"({"a":{"shape":[-2]}})", 8, "tensor \"a\": negative number -2"},
      {"shape_fraction", R"({"a":{"shape":[2.5]}})", 8,
       "tensor \"a\": number 2.5 is not an integer in range"},
      {"shape_beyond_64_bits", R"({"a":{"shape":[99999999999999999999]}})", 8,
       "tensor \"a\": number 99999999999999999999 is not an integer in range"},
      {"shape_overflow",
       R"({"a":{"dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,0]}})", 0,
       "tensor \"a\": shape [4294967296, 4294967296] has more than 2^63 elements"},
      {"shape_overflow_behind_zero",
       R"({"a":{"dtype":"U8","shape":[0,4294967296,4294967296],"data_offsets":[0,0]}})", 0,
       "tensor \"a\": shape [0, 4294967296, 4294967296] has more than 2^63 elements"},
      {"bytes_overflow",
       R"({"a":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,8]}})", 8,
       "tensor \"a\": data_offsets span 8 bytes, expected more than 2^63 for F32 "
       "[4611686018427387904]"},
      {"too_many_dimensions", R"({"a":{"shape":[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]}})", 8,
       "tensor \"a\": shape has more than 16 dimensions"},
      {"offsets_three", R"({"a":{"data_offsets":[0,4,8]}})", 8,
       "tensor \"a\": data_offsets has more than 2 numbers"},
      {"offsets_one", R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0]}})", 8,
       "tensor \"a\": data_offsets has 1 numbers, expected 2"},
      {"offsets_backwards", R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}})", 8,
       "tensor \"a\": data_offsets [8, 0] end before they begin"},
      {"offsets_against_shape", R"({"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}})", 8,
       "tensor \"a\": data_offsets span 8 bytes, expected 12 for F32 [3]"},
      {"tensor_twice", "{\"a\":{" + t + "},\"a\":{" + t + "}}", 8,
       "tensor \"a\": stands there twice"},
      {"overlap", "{\"a\":{" + t + R"(},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})",
       12, "tensor \"b\": begins at byte 4, inside the tensor before it, which ends at 8"},
      {"same_range", "{\"a\":{" + t + "},\"b\":{" + t + "}}", 8,
       "tensor \"b\": begins at byte 0, inside the tensor before it, which ends at 8"},
      {"hole", "{\"a\":{" + t + R"(},"b":{"dtype":"F32","shape":[1],"data_offsets":[12,16]}})", 16,
       "tensor \"b\": begins at byte 12, but the tensor before it ends at 8: a hole"},
      {"truncated", "{\"a\":{" + t + "}}", 7,
       "tensor \"a\": ends at byte 8 of 7 in the data section: the file is truncated, fetch it "
       "again"},
      {"trailing_data", "{\"a\":{" + t + "}}", 9,
       "the data section has 9 bytes, its tensors end at 8"},
      {"control_characters", "{\"a\\n\\u001b[31m\":5}", 0,
       "tensor \"a\\x0a\\x1b[31m\": unexpected number"},
      {"long_name", "{\"" + std::string(100000, 'n') + "\":5}", 0,
       "tensor \"" + std::string(160, 'n') + "...\": unexpected number"},
  };
}

class BadHeaders : public testing::TestWithParam<BadHeader> {};

TEST_P(BadHeaders, are_refused_in_one_line) {
  TempDir dir;
  write_file(dir / "model.safetensors", safetensors(GetParam().json, GetParam().data_bytes));
  EXPECT_EQ(open_error(dir.path()), "DIR/model.safetensors: " + GetParam().message);
}

INSTANTIATE_TEST_SUITE_P(Checkpoint, BadHeaders, testing::ValuesIn(bad_headers()),
                         [](const auto& info) { return std::string(info.param.name); });

constexpr const char* kTwoFloats = R"({"NAME":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})";

std::string shard_with(const std::string& tensor) {
  std::string json = kTwoFloats;
  json.replace(json.find("NAME"), 4, tensor);
  return safetensors(json, 8);
}

// A directory that is good until `damage` is done to it: tensor a in 1.safetensors, b in
// 2.safetensors.
struct BadDirectory {
  const char* name;
  std::function<void(const TempDir&)> damage;
  std::string message;
};

void write_index(const TempDir& dir, const std::string& json) {
  write_file(dir / "model.safetensors.index.json", json);
}

std::vector<BadDirectory> bad_directories() {
  const auto index = [](const std::string& json) {
    return [json](const TempDir& dir) { write_index(dir, json); };
  };
  const std::string index_file = "DIR/model.safetensors.index.json: ";
  return {
      {"no_weights",
       [](const TempDir& dir) { std::filesystem::remove(dir / "model.safetensors.index.json"); },
       "DIR: model.safetensors.index.json is missing, which says what is in 1.safetensors, "
       "2.safetensors: run the download again, it goes on where it stopped (huggingface-cli "
       "download ID --local-dir DIR)"},
      {"shard_missing", [](const TempDir& dir) { std::filesystem::remove(dir / "2.safetensors"); },
       "DIR: 1 of 2 weight files is missing (\"2.safetensors\"): run the download again, it goes "
       "on where it stopped (huggingface-cli download ID --local-dir DIR)"},
      {"shard_is_folder",
       [](const TempDir& dir) {
         std::filesystem::remove(dir / "2.safetensors");
         std::filesystem::create_directory(dir / "2.safetensors");
       },
       "DIR/2.safetensors: not a regular file"},
      {"shard_is_pipe",
       [](const TempDir& dir) {
         std::filesystem::remove(dir / "2.safetensors");
         ASSERT_EQ(mkfifo((dir / "2.safetensors").c_str(), 0600), 0);
       },
       "DIR/2.safetensors: not a regular file"},
      {"shard_empty", [](const TempDir& dir) { write_file(dir / "2.safetensors", ""); },
       "DIR/2.safetensors: 0 bytes, too short for a safetensors file"},
      {"header_length_beyond_file",
       [](const TempDir& dir) { write_file(dir / "2.safetensors", length_field(3) + "{}"); },
       "DIR/2.safetensors: header length 3 is beyond 2 (the file's end)"},
      {"header_length_absurd",
       [](const TempDir& dir) { write_file(dir / "2.safetensors", length_field(~0ull) + "{}"); },
       "DIR/2.safetensors: header length 18446744073709551615 is beyond 2 (the file's end)"},
      {"header_length_beyond_limit",
       [](const TempDir& dir) {
         write_file(dir / "2.safetensors", length_field(100'000'001) + "{}");
         std::filesystem::resize_file(dir / "2.safetensors", 200'000'000);
       },
       "DIR/2.safetensors: header length 100000001 is beyond 100000000 (the limit)"},
      {"index_empty", index(""), index_file + "not valid JSON at byte 1"},
      {"index_truncated", index(R"({"weight_map":{"a":"1.safe)"),
       index_file + "not valid JSON at byte 27"},
      {"index_without_map", index("{}"), index_file + "\"weight_map\" is missing"},
      {"index_map_empty", index(R"({"weight_map":{}})"), index_file + "\"weight_map\" is empty"},
      {"index_map_twice", index(R"({"weight_map":{},"weight_map":{}})"),
       index_file + "\"weight_map\" stands there twice"},
      {"index_map_is_list", index(R"({"weight_map":[]})"), index_file + "unexpected array"},
      {"index_file_is_number", index(R"({"weight_map":{"a":1}})"),
       index_file + "unexpected number"},
      {"index_nested", index(R"({"weight_map":{"a":{}}})"), index_file + "unexpected object"},
      {"index_deep", index("{\"x\":" + std::string(100000, '[')), index_file + "unexpected array"},
      {"index_huge",
       [](const TempDir& dir) {
         std::filesystem::resize_file(dir / "model.safetensors.index.json", 100'000'001);
       },
       index_file + "100000001 bytes, expected at most 100000000"},
      {"index_duplicate", index(R"({"weight_map":{"a":"1.safetensors","a":"2.safetensors"}})"),
       index_file + "tensor \"a\": stands there twice"},
      {"index_path", index(R"({"weight_map":{"a":"../1.safetensors"}})"),
       index_file + "tensor \"a\" is mapped to \"../1.safetensors\", expected a plain file name"},
      {"index_dots", index(R"({"weight_map":{"a":".."}})"),
       index_file + "tensor \"a\" is mapped to \"..\", expected a plain file name"},
      {"index_names_missing_tensor",
       index(R"({"weight_map":{"a":"1.safetensors","b":"2.safetensors","c":"2.safetensors"}})"),
       "DIR/2.safetensors: tensor \"c\" is missing, model.safetensors.index.json says it is here"},
      {"index_leaves_tensor_out",
       [](const TempDir& dir) {
         write_index(dir, R"({"weight_map":{"a":"1.safetensors","c":"2.safetensors"}})");
       },
       "DIR/2.safetensors: tensor \"b\" is not in model.safetensors.index.json"},
      {"index_says_other_shard",
       index(R"({"weight_map":{"a":"2.safetensors","b":"1.safetensors"}})"),
       "DIR/1.safetensors: tensor \"a\" is here, but model.safetensors.index.json says "
       "\"2.safetensors\""},
      {"tensor_in_two_shards",
       [](const TempDir& dir) { write_file(dir / "2.safetensors", shard_with("a")); },
       "DIR/1.safetensors: tensor \"a\" is in \"2.safetensors\", too"},
  };
}

class BadDirectories : public testing::TestWithParam<BadDirectory> {};

TEST_P(BadDirectories, are_refused_in_one_line) {
  TempDir dir;
  write_file(dir / "1.safetensors", shard_with("a"));
  write_file(dir / "2.safetensors", shard_with("b"));
  write_index(dir, R"({"weight_map":{"b":"2.safetensors","a":"1.safetensors"}})");
  ASSERT_EQ(open_error(dir.path()), "no error");
  GetParam().damage(dir);
  EXPECT_EQ(open_error(dir.path()), GetParam().message);
}

INSTANTIATE_TEST_SUITE_P(Checkpoint, BadDirectories, testing::ValuesIn(bad_directories()),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(Checkpoint, refuses_a_directory_that_is_not_there) {
  TempDir dir;
  EXPECT_EQ(open_error(dir / "nowhere"),
            "DIR: there is no such directory: expected a model directory with config.json "
            "and safetensors files");
}

TEST(Checkpoint, names_tensor_and_offset_when_the_file_shrinks_while_in_use) {
  TempDir dir;
  write_file(dir / "model.safetensors", shard_with("a"));
  const Checkpoint checkpoint = Checkpoint::open(dir.path());
  const auto size = std::filesystem::file_size(dir / "model.safetensors");
  std::filesystem::resize_file(dir / "model.safetensors", size - 3);
  std::vector<std::byte> bytes(8);
  EXPECT_EQ(test::message_of<LoadError>(dir.path(),
                                        [&] { checkpoint.read(*checkpoint.find("a"), 0, bytes); }),
            fmt::format("DIR/model.safetensors: tensor \"a\": read 5 of 8 bytes at offset {}: the "
                        "file shrank",
                        size - 8));
}

// A V3 checkpoint has 163 shards and 91,991 tensors.
// Something quadratic in the tensors would take longer than a test may.
TEST(Checkpoint, opens_163_shards_and_92000_tensors) {
  TempDir dir;
  std::vector<TensorSpec> specs;
  for (int i = 0; i < 91'991; ++i) {
    specs.push_back(
        {fmt::format("model.layers.{}.mlp.experts.{}.down_proj.weight_scale_inv", i / 256, i % 256),
         DType::kF32,
         {2, 2}});
  }
  { CheckpointWriter writer(dir.path(), specs, 565 * 16); }
  const Checkpoint checkpoint = Checkpoint::open(dir.path());
  EXPECT_EQ(checkpoint.shards().size(), 163u);
  EXPECT_EQ(checkpoint.tensors().size(), specs.size());
  for (const TensorSpec& spec : specs) ASSERT_NE(checkpoint.find(spec.name), nullptr) << spec.name;
}

TEST(Checkpoint, equal_directories_have_equal_fingerprints_and_others_do_not) {
  const std::vector<TensorSpec> specs = {{"a", DType::kU8, {100'000}}, {"b", DType::kF32, {10}}};
  const auto write = [&](const TempDir& dir, uint64_t changed_byte) {
    CheckpointWriter writer(dir.path(), specs, 50'000);
    std::vector<std::byte> data(100'000);
    for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<std::byte>(i * 31 % 251);
    if (changed_byte < data.size()) data[changed_byte] ^= std::byte{1};
    writer.write(writer.tensors()[0], 0, data);
    writer.write(writer.tensors()[1], 0, std::span(data).first(40));
    writer.finish();
  };
  const auto fingerprint = [](const TempDir& dir) {
    return Checkpoint::open(dir.path()).fingerprint();
  };
  TempDir one, same, first, last;
  write(one, ~0ull);
  write(same, ~0ull);
  write(first, 0);
  write(last, 99'999);
  EXPECT_EQ(fingerprint(one).size(), 32u);
  EXPECT_EQ(fingerprint(one), fingerprint(same));
  EXPECT_NE(fingerprint(one), fingerprint(first));
  EXPECT_NE(fingerprint(one), fingerprint(last));

  // The table counts even where the data is the same.
  TempDir renamed;
  write_file(renamed / "model.safetensors", shard_with("a"));
  const std::string before = fingerprint(renamed);
  write_file(renamed / "model.safetensors", shard_with("b"));
  EXPECT_NE(fingerprint(renamed), before);
}

TEST(Checkpoint, closes_its_files_also_when_moved_or_refused) {
  const auto open_files = [] {
    int count = 0;
    for ([[maybe_unused]] const auto& entry :
         std::filesystem::directory_iterator("/proc/self/fd")) {
      ++count;
    }
    return count;
  };
  TempDir dir;
  write_file(dir / "model.safetensors", shard_with("a"));
  const int before = open_files();
  {
    Checkpoint checkpoint = Checkpoint::open(dir.path());
    const Checkpoint moved = std::move(checkpoint);
    EXPECT_EQ(open_files(), before + 1);
  }
  write_file(dir / "model.safetensors", "short");
  EXPECT_NE(open_error(dir.path()), "no error");
  EXPECT_EQ(open_files(), before);
}

TEST(Checkpoint, any_thread_reads) {
  TempDir dir;
  CheckpointWriter writer(dir.path(), std::vector<TensorSpec>{{"a", DType::kU8, {1 << 20}}}, ~0ull);
  std::vector<std::byte> data(1 << 20);
  for (size_t i = 0; i < data.size(); ++i) data[i] = static_cast<std::byte>(i * 131 >> 7);
  writer.write(writer.tensors()[0], 0, data);
  writer.finish();
  const Checkpoint checkpoint = Checkpoint::open(dir.path());
  std::vector<std::byte> read(data.size());
  std::vector<std::thread> threads;
  for (size_t i = 0; i < 4; ++i) {
    threads.emplace_back([&, i] {
      const size_t begin = i * data.size() / 4;
      checkpoint.read(*checkpoint.find("a"), begin,
                      std::span(read).subspan(begin, data.size() / 4));
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(read, data);
}

}  // namespace
}  // namespace atl::storage
