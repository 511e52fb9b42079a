#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <map>

#include "base/result.h"
#include "tests/support/temp_dir.h"
#include "tests/transport/test_keys.h"
#include "transport/tls/make_keys.h"
#include "transport/tls/tls_keys.h"

namespace atl::transport {
namespace {

namespace fs = std::filesystem;

unsigned mode_of(const fs::path& file) {
  struct stat status {};
  EXPECT_EQ(::stat(file.c_str(), &status), 0) << file;
  return status.st_mode & 07777;
}

template <typename Call>
std::string problem_of(const Call& call) {
  try {
    call();
  } catch (const LoadError& error) {
    return error.what();
  }
  return "";
}

void expect_contains(const std::string& text, std::initializer_list<std::string> parts) {
  EXPECT_FALSE(text.empty());
  EXPECT_EQ(text.find('\n'), std::string::npos) << text;
  for (const std::string& part : parts) EXPECT_NE(text.find(part), std::string::npos) << text;
}

class Keys : public testing::Test {
 protected:
  MadeKeys make(std::vector<std::string> nodes) {
    return make_keys({dir, std::move(nodes), {"coordinator"}, 365});
  }
  std::string problem(const std::string& name) {
    return problem_of([&] { TlsKeys::load(dir, name); });
  }

  test::TempDir temp;
  fs::path dir = temp.path() / "keys";
};

TEST_F(Keys, are_made_for_each_member_and_private_ones_are_private) {
  const MadeKeys made = make({"n1", "n2"});
  EXPECT_EQ(made.made.size(), 8u);
  EXPECT_TRUE(made.kept.empty());
  EXPECT_EQ(mode_of(dir), 0700u);
  for (const char* name : {"ca", "n1", "n2", "coordinator"}) {
    EXPECT_EQ(mode_of(dir / (std::string(name) + ".key")), 0600u);
    EXPECT_EQ(mode_of(dir / (std::string(name) + ".pem")), 0644u);
  }
  for (const char* name : {"n1", "n2", "coordinator"}) {
    EXPECT_EQ(problem(name), "");
    EXPECT_EQ(TlsKeys::load(dir, name)->name(), name);
  }
}

TEST_F(Keys, are_never_overwritten_and_members_can_be_added) {
  make({"n1"});
  std::map<std::string, std::string> before;
  for (const auto& entry : fs::directory_iterator(dir))
    before[entry.path().filename()] = test::read_file(entry.path());
  const MadeKeys more = make({"n1", "n2"});
  EXPECT_EQ(more.made.size(), 2u);
  for (const auto& [name, text] : before) EXPECT_EQ(test::read_file(dir / name), text) << name;
  EXPECT_EQ(problem("n2"), "");
  // Nothing to sign: the authority's key need not be there.
  fs::remove(dir / "ca.key");
  EXPECT_TRUE(make({"n1", "n2"}).made.empty());
  expect_contains(problem_of([&] { make({"n3"}); }), {"ca.pem is there", "ca.key is not"});
  EXPECT_FALSE(fs::exists(dir / "n3.key"));
}

// A limit of the process's files stands for a full drive.
TEST_F(Keys, that_cannot_be_written_whole_leave_nothing_behind) {
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const rlimit small{16, before.rlim_max};
  const auto handler = ::signal(SIGXFSZ, SIG_IGN);
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  const std::string error = problem_of([&] { make({"n1"}); });
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  ::signal(SIGXFSZ, handler);
  expect_contains(error, {"keys: cannot write", "ca.key"});
  EXPECT_TRUE(fs::is_empty(dir));
  make({"n1"});
}

TEST_F(Keys, of_which_one_half_is_there_are_refused) {
  make({"n1"});
  fs::remove(dir / "n1.key");
  expect_contains(problem_of([&] { make({"n1"}); }), {"n1.pem is there", "n1.key is not"});
  EXPECT_FALSE(fs::exists(dir / "n1.key"));
}

TEST_F(Keys, want_names_that_are_some) {
  for (const char* bad : {"", "ca", "../n1", "a/b", "a b", "-n1", ".n1", "n\n1", "n*"}) {
    EXPECT_NE(problem_of([&] { make({bad}); }), "") << bad;
    EXPECT_NE(problem(bad), "") << bad;
  }
  EXPECT_NE(problem_of([&] { make({std::string(64, 'n')}); }), "");
  expect_contains(problem_of([&] { make({"n1", "n1"}); }), {"n1 is named twice"});
  expect_contains(problem_of([&] { make({"coordinator"}); }), {"twice"});
  EXPECT_NE(problem_of([&] { make_keys({dir, {"n1"}, {}, 0}); }), "");
  EXPECT_NE(problem_of([&] { make_keys({dir, {}, {}, 1}); }), "");
  EXPECT_FALSE(fs::exists(dir));
  EXPECT_EQ(problem_of([&] { make({"n_1.rack-2", std::string(63, 'n')}); }), "");
}

TEST_F(Keys, that_cannot_serve_are_refused_with_the_reason) {
  make({"n1", "n2"});
  expect_contains(problem("n3"), {"n3.pem", "No such file", "atoll keys"});
  fs::permissions(dir / "n1.key", fs::perms(0644));
  expect_contains(problem("n1"), {"n1.key", "0644", "chmod 600"});
  fs::permissions(dir / "n1.key", fs::perms(0640));  // a group of the service's own
  EXPECT_EQ(problem("n1"), "");

  fs::copy_file(dir / "n2.pem", dir / "n4.pem");
  fs::copy_file(dir / "n2.key", dir / "n4.key");
  expect_contains(problem("n4"), {"n4.pem", "it is of n2, expected n4"});
  fs::copy_file(dir / "n1.key", dir / "n2.key", fs::copy_options::overwrite_existing);
  expect_contains(problem("n2"), {"n2.key is not the key of", "n2.pem"});

  test::write_file(dir / "n4.key", "nothing");
  expect_contains(problem("n4"), {"n4.key"});
  test::write_file(dir / "n4.pem", "nothing");
  expect_contains(problem("n4"), {"n4.pem"});

  let_expire(dir, "n1");
  expect_contains(problem("n1"), {"n1.pem", "it expired on"});
}

TEST_F(Keys, of_another_authority_are_refused) {
  make({"n1"});
  const fs::path other = temp.path() / "other";
  make_keys({other, {"n1"}, {}, 365});
  fs::copy_file(other / "ca.pem", dir / "ca.pem", fs::copy_options::overwrite_existing);
  expect_contains(problem("n1"), {"n1.pem", "is no authority in ca.pem"});
  // Both, while certificates are changed.
  std::ofstream(dir / "ca.pem") << test::read_file(other / "ca.pem");
  make_keys({temp.path() / "third", {"n1"}, {}, 365});
  fs::copy_file(temp.path() / "third/ca.pem", dir / "ca.pem", fs::copy_options::overwrite_existing);
  std::ofstream(dir / "ca.pem", std::ios::app) << test::read_file(other / "ca.pem");
  fs::copy_file(other / "n1.pem", dir / "n1.pem", fs::copy_options::overwrite_existing);
  fs::copy_file(other / "n1.key", dir / "n1.key", fs::copy_options::overwrite_existing);
  EXPECT_EQ(problem("n1"), "");
}

}  // namespace
}  // namespace atl::transport
