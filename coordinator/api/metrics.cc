#include "coordinator/api/metrics.h"

#include <fmt/format.h>
#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/metric_family.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <sstream>
#include <utility>
#include <vector>

namespace atl::coordinator {
namespace {

using prometheus::ClientMetric;
using prometheus::Histogram;
using prometheus::MetricFamily;
using prometheus::MetricType;
using Labels = std::vector<std::pair<std::string, std::string>>;

// vLLM's buckets, with finer ones below for small models. Seconds.
const Histogram::BucketBoundaries kFirstTokenBuckets = {
    0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5,
    0.75,  1,      2.5,   5,    7.5,  10,   20,   40,   80,  160};
const Histogram::BucketBoundaries kTokenBuckets = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05,
                                                   0.075, 0.1,    0.15,  0.2,  0.3,   0.4,
                                                   0.5,   0.75,   1,     2.5,  5,     10};
const Histogram::BucketBoundaries kRequestBuckets = {0.01, 0.05, 0.1, 0.3, 0.5, 0.8, 1,   1.5,
                                                     2,    2.5,  5,   10,  15,  20,  30,  40,
                                                     50,   60,   120, 240, 480, 960, 1920};
const Histogram::BucketBoundaries kCountBuckets = {
    1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000, 200000};

// Values of others, as they are when Prometheus asks.
class Families {
 public:
  void counter(const std::string& name, const std::string& help, double value,
               const Labels& labels = {}) {
    add(name, help, MetricType::Counter, labels).counter.value = value;
  }
  void gauge(const std::string& name, const std::string& help, double value,
             const Labels& labels = {}) {
    add(name, help, MetricType::Gauge, labels).gauge.value = value;
  }
  std::vector<MetricFamily> take() { return std::move(families_); }

 private:
  ClientMetric& add(const std::string& name, const std::string& help, MetricType type,
                    const Labels& labels) {
    const auto [it, is_new] = index_.try_emplace(name, families_.size());
    if (is_new) {
      families_.emplace_back();
      families_.back().name = name;
      families_.back().help = help;
      families_.back().type = type;
    }
    ClientMetric& metric = families_[it->second].metric.emplace_back();
    for (const auto& [key, value] : labels) metric.label.push_back({key, value});
    return metric;
  }

  std::vector<MetricFamily> families_;
  std::map<std::string, size_t> index_;
};

double number(uint64_t value) { return static_cast<double>(value); }
double number(int64_t value) { return static_cast<double>(value); }

void add_generation(const GenerationStats& stats, Families& to) {
  to.gauge("atoll_num_requests_running", "Sequences in the batch", number(stats.running));
  to.gauge("atoll_num_requests_waiting", "Sequences accepted and not in the batch",
           number(stats.waiting));
  const double blocks = number(std::max<int64_t>(stats.cache_blocks, 1));
  to.gauge("atoll_kv_cache_usage_perc", "Share of cache blocks held by sequences, 1 is all",
           number(stats.cache_blocks_used) / blocks);
  to.gauge("atoll_kv_cache_blocks", "Cache blocks of 64 positions", number(stats.cache_blocks));
  to.gauge("atoll_kv_cache_blocks_kept", "Cache blocks kept for prompts that begin alike",
           number(stats.cache_blocks_kept));
  to.counter("atoll_prompt_tokens_total", "Prompt tokens of requests that entered the batch",
             number(stats.prompt_tokens));
  to.counter("atoll_generation_tokens_total", "Tokens generated", number(stats.generated_tokens));
  to.counter("atoll_drafted_tokens_total", "Rows of drafts through the model",
             number(stats.drafted_tokens));
  to.counter("atoll_accepted_tokens_total", "Drafted tokens that were what was generated",
             number(stats.accepted_tokens));
  to.counter("atoll_mtp_drafted_tokens_total", "Rows of drafts by the next-token layer",
             number(stats.mtp_drafted_tokens));
  to.counter("atoll_mtp_accepted_tokens_total", "Of these: were what was generated",
             number(stats.mtp_accepted_tokens));
  to.counter("atoll_mtp_seconds_total", "Time in passes of the next-token layer, beside steps",
             stats.mtp_seconds);
  to.counter("atoll_computed_tokens_total", "Rows through the model, recomputed ones included",
             number(stats.computed_tokens));
  to.counter("atoll_prefix_cache_queries_total", "Prompt tokens looked for in the prefix cache",
             number(stats.prompt_tokens));
  to.counter("atoll_prefix_cache_hits_total", "Prompt tokens found in the prefix cache",
             number(stats.cached_tokens));
  to.counter("atoll_num_preemptions_total", "Sequences taken out of the batch for want of cache",
             number(stats.preempted));
  const std::string help = "Sequences by what became of them";
  to.counter("atoll_sequences_total", help, number(stats.accepted), {{"outcome", "accepted"}});
  to.counter("atoll_sequences_total", help, number(stats.rejected), {{"outcome", "rejected"}});
  to.counter("atoll_sequences_total", help, number(stats.finished), {{"outcome", "finished"}});
  to.counter("atoll_sequences_total", help, number(stats.failed), {{"outcome", "failed"}});
  to.counter("atoll_sequences_total", help, number(stats.cancelled), {{"outcome", "cancelled"}});
  to.counter("atoll_engine_steps_total", "Steps of the engine", number(stats.steps));
  to.counter("atoll_engine_steps_halved_total",
             "Steps computed as two halves, so that nodes and coordinator compute at the same time",
             number(stats.steps_halved));
  to.counter("atoll_engine_steps_cut_total", "Steps with fewer prompt tokens, to take less time",
             number(stats.steps_cut));
  to.counter("atoll_engine_step_seconds_total", "Time in steps of the engine", stats.step_seconds);
  to.gauge("atoll_draining", "1 while no new requests are admitted", stats.draining ? 1 : 0);
  to.gauge("atoll_engine_failing", "1 if the engine's last step failed",
           stats.failure.empty() ? 0 : 1);
}

void add_step_parts(const ClusterSnapshot& cluster, Families& to) {
  const StepTimes& times = cluster.times;
  const auto add = [&](const char* part, double seconds) {
    to.counter("atoll_step_part_seconds_total", "Time of the engine's steps by part", seconds,
               {{"part", part}});
  };
  add("attention", times.attention());
  for (const Stage stage :
       {Stage::kRouter, Stage::kDenseFfn, Stage::kDispatch, Stage::kSharedExperts, Stage::kCombine,
        Stage::kHead, Stage::kPrefetch, Stage::kOther}) {
    add(stage_name(stage), times[stage]);
  }
  to.counter("atoll_prefetch_hinted_experts_total", "Experts that nodes were told to expect",
             number(cluster.hints.hinted));
  to.counter("atoll_prefetch_foretold_experts_total", "Of these, experts that were then chosen",
             number(cluster.hints.foretold));
  to.counter("atoll_prefetch_chosen_experts_total", "Experts chosen in layers that had a hint",
             number(cluster.hints.chosen));
}

void add_node(const ClusterSnapshot::Node& node, Families& to) {
  const Labels labels = {{"node", node.name}};
  to.gauge("atoll_node_up", "1 if the node answers", node.alive ? 1 : 0, labels);
  to.counter("atoll_node_losses_total", "Times that the node died or hung", number(node.losses),
             labels);
  to.counter("atoll_node_restarts_total", "Times that the node was brought back",
             number(node.restarts), labels);
  to.gauge("atoll_node_tiles", "Tiles of each expert that the node is asked for", node.num_tiles,
           labels);
  to.gauge("atoll_node_standby_tiles",
           "Tiles of each expert that it keeps in RAM and another one is asked for",
           node.num_standby, labels);
  to.counter("atoll_node_dispatches_total", "Dispatches sent to the node",
             number(node.traffic.dispatches), labels);
  to.counter("atoll_node_rows_total", "Rows sent to the node", number(node.traffic.rows), labels);
  to.counter("atoll_node_hints_total", "Hints sent to the node", number(node.traffic.hints),
             labels);
  to.counter("atoll_node_hedged_total",
             "Shares of the node that were also asked from others because it was late",
             number(node.traffic.hedged), labels);
  to.counter("atoll_node_hedges_won_total", "Of these, shares that the others answered first",
             number(node.traffic.hedges_won), labels);
  to.counter("atoll_node_overdue_total",
             "Times that it was asked nothing more until it answered something",
             number(node.traffic.overdue), labels);
  to.counter("atoll_node_trials_total", "Dispatches sent to it only to see how fast it is",
             number(node.traffic.tried), labels);
  to.counter("atoll_node_sent_bytes_total", "Bytes of rows sent to the node",
             number(node.traffic.bytes_out), labels);
  to.counter("atoll_node_received_bytes_total", "Bytes of partial rows from the node",
             number(node.traffic.bytes_in), labels);
  if (!node.stats_known) return;
  const transport::NodeStats& stats = node.stats;
  to.counter("atoll_node_compute_seconds_total", "Time the node computed", stats.compute_seconds,
             labels);
  to.counter("atoll_node_expert_rows_total", "Pairs of row and expert computed",
             number(stats.expert_rows), labels);
  to.counter("atoll_node_dispatches_refused_total", "Dispatches the node refused",
             number(stats.refused), labels);
  const ExpertCacheStats& cache = stats.cache;
  to.counter("atoll_node_cache_hits_total", "Experts asked for that were in RAM",
             number(cache.hits), labels);
  to.counter("atoll_node_cache_misses_total", "Experts asked for that had to be read",
             number(cache.misses), labels);
  to.counter("atoll_node_cache_evictions_total", "Experts dropped from RAM",
             number(cache.evictions), labels);
  to.gauge("atoll_node_cache_resident_bytes", "Bytes of tiles in RAM",
           number(cache.slots_used * cache.slot_bytes), labels);
  to.counter("atoll_node_read_bytes_total", "Bytes read from disk", number(cache.bytes_read),
             labels);
  to.counter("atoll_node_stall_seconds_total", "Time a dispatch had nothing to compute",
             std::accumulate(cache.stall_seconds.begin(), cache.stall_seconds.end(), 0.0), labels);
  to.counter("atoll_node_tiles_reread_total", "Tiles read again because the first read was wrong",
             number(cache.tiles_reread), labels);
  to.counter("atoll_node_tiles_bad_total", "Tiles that were wrong twice", number(cache.tiles_bad),
             labels);
}

// One series for each layer, not for each expert: V3 has 14,848 of them.
void add_layer(size_t layer, const std::vector<uint64_t>& expert_rows, Families& to) {
  if (expert_rows.empty()) return;
  const Labels labels = {{"layer", fmt::format("{}", layer)}};
  const uint64_t rows = std::accumulate(expert_rows.begin(), expert_rows.end(), uint64_t{0});
  to.counter("atoll_expert_rows_total", "Pairs of row and expert that the router chose",
             number(rows), labels);
  to.gauge("atoll_expert_rows_max", "Rows of the layer's most chosen expert",
           number(*std::max_element(expert_rows.begin(), expert_rows.end())), labels);
  to.gauge("atoll_expert_rows_mean", "Rows of the layer's experts on average",
           number(rows) / static_cast<double>(expert_rows.size()), labels);
}

void add_cluster(const ClusterSnapshot& cluster, Families& to) {
  add_step_parts(cluster, to);
  for (const auto& node : cluster.nodes) add_node(node, to);
  for (size_t layer = 0; layer < cluster.expert_rows.size(); ++layer) {
    add_layer(layer, cluster.expert_rows[layer], to);
  }
}

void add_http(const http::HttpStats& http, Families& to) {
  to.gauge("atoll_http_connections", "Open connections", number(http.connections));
  to.gauge("atoll_http_requests_in_flight", "HTTP requests not yet answered",
           number(http.in_flight));
  to.counter("atoll_http_connections_accepted_total", "Connections accepted",
             number(http.accepted));
  to.counter("atoll_http_slow_clients_dropped_total",
             "Connections closed because their client reads too slowly", number(http.dropped_slow));
  for (const auto& [status, count] : http.refused) {
    to.counter(
        "atoll_http_refused_total",
        "Requests that no path of this API answered: malformed, too large, too slow, without "
        "a key, or for what isn't there",
        number(count), {{"status", fmt::format("{}", status)}});
  }
}

// The latest values, in a ring.
class LatestValues {
 public:
  explicit LatestValues(size_t max) : max_(max) {}
  void add(double value) {
    if (values_.size() < max_) {
      values_.push_back(value);
    } else {
      values_[next_] = value;
    }
    next_ = (next_ + 1) % max_;
  }
  RecentTimes::Quantiles quantiles() const {
    std::vector<double> sorted = values_;
    std::sort(sorted.begin(), sorted.end());
    const auto at = [&](double share) {
      if (sorted.empty()) return 0.0;
      return sorted[static_cast<size_t>(share * static_cast<double>(sorted.size() - 1) + 0.5)];
    };
    return {.count = std::ssize(sorted), .p50 = at(0.5), .p99 = at(0.99)};
  }

 private:
  const size_t max_;
  std::vector<double> values_;
  size_t next_ = 0;
};

}  // namespace

struct Metrics::Impl {
  LatestValues first_tokens{500}, next_tokens{2000};
  std::map<int, int64_t> answers_by_status;
  prometheus::Registry registry;
  prometheus::Family<prometheus::Counter>& answers =
      prometheus::BuildCounter()
          .Name("atoll_http_requests_total")
          .Help("Requests answered by a path of this API, by status")
          .Register(registry);
  prometheus::Family<prometheus::Counter>& finished =
      prometheus::BuildCounter()
          .Name("atoll_request_success_total")
          .Help("Requests for text that ended, by reason")
          .Register(registry);
  Histogram& first_token =
      histogram("atoll_time_to_first_token_seconds", "From a request's arrival to its first token",
                kFirstTokenBuckets);
  Histogram& next_token = histogram("atoll_inter_token_latency_seconds",
                                    "From one token of a sequence to its next", kTokenBuckets);
  Histogram& per_token =
      histogram("atoll_time_per_output_token_seconds",
                "Mean time per token after a request's first one", kTokenBuckets);
  Histogram& request = histogram("atoll_e2e_request_latency_seconds",
                                 "From a request's arrival to its end", kRequestBuckets);
  Histogram& preparing =
      histogram("atoll_request_prepare_time_seconds",
                "From a request's arrival until it is parsed and tokenized", kFirstTokenBuckets);
  Histogram& queued =
      histogram("atoll_request_queue_time_seconds",
                "From a sequence's submission until it entered the batch", kFirstTokenBuckets);
  Histogram& prompt_tokens =
      histogram("atoll_request_prompt_tokens", "Prompt tokens of a request", kCountBuckets);
  Histogram& generated_tokens =
      histogram("atoll_request_generation_tokens", "Tokens generated for a request", kCountBuckets);

  Histogram& histogram(const std::string& name, const std::string& help,
                       const Histogram::BucketBoundaries& buckets) {
    return prometheus::BuildHistogram().Name(name).Help(help).Register(registry).Add({}, buckets);
  }
};

Metrics::Metrics(const std::string& model_name, const std::string& version)
    : impl_(std::make_unique<Impl>()) {
  prometheus::BuildGauge()
      .Name("atoll_build_info")
      .Help("Always 1; the labels say what runs here")
      .Register(impl_->registry)
      .Add({{"model_name", model_name}, {"version", version}})
      .Set(1);
}
Metrics::~Metrics() = default;

void Metrics::count_answer(std::string_view path, int status) {
  impl_->answers.Add({{"path", std::string(path)}, {"status", fmt::format("{}", status)}})
      .Increment();
  // Who only looks at the server is left out.
  if (path.starts_with("/v1/")) ++impl_->answers_by_status[status];
}
void Metrics::observe_first_token(double seconds) {
  impl_->first_token.Observe(seconds);
  impl_->first_tokens.add(seconds);
}
void Metrics::observe_next_token(double seconds) {
  impl_->next_token.Observe(seconds);
  impl_->next_tokens.add(seconds);
}
RecentTimes Metrics::recent_times() const {
  return {impl_->first_tokens.quantiles(), impl_->next_tokens.quantiles()};
}
const std::map<int, int64_t>& Metrics::answers() const { return impl_->answers_by_status; }
void Metrics::observe_prepared(double seconds) { impl_->preparing.Observe(seconds); }
void Metrics::observe_queued(double seconds) { impl_->queued.Observe(seconds); }

void Metrics::count_finished(const FinishedRequest& request) {
  impl_->finished.Add({{"finished_reason", request.finished_reason}}).Increment();
  impl_->request.Observe(request.seconds);
  if (request.time_per_token_s >= 0) impl_->per_token.Observe(request.time_per_token_s);
  impl_->prompt_tokens.Observe(number(request.prompt_tokens));
  impl_->generated_tokens.Observe(number(request.generated_tokens));
}

std::string Metrics::text(const GenerationStats& generation, const ClusterSnapshot& cluster,
                          const http::HttpStats& http) const {
  Families families;
  add_generation(generation, families);
  add_cluster(cluster, families);
  add_http(http, families);
  std::vector<MetricFamily> all = impl_->registry.Collect();
  for (MetricFamily& family : families.take()) all.push_back(std::move(family));
  std::ostringstream text;
  prometheus::TextSerializer().Serialize(text, all);
  return text.str();
}

}  // namespace atl::coordinator
