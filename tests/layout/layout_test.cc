#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "tests/layout/layout_rules.h"

namespace atl::test {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

TEST(Layout, this_repository_keeps_its_rules) {
  EXPECT_THAT(check_tree(ATOLL_SOURCE_DIR), IsEmpty());
}

TEST(Layout, knows_who_may_include_whom) {
  const auto include = [](std::string_view path, std::string_view target) {
    return check_file(path, "#include \"" + std::string(target) + "\"\n", false);
  };
  EXPECT_THAT(include("kernels/x.cc", "storage/y.h"),
              ElementsAre("kernels/x.cc:1: kernels may not include storage"));
  EXPECT_THAT(include("transport/x.cc", "kernels/y.h"), ElementsAre(HasSubstr("may not include")));
  EXPECT_THAT(include("topology/x.cc", "storage/y.h"), ElementsAre(HasSubstr("may not include")));
  EXPECT_THAT(include("storage/x.cc", "model/y.h"), ElementsAre(HasSubstr("may not include")));
  EXPECT_THAT(include("expert_node/x.cc", "model/y.h"), ElementsAre(HasSubstr("may not include")));
  EXPECT_THAT(include("expert_node/x.cc", "coordinator/y.h"),
              ElementsAre(HasSubstr("may not include")));
  EXPECT_THAT(include("coordinator/x.cc", "expert_node/y.h"),
              ElementsAre(HasSubstr("may not include")));
  EXPECT_THAT(include("coordinator/x.cc", "cli/y.h"), ElementsAre(HasSubstr("may not include")));
  EXPECT_THAT(include("cli/x.cc", "tests/y.h"), ElementsAre(HasSubstr("may not include")));
  EXPECT_THAT(include("base/x.cc", "bench/y.h"), ElementsAre(HasSubstr("may not include")));
  EXPECT_THAT(include("model/x.cc", "storage/y.h"), IsEmpty());
  EXPECT_THAT(include("kernels/x.cc", "base/y.h"), IsEmpty());
  EXPECT_THAT(include("cli/x.cc", "coordinator/y.h"), IsEmpty());
  EXPECT_THAT(include("tests/kernels/x.cc", "coordinator/y.h"), IsEmpty());
}

TEST(Layout, finds_an_include_in_any_spelling) {
  EXPECT_EQ(check_file("kernels/x.cc", "\n  #  include \"model/a.h\"\n", false).size(), 1u);
  EXPECT_EQ(check_file("kernels/x.cc", "#include <model/a.h>\n", false).size(), 1u);
  EXPECT_THAT(check_file("kernels/x.cc", "// see \"model/a.h\"\n", false), IsEmpty());
}

TEST(Layout, keeps_third_party_headers_where_they_belong) {
  const auto include = [](std::string_view path, std::string_view target) {
    return check_file(path, "#pragma once\n#include <" + std::string(target) + ">\n", false).size();
  };
  EXPECT_EQ(include("coordinator/x.cc", "ucp/api/ucp.h"), 1u);
  EXPECT_EQ(include("transport/x.h", "ucp/api/ucp.h"), 1u);
  EXPECT_EQ(include("transport/x.cc", "ucp/api/ucp.h"), 0u);
  EXPECT_EQ(include("base/units.cc", "spdlog/spdlog.h"), 1u);
  EXPECT_EQ(include("base/log.cc", "spdlog/spdlog.h"), 0u);
  EXPECT_EQ(include("cli/x.h", "CLI/CLI.hpp"), 1u);
  EXPECT_EQ(include("model/x.h", "nlohmann/json.hpp"), 1u);
  EXPECT_EQ(include("model/x.cc", "nlohmann/json.hpp"), 0u);
  EXPECT_EQ(include("constrain/x.h", "nlohmann/json_fwd.hpp"), 0u);
  EXPECT_EQ(include("storage/x.cc", "hwy/highway.h"), 1u);
  EXPECT_EQ(include("expert_node/x.cc", "kj/async.h"), 1u);
  EXPECT_EQ(include("storage/x.cc", "gtest/gtest.h"), 1u);
  EXPECT_EQ(include("tests/transport/x.cc", "ucp/api/ucp.h"), 0u);
}

TEST(Layout, wants_the_own_header_first) {
  const std::string text = "#include <vector>\n#include \"kernels/x.h\"\n";
  EXPECT_EQ(check_file("kernels/x.cc", text, true).size(), 1u);
  EXPECT_THAT(check_file("kernels/x.cc", text, false), IsEmpty());
  EXPECT_THAT(check_file("kernels/x.cc", "#include \"kernels/x.h\"\n", true), IsEmpty());
}

TEST(Layout, wants_a_guard_and_no_using_namespace_in_headers) {
  EXPECT_EQ(check_file("base/x.h", "int f();\n", false).size(), 1u);
  EXPECT_EQ(check_file("base/x.h", "#pragma once\nusing namespace std;\n", false).size(), 1u);
  EXPECT_THAT(check_file("base/x.h", "// About.\n#pragma once\n", false), IsEmpty());
  EXPECT_THAT(check_file("kernels/cpu/x-inl.h", "int f();\n", false), IsEmpty());
}

TEST(Layout, finds_unfinished_work_and_paths_of_one_machine) {
  EXPECT_EQ(check_file("docs/x.md",
                       "a\nTO"
                       "DO: b\n",
                       false)
                .size(),
            1u);
  EXPECT_EQ(check_file("scripts/x",
                       "cd /ho"
                       "me/me/atoll\n",
                       false)
                .size(),
            1u);
}

// A small tree with one fault of each kind that only the whole tree shows.
TEST(Layout, finds_planted_violations_in_a_tree) {
  std::string name = (fs::temp_directory_path() / "atoll-layout-XXXXXX").string();
  ASSERT_NE(::mkdtemp(name.data()), nullptr);
  const fs::path root = name;
  const auto write = [&root](const std::string& path, const std::string& text) {
    fs::create_directories((root / path).parent_path());
    std::ofstream(root / path) << text;
  };
  write("README.md", "[a](docs/a.md)\n");
  write("docs/a.md", "linked\n");
  write("docs/b.md", "not linked\n");
  write("base/CMakeLists.txt", "atoll_library(base SOURCES good.cc)\n");
  write("base/good.cc", "#include \"base/gone.h\"\n");
  write("base/bad.cc", "int unbuilt;\n");
  write("tests/base/CMakeLists.txt", "atoll_test(base seen_test)\n");
  write("tests/base/seen_test.cc", "int a;\n");
  write("tests/base/unseen_test.cc", "int b;\n");
  write("build/x.h", "not ours\n");
  EXPECT_THAT(check_tree(root),
              ElementsAre("base/bad.cc: no CMakeLists.txt builds it",
                          "base/good.cc: \"base/gone.h\" is not a path from the root",
                          "docs/b.md: README.md doesn't link it",
                          "tests/base/unseen_test.cc: no CMakeLists.txt builds it"));
  fs::remove_all(root);
}

}  // namespace
}  // namespace atl::test
