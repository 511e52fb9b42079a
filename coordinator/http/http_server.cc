#include "coordinator/http/http_server.h"

#include <sys/resource.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/beast/http/status.hpp>
#include <condition_variable>
#include <ctime>
#include <deque>
#include <limits>
#include <map>
#include <mutex>
#include <random>
#include <thread>
#include <unordered_map>

#include "base/check.h"
#include "base/log.h"
#include "base/result.h"
#include "base/rng.h"
#include "coordinator/http/request_parser.h"

namespace atl::coordinator {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;
using std::chrono::milliseconds;
using TimePoint = std::chrono::steady_clock::time_point;

constexpr size_t kReadBytes = 64 << 10;  // taken from a socket at once; one buffer for all
// A client may send requests ahead of the answers; they are not begun while more than this is
// unsent, so that what it doesn't read stays in its own kernel.
constexpr size_t kUnsentBeforeNextRequest = 256 << 10;
// A body that was refused is read and dropped up to here, to keep the connection.
constexpr uint64_t kDiscardedBodyMax = 64 << 10;
// Closing a socket with unread bytes makes the kernel reset the connection, and the client may lose
// the answer that told it why. So what still comes is read for a while.
constexpr milliseconds kLingerTime{2000};
constexpr size_t kLingerBytesMax = 64 << 20;
constexpr milliseconds kAcceptBackOff{100};
constexpr size_t kRequestIdBytesMax = 128;
constexpr TimePoint kNever = TimePoint::max();

TimePoint now() { return std::chrono::steady_clock::now(); }

// Whatever a caller's function throws stays here.
template <typename Function>
bool guarded(const char* what, Function&& function) {
  try {
    function();
    return true;
  } catch (const std::exception& e) {
    log_error("{} threw: {}", what, e.what());
  } catch (...) {
    log_error("{} threw something unknown", what);
  }
  return false;
}

bool is_sane_request_id(std::string_view id) {
  return !id.empty() && id.size() <= kRequestIdBytesMax &&
         std::all_of(id.begin(), id.end(), [](char c) { return c > 0x20 && c < 0x7f; });
}

// Field names and values of ours may hold what a client sent; an end of line in them would begin
// another field.
void append_field_text(std::string& out, std::string_view text) {
  for (const char c : text) out.push_back(static_cast<unsigned char>(c) < 0x20 ? ' ' : c);
}

std::string http_date(std::time_t time) {
  std::tm parts{};
  gmtime_r(&time, &parts);
  char text[64];
  const size_t length = std::strftime(text, sizeof(text), "%a, %d %b %Y %H:%M:%S GMT", &parts);
  return {text, length};
}

std::string printed(const tcp::endpoint& endpoint) {
  const std::string address = endpoint.address().to_string();
  const std::string port = std::to_string(endpoint.port());
  return endpoint.address().is_v6() ? "[" + address + "]:" + port : address + ":" + port;
}

// A soft limit of 1,024 descriptors is common, and the hard one much higher.
void raise_descriptor_limit(size_t wanted) {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= wanted) return;
  limit.rlim_cur = std::min<rlim_t>(limit.rlim_max, wanted);
  setrlimit(RLIMIT_NOFILE, &limit);
}

// How many bytes of bodies are held, by requests being read and by exchanges still alive.
struct BodyBudget {
  explicit BodyBudget(size_t bytes_max_given) : bytes_max(bytes_max_given) {}
  const size_t bytes_max;
  std::atomic<size_t> used{0};
};

class BodyLease {
 public:
  explicit BodyLease(std::shared_ptr<BodyBudget> budget) : budget_(std::move(budget)) {}
  ~BodyLease() {
    if (budget_) budget_->used -= bytes_;
  }
  BodyLease(BodyLease&& other) noexcept
      : budget_(std::move(other.budget_)), bytes_(std::exchange(other.bytes_, 0)) {}
  BodyLease& operator=(BodyLease&& other) noexcept {
    std::swap(budget_, other.budget_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }

  // False if that is more than there is.
  bool grow_to(size_t bytes) {
    const size_t more = bytes - bytes_;
    bytes_ = bytes;
    return budget_->used.fetch_add(more) + more <= budget_->bytes_max;
  }

 private:
  std::shared_ptr<BodyBudget> budget_;
  size_t bytes_ = 0;
};

// The way to the server's thread for those who may outlive the server.
class Gate {
 public:
  explicit Gate(asio::io_context& io) : io_(&io) {}
  void close() {
    const std::lock_guard lock(mutex_);
    io_ = nullptr;
  }
  template <typename Task>
  void post(Task&& task) {
    const std::lock_guard lock(mutex_);
    if (io_) asio::post(*io_, std::forward<Task>(task));
  }

 private:
  std::mutex mutex_;
  asio::io_context* io_;
};

using ExchangeId = uint64_t;  // counts up; 0: none
class Connection;

// What a handler holds. It owns the request and nothing of the connection, so that its last holder
// may be any thread.
class Exchange final : public HttpExchange {
 public:
  Exchange(ExchangeId id, HttpRequest request, BodyLease lease,
           std::weak_ptr<Connection> connection, std::shared_ptr<Gate> gate)
      : id_(id),
        request_(std::move(request)),
        lease_(std::move(lease)),
        connection_(std::move(connection)),
        gate_(std::move(gate)) {}
  ~Exchange() override;

  const HttpRequest& request() const override { return request_; }
  void respond(HttpResponse response) override;
  void begin_events() override;
  bool send_event(std::string_view data) override;
  void end() override;
  void on_gone(std::function<void()> callback) override;

 private:
  const ExchangeId id_;
  const HttpRequest request_;
  const BodyLease lease_;
  const std::weak_ptr<Connection> connection_;
  const std::shared_ptr<Gate> gate_;
  bool ended_ = false;
};

constexpr int kStatusEnd = 600;

struct Counters {
  std::atomic<int64_t> connections{0}, in_flight{0};
  std::atomic<uint64_t> accepted{0}, requests{0}, dropped_slow{0};
  std::array<std::atomic<uint64_t>, kStatusEnd> refused{};  // by status
};

// What connections need of the server. Server's thread.
struct Core {
  Core(HttpOptions options_given, const Clock& clock_given)
      : options(std::move(options_given)),
        clock(clock_given),
        gate(std::make_shared<Gate>(io)),
        bodies(std::make_shared<BodyBudget>(options.bodies_bytes_max)) {
    std::random_device device;
    id_key = {device(), device()};
  }
  ~Core() { gate->close(); }

  std::string make_request_id() {
    const uint64_t n = ++num_ids;
    const auto bits = philox4x32_10({uint32_t(n), uint32_t(n >> 32), 0, 0}, id_key);
    return fmt::format("req-{:08x}{:08x}{:08x}", bits[0], bits[1], bits[2]);
  }
  const std::string& date() {
    const std::time_t second = std::time(nullptr);
    if (second != date_second) {
      date_second = second;
      date_text = http_date(second);
    }
    return date_text;
  }
  HttpResponse error_response(int status, const std::string& message) {
    HttpResponse response;
    const bool made = options.error_response && guarded("the maker of error answers", [&] {
                        response = options.error_response(status, message);
                      });
    if (!made) {
      response = {};
      response.content_type = "text/plain; charset=utf-8";
      response.body = message + "\n";
    }
    response.status = status;
    return response;
  }

  // Behind the callbacks that closing the last connection has posted.
  void stop_if_empty() {
    if (stopping && connections.empty()) asio::post(io, [this] { io.stop(); });
  }

  using Handler = HttpServer::Handler;
  // Null: the answer is in `refusal`.
  const Handler* find_route(const HttpRequest& request, HttpResponse* refusal);

  const HttpOptions options;
  const Clock& clock;
  asio::io_context io{1};  // one thread: keeps the order of what is posted, and needs fewer locks
  std::shared_ptr<Gate> gate;
  std::shared_ptr<BodyBudget> bodies;
  std::map<std::string, std::vector<std::pair<std::string, Handler>>, std::less<>> routes;
  std::unordered_map<Connection*, std::shared_ptr<Connection>> connections;
  Counters counters;
  std::vector<char> scratch = std::vector<char>(kReadBytes);
  std::array<uint32_t, 2> id_key{};
  uint64_t num_ids = 0;
  ExchangeId last_exchange = 0;
  std::time_t date_second = 0;
  std::string date_text;
  bool stopping = false;
};

const Core::Handler* Core::find_route(const HttpRequest& request, HttpResponse* refusal) {
  const auto path = routes.find(request.path);
  if (path == routes.end()) {
    *refusal = error_response(404, "there is nothing at " + request.path.substr(0, 256));
    return nullptr;
  }
  std::string allow;
  for (const auto& [method, handler] : path->second) {
    if (method == request.method || (method == "GET" && request.method == "HEAD")) return &handler;
    allow += (allow.empty() ? "" : ", ") + method + (method == "GET" ? ", HEAD" : "");
  }
  *refusal = error_response(
      405, request.method.substr(0, 64) + " is not allowed for " + request.path + "; " + allow);
  refusal->headers.emplace_back("Allow", allow);
  return nullptr;
}

// One client. A read is always pending (unless the client is far ahead with requests), so that its
// going away is noticed at once, also while an answer is made. One request is answered at a time;
// what the client sends ahead waits in `in_`.
//
//   kIdle -> kHeader -> kBody -> kAnswering -> kIdle ...        keep-alive
//                                kAnswering -> kStreaming -> kIdle ...
//   any of them -> kDraining (the last bytes are being sent) -> kLingering -> kClosed
class Connection : public std::enable_shared_from_this<Connection> {
 public:
  Connection(Core& core, tcp::socket socket, std::string remote)
      : core_(core), socket_(std::move(socket)), timer_(core.io), remote_(std::move(remote)) {}

  void start() {
    enter(Phase::kIdle);
    schedule_turn();
  }
  // Too many connections: an answer without a request.
  void start_refused() { refuse(503, "too many connections; try again later"); }
  void stop();
  void close();

  // Of the exchange; they do nothing if it isn't the current one any more.
  void respond(ExchangeId id, const HttpResponse& response);
  void begin_events(ExchangeId id);
  bool send_event(ExchangeId id, std::string_view data);
  void end(ExchangeId id);
  bool on_gone(ExchangeId id, std::function<void()> callback);
  void abandoned(ExchangeId id);

 private:
  enum class Phase {
    kIdle,
    kHeader,
    kBody,
    kAnswering,
    kStreaming,
    kDraining,
    kLingering,
    kClosed
  };

  bool in_request() const { return phase_ == Phase::kHeader || phase_ == Phase::kBody; }
  bool is_current(ExchangeId id, Phase phase) const { return id == current_ && phase == phase_; }
  std::string_view unparsed() const { return std::string_view(in_).substr(in_taken_); }
  size_t unsent() const { return out_.size() + sending_.size() - sent_; }

  void enter(Phase phase);
  void schedule_turn();
  void turn();

  void wait_readable();
  void on_readable(const error_code& error);
  void on_read(size_t bytes);
  void on_end_of_input();
  void process();
  bool can_parse() const;
  bool parse_some();
  void drop_parsed();
  void on_header();
  void on_request();
  void next_request();

  void refuse(int status, const std::string& message);
  void answer_error(const HttpResponse& response, bool keep);
  void append_response(const HttpResponse& response);
  void append_head(int status, const HttpResponse& response, std::string_view framing);
  void append_event_chunk(std::string_view text, std::string_view tail);
  void finish_answer();
  void linger();

  void flush();
  void on_written(const error_code& error, size_t bytes);
  void drop_slow();

  void arm_timer();
  TimePoint next_deadline() const;
  void on_timer();

  Core& core_;
  tcp::socket socket_;
  asio::steady_timer timer_;
  const std::string remote_;
  Phase phase_ = Phase::kIdle;
  bool turn_scheduled_ = false, in_process_ = false, waiting_readable_ = false,
       sending_now_ = false;

  std::string in_;  // read and, from in_taken_ on, not yet parsed
  size_t in_taken_ = 0;
  size_t lingered_bytes_ = 0;
  std::unique_ptr<RequestParser> parser_;  // of the request being read
  std::optional<BodyLease> lease_;
  bool discard_body_ = false;  // the request was refused; its body is read to keep the connection
  TimePoint arrived_{};

  ExchangeId current_ = 0;
  std::string request_id_;
  bool head_only_ = false, keep_alive_ = true, http_1_1_ = true;
  std::function<void()> on_gone_;

  std::string out_, sending_;  // waiting, and in the kernel's hands from sent_ on
  size_t sent_ = 0;
  TimePoint read_deadline_ = kNever, write_deadline_ = kNever, comment_at_ = kNever;
  TimePoint armed_for_ = kNever;
};

// ---- phases

void Connection::enter(Phase phase) {
  phase_ = phase;
  comment_at_ = phase == Phase::kStreaming ? now() + core_.options.keep_alive : kNever;
  switch (phase) {
    case Phase::kIdle:
      read_deadline_ = now() + core_.options.idle_timeout;
      break;
    case Phase::kHeader:
      read_deadline_ = now() + core_.options.header_timeout;
      break;
    case Phase::kBody:
      read_deadline_ = now() + core_.options.body_timeout;
      break;
    case Phase::kLingering:
      read_deadline_ = now() + kLingerTime;
      break;
    default:
      read_deadline_ = kNever;
  }
}

// One turn after whatever happened: several events of one task become one write.
void Connection::schedule_turn() {
  if (turn_scheduled_ || phase_ == Phase::kClosed) return;
  turn_scheduled_ = true;
  asio::post(core_.io, [self = shared_from_this()] {
    self->turn_scheduled_ = false;
    self->turn();
  });
}

void Connection::turn() {
  process();
  flush();
  if (phase_ == Phase::kClosed) return;
  wait_readable();
  arm_timer();
}

void Connection::close() {
  if (phase_ == Phase::kClosed) return;
  const auto self = shared_from_this();
  phase_ = Phase::kClosed;
  error_code ignored;
  socket_.close(ignored);
  timer_.cancel();
  if (current_ != 0) --core_.counters.in_flight;
  current_ = 0;
  parser_.reset();
  lease_.reset();
  if (on_gone_) {
    // Later, so that no caller of ours is called back from inside its own call.
    asio::post(core_.io, [callback = std::exchange(on_gone_, nullptr)] {
      guarded("a callback of HttpExchange::on_gone", callback);
    });
  }
  core_.connections.erase(this);
  --core_.counters.connections;
  core_.stop_if_empty();
}

void Connection::stop() {
  keep_alive_ = false;
  const bool answering = phase_ == Phase::kAnswering || phase_ == Phase::kStreaming;
  if (answering) return;
  if (unsent() == 0) return close();
  enter(Phase::kDraining);
  schedule_turn();
}

void Connection::linger() {
  if (core_.stopping && unparsed().empty()) return close();
  error_code error;
  socket_.shutdown(tcp::socket::shutdown_send, error);
  if (error) return close();
  in_.clear();
  in_taken_ = 0;
  enter(Phase::kLingering);
}

// ---- reading

void Connection::wait_readable() {
  const size_t ahead_max = core_.options.header_bytes_max + kReadBytes;
  const bool far_ahead = phase_ != Phase::kLingering && unparsed().size() > ahead_max;
  if (waiting_readable_ || far_ahead || phase_ == Phase::kClosed) return;
  waiting_readable_ = true;
  socket_.async_wait(tcp::socket::wait_read, [self = shared_from_this()](const error_code& error) {
    self->waiting_readable_ = false;
    self->on_readable(error);
  });
}

void Connection::on_readable(const error_code& error) {
  if (phase_ == Phase::kClosed) return;
  if (error) return close();
  error_code read_error;
  const size_t bytes = socket_.read_some(asio::buffer(core_.scratch), read_error);
  if (read_error == asio::error::would_block || read_error == asio::error::interrupted) {
    return wait_readable();
  }
  if (read_error == asio::error::eof) return on_end_of_input();
  if (read_error) return close();
  on_read(bytes);
}

void Connection::on_read(size_t bytes) {
  if (phase_ == Phase::kLingering || phase_ == Phase::kDraining) {
    lingered_bytes_ += bytes;
    if (lingered_bytes_ > kLingerBytesMax) return close();
    return wait_readable();
  }
  in_.append(core_.scratch.data(), bytes);
  turn();
}

// A client that ends its side while it waits for an answer counts as gone: a socket that was closed
// looks the same. What was answered is still sent.
void Connection::on_end_of_input() {
  const bool answering = phase_ == Phase::kAnswering || phase_ == Phase::kStreaming;
  if (answering || unsent() == 0) return close();
  enter(Phase::kDraining);
}

bool Connection::can_parse() const {
  return (phase_ == Phase::kIdle || in_request()) && !unparsed().empty() && !core_.stopping &&
         unsent() < kUnsentBeforeNextRequest;
}

void Connection::process() {
  if (in_process_) return;
  in_process_ = true;
  while (can_parse() && parse_some()) {
  }
  drop_parsed();
  in_process_ = false;
}

void Connection::drop_parsed() {
  if (in_taken_ == in_.size()) {
    in_taken_ = 0;
    if (in_.capacity() > 4096) {
      std::string().swap(in_);  // thousands of idle connections shouldn't each keep 64 KiB
    } else {
      in_.clear();
    }
  } else if (in_taken_ > kReadBytes) {
    in_.erase(0, std::exchange(in_taken_, 0));
  }
}

// False: more bytes are needed, or this request is the last one.
bool Connection::parse_some() {
  if (phase_ == Phase::kIdle) {
    // Empty lines between requests are left over from old clients (RFC 9112 2.2).
    const size_t begin = in_.find_first_not_of("\r\n", in_taken_);
    in_taken_ = std::min(begin, in_.size());
    if (in_taken_ == in_.size()) return false;
    next_request();
  }
  const bool had_header = parser_->has_header();
  const size_t consumed = parser_->feed(unparsed());
  in_taken_ += consumed;
  if (parser_->state() == RequestParser::State::kFailed) {
    const RequestParser::Refusal refusal = parser_->refusal();
    refuse(refusal.status, refusal.message);
    return false;
  }
  if (parser_->has_header() && !had_header) on_header();
  if (!in_request()) return false;
  if (phase_ == Phase::kBody && !lease_->grow_to(parser_->body_bytes())) {
    refuse(503, "the server holds as many bytes of requests as it may; try again later");
    return false;
  }
  if (parser_->state() == RequestParser::State::kDone) {
    on_request();
    return true;
  }
  return consumed > 0;
}

void Connection::next_request() {
  parser_ = std::make_unique<RequestParser>(
      RequestParser::Limits{core_.options.header_bytes_max, core_.options.body_bytes_max});
  lease_.emplace(core_.bodies);
  discard_body_ = false;
  head_only_ = false;
  http_1_1_ = true;
  request_id_.clear();
  arrived_ = core_.clock.now();
  enter(Phase::kHeader);
}

// Refuses before the body what can be refused before it.
void Connection::on_header() {
  enter(Phase::kBody);
  HttpRequest& request = parser_->request();
  const std::string_view id = request.header("x-request-id");
  request_id_ = is_sane_request_id(id) ? std::string(id) : core_.make_request_id();
  request.id = request_id_;
  request.remote = remote_;
  request.arrived = arrived_;
  head_only_ = request.method == "HEAD";
  http_1_1_ = parser_->is_http_1_1();
  keep_alive_ = parser_->keep_alive();
  ++core_.counters.requests;

  std::optional<HttpResponse> refusal;
  const bool asked = guarded("the check of a request's header", [&] {
    if (core_.options.admit) refusal = core_.options.admit(request);
  });
  if (!asked) refusal = core_.error_response(500, "internal error");
  HttpResponse no_route;
  if (!refusal && !core_.find_route(request, &no_route)) refusal = std::move(no_route);
  if (!refusal) {
    const bool body_follows = parser_->state() == RequestParser::State::kBody;
    if (parser_->expects_continue() && body_follows && unparsed().empty()) {
      out_ += "HTTP/1.1 100 Continue\r\n\r\n";
    }
    return;
  }
  const bool body_is_small = parser_->state() == RequestParser::State::kDone ||
                             (parser_->content_length() && !parser_->expects_continue() &&
                              *parser_->content_length() <= kDiscardedBodyMax);
  answer_error(*refusal, body_is_small);
  discard_body_ = true;
}

void Connection::on_request() {
  if (discard_body_) {
    lease_.reset();
    parser_.reset();
    return enter(Phase::kIdle);
  }
  HttpRequest request = std::move(parser_->request());
  request.body = parser_->take_body();
  HttpResponse ignored;
  const Core::Handler* handler = core_.find_route(request, &ignored);
  CHECK(handler != nullptr);  // on_header() found it, and routes only get more
  const auto exchange = std::make_shared<Exchange>(
      ++core_.last_exchange, std::move(request), std::move(*lease_), weak_from_this(), core_.gate);
  lease_.reset();
  parser_.reset();
  current_ = core_.last_exchange;
  enter(Phase::kAnswering);
  ++core_.counters.in_flight;
  const ExchangeId id = current_;
  if (guarded("an HTTP handler", [&] { (*handler)(exchange); })) return;
  if (is_current(id, Phase::kAnswering)) {
    respond(id, core_.error_response(500, "internal error"));
  } else if (is_current(id, Phase::kStreaming)) {
    close();
  }
}

// ---- answering

// Ends the connection: nothing of what follows can be trusted or is wanted.
void Connection::refuse(int status, const std::string& message) {
  if (parser_ && request_id_.empty()) {
    const std::string_view id = parser_->request().header("x-request-id");
    if (is_sane_request_id(id)) request_id_ = id;
    head_only_ = parser_->request().method == "HEAD";
  }
  if (discard_body_) return close();  // it has its answer
  if (request_id_.empty()) request_id_ = core_.make_request_id();
  answer_error(core_.error_response(status, message), false);
}

void Connection::answer_error(const HttpResponse& response, bool keep) {
  keep_alive_ = keep && keep_alive_;
  if (response.status >= 400 && response.status < kStatusEnd) {
    ++core_.counters.refused[static_cast<size_t>(response.status)];
  }
  append_response(response);
  if (!keep_alive_) {
    parser_.reset();
    lease_.reset();
    enter(Phase::kDraining);
  }
  schedule_turn();
}

void Connection::append_head(int status, const HttpResponse& response, std::string_view framing) {
  const auto reason =
      boost::beast::http::obsolete_reason(static_cast<boost::beast::http::status>(status));
  out_ += "HTTP/1.1 " + std::to_string(status) + " ";
  out_.append(reason.data(), reason.size());
  out_ += "\r\nDate: " + core_.date();
  if (!response.content_type.empty()) {
    out_ += "\r\nContent-Type: ";
    append_field_text(out_, response.content_type);
  }
  out_ += framing;
  if (!keep_alive_) {
    out_ += "\r\nConnection: close";
  } else if (!http_1_1_) {
    out_ += "\r\nConnection: keep-alive";
  }
  out_ += "\r\nX-Request-Id: " + request_id_;
  for (const auto& [name, value] : response.headers) {
    out_ += "\r\n";
    append_field_text(out_, name);
    out_ += ": ";
    append_field_text(out_, value);
  }
  out_ += "\r\n\r\n";
}

void Connection::append_response(const HttpResponse& response) {
  const bool has_body = response.status >= 200 && response.status != 204 && response.status != 304;
  append_head(response.status, response,
              has_body ? "\r\nContent-Length: " + std::to_string(response.body.size()) : "");
  if (has_body && !head_only_) out_ += response.body;
}

void Connection::respond(ExchangeId id, const HttpResponse& response) {
  if (!is_current(id, Phase::kAnswering)) return;
  append_response(response);
  finish_answer();
}

void Connection::begin_events(ExchangeId id) {
  if (!is_current(id, Phase::kAnswering)) return;
  keep_alive_ = keep_alive_ && http_1_1_;  // without chunks the end is the connection's end
  HttpResponse response;
  response.content_type = "text/event-stream; charset=utf-8";
  // Some proxies collect an answer before they pass it on; this asks nginx not to.
  response.headers = {{"Cache-Control", "no-cache"}, {"X-Accel-Buffering", "no"}};
  append_head(200, response, http_1_1_ ? "\r\nTransfer-Encoding: chunked" : "");
  enter(Phase::kStreaming);
  schedule_turn();
}

void Connection::append_event_chunk(std::string_view text, std::string_view tail) {
  if (head_only_) return;
  const size_t bytes = text.size() + tail.size();
  if (http_1_1_) out_ += fmt::format("{:x}\r\n", bytes);
  out_ += text;
  out_ += tail;
  if (http_1_1_) out_ += "\r\n";
  comment_at_ = now() + core_.options.keep_alive;
}

bool Connection::send_event(ExchangeId id, std::string_view data) {
  if (!is_current(id, Phase::kStreaming)) return false;
  std::string event;
  event.reserve(data.size() + 8);
  event += "data: ";
  event += data;
  append_event_chunk(event, "\n\n");
  if (unsent() > core_.options.unsent_bytes_max) {
    drop_slow();
    return false;
  }
  schedule_turn();
  return true;
}

void Connection::end(ExchangeId id) {
  if (!is_current(id, Phase::kStreaming)) return;
  if (http_1_1_ && !head_only_) out_ += "0\r\n\r\n";
  finish_answer();
}

void Connection::finish_answer() {
  current_ = 0;
  --core_.counters.in_flight;
  on_gone_ = nullptr;
  keep_alive_ = keep_alive_ && !core_.stopping;
  enter(keep_alive_ ? Phase::kIdle : Phase::kDraining);
  schedule_turn();
}

bool Connection::on_gone(ExchangeId id, std::function<void()> callback) {
  if (id != current_) return false;
  on_gone_ = std::move(callback);
  return true;
}

// Its last holder let go of it without an answer.
void Connection::abandoned(ExchangeId id) {
  if (id != current_) return;
  log_error("a handler dropped the request {} without an answer", request_id_);
  if (phase_ == Phase::kStreaming) return close();
  respond(id, core_.error_response(500, "internal error"));
}

// ---- writing

void Connection::flush() {
  if (sending_now_ || phase_ == Phase::kClosed) return;
  if (sent_ == sending_.size()) {
    sending_.clear();
    sent_ = 0;
    if (sending_.capacity() > kReadBytes) std::string().swap(sending_);
    std::swap(sending_, out_);
  }
  if (sending_.empty()) {
    write_deadline_ = kNever;
    if (phase_ == Phase::kDraining) linger();
    return;
  }
  sending_now_ = true;
  if (write_deadline_ == kNever) write_deadline_ = now() + core_.options.write_timeout;
  socket_.async_write_some(asio::buffer(sending_.data() + sent_, sending_.size() - sent_),
                           [self = shared_from_this()](const error_code& error, size_t bytes) {
                             self->on_written(error, bytes);
                           });
}

void Connection::on_written(const error_code& error, size_t bytes) {
  sending_now_ = false;
  if (phase_ == Phase::kClosed) return;
  if (error) return close();
  sent_ += bytes;
  write_deadline_ = now() + core_.options.write_timeout;
  turn();
}

void Connection::drop_slow() {
  ++core_.counters.dropped_slow;
  log_debug("dropped {}: {} bytes unsent, it reads too slowly", remote_, unsent());
  close();
}

// ---- time

TimePoint Connection::next_deadline() const {
  return std::min({read_deadline_, write_deadline_, comment_at_});
}

// The timer is only moved forward: deadlines mostly move back, and a timer that fires early costs
// less than one that is set anew with each request.
void Connection::arm_timer() {
  const TimePoint next = next_deadline();
  if (next >= armed_for_ || phase_ == Phase::kClosed) return;
  armed_for_ = next;
  timer_.expires_at(next);
  timer_.async_wait([self = shared_from_this()](const error_code& error) {
    if (error || self->phase_ == Phase::kClosed) return;
    self->armed_for_ = kNever;
    self->on_timer();
  });
}

void Connection::on_timer() {
  const TimePoint time = now();
  if (time >= write_deadline_) return drop_slow();
  if (time >= comment_at_) {
    if (unsent() == 0) append_event_chunk(": keep-alive", "\n\n");
    comment_at_ = time + core_.options.keep_alive;
  }
  if (time >= read_deadline_) {
    if (unsent() > 0 && phase_ == Phase::kIdle) {
      enter(Phase::kIdle);  // it reads the last answer; its bound is the write timeout
      return turn();
    }
    if (!in_request()) return close();  // idle, or lingered long enough
    refuse(408, phase_ == Phase::kHeader ? "the request's header took too long"
                                         : "the request's body took too long");
  }
  turn();
}

// ---- Exchange

Exchange::~Exchange() {
  if (ended_) return;
  // The holder may be in the middle of anything, on any thread.
  try {
    gate_->post([connection = connection_, id = id_] {
      if (const auto alive = connection.lock()) alive->abandoned(id);
    });
  } catch (const std::exception& e) {
    log_error("a dropped request can't be answered: {}", e.what());
  }
}

void Exchange::respond(HttpResponse response) {
  ended_ = true;
  if (const auto connection = connection_.lock()) connection->respond(id_, response);
}
void Exchange::begin_events() {
  if (const auto connection = connection_.lock()) connection->begin_events(id_);
}
bool Exchange::send_event(std::string_view data) {
  const auto connection = connection_.lock();
  return connection && connection->send_event(id_, data);
}
void Exchange::end() {
  ended_ = true;
  if (const auto connection = connection_.lock()) connection->end(id_);
}
void Exchange::on_gone(std::function<void()> callback) {
  if (ended_) return;
  const auto connection = connection_.lock();
  if (connection && connection->on_gone(id_, callback)) return;
  gate_->post([callback = std::move(callback)] {
    guarded("a callback of HttpExchange::on_gone", callback);
  });
}

// Runs tasks on a thread of its own, one after the other.
class HelperThread {
 public:
  ~HelperThread() { stop(); }
  void start() {
    thread_ = std::thread([this] { loop(); });
  }
  // What is not begun by then is dropped.
  void stop() {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    changed_.notify_all();
    if (thread_.joinable()) thread_.join();
  }
  void add(std::function<void()> task) {
    {
      const std::lock_guard lock(mutex_);
      tasks_.push_back(std::move(task));
    }
    changed_.notify_all();
  }

 private:
  void loop() {
    for (;;) {
      std::function<void()> task;
      {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [this] { return stopping_ || !tasks_.empty(); });
        if (stopping_) return;
        task = std::move(tasks_.front());
        tasks_.pop_front();
      }
      guarded("a task of HttpServer::work", task);
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> tasks_;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace

std::string_view HttpRequest::header(std::string_view name) const {
  for (const auto& [key, value] : headers) {
    const bool equal =
        key.size() == name.size() &&
        std::equal(key.begin(), key.end(), name.begin(), [](char a, char b) {
          const auto lower = [](char c) { return c >= 'A' && c <= 'Z' ? c + 32 : c; };
          return lower(a) == lower(b);
        });
    if (equal) return value;
  }
  return {};
}

struct HttpServer::Impl {
  Impl(HttpOptions options, const Clock& clock)
      : core(std::move(options), clock),
        acceptor(core.io),
        accept_timer(core.io),
        stop_timer(core.io) {}

  void listen();
  void accept_next();
  void on_accepted(const error_code& error, tcp::socket socket);
  void back_off(const error_code& error);
  void begin_stop(milliseconds grace);
  void run_loop();

  Core core;
  tcp::acceptor acceptor;
  asio::steady_timer accept_timer, stop_timer;
  uint16_t port = 0;
  bool accept_failing = false;
  HelperThread helper;
};

void HttpServer::Impl::listen() {
  const HttpOptions& options = core.options;
  const std::string place = options.address + ":" + std::to_string(options.port);
  error_code error;
  const auto address =
      asio::ip::make_address(options.address == "localhost" ? "127.0.0.1" : options.address, error);
  if (error) {
    throw LoadError("listen on " + place + ": not an IP address; 127.0.0.1 serves this machine, " +
                    "0.0.0.0 everybody");
  }
  const tcp::endpoint endpoint(address, options.port);
  acceptor.open(endpoint.protocol(), error);
  if (!error) acceptor.set_option(tcp::acceptor::reuse_address(true), error);
  if (!error) acceptor.bind(endpoint, error);
  if (!error) acceptor.listen(asio::socket_base::max_listen_connections, error);
  if (!error) acceptor.non_blocking(true, error);
  if (error) throw LoadError("listen on " + place + ": " + error.message());
  port = acceptor.local_endpoint().port();
  raise_descriptor_limit(options.connections_max + 1024);
}

void HttpServer::Impl::accept_next() {
  if (core.stopping) return;
  acceptor.async_accept([this](const error_code& error, tcp::socket socket) {
    if (error == asio::error::operation_aborted || core.stopping) return;
    if (error && error != asio::error::connection_aborted) return back_off(error);
    if (!error) on_accepted(error, std::move(socket));
    accept_next();
  });
}

// No descriptors, no memory: what is open goes on, new clients wait in the kernel's queue.
void HttpServer::Impl::back_off(const error_code& error) {
  if (!accept_failing) log_warn("accept a connection: {}; waiting", error.message());
  accept_failing = true;
  accept_timer.expires_after(kAcceptBackOff);
  accept_timer.async_wait([this](const error_code& cancelled) {
    if (!cancelled) accept_next();
  });
}

void HttpServer::Impl::on_accepted(const error_code&, tcp::socket socket) {
  if (accept_failing) log_info("connections are accepted again");
  accept_failing = false;
  error_code error;
  socket.set_option(tcp::no_delay(true), error);
  socket.set_option(asio::socket_base::keep_alive(true), error);
  socket.non_blocking(true, error);
  const tcp::endpoint remote = socket.remote_endpoint(error);
  if (error) return;  // gone already
  // Those over the bound get an answer, too, up to a bound of their own.
  const size_t open = core.connections.size(), connections_max = core.options.connections_max;
  if (open >= connections_max + connections_max / 8 + 16) return;
  const auto connection = std::make_shared<Connection>(core, std::move(socket), printed(remote));
  core.connections.emplace(connection.get(), connection);
  ++core.counters.accepted;
  ++core.counters.connections;
  if (open >= connections_max) {
    connection->start_refused();
  } else {
    connection->start();
  }
}

void HttpServer::Impl::begin_stop(milliseconds grace) {
  if (core.stopping) return;
  core.stopping = true;
  error_code ignored;
  acceptor.close(ignored);
  accept_timer.cancel();
  const auto connections = core.connections;
  for (const auto& [key, connection] : connections) connection->stop();
  core.stop_if_empty();
  stop_timer.expires_after(grace);
  stop_timer.async_wait([this](const error_code&) {
    const auto left = core.connections;
    for (const auto& [key, connection] : left) connection->close();
  });
}

void HttpServer::Impl::run_loop() {
  const auto work = asio::make_work_guard(core.io);
  while (!core.io.stopped()) guarded("the HTTP server", [this] { core.io.run(); });
}

HttpServer::HttpServer(HttpOptions options, const Clock& clock)
    : impl_(std::make_unique<Impl>(std::move(options), clock)) {
  impl_->listen();
}

HttpServer::~HttpServer() = default;

uint16_t HttpServer::port() const { return impl_->port; }

void HttpServer::route(const std::string& method, const std::string& path, Handler handler) {
  impl_->core.routes[path].emplace_back(method, std::move(handler));
}

void HttpServer::run() {
  impl_->helper.start();
  impl_->accept_next();
  impl_->run_loop();
  impl_->helper.stop();
}

void HttpServer::stop(milliseconds grace) {
  asio::post(impl_->core.io, [impl = impl_.get(), grace] { impl->begin_stop(grace); });
}

void HttpServer::post(std::function<void()> task) {
  asio::post(impl_->core.io, [task = std::move(task)] { guarded("a posted task", task); });
}

void HttpServer::post_after(milliseconds delay, std::function<void()> task) {
  const auto timer = std::make_shared<asio::steady_timer>(impl_->core.io, delay);
  timer->async_wait([impl = impl_.get(), timer, task = std::move(task)](const error_code& error) {
    if (!error && !impl->core.stopping) guarded("a delayed task", task);
  });
}

void HttpServer::work(std::function<void()> task) { impl_->helper.add(std::move(task)); }

HttpStats HttpServer::stats() const {
  const Counters& counters = impl_->core.counters;
  HttpStats stats{counters.connections, counters.in_flight, counters.accepted, counters.requests,
                  counters.dropped_slow};
  for (size_t status = 0; status < counters.refused.size(); ++status) {
    if (const uint64_t count = counters.refused[status]) stats.refused[int(status)] = count;
  }
  return stats;
}

}  // namespace atl::coordinator
