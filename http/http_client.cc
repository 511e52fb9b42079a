#include "http/http_client.h"

#include <algorithm>
#include <boost/asio/connect.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core/buffers_range.hpp>
#include <boost/beast/http/error.hpp>
#include <boost/beast/http/parser.hpp>
#include <charconv>
#include <map>
#include <optional>

#include "http/event_splitter.h"

namespace atl::http {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace beast_http = boost::beast::http;
using asio::ip::tcp;
using boost::system::error_code;
using std::chrono::milliseconds;
using TimePoint = Clock::TimePoint;

constexpr size_t kReadBytes = 64 << 10;
constexpr uint32_t kHeaderBytesMax = 64 << 10;

TimePoint now() { return std::chrono::steady_clock::now(); }
std::string_view view(beast::string_view text) { return {text.data(), text.size()}; }

// Hands on what a body consists of, piece by piece.
struct PieceBody {
  using value_type = std::function<bool(std::string_view)>;  // false: no more

  class reader {
   public:
    template <bool kIsRequest, class Fields>
    reader(beast_http::header<kIsRequest, Fields>&, value_type& take) : take_(take) {}

    void init(const boost::optional<uint64_t>&, beast::error_code& error) { error = {}; }
    template <class Buffers>
    size_t put(const Buffers& buffers, beast::error_code& error) {
      error = {};
      size_t bytes = 0;
      for (const auto buffer : beast::buffers_range_ref(buffers)) {
        if (!take_({static_cast<const char*>(buffer.data()), buffer.size()})) {
          error = beast_http::error::body_limit;
        }
        bytes += buffer.size();
      }
      return bytes;
    }
    void finish(beast::error_code& error) { error = {}; }

   private:
    value_type& take_;
  };
};

std::string request_text(const HttpUrl& url, const HttpClientRequest& request) {
  const bool is_v6 = url.host.find(':') != std::string::npos;
  std::string text = request.method + " " + url.path + request.path + " HTTP/1.1\r\nHost: ";
  text += (is_v6 ? "[" + url.host + "]" : url.host) + ":" + std::to_string(url.port) + "\r\n";
  for (const auto& [name, value] : request.headers) text += name + ": " + value + "\r\n";
  if (!request.body.empty() || request.method == "POST") {
    text += "Content-Length: " + std::to_string(request.body.size()) + "\r\n";
  }
  return text + "\r\n" + request.body;
}

class Call;

struct Core {
  Core(const HttpUrl& url_given, HttpClientOptions options_given)
      : url(url_given), options(options_given) {}

  std::string place() const { return url.host + ":" + std::to_string(url.port); }

  const HttpUrl url;
  const HttpClientOptions options;
  asio::io_context io{1};
  std::vector<tcp::endpoint> endpoints;
  std::vector<tcp::socket> idle;
  std::map<HttpClient::RequestId, std::shared_ptr<Call>> calls;
  std::vector<char> scratch = std::vector<char>(kReadBytes);
  HttpClient::RequestId last_id = 0;
};

// One request and its answer, over a connection of its own until it is done.
class Call : public std::enable_shared_from_this<Call> {
 public:
  Call(Core& core, HttpClient::RequestId id, HttpClientRequest request,
       HttpClient::OnEvent on_event, HttpClient::OnDone on_done)
      : core_(core),
        id_(id),
        request_(std::move(request)),
        on_event_(std::move(on_event)),
        on_done_(std::move(on_done)),
        socket_(core.io),
        timer_(core.io),
        events_(core.options.event_bytes_max) {}

  void start() {
    begun_ = now();
    if (core_.idle.empty()) return connect();
    socket_ = std::move(core_.idle.back());
    core_.idle.pop_back();
    reused_ = true;
    send();
  }
  void fail(ErrorCode code, const std::string& what) {
    finish(Error{code, request_.method + " http://" + core_.place() + core_.url.path +
                           request_.path + ": " + what});
  }

 private:
  void connect() {
    last_byte_ = now();
    reused_ = false;
    connecting_ = true;
    asio::async_connect(socket_, core_.endpoints,
                        [self = shared_from_this()](const error_code& error, const auto&) {
                          if (self->done_) return;
                          if (error) return self->fail(ErrorCode::kUnavailable, error.message());
                          self->send();
                        });
    arm_timer();
  }

  void send() {
    connecting_ = false;
    error_code ignored;
    socket_.set_option(tcp::no_delay(true), ignored);
    socket_.non_blocking(true, ignored);
    text_ = request_text(core_.url, request_);
    new_parser();
    answer_ = {};
    answer_.sent = last_byte_ = now();
    asio::async_write(socket_, asio::buffer(text_),
                      [self = shared_from_this()](const error_code& error, size_t) {
                        // A server may refuse a request before it has read all of it: what it says
                        // is read below, and whether it said something decides.
                        self->write_error_ = error;
                      });
    read();
    arm_timer();
  }

  void read() {
    socket_.async_wait(tcp::socket::wait_read, [self = shared_from_this()](const error_code&) {
      if (!self->done_) self->on_readable();
    });
  }

  void on_readable() {
    error_code error;
    const size_t bytes = socket_.read_some(asio::buffer(core_.scratch), error);
    if (error == asio::error::would_block) return read();
    if (error) return on_end(error);
    last_byte_ = now();
    any_byte_ = true;
    in_.append(core_.scratch.data(), bytes);
    parse();
  }
  void parse() {
    size_t taken = 0;
    while (taken < in_.size() && !parser_->is_done()) {
      error_code error;
      const size_t n = parser_->put(asio::buffer(in_.data() + taken, in_.size() - taken), error);
      taken += n;
      if (done_) return;  // cancelled by a callback
      if (error == beast_http::error::need_more) break;
      if (error == beast_http::error::body_limit) {
        return fail(ErrorCode::kOverloaded, "the answer is longer than this client takes");
      }
      if (error) return fail(ErrorCode::kCorrupt, "not an answer of HTTP: " + error.message());
      if (parser_->is_done() && parser_->get().result_int() / 100 == 1) new_parser();
      if (n == 0) break;
    }
    in_.erase(0, taken);
    if (parser_->is_done()) return succeed();
    read();
  }
  // One for each answer, interim ones (100 Continue) included: Beast's can't be used twice.
  void new_parser() {
    parser_.emplace();
    parser_->header_limit(kHeaderBytesMax);
    parser_->body_limit(boost::none);
    parser_->get().body() = [this](std::string_view piece) { return take(piece); };
    parser_->eager(true);
    parser_->skip(request_.method == "HEAD");
  }

  bool take(std::string_view piece) {
    if (done_) return true;
    if (!is_stream_) {
      const auto& head = parser_->get();
      is_stream_ = on_event_ && head.result_int() == 200 &&
                   view(head[beast_http::field::content_type]).starts_with("text/event-stream");
    }
    if (*is_stream_) {
      return events_.feed(piece, [this](std::string_view data) {
        if (!done_) on_event_(data, last_byte_);
      });
    }
    answer_.body += piece;
    return answer_.body.size() <= core_.options.body_bytes_max;
  }

  void on_end(const error_code& error) {
    // A connection that was idle may have been closed by the server just now.
    if (reused_ && !any_byte_) {
      error_code ignored;
      socket_.close(ignored);
      return connect();
    }
    error_code end_error;
    if (error == asio::error::eof && parser_->got_some()) {
      parser_->put_eof(end_error);
      if (!end_error && parser_->is_done()) return succeed();
    }
    fail(ErrorCode::kUnavailable, any_byte_ ? "the connection ended before the answer did"
                                            : "the connection was closed without an answer");
  }

  void succeed() {
    const auto& head = parser_->get();
    answer_.status = static_cast<int>(head.result_int());
    for (const auto& field : head) {
      answer_.headers.emplace_back(view(field.name_string()), view(field.value()));
    }
    const bool reusable = head.keep_alive() && in_.empty() && !write_error_ && !head.need_eof();
    if (reusable) core_.idle.push_back(std::move(socket_));
    finish(std::move(answer_));
  }

  void finish(Result<HttpAnswer> result) {
    if (done_) return;
    done_ = true;
    error_code ignored;
    socket_.close(ignored);
    timer_.cancel();
    const auto self = shared_from_this();
    core_.calls.erase(id_);
    asio::post(core_.io,
               [self, result = std::move(result)]() mutable { self->on_done_(std::move(result)); });
  }

  TimePoint deadline() const {
    const auto silence =
        connecting_ ? core_.options.connect_timeout : core_.options.silence_timeout;
    const TimePoint silent = last_byte_ + silence;
    return request_.timeout.count() > 0 ? std::min(silent, begun_ + request_.timeout) : silent;
  }
  void arm_timer() {
    timer_.expires_at(deadline());
    timer_.async_wait([self = shared_from_this()](const error_code& error) {
      if (error || self->done_) return;
      if (now() < self->deadline()) return self->arm_timer();
      self->fail(ErrorCode::kTimeout,
                 self->connecting_ ? "no connection in time" : "no answer in time");
    });
  }

  Core& core_;
  const HttpClient::RequestId id_;
  const HttpClientRequest request_;
  const HttpClient::OnEvent on_event_;
  const HttpClient::OnDone on_done_;
  tcp::socket socket_;
  asio::steady_timer timer_;
  TimePoint begun_{}, last_byte_{};
  bool reused_ = false, connecting_ = false, any_byte_ = false, done_ = false;
  std::string text_, in_;
  error_code write_error_;
  std::optional<beast_http::response_parser<PieceBody>> parser_;
  std::optional<bool> is_stream_;
  EventSplitter events_;
  HttpAnswer answer_;
};

}  // namespace

Result<HttpUrl> parse_http_url(std::string_view text) {
  const auto invalid = [text](const std::string& why) {
    return Error{ErrorCode::kInvalid, "'" + std::string(text.substr(0, 200)) + "': " + why};
  };
  if (text.starts_with("https://")) {
    return invalid("https is not supported; give the server's own address, http://HOST:PORT");
  }
  constexpr std::string_view kScheme = "http://";
  if (!text.starts_with(kScheme)) return invalid("expected a URL such as http://127.0.0.1:8080");
  std::string_view rest = text.substr(kScheme.size());
  HttpUrl url;
  const size_t slash = rest.find('/');
  if (slash != std::string_view::npos) url.path = rest.substr(slash);
  while (url.path.ends_with('/')) url.path.pop_back();
  rest = rest.substr(0, slash);
  const bool bad = std::any_of(text.begin(), text.end(), [](char c) {
    return static_cast<unsigned char>(c) <= 0x20 || c == 0x7f;
  });
  if (bad || text.find_first_of("?#@") != std::string_view::npos) {
    return invalid("a URL here is http://HOST[:PORT][/PATH] and nothing else");
  }
  std::string_view port;
  if (rest.starts_with('[')) {
    const size_t close = rest.find(']');
    if (close == std::string_view::npos) return invalid("'[' without ']'");
    url.host = rest.substr(1, close - 1);
    rest = rest.substr(close + 1);
    if (!rest.empty() && rest[0] != ':') return invalid("expected ':PORT' behind ']'");
    port = rest.substr(0, rest.size());
  } else {
    const size_t colon = rest.find(':');
    url.host = rest.substr(0, colon);
    if (colon != std::string_view::npos) port = rest.substr(colon);
  }
  if (url.host.empty()) return invalid("there is no host in it");
  if (port.empty()) return url;
  port.remove_prefix(1);
  const auto [end, error] = std::from_chars(port.data(), port.data() + port.size(), url.port);
  if (error != std::errc() || end != port.data() + port.size() || url.port == 0) {
    return invalid("the port is a number from 1 to 65535");
  }
  return url;
}

std::string_view HttpAnswer::header(std::string_view name) const {
  for (const auto& [key, value] : headers) {
    if (beast::iequals({key.data(), key.size()}, {name.data(), name.size()})) return value;
  }
  return {};
}

struct HttpClient::Impl {
  Impl(const HttpUrl& url, HttpClientOptions options) : core(url, options) {}
  Core core;
};

HttpClient::HttpClient(const HttpUrl& url, HttpClientOptions options)
    : impl_(std::make_unique<Impl>(url, options)) {
  tcp::resolver resolver(impl_->core.io);
  error_code error;
  for (const auto& found : resolver.resolve(url.host, std::to_string(url.port), error)) {
    impl_->core.endpoints.push_back(found.endpoint());
  }
  if (error || impl_->core.endpoints.empty()) {
    throw LoadError("no address of the host '" + url.host + "': " + error.message());
  }
}

HttpClient::~HttpClient() = default;

HttpClient::RequestId HttpClient::start(HttpClientRequest request, OnEvent on_event,
                                        OnDone on_done) {
  Core& core = impl_->core;
  const RequestId id = ++core.last_id;
  const auto call =
      std::make_shared<Call>(core, id, std::move(request), std::move(on_event), std::move(on_done));
  core.calls.emplace(id, call);
  call->start();
  return id;
}

void HttpClient::cancel(RequestId id) {
  const auto call = impl_->core.calls.find(id);
  if (call == impl_->core.calls.end()) return;
  const std::shared_ptr<Call> kept = call->second;
  kept->fail(ErrorCode::kUnavailable, "cancelled");
}

void HttpClient::cancel_all() {
  const auto calls = impl_->core.calls;
  for (const auto& [id, call] : calls) call->fail(ErrorCode::kUnavailable, "cancelled");
}

void HttpClient::call_after(std::chrono::nanoseconds delay, std::function<void()> task) {
  const auto timer = std::make_shared<asio::steady_timer>(impl_->core.io);
  timer->expires_after(std::chrono::duration_cast<std::chrono::steady_clock::duration>(delay));
  timer->async_wait([timer, task = std::move(task)](const error_code& error) {
    if (!error) task();
  });
}

void HttpClient::post(std::function<void()> task) { asio::post(impl_->core.io, std::move(task)); }

void HttpClient::run() {
  impl_->core.io.restart();
  impl_->core.io.run();
}

Result<HttpAnswer> HttpClient::ask(HttpClientRequest request, OnEvent on_event) {
  std::optional<Result<HttpAnswer>> answer;
  start(std::move(request), std::move(on_event),
        [&answer](Result<HttpAnswer> result) { answer.emplace(std::move(result)); });
  run();
  return std::move(*answer);
}

}  // namespace atl::http
