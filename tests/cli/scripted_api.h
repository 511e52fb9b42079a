// An OpenAI-compatible server without a model, for tests of the commands that talk to one.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "http/http_server.h"
#include "tests/http/raw_http.h"

namespace atl::test {

// Knows the model "toy" and tokens 10..29. What POST `path` answers is the test's; the bodies asked
// for are kept.
class ScriptedApi {
 public:
  using Exchange = std::shared_ptr<http::HttpExchange>;
  using Answer = std::function<void(const Exchange&, const nlohmann::json& body)>;

  ScriptedApi(const std::string& path, Answer answer) {
    server().route("GET", "/v1/models", [](const Exchange& exchange) {
      exchange->respond({.body = R"({"object":"list","data":[{"id":"toy"}]})"});
    });
    server().route("POST", "/tokenize", [](const Exchange& exchange) {
      nlohmann::json tokens = nlohmann::json::array();
      for (int id = 10; id < 30; ++id) tokens.push_back(id);
      exchange->respond({.body = nlohmann::json{{"tokens", tokens}}.dump()});
    });
    server().route("GET", "/metrics", [](const Exchange& exchange) {
      exchange->respond({.content_type = "text/plain", .body = std::string(10'000, '#')});
    });
    server().route("POST", path, [this, answer](const Exchange& exchange) {
      const auto body = nlohmann::json::parse(exchange->request().body);
      {
        const std::lock_guard lock(mutex_);
        bodies_.push_back(body);
        authorization_ = exchange->request().header("authorization");
      }
      answer(exchange, body);
    });
    running_.start();
  }

  http::HttpServer& server() { return running_.server(); }
  uint16_t port() const { return running_.port(); }
  std::string url() const { return "http://127.0.0.1:" + std::to_string(port()); }
  std::vector<nlohmann::json> bodies() const {
    const std::lock_guard lock(mutex_);
    return bodies_;
  }
  std::string authorization() const {
    const std::lock_guard lock(mutex_);
    return authorization_;
  }
  void stop() { running_.stop(); }

 private:
  mutable std::mutex mutex_;
  std::vector<nlohmann::json> bodies_;
  std::string authorization_;
  RunningServer running_;
};

}  // namespace atl::test
