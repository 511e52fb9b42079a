#include "cli/server_option.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/json_reader.h"
#include "base/one_line.h"
#include "base/result.h"
#include "cli/admin_server.h"
#include "cli/cluster_file_option.h"
#include "cli/output.h"
#include "http/http_error.h"

namespace atl::cli {
namespace {

// The largest answer: the load of each expert, 1.5 MB of 58 layers of 256.
constexpr size_t kAnswerBytesMax = 64 << 20;

}  // namespace

http::HttpUrl reachable(const config::Address& address) {
  const bool is_any = address.host == "0.0.0.0" || address.host == "::";
  return {is_any ? "127.0.0.1" : address.host, address.port, ""};
}

void ServerOption::add(CLI::App& command) {
  command
      .add_option("SERVER", target,
                  "http://HOST:PORT of `atoll serve`, or the cluster file that it runs with")
      ->required()
      ->type_name("");
  command
      .add_option("--coordinator", coordinator,
                  "Which of the cluster file's `coordinators`, if it has several")
      ->type_name("NAME");
  command
      .add_option("--api-key-file", api_key_file,
                  "File with the key; unless given, ATOLL_API_KEY's value, if any")
      ->type_name("PATH");
}

std::string read_api_key(const std::string& file) {
  std::ifstream in(file);
  for (std::string line; std::getline(in, line);) {
    const size_t comment = line.find('#');
    if (comment != std::string::npos) line.resize(comment);
    const size_t end = line.find_last_not_of(" \t\r");
    if (end == std::string::npos) continue;
    line.resize(end + 1);
    return line.substr(line.find_last_of(" \t") + 1);
  }
  throw LoadError("API key file " + file + ": no key in it, or it can't be read");
}

std::string api_key_of(const std::string& file) {
  if (!file.empty()) return read_api_key(file);
  const char* key = std::getenv("ATOLL_API_KEY");
  return key ? key : "";
}

ServerClient::ServerClient(const ServerOption& option) : api_key_(api_key_of(option.api_key_file)) {
  if (option.target.find("://") != std::string::npos) {
    const auto url = http::parse_http_url(option.target);
    if (!url) throw LoadError(url.error().message);
    if (!option.coordinator.empty()) {
      throw LoadError("--coordinator is about a cluster file: a URL names its server already");
    }
    url_ = *url;
  } else if (std::filesystem::exists(option.target)) {
    ClusterFileOption file;
    file.path = option.target;
    file.coordinator = option.coordinator;
    const config::ClusterConfig config = file.load_for_coordinator();
    url_ = reachable(config.coordinator.listen);
    if (config.coordinator.admin) admin_ = reachable(*config.coordinator.admin);
  } else {
    throw LoadError(fmt::format("'{}' is neither a URL such as http://127.0.0.1:8080 nor a file",
                                one_line(option.target)));
  }
  if (url_.path.ends_with("/v1")) url_.path.resize(url_.path.size() - 3);
  name_ = fmt::format("http://{}:{}", url_.host, url_.port);
}

http::HttpAnswer ServerClient::ask(const http::HttpUrl& url, http::HttpClientRequest request,
                                   const http::HttpClient::OnEvent& on_event) const {
  http::HttpClientOptions options;
  options.connect_timeout = std::chrono::seconds(5);
  options.silence_timeout = std::chrono::seconds(30);
  options.body_bytes_max = kAnswerBytesMax;
  http::HttpClient client(url, options);
  if (!api_key_.empty()) request.headers.emplace_back("Authorization", "Bearer " + api_key_);
  const std::string path = request.path;
  const auto answer = client.ask(std::move(request), on_event);
  const std::string who = fmt::format("http://{}:{}{}", url.host, url.port, path);
  if (!answer) throw LoadError(fmt::format("{}: {}", who, answer.error().message));
  if (answer->status != 200)
    throw LoadError(fmt::format("{}: {}", who, http::http_error_text(*answer)));
  return *answer;
}

std::string ServerClient::get_text(const std::string& path,
                                   std::chrono::milliseconds timeout) const {
  return ask(url_, {.path = path, .timeout = timeout}, {}).body;
}

nlohmann::ordered_json ServerClient::get(const std::string& path,
                                         std::chrono::milliseconds timeout) const {
  const std::string text = get_text(path, timeout);
  auto json = read_json(text, bounds_of_file(text.size()));
  if (!json || !json->is_object()) {
    throw LoadError(fmt::format("{}{}: expected a JSON object", name_, path));
  }
  return std::move(*json);
}

void ServerClient::get_events(const std::string& path,
                              const std::function<void(std::string_view data)>& on_event) const {
  ask(url_, {.path = path}, [&](std::string_view data, Clock::TimePoint) { on_event(data); });
}

std::string ServerClient::post(const std::string& path, const std::string& body) const {
  return ask(url_, {.method = "POST", .path = path, .body = body}, {}).body;
}

nlohmann::ordered_json ServerClient::post_admin(const std::string& path,
                                                const std::string& body) const {
  if (!admin_) {
    throw LoadError(
        "nodes are changed at coordinator.admin: expected a cluster file that says it, in place "
        "of a URL");
  }
  const std::string text = ask(*admin_,
                               {.method = "POST",
                                .path = path,
                                .headers = {{kAdminHeader, "1"}},
                                .body = body,
                                .timeout = std::chrono::seconds(60)},
                               {})
                               .body;
  auto json = read_json(text, bounds_of_file(text.size()));
  if (!json) throw LoadError(fmt::format("{}: {}", path, json.error().message));
  return std::move(*json);
}

}  // namespace atl::cli
