// load_model_defaults() of coordinator/api/api.h.
#include <fmt/format.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "base/json_reader.h"
#include "base/result.h"
#include "coordinator/api/api.h"
#include "storage/io/file_io.h"

namespace atl::coordinator {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr uint64_t kFileBytesMax = 1 << 20;  // published ones have some hundred

// An empty object if there is no such file.
Json read_config(const fs::path& file) {
  if (!fs::exists(file)) return Json::object();
  const std::string text = storage::read_whole_file(file, kFileBytesMax);
  const auto json = read_json(text, bounds_of_file(text.size()));
  if (!json)
    throw LoadError(fmt::format("{}: not a JSON object: {}", file.string(), json.error().message));
  if (!json->is_object()) throw LoadError(fmt::format("{}: not a JSON object", file.string()));
  return *json;
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

}  // namespace

ModelDefaults load_model_defaults(const fs::path& model_dir) {
  ModelDefaults defaults;
  const fs::path file = model_dir / "generation_config.json";
  const Json config = read_config(file);
  defaults.temperature = read_number(config, "temperature", 100, file);
  defaults.top_p = read_number(config, "top_p", 1, file);
  if (defaults.top_p == 0.0f) defaults.top_p.reset();  // says nothing that can be sampled
  return defaults;
}

}  // namespace atl::coordinator
