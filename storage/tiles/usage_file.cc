#include "storage/tiles/usage_file.h"

#include <fmt/format.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "base/check.h"
#include "base/json_reader.h"
#include "base/units.h"
#include "storage/io/file_io.h"

namespace atl::storage {
namespace {

using Json = nlohmann::ordered_json;

constexpr uint64_t kFileBytesMax = 64 * kMiB;
constexpr int kVersion = 1;

[[noreturn]] void refuse(const std::filesystem::path& path, const std::string& why) {
  throw LoadError(
      fmt::format("{}: {}: remove the file or name another one with --usage-file or --usage",
                  path.string(), why));
}

}  // namespace

std::vector<double> read_usage_file(const std::filesystem::path& path, const ExpertCatalog& catalog,
                                    const std::string& checkpoint_fingerprint) {
  const std::string text = read_whole_file(path, kFileBytesMax);
  // Lists of small numbers: two bytes each here, and 32 in memory.
  const auto read = read_json(text, {.bytes_max = (size_t{1} << 20) + 18 * text.size()});
  if (!read) {
    refuse(path, fmt::format("not an expert usage file of version {}: {}", kVersion,
                             read.error().message));
  }
  const Json& file = *read;
  if (!file.is_object() || file.value("atoll_expert_usage", Json()) != kVersion) {
    refuse(path, fmt::format("not an expert usage file of version {}", kVersion));
  }
  if (const Json found = file.value("checkpoint", Json()); found != checkpoint_fingerprint) {
    refuse(path, fmt::format("counts the experts of checkpoint {}, expected \"{}\"", found.dump(),
                             checkpoint_fingerprint));
  }
  const auto found = file.find("layers");
  const Json& layers = found == file.end() ? Json::array() : *found;
  const auto experts = static_cast<size_t>(catalog.n_routed_experts);
  std::vector<double> uses(catalog.moe_layers.size() * experts, 0);
  if (!layers.is_array()) refuse(path, "\"layers\" is no list");
  for (const Json& entry : layers) {
    const bool whole = entry.is_object() && entry.contains("layer") && entry.contains("uses");
    if (!whole) refuse(path, "a layer without \"layer\" or \"uses\"");
    const Json& layer = entry["layer"];
    const Json& counts = entry["uses"];
    if (!layer.is_number_integer() || !counts.is_array() || counts.size() != experts) {
      refuse(path, fmt::format("a layer without a number or without {} uses", experts));
    }
    for (size_t place = 0; place < catalog.moe_layers.size(); ++place) {
      if (layer != catalog.moe_layers[place]) continue;
      for (size_t expert = 0; expert < experts; ++expert) {
        const Json& count = counts[expert];
        const double value = count.is_number() ? count.get<double>() : -1;
        if (!(value >= 0 && std::isfinite(value))) {
          refuse(path, fmt::format("uses of expert {}/{} are {}, expected a number from 0 on",
                                   catalog.moe_layers[place], expert, count.dump()));
        }
        uses[place * experts + expert] = value;
      }
    }
  }
  return uses;
}

void write_usage_file(const std::filesystem::path& path, const ExpertCatalog& catalog,
                      const std::string& checkpoint_fingerprint, const std::vector<double>& uses) {
  const auto experts = static_cast<size_t>(catalog.n_routed_experts);
  CHECK_EQ(uses.size(), catalog.moe_layers.size() * experts);
  Json layers = Json::array();
  for (size_t place = 0; place < catalog.moe_layers.size(); ++place) {
    Json counts = Json::array();
    for (size_t expert = 0; expert < experts; ++expert) {
      counts.push_back(std::round(uses[place * experts + expert] * 1e4) / 1e4);
    }
    layers.push_back({{"layer", catalog.moe_layers[place]}, {"uses", std::move(counts)}});
  }
  const Json file = {{"atoll_expert_usage", kVersion},
                     {"checkpoint", checkpoint_fingerprint},
                     {"layers", std::move(layers)}};
  write_file_atomically(path, file.dump() + "\n");
}

}  // namespace atl::storage
