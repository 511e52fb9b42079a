// The OpenAI-compatible API over HTTP: requests to GenerationRequests, events to answers.
//
// All on the HTTP server's thread, but for the parsing and tokenizing of prompts, which its helper
// thread does. docs/serving.md describes every path and field.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "coordinator/cluster_snapshot.h"
#include "coordinator/generation.h"
#include "coordinator/http/http_server.h"
#include "model/chat_template.h"
#include "model/config.h"
#include "model/tokenizer.h"

namespace atl::coordinator {

struct ApiKey {
  std::string name;  // what logs and fair queueing call its owner
  std::string key;
};
// One `name key` or `key` per line, # begins a comment. LoadError names file and line; also if the
// file can be read by others than its owner.
std::vector<ApiKey> load_api_keys(const std::string& file);

struct ApiOptions {
  std::string model_name;                   // in /v1/models and answers
  std::vector<ApiKey> keys;                 // empty: everybody may ask
  int64_t max_tokens_default = 0;           // 0: up to the end of the context
  int64_t choices_max = 16;                 // `n`
  std::chrono::seconds request_timeout{0};  // of one generation; 0: none
  std::chrono::seconds canary_max_age{30};  // older: /ready is 503
  std::string version;
};

class Api {
 public:
  // Everything is borrowed and must outlive this. `snapshot` is called on the server's thread and
  // must not block.
  Api(ApiOptions options, HttpServer& server, GenerationBackend& backend,
      const model::ModelConfig& config, const model::Tokenizer& tokenizer,
      const model::ChatTemplate* chat_template, const Clock& clock,
      std::function<ClusterSnapshot()> snapshot);
  ~Api();

  // HttpOptions::admit and ::error_response of the server this one is for.
  static HttpResponse error_response(int status, const std::string& message);
  static std::optional<HttpResponse> admit(const ApiOptions& options, const HttpRequest& request);

  // Server's thread: what the backend tells.
  void on_events(std::vector<GenerationEvent> events);
  // Server's thread: /ready is 503 from now on, new generations are refused; `drained` is called
  // when none is under way.
  void drain(std::function<void()> drained);
  // Server's thread: ends what is under way with an error (503, or an error event in a stream).
  void abort(const std::string& why);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace atl::coordinator
