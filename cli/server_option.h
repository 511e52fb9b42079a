// The server that a command asks something: where it is, the key it wants, and one question.
#pragma once

#include <chrono>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include "base/json_reader.h"
#include "config/cluster_config.h"
#include "http/http_client.h"

namespace CLI {
class App;
}

namespace atl::cli {

struct ServerOption {
  std::string target;        // http://HOST:PORT, or a cluster file
  std::string coordinator;   // which of the file's, if it has several
  std::string api_key_file;  // "": ATOLL_API_KEY's value, if any

  // SERVER, --coordinator and --api-key-file; this is borrowed for the life of the program.
  void add(CLI::App& command);
};

// "name key" or "key" of the first line that is no comment. LoadError.
std::string read_api_key(const std::string& file);
// Of the file, or ATOLL_API_KEY's value, or "".
std::string api_key_of(const std::string& file);

// Where a coordinator of the file is asked from its own machine.
http::HttpUrl reachable(const config::Address& address);

class ServerClient {
 public:
  // LoadError: neither a URL nor a cluster file, or a file that is wrong or has several
  // coordinators of which none was named.
  explicit ServerClient(const ServerOption& option);

  // The document of an answer with status 200. LoadError names the server and what it said.
  nlohmann::ordered_json get(const std::string& path,
                             std::chrono::milliseconds timeout = std::chrono::seconds(60)) const;
  std::string get_text(const std::string& path,
                       std::chrono::milliseconds timeout = std::chrono::seconds(60)) const;
  // The events of the answer, one after the other, as they come. LoadError likewise.
  void get_events(const std::string& path,
                  const std::function<void(std::string_view data)>& on_event) const;
  // Sends a JSON body; the answer with status 200. LoadError likewise.
  std::string post(const std::string& path, const std::string& body) const;
  // Of the admin address in the cluster file. LoadError: there is none.
  nlohmann::ordered_json post_admin(const std::string& path, const std::string& body) const;
  bool has_admin() const { return admin_.has_value(); }
  const std::string& name() const { return name_; }  // "http://HOST:PORT"

 private:
  http::HttpAnswer ask(const http::HttpUrl& url, http::HttpClientRequest request,
                       const http::HttpClient::OnEvent& on_event) const;

  http::HttpUrl url_;
  std::string name_, api_key_;
  std::optional<http::HttpUrl> admin_;
};

}  // namespace atl::cli
