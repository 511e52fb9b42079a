#include "cli/experts_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numeric>
#include <utility>

#include "base/json_reader.h"
#include "base/result.h"
#include "storage/io/file_io.h"

namespace atl::cli {
namespace {

using Json = nlohmann::ordered_json;
using Layer = ExpertsFile::Layer;

constexpr uint64_t kExpertsFileBytesMax = uint64_t{64} << 20;

class ExpertsReader {
 public:
  explicit ExpertsReader(std::string name) : name_(std::move(name)) {}

  ExpertsFile read(std::string_view text) {
    // Lists of small numbers: two bytes each here, and 32 in memory.
    const auto json = read_json(text, {.bytes_max = (size_t{1} << 20) + 18 * text.size()});
    if (!json) refuse(json.error().message);
    if (!json->is_object() || json->value("atoll_expert_usage", Json()) != 1) {
      refuse("no file of `atoll experts dump`: expected \"atoll_expert_usage\": 1");
    }
    ExpertsFile file;
    file.model = text_of(*json, "model");
    file.checkpoint = text_of(*json, "checkpoint");
    file.experts_per_token = static_cast<int64_t>(number(*json, "experts_per_token"));
    file.seconds = number(*json, "seconds");
    file.layers = layers(*json);
    if (file.layers.empty()) refuse("no layers with experts");
    file.experts = std::ssize(file.layers.front().uses);
    if (const auto windows = json->find("windows"); windows != json->end()) {
      for (const Json& window : *windows) {
        file.windows.push_back(
            {number(window, "begin_seconds"), number(window, "seconds"), layers(window)});
      }
    }
    const auto same_shape = [&](const std::vector<Layer>& layers) {
      return layers.size() == file.layers.size() &&
             std::all_of(layers.begin(), layers.end(), [&](const Layer& layer) {
               return std::ssize(layer.uses) == file.experts;
             });
    };
    bool same = same_shape(file.layers);
    for (const auto& window : file.windows) same = same && same_shape(window.layers);
    if (!same) refuse("layers of different numbers of experts");
    return file;
  }

 private:
  [[noreturn]] void refuse(const std::string& why) const { throw LoadError(name_ + ": " + why); }
  static std::string text_of(const Json& json, const char* key) {
    const auto found = json.find(key);
    return found != json.end() && found->is_string() ? found->get<std::string>() : "";
  }
  // 0 where there is none: a usage file that a node saved has uses alone.
  double number(const Json& json, const char* key) const {
    if (!json.is_object()) refuse("a window or layer that is no object");
    const auto found = json.find(key);
    if (found == json.end()) return 0;
    const double value = found->is_number() ? found->get<double>() : -1;
    if (!(value >= 0 && value < 1e18)) {
      refuse(fmt::format("\"{}\" is {}, expected a number from 0 on", key, found->dump()));
    }
    return value;
  }
  std::vector<double> numbers(const Json& json, const char* what) const {
    if (!json.is_array()) refuse(fmt::format("\"{}\" is no list", what));
    std::vector<double> values;
    for (const Json& one : json) {
      const double value = one.is_number() ? one.get<double>() : -1;
      if (!(value >= 0 && value < 1e18)) {
        refuse(fmt::format("{} in \"{}\", expected numbers from 0 on", one.dump(), what));
      }
      values.push_back(value);
    }
    return values;
  }
  std::vector<Layer> layers(const Json& json) const {
    const auto found = json.find("layers");
    if (found == json.end() || !found->is_array()) refuse("\"layers\" is no list");
    std::vector<Layer> layers;
    for (const Json& from : *found) {
      const auto count = [&](const char* key) { return static_cast<uint64_t>(number(from, key)); };
      Layer layer;
      layer.layer = static_cast<int64_t>(number(from, "layer"));
      layer.steps = count("steps");
      layer.rows = count("rows");
      layer.distinct = count("distinct");
      layer.small_steps = count("small_steps");
      layer.small_rows = count("small_rows");
      layer.small_distinct = count("small_distinct");
      layer.uses = numbers(from.value("uses", Json()), "uses");
      layer.follows = follows(from, number(json, "experts_per_token"));
      layers.push_back(std::move(layer));
    }
    return layers;
  }
  std::vector<double> follows(const Json& layer, double experts_per_token) const {
    std::vector<double> all;
    const auto found = layer.find("followers");
    if (found == layer.end() || !found->is_array()) return all;
    for (const Json& of_expert : *found) {
      const std::vector<double> list = numbers(of_expert, "followers");
      const bool is_told = list.size() >= 3 && list[0] > 0;
      all.push_back(is_told ? std::min(1.0, list[2] * experts_per_token / list[0]) : 0);
    }
    return all;
  }

  const std::string name_;
};

}  // namespace

ExpertsFile parse_experts_file(std::string_view text, const std::string& name) {
  return ExpertsReader(name).read(text);
}

ExpertsFile read_experts_file(const std::filesystem::path& path) {
  return parse_experts_file(storage::read_whole_file(path, kExpertsFileBytesMax), path.string());
}

double hit_rate(const std::vector<Layer>& ranked, const std::vector<Layer>& used, double share) {
  std::vector<std::pair<double, double>> pairs;  // (rank by, uses)
  double all = 0;
  for (size_t place = 0; place < ranked.size(); ++place) {
    for (size_t expert = 0; expert < ranked[place].uses.size(); ++expert) {
      pairs.emplace_back(ranked[place].uses[expert], used[place].uses[expert]);
      all += pairs.back().second;
    }
  }
  if (all == 0) return 1;
  std::stable_sort(pairs.begin(), pairs.end(),
                   [](const auto& a, const auto& b) { return a.first > b.first; });
  const auto held = std::llround(share * static_cast<double>(pairs.size()));
  double hits = 0;
  for (int64_t i = 0; i < std::min<int64_t>(held, std::ssize(pairs)); ++i) {
    hits += pairs[static_cast<size_t>(i)].second;
  }
  return hits / all;
}

}  // namespace atl::cli
