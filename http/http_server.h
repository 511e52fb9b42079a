// An asynchronous HTTP/1.1 server: one thread carries all connections.
//
// It knows nothing of models. A handler gets a whole request and answers through an HttpExchange,
// at once or later, with one body or with a stream of server-sent events.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/clock.h"

namespace atl::http {

struct HttpRequest {
  std::string method;  // "GET"
  std::string path;    // without the query, percent-decoded
  std::string query;   // after '?', as it came
  std::vector<std::pair<std::string, std::string>> headers;
  std::string body;
  std::string id;      // X-Request-Id if the client sent a sane one, else made here; also answered
  std::string remote;  // "127.0.0.1:50312"
  Clock::TimePoint arrived;

  // Case-insensitive; empty if it isn't there.
  std::string_view header(std::string_view name) const;
};

struct HttpResponse {
  int status = 200;
  std::string content_type = "application/json";
  std::string body = {};
  std::vector<std::pair<std::string, std::string>> headers = {};  // further ones
};

// The answer to one request. All calls on the server's thread. Calls after the client is gone do
// nothing. Keep the shared_ptr until the answer is whole: one that is let go of without an answer
// is answered 500. Any thread may be the last holder.
class HttpExchange {
 public:
  virtual ~HttpExchange() = default;
  virtual const HttpRequest& request() const = 0;
  // The whole answer, once.
  virtual void respond(HttpResponse response) = 0;
  // Instead: status 200 and `text/event-stream`; then any number of send_event(), then end().
  // While nothing is sent for HttpOptions::keep_alive, a comment line is.
  virtual void begin_events() = 0;
  // One event with this data (a single line), and a name unless it is empty. False: the client is
  // gone.
  virtual bool send_event(std::string_view data, std::string_view name) = 0;
  bool send_event(std::string_view data) { return send_event(data, {}); }
  virtual void end() = 0;
  // Called once, at most, if the connection ends before the answer does: closed by the client, or
  // by the server because it reads too slowly (see HttpOptions::unsent_bytes_max) or stops. Never
  // from inside another call; soon, if the client is gone already. A client that ends its sending
  // side may still read: whether it does is asked every HttpOptions::half_closed_probe.
  virtual void on_gone(std::function<void()> callback) = 0;
};

// Short work never waits for long work.
enum class WorkLength : uint8_t { kShort, kLong };

// Work for a helper thread.
struct HttpWork {
  std::string client;  // whose it is: clients take turns
  WorkLength length = WorkLength::kShort;
  // Stopped by whoever wants the work no more (its client is gone), and by the server's end.
  std::stop_source stop = {};
  // Helper thread. It has to look at the token every millisecond or so: the server's end waits.
  std::function<void(std::stop_token)> run = {};
  // Server's thread, instead of run(): too much is waiting.
  std::function<void()> refused = {};
};

struct HttpOptions {
  std::string address = "127.0.0.1";
  uint16_t port = 8080;  // 0: any free one
  // Instead: a TCP socket that is bound and listens already. Closed by the server.
  std::optional<int> listener = std::nullopt;
  size_t connections_max = 4096;        // more are answered 503 and closed
  size_t header_bytes_max = 32 << 10;   // 431
  size_t body_bytes_max = 32 << 20;     // 413
  size_t bodies_bytes_max = 512 << 20;  // of all requests being read or answered; more: 503
  size_t helper_threads = 0;            // at least 2; 0: 2 to 4, by cores
  size_t work_waiting_max = 256;        // of each length
  size_t unsent_bytes_max = 4 << 20;    // of one stream; a client that reads slower is dropped
  std::chrono::milliseconds header_timeout{10'000};  // of one request's header, and
  std::chrono::milliseconds body_timeout{60'000};    // of its body: 408
  std::chrono::milliseconds idle_timeout{300'000};   // between requests
  std::chrono::milliseconds write_timeout{60'000};   // without a byte taken: dropped
  std::chrono::milliseconds keep_alive{15'000};
  // A client that has ended its sending side gets a few bytes so often while its answer is made
  // (`100 Continue`, in a stream a comment): the kernel of one that is gone answers with a reset.
  std::chrono::milliseconds half_closed_probe{1'000};
  // Called when a header is read, before its body: an answer here is the answer, and no handler is
  // asked.
  std::function<std::optional<HttpResponse>(const HttpRequest&)> admit = {};
  // Further headers of the answer to this request, whoever answers it. Called when its header is
  // read.
  std::function<std::vector<std::pair<std::string, std::string>>(const HttpRequest&)> add_headers =
      {};
  // The body of errors of the server itself: status, what is wrong. Both on the server's thread.
  std::function<HttpResponse(int status, const std::string& message)> error_response = {};
};

struct HttpStats {
  int64_t connections = 0;  // open
  int64_t in_flight = 0;    // requests not yet answered
  uint64_t accepted = 0;    // connections, over the server's life
  uint64_t requests = 0;
  uint64_t dropped_slow = 0;
  // Requests answered by the server itself or by `admit`, by status; only those there were.
  std::map<int, uint64_t> refused = {};
};

class HttpServer {
 public:
  using Handler = std::function<void(std::shared_ptr<HttpExchange>)>;

  // Binds and listens. LoadError: address and port, and what the system said.
  HttpServer(HttpOptions options, const Clock& clock);
  ~HttpServer();

  uint16_t port() const;
  // Before run(), or on the server's thread. An exception that leaves a handler is answered 500,
  // with a log line. GET also answers HEAD. A path that exists with other methods is 405 with
  // `Allow`, an unknown one 404.
  void route(const std::string& method, const std::string& path, Handler handler);

  // Serves until stopped; the calling thread is the server's thread.
  void run();
  // Any thread: accepts nothing more, closes idle connections, lets answers under way end and
  // writes them out, for `grace` at most, cuts the others and lets run() return.
  void stop(std::chrono::milliseconds grace = std::chrono::milliseconds(2000));

  // Any thread: runs the task on the server's thread, in order.
  void post(std::function<void()> task);
  // Server's thread: runs the task after this time, once; not after stop().
  void post_after(std::chrono::milliseconds delay, std::function<void()> task);
  // Any thread: runs it on one of a few helper threads, for work that would hold up the others
  // (parsing and tokenizing long prompts). Answer by post(). If too much waits, the newest work of
  // the client with most of it is refused. What has not begun when the server ends is dropped.
  void work(HttpWork work);
  HttpStats stats() const;  // any thread

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace atl::http
