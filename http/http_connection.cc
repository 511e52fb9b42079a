#include "http/http_connection.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/beast/http/status.hpp>

#include "base/check.h"

namespace atl::http {
namespace {

using std::chrono::milliseconds;

// A client may send requests ahead of the answers; they are not begun while more than this is
// unsent, so that what it doesn't read stays in its own kernel.
constexpr size_t kUnsentBeforeNextRequest = 256 << 10;
// A body that was refused is read and dropped up to here, to keep the connection.
constexpr uint64_t kDiscardedBodyMax = 64 << 10;
// Closing a socket with unread bytes makes the kernel reset the connection, and the client may lose
// the answer that told it why. So what still comes is read for a while.
constexpr milliseconds kLingerTime{2000};
constexpr size_t kLingerBytesMax = 64 << 20;
constexpr size_t kRequestIdBytesMax = 128;

TimePoint now() { return std::chrono::steady_clock::now(); }

bool is_sane_request_id(std::string_view id) {
  return !id.empty() && id.size() <= kRequestIdBytesMax &&
         std::all_of(id.begin(), id.end(), [](char c) { return c > 0x20 && c < 0x7f; });
}

// Field names and values of ours may hold what a client sent; an end of line in them would begin
// another field.
void append_field_text(std::string& out, std::string_view text) {
  for (const char c : text) out.push_back(static_cast<unsigned char>(c) < 0x20 ? ' ' : c);
}

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
  bool send_event(std::string_view data, std::string_view name) override;
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

}  // namespace

// ---- phases

void Connection::enter(Phase phase) {
  phase_ = phase;
  comment_at_ = phase == Phase::kStreaming ? now() + core_.options.keep_alive : kNever;
  const bool answering = phase == Phase::kAnswering || phase == Phase::kStreaming;
  probe_at_ = input_ended_ && answering ? now() + core_.options.half_closed_probe : kNever;
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
  if (!has_answered_ && phase_ != Phase::kDraining && phase_ != Phase::kLingering) {
    // Closed with something unread it would see a reset, and not know whether it was heard.
    has_said_goodbye_ = true;
    return refuse(503, "the server is shutting down");
  }
  if (unsent() == 0) return close();
  enter(Phase::kDraining);
  schedule_turn();
}

void Connection::linger() {
  if (core_.stopping && unparsed().empty() && !has_said_goodbye_) return close();
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
  const bool at_end = input_ended_ && phase_ != Phase::kLingering;
  if (waiting_readable_ || far_ahead || at_end || phase_ == Phase::kClosed) return;
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

// A client that ends its side while it waits for an answer may want to read it, or be gone: a
// socket that was closed looks the same until something is sent to it.
void Connection::on_end_of_input() {
  const bool answering = phase_ == Phase::kAnswering || phase_ == Phase::kStreaming;
  if (answering) {
    input_ended_ = true;
    probe_at_ = now() + core_.options.half_closed_probe;
    watch_for_reset();
    return arm_timer();
  }
  if (unsent() == 0) return close();
  enter(Phase::kDraining);
}

void Connection::watch_for_reset() {
  socket_.async_wait(tcp::socket::wait_error, [self = shared_from_this()](const error_code& error) {
    if (!error && self->phase_ != Phase::kClosed) self->close();
  });
}

void Connection::probe() {
  probe_at_ = now() + core_.options.half_closed_probe;
  if (unsent() > 0) return;
  if (phase_ == Phase::kStreaming) {
    append_event_chunk(": keep-alive", "\n\n");
  } else if (http_1_1_) {
    out_ += "HTTP/1.1 100 Continue\r\n\r\n";
  }
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
  added_headers_.clear();
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

  added_headers_.clear();
  guarded("the maker of an answer's headers", [&] {
    if (core_.options.add_headers) added_headers_ = core_.options.add_headers(request);
  });
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
  has_answered_ = true;
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
  for (const auto* headers : {&response.headers, &std::as_const(added_headers_)}) {
    for (const auto& [name, value] : *headers) {
      out_ += "\r\n";
      append_field_text(out_, name);
      out_ += ": ";
      append_field_text(out_, value);
    }
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
  if (is_last()) keep_alive_ = false;
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

bool Connection::send_event(ExchangeId id, std::string_view data, std::string_view name) {
  if (!is_current(id, Phase::kStreaming)) return false;
  std::string event;
  event.reserve(data.size() + name.size() + 16);
  if (!name.empty()) event.append("event: ").append(name).append("\n");
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
  keep_alive_ = keep_alive_ && !core_.stopping && !is_last();
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
  return std::min({read_deadline_, write_deadline_, comment_at_, probe_at_});
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
  if (time >= probe_at_) probe();
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
bool Exchange::send_event(std::string_view data, std::string_view name) {
  const auto connection = connection_.lock();
  return connection && connection->send_event(id_, data, name);
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

}  // namespace atl::http
