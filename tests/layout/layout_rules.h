// The rules of the source tree that no compiler checks: who may include whom (the include root is
// the repository, so everything compiles), where third-party headers may appear, and forms that
// every file keeps. docs/development.md tells them in words.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace atl::test {

// One line: "kernels/x.cc:3: kernels may not include storage".
using Violation = std::string;

// Rules that one file can break by itself. `path` is relative to the repository, with '/'.
// `sibling_header` says whether the file has a header of its own name beside it.
std::vector<Violation> check_file(std::string_view path, std::string_view text,
                                  bool sibling_header);

// check_file over all sources, scripts and documents below `root`, and what only the whole tree
// shows: included files exist, sources and tests are built, documents are linked from README.md.
std::vector<Violation> check_tree(const std::filesystem::path& root);

}  // namespace atl::test
