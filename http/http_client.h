// A small asynchronous HTTP/1.1 client for the commands: many requests to one server on one thread,
// with whole answers or server-sent events.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/result.h"

namespace atl::http {

struct HttpUrl {
  std::string host;  // without the brackets of an IPv6 address
  uint16_t port = 80;
  std::string path;  // "" or "/...", without a '/' at its end
};
// "http://HOST[:PORT][/PATH]". kInvalid says what is wrong; https is not supported.
Result<HttpUrl> parse_http_url(std::string_view text);

struct HttpClientOptions {
  std::chrono::milliseconds connect_timeout{10'000};
  std::chrono::milliseconds silence_timeout{300'000};  // without a byte from the server
  size_t body_bytes_max = 64 << 20;                    // of a whole answer
  size_t event_bytes_max = 16 << 20;
};

struct HttpClientRequest {
  std::string method = "GET";
  std::string path = "/";  // behind the URL's; with a query, if any
  std::vector<std::pair<std::string, std::string>> headers = {};
  std::string body = {};
  std::chrono::milliseconds timeout{0};  // until the answer is whole; 0: none
};

struct HttpAnswer {
  int status = 0;
  std::vector<std::pair<std::string, std::string>> headers;
  std::string body;       // empty where its events were delivered
  Clock::TimePoint sent;  // the connection was there and the request was handed to the kernel

  std::string_view header(std::string_view name) const;  // case-insensitive
};

// All calls and callbacks on one thread, the one in run(), except where it says otherwise.
class HttpClient {
 public:
  using RequestId = uint64_t;
  // The data of an event of a text/event-stream answer with status 200, and when its last byte was
  // read.
  using OnEvent = std::function<void(std::string_view data, Clock::TimePoint arrived)>;
  // Once for each request, never from inside start(). kUnavailable: no connection, or it broke, or
  // cancelled; kTimeout; kCorrupt: not HTTP; kOverloaded: longer than it may be.
  using OnDone = std::function<void(Result<HttpAnswer>)>;

  // Resolves the host's name. LoadError.
  explicit HttpClient(const HttpUrl& url, HttpClientOptions options = {});
  ~HttpClient();

  // Takes an idle connection or opens another one. Any status is an answer.
  RequestId start(HttpClientRequest request, OnEvent on_event, OnDone on_done);
  // Its connection is closed; on_done follows with kUnavailable. Unknown ids are fine.
  void cancel(RequestId id);
  void cancel_all();
  void call_after(std::chrono::nanoseconds delay, std::function<void()> task);
  // Any thread.
  void post(std::function<void()> task);

  // Works until nothing is under way, no call_after() included. Can be called again.
  void run();
  // start() and run(), for one request.
  Result<HttpAnswer> ask(HttpClientRequest request, OnEvent on_event = {});

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace atl::http
