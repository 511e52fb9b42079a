// A YAML document as a tree of texts with their places, whoever wrote it: bounded in depth and
// number of values; aliases, anchors and tags are refused, since they can make little text much.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace atl::config {

struct YamlPlace {
  int line = 1, column = 1;
};

struct YamlNode {
  enum class Kind : uint8_t { kNothing, kText, kMap, kList };
  Kind kind = Kind::kNothing;
  YamlPlace place;
  std::string key;  // if it is in a map
  YamlPlace key_place;
  std::string text;                // kText
  std::vector<YamlNode> children;  // kMap, kList; no key twice
};

inline constexpr int kYamlDepthMax = 8;
inline constexpr size_t kYamlValuesMax = 20'000;
inline constexpr size_t kYamlTextMax = 4096;  // bytes of one value

// LoadError "name:LINE:COLUMN: what". An empty document is an empty map.
YamlNode read_yaml(std::string_view text, const std::string& name);

}  // namespace atl::config
