// Which nodes a deployment has and which tiles they are to keep: room, standbys, a file that is
// read again.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <map>

#include "base/log.h"
#include "deployment/deployment.h"

namespace atl::deployment {

// How many tiles of every expert each node has room for that is planned these: what its budget
// holds, or, without one, these and what is always spare. As far as can be told from here: a node's
// own copy of the model may take other buffers to read.
std::vector<int> Deployment::rooms(const std::vector<std::vector<int>>& tiles,
                                   const config::ClusterConfig* config) const {
  std::vector<int> rooms;
  for (size_t n = 0; n < tiles.size(); ++n) {
    MemoryRequest request = memory_request();
    if (dials_nodes()) request.memory.ram_budget = config->nodes[n].ram_bytes;
    rooms.push_back(room_of_node(*model_, request, tiles[n]));
  }
  return rooms;
}

void Deployment::add_standbys(topology::Placement* placement,
                              const config::ClusterConfig* config) const {
  if (options_.redundancy <= 1) return;
  std::vector<int> room = rooms(placement->tiles_of_node, config);
  for (size_t n = 0; n < room.size(); ++n) {
    const bool has_budget = dials_nodes() ? config->nodes[n].ram_bytes.has_value()
                                          : options_.memory.ram_budget.has_value();
    if (!has_budget) room[n] = topology::kRoomForAll;  // it takes what it is planned
  }
  placement->standby_of_node =
      topology::standby_tiles(placement->tiles_of_node, options_.redundancy, room);
  const topology::Redundancy reached = topology::redundancy_of(*placement, options_.redundancy);
  if (reached.num_full == reached.num_tiles) {
    return log_info("redundancy {}: all {} tiles of an expert are kept by {} nodes",
                    options_.redundancy, reached.num_tiles, options_.redundancy);
  }
  log_warn("redundancy {}: of {} tiles of an expert {} are kept by {} nodes and {} by one: {}",
           options_.redundancy, reached.num_tiles, reached.num_full, options_.redundancy,
           reached.num_tiles - reached.num_doubled,
           placement->tiles_of_node.size() < static_cast<size_t>(options_.redundancy)
               ? "there are too few nodes"
               : "nodes have no room for more (`ram`, --ram-budget)");
}

namespace {

// A key that the file has of each coordinator, as the one of this name sees it: "" if it is
// another's.
std::string key_for(const std::string& path, const config::Settings& settings,
                    std::string_view coordinator) {
  if (!path.starts_with("coordinators[")) return path;
  const size_t end = path.find(']') + 1;
  const bool is_own = settings.at(path.substr(0, end) + ".name").text() == coordinator;
  return is_own ? "coordinators[]" + path.substr(end) : "";
}

// Values that need another coordinator, by key; nodes are taken as they come.
std::vector<std::string> changed_keys(const config::Settings& before, const config::Settings& after,
                                      std::string_view coordinator) {
  std::map<std::string, std::vector<std::string>> values;
  for (const auto& [path, setting] : before.all()) {
    values[key_for(path, before, coordinator)] = setting.items;
  }
  std::vector<std::string> changed;
  for (const auto& [path, setting] : after.all()) {
    const std::string key = key_for(path, after, coordinator);
    if (key.empty() || key.starts_with("node")) continue;
    if (values[key] != setting.items) changed.push_back(path);
  }
  return changed;
}

}  // namespace

// Places in the source and in the cluster are the same: a node that goes leaves its place empty,
// and takes it again if it comes back.
Deployment::Reload Deployment::reload() {
  if (dialled_ == nullptr) {  // so has every model without experts
    throw LoadError("there is nothing to reload: the coordinator has no cluster file with nodes");
  }
  const config::Settings settings = options_.read_cluster_file();
  const config::ClusterConfig config = config::make_cluster_config(
      settings, config::Purpose::kServe, options_.cluster->coordinator.name);
  config::require_built(config);
  if (config.nodes.empty())
    throw LoadError("the cluster file has no nodes any more: nothing changes");
  const int num_tiles = kernels::num_tiles(model_->config.moe_intermediate_size);
  topology::Placement placement =
      topology::placement_from_counts(num_tiles, config::tiles_of_nodes(config, num_tiles));
  add_standbys(&placement, &config);
  const std::vector<int> room = rooms(placement.kept_by_node(), &config);
  Reload report;
  if (settings_) report.needs_restart = changed_keys(*settings_, settings, config.coordinator.name);
  std::vector<coordinator::Cluster::Planned> planned;
  std::vector<coordinator::Cluster::NodeStatus> status = cluster_->status();
  for (size_t n = 0; n < status.size(); ++n) {
    planned.emplace_back().is_removed = true;
    if (config.node(status[n].name) == nullptr && !status[n].is_removed) {
      report.removed.push_back(status[n].name);
    }
  }
  for (size_t c = 0; c < config.nodes.size(); ++c) {
    const config::NodeConfig& node = config.nodes[c];
    size_t n = 0;
    while (n < status.size() && status[n].name != node.name) ++n;
    const std::string address = node.control.text();
    if (n == status.size()) {
      status.emplace_back().name = node.name;
      planned.emplace_back();
      report.added.push_back(node.name);
    } else if (status[n].is_removed) {
      report.added.push_back(node.name);
    } else if (dialled_->address(static_cast<int>(n)) != address) {
      planned[n].is_moved = true;
      report.moved.push_back(node.name);
    }
    dialled_->set(static_cast<int>(n), {node.name, address});
    planned[n].is_removed = false;
    planned[n].tiles = placement.tiles_of_node[c];
    if (!placement.standby_of_node.empty()) planned[n].standby = placement.standby_of_node[c];
    planned[n].room = room[c];
  }
  cluster_->set_nodes(planned);
  log_info("reloaded {}: added [{}], removed [{}], moved [{}]", config.file.filename().string(),
           fmt::join(report.added, ", "), fmt::join(report.removed, ", "),
           fmt::join(report.moved, ", "));
  return report;
}

}  // namespace atl::deployment
