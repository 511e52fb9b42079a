// The coordinator's admin address: what `atoll cluster` speaks to. HTTP on loopback; whoever can
// open a connection on this machine may use it, but no web page of a browser there.
#pragma once

#include <functional>
#include <memory>
#include <thread>

#include "base/clock.h"
#include "config/cluster_config.h"
#include "coordinator/cluster/cluster.h"
#include "coordinator/cluster/cluster_snapshot.h"
#include "deployment/deployment.h"
#include "http/http_server.h"

namespace atl::cli {

// Paths: GET /cluster; POST /cluster/drain and /cluster/resume with {"node": NAME};
// POST /cluster/reload. Answers are JSON; what can't be done is {"error": WHY}.
class AdminServer {
 public:
  // Listens until destroyed, on a thread of its own, and answers 503 until begin(). LoadError if it
  // can't listen.
  AdminServer(const config::Address& address, std::string cluster, const Clock& clock);
  ~AdminServer();
  // Any thread. Borrowed; they outlive this.
  //   snapshot  any thread
  void begin(deployment::Deployment& deployment,
             std::function<coordinator::ClusterSnapshot()> snapshot);

 private:
  void status(http::HttpExchange& exchange) const;
  using Change = Status (coordinator::Cluster::*)(const std::string& node);
  void change(http::HttpExchange& exchange, Change change);
  void reload(http::HttpExchange& exchange);

  const std::string cluster_;
  deployment::Deployment* deployment_ = nullptr;  // the server's thread, as the next
  std::function<coordinator::ClusterSnapshot()> snapshot_;
  http::HttpServer server_;
  std::thread thread_;
};

// A POST without this header is refused: a browser sends it to no other place than its own.
inline constexpr const char* kAdminHeader = "X-Atoll-Admin";

}  // namespace atl::cli
