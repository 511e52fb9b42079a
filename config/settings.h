// Values of keys by path, each with where it came from: the file, the environment, a flag or the
// default. Each is of its key's type; how they go together is not looked at yet.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/result.h"

namespace atl::config {

inline constexpr size_t kFileBytesMax = 256 << 10;

enum class Origin : uint8_t { kDefault, kFile, kEnvironment, kFlag };

struct Setting {
  std::vector<std::string> items;  // one, but for lists; empty: not set and no default
  Origin origin = Origin::kDefault;
  std::string where;  // "cluster.yaml:4:9", "ATOLL_MODEL", "--set", "default"

  bool is_set() const { return !items.empty(); }
  const std::string& text() const { return items.front(); }
};

// What is stronger than the file.
struct Overrides {
  // KEY=VALUE as given with --set; nodes[] by name: nodes.n1.ram=24GiB.
  std::vector<std::string> flags;
  // NAME, VALUE of the environment's ATOLL_ variables.
  std::vector<std::pair<std::string, std::string>> environment;
  std::string node;  // whom ATOLL_NODE_* are about; "": nobody, they are left

  // The process's own environment.
  static std::vector<std::pair<std::string, std::string>> from_environment();
};

class Settings {
 public:
  // LoadError: "cluster.yaml:4:3: unknown key 'lisen'; did you mean 'listen'?" and the like.
  //   text  of the file, at most kFileBytesMax
  static Settings parse(std::string_view text, const std::filesystem::path& file,
                        const Overrides& overrides);
  // LoadError also if the file can't be read or is too large.
  static Settings read(const std::filesystem::path& file, const Overrides& overrides);

  const std::filesystem::path& file() const { return file_; }  // absolute
  int num_nodes() const { return num_nodes_; }
  int num_coordinators() const { return num_coordinators_; }  // of `coordinators`
  // Of a key of the table; nodes[] with the node's place: at("nodes[0].ram"). A key of nodes[] that
  // isn't set has node_defaults' value; one of coordinators[] is not set then.
  const Setting& at(const std::string& path) const;
  // All, in the table's order; of coordinators[] what is set, nodes last.
  std::vector<std::pair<std::string, Setting>> all() const;
  // Keys that at() was not asked for since they were read: what a program would ignore.
  std::vector<std::string> unread() const;

 private:
  friend class SettingsReader;
  std::filesystem::path file_;
  int num_nodes_ = 0, num_coordinators_ = 0;
  std::map<std::string, Setting, std::less<>> values_;
  mutable std::map<std::string, bool, std::less<>> read_;
};

std::string_view to_string(Origin origin);
// "nodes[2].ram" -> "nodes[].ram".
std::string pattern_of(std::string_view path);

}  // namespace atl::config
