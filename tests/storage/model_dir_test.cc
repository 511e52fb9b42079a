#include "storage/checkpoint/model_dir.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <functional>
#include <vector>

#include "base/result.h"
#include "tests/support/temp_dir.h"

namespace atl::storage {
namespace {

namespace fs = std::filesystem;
using test::TempDir;
using test::write_file;

const std::string kPointer =
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n";
const std::string kGoOn =
    "run the download again, it goes on where it stopped (huggingface-cli download ID --local-dir "
    "DIR)";
const std::string kReads =
    "Atoll reads config.json, tokenizer.json and safetensors as published on Hugging Face";

void write_in(const fs::path& dir, const std::string& name, const std::string& bytes) {
  fs::create_directories((dir / name).parent_path());
  write_file(dir / name, bytes);
}

struct Mistake {
  const char* name;
  std::function<void(const fs::path& dir)> make;
  std::string given;    // the path, relative to the directory
  std::string message;  // the directory as DIR
};

std::vector<Mistake> mistakes() {
  const auto files = [](std::vector<std::string> names, const std::string& bytes = "{}") {
    return [=](const fs::path& dir) {
      for (const std::string& name : names) write_in(dir, name, bytes);
    };
  };
  return {
      {"nothing_there", files({}), "nowhere",
       "DIR/nowhere: there is no such directory: expected a model directory with config.json and "
       "safetensors files"},
      {"empty", files({}), "",
       "DIR/: config.json is not there, the directory is empty: expected a model directory as "
       "published on Hugging Face; if this is one, " +
           kGoOn},
      {"without_config", files({"tokenizer.json"}), "",
       "DIR/: config.json is not there: expected a model directory as published on Hugging Face; "
       "if this is one, " +
           kGoOn},
      {"config_is_a_pointer", files({"config.json"}, kPointer), "",
       "DIR/config.json: a git-lfs pointer, not the file itself: run 'git lfs pull' in DIR/"},
      {"tokenizer_is_a_pointer",
       [](const fs::path& dir) {
         write_in(dir, "config.json", "{}");
         write_in(dir, "tokenizer.json", kPointer);
       },
       "",
       "DIR/tokenizer.json: a git-lfs pointer, not the file itself: run 'git lfs pull' in DIR/"},
      {"index_is_a_pointer",
       [](const fs::path& dir) {
         write_in(dir, "config.json", "{}");
         write_in(dir, "model.safetensors.index.json", kPointer);
       },
       "",
       "DIR/model.safetensors.index.json: a git-lfs pointer, not the file itself: run 'git lfs "
       "pull' in DIR/"},
      {"file_of_a_model", files({"m/config.json", "m/model.safetensors"}), "m/model.safetensors",
       "DIR/m/model.safetensors: a file, expected its directory: give DIR/m"},
      {"config_of_a_model", files({"m/config.json"}), "m/config.json",
       "DIR/m/config.json: a file, expected its directory: give DIR/m"},
      {"any_file", files({"notes"}), "notes",
       "DIR/notes: a file, expected a model directory with config.json and safetensors files"},
      {"cache_of_a_model",
       [](const fs::path& dir) {
         write_in(dir, "models--org--name/refs/main", "bbb");
         for (const char* commit : {"aaa", "bbb", "ccc"}) {
           write_in(dir, std::string("models--org--name/snapshots/") + commit + "/config.json",
                    "{}");
         }
       },
       "models--org--name",
       "DIR/models--org--name: a Hugging Face cache, expected one of its snapshots: give "
       "DIR/models--org--name/snapshots/bbb"},
      {"cache_of_a_model_without_main", files({"m/snapshots/aaa/config.json"}), "m",
       "DIR/m: a Hugging Face cache, expected one of its snapshots: give DIR/m/snapshots/aaa"},
      {"cache_without_snapshot",
       [](const fs::path& dir) { fs::create_directories(dir / "m" / "snapshots"); }, "m",
       "DIR/m: a Hugging Face cache without a snapshot: " + kGoOn},
      {"cache_of_all_models", files({"models--a--b/snapshots/aaa/config.json"}), "",
       "DIR/: a Hugging Face cache of several models, expected a snapshot of one, such as "
       "DIR/models--a--b/snapshots/aaa"},
      {"directory_around_the_model", files({"DeepSeek-V3/config.json"}), "",
       "DIR/: no config.json here, but in a directory below: give DIR/DeepSeek-V3"},
      {"adapter", files({"adapter_config.json"}), "",
       "DIR/: an adapter (adapter_config.json), not a model: merge it into its base model first"},
  };
}

class Mistakes : public testing::TestWithParam<Mistake> {};

TEST_P(Mistakes, are_told_with_the_way_out) {
  const TempDir dir;
  GetParam().make(dir.path());
  EXPECT_EQ(test::message_of<LoadError>(dir.path(),
                                        [&] { require_model_dir(dir.path() / GetParam().given); }),
            GetParam().message);
}

INSTANTIATE_TEST_SUITE_P(ModelDir, Mistakes, testing::ValuesIn(mistakes()),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(ModelDir, names_and_addresses_on_hugging_face_are_answered_with_the_download) {
  const auto error = [](const std::string& path) {
    return test::message_of<LoadError>("/nowhere", [&] { require_model_dir(path); });
  };
  const std::string download =
      ": there is no such directory; if this is a model on Hugging Face, download it first: "
      "huggingface-cli download deepseek-ai/DeepSeek-V3.1 --local-dir DeepSeek-V3.1";
  for (const std::string given :
       {"deepseek-ai/DeepSeek-V3.1", "https://huggingface.co/deepseek-ai/DeepSeek-V3.1",
        "https://huggingface.co/deepseek-ai/DeepSeek-V3.1/tree/main",
        "http://hf.co/deepseek-ai/DeepSeek-V3.1/", "hf.co/deepseek-ai/DeepSeek-V3.1",
        "hf://deepseek-ai/DeepSeek-V3.1"}) {
    EXPECT_EQ(error(given), given + download);
  }
  EXPECT_EQ(error("https://example.org"),
            "https://example.org: an address, expected a directory of this machine: download the "
            "model first");
  for (const std::string given : {"models/deep/v3", "./v3", "../models/v3", "v3", "a b/c"}) {
    EXPECT_THAT(error(given), testing::HasSubstr(": there is no such directory: expected"))
        << given;
  }
}

TEST(ModelDir, a_directory_with_config_and_tokenizer_is_taken) {
  const TempDir dir;
  write_file(dir / "config.json", "{}");
  write_file(dir / "tokenizer.json", std::string(5000, ' '));
  EXPECT_NO_THROW(require_model_dir(dir.path()));
}

std::string weights_error(const std::vector<std::string>& names) {
  const TempDir dir;
  for (const std::string& name : names) write_in(dir.path(), name, "x");
  return test::message_of<LoadError>(dir.path(), [&] { refuse_without_weights(dir.path()); });
}

TEST(ModelDir, weights_of_another_kind_are_named) {
  EXPECT_EQ(weights_error({}),
            "DIR: neither model.safetensors.index.json nor model.safetensors is there: " + kGoOn);
  EXPECT_EQ(weights_error({".cache/huggingface/download/a.incomplete", "b.incomplete"}),
            "DIR: neither model.safetensors.index.json nor model.safetensors is there, 2 begun and "
            "not finished (.incomplete): " +
                kGoOn);
  EXPECT_EQ(weights_error({"pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"}),
            "DIR: only PyTorch weights (pytorch_model-00001-of-00002.bin, "
            "pytorch_model-00002-of-00002.bin): " +
                kReads +
                "; take a revision of the model with safetensors, or convert it with "
                "save_pretrained(DIR, safe_serialization=True)");
  EXPECT_THAT(weights_error({"consolidated.00.pth"}),
              testing::StartsWith("DIR: only PyTorch weights (consolidated.00.pth)"));
  EXPECT_EQ(
      weights_error({"m-1.safetensors", "m-2.safetensors", "m-3.safetensors", "m-4.safetensors"}),
      "DIR: model.safetensors.index.json is missing, which says what is in m-1.safetensors, "
      "m-2.safetensors, m-3.safetensors, ...: " +
          kGoOn);
}

TEST(ModelDir, missing_weight_files_are_counted_and_the_first_named) {
  const TempDir dir;
  std::vector<std::string> files;
  for (int i = 1; i <= 9; ++i) files.push_back("m-" + std::to_string(i) + ".safetensors");
  for (const int here : {1, 2, 3, 5}) write_file(dir / files[here - 1], "x");
  const auto error = [&] {
    return test::message_of<LoadError>(dir.path(), [&] { require_shards(dir.path(), files); });
  };
  EXPECT_EQ(error(),
            "DIR: 5 of 9 weight files are missing (\"m-4.safetensors\", \"m-6.safetensors\", "
            "\"m-7.safetensors\", ...): " +
                kGoOn);
  write_in(dir.path(), ".cache/huggingface/download/m-4.safetensors.af.incomplete", "x");
  EXPECT_THAT(error(), testing::HasSubstr("...), 1 begun and not finished (.incomplete): "));
  for (const int there : {6, 7, 8, 9}) write_file(dir / files[there - 1], "x");
  EXPECT_THAT(error(), testing::StartsWith(
                           "DIR: 1 of 9 weight files is missing (\"m-4.safetensors\"), 1 begun"));
  fs::create_symlink("../../blobs/gone", dir / "m-4.safetensors");
  EXPECT_THAT(error(), testing::StartsWith("DIR: 1 of 9 weight files is missing"));
  fs::remove(dir / "m-4.safetensors");
  write_file(dir / "m-4.safetensors", kPointer);
  EXPECT_EQ(error(),
            "DIR: 1 of 9 weight files is a git-lfs pointer, not the file itself "
            "(\"m-4.safetensors\"): run 'git lfs pull' in DIR");
  for (const std::string& file : files) write_file(dir / file, kPointer);
  EXPECT_THAT(error(),
              testing::StartsWith("DIR: 9 of 9 weight files are git-lfs pointers, not the files "
                                  "themselves (\"m-1.safetensors\", "));
  for (const std::string& file : files) write_file(dir / file, "x");
  EXPECT_EQ(error(), "no error");
}

}  // namespace
}  // namespace atl::storage
