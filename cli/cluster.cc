// atoll cluster: asks and tells a running coordinator about its nodes, at its admin address.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/json_reader.h"
#include "cli/admin_server.h"
#include "cli/cluster_file_option.h"
#include "cli/commands.h"
#include "cli/output.h"
#include "cli/table.h"
#include "http/http_client.h"

namespace atl::cli {
namespace {

using Json = nlohmann::ordered_json;

struct ClusterOptions {
  ClusterFileOption file;
  std::string node;
  bool json = false;
};

// LoadError: nobody answers there, or what it says can't be done.
Json ask(const ClusterOptions& options, const std::string& method, const std::string& path,
         const std::string& body) {
  const config::ClusterConfig config = options.file.load_for_coordinator();
  if (!config.coordinator.admin) {
    throw LoadError(fmt::format(
        "{}: no coordinator.admin: expected the address where the coordinator answers, such as "
        "127.0.0.1:7900; it takes one when it starts",
        config.file.filename().string()));
  }
  const config::Address& admin = *config.coordinator.admin;
  http::HttpClientOptions client_options;
  client_options.connect_timeout = std::chrono::seconds(5);
  // Looking takes no time; draining and reloading may plan first.
  client_options.silence_timeout = std::chrono::seconds(method == "GET" ? 5 : 30);
  client_options.body_bytes_max = 4 << 20;
  http::HttpClient client({admin.host, admin.port, ""}, client_options);
  const auto answer = client.ask({.method = method,
                                  .path = path,
                                  .headers = {{kAdminHeader, "1"}},
                                  .body = body,
                                  .timeout = std::chrono::seconds(60)});
  if (!answer) {
    const std::string which =
        options.file.coordinator.empty() ? "" : " --coordinator " + options.file.coordinator;
    throw LoadError(
        fmt::format("coordinator at {}: {}; does `atoll serve --config {}{}` run, and answer?",
                    admin.text(), answer.error().message, options.file.path.string(), which));
  }
  auto json = read_json(answer->body, {});
  if (!json || !json->is_object()) {
    throw LoadError(fmt::format("coordinator at {}: answered something else than JSON (status {})",
                                admin.text(), answer->status));
  }
  if (answer->status != 200) {
    throw LoadError(json->contains("error") && (*json)["error"].is_string()
                        ? (*json)["error"].get<std::string>()
                        : fmt::format("status {}", answer->status));
  }
  return std::move(*json);
}

std::string status_text(const Json& status) {
  Table table({{"node"},
               {"state"},
               {"tiles", Align::kRight},
               {"standby", Align::kRight},
               {"losses", Align::kRight},
               {"links"},
               {"why"}});
  for (const Json& node : status.at("nodes")) {
    table.add_row({node.at("name").get<std::string>(), node.at("state").get<std::string>(),
                   std::to_string(node.at("tiles").get<int>()),
                   std::to_string(node.value("standby", 0)),
                   std::to_string(node.at("losses").get<uint64_t>()), node.value("links", ""),
                   node.value("why", "")});
  }
  return fmt::format("cluster {}, epoch {}\n{}", status.at("cluster").get<std::string>(),
                     status.at("epoch").get<uint64_t>(), table.to_string(""));
}

void show(const ClusterOptions& options, const Json& status) {
  write_stdout(options.json ? status.dump() + "\n" : status_text(status));
}

std::string reload_text(const Json& report) {
  std::string text;
  for (const char* what : {"added", "removed", "moved"}) {
    for (const Json& name : report.at(what)) {
      text += fmt::format("{} {}\n", what, name.get<std::string>());
    }
  }
  return text.empty() ? "the nodes are the same\n" : text;
}

void reload(const ClusterOptions& options) {
  const Json report = ask(options, "POST", "/cluster/reload", "{}");
  write_stdout(options.json ? report.dump() + "\n" : reload_text(report));
  const auto not_taken = report.at("needs_restart").get<std::vector<std::string>>();
  if (!not_taken.empty()) {
    throw LoadError(
        fmt::format("not taken: another value of {}, which needs another start of the coordinator",
                    fmt::join(not_taken, ", ")));
  }
}

}  // namespace

void add_cluster_command(CLI::App& app, int* exit_code) {
  CLI::App* group =
      app.add_subcommand("cluster", "Look at the nodes of a running coordinator, and change them");
  group->require_subcommand(1);
  group->footer(
      "Example:\n  atoll cluster status --config cluster.yaml\n"
      "  atoll cluster drain n2 --config cluster.yaml\n"
      "\nThe coordinator answers at coordinator.admin of the file.");
  const auto add = [&](const char* name, const char* about, bool has_node, const char* example,
                       std::function<void(const ClusterOptions&)> run) {
    auto options = std::make_shared<ClusterOptions>();
    CLI::App* command = group->add_subcommand(name, about);
    if (has_node) {
      command->add_option("NODE", options->node, "The node's name in the file")
          ->required()
          ->type_name("");
    }
    options->file.add_config_option(*command);
    command->get_option("--config")->required();
    options->file.add_coordinator_option(*command);
    command->add_flag("--json", options->json, "One JSON object in place of text");
    command->footer(fmt::format("Example:\n  {}", example));
    command->callback([options, exit_code, run = std::move(run)] {
      run(*options);
      *exit_code = 0;
    });
  };
  add("status", "The state and tiles of each node", false,
      "atoll cluster status --config cluster.yaml --json",
      [](const ClusterOptions& options) { show(options, ask(options, "GET", "/cluster", "")); });
  add("drain", "Move a node's tiles to others, without losing a request", true,
      "atoll cluster drain n2 --config cluster.yaml", [](const ClusterOptions& options) {
        show(options, ask(options, "POST", "/cluster/drain", Json{{"node", options.node}}.dump()));
      });
  add("resume", "Give a drained node its tiles back", true,
      "atoll cluster resume n2 --config cluster.yaml", [](const ClusterOptions& options) {
        show(options, ask(options, "POST", "/cluster/resume", Json{{"node", options.node}}.dump()));
      });
  add("reload", "Take the nodes that the file has now: new ones come in, others go", false,
      "atoll cluster reload --config cluster.yaml", reload);
}

}  // namespace atl::cli
