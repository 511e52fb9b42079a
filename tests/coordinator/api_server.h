// The API over a real HTTP server on loopback, with the tokenizer of tests/models/tiny-bf16 and a
// scripted backend.
#pragma once

#include <future>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "coordinator/api/api.h"
#include "model/config.h"
#include "tests/coordinator/scripted_backend.h"
#include "tests/http/raw_http.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace atl::test {

using Json = nlohmann::ordered_json;

struct ApiServerOptions {
  coordinator::ApiOptions api = {};
  http::HttpOptions http = {};
  std::optional<std::string> chat_template = {};  // instead of the model's own; empty: none
  coordinator::ClusterSnapshot snapshot = {};
};

class ApiServer {
 public:
  static std::string model_dir() { return ATOLL_SOURCE_DIR "/tests/models/tiny-bf16"; }

  explicit ApiServer(ApiServerOptions options = {})
      : config_(model::load_config(model_dir())),
        tokenizer_(text::Tokenizer::load(model_dir())),
        backend_(tokenizer_, config_.eos_token_ids.at(0)) {
    coordinator::ApiOptions& api = options.api;
    if (api.model_name.empty()) api.model_name = "tiny";
    if (api.version.empty()) api.version = "0.0-test";
    if (!options.chat_template) {
      template_ = text::ChatTemplate::load(model_dir());
    } else if (!options.chat_template->empty()) {
      template_.emplace(*options.chat_template, "test template");
    }
    http::HttpOptions& http = options.http;
    http.admit = [api](const http::HttpRequest& request) {
      return coordinator::Api::admit(api, request);
    };
    http.add_headers = [api](const http::HttpRequest& request) {
      return coordinator::Api::cors_headers(api, request);
    };
    http.error_response = coordinator::Api::error_response;
    server_ = std::make_unique<RunningServer>(http);
    api_ = std::make_unique<coordinator::Api>(api, server_->server(), backend_, config_, tokenizer_,
                                              template_ ? &*template_ : nullptr, clock_,
                                              [snapshot = options.snapshot] { return snapshot; });
    backend_.post = [this](std::function<void()> task) { server_->server().post(std::move(task)); };
    backend_.sink = [this](std::vector<coordinator::GenerationEvent> events) {
      api_->on_events(std::move(events));
    };
    server_->start();
  }
  ~ApiServer() { server_->stop(); }

  http::HttpServer& server() { return server_->server(); }
  ScriptedBackend& backend() { return backend_; }
  coordinator::Api& api() { return *api_; }
  const text::Tokenizer& tokenizer() const { return tokenizer_; }
  uint16_t port() const { return server_->port(); }

  RawResponse post(std::string_view path, std::string_view body, std::string_view fields = "") {
    return RawClient(port()).ask(
        test::post(path, body, "Content-Type: application/json\r\n" + std::string(fields)));
  }
  RawResponse get(std::string_view path, std::string_view fields = "") {
    return RawClient(port()).ask(test::get(path, fields));
  }
  // Runs it on the server's thread.
  void on_server(std::function<void()> task) {
    std::promise<void> done;
    server_->server().post([&] {
      task();
      done.set_value();
    });
    done.get_future().wait();
  }

 private:
  SteadyClock clock_;
  model::ModelConfig config_;
  text::Tokenizer tokenizer_;
  std::optional<text::ChatTemplate> template_;
  ScriptedBackend backend_;
  std::unique_ptr<RunningServer> server_;
  std::unique_ptr<coordinator::Api> api_;
};

// The data of each event of a stream.
inline std::vector<std::string> events_of(std::string_view body) {
  std::vector<std::string> events;
  while (!body.empty()) {
    const size_t end = body.find("\n\n");
    std::string_view event = body.substr(0, end);
    body.remove_prefix(end == body.npos ? body.size() : end + 2);
    if (event.starts_with("data: ")) events.emplace_back(event.substr(6));
  }
  return events;
}

}  // namespace atl::test
