#include "coordinator/cluster/cluster.h"

#include <fmt/format.h>

#include "base/check.h"
#include "base/log.h"

namespace atl::coordinator {

Cluster::Cluster(transport::Transport& transport, ClusterOptions options,
                 const topology::Placement& placement, std::vector<ClusterNode> nodes)
    : options_(std::move(options)), nodes_(std::move(nodes)), silent_(nodes_.size()) {
  CHECK_EQ(static_cast<size_t>(placement.num_nodes()), nodes_.size());
  transport::Hello hello;
  hello.coordinator = options_.coordinator_name;
  hello.identity = options_.identity;
  hello.limits = options_.limits;
  hello.session = options_.session;
  hello.data_address = transport.address();
  for (size_t n = 0; n < nodes_.size(); ++n) {
    ClusterNode& node = nodes_[n];
    const auto fail = [&node](const Error& error) -> LoadError {
      return LoadError(fmt::format("expert node {}: {}", node.name, error.message));
    };
    auto reply = node.control->hello(hello);
    if (!reply) throw fail(reply.error());
    auto peer = transport.connect(reply->data_address, node.name);
    if (!peer) throw fail(peer.error());
    const std::vector<transport::TileRange> tiles = to_ranges(placement.tiles_of_node[n]);
    if (Status planned = node.control->apply_plan(options_.session, {placement.epoch, tiles});
        !planned) {
      throw fail(planned.error());
    }
    if (tiles.empty()) {
      log_info("node {} owns no tiles: there are more nodes than tiles, or its count is 0",
               node.name);
    }
    links_.push_back({node.name, *peer, placement.tiles_of_node[n]});
    replies_.push_back(std::move(*reply));
  }
}

Cluster::LoadState Cluster::load_state() {
  LoadState sum;
  sum.ready = sum.warm = true;
  for (ClusterNode& node : nodes_) {
    auto state = node.control->state(options_.session);
    if (!state) {
      throw LoadError(
          fmt::format("expert node {} while loading: {}", node.name, state.error().message));
    }
    if (state->phase == transport::NodeState::Phase::kFailed) {
      throw LoadError(fmt::format("expert node {}: {}", node.name, state->error));
    }
    sum.ready = sum.ready && state->phase == transport::NodeState::Phase::kReady;
    sum.warm = sum.warm && sum.ready && state->bytes_loaded >= state->bytes_total;
    sum.bytes_loaded += state->bytes_loaded;
    sum.bytes_total += state->bytes_total;
    sum.resident_bytes += state->resident_bytes;
  }
  return sum;
}

std::vector<Cluster::NamedStats> Cluster::stats() {
  std::vector<NamedStats> all;
  for (size_t n = 0; n < nodes_.size(); ++n) {
    auto stats = nodes_[n].control->stats(options_.session);
    if (!stats) {
      if (!silent_[n]) {
        log_warn("no statistics from node {}: {}", nodes_[n].name, stats.error().message);
      }
      silent_[n] = true;
      continue;
    }
    silent_[n] = false;
    all.push_back({nodes_[n].name, replies_[n].num_threads, std::move(*stats)});
  }
  return all;
}

void Cluster::close(Nodes nodes) {
  for (ClusterNode& node : nodes_) {
    Status closed = node.control->close_session(options_.session);
    if (closed && nodes == Nodes::kStop) closed = node.control->stop();
    if (!closed) log_debug("closing node {}: {}", node.name, closed.error().message);
  }
}

}  // namespace atl::coordinator
