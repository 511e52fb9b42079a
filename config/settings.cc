#include "config/settings.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cctype>
#include <fstream>
#include <set>
#include <string_view>

#include "base/check.h"
#include "base/nearest.h"
#include "config/keys.h"
#include "config/yaml_tree.h"

extern char** environ;

namespace atl::config {
namespace {

constexpr std::string_view kNodes = "nodes[]", kCoordinators = "coordinators[]";

std::string name_of_section(const std::string& section) {
  return section == kNodes ? "a node" : section == kCoordinators ? "a coordinator" : section;
}

std::string joined(const std::string& section, const std::string& name) {
  return section.empty() ? name : section + "." + name;
}

bool begins_like_a_section(std::string_view variable) {
  for (const std::string_view section :
       {"ATOLL_NUMERICS_", "ATOLL_COORDINATOR_", "ATOLL_NETWORK_", "ATOLL_SECURITY_",
        "ATOLL_TIMEOUTS_", "ATOLL_NODE_", "ATOLL_PLAN_"}) {
    if (variable.starts_with(section)) return true;
  }
  return false;
}

// "unknown key 'lisen'; did you mean 'listen'?", or all that there are.
std::string unknown_key(std::string_view name, const std::string& section,
                        const std::vector<std::string>& known) {
  const std::string where = section.empty() ? "" : fmt::format(" in {}", name_of_section(section));
  const std::string meant = nearest(name, known);
  if (!meant.empty()) {
    return fmt::format("unknown key '{}'{}; did you mean '{}'?", name, where, meant);
  }
  return fmt::format("unknown key '{}'{}: expected one of {}", name, where, fmt::join(known, ", "));
}

}  // namespace

// Fills a Settings: file first, then what is stronger.
class SettingsReader {
 public:
  SettingsReader(const std::filesystem::path& file, const Overrides& overrides)
      : overrides_(overrides), name_(file.filename().string()) {
    settings_.file_ = std::filesystem::absolute(file).lexically_normal();
  }

  Settings read(std::string_view text) {
    const YamlNode root = read_yaml(text, name_);
    if (root.kind != YamlNode::Kind::kMap) fail(root.place, "expected keys and values");
    take_map(root, "", "");
    take_environment();
    for (const std::string& flag : overrides_.flags) take_flag(flag);
    add_defaults();
    return std::move(settings_);
  }

 private:
  [[noreturn]] void fail(YamlPlace place, std::string_view what) const {
    throw LoadError(fmt::format("{}:{}:{}: {}", name_, place.line, place.column, what));
  }
  std::string where(YamlPlace place) const {
    return fmt::format("{}:{}:{}", name_, place.line, place.column);
  }

  //   pattern, path  of the map: "nodes[]" and "nodes[2]"
  void take_map(const YamlNode& map, const std::string& pattern, const std::string& path) {
    const std::vector<std::string> known = names_below(pattern);
    for (const YamlNode& child : map.children) {
      if (std::find(known.begin(), known.end(), child.key) == known.end()) {
        fail(child.key_place, unknown_key(child.key, pattern, known));
      }
      take(child, joined(pattern, child.key), joined(path, child.key));
    }
  }

  void take(const YamlNode& node, const std::string& pattern, const std::string& path) {
    if (pattern == "nodes") return take_list(node, kNodes, kNodesMax, &settings_.num_nodes_);
    if (pattern == "coordinators") {
      return take_list(node, kCoordinators, kCoordinatorsMax, &settings_.num_coordinators_);
    }
    const bool is_section = node.kind == YamlNode::Kind::kMap && !names_below(pattern).empty();
    const Key* key = find_key(pattern);
    if (key != nullptr && !is_section) return take_value(node, *key, path);
    if (node.kind == YamlNode::Kind::kNothing) return;  // a section without keys
    if (node.kind != YamlNode::Kind::kMap) {
      fail(node.place, fmt::format("{}: expected keys and values ({})", path,
                                   fmt::join(names_below(pattern), ", ")));
    }
    take_map(node, pattern, path);
  }

  // A list of maps that each have a name: "nodes[]" or "coordinators[]".
  void take_list(const YamlNode& list, std::string_view pattern, int most, int* count) {
    const std::string section(pattern.substr(0, pattern.size() - 2));
    const std::string thing(name_of_section(std::string(pattern)));
    if (list.kind == YamlNode::Kind::kNothing) return;
    if (list.kind != YamlNode::Kind::kList) {
      fail(list.place,
           fmt::format("{}: expected a list: `- name: {}1` and so on", section, section.front()));
    }
    if (list.children.size() > static_cast<size_t>(most)) {
      fail(list.place,
           fmt::format("{}: {} of them, expected at most {}", section, list.children.size(), most));
    }
    for (const YamlNode& item : list.children) {
      const std::string path = fmt::format("{}[{}]", section, (*count)++);
      if (item.kind != YamlNode::Kind::kMap) {
        fail(item.place, fmt::format("{}: expected keys and values, `name: {}1` first", thing,
                                     section.front()));
      }
      take_map(item, std::string(pattern), path);
      if (!settings_.values_.contains(joined(path, "name"))) {
        fail(item.place, fmt::format("{} without `name`", thing));
      }
      if (pattern != kNodes) continue;
      // Whether one is needed depends on what the file is read for.
      settings_.values_.try_emplace(joined(path, "control"),
                                    Setting{{}, Origin::kDefault, where(item.place)});
    }
  }

  void take_value(const YamlNode& node, const Key& key, const std::string& path) {
    Setting setting;
    setting.origin = Origin::kFile;
    setting.where = where(node.place);
    const auto take_text = [&](const YamlNode& item) {
      if (item.kind == YamlNode::Kind::kNothing) {
        fail(item.place, fmt::format("{}: has no value: leave the key out", path));
      }
      if (item.kind != YamlNode::Kind::kText) {
        fail(item.place, fmt::format("{}: expected one value{}", path,
                                     key.is_list() ? " or a list of values" : ""));
      }
      if (Status valid = check_value(key, item.text); !valid) {
        fail(item.place, fmt::format("{}: {}", path, valid.error().message));
      }
      setting.items.push_back(item.text);
    };
    // A list of things of which only the rate is told: [{rate: 6GB/s}].
    const auto rate_of = [&](const YamlNode& item) -> const YamlNode& {
      const bool is_thing = key.type == ValueType::kRates && item.kind == YamlNode::Kind::kMap;
      if (!is_thing) return item;
      for (const YamlNode& child : item.children) {
        if (child.key != "rate") fail(child.key_place, unknown_key(child.key, path, {"rate"}));
      }
      if (item.children.empty()) fail(item.place, fmt::format("{}: expected `rate: 6GB/s`", path));
      return item.children.front();
    };
    if (node.kind == YamlNode::Kind::kList && key.is_list()) {
      for (const YamlNode& item : node.children) take_text(rate_of(item));
      if (setting.items.empty()) fail(node.place, fmt::format("{}: an empty list", path));
    } else {
      take_text(node);
    }
    settings_.values_[path] = std::move(setting);
  }

  // One value from elsewhere; a list's texts stand behind each other with commas.
  void override(const Key& key, const std::string& path, const std::string& text, Origin origin,
                const std::string& from) {
    Setting setting;
    setting.origin = origin;
    setting.where = from;
    size_t begin = 0;
    while (begin <= text.size()) {
      const size_t end = key.is_list() ? std::min(text.find(',', begin), text.size()) : text.size();
      const std::string item = text.substr(begin, end - begin);
      if (Status valid = check_value(key, item); !valid) {
        throw LoadError(fmt::format("{}: {}: {}", from, path, valid.error().message));
      }
      setting.items.push_back(item);
      begin = end + 1;
    }
    settings_.values_[path] = std::move(setting);
  }

  std::optional<int> node_named(std::string_view name) const {
    for (int n = 0; n < settings_.num_nodes_; ++n) {
      const auto found = settings_.values_.find(fmt::format("nodes[{}].name", n));
      if (found != settings_.values_.end() && found->second.text() == name) return n;
    }
    return std::nullopt;
  }

  // A name that begins like a section's, or nearly is a key's, is meant for us; ATOLL_ alone may be
  // anybody's.
  void take_environment() {
    std::map<std::string, const Key*> known;
    std::vector<std::string> names;
    for (const Key& key : keys()) {
      if (key.environment().empty()) continue;
      known[key.environment()] = &key;
      names.push_back(key.environment());
    }
    for (const auto& [name, value] : overrides_.environment) {
      const auto found = known.find(name);
      if (found == known.end()) {
        const std::string meant = nearest(name, names);
        if (meant.empty() && !begins_like_a_section(name)) continue;
        throw LoadError(
            fmt::format("{} is set in the environment and is no key of a cluster file{}", name,
                        meant.empty() ? "" : fmt::format("; did you mean {}?", meant)));
      }
      const Key& key = *found->second;
      if (!key.is_of_node()) {
        override(key, key.path, value, Origin::kEnvironment, name);
      } else if (const auto node = node_named(overrides_.node)) {
        override(key, fmt::format("nodes[{}].{}", *node, key.path.substr(8)), value,
                 Origin::kEnvironment, name);
      }
    }
  }

  void take_flag(const std::string& flag) {
    const size_t equal = flag.find('=');
    if (equal == std::string::npos || equal == 0) {
      throw LoadError(fmt::format("--set '{}': expected KEY=VALUE", flag));
    }
    const std::string path = flag.substr(0, equal), text = flag.substr(equal + 1);
    std::string pattern = path, target = path;
    if (path.starts_with("nodes.")) {
      const size_t dot = path.find('.', 6);
      const std::string name = path.substr(6, dot == std::string::npos ? dot : dot - 6);
      const auto node = node_named(name);
      if (!node || dot == std::string::npos) {
        throw LoadError(
            fmt::format("--set {}: expected nodes.NAME.KEY with a node of {}", path, name_));
      }
      pattern = fmt::format("nodes[].{}", path.substr(dot + 1));
      target = fmt::format("nodes[{}].{}", *node, path.substr(dot + 1));
    }
    const Key* key = find_key(pattern);
    if (key == nullptr || pattern == "nodes[].name") {
      std::vector<std::string> known;
      for (const Key& other : keys()) known.push_back(other.path);
      throw LoadError("--set: " + unknown_key(path, "", known));
    }
    if (!flags_taken_.insert(target).second) {
      throw LoadError(fmt::format("--set {}: given twice, expected one value", path));
    }
    override(*key, target, text, Origin::kFlag, "--set");
  }

  void add_defaults() {
    for (const Key& key : keys()) {
      if (key.is_of_coordinator()) {
        for (int n = 0; n < settings_.num_coordinators_; ++n) {
          settings_.values_.try_emplace(fmt::format("coordinators[{}].{}", n, key.path.substr(15)),
                                        Setting{{}, Origin::kDefault, "default"});
        }
        continue;
      }
      if (!key.is_of_node()) {
        if (!settings_.values_.contains(key.path)) {
          Setting setting;
          if (!key.fallback.empty()) setting.items = {key.fallback};
          setting.where = "default";
          settings_.values_[key.path] = std::move(setting);
        }
        continue;
      }
      const std::string name = key.path.substr(8);
      const auto shared = settings_.values_.find("node_defaults." + name);
      for (int n = 0; n < settings_.num_nodes_; ++n) {
        const std::string path = fmt::format("nodes[{}].{}", n, name);
        if (settings_.values_.contains(path)) continue;
        settings_.values_[path] = shared == settings_.values_.end()
                                      ? Setting{{}, Origin::kDefault, "default"}
                                      : shared->second;
      }
    }
  }

  const Overrides& overrides_;
  const std::string name_;  // of the file, in messages
  Settings settings_;
  std::set<std::string> flags_taken_;  // paths that --set has given
};

std::vector<std::pair<std::string, std::string>> Overrides::from_environment() {
  std::vector<std::pair<std::string, std::string>> variables;
  for (char** entry = environ; entry != nullptr && *entry != nullptr; ++entry) {
    const std::string_view text = *entry;
    const size_t equal = text.find('=');
    if (!text.starts_with("ATOLL_") || equal == std::string_view::npos) continue;
    variables.emplace_back(text.substr(0, equal), text.substr(equal + 1));
  }
  std::sort(variables.begin(), variables.end());
  return variables;
}

Settings Settings::parse(std::string_view text, const std::filesystem::path& file,
                         const Overrides& overrides) {
  CHECK(text.size() <= kFileBytesMax);
  return SettingsReader(file, overrides).read(text);
}

Settings Settings::read(const std::filesystem::path& file, const Overrides& overrides) {
  std::error_code error;
  const auto status = std::filesystem::status(file, error);
  if (!std::filesystem::exists(status)) {
    throw LoadError(
        fmt::format("{}: there is no such file: expected a cluster file; docs/cluster.md "
                    "shows one",
                    file.string()));
  }
  if (!std::filesystem::is_regular_file(status)) {
    throw LoadError(fmt::format("{}: not a file: expected a cluster file", file.string()));
  }
  std::ifstream in(file, std::ios::binary);
  std::string text(kFileBytesMax + 1, '\0');
  in.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (in.bad() || (!in && !in.eof())) {
    throw LoadError(fmt::format("{}: cannot be read", file.string()));
  }
  text.resize(static_cast<size_t>(in.gcount()));
  if (text.size() > kFileBytesMax) {
    throw LoadError(fmt::format("{}: more than {} KiB: not a cluster file", file.string(),
                                kFileBytesMax >> 10));
  }
  return parse(text, file, overrides);
}

const Setting& Settings::at(const std::string& path) const {
  const auto found = values_.find(path);
  CHECK(found != values_.end());
  read_[pattern_of(path)] = true;
  return found->second;
}

std::vector<std::pair<std::string, Setting>> Settings::all() const {
  std::vector<std::pair<std::string, Setting>> all;
  for (const Key& key : keys()) {
    if (key.is_of_node() || key.is_of_coordinator()) continue;
    all.emplace_back(key.path, values_.at(key.path));
  }
  for (int n = 0; n < num_coordinators_; ++n) {
    for (const Key& key : keys()) {
      if (!key.is_of_coordinator()) continue;
      const std::string path = fmt::format("coordinators[{}].{}", n, key.path.substr(15));
      if (values_.at(path).is_set()) all.emplace_back(path, values_.at(path));
    }
  }
  for (int n = 0; n < num_nodes_; ++n) {
    for (const Key& key : keys()) {
      if (!key.is_of_node()) continue;
      const std::string path = fmt::format("nodes[{}].{}", n, key.path.substr(8));
      all.emplace_back(path, values_.at(path));
    }
  }
  return all;
}

std::vector<std::string> Settings::unread() const {
  std::vector<std::string> paths;
  for (const auto& [path, setting] : values_) {
    // Each node has them from there.
    if (path.starts_with("node_defaults.")) continue;
    const std::string pattern = pattern_of(path);
    if (!read_.contains(pattern)) paths.push_back(pattern);
  }
  return paths;
}

std::string_view to_string(Origin origin) {
  switch (origin) {
    case Origin::kDefault:
      return "default";
    case Origin::kFile:
      return "file";
    case Origin::kEnvironment:
      return "environment";
    case Origin::kFlag:
      return "flag";
  }
  return "?";
}

std::string pattern_of(std::string_view path) {
  const size_t open = path.find('['), close = path.find(']');
  if (open == std::string_view::npos || close == std::string_view::npos) return std::string(path);
  return std::string(path.substr(0, open + 1)) + std::string(path.substr(close));
}

}  // namespace atl::config
