#include "coordinator/api/api.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <ctime>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <stop_token>
#include <unordered_map>

#include "base/log.h"
#include "coordinator/api/api_errors.h"
#include "coordinator/api/api_json.h"
#include "coordinator/api/canary.h"
#include "coordinator/api/helper_probe.h"
#include "coordinator/api/live_answer.h"
#include "coordinator/api/metrics.h"
#include "coordinator/api/page.h"
#include "coordinator/api/request_preparer.h"
#include "coordinator/api/stats_json.h"
#include "storage/io/printable.h"

namespace atl::coordinator {
namespace {

using Json = nlohmann::ordered_json;
using std::chrono::milliseconds;

constexpr milliseconds kTick{500};
constexpr double kStatisticsEverySeconds = 10;
constexpr int kRetryAfterMax = 60;
constexpr int kRetryAfterLoading = 5;
constexpr size_t kLoggedBytesMax = 300;
constexpr size_t kUserBytesMax = 128;
constexpr size_t kShortBodyBytesMax = 64 << 10;  // read, rendered and tokenized within milliseconds

http::HttpResponse json_response(const Json& json) {
  http::HttpResponse response;
  response.body = dump(json);
  return response;
}

http::HttpResponse text_response(std::string content_type, std::string body) {
  http::HttpResponse response;
  response.content_type = std::move(content_type);
  response.body = std::move(body);
  return response;
}

std::string_view host_of(std::string_view remote) { return remote.substr(0, remote.rfind(':')); }

// Anthropic's clients send the key by another header.
std::optional<std::string> owner_of_request(std::span<const ApiKey> keys,
                                            const http::HttpRequest& request) {
  if (const auto owner = owner_of_key(keys, request.header("authorization"))) return owner;
  return owner_of_key(keys, "Bearer " + std::string(request.header("x-api-key")));
}

// What everybody may read: whether the server is up, and a page without data.
bool needs_no_key(std::string_view path) {
  return path == "/" || path == "/health" || path == "/ready" || path == "/version";
}

// Short work never waits for long work, so nobody with a usual request waits for those with a
// large one.
http::WorkLength length_of(const http::HttpRequest& request) {
  return request.body.size() <= kShortBodyBytesMax ? http::WorkLength::kShort
                                                   : http::WorkLength::kLong;
}

}  // namespace

struct Api::Impl : std::enable_shared_from_this<Api::Impl> {
  using Exchange = std::shared_ptr<http::HttpExchange>;
  using Prepare = std::optional<Parsed<PreparedGeneration>> (RequestPreparer::*)(
      std::string_view, const PrepareTurn&);

  // Who waits for a request that may still be with the helpers. Server's thread, but for `stop`.
  struct Waiting {
    bool gone = false;
    std::stop_source stop;
    std::weak_ptr<LiveAnswer> answer;  // once it is under way
  };
  struct Preparing {
    Exchange exchange;
    std::shared_ptr<Waiting> waiting;
    Prepare prepare;
  };
  struct Place {
    std::shared_ptr<LiveAnswer> answer;
    size_t choice = 0;
  };

  Impl(ApiOptions options, http::HttpServer& server, GenerationBackend& backend,
       const model::ModelConfig& config, const text::Tokenizer& tokenizer,
       const text::ChatTemplate* chat_template, const Clock& clock,
       std::function<ClusterSnapshot()> snapshot);

  void add_routes();
  void route(const char* method, const std::string& path, void (Impl::*handler)(Exchange));
  void answer(const Exchange& exchange, http::HttpResponse response);
  void refuse(const Exchange& exchange, const ApiError& error);

  void get_health(Exchange exchange);
  void get_ready(Exchange exchange);
  void get_version(Exchange exchange);
  void get_models(Exchange exchange);
  void get_model(Exchange exchange);
  void get_metrics(Exchange exchange);
  void get_stats(Exchange exchange);
  void get_page(Exchange exchange);
  void post_not_served(Exchange exchange);
  void post_chat(Exchange exchange) { generate(std::move(exchange), &RequestPreparer::chat); }
  void post_completion(Exchange exchange) {
    generate(std::move(exchange), &RequestPreparer::completion);
  }
  void post_messages(Exchange exchange) {
    generate(std::move(exchange), &RequestPreparer::messages);
  }
  void post_responses(Exchange exchange) {
    generate(std::move(exchange), &RequestPreparer::responses);
  }
  void post_count_tokens(Exchange exchange);
  void post_tokenize(Exchange exchange);
  void post_detokenize(Exchange exchange);
  void get_tokenizer_info(Exchange exchange);

  void generate(Exchange exchange, Prepare prepare);
  void prepare_on_helper(Preparing what, http::WorkLength length);
  void go_on(const Preparing& what, Parsed<PreparedGeneration>& prepared);
  void answer_on_helper(Exchange exchange,
                        std::function<http::HttpResponse(const std::stop_token&)> make);
  void refuse_waiting(const Exchange& exchange);
  void start(const Exchange& exchange, PreparedGeneration& prepared, Waiting& waiting);
  std::optional<ApiError> submit_all(PreparedGeneration& prepared,
                                     const std::shared_ptr<LiveAnswer>& live,
                                     const http::HttpRequest& http, const std::string& client);
  std::optional<ApiError> refusal() const;
  ApiError with_retry_after(ApiError error) const;
  std::string client_of(const http::HttpRequest& http, const std::string& user) const;
  AnswerHead make_head(const PreparedGeneration& prepared) const;

  void on_event(GenerationEvent& event);
  void end_sequences(LiveAnswer& live);
  void forget(const std::shared_ptr<LiveAnswer>& live);
  void check_drained();

  void tick();
  void probe();
  void log_statistics(Clock::TimePoint now);
  std::optional<std::string> not_ready_because() const;
  std::optional<std::string> no_node_because() const;
  void doubt_when_nodes_go();
  std::string state() const;
  Json model_json(const std::string& name) const;

  const ApiOptions options;
  http::HttpServer& server;
  GenerationBackend& backend;
  const model::ModelConfig& config;
  const text::Tokenizer& tokenizer;
  const text::ChatTemplate* const chat_template;  // null: none
  const Clock& clock;
  const std::function<ClusterSnapshot()> snapshot;
  const Clock::TimePoint started;
  const int64_t created;
  RequestPreparer preparer;
  Metrics metrics;
  Canary canary;
  uint64_t node_losses = 0;  // of all nodes, when they were looked at last
  HelperProbe helper_probe;

  std::unordered_map<uint64_t, Place> sequences;                 // by GenerationId
  std::map<uint64_t, std::shared_ptr<LiveAnswer>> live_answers;  // by order of arrival
  std::unordered_map<const LiveAnswer*, uint64_t> order_of;
  uint64_t next_order = 0;
  int64_t preparing = 0;  // with the helpers or waiting for them

  bool draining = false;
  std::function<void()> drained;

  uint64_t tokens_seen = 0;  // canaries' left out

  struct Counted {  // at the last statistics line
    Clock::TimePoint at;
    GenerationStats stats;
    uint64_t tokens_seen = 0;
  } counted;
  double finished_per_second = 0;
};

// --- set-up ---

Api::Impl::Impl(ApiOptions options_given, http::HttpServer& server_given,
                GenerationBackend& backend_given, const model::ModelConfig& config_given,
                const text::Tokenizer& tokenizer_given, const text::ChatTemplate* template_given,
                const Clock& clock_given, std::function<ClusterSnapshot()> snapshot_given)
    : options(std::move(options_given)),
      server(server_given),
      backend(backend_given),
      config(config_given),
      tokenizer(tokenizer_given),
      chat_template(template_given),
      clock(clock_given),
      snapshot(std::move(snapshot_given)),
      started(clock.now()),
      created(std::time(nullptr)),
      preparer(options, config, tokenizer, chat_template),
      metrics(options.model_name, options.version),
      canary({.every = options.canary_every,
              .max_age = options.canary_max_age,
              .step_max = options.late_after,
              .prompt = preparer.canary_prompt()},
             backend, clock),
      helper_probe(server, clock, options.late_after) {
  counted.at = started;
}

void Api::Impl::add_routes() {
  route("GET", "/", &Impl::get_page);
  route("GET", "/health", &Impl::get_health);
  route("GET", "/ready", &Impl::get_ready);
  route("GET", "/version", &Impl::get_version);
  route("GET", "/metrics", &Impl::get_metrics);
  route("GET", "/stats", &Impl::get_stats);
  for (const std::string prefix : {"/v1", ""}) {
    route("GET", prefix + "/models", &Impl::get_models);
    route("GET", prefix + "/models/" + options.model_name, &Impl::get_model);
    for (const std::string& name : options.other_names) {
      route("GET", prefix + "/models/" + name, &Impl::get_model);
    }
  }
  for (const char* path : {"/v1/embeddings", "/v1/rerank", "/v1/score", "/v1/audio/transcriptions",
                           "/v1/audio/translations", "/v1/audio/speech", "/v1/images/generations",
                           "/v1/images/edits", "/v1/moderations"}) {
    route("POST", path, &Impl::post_not_served);
  }
  route("POST", "/v1/chat/completions", &Impl::post_chat);
  route("POST", "/v1/completions", &Impl::post_completion);
  route("POST", "/v1/messages", &Impl::post_messages);
  route("POST", "/v1/messages/count_tokens", &Impl::post_count_tokens);
  route("POST", "/v1/responses", &Impl::post_responses);
  route("POST", "/tokenize", &Impl::post_tokenize);
  route("POST", "/detokenize", &Impl::post_detokenize);
  route("GET", "/tokenizer_info", &Impl::get_tokenizer_info);
}

// Tasks of the server may outlive the Api, so they hold on to this.
void Api::Impl::route(const char* method, const std::string& path,
                      void (Impl::*handler)(Exchange)) {
  server.route(method, path, [self = shared_from_this(), handler](Exchange exchange) {
    (self.get()->*handler)(std::move(exchange));
  });
}

void Api::Impl::answer(const Exchange& exchange, http::HttpResponse response) {
  metrics.count_answer(exchange->request().path, response.status);
  exchange->respond(std::move(response));
}

void Api::Impl::refuse(const Exchange& exchange, const ApiError& error) {
  // The message may quote what a stranger sent.
  log_debug("request {} refused: {} {}", exchange->request().id, error.status,
            storage::printable(error.message, kLoggedBytesMax));
  answer(exchange, to_response(error, exchange->request().path));
}

// --- what the server is ---

void Api::Impl::get_health(Exchange exchange) {
  answer(exchange, json_response({{"status", "ok"}}));
}

void Api::Impl::get_ready(Exchange exchange) {
  const auto why = not_ready_because();
  if (!why) {
    answer(exchange, json_response({{"status", "ready"}}));
  } else {
    answer(exchange, to_response(api_error(503, "not ready: " + *why)));
  }
}

void Api::Impl::get_version(Exchange exchange) {
  Json version = {{"version", options.version}};
  if (!options.weights_and_numerics.empty()) {
    version["system_fingerprint"] = options.system_fingerprint;
    version["weights_and_numerics"] = options.weights_and_numerics;
  }
  answer(exchange, json_response(version));
}

Json Api::Impl::model_json(const std::string& name) const {
  return {{"id", name},
          {"object", "model"},
          {"created", created},
          {"owned_by", "atoll"},
          {"root", options.model_name},
          {"parent", nullptr},
          {"max_model_len", preparer.context_tokens()}};
}

void Api::Impl::get_models(Exchange exchange) {
  Json list = Json::array({model_json(options.model_name)});
  for (const std::string& name : options.other_names) list.push_back(model_json(name));
  answer(exchange, json_response({{"object", "list"}, {"data", std::move(list)}}));
}

void Api::Impl::get_model(Exchange exchange) {
  const std::string& path = exchange->request().path;
  answer(exchange, json_response(model_json(path.substr(path.find("/models/") + 8))));
}

void Api::Impl::post_not_served(Exchange exchange) {
  ApiError error = api_error(
      404, exchange->request().path +
               ": this server generates text only; it has no embeddings, scores, sound or images");
  error.code = "unsupported";
  refuse(exchange, error);
}

void Api::Impl::get_metrics(Exchange exchange) {
  answer(exchange, text_response("text/plain; version=0.0.4; charset=utf-8",
                                 metrics.text(backend.stats(), snapshot(), server.stats())));
}

void Api::Impl::get_page(Exchange exchange) {
  answer(exchange, text_response("text/html; charset=utf-8", std::string(status_page())));
}

void Api::Impl::get_stats(Exchange exchange) {
  const Clock::TimePoint now = clock.now();
  ServerStats stats{.model_name = options.model_name,
                    .version = options.version,
                    .context_tokens = preparer.context_tokens(),
                    .uptime_seconds = seconds_between(started, now),
                    .state = state(),
                    .not_ready_because = not_ready_because().value_or(""),
                    .connections = server.stats().connections,
                    .requests = {},
                    .times = metrics.recent_times(),
                    .answers = metrics.answers()};
  for (const auto& [status, count] : server.stats().refused) {
    stats.answers[status] += static_cast<int64_t>(count);
  }
  for (const auto& [order, live] : live_answers) stats.requests.push_back(live->stats(now));
  http::HttpResponse response;
  response.body = stats_json(stats, config, backend.stats(), snapshot());
  answer(exchange, std::move(response));
}

std::string Api::Impl::state() const {
  if (draining) return "draining";
  return not_ready_because() ? "failing" : "ready";
}

std::optional<std::string> Api::Impl::not_ready_because() const {
  if (draining) return "draining";
  if (auto why = helper_probe.not_ready_because()) return why;
  if (auto why = no_node_because()) return why;
  return canary.not_ready_because();
}

// All nodes are gone: nothing can be computed until one is back.
std::optional<std::string> Api::Impl::no_node_because() const {
  const ClusterSnapshot now = snapshot();
  std::string why;
  for (const ClusterSnapshot::Node& node : now.nodes) {
    if (node.alive) return std::nullopt;
    why += fmt::format("{}{}: {}", why.empty() ? "" : ", ", node.name,
                       node.lost_because.empty() ? node.state : node.lost_because);
  }
  if (why.empty()) return std::nullopt;
  return "no expert node is there: " + why;
}

// Others may not have the tiles of one that has gone.
void Api::Impl::doubt_when_nodes_go() {
  uint64_t losses = 0;
  for (const ClusterSnapshot::Node& node : snapshot().nodes) losses += node.losses;
  if (losses != node_losses) canary.doubt();
  node_losses = losses;
}

// --- tokens ---

// Runs the work on a helper thread and answers with what it gives.
void Api::Impl::answer_on_helper(Exchange exchange,
                                 std::function<http::HttpResponse(const std::stop_token&)> make) {
  http::HttpWork work{.client = client_of(exchange->request(), ""),
                      .length = length_of(exchange->request())};
  exchange->on_gone([stop = work.stop]() mutable { stop.request_stop(); });
  ++preparing;
  work.refused = [self = shared_from_this(), exchange] { self->refuse_waiting(exchange); };
  work.run = [self = shared_from_this(), exchange, make = std::move(make)](std::stop_token stop) {
    auto response = std::make_shared<http::HttpResponse>();
    try {
      *response = make(stop);
    } catch (const std::exception& e) {
      *response = Api::error_response(500, e.what());
    }
    auto& server = self->server;
    server.post([self, exchange, response] {
      --self->preparing;
      self->answer(exchange, std::move(*response));
      self->check_drained();
    });
  };
  server.work(std::move(work));
}

// The helpers have too much to do.
void Api::Impl::refuse_waiting(const Exchange& exchange) {
  --preparing;
  refuse(exchange, with_retry_after(api_error(
                       {ErrorCode::kOverloaded, "too many requests are waiting to be read"})));
  check_drained();
}

void Api::Impl::post_tokenize(Exchange exchange) {
  const http::HttpRequest* request = &exchange->request();
  answer_on_helper(std::move(exchange), [this, request](const std::stop_token& stop) {
    auto tokens = preparer.tokenize(request->body, stop);
    if (!tokens) return to_response(tokens.error());
    Json json = {{"count", tokens->ids.size()},
                 {"max_model_len", preparer.context_tokens()},
                 {"tokens", tokens->ids},
                 {"token_strs", nullptr}};
    if (tokens->with_strings) {
      Json& strings = json["token_strs"] = Json::array();
      for (const int32_t id : tokens->ids) {
        strings.push_back(tokenizer.decode(std::array{id}, text::SpecialTokens::kKeep));
      }
    }
    return json_response(json);
  });
}

void Api::Impl::post_count_tokens(Exchange exchange) {
  const http::HttpRequest* request = &exchange->request();
  answer_on_helper(std::move(exchange), [this, request](const std::stop_token& stop) {
    auto count = preparer.count_message_tokens(request->body, stop);
    if (!count) return to_response(count.error(), request->path);
    return json_response({{"input_tokens", *count}});
  });
}

void Api::Impl::post_detokenize(Exchange exchange) {
  const http::HttpRequest* request = &exchange->request();
  answer_on_helper(std::move(exchange), [this, request](const std::stop_token&) {
    auto text = preparer.detokenize(request->body);
    if (!text) return to_response(text.error());
    return json_response({{"prompt", *text}});
  });
}

// What lm-evaluation-harness's `remote` tokenizer asks for, as vLLM names it.
void Api::Impl::get_tokenizer_info(Exchange exchange) {
  const auto content = [&](std::optional<int32_t> id) {
    return id && tokenizer.has_token(*id) ? Json(tokenizer.token_bytes(*id)) : Json(nullptr);
  };
  answer(exchange, json_response({{"bos_token", content(preparer.bos_id())},
                                  {"eos_token", content(preparer.eos_id())},
                                  {"add_bos_token", tokenizer.add_bos_token()},
                                  {"model_max_length", preparer.context_tokens()},
                                  {"vocab_size", tokenizer.vocab_size()},
                                  {"chat_template", chat_template == nullptr
                                                        ? Json(nullptr)
                                                        : Json(chat_template->source())}}));
}

// --- text ---

// Why nobody may ask for text now.
std::optional<ApiError> Api::Impl::refusal() const {
  if (draining) return api_error(503, "the server is shutting down");
  if (const GenerationStats stats = backend.stats(); !stats.failure.empty()) {
    return api_error(503, "the engine's last step failed: " + stats.failure);
  }
  if (const auto why = no_node_because()) return api_error(503, *why);
  return std::nullopt;
}

// By how long those who wait now will take.
ApiError Api::Impl::with_retry_after(ApiError error) const {
  if (error.status != 429) return error;
  const double seconds = finished_per_second > 0
                             ? static_cast<double>(backend.stats().waiting) / finished_per_second
                             : 0;
  error.retry_after_s = std::clamp(static_cast<int>(std::ceil(seconds)), 1, kRetryAfterMax);
  return error;
}

void Api::Impl::generate(Exchange exchange, Prepare prepare) {
  if (const auto error = refusal()) {
    refuse(exchange, *error);
    return;
  }
  auto waiting = std::make_shared<Waiting>();
  exchange->on_gone([self = weak_from_this(), waiting] {
    waiting->gone = true;
    waiting->stop.request_stop();
    const auto impl = self.lock();
    const auto live = waiting->answer.lock();
    if (!impl || !live) return;
    live->abandon(impl->clock.now());
    impl->forget(live);
  });
  ++preparing;
  const http::WorkLength length = length_of(exchange->request());
  prepare_on_helper({std::move(exchange), std::move(waiting), prepare}, length);
}

// Any thread. What turns out to take long begins again where it may.
void Api::Impl::prepare_on_helper(Preparing what, http::WorkLength length) {
  http::HttpWork work{.client = client_of(what.exchange->request(), ""),
                      .length = length,
                      .stop = what.waiting->stop};
  work.refused = [self = shared_from_this(), what] { self->refuse_waiting(what.exchange); };
  work.run = [self = shared_from_this(), what = std::move(what), length](std::stop_token stop) {
    std::optional<Parsed<PreparedGeneration>> prepared;
    try {
      prepared = (self->preparer.*what.prepare)(
          what.exchange->request().body,
          {length, std::move(stop), self->client_of(what.exchange->request(), "")});
      if (!prepared) return self->prepare_on_helper(what, http::WorkLength::kLong);
    } catch (const std::exception& e) {
      prepared = api_error(500, e.what());
    }
    self->server.post(
        [self, what,
         prepared = std::make_shared<Parsed<PreparedGeneration>>(std::move(*prepared))] {
          --self->preparing;
          self->go_on(what, *prepared);
          self->check_drained();
        });
  };
  server.work(std::move(work));
}

void Api::Impl::go_on(const Preparing& what, Parsed<PreparedGeneration>& prepared) {
  if (what.waiting->gone) {
    log_debug("request {}: the client went away before it began", what.exchange->request().id);
  } else if (!prepared) {
    refuse(what.exchange, prepared.error());
  } else {
    start(what.exchange, *prepared, *what.waiting);
  }
}

void Api::Impl::start(const Exchange& exchange, PreparedGeneration& prepared, Waiting& waiting) {
  const http::HttpRequest& http = exchange->request();
  metrics.observe_prepared(seconds_between(http.arrived, clock.now()));
  if (const auto error = refusal()) {
    refuse(exchange, *error);
    return;
  }
  const std::string client = client_of(http, prepared.user);
  auto live = std::make_shared<LiveAnswer>(exchange, prepared, make_head(prepared), tokenizer,
                                           metrics, client);
  if (const auto error = submit_all(prepared, live, http, client)) {
    end_sequences(*live);
    refuse(exchange, with_retry_after(*error));
    return;
  }
  order_of[live.get()] = next_order;
  live_answers[next_order++] = live;
  waiting.answer = live;
}

std::optional<ApiError> Api::Impl::submit_all(PreparedGeneration& prepared,
                                              const std::shared_ptr<LiveAnswer>& live,
                                              const http::HttpRequest& http,
                                              const std::string& client) {
  for (size_t i = 0; i < prepared.choices.size(); ++i) {
    GenerationRequest& request = prepared.choices[i].request;
    request.client = client;
    request.request_id = http.id;
    if (options.request_timeout.count() > 0) {
      request.deadline = http.arrived + options.request_timeout;
    }
    const auto id = backend.submit(std::move(request));
    if (!id) {
      ApiError error = api_error(id.error());
      if (id.error().code == ErrorCode::kInvalid) {
        error.code = "context_length_exceeded";
        error.param = prepared.chat ? "messages" : "prompt";
      }
      return error;
    }
    sequences[id->value] = {.answer = live, .choice = i};
    live->sequences.push_back(*id);
  }
  return std::nullopt;
}

std::string Api::Impl::client_of(const http::HttpRequest& http, const std::string& user) const {
  if (const auto owner = owner_of_request(options.keys, http)) return *owner;
  if (!user.empty()) return user.substr(0, kUserBytesMax);
  return std::string(host_of(http.remote));
}

AnswerHead Api::Impl::make_head(const PreparedGeneration& prepared) const {
  const std::string prefix = !prepared.id_prefix.empty() ? prepared.id_prefix
                             : prepared.chat             ? "chatcmpl-"
                                                         : "cmpl-";
  return {.id = random_id(prefix),
          .created = std::time(nullptr),
          .model = options.model_name,
          .system_fingerprint = options.system_fingerprint.empty() ? "atoll-" + options.version
                                                                   : options.system_fingerprint};
}

// --- events ---

void Api::Impl::on_event(GenerationEvent& event) {
  if (canary.on_event(event)) return;
  const auto it = sequences.find(event.id.value);
  if (it == sequences.end()) return;
  if (event.token) ++tokens_seen;
  const Clock::TimePoint now = clock.now();
  const Place place = it->second;
  const bool over = event.finish || event.error;
  if (over) sequences.erase(it);
  if (event.error) {
    place.answer->fail(with_retry_after(api_error(*event.error)), now);
  } else if (place.answer->push(place.choice, event, now) && !over) {
    sequences.erase(event.id.value);
    backend.cancel(event.id);
  }
  if (place.answer->ended()) forget(place.answer);
}

void Api::Impl::end_sequences(LiveAnswer& live) {
  for (const GenerationId id : live.sequences) {
    if (sequences.erase(id.value) > 0) backend.cancel(id);
  }
}

void Api::Impl::forget(const std::shared_ptr<LiveAnswer>& live) {
  end_sequences(*live);
  const auto it = order_of.find(live.get());
  if (it == order_of.end()) return;
  live_answers.erase(it->second);
  order_of.erase(it);
  check_drained();
}

void Api::Impl::check_drained() {
  if (!draining || preparing > 0 || !live_answers.empty() || !drained) return;
  std::exchange(drained, nullptr)();
}

// --- every second ---

void Api::Impl::tick() {
  const Clock::TimePoint now = clock.now();
  doubt_when_nodes_go();
  if (!draining) canary.tick();
  log_statistics(now);
  std::vector<std::shared_ptr<LiveAnswer>> late;
  for (const auto& [order, live] : live_answers) {
    if (live->streams() && now - live->arrived() >= options.stream_begin_after) {
      late.push_back(live);
    }
  }
  for (const auto& live : late) live->begin_stream();
  server.post_after(std::min(kTick, options.canary_every / 2), [self = weak_from_this()] {
    if (const auto impl = self.lock()) impl->tick();
  });
}

void Api::Impl::probe() {
  helper_probe.tick();
  server.post_after(options.probe_every, [self = weak_from_this()] {
    if (const auto impl = self.lock()) impl->probe();
  });
}

void Api::Impl::log_statistics(Clock::TimePoint now) {
  const double seconds = seconds_between(counted.at, now);
  if (seconds < kStatisticsEverySeconds) return;
  const GenerationStats stats = backend.stats();
  const Counted before =
      std::exchange(counted, {.at = now, .stats = stats, .tokens_seen = tokens_seen});
  finished_per_second = static_cast<double>(stats.finished - before.stats.finished) / seconds;
  if (live_answers.empty() && tokens_seen == before.tokens_seen) return;
  const uint64_t prompt = stats.prompt_tokens - before.stats.prompt_tokens;
  const uint64_t cached = stats.cached_tokens - before.stats.cached_tokens;
  const uint64_t generated = stats.generated_tokens - before.stats.generated_tokens;
  log_info(
      "running {}, waiting {}, prompt {:.1f} tokens/s, generated {:.1f} tokens/s, cache {:.1f} % "
      "used, prefix hits {:.1f} %",
      stats.running, stats.waiting, static_cast<double>(prompt) / seconds,
      static_cast<double>(generated) / seconds,
      100.0 * static_cast<double>(stats.cache_blocks_used) /
          static_cast<double>(std::max<int64_t>(stats.cache_blocks, 1)),
      100.0 * static_cast<double>(cached) / static_cast<double>(std::max<uint64_t>(prompt, 1)));
}

// --- Api ---

Api::Api(ApiOptions options, http::HttpServer& server, GenerationBackend& backend,
         const model::ModelConfig& config, const text::Tokenizer& tokenizer,
         const text::ChatTemplate* chat_template, const Clock& clock,
         std::function<ClusterSnapshot()> snapshot)
    : impl_(std::make_shared<Impl>(std::move(options), server, backend, config, tokenizer,
                                   chat_template, clock, std::move(snapshot))) {
  impl_->add_routes();
  server.post([self = std::weak_ptr<Impl>(impl_)] {
    if (const auto impl = self.lock()) {
      impl->tick();
      impl->probe();
    }
  });
}

Api::~Api() = default;

http::HttpResponse Api::error_response(int status, const std::string& message) {
  return to_response(api_error(status, message));
}

namespace {

std::string lower(std::string_view text) {
  std::string out(text);
  std::transform(out.begin(), out.end(), out.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return out;
}

// "null" (a file, a sandboxed frame) is nobody's own.
bool is_own_origin(std::string_view origin, const http::HttpRequest& request) {
  const size_t scheme = origin.find("://");
  return scheme != origin.npos && lower(origin.substr(scheme + 3)) == lower(request.header("host"));
}

bool may_ask(const ApiOptions& options, std::string_view origin) {
  return std::any_of(options.cors_origins.begin(), options.cors_origins.end(),
                     [&](const std::string& allowed) {
                       return allowed == "*" || lower(allowed) == lower(origin);
                     });
}

bool is_json(std::string_view content_type) {
  return lower(content_type.substr(0, content_type.find(';'))).starts_with("application/json");
}

constexpr const char* kPreflightSeconds = "600";

// A page of another origin asks first, unless it sends what any form can: that computes nothing
// here, or every page that somebody looks at could use a server without keys.
std::optional<http::HttpResponse> answer_to_page(const ApiOptions& options,
                                                 const http::HttpRequest& request) {
  const std::string_view origin = request.header("origin");
  if (origin.empty() || is_own_origin(origin, request)) return std::nullopt;
  const bool allowed = may_ask(options, origin);
  if (request.method == "OPTIONS" && allowed &&
      !request.header("access-control-request-method").empty()) {
    http::HttpResponse response;
    response.status = 204;
    response.content_type.clear();
    response.headers = {{"Access-Control-Allow-Methods", "GET, POST, OPTIONS"},
                        {"Access-Control-Max-Age", kPreflightSeconds}};
    const std::string_view wanted = request.header("access-control-request-headers");
    if (!wanted.empty()) {
      response.headers.emplace_back("Access-Control-Allow-Headers", std::string(wanted));
    }
    return response;
  }
  if (allowed) return std::nullopt;
  // It makes every process write events.
  if (request.path == "/trace" && options.keys.empty()) {
    return Api::error_response(403, "a page of another origin may not trace; see --cors-origin");
  }
  if (request.method != "POST" || is_json(request.header("content-type"))) return std::nullopt;
  return Api::error_response(403,
                             "a page of another origin may only send Content-Type: "
                             "application/json; see --cors-origin");
}

// Known ones have their routes.
std::optional<http::HttpResponse> of_unknown_model(const ApiOptions& options,
                                                   const http::HttpRequest& request) {
  for (const std::string_view prefix : {"/v1/models/", "/models/"}) {
    if (!request.path.starts_with(prefix)) continue;
    const std::string name = request.path.substr(prefix.size());
    const auto& others = options.other_names;
    if (name == options.model_name) return std::nullopt;
    if (std::find(others.begin(), others.end(), name) != others.end()) return std::nullopt;
    return to_response(no_such_model(name, options.model_name, others));
  }
  return std::nullopt;
}

}  // namespace

std::vector<std::pair<std::string, std::string>> Api::cors_headers(
    const ApiOptions& options, const http::HttpRequest& request) {
  const std::string_view origin = request.header("origin");
  if (options.cors_origins.empty() || origin.empty() || !may_ask(options, origin)) return {};
  return {{"Access-Control-Allow-Origin", std::string(origin)},
          {"Access-Control-Expose-Headers", "X-Request-Id, Retry-After"},
          {"Vary", "Origin"}};
}

std::optional<http::HttpResponse> Api::admit(const ApiOptions& options,
                                             const http::HttpRequest& request) {
  if (auto response = answer_to_page(options, request)) return response;
  if (options.keys.empty() || needs_no_key(request.path)) return of_unknown_model(options, request);
  if (owner_of_request(options.keys, request)) return of_unknown_model(options, request);
  const std::string_view given =
      request.header(request.header("authorization").empty() ? "x-api-key" : "authorization");
  http::HttpResponse response =
      error_response(401, given.empty() ? "no API key given; send it as `Authorization: Bearer KEY`"
                                        : "incorrect API key given");
  response.headers.emplace_back("WWW-Authenticate", "Bearer");
  return response;
}

http::HttpResponse Api::answer_while_loading(const http::HttpRequest& request) {
  if (request.path == "/health") return json_response({{"status", "ok"}});
  ApiError error = api_error(503, "not ready: the model is being loaded");
  error.retry_after_s = kRetryAfterLoading;
  return to_response(error);
}

void Api::on_events(std::vector<GenerationEvent> events) {
  for (GenerationEvent& event : events) impl_->on_event(event);
}

void Api::drain(std::function<void()> drained) {
  impl_->draining = true;
  impl_->drained = std::move(drained);
  impl_->check_drained();
}

void Api::abort(const std::string& why) {
  const auto live_answers = impl_->live_answers;
  for (const auto& [order, live] : live_answers) {
    live->fail(api_error(503, why), impl_->clock.now());
    impl_->forget(live);
  }
}

}  // namespace atl::coordinator
