#include "coordinator/api/api_keys.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "base/result.h"
#include "tests/support/temp_dir.h"

namespace atl::coordinator {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

class ApiKeysFile : public ::testing::Test {
 protected:
  std::string write(const std::string& text,
                    fs::perms permissions = fs::perms::owner_read | fs::perms::owner_write) {
    const fs::path file = dir_.path() / "keys";
    fs::remove(file);
    std::ofstream(file) << text;
    fs::permissions(file, permissions);
    return file.string();
  }
  std::string error_of(const std::string& file) {
    try {
      load_api_keys(file);
    } catch (const LoadError& error) {
      return error.what();
    }
    return "";
  }
  test::TempDir dir_;
};

TEST_F(ApiKeysFile, has_names_and_keys) {
  const auto keys = load_api_keys(
      write("# who\nann sk-0123456789 # hers\n\n  sk-abcdefgh\r\n\tbob\tsk-98765432\n"));
  ASSERT_EQ(keys.size(), 3u);
  EXPECT_EQ(keys[0].name, "ann");
  EXPECT_EQ(keys[0].key, "sk-0123456789");
  EXPECT_EQ(keys[1].name, "key4");
  EXPECT_EQ(keys[1].key, "sk-abcdefgh");
  EXPECT_EQ(keys[2].name, "bob");
}

TEST_F(ApiKeysFile, is_refused_if_others_can_read_it) {
  const std::string file =
      write("a sk-0123456789\n", fs::perms::owner_read | fs::perms::group_read);
  EXPECT_THAT(error_of(file), HasSubstr("others than its owner can read it (mode 440)"));
}

TEST_F(ApiKeysFile, is_refused_if_others_can_write_it) {
  for (const fs::perms other : {fs::perms::group_write, fs::perms::others_write}) {
    const std::string file = write("a sk-0123456789\n", fs::perms::owner_read | other);
    EXPECT_THAT(error_of(file), HasSubstr("others than its owner can write or run it (mode 4"));
  }
}

TEST_F(ApiKeysFile, is_a_file_and_no_pipe_and_not_endless) {
  const std::string pipe = (dir_.path() / "pipe").string();
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  EXPECT_THAT(error_of(pipe), HasSubstr("pipe: expected a regular file"));
  EXPECT_THAT(error_of(dir_.path().string()), HasSubstr("expected a regular file"));
  EXPECT_THAT(error_of(write(std::string(2 << 20, '#'))), HasSubstr("longer than 1 MiB"));
}

TEST_F(ApiKeysFile, a_key_may_hold_the_sign_of_a_remark) {
  const auto keys = load_api_keys(write("ann sk-01#23456789 # hers\nsk-98#7654321#\n"));
  ASSERT_EQ(keys.size(), 2u);
  EXPECT_EQ(keys[0].key, "sk-01#23456789");
  EXPECT_EQ(keys[1].key, "sk-98#7654321#");
}

TEST_F(ApiKeysFile, says_what_is_wrong_with_a_line) {
  EXPECT_THAT(error_of(write("a sk-0123456789\nb c d\n")), HasSubstr("keys:2: expected"));
  EXPECT_THAT(error_of(write("a short\n")), HasSubstr("at least 8 characters, found 5"));
  EXPECT_THAT(error_of(write("a sk-0123456789\na sk-1123456789\n")),
              HasSubstr("keys:2: this name"));
  EXPECT_THAT(error_of(write("a sk-0123456789\nb sk-0123456789\n")), HasSubstr("twice"));
  EXPECT_THAT(error_of(write("# nothing\n")), HasSubstr("no key in it"));
  EXPECT_THAT(error_of((dir_.path() / "missing").string()), HasSubstr("No such file"));
}

TEST(ApiKeys, are_compared_whole) {
  const std::vector<ApiKey> keys = {{"a", "sk-0123456789"}, {"b", "sk-9876543210"}};
  EXPECT_EQ(owner_of_key(keys, "Bearer sk-9876543210"), "b");
  EXPECT_EQ(owner_of_key(keys, "BEARER sk-0123456789"), "a");
  for (const char* header :
       {"", "Bearer", "Bearer ", "Bearer sk-012345678", "Bearer sk-01234567890",
        "Bearer sk-0123456789sk-0123456789", "Bearer sk-0123456780", "Basic sk-0123456789",
        "sk-0123456789", "Bearer sk-0123456789 "}) {
    EXPECT_EQ(owner_of_key(keys, header), std::nullopt) << header;
  }
}

}  // namespace
}  // namespace atl::coordinator
