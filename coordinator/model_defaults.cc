// load_model_defaults() of coordinator/api.h.
#include <fmt/format.h>

#include <cmath>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "base/result.h"
#include "coordinator/api.h"

namespace atl::coordinator {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

std::string read_text(const fs::path& file) {
  std::ifstream in(file, std::ios::binary);
  if (!in) throw LoadError(fmt::format("{}: can't be read", file.string()));
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

// An empty object if there is no such file.
Json read_json(const fs::path& file) {
  if (!fs::exists(file)) return Json::object();
  Json json = Json::parse(read_text(file), nullptr, false);
  if (!json.is_object()) throw LoadError(fmt::format("{}: not a JSON object", file.string()));
  return json;
}

std::optional<float> read_number(const Json& json, const char* key, double max,
                                 const fs::path& file) {
  const auto it = json.find(key);
  if (it == json.end() || it->is_null()) return std::nullopt;
  const double value = it->is_number() ? it->get<double>() : -1;
  if (!(value >= 0 && value <= max)) {
    throw LoadError(fmt::format("{}: {}: expected a number from 0 to {}, found {}", file.string(),
                                key, max, it->dump()));
  }
  return static_cast<float>(value);
}

std::string read_template(const fs::path& model_dir) {
  const fs::path own_file = model_dir / "chat_template.jinja";
  if (fs::exists(own_file)) return read_text(own_file);
  const Json config = read_json(model_dir / "tokenizer_config.json");
  const auto it = config.find("chat_template");
  if (it == config.end()) return {};
  if (it->is_string()) return it->get<std::string>();
  if (!it->is_array()) return {};
  for (const Json& named : *it) {
    if (named.is_object() && named.value("name", "") == "default" && named.contains("template") &&
        named["template"].is_string()) {
      return named["template"].get<std::string>();
    }
  }
  return {};
}

}  // namespace

ModelDefaults load_model_defaults(const fs::path& model_dir) {
  ModelDefaults defaults;
  const fs::path file = model_dir / "generation_config.json";
  const Json config = read_json(file);
  defaults.temperature = read_number(config, "temperature", 100, file);
  defaults.top_p = read_number(config, "top_p", 1, file);
  if (defaults.top_p == 0.0f) defaults.top_p.reset();  // says nothing that can be sampled
  defaults.chat_template = read_template(model_dir);
  return defaults;
}

}  // namespace atl::coordinator
