// atoll serve: the engine as a service, with an OpenAI-compatible API.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <functional>
#include <future>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>

#include "base/log.h"
#include "base/service_manager.h"
#include "base/units.h"
#include "cli/admin_server.h"
#include "cli/byte_size_option.h"
#include "cli/commands.h"
#include "cli/deployment_options.h"
#include "cli/help_formatter.h"
#include "cli/model_text.h"
#include "cli/output.h"
#include "cli/stop_signals.h"
#include "coordinator/api/api.h"
#include "coordinator/api/experts_json.h"
#include "coordinator/api/trace_route.h"
#include "coordinator/cluster/cluster_monitor.h"
#include "coordinator/cluster/trace_collector.h"
#include "coordinator/serving/scheduler.h"
#include "http/http_server.h"
#include "kernels/attention.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace atl::cli {
namespace {

// Unless --kv-cache says otherwise: this many whole contexts, but no more memory than this.
constexpr int64_t kDefaultContexts = 16;
constexpr uint64_t kDefaultCacheBytes = uint64_t{4} << 30;

struct ServeOptions {
  deployment::DeploymentOptions deployment;
  std::string host = "127.0.0.1";
  int port = 8080;
  std::string model_name;
  std::vector<std::string> cors_origins;
  std::string api_key_file;
  std::optional<uint64_t> cache_bytes;
  int64_t context = 0;
  int64_t sequences_max = 64;
  int64_t queue_max = 256;
  double step_target_ms = 200;
  std::string draft = "off";
  int64_t draft_tokens = 8;
  bool no_prefix_cache = false;
  bool cold_start = false;
  size_t connections_max = 4096;
  uint64_t body_bytes_max = uint64_t{32} << 20;
  int64_t max_tokens_default = 0;
  double request_timeout_s = 0;
  double drain_timeout_s = 30;
  std::filesystem::path record_routing;  // "": nothing is
  uint64_t record_bytes_max = uint64_t{256} << 20;
};

constexpr int kExitStoppedLoading = 1, kExitCutShort = 1;
// How long answers that were ended may take to reach their clients, and what comes after that: the
// process ends even if the server's or the engine's thread is stuck.
constexpr std::chrono::milliseconds kLastWords{500}, kEndAtOnce{1'000};

std::chrono::milliseconds in_milliseconds(double seconds) {
  return std::chrono::milliseconds(static_cast<int64_t>(seconds * 1000));
}

// The problem with --draft's value, "" if there is none.
std::string check_draft(const std::string& text) {
  if (text == "off" || text == "mtp" || text == "lookup" || text == "auto") return "";
  return fmt::format("'{}' is none of off, mtp, lookup, auto", text);
}

deployment::NextTokenLayer next_token_layer(const std::string& draft) {
  using deployment::NextTokenLayer;
  if (draft == "mtp") return NextTokenLayer::kRequired;
  return draft == "auto" ? NextTokenLayer::kIfThere : NextTokenLayer::kOff;
}

// Positions that the KV cache gets room for. With the next-token layer, which the model may turn
// out not to have, there is a layer more.
int64_t cache_tokens(const ServeOptions& options, const model::ModelConfig& config) {
  const coordinator::CacheShape shape =
      coordinator::cache_shape(config, options.deployment.numerics.cache);
  const bool has_mtp = options.deployment.next_token_layer != deployment::NextTokenLayer::kOff &&
                       config.num_nextn_predict_layers > 0;
  const uint64_t block =
      coordinator::KvCache::block_bytes(config.num_hidden_layers + (has_mtp ? 1 : 0), shape);
  const auto fit = static_cast<int64_t>(options.cache_bytes.value_or(kDefaultCacheBytes) / block);
  if (fit < 2) {
    throw LoadError(fmt::format("--kv-cache {}: expected at least {}, two blocks of {} positions",
                                format_bytes(options.cache_bytes.value_or(0)),
                                format_bytes(2 * block), kernels::kAttentionBlock));
  }
  int64_t blocks = fit;
  if (!options.cache_bytes) {
    blocks = std::min(blocks, kDefaultContexts *
                                  coordinator::KvCache::blocks_for(config.max_position_embeddings));
  }
  const int64_t tokens = blocks * kernels::kAttentionBlock;
  if (options.context > config.max_position_embeddings) {
    throw LoadError(fmt::format("--context {}: the model has {} positions", options.context,
                                config.max_position_embeddings));
  }
  log_info("KV cache: {} tokens in {}", tokens,
           format_bytes(static_cast<uint64_t>(blocks) * block));
  if (options.context > tokens) {
    throw LoadError(
        fmt::format("--context {}: the KV cache holds {} tokens; give it more with "
                    "--kv-cache",
                    options.context, tokens));
  }
  return tokens;
}

coordinator::SchedulerOptions scheduler_options(const ServeOptions& options,
                                                const model::ModelConfig& config,
                                                const text::Tokenizer& tokenizer) {
  coordinator::SchedulerOptions scheduler;
  scheduler.sequences_max = std::min(options.sequences_max, options.deployment.rows_max);
  scheduler.queue_max = options.queue_max;
  scheduler.step_target_s = options.step_target_ms / 1000;
  scheduler.prefix_cache = !options.no_prefix_cache;
  scheduler.draft_tokens = options.draft == "off" ? 0 : options.draft_tokens;
  scheduler.lookup_drafts = options.draft == "lookup" || options.draft == "auto";
  scheduler.vocab_limit =
      static_cast<int32_t>(std::min<int64_t>(tokenizer.id_end(), config.vocab_size));
  for (int32_t id = 0; id < scheduler.vocab_limit; ++id) {
    scheduler.allowed.push_back(tokenizer.has_token(id));
  }
  return scheduler;
}

coordinator::ApiOptions api_options(const ServeOptions& options, const model::ModelConfig& config,
                                    int64_t cache_tokens) {
  coordinator::ApiOptions api;
  api.model_name =
      options.model_name.empty()
          ? std::filesystem::canonical(options.deployment.model_dir).filename().string()
          : options.model_name;
  for (size_t comma; (comma = api.model_name.rfind(',')) != std::string::npos;) {
    api.other_names.insert(api.other_names.begin(), api.model_name.substr(comma + 1));
    api.model_name.resize(comma);
  }
  api.cors_origins = options.cors_origins;
  api.model = coordinator::load_model_defaults(options.deployment.model_dir);
  if (!options.api_key_file.empty()) api.keys = coordinator::load_api_keys(options.api_key_file);
  api.context_tokens = std::min({options.context > 0 ? options.context : cache_tokens, cache_tokens,
                                 config.max_position_embeddings});
  api.max_tokens_default = options.max_tokens_default;
  api.request_timeout =
      std::chrono::seconds(static_cast<int64_t>(std::max(0.0, options.request_timeout_s)));
  api.version = ATOLL_VERSION;
  return api;
}

http::HttpOptions http_options(const ServeOptions& options, std::optional<int> listener,
                               const coordinator::ApiOptions& api,
                               const std::atomic<bool>& loading) {
  http::HttpOptions http;
  http.address = options.host;
  http.port = static_cast<uint16_t>(options.port);
  http.listener = listener;
  http.connections_max = options.connections_max;
  http.body_bytes_max = options.body_bytes_max;
  http.bodies_bytes_max = std::max(http.bodies_bytes_max, options.body_bytes_max);
  http.admit = [&api, &loading](const http::HttpRequest& request) {
    return loading ? coordinator::Api::answer_while_loading(request)
                   : coordinator::Api::admit(api, request);
  };
  http.add_headers = [&api](const http::HttpRequest& request) {
    return coordinator::Api::cors_headers(api, request);
  };
  http.error_response = coordinator::Api::error_response;
  return http;
}

// The HTTP server's thread.
class ServerThread {
 public:
  explicit ServerThread(http::HttpServer& server)
      : server_(server), thread_([&server] { server.run(); }) {}
  ~ServerThread() {
    server_.stop();
    join();
  }
  ServerThread(const ServerThread&) = delete;
  ServerThread& operator=(const ServerThread&) = delete;

  // Runs the task there and waits; throws what it throws.
  void call(const std::function<void()>& task) {
    std::packaged_task<void()> packaged(task);
    std::future<void> done = packaged.get_future();
    server_.post([&packaged] { packaged(); });
    done.get();
  }
  void join() {
    if (thread_.joinable()) thread_.join();
  }

 private:
  http::HttpServer& server_;
  std::thread thread_;
};

// Ends the process after this time, whatever its threads do, unless it has ended by then.
void end_process_in(std::chrono::milliseconds time) {
  std::thread([time] {
    std::this_thread::sleep_for(time);
    log_error("the process did not stop in time: it is ended as it is");
    std::_Exit(kExitCutShort);  // child nodes end with this process
  }).detach();
}

// What a signal to stop does: the first one drains, a second one ends at once. Server's thread.
class Shutdown {
 public:
  Shutdown(double drain_timeout_s, http::HttpServer& server, coordinator::Scheduler& scheduler,
           coordinator::Api& api)
      : drain_timeout_s_(drain_timeout_s), server_(server), scheduler_(scheduler), api_(api) {}

  void request() {
    if (draining_) {
      log_info("stopping at once");
      return end_now();
    }
    draining_ = true;
    log_info("draining: no new requests; those under way have {} s", drain_timeout_s_);
    scheduler_.drain();
    api_.drain([this] { end(); });
    server_.post_after(in_milliseconds(drain_timeout_s_), [this] {
      log_warn("draining took longer than {} s: the rest is ended", drain_timeout_s_);
      end_now();
    });
  }

 private:
  void end_now() {
    api_.abort("the server is shutting down");
    end();
  }
  void end() {
    server_.stop(kLastWords);
    scheduler_.stop();
  }

  const double drain_timeout_s_;
  http::HttpServer& server_;
  coordinator::Scheduler& scheduler_;
  coordinator::Api& api_;
  bool draining_ = false;
};

// Tells the service manager that the server's thread turns, which is what answers everybody.
class KeepAlive {
 public:
  KeepAlive(ServiceManager& service, http::HttpServer& server)
      : service_(service), server_(server) {
    if (service_.watch_period()) server_.post([this] { tell(); });
  }

 private:
  void tell() {
    service_.tell_alive();
    server_.post_after(
        std::chrono::duration_cast<std::chrono::milliseconds>(*service_.watch_period() / 4),
        [this] { tell(); });
  }

  ServiceManager& service_;
  http::HttpServer& server_;
};

std::string url_of(const ServeOptions& options, uint16_t port) {
  const bool is_v6 = options.host.find(':') != std::string::npos;
  return fmt::format("http://{}:{}", is_v6 ? "[" + options.host + "]" : options.host, port);
}

// Three threads of work: the engine's (the caller's), the HTTP server's and the monitor's.
void serve(ServeOptions options) {
  ServiceManager service;
  // Before any thread. Gone before what it stops.
  std::atomic<http::HttpServer*> serving = nullptr;
  std::optional<Shutdown> shutdown;  // the server's thread
  auto signals = std::make_unique<StopSignals>();
  signals->watch([&, stopping = false]() mutable {
    if (http::HttpServer* server = serving) {
      service.tell_stopping();
      const double drain_timeout_s = std::exchange(stopping, true) ? 0 : options.drain_timeout_s;
      end_process_in(in_milliseconds(drain_timeout_s) + kEndAtOnce);
      server->post([&shutdown] { shutdown->request(); });
    } else {
      log_info("stopped while loading");
      std::_Exit(kExitStoppedLoading);  // nothing to finish; child nodes end with this process
    }
  });
  const std::filesystem::path& model_dir = options.deployment.model_dir;
  const model::ModelConfig config = model::load_config(model_dir);
  const text::Tokenizer tokenizer = load_tokenizer(model_dir);
  const std::optional<text::ChatTemplate> chat = load_chat_template(model_dir);
  if (!chat) log_info("the model has no chat template: /v1/chat/completions is not served");
  options.deployment.next_token_layer = next_token_layer(options.draft);
  const int64_t tokens = cache_tokens(options, config);
  options.deployment.cache_tokens = tokens - kernels::kAttentionBlock;  // it adds a block
  options.deployment.cache_option.bytes_option = "--kv-cache";
  coordinator::ApiOptions api_settings = api_options(options, config, tokens);
  SteadyClock clock;
  // Before the model is loaded: a port that is taken should not cost minutes, and /health answers.
  std::atomic<bool> loading = true;
  http::HttpServer server(http_options(options, service.listener(), api_settings, loading), clock);
  const std::string url =
      service.listener() ? fmt::format("port {} of the socket that was handed over", server.port())
                         : url_of(options, server.port());
  KeepAlive keep_alive(service, server);
  ServerThread http(server);
  std::optional<AdminServer> admin;
  if (const auto& cluster = options.deployment.cluster; cluster && cluster->coordinator.admin) {
    admin.emplace(*cluster->coordinator.admin, cluster->cluster, clock);
  }
  log_info("loading {}; {}/health answers", model_dir.string(), url);
  service.tell_status(fmt::format("loading {}", model_dir.string()));

  deployment::Deployment deployment(options.deployment);
  if (!options.cold_start) deployment.wait_until_warm();
  api_settings.system_fingerprint = deployment.short_fingerprint();
  api_settings.weights_and_numerics = deployment.fingerprint();
  coordinator::ClusterMonitor monitor(deployment.engine(), deployment.dispatcher(),
                                      deployment.cluster(), clock);
  std::optional<coordinator::RoutingRecorder> recorder;
  if (!options.record_routing.empty()) {
    recorder.emplace(
        coordinator::RoutingRecorderOptions{options.record_routing, options.record_bytes_max,
                                            api_settings.model_name,
                                            deployment.checkpoint_fingerprint()},
        config);
    deployment.engine().set_routing_recorder(&*recorder);
  }
  coordinator::SchedulerOptions settings = scheduler_options(options, config, tokenizer);
  settings.mtp_drafts = deployment.engine().has_mtp();
  TraceRing engine_trace, http_trace;
  coordinator::StageTracer stages(engine_trace);
  deployment.engine().set_stage_sink(&stages);
  deployment.trace_shares(&engine_trace, coordinator::kTraceShare);
  settings.trace = &engine_trace;
  settings.trace_kind = coordinator::kTraceTurn;
  coordinator::TraceCollector collector(deployment.cluster(),
                                        {{"engine", &engine_trace}, {"http", &http_trace}}, clock);
  settings.after_step = [&monitor] { monitor.after_step(); };
  settings.while_idle = [&deployment, &monitor] {
    deployment.poll_nodes();
    monitor.while_idle();
  };
  std::optional<coordinator::Api> api;  // the server's thread
  coordinator::Scheduler scheduler(
      deployment.engine(), deployment.team(), clock, settings,
      [&](std::vector<coordinator::GenerationEvent> events) {
        server.post([&, events = std::make_shared<decltype(events)>(std::move(events))] {
          const TraceSpan span(&http_trace, clock, coordinator::kTraceAnswers, 0, -1,
                               static_cast<uint32_t>(events->size()));
          api->on_events(std::move(*events));
        });
      });
  http.call([&] {
    api.emplace(api_settings, server, scheduler, config, tokenizer, chat ? &*chat : nullptr, clock,
                [&monitor] { return monitor.snapshot(); });
    shutdown.emplace(options.drain_timeout_s, server, scheduler, *api);
    coordinator::add_experts_route(server,
                                   {api_settings.model_name, deployment.checkpoint_fingerprint(),
                                    config.n_routed_experts, config.num_experts_per_tok},
                                   deployment.engine().expert_load());
    coordinator::add_trace_route(server, collector);
  });
  loading = false;
  if (admin) admin->begin(deployment, [&monitor] { return monitor.snapshot(); });
  serving = &server;
  write_stdout(fmt::format("listening on {}\n", url));
  service.tell_ready(fmt::format("serving {} on {}", api_settings.model_name, url));
  log_info("serving {} with a context of {} tokens, ready after {:.1f} s", api_settings.model_name,
           api_settings.context_tokens, deployment.load_seconds());
  {
    const std::unique_ptr<ScopedThreadPin> pin = deployment.pin_engine_thread();
    scheduler.run();
  }
  http.join();
  admin.reset();
  signals.reset();
  log_info("stopped");
}

void add_service_options(CLI::App& command, ServeOptions* options) {
  command.add_option("--host", options->host, "Address to listen on; 0.0.0.0 or :: for all")
      ->capture_default_str();
  command.add_option("--port", options->port, "Port; 0: any free one, told on stdout")
      ->check(CLI::Range(0, 65535))
      ->capture_default_str();
  command
      .add_option("--model-name,--served-model-name", options->model_name,
                  "Name that clients ask for, or several with commas; the directory's unless given")
      ->type_name("NAME,...");
  command
      .add_option("--api-key-file", options->api_key_file,
                  "One `name key` per line; requests must then bring one of the keys")
      ->type_name("PATH");
  command
      .add_option("--cors-origin", options->cors_origins,
                  "Origins whose pages may ask from a browser, as http://localhost:3000; * for all")
      ->delimiter(',')
      ->type_name("ORIGIN");
  command
      .add_option("--max-connections", options->connections_max,
                  "Connections that may be open at once")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  add_byte_size_option(command, "--max-body", "Longest body of a request; 32MiB unless given",
                       [options](uint64_t bytes) { options->body_bytes_max = bytes; });
  command
      .add_option("--request-timeout", options->request_timeout_s,
                  "Seconds that a generation may take; 0: any time")
      ->check(CLI::Range(0.0, 1e9))
      ->capture_default_str();
  command
      .add_option(
          "--drain-timeout", options->drain_timeout_s,
          "Seconds for what is under way after SIGTERM, SIGINT or SIGHUP; a second signal ends "
          "it at once")
      ->check(CLI::Range(0.0, 1e9))
      ->capture_default_str();
  command
      .add_option("--record-routing", options->record_routing,
                  "File that is told which experts each step wants, for simulators; no text and no "
                  "request is in it")
      ->type_name("FILE");
  add_byte_size_option(command, "--record-routing-max",
                       "Most that this file becomes; 256MiB unless given",
                       [options](uint64_t bytes) { options->record_bytes_max = bytes; });
  group_options(command, "Observing", {"--record-routing", "--record-routing-max"});
  group_options(command, "Service",
                {"--host", "--port", "--model-name", "--api-key-file", "--cors-origin",
                 "--max-connections", "--max-body", "--request-timeout", "--drain-timeout"});
}

void add_batch_options(CLI::App& command, ServeOptions* options) {
  add_byte_size_option(
      command, "--kv-cache",
      "Memory of the KV cache, such as 8GiB; unless given, 16 whole contexts or 4 GiB, "
      "whichever is less",
      [options](uint64_t bytes) { options->cache_bytes = bytes; });
  command
      .add_option("--context", options->context,
                  "Most tokens of one request, prompt and answer; unless given, what model and "
                  "KV cache hold")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 30))
      ->type_name("TOKENS");
  command
      .add_option("--max-tokens-default", options->max_tokens_default,
                  "Tokens of an answer where a chat doesn't say; 0: to the end of the context")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 30))
      ->capture_default_str();
  command
      .add_option("--max-sequences", options->sequences_max,
                  "Requests computed together, at most --chunk")
      ->check(CLI::Range(int64_t{1}, int64_t{4096}))
      ->capture_default_str();
  command
      .add_option("--max-queue", options->queue_max,
                  "Requests that may wait for that; more are answered 429")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 20))
      ->capture_default_str();
  command
      .add_option("--step-target", options->step_target_ms,
                  "Milliseconds that a step which reads prompts should take, and so who is being "
                  "answered waits for a token; may cost prompts half of their rate; 0: any time")
      ->check(CLI::Range(0.0, 1e9))
      ->type_name("MS")
      ->capture_default_str();
  command
      .add_option(
          "--draft", options->draft,
          "Tokens computed ahead where that pays: off; mtp: by the model's next-token layer; "
          "lookup: "
          "what followed the same tokens earlier in the text; auto: whatever there is. Changes no "
          "token")
      ->check(check_draft)
      ->type_name("off|mtp|lookup|auto")
      ->capture_default_str();
  command.add_option("--draft-tokens", options->draft_tokens, "At most, of a request and step")
      ->check(CLI::Range(int64_t{1}, int64_t{64}))
      ->capture_default_str();
  command.add_flag("--no-prefix-cache", options->no_prefix_cache,
                   "Compute every prompt from its beginning");
  add_cold_start_option(command, &options->cold_start);
  group_options(command, "Batching and cache",
                {"--kv-cache", "--context", "--max-tokens-default", "--max-sequences",
                 "--max-queue", "--step-target", "--draft", "--draft-tokens", "--no-prefix-cache"});
  group_options(command, "Memory", {"--cold-start"});
}

// Where the command line says nothing; the rest is taken with the deployment's options.
void take_cluster_file(const CLI::App& command, ServeOptions* options) {
  if (!options->deployment.cluster) return;
  const config::CoordinatorConfig& coordinator = options->deployment.cluster->coordinator;
  const auto is_open = [&](const char* option) { return command.count(option) == 0; };
  if (is_open("--host")) options->host = coordinator.listen.host;
  if (is_open("--port")) options->port = coordinator.listen.port;
  if (is_open("--api-key-file")) options->api_key_file = coordinator.api_keys.string();
  if (is_open("--model-name")) options->model_name = coordinator.model_name;
  if (is_open("--kv-cache")) options->cache_bytes = coordinator.kv_cache_bytes;
  if (is_open("--context")) options->context = coordinator.context;
  if (is_open("--draft")) options->draft = coordinator.draft;
  if (is_open("--draft-tokens")) options->draft_tokens = coordinator.draft_tokens;
}

}  // namespace

void add_serve_command(CLI::App& app, int* exit_code) {
  auto options = std::make_shared<ServeOptions>();
  CLI::App* command =
      app.add_subcommand("serve", "Serve a model over HTTP, with the API of OpenAI's clients");
  add_deployment_options(*command, &options->deployment);
  add_service_options(*command, options.get());
  add_batch_options(*command, options.get());
  command->footer(
      "Example:\n  atoll serve tests/models/tiny-fp8 --nodes 3 --port 8080\n"
      "  atoll serve --config cluster.yaml\n"
      "  curl http://127.0.0.1:8080/v1/completions -d '{\"prompt\": \"And God said,\"}'\n"
      "\nThe first line on stdout is 'listening on http://HOST:PORT' once it answers. A page for "
      "browsers\nis at /, metrics at /metrics. SIGTERM finishes what is under way and exits 0.");
  command->callback([options, exit_code, command] {
    take_cluster_file(*command, options.get());
    serve(*options);
    *exit_code = 0;
  });
}

}  // namespace atl::cli
