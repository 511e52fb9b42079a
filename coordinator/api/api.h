// The OpenAI-compatible API over HTTP: requests to GenerationRequests, events to answers.
//
// All on the HTTP server's thread, but for the parsing and tokenizing of prompts and the compiling
// of schemas, which its helper threads do. docs/serving.md describes every path and field.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "coordinator/api/api_keys.h"
#include "coordinator/cluster/cluster_snapshot.h"
#include "coordinator/serving/generation.h"
#include "http/http_server.h"
#include "model/config.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace atl::coordinator {

// What a checkpoint's generation_config.json says about how it wants to be asked: used where a
// request doesn't say. OpenAI's are 1 and 1.
struct ModelDefaults {
  std::optional<float> temperature, top_p;
};
// LoadError: the file, and what in it is wrong.
ModelDefaults load_model_defaults(const std::filesystem::path& model_dir);

struct ApiOptions {
  std::string model_name;                      // in /v1/models and answers
  std::vector<std::string> other_names = {};   // that requests may say, too
  std::vector<std::string> cors_origins = {};  // whose pages may ask; "*": all
  ModelDefaults model;                         // load_model_defaults()
  std::vector<ApiKey> keys;                    // empty: everybody may ask
  int64_t context_tokens = 0;      // most of one request, prompt and answer; 0: the model's
  int64_t max_tokens_default = 0;  // of chats; 0: up to the end of the context
  int64_t choices_max = 16;        // `n`
  std::chrono::seconds request_timeout{0};           // of one generation; 0: none
  std::chrono::milliseconds canary_every{10'000};    // without a token: one is generated
  std::chrono::milliseconds canary_max_age{30'000};  // no token for longer: /ready is 503
  // Whether requests are read and steps come to their end is looked at so often; what is late by
  // this much makes /ready a 503.
  std::chrono::milliseconds probe_every{400}, late_after{1'400};
  std::chrono::milliseconds stream_begin_after{5'000};  // header of a stream that has no token yet
  std::string version;
  std::string system_fingerprint;    // of weights and numerics; empty: from the version
  std::string weights_and_numerics;  // what it stands for, in words, for /version
};

class Api {
 public:
  // Everything is borrowed and must outlive this and the server. `snapshot` is called on the
  // server's thread and must not block.
  Api(ApiOptions options, http::HttpServer& server, GenerationBackend& backend,
      const model::ModelConfig& config, const text::Tokenizer& tokenizer,
      const text::ChatTemplate* chat_template, const Clock& clock,
      std::function<ClusterSnapshot()> snapshot);
  ~Api();

  // http::HttpOptions::admit and ::error_response of the server this one is for.
  static http::HttpResponse error_response(int status, const std::string& message);
  static std::optional<http::HttpResponse> admit(const ApiOptions& options,
                                                 const http::HttpRequest& request);
  // http::HttpOptions::add_headers: what lets pages of other origins read the answer.
  static std::vector<std::pair<std::string, std::string>> cors_headers(
      const ApiOptions& options, const http::HttpRequest& request);
  // The answer to anything while there is no Api yet: /health is well, the rest 503.
  static http::HttpResponse answer_while_loading(const http::HttpRequest& request);

  // Server's thread: what the backend tells.
  void on_events(std::vector<GenerationEvent> events);
  // Server's thread: /ready is 503 from now on, new generations are refused; `drained` is called
  // when none is under way.
  void drain(std::function<void()> drained);
  // Server's thread: ends what is under way with an error (503, or an error event in a stream).
  void abort(const std::string& why);

 private:
  struct Impl;
  std::shared_ptr<Impl> impl_;  // shared with tasks that the server still holds
};

}  // namespace atl::coordinator
