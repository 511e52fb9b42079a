// The cluster file: YAML, its keys and what they say together. A file is either refused in one line
// or says the same when its values are given again.
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/check.h"
#include "base/result.h"
#include "config/cluster_config.h"
#include "config/describe.h"
#include "config/settings.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace atl;
  if (size > config::kFileBytesMax) return 0;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  try {
    const config::Settings settings = config::Settings::parse(text, "/c/cluster.yaml", {});
    CHECK(!config::show_text(settings, true).empty());
    const config::ClusterConfig cluster = config::make_cluster_config(settings);
    for (const config::NodeConfig& node : cluster.nodes) {
      CHECK(cluster.node(node.name) == &node);
      CHECK(config::parse_address(node.control.text()).value() == node.control);
    }
    (void)config::not_built(cluster);
    (void)config::tiles_of_nodes(cluster, 16);
  } catch (const LoadError& error) {
    const std::string_view what = error.what();
    CHECK(!what.empty());
  }
  return 0;
}
