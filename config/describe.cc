#include "config/describe.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <nlohmann/json.hpp>

#include "config/keys.h"

namespace atl::config {
namespace {

using Json = nlohmann::ordered_json;

// As the parser sees it; the parser itself checks more (ranges of sizes, how keys go together).
Json schema_of_value(const Key& key) {
  const auto text = [](const char* pattern) {
    return Json{{"type", "string"}, {"pattern", pattern}};
  };
  switch (key.type) {
    case ValueType::kText:
    case ValueType::kPath:
      return {{"type", "string"}, {"minLength", 1}};
    case ValueType::kName:
      return text("^[A-Za-z0-9._-]{1,63}$");
    case ValueType::kPaths: {
      const Json one = {{"type", "string"}, {"minLength", 1}};
      return {{"anyOf", {one, {{"type", "array"}, {"items", one}, {"minItems", 1}}}}};
    }
    case ValueType::kAddress:
      return text("^(\\[[0-9A-Fa-f:.]+\\]|[A-Za-z0-9._-]+):[0-9]{1,5}$");
    case ValueType::kChoice:
      return {{"type", "string"}, {"enum", key.choices}};
    case ValueType::kDevice:
      return text("^(auto|cpu|cuda:[0-9]{1,3})$");
    case ValueType::kInteger:
      return {{"type", "integer"},
              {"minimum", static_cast<int64_t>(key.min)},
              {"maximum", static_cast<int64_t>(key.max)}};
    case ValueType::kNumber:
      return {{"type", "number"}, {"minimum", key.min}, {"maximum", key.max}};
    case ValueType::kBytes:
      return {{"type", {"string", "integer"}},
              {"pattern", "^[0-9]+(\\.[0-9]+)? ?(B|[kMGT]B|[KMGT]iB)?$"}};
    case ValueType::kDuration:
      return text("^[0-9]+(\\.[0-9]+)? ?(ms|s|min|h)$");
    case ValueType::kPorts:
      return {{"type", {"string", "integer"}}, {"pattern", "^[0-9]{1,5}(-[0-9]{1,5})?$"}};
    case ValueType::kRate:
      return text("^[0-9]+(\\.[0-9]+)? ?([kMGT]?B|[KMGT]iB|[MGT]bit)/s$");
    case ValueType::kRates: {
      const Json one = text("^[0-9]+(\\.[0-9]+)? ?([kMGT]?B|[KMGT]iB|[MGT]bit)/s$");
      const Json thing = {{"type", "object"},
                          {"additionalProperties", false},
                          {"properties", {{"rate", one}}},
                          {"required", {"rate"}}};
      const Json item = {{"anyOf", {one, thing}}};
      return {{"anyOf", {one, {{"type", "array"}, {"items", item}, {"minItems", 1}}}}};
    }
  }
  return Json::object();
}

Json schema_of_section(const std::string& section) {
  Json properties = Json::object();
  for (const std::string& name : names_below(section)) {
    const std::string path = section.empty() ? name : section + "." + name;
    if (path == "coordinators") {
      Json coordinator = schema_of_section("coordinators[]");
      coordinator["required"] = {"name"};
      properties["coordinators"] = {
          {"type", "array"}, {"maxItems", kCoordinatorsMax}, {"items", coordinator}};
    } else if (path == "nodes") {
      Json node = schema_of_section("nodes[]");
      node["required"] = {"name"};  // and `control`, but for planning
      properties["nodes"] = {{"type", "array"}, {"maxItems", kNodesMax}, {"items", node}};
    } else if (const Key* key = find_key(path)) {
      Json value = schema_of_value(*key);
      value["description"] = key->about;
      if (!key->fallback.empty()) {
        const bool is_number = key->type == ValueType::kInteger || key->type == ValueType::kNumber;
        value["default"] = is_number ? Json::parse(key->fallback) : Json(key->fallback);
      }
      // A value or a section: rules about texts say nothing about objects, and the other way round.
      if (!names_below(path).empty()) {
        const Json section_schema = schema_of_section(path);
        value["type"] = {value["type"], "object"};
        value["additionalProperties"] = false;
        value["properties"] = section_schema["properties"];
      }
      properties[name] = std::move(value);
    } else {
      properties[name] = schema_of_section(path);
    }
  }
  return {{"type", "object"}, {"additionalProperties", false}, {"properties", properties}};
}

std::string type_words(const Key& key) {
  switch (key.type) {
    case ValueType::kText:
      return "text";
    case ValueType::kName:
      return "name";
    case ValueType::kPath:
      return "path";
    case ValueType::kPaths:
      return "path or list";
    case ValueType::kAddress:
      return "HOST:PORT";
    case ValueType::kChoice:
      return fmt::format("{}", fmt::join(key.choices, ", "));
    case ValueType::kDevice:
      return "auto, cpu, cuda:N";
    case ValueType::kInteger:
      return fmt::format("{:.0f} to {:.0f}", key.min, key.max);
    case ValueType::kNumber:
      return "number";
    case ValueType::kBytes:
      return "size: `24GiB`";
    case ValueType::kDuration:
      return "time: `100ms`";
    case ValueType::kPorts:
      return "ports: `7100-7199`";
    case ValueType::kRate:
      return "rate: `250GB/s`, `100Gbit/s`";
    case ValueType::kRates:
      return "rate or list";
  }
  return "";
}

std::string value_text(const Setting& setting) {
  return setting.items.size() == 1 ? setting.text()
                                   : fmt::format("[{}]", fmt::join(setting.items, ", "));
}

}  // namespace

std::string json_schema() {
  Json schema = {{"$schema", "https://json-schema.org/draft/2020-12/schema"},
                 {"title", "Atoll's cluster file"}};
  schema.update(schema_of_section(""));
  schema["required"] = {"model"};
  return schema.dump(2) + "\n";
}

std::string markdown_table() {
  std::string table =
      "| key | values | default | what it is | environment |\n|---|---|---|---|---|\n";
  for (const Key& key : keys()) {
    // As under node_defaults, said once.
    if (key.is_of_coordinator() && key.path != "coordinators[].name") continue;
    if (key.is_of_node() && key.path != "nodes[].name" && key.path != "nodes[].control") continue;
    const std::string environment = key.path.starts_with("node_defaults.")
                                        ? find_key("nodes[]." + key.path.substr(14))->environment()
                                        : key.environment();
    table += fmt::format("| `{}` | {} | {} | {} | {} |\n", key.path, type_words(key),
                         key.fallback.empty() ? "" : "`" + key.fallback + "`", key.about,
                         environment.empty() ? "" : "`" + environment + "`");
  }
  return table;
}

std::string show_text(const Settings& settings, bool origin) {
  std::string text;
  for (const auto& [path, setting] : settings.all()) {
    if (!setting.is_set()) continue;
    const std::string line = fmt::format("{}: {}", path, value_text(setting));
    text += origin ? fmt::format("{:<48} # {}\n", line, setting.where) : line + "\n";
  }
  return text;
}

std::string show_json(const Settings& settings, bool origin) {
  Json all = Json::object();
  for (const auto& [path, setting] : settings.all()) {
    if (!setting.is_set()) continue;
    const bool is_list = find_key(pattern_of(path))->is_list() && setting.items.size() > 1;
    const Json value = is_list ? Json(setting.items) : Json(setting.text());
    all[path] = origin ? Json{{"value", value},
                              {"origin", std::string(to_string(setting.origin))},
                              {"where", setting.where}}
                       : value;
  }
  return all.dump(2) + "\n";
}

}  // namespace atl::config
