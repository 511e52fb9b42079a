#include "config/write_tiles.h"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "base/result.h"
#include "config/yaml_tree.h"

namespace atl::config {
namespace {

struct Edit {
  size_t offset = 0, length = 0;  // what is replaced
  std::string text;
};

size_t offset_of(std::string_view text, YamlPlace place) {
  size_t offset = 0;
  for (int line = 1; line < place.line && offset < text.size(); ++line) {
    offset = std::min(text.find('\n', offset), text.size() - 1) + 1;
  }
  return std::min(offset + static_cast<size_t>(place.column - 1), text.size());
}

// Bytes of a scalar as it is written, its quotes included.
size_t scalar_length(std::string_view text, size_t offset, const YamlNode& scalar) {
  if (offset >= text.size()) return 0;
  const char quote = text[offset];
  if (quote != '"' && quote != '\'') return scalar.text.size();
  for (size_t i = offset + 1; i < text.size(); ++i) {
    if (quote == '"' && text[i] == '\\')
      ++i;
    else if (text[i] == quote && i + 1 < text.size() && quote == '\'' && text[i + 1] == quote)
      ++i;
    else if (text[i] == quote)
      return i + 1 - offset;
  }
  return text.size() - offset;
}

const YamlNode* child(const YamlNode& map, std::string_view key) {
  for (const YamlNode& one : map.children) {
    if (one.key == key) return &one;
  }
  return nullptr;
}

// Behind the name: `, tiles: 4` in braces, else a line of its own.
Edit insertion(std::string_view text, const YamlNode& node, const YamlNode& name, int tiles) {
  const size_t begin = offset_of(text, name.place);
  const size_t behind = begin + scalar_length(text, begin, name);
  if (text[offset_of(text, node.place)] == '{')
    return {behind, 0, fmt::format(", tiles: {}", tiles)};
  const size_t line_end = std::min(text.find('\n', behind), text.size());
  const std::string indent(static_cast<size_t>(name.key_place.column - 1), ' ');
  return {line_end, 0, fmt::format("\n{}tiles: {}", indent, tiles)};
}

}  // namespace

std::string with_tiles(std::string_view text, const std::string& name,
                       const std::map<std::string, int>& tiles) {
  const YamlNode root = read_yaml(text, name);
  const YamlNode* nodes = child(root, "nodes");
  std::vector<Edit> edits;
  size_t found = 0;
  for (const YamlNode& node : nodes == nullptr ? std::vector<YamlNode>() : nodes->children) {
    const YamlNode* node_name = child(node, "name");
    const auto planned = tiles.find(node_name == nullptr ? "" : node_name->text);
    if (planned == tiles.end()) continue;
    ++found;
    const YamlNode* old = child(node, "tiles");
    if (old == nullptr) {
      edits.push_back(insertion(text, node, *node_name, planned->second));
    } else {
      const size_t offset = offset_of(text, old->place);
      edits.push_back({offset, scalar_length(text, offset, *old), std::to_string(planned->second)});
    }
  }
  if (found != tiles.size()) {
    throw LoadError(
        fmt::format("{}: has {} of the {} planned nodes: expected all of them under "
                    "`nodes`",
                    name, found, tiles.size()));
  }
  std::sort(edits.begin(), edits.end(),
            [](const Edit& a, const Edit& b) { return a.offset > b.offset; });
  std::string result(text);
  for (const Edit& edit : edits) result.replace(edit.offset, edit.length, edit.text);
  return result;
}

}  // namespace atl::config
