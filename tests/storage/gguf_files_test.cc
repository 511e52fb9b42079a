#include "storage/gguf/gguf_files.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <string>

#include "base/result.h"
#include "tests/support/gguf_bytes.h"
#include "tests/support/temp_dir.h"

namespace atl::storage {
namespace {

namespace fs = std::filesystem;
using test::GgufBytes;
using test::TempDir;
using test::write_file;
using testing::HasSubstr;

std::string split(uint32_t number, uint32_t count, const std::string& tensor) {
  return GgufBytes()
      .integer("split.no", number)
      .integer("split.count", count)
      .integer("split.tensors.count", count)
      .tensor(tensor, {1}, 0, "1234")
      .file();
}

template <typename Function>
std::string error_of(Function function) {
  try {
    function();
  } catch (const LoadError& error) {
    return error.what();
  }
  return "no error";
}

TEST(GgufFiles, splits_are_found_by_any_of_them_and_by_their_directory) {
  const TempDir dir;
  for (uint32_t i = 0; i < 3; ++i) {
    write_file(dir.path() / ("m-0000" + std::to_string(i + 1) + "-of-00003.gguf"),
               split(i, 3, "t" + std::to_string(i)));
  }
  const fs::path first = dir.path() / "m-00001-of-00003.gguf";
  EXPECT_EQ(find_gguf(dir.path()), first);
  for (const fs::path& given : {first, dir.path() / "m-00003-of-00003.gguf"}) {
    EXPECT_EQ(find_gguf(given), given);
    const std::vector<GgufFile> files = open_gguf_files(given);
    ASSERT_EQ(files.size(), 3u);
    EXPECT_EQ(files[2].header.tensors[0].name, "t2");
  }
}

TEST(GgufFiles, missing_splits_are_counted_and_named) {
  const TempDir dir;
  write_file(dir.path() / "m-00002-of-00003.gguf", split(1, 3, "t"));
  EXPECT_THAT(error_of([&] { open_gguf_files(*find_gguf(dir.path())); }),
              HasSubstr("2 of 3 weight files are missing (\"m-00001-of-00003.gguf\", "
                        "\"m-00003-of-00003.gguf\")"));
}

TEST(GgufFiles, splits_that_contradict_their_names_are_refused) {
  const TempDir dir;
  write_file(dir.path() / "m-00001-of-00002.gguf", split(0, 2, "t"));
  write_file(dir.path() / "m-00002-of-00002.gguf", split(0, 2, "u"));
  const fs::path first = dir.path() / "m-00001-of-00002.gguf";
  EXPECT_THAT(error_of([&] { open_gguf_files(first); }),
              HasSubstr("the file says it is split 1 of 2, by its name it is 2 of 2"));
  write_file(dir.path() / "m-00002-of-00002.gguf", split(1, 2, "t"));
  EXPECT_THAT(error_of([&] { open_gguf_files(first); }),
              HasSubstr("tensor \"t\" is in another split, too"));
  write_file(dir.path() / "alone.gguf", split(1, 2, "t"));
  EXPECT_THAT(error_of([&] { open_gguf_files(dir.path() / "alone.gguf"); }),
              HasSubstr("the file says it is split 2 of 2, by its name it is 1 of 1"));
}

TEST(GgufFiles, a_directory_of_two_models_or_of_something_else_is_told_apart) {
  const TempDir dir;
  EXPECT_EQ(find_gguf(dir.path()), std::nullopt);
  EXPECT_EQ(find_gguf(dir.path() / "none"), std::nullopt);
  write_file(dir.path() / "a.gguf", GgufBytes().file());
  write_file(dir.path() / "b.txt", GgufBytes().file());
  EXPECT_EQ(find_gguf(dir.path()), dir.path() / "a.gguf");
  EXPECT_EQ(find_gguf(dir.path() / "b.txt"), dir.path() / "b.txt");  // by its first letters
  write_file(dir.path() / "b.gguf", GgufBytes().file());
  EXPECT_THAT(error_of([&] { find_gguf(dir.path()); }),
              HasSubstr("2 GGUF models (a.gguf, b.gguf): give the file of one"));
  write_file(dir.path() / "model.safetensors", "");
  EXPECT_EQ(find_gguf(dir.path()), std::nullopt);
}

}  // namespace
}  // namespace atl::storage
