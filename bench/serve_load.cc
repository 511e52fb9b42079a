#include "bench/serve_load.h"

#include <fmt/format.h>
#include <netdb.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <mutex>
#include <nlohmann/json.hpp>
#include <set>
#include <thread>

#include "base/check.h"
#include "base/rng.h"
#include "base/one_line.h"
#include "http/http_error.h"

namespace atl::bench {
namespace {

using http::HttpAnswer;
using http::HttpClient;
using http::HttpClientOptions;
using http::HttpClientRequest;
using http::HttpUrl;
using nlohmann::json;
using std::chrono::milliseconds;
using TimePoint = Clock::TimePoint;

constexpr milliseconds kBackOff{100};  // of a closed loop whose request was refused
// Streams of random numbers.
constexpr uint64_t kPromptStream = 0, kPrefixStream = 1, kArrivalStream = 2;

TimePoint now() { return std::chrono::steady_clock::now(); }

HttpUrl without_v1(HttpUrl url) {
  if (url.path.ends_with("/v1")) url.path.resize(url.path.size() - 3);
  return url;
}

HttpClientOptions client_options(const ServeLoadOptions& options) {
  HttpClientOptions client;
  client.silence_timeout = options.request_timeout;
  return client;
}

int64_t integer(const json& object, const char* key) {
  const auto value = object.find(key);
  return value != object.end() && value->is_number_integer() ? value->get<int64_t>() : 0;
}
std::string text_of(const json& object, const char* key) {
  const auto value = object.find(key);
  return value != object.end() && value->is_string() ? value->get<std::string>() : "";
}

// One request under way.
struct Request {
  TimePoint due;
  std::vector<TimePoint> events;  // those that bring text or the end
  int64_t prompt_tokens = 0, cached_tokens = 0, output_tokens = 0;
  bool finished = false;  // a choice told why it ended
  std::string error;      // in the stream
};

void read_event(std::string_view data, TimePoint arrived, Request* request) {
  if (data == "[DONE]") return;
  const json event = json::parse(data, nullptr, false);
  if (!event.is_object()) {
    request->error = "an event is not a JSON object";
    return;
  }
  if (event.contains("error")) request->error = event["error"].dump().substr(0, 300);
  const auto choices = event.find("choices");
  if (choices != event.end() && choices->is_array() && !choices->empty()) {
    request->events.push_back(arrived);
    const json& choice = choices->front();
    if (choice.is_object() && choice.contains("finish_reason")) {
      request->finished = request->finished || !choice["finish_reason"].is_null();
    }
  }
  const auto usage = event.find("usage");
  if (usage == event.end() || !usage->is_object()) return;
  request->prompt_tokens = integer(*usage, "prompt_tokens");
  request->output_tokens = integer(*usage, "completion_tokens");
  const auto details = usage->find("prompt_tokens_details");
  if (details != usage->end() && details->is_object()) {
    request->cached_tokens = integer(*details, "cached_tokens");
  }
}

}  // namespace

double percentile(const std::vector<double>& values, double q) {
  CHECK(!values.empty());
  const double place = q * static_cast<double>(values.size() - 1);
  const auto low = static_cast<size_t>(place);
  const size_t high = std::min(low + 1, values.size() - 1);
  return values[low] + (values[high] - values[low]) * (place - static_cast<double>(low));
}

struct ServeLoad::Impl {
  explicit Impl(const ServeLoadOptions& options_given)
      : options(options_given), client(without_v1(options.url), client_options(options)) {}

  std::vector<std::pair<std::string, std::string>> headers() const {
    std::vector<std::pair<std::string, std::string>> fields = {
        {"Content-Type", "application/json"}};
    if (!options.api_key.empty()) fields.emplace_back("Authorization", "Bearer " + options.api_key);
    return fields;
  }

  json ask_json(HttpClientRequest request);
  void find_model();
  void find_token_ids();
  int32_t token_id(uint64_t stream, uint64_t request, uint64_t position) const;
  std::string request_body(uint64_t number) const;

  // One case: started requests, ended requests, and what is to be started next.
  struct Run;
  void start_next(Run& run);
  void start(Run& run, TimePoint due);
  void schedule_arrival(Run& run);
  void end_request(Run& run, const Request& request, const Result<HttpAnswer>& answer);
  bool count(Run& run, const Request& request, const Result<HttpAnswer>& answer);
  void count_times(Run& run, const Request& request);

  const ServeLoadOptions options;
  HttpClient client;
  std::string model;
  std::vector<int32_t> ids;
  uint64_t num_requests = 0;  // over all cases: no prompt is sent twice
};

struct ServeLoad::Impl::Run {
  LoadCase load;
  LoadResult result;
  TimePoint begin, next_due;
  int64_t started = 0, under_way = 0, arrivals = 0;
  std::deque<TimePoint> waiting;  // due, but concurrency is reached

  bool may_start_more() const {
    if (load.requests > 0 && started + static_cast<int64_t>(waiting.size()) >= load.requests) {
      return false;
    }
    return load.seconds <= 0 || seconds_between(begin, now()) < load.seconds;
  }
};

json ServeLoad::Impl::ask_json(HttpClientRequest request) {
  request.headers = headers();
  request.timeout = options.request_timeout;
  const std::string what = request.method + " " + request.path;
  const Result<HttpAnswer> answer = client.ask(std::move(request));
  if (!answer) throw LoadError(answer.error().message);
  if (answer->status != 200) throw LoadError(what + ": " + http::http_error_text(*answer));
  json parsed = json::parse(answer->body, nullptr, false);
  if (!parsed.is_object()) throw LoadError(what + ": the answer is not a JSON object");
  return parsed;
}

void ServeLoad::Impl::find_model() {
  model = options.model;
  if (!model.empty()) return;
  const json models = ask_json({.path = "/v1/models"});
  const auto data = models.find("data");
  const bool is_list = data != models.end() && data->is_array() && !data->empty();
  if (is_list && data->front().is_object()) model = text_of(data->front(), "id");
  if (model.empty()) {
    throw LoadError("GET /v1/models names no model; say which one by --model");
  }
}

// Ids of ordinary text: below the vocabulary's size there may be special and unused ones.
void ServeLoad::Impl::find_token_ids() {
  if (options.vocab > 0) {
    for (int32_t id = 0; id < options.vocab; ++id) ids.push_back(id);
    return;
  }
  std::string text;
  for (char a = 'a'; a <= 'z'; ++a) {
    for (const char b : std::string_view("aeiouy")) text += std::string(1, a) + b + " ";
    text += fmt::format("{}. {} ", static_cast<char>(a - 32), a - 'a');
  }
  const json body = {{"model", model}, {"prompt", text}, {"add_special_tokens", false}};
  const json answer = ask_json({.method = "POST", .path = "/tokenize", .body = body.dump()});
  std::set<int32_t> distinct;
  for (const json& id : answer.value("tokens", json::array())) {
    if (id.is_number_integer()) distinct.insert(id.get<int32_t>());
  }
  if (distinct.size() < 8) {
    throw LoadError("POST /tokenize gave fewer than 8 different token ids; use --vocab");
  }
  ids.assign(distinct.begin(), distinct.end());
}

int32_t ServeLoad::Impl::token_id(uint64_t stream, uint64_t request, uint64_t position) const {
  const double u = uniform_f64(options.seed * 3 + stream, {request, position});
  return ids[static_cast<size_t>(u * static_cast<double>(ids.size()))];
}

std::string ServeLoad::Impl::request_body(uint64_t number) const {
  json prompt = json::array();
  for (int64_t i = 0; i < options.prompt_tokens; ++i) {
    const bool shared = i < options.shared_prefix;
    prompt.push_back(shared ? token_id(kPrefixStream, 0, static_cast<uint64_t>(i))
                            : token_id(kPromptStream, number, static_cast<uint64_t>(i)));
  }
  // ignore_eos and min_tokens are vLLM's extensions: the answer is as long as it may be.
  return json{{"model", model},
              {"prompt", std::move(prompt)},
              {"max_tokens", options.output_tokens},
              {"min_tokens", options.output_tokens},
              {"ignore_eos", true},
              {"temperature", 1.0},
              {"seed", number},
              {"stream", true},
              {"stream_options", {{"include_usage", true}}}}
      .dump();
}

void ServeLoad::Impl::start_next(Run& run) {
  while (run.load.concurrency == 0 || run.under_way < run.load.concurrency) {
    if (!run.waiting.empty()) {
      const TimePoint due = run.waiting.front();
      run.waiting.pop_front();
      start(run, due);
    } else if (run.load.rate <= 0 && run.may_start_more()) {
      start(run, now());
    } else {
      return;
    }
  }
}

void ServeLoad::Impl::start(Run& run, TimePoint due) {
  ++run.started;
  ++run.under_way;
  const auto request = std::make_shared<Request>();
  request->due = due;
  HttpClientRequest sent{.method = "POST",
                         .path = "/v1/completions",
                         .headers = headers(),
                         .body = request_body(++num_requests),
                         .timeout = options.request_timeout};
  client.start(
      std::move(sent),
      [request](std::string_view data, TimePoint arrived) {
        read_event(data, arrived, request.get());
      },
      [this, &run, request](Result<HttpAnswer> answer) { end_request(run, *request, answer); });
}

void ServeLoad::Impl::schedule_arrival(Run& run) {
  const double u =
      uniform_f64(options.seed * 3 + kArrivalStream, {static_cast<uint64_t>(run.arrivals++), 0});
  const std::chrono::duration<double> gap(-std::log1p(-u) / run.load.rate);
  run.next_due += std::chrono::duration_cast<std::chrono::steady_clock::duration>(gap);
  const TimePoint due = run.next_due;
  client.call_after(due - now(), [this, &run, due] {
    if (!run.may_start_more()) return;
    run.waiting.push_back(due);
    start_next(run);
    schedule_arrival(run);
  });
}

void ServeLoad::Impl::end_request(Run& run, const Request& request,
                                  const Result<HttpAnswer>& answer) {
  --run.under_way;
  run.result.seconds = seconds_between(run.begin, now());
  const bool refused = count(run, request, answer);
  if (!refused || run.load.rate > 0) return start_next(run);
  client.call_after(kBackOff, [this, &run] { start_next(run); });
}

// True if the server refused it for now.
bool ServeLoad::Impl::count(Run& run, const Request& request, const Result<HttpAnswer>& answer) {
  LoadResult& result = run.result;
  std::string failure;
  if (!answer) {
    failure = answer.error().message;
  } else if (answer->status == 429 || answer->status == 503) {
    ++result.refused;
    return true;
  } else if (answer->status != 200) {
    failure = http::http_error_text(*answer);
  } else if (!request.error.empty()) {
    failure = "in the stream: " + one_line(request.error);
  } else if (!request.finished || request.events.empty()) {
    failure = "the stream ended without a finish_reason";
  }
  if (!failure.empty()) {
    ++result.failed;
    if (result.first_failure.empty()) result.first_failure = failure;
    return false;
  }
  ++result.ok;
  result.other_length += request.output_tokens != options.output_tokens ? 1 : 0;
  result.prompt_tokens += request.prompt_tokens;
  result.cached_tokens += request.cached_tokens;
  result.output_tokens += request.output_tokens;
  count_times(run, request);
  return false;
}

void ServeLoad::Impl::count_times(Run& run, const Request& request) {
  LoadResult& result = run.result;
  const double ttft = seconds_between(request.due, request.events.front());
  const double rest = seconds_between(request.events.front(), request.events.back());
  const double tpot =
      request.output_tokens > 1 ? rest / static_cast<double>(request.output_tokens - 1) : 0;
  result.ttft.push_back(ttft);
  if (request.output_tokens > 1) result.tpot.push_back(tpot);
  for (size_t i = 1; i < request.events.size(); ++i) {
    result.itl.push_back(seconds_between(request.events[i - 1], request.events[i]));
  }
  const bool in_time = (options.slo_ttft_ms <= 0 || ttft * 1e3 <= options.slo_ttft_ms) &&
                       (options.slo_tpot_ms <= 0 || tpot * 1e3 <= options.slo_tpot_ms);
  result.within_slo += in_time ? 1 : 0;
}

ServeLoad::ServeLoad(const ServeLoadOptions& options) : impl_(std::make_unique<Impl>(options)) {
  impl_->find_model();
  impl_->find_token_ids();
  LoadCase warm_up;
  warm_up.concurrency = warm_up.requests = 1;
  const LoadResult result = run(warm_up);
  if (result.ok == 1) return;
  throw LoadError("the first request was not answered: " +
                  (result.refused ? "the server is busy (429 or 503)" : result.first_failure));
}
ServeLoad::~ServeLoad() = default;

const std::string& ServeLoad::model() const { return impl_->model; }

LoadResult ServeLoad::run(const LoadCase& load) {
  CHECK(load.requests > 0 || load.seconds > 0);
  CHECK(load.concurrency > 0 || load.rate > 0);
  Impl::Run run;
  run.load = load;
  run.begin = run.next_due = now();
  if (load.rate > 0) {
    impl_->schedule_arrival(run);
  } else {
    impl_->start_next(run);
  }
  impl_->client.run();
  for (auto* values : {&run.result.ttft, &run.result.tpot, &run.result.itl}) {
    std::sort(values->begin(), values->end());
  }
  return std::move(run.result);
}

// ---- Bystanders

namespace {

constexpr milliseconds kSlowReadPeriod{100};
constexpr size_t kSlowReadBytes = 256;
constexpr int kSlowReceiveBytes = 4096;
constexpr int kSlowRequests = 200;
constexpr int kSettlingRequests = 10;

int connect_to(const HttpUrl& url, int receive_bytes) {
  addrinfo hints{}, *found = nullptr;
  hints.ai_socktype = SOCK_STREAM;
  const std::string port = std::to_string(url.port);
  const int code = getaddrinfo(url.host.c_str(), port.c_str(), &hints, &found);
  if (code != 0) throw LoadError("no address of " + url.host + ": " + gai_strerror(code));
  int fd = -1, error = 0;
  for (const addrinfo* a = found; a && fd < 0; a = a->ai_next) {
    fd = socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC, a->ai_protocol);
    if (fd >= 0 && receive_bytes > 0) {
      setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &receive_bytes, sizeof(receive_bytes));
    }
    if (fd >= 0 && connect(fd, a->ai_addr, a->ai_addrlen) == 0) break;
    error = errno;
    if (fd >= 0) close(fd);
    fd = -1;
  }
  freeaddrinfo(found);
  if (fd < 0) throw LoadError(fmt::format("connect to {}: {}", url.host, std::strerror(error)));
  return fd;
}

void allow_descriptors(size_t wanted) {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= wanted) return;
  limit.rlim_cur = std::min<rlim_t>(limit.rlim_max, wanted);
  setrlimit(RLIMIT_NOFILE, &limit);
}

}  // namespace

struct Bystanders::Impl {
  ~Impl() {
    {
      const std::lock_guard lock(mutex);
      stopping = true;
    }
    changed.notify_all();
    if (reader.joinable()) reader.join();
    for (const int fd : idle) close(fd);
    for (const int fd : slow) close(fd);
  }

  void read_slowly() {
    std::unique_lock lock(mutex);
    while (!changed.wait_for(lock, kSlowReadPeriod, [this] { return stopping; })) {
      for (const int fd : slow) {
        char bytes[kSlowReadBytes];
        (void)!recv(fd, bytes, sizeof(bytes), MSG_DONTWAIT);
      }
    }
  }

  std::vector<int> idle, slow;
  std::mutex mutex;
  std::condition_variable changed;
  bool stopping = false;
  std::thread reader;
};

Bystanders::Bystanders(const HttpUrl& url, int idle_connections, int slow_readers)
    : impl_(std::make_unique<Impl>()) {
  allow_descriptors(static_cast<size_t>(idle_connections + slow_readers) + 4096);
  for (int i = 0; i < idle_connections; ++i) impl_->idle.push_back(connect_to(url, 0));
  std::string requests;
  for (int i = 0; i < kSlowRequests; ++i) {
    requests +=
        "GET " + without_v1(url).path + "/metrics HTTP/1.1\r\nHost: " + url.host + "\r\n\r\n";
  }
  for (int i = 0; i < slow_readers; ++i) {
    impl_->slow.push_back(connect_to(url, kSlowReceiveBytes));
    (void)!send(impl_->slow.back(), requests.data(), requests.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
  }
  if (slow_readers == 0) return;
  // Until their buffers are full the server works for them: that is no part of what is measured.
  HttpClient client(without_v1(url));
  for (int i = 0; i < kSettlingRequests; ++i) (void)client.ask({.path = "/health"});
  impl_->reader = std::thread([impl = impl_.get()] { impl->read_slowly(); });
}
Bystanders::~Bystanders() = default;

int Bystanders::closed() const {
  int count = 0;
  for (const auto* sockets : {&impl_->idle, &impl_->slow}) {
    for (const int fd : *sockets) {
      pollfd p{fd, POLLRDHUP, 0};
      if (poll(&p, 1, 0) == 1 && (p.revents & (POLLRDHUP | POLLHUP | POLLERR))) ++count;
    }
  }
  return count;
}

}  // namespace atl::bench
