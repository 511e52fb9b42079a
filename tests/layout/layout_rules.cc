#include "tests/layout/layout_rules.h"

#include <algorithm>
#include <fstream>
#include <map>
#include <set>
#include <sstream>

namespace atl::test {
namespace {

namespace fs = std::filesystem;

// Whom a folder may include, besides itself and base. Arrows point down only.
const std::map<std::string, std::set<std::string>, std::less<>> kMayInclude = {
    {"base", {}},
    {"kernels", {}},
    {"transport", {}},
    {"topology", {}},
    {"config", {}},
    {"text", {}},
    {"constrain", {"text"}},
    {"storage", {"kernels"}},
    {"model", {"storage", "kernels"}},
    {"http", {}},
    {"expert_node", {"storage", "kernels", "transport", "topology"}},
    {"coordinator",
     {"model", "text", "constrain", "http", "storage", "kernels", "transport", "topology"}},
    {"deployment",
     {"coordinator", "expert_node", "model", "storage", "kernels", "transport", "topology",
      "config"}},
    {"bench",
     {"deployment", "coordinator", "expert_node", "model", "http", "storage", "kernels",
      "topology"}},
    {"cli",
     {"bench", "deployment", "coordinator", "expert_node", "model", "text", "constrain", "http",
      "storage", "kernels", "transport", "topology", "config"}},
};
// Outside of the library: they include what they try, nothing includes them.
const std::set<std::string, std::less<>> kOuterFolders = {"tests", "bench/programs"};

// A third-party header belongs to the files whose path starts with one of `owners` (a folder or
// file); headers of ours see it only where `in_headers`.
struct ThirdParty {
  std::string_view prefix;  // of the included path
  std::vector<std::string_view> owners;
  bool in_headers = false;
};
const std::vector<ThirdParty> kThirdParty = {
    {"ucp/", {"transport/"}},
    {"ucs/", {"transport/"}},
    {"uct/", {"transport/"}},
    {"kj/", {"transport/"}, true},
    {"capnp/", {"transport/"}, true},
    {"openssl/", {"transport/"}, true},
    {"intel-ipsec-mb.h", {"transport/tls/"}},
    {"hwloc", {"topology/"}},
    {"yaml-cpp/", {"config/"}},
    {"hwy/", {"kernels/", "topology/"}, true},
    {"liburing", {"storage/"}},
    {"xxhash.h", {"storage/"}},
    {"pcre2.h", {"text/"}},
    {"utf8proc.h", {"text/nfc.cc"}},
    {"spdlog/", {"base/log.cc"}},
    {"systemd/", {"base/service_manager.cc"}},
    {"CLI/", {"cli/"}},
    {"histedit.h", {"cli/line_editor.cc"}},
    {"boost/", {"http/", "cli/"}, true},
    {"prometheus/", {"coordinator/api/metrics.cc"}},
    {"nlohmann/json_fwd.hpp", {"base/", "constrain/", "coordinator/api/"}, true},
    {"nlohmann/",
     {"base/", "text/", "constrain/", "model/", "storage/", "topology/", "transport/", "config/",
      "coordinator/", "http/http_error.cc", "bench/", "cli/"}},
    {"gtest/", {}},
    {"gmock/", {}},
    {"benchmark/", {}},
};

bool ends_with_any(std::string_view text, std::initializer_list<std::string_view> endings) {
  return std::any_of(endings.begin(), endings.end(),
                     [text](std::string_view ending) { return text.ends_with(ending); });
}
bool is_header(std::string_view path) { return path.ends_with(".h"); }
bool is_source(std::string_view path) { return ends_with_any(path, {".cc", ".cu"}); }
std::string_view folder_of(std::string_view path) {
  constexpr std::string_view kPrograms = "bench/programs";
  if (path.starts_with(kPrograms)) return kPrograms;
  const size_t slash = path.find('/');
  return slash == std::string_view::npos ? std::string_view() : path.substr(0, slash);
}

// `#include "x"` or `#include <x>` of one line; path is empty for any other line.
struct Include {
  std::string path;
  bool quoted = false;
};
Include parse_include(std::string_view line) {
  const auto skip_spaces = [&line] {
    while (!line.empty() && (line[0] == ' ' || line[0] == '\t')) line.remove_prefix(1);
  };
  skip_spaces();
  if (line.empty() || line[0] != '#') return {};
  line.remove_prefix(1);
  skip_spaces();
  if (!line.starts_with("include")) return {};
  line.remove_prefix(7);
  skip_spaces();
  if (line.empty() || (line[0] != '"' && line[0] != '<')) return {};
  const bool quoted = line[0] == '"';
  const size_t end = line.find(quoted ? '"' : '>', 1);
  if (end == std::string_view::npos) return {};
  return {std::string(line.substr(1, end - 1)), quoted};
}

class FileCheck {
 public:
  FileCheck(std::string_view path, std::string_view text, bool sibling_header)
      : path_(path), folder_(folder_of(path)), text_(text), sibling_header_(sibling_header) {}

  std::vector<Violation> run() {
    std::istringstream lines{std::string(text_)};
    for (std::string line; std::getline(lines, line);) {
      ++line_number_;
      check_words(line);
      if (is_header(path_) || is_source(path_)) check_include(parse_include(line));
    }
    line_number_ = 1;
    if (is_header(path_)) check_header();
    return std::move(violations_);
  }

 private:
  void report(std::string_view what) {
    violations_.push_back(std::string(path_) + ":" + std::to_string(line_number_) + ": " +
                          std::string(what));
  }

  // Spelled in two parts here so that this file keeps its own rules.
  void check_words(std::string_view line) {
    for (const std::string_view word : {"TO"
                                        "DO",
                                        "FIX"
                                        "ME",
                                        "XX"
                                        "X:"}) {
      if (line.find(word) != std::string_view::npos) report("unfinished work is not left in files");
    }
    for (const std::string_view place : {"/wo"
                                         "rk/",
                                         "/ho"
                                         "me/",
                                         "/ro"
                                         "ot/"}) {
      if (line.find(place) != std::string_view::npos) report("names a path of one machine");
    }
  }

  void check_include(const Include& include) {
    if (include.path.empty()) return;
    if (sibling_header_ && is_source(path_) && !seen_include_) {
      const std::string own = std::string(path_.substr(0, path_.rfind('.'))) + ".h";
      if (include.path != own) report("a source includes its own header first");
    }
    seen_include_ = true;
    if (kOuterFolders.contains(folder_)) return;
    const std::string_view target = folder_of(include.path);
    if (kMayInclude.contains(target) || kOuterFolders.contains(target)) {
      check_folder(target);
    } else {
      check_third_party(include.path);
    }
  }

  void check_folder(std::string_view target) {
    const auto rule = kMayInclude.find(folder_);
    if (rule == kMayInclude.end() || target == folder_ || target == "base") return;
    if (rule->second.contains(std::string(target))) return;
    report(std::string(folder_) + " may not include " + std::string(target));
  }

  void check_third_party(std::string_view included) {
    for (const ThirdParty& library : kThirdParty) {
      if (!included.starts_with(library.prefix)) continue;
      const bool owned =
          std::any_of(library.owners.begin(), library.owners.end(),
                      [this](std::string_view owner) { return path_.starts_with(owner); });
      if (!owned) report("<" + std::string(included) + "> doesn't belong to this folder");
      if (owned && is_header(path_) && !library.in_headers) {
        report("<" + std::string(included) + "> belongs to sources, not to a header");
      }
      return;
    }
  }

  void check_header() {
    // Highway includes -inl.h once per SIMD target, behind a guard that toggles.
    const bool has_guard = text_.find("\n#pragma once\n") != std::string_view::npos ||
                           text_.starts_with("#pragma once\n");
    if (!has_guard && !path_.ends_with("-inl.h")) report("a header has #pragma once");
    if (text_.find("\nusing namespace ") != std::string_view::npos) {
      report("a header has no using namespace");
    }
  }

  std::string_view path_, folder_, text_;
  bool sibling_header_;
  bool seen_include_ = false;
  int line_number_ = 0;
  std::vector<Violation> violations_;
};

std::string read_file(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

// Files that people write, relative to root. Build trees, data and dot folders but .ci are left
// out.
std::vector<std::string> written_files(const fs::path& root) {
  std::vector<std::string> files;
  const auto is_skipped = [&root](const fs::path& folder) {
    const std::string name = folder.filename().string();
    if (folder.parent_path() != root) return name == "__pycache__";
    return name.starts_with("build") || (name.starts_with(".") && name != ".ci");
  };
  for (auto it = fs::recursive_directory_iterator(root); it != fs::recursive_directory_iterator();
       ++it) {
    if (it->is_directory()) {
      if (is_skipped(it->path())) it.disable_recursion_pending();
      continue;
    }
    const std::string path = fs::relative(it->path(), root).generic_string();
    const bool is_script = path.starts_with("scripts/") || path.starts_with(".ci/");
    if (is_script || ends_with_any(path, {".h", ".cc", ".cu", ".capnp", ".txt", ".cmake", ".md",
                                          ".py", ".yaml"})) {
      files.push_back(path);
    }
  }
  std::sort(files.begin(), files.end());
  return files;
}

// `name` as a whole word, so that b.cc isn't found in ab.cc.
bool names_file(std::string_view text, std::string_view name) {
  const auto is_word = [](char c) {
    return std::isalnum(static_cast<unsigned char>(c)) || c == '_';
  };
  for (size_t at = text.find(name); at != std::string_view::npos; at = text.find(name, at + 1)) {
    const bool starts = at == 0 || !is_word(text[at - 1]);
    const size_t end = at + name.size();
    if (starts && (end == text.size() || !is_word(text[end]))) return true;
  }
  return false;
}

class TreeCheck {
 public:
  explicit TreeCheck(const fs::path& root) : root_(root), files_(written_files(root)) {}

  std::vector<Violation> run() {
    if (std::none_of(files_.begin(), files_.end(), is_source)) {
      violations_.push_back(root_.string() + ": no sources found");
    }
    for (const std::string& path : files_) {
      const std::string text = read_file(root_ / path);
      const fs::path header = fs::path(root_ / path).replace_extension(".h");
      append(check_file(path, text, is_source(path) && fs::exists(header)));
      if (is_header(path) || is_source(path)) check_includes_exist(path, text);
      if (is_source(path)) check_is_built(path);
      if (path.starts_with("docs/") && path.ends_with(".md")) check_is_linked(path);
    }
    return std::move(violations_);
  }

 private:
  void append(std::vector<Violation> more) {
    violations_.insert(violations_.end(), more.begin(), more.end());
  }

  void check_includes_exist(const std::string& path, const std::string& text) {
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);) {
      const Include include = parse_include(line);
      if (!include.quoted || include.path.starts_with("hwy/")) continue;
      if (include.path.ends_with(".capnp.h")) continue;  // generated in the build tree
      if (!fs::exists(root_ / include.path)) {
        violations_.push_back(path + ": \"" + include.path + "\" is not a path from the root");
      }
    }
  }

  // A source that no CMakeLists.txt names is a test that never runs or code that nobody compiles.
  void check_is_built(const std::string& path) {
    const fs::path file(path);
    const std::string stem = file.stem().string();
    for (fs::path folder = file.parent_path();; folder = folder.parent_path()) {
      const fs::path list = root_ / folder / "CMakeLists.txt";
      if (fs::exists(list)) {
        const std::string text = read_file(list);
        const std::string from_list = fs::relative(root_ / path, root_ / folder).generic_string();
        const bool as_test = stem.ends_with("_test") && names_file(text, stem);
        const bool as_bench = path.starts_with("bench/programs/") && names_file(text, stem);
        if (as_test || as_bench || names_file(text, from_list)) return;
        violations_.push_back(path + ": no CMakeLists.txt builds it");
        return;
      }
      if (folder.empty()) break;
    }
    violations_.push_back(path + ": no CMakeLists.txt builds it");
  }

  void check_is_linked(const std::string& path) {
    const std::string readme = read_file(root_ / "README.md");
    if (readme.find("(" + path) == std::string::npos) {
      violations_.push_back(path + ": README.md doesn't link it");
    }
  }

  const fs::path root_;
  const std::vector<std::string> files_;
  std::vector<Violation> violations_;
};

}  // namespace

std::vector<Violation> check_file(std::string_view path, std::string_view text,
                                  bool sibling_header) {
  return FileCheck(path, text, sibling_header).run();
}

std::vector<Violation> check_tree(const fs::path& root) { return TreeCheck(root).run(); }

}  // namespace atl::test
