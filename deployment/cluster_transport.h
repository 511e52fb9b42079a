// How the processes of a cluster file know each other and exchange rows.
#pragma once

#include <cstddef>
#include <memory>

#include "config/cluster_config.h"
#include "transport/control/control.h"
#include "transport/data/transport.h"

namespace atl::deployment {

// Certificates of this process if the file names a folder of them, else the cluster's secret.
//   node  this process; nullptr: the coordinator
// LoadError if they can't be had.
transport::ControlSecurity cluster_security(const config::ClusterConfig& config,
                                            const config::NodeConfig* node);

// Shared memory alone on one machine, UCX's links on a network that is trusted, else TLS. Without a
// device in the file rows take the one that leads to the other machines.
//   message_bytes_max  as TransportOptions; spin likewise
std::unique_ptr<transport::Transport> make_cluster_transport(
    const config::ClusterConfig& config, const config::NodeConfig* node,
    const transport::ControlSecurity& security, size_t message_bytes_max, bool spin);

}  // namespace atl::deployment
