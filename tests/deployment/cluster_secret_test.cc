#include "deployment/cluster_secret.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <set>
#include <string>

#include "base/result.h"
#include "tests/support/temp_dir.h"

namespace atl::deployment {
namespace {

using ::testing::HasSubstr;

class ClusterSecret : public testing::Test {
 protected:
  std::string error() const {
    return test::message_of<LoadError>(dir_.path(), [this] { (void)cluster_secret(file_); });
  }

  test::TempDir dir_;
  const std::filesystem::path file_ = dir_.path() / "c.secret";
};

TEST_F(ClusterSecret, is_made_once_for_this_user_alone) {
  const std::string secret = cluster_secret(file_);
  EXPECT_EQ(secret.size(), 32u);
  EXPECT_EQ(cluster_secret(file_), secret);
  struct stat status {};
  ASSERT_EQ(stat(file_.c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0600u);
  for (const auto& entry : std::filesystem::directory_iterator(dir_.path())) {
    EXPECT_EQ(entry.path(), file_) << "a draft was left";
  }
}

TEST_F(ClusterSecret, of_several_processes_that_make_it_at_once_is_the_same) {
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  constexpr int kProcesses = 16;
  for (int i = 0; i < kProcesses; ++i) {
    if (fork() != 0) continue;
    const std::string secret = cluster_secret(file_);
    _exit(write(ends[1], secret.data(), secret.size()) == 32 ? 0 : 1);
  }
  std::set<std::string> secrets;
  for (int i = 0; i < kProcesses; ++i) {
    std::string secret(32, ' ');
    ASSERT_EQ(read(ends[0], secret.data(), secret.size()), 32);
    secrets.insert(secret);
  }
  for (int i = 0; i < kProcesses; ++i) wait(nullptr);
  close(ends[0]);
  close(ends[1]);
  EXPECT_EQ(secrets.size(), 1u);
}

TEST_F(ClusterSecret, that_others_may_read_is_refused) {
  test::write_file(file_, std::string(32, 'a') + "\n");
  std::filesystem::permissions(file_, std::filesystem::perms(0640));
  EXPECT_THAT(error(), HasSubstr("DIR/c.secret: the cluster's secret may be read or written by "
                                 "others (mode 640): expected 600"));
  std::filesystem::permissions(file_, std::filesystem::perms(0600));
  EXPECT_EQ(cluster_secret(file_), std::string(32, 'a'));
}

TEST_F(ClusterSecret, that_is_something_else_is_refused) {
  for (const char* text : {"", "abc\n", "0123456789abcdef0123456789abcdeg\n"}) {
    test::write_file(file_, text);
    std::filesystem::permissions(file_, std::filesystem::perms(0600));
    EXPECT_THAT(error(), HasSubstr("expected 32 hexadecimal digits"));
  }
  std::filesystem::remove(file_);
  std::filesystem::create_directory(file_);
  EXPECT_THAT(error(), HasSubstr("expected a file with the cluster's secret"));
  std::filesystem::remove(file_);
  std::filesystem::create_symlink("/etc/hostname", file_);
  EXPECT_THAT(error(), HasSubstr("can't be read"));
}

TEST_F(ClusterSecret, that_cannot_be_made_says_what_names_another_place) {
  const std::string error = test::message_of<LoadError>(
      dir_.path(), [this] { (void)cluster_secret(dir_.path() / "nowhere/c.secret"); });
  EXPECT_THAT(error, HasSubstr("can't be made: No such file or directory; security.secret_file "
                               "names another place"));
}

}  // namespace
}  // namespace atl::deployment
