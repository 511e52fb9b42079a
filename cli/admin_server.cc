#include "cli/admin_server.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "base/json_reader.h"

namespace atl::cli {
namespace {

using Json = nlohmann::ordered_json;

http::HttpOptions options_of(const config::Address& address) {
  http::HttpOptions options;
  options.address = address.host == "localhost" ? "127.0.0.1" : address.host;
  options.port = address.port;
  options.connections_max = 64;
  options.body_bytes_max = 4096;
  options.bodies_bytes_max = 64 * 4096;
  options.admit = [](const http::HttpRequest& request) -> std::optional<http::HttpResponse> {
    if (request.method == "GET" || !request.header(kAdminHeader).empty()) return std::nullopt;
    return http::HttpResponse{.status = 403,
                              .body = R"({"error": "the header X-Atoll-Admin is missing"})"};
  };
  return options;
}

void answer(http::HttpExchange& exchange, int status, const Json& json) {
  exchange.respond(
      {.status = status, .body = json.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n"});
}

void answer_error(http::HttpExchange& exchange, const std::string& why) {
  answer(exchange, 400, {{"error", why}});
}

}  // namespace

AdminServer::AdminServer(const config::Address& address, std::string cluster, const Clock& clock)
    : cluster_(std::move(cluster)), server_(options_of(address), clock) {
  const auto route = [this](const char* method, const char* path,
                            std::function<void(http::HttpExchange&)> handle) {
    server_.route(method, path, [this, handle = std::move(handle)](auto exchange) {
      if (deployment_ != nullptr) return handle(*exchange);
      answer(*exchange, 503, {{"error", "the coordinator is loading and waits for its nodes"}});
    });
  };
  route("GET", "/cluster", [this](auto& exchange) { status(exchange); });
  route("POST", "/cluster/drain",
        [this](auto& exchange) { change(exchange, &coordinator::Cluster::drain); });
  route("POST", "/cluster/resume",
        [this](auto& exchange) { change(exchange, &coordinator::Cluster::resume); });
  route("POST", "/cluster/reload", [this](auto& exchange) { reload(exchange); });
  thread_ = std::thread([this] { server_.run(); });
}

void AdminServer::begin(deployment::Deployment& deployment,
                        std::function<coordinator::ClusterSnapshot()> snapshot) {
  server_.post([this, &deployment, snapshot = std::move(snapshot)]() mutable {
    deployment_ = &deployment;
    snapshot_ = std::move(snapshot);
  });
}

AdminServer::~AdminServer() {
  server_.stop();
  thread_.join();
}

void AdminServer::status(http::HttpExchange& exchange) const {
  const coordinator::ClusterSnapshot snapshot = snapshot_();
  Json nodes = Json::array();
  for (const coordinator::ClusterSnapshot::Node& node : snapshot.nodes) {
    Json one = {{"name", node.name},       {"state", node.state},
                {"tiles", node.num_tiles}, {"standby", node.num_standby},
                {"losses", node.losses},   {"restarts", node.restarts}};
    if (!node.lost_because.empty()) one["why"] = node.lost_because;
    if (node.stats_known && !node.stats.links.empty()) one["links"] = node.stats.links;
    nodes.push_back(std::move(one));
  }
  answer(exchange, 200,
         {{"cluster", cluster_}, {"epoch", snapshot.epoch.value}, {"nodes", std::move(nodes)}});
}

void AdminServer::change(http::HttpExchange& exchange, Change change) {
  const auto body = read_json(exchange.request().body, {.depth_max = 4, .bytes_max = 64 << 10});
  if (!body || !body->is_object() || !body->contains("node") || !(*body)["node"].is_string()) {
    return answer_error(exchange, R"(expected {"node": NAME})");
  }
  coordinator::Cluster* const cluster = deployment_->cluster();
  if (cluster == nullptr) {
    return answer_error(exchange, "there are no nodes: the model has no routed experts");
  }
  const Status changed = (cluster->*change)((*body)["node"].get<std::string>());
  if (!changed) return answer_error(exchange, changed.error().message);
  status(exchange);
}

void AdminServer::reload(http::HttpExchange& exchange) {
  try {
    const deployment::Deployment::Reload report = deployment_->reload();
    answer(exchange, 200,
           {{"added", report.added},
            {"removed", report.removed},
            {"moved", report.moved},
            {"needs_restart", report.needs_restart}});
  } catch (const LoadError& error) {
    answer_error(exchange, error.what());
  }
}

}  // namespace atl::cli
