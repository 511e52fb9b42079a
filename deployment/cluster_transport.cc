#include "deployment/cluster_transport.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <set>
#include <string>

#include "base/log.h"
#include "deployment/cluster_secret.h"

namespace atl::deployment {
namespace {

bool is_same_host(const sockaddr* a, const sockaddr* b) {
  if (a == nullptr || a->sa_family != b->sa_family) return false;
  if (a->sa_family == AF_INET) {
    return reinterpret_cast<const sockaddr_in*>(a)->sin_addr.s_addr ==
           reinterpret_cast<const sockaddr_in*>(b)->sin_addr.s_addr;
  }
  return a->sa_family == AF_INET6 &&
         std::memcmp(&reinterpret_cast<const sockaddr_in6*>(a)->sin6_addr,
                     &reinterpret_cast<const sockaddr_in6*>(b)->sin6_addr, 16) == 0;
}

// The interface with this address of our own; "": none.
std::string interface_of(const sockaddr* own) {
  ifaddrs* all = nullptr;
  if (::getifaddrs(&all) != 0) return "";
  std::string name;
  for (const ifaddrs* one = all; one != nullptr && name.empty(); one = one->ifa_next) {
    if (is_same_host(one->ifa_addr, own)) name = one->ifa_name;
  }
  ::freeifaddrs(all);
  return name;
}

// The interface that packets to this address leave by; "": it isn't known. Sends nothing: a UDP
// socket that is connected has chosen its way.
std::string interface_towards(const config::Address& address) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_DGRAM;
  addrinfo* found = nullptr;
  if (::getaddrinfo(address.host.c_str(), "9", &hints, &found) != 0) return "";
  std::string name;
  for (const addrinfo* one = found; one != nullptr && name.empty(); one = one->ai_next) {
    const int fd = ::socket(one->ai_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0) continue;
    sockaddr_storage own{};
    socklen_t size = sizeof own;
    if (::connect(fd, one->ai_addr, one->ai_addrlen) == 0 &&
        ::getsockname(fd, reinterpret_cast<sockaddr*>(&own), &size) == 0) {
      name = interface_of(reinterpret_cast<const sockaddr*>(&own));
    }
    ::close(fd);
  }
  ::freeaddrinfo(found);
  return name;
}

// LoadError if it is an interface's name and there is none that is up: UCX would go on without a
// network. Names with a port (mlx5_0:1) are UCX's own.
void require_interface(const std::string& name) {
  if (name.empty() || name.find_first_of(":,") != std::string::npos) return;
  ifaddrs* all = nullptr;
  if (::getifaddrs(&all) != 0) return;
  bool is_there = false, is_up = false;
  std::set<std::string> names;
  for (const ifaddrs* one = all; one != nullptr; one = one->ifa_next) {
    names.insert(one->ifa_name);
    if (name != one->ifa_name) continue;
    is_there = true;
    is_up = (one->ifa_flags & IFF_UP) != 0 && (one->ifa_flags & IFF_RUNNING) != 0;
  }
  ::freeifaddrs(all);
  if (is_there && is_up) return;
  throw LoadError(fmt::format("network device {}: {}", name,
                              is_there ? "it is down or has no link"
                                       : fmt::format("there is none on this machine: expected one "
                                                     "of {}",
                                                     fmt::join(names, ", "))));
}

// Of rows, as UCX names it; "": UCX's choice.
std::string device_of(const config::ClusterConfig& config, const config::NodeConfig* node) {
  if (node != nullptr && !node->device.empty()) return node->device;
  if (!config.network.device.empty()) return config.network.device;
  for (const config::NodeConfig& other : config.nodes) {
    if (other.control.is_loopback() || (node != nullptr && &other != node)) continue;
    const std::string name = interface_towards(other.control);
    if (name.empty()) continue;
    log_debug("rows take network device {}: it leads to {}", name, other.control.text());
    return name;
  }
  return "";
}

}  // namespace

transport::ControlSecurity cluster_security(const config::ClusterConfig& config,
                                            const config::NodeConfig* node) {
  transport::ControlSecurity security;
  security.coordinators = config.coordinator_names;
  if (config.security.keys.empty()) {
    security.secret = cluster_secret(config.security.secret_file);
  } else {
    security.keys = transport::TlsKeys::load(
        config.security.keys, node != nullptr ? node->name : config.coordinator.name);
  }
  return security;
}

std::unique_ptr<transport::Transport> make_cluster_transport(
    const config::ClusterConfig& config, const config::NodeConfig* node,
    const transport::ControlSecurity& security, size_t message_bytes_max, bool spin) {
  const transport::PortRange ports{config.network.ports.first, config.network.ports.last};
  if (config.network.trust == config::Trust::kEncrypted) {
    transport::TlsOptions options;
    options.keys = security.keys;
    if (node != nullptr) {
      options.listen = config::Address{node->control.host, 0}.text();
      options.peers = config.coordinator_names;
    }
    options.ports = ports;
    options.spin = spin;
    options.message_bytes_max = message_bytes_max;
    return transport::make_tls_transport(options);
  }
  transport::UcxOptions options;
  const std::string& kind = config.network.transport;
  const bool on_one_machine =
      std::all_of(config.nodes.begin(), config.nodes.end(),
                  [](const config::NodeConfig& other) { return other.control.is_loopback(); });
  // Processes of one machine need no port that others could reach.
  options.kind = kind == "tcp" ? transport::TransportKind::kTcp
                 : kind == "shm" || (kind == "auto" && on_one_machine)
                     ? transport::TransportKind::kShm
                     : transport::TransportKind::kAuto;
  options.net_device = device_of(config, node);
  if (options.kind != transport::TransportKind::kShm) require_interface(options.net_device);
  options.ports = ports;
  options.spin = spin;
  options.message_bytes_max = message_bytes_max;
  return transport::make_ucx_transport(options);
}

}  // namespace atl::deployment
