// The client's end of HTTP tests: a plain socket, so that the bytes on the wire are seen.
#pragma once

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <utility>

#include "base/clock.h"
#include "http/http_server.h"

namespace atl::test {

struct RawResponse {
  int status = 0;  // 0: the connection ended or the time ran out before the answer was whole
  std::map<std::string, std::string> headers;  // names in lower case
  std::string body;                            // chunks joined
};

class RawClient {
 public:
  static constexpr std::chrono::milliseconds kPatience{60'000};

  explicit RawClient(uint16_t port, int receive_bytes = 0) {
    fd_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (receive_bytes > 0) {
      setsockopt(fd_, SOL_SOCKET, SO_RCVBUF, &receive_bytes, sizeof(receive_bytes));
    }
    const int on = 1;
    setsockopt(fd_, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    connected_ = connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0;
  }
  ~RawClient() { close(); }
  RawClient(const RawClient&) = delete;
  RawClient& operator=(const RawClient&) = delete;

  bool connected() const { return connected_; }
  void close() {
    if (fd_ >= 0) ::close(fd_);
    fd_ = -1;
  }
  // As a killed client does, if it had unread bytes.
  void reset() {
    const linger hard{1, 0};
    setsockopt(fd_, SOL_SOCKET, SO_LINGER, &hard, sizeof(hard));
    close();
  }
  void shut_sending() { shutdown(fd_, SHUT_WR); }

  // False if the server closed meanwhile or takes nothing more.
  bool send(std::string_view bytes) {
    while (!bytes.empty()) {
      if (!wait(POLLOUT)) return false;
      const ssize_t sent = ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
      if (sent < 0 && errno != EAGAIN) return false;
      if (sent > 0) bytes.remove_prefix(static_cast<size_t>(sent));
    }
    return true;
  }

  // One answer, final or interim; what follows it stays for the next call.
  RawResponse read_response(bool to_head = false) {
    RawResponse response;
    if (!fill_until([this] { return unread_.find("\r\n\r\n") != std::string::npos; })) return {};
    parse_head(&response);
    const bool has_body = !to_head && response.status >= 200 && response.status != 204;
    if (has_body && !read_body(&response)) response.status = 0;
    return response;
  }
  RawResponse ask(std::string_view request) {
    if (!send(request)) return {};
    return read_response();
  }

  // Until the text is there; returns all that came before and with it, empty if it doesn't come.
  std::string read_until(std::string_view text) {
    if (!fill_until([&] { return unread_.find(text) != std::string::npos; })) return {};
    return take(unread_.find(text) + text.size());
  }
  // True once the server has closed; what came before is in *rest.
  bool read_to_end(std::string* rest = nullptr) {
    fill_until([] { return false; });
    if (rest) *rest = unread_;
    return ended_;
  }
  std::string read_some() {
    if (unread_.empty()) fill();
    return take(unread_.size());
  }

 private:
  bool wait(short events) {
    pollfd p{fd_, events, 0};
    return poll(&p, 1, static_cast<int>(kPatience.count())) == 1;
  }
  bool fill() {
    if (ended_ || !wait(POLLIN)) return false;
    char bytes[65536];
    const ssize_t got = recv(fd_, bytes, sizeof(bytes), 0);
    if (got <= 0) {
      ended_ = true;
      return false;
    }
    unread_.append(bytes, static_cast<size_t>(got));
    return true;
  }
  bool fill_until(const std::function<bool()>& enough) {
    while (!enough()) {
      if (!fill()) return false;
    }
    return true;
  }
  std::string take(size_t bytes) {
    std::string taken = unread_.substr(0, bytes);
    unread_.erase(0, bytes);
    return taken;
  }

  void parse_head(RawResponse* response) {
    const std::string head = take(unread_.find("\r\n\r\n") + 4);
    response->status = std::atoi(head.c_str() + std::strlen("HTTP/1.1 "));
    size_t line = head.find("\r\n") + 2;
    while (head.compare(line, 2, "\r\n") != 0) {
      const size_t colon = head.find(": ", line), end = head.find("\r\n", line);
      std::string name = head.substr(line, colon - line);
      std::transform(name.begin(), name.end(), name.begin(), ::tolower);
      response->headers[name] = head.substr(colon + 2, end - colon - 2);
      line = end + 2;
    }
  }
  bool read_body(RawResponse* response) {
    if (response->headers.contains("transfer-encoding")) return read_chunks(response);
    if (!response->headers.contains("content-length")) return read_to_end(&response->body);
    const size_t bytes = std::stoul(response->headers["content-length"]);
    const bool whole = fill_until([&] { return unread_.size() >= bytes; });
    response->body = take(bytes);
    return whole;
  }
  bool read_chunks(RawResponse* response) {
    for (;;) {
      const std::string size_line = read_until("\r\n");
      if (size_line.empty()) return false;
      const size_t bytes = std::stoul(size_line, nullptr, 16);
      if (!fill_until([&] { return unread_.size() >= bytes + 2; })) return false;
      response->body += take(bytes);
      take(2);
      if (bytes == 0) return true;
    }
  }

  int fd_ = -1;
  bool connected_ = false, ended_ = false;
  std::string unread_;
};

inline std::string get(std::string_view path, std::string_view fields = "") {
  return "GET " + std::string(path) + " HTTP/1.1\r\nHost: x\r\n" + std::string(fields) + "\r\n";
}
inline std::string post(std::string_view path, std::string_view body,
                        std::string_view fields = "") {
  return "POST " + std::string(path) +
         " HTTP/1.1\r\nHost: x\r\nContent-Length: " + std::to_string(body.size()) + "\r\n" +
         std::string(fields) + "\r\n" + std::string(body);
}

// A server on a free port with its thread.
class RunningServer {
 public:
  explicit RunningServer(http::HttpOptions options = {}) : server_(with_port(options), clock_) {}
  ~RunningServer() { stop(); }

  http::HttpServer& server() { return server_; }
  uint16_t port() const { return server_.port(); }
  void start() {
    thread_ = std::thread([this] { server_.run(); });
  }
  void stop(std::chrono::milliseconds grace = std::chrono::milliseconds(0)) {
    server_.stop(grace);
    join();
  }
  void join() {
    if (thread_.joinable()) thread_.join();
  }

 private:
  static http::HttpOptions with_port(http::HttpOptions options) {
    options.port = 0;
    return options;
  }

  SteadyClock clock_;
  http::HttpServer server_;
  std::thread thread_;
};

}  // namespace atl::test
