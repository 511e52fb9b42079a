// What the HTTP layer itself costs: round trips of trivial handlers over loopback, beside a bare
// echo of the same socket calls, then with idle connections and slow readers around.
#include <arpa/inet.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <ctime>
#include <functional>
#include <future>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "base/check.h"
#include "base/clock.h"
#include "base/result.h"
#include "bench/serve_load.h"
#include "http/http_server.h"

namespace {

using namespace atl;
using Clock = std::chrono::steady_clock;

constexpr int kRounds = 20'000, kWarmUp = 1'000;

sockaddr_in loopback(uint16_t port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return address;
}

int connect_to(uint16_t port) {
  const int fd = socket(AF_INET, SOCK_STREAM, 0), on = 1;
  const sockaddr_in address = loopback(port);
  CHECK_EQ(connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
  return fd;
}

// Sends the request and reads until `end` is in what comes.
void round_trip(int fd, std::string_view request, std::string_view end) {
  CHECK_EQ(send(fd, request.data(), request.size(), 0), ssize_t(request.size()));
  std::string got;
  char bytes[65536];
  while (got.find(end) == std::string::npos) {
    const ssize_t n = recv(fd, bytes, sizeof(bytes), 0);
    CHECK_GT(n, 0);
    got.append(bytes, static_cast<size_t>(n));
  }
}

// A thread that answers each read with 200 bytes: what the kernel and two wake-ups cost.
class Echo {
 public:
  Echo() {
    listener_ = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address = loopback(0);
    socklen_t size = sizeof(address);
    CHECK_EQ(bind(listener_, reinterpret_cast<sockaddr*>(&address), size), 0);
    CHECK_EQ(listen(listener_, 1), 0);
    getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &size);
    port_ = ntohs(address.sin_port);
    thread_ = std::thread([this] {
      const int fd = accept(listener_, nullptr, nullptr), on = 1;
      setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
      std::string answer(199, 'x');
      answer += '\n';
      char bytes[65536];
      while (recv(fd, bytes, sizeof(bytes), 0) > 0) send(fd, answer.data(), answer.size(), 0);
      close(fd);
    });
  }
  ~Echo() {
    thread_.join();
    close(listener_);
  }
  uint16_t port() const { return port_; }

 private:
  int listener_ = -1;
  uint16_t port_ = 0;
  std::thread thread_;
};

double cpu_seconds(clockid_t clock) {
  timespec time{};
  clock_gettime(clock, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

void measure(const char* what, uint16_t port, std::string_view request, std::string_view end,
             const clockid_t* server_clock) {
  const int fd = connect_to(port);
  for (int i = 0; i < kWarmUp; ++i) round_trip(fd, request, end);
  std::vector<double> seconds;
  const double cpu = server_clock ? cpu_seconds(*server_clock) : 0;
  for (int i = 0; i < kRounds; ++i) {
    const auto begin = Clock::now();
    round_trip(fd, request, end);
    seconds.push_back(std::chrono::duration<double>(Clock::now() - begin).count());
  }
  const double used = server_clock ? cpu_seconds(*server_clock) - cpu : 0;
  close(fd);
  std::sort(seconds.begin(), seconds.end());
  fmt::print("{:<44} {:8.1f} {:8.1f} {:8.1f} {:>10}\n", what,
             1e6 * atl::bench::percentile(seconds, 0.5),
             1e6 * atl::bench::percentile(seconds, 0.99), 1e6 * seconds.back(),
             server_clock ? fmt::format("{:.1f}", 1e6 * used / kRounds) : "-");
  std::fflush(stdout);
}

void add_routes(http::HttpServer& server) {
  server.route("GET", "/hello", [](const auto& exchange) {
    exchange->respond({.content_type = "text/plain", .body = "hello"});
  });
  server.route("GET", "/metrics", [](const auto& exchange) {
    exchange->respond({.content_type = "text/plain", .body = std::string(10'000, '#')});
  });
  server.route("POST", "/stream", [](const auto& exchange) {
    exchange->begin_events();
    exchange->send_event(R"({"choices":[{"index":0,"text":"token","finish_reason":null}]})");
    exchange->end();
  });
}

}  // namespace

int main() {
  const SteadyClock clock;
  http::HttpOptions options;
  options.port = 0;
  http::HttpServer server(options, clock);
  add_routes(server);
  std::thread thread([&server] { server.run(); });
  clockid_t server_clock{};
  CHECK_EQ(pthread_getcpuclockid(thread.native_handle(), &server_clock), 0);

  const std::string get = "GET /hello HTTP/1.1\r\nHost: x\r\nAccept: */*\r\n\r\n";
  const std::string body(4096, 'b');
  const std::string post =
      "POST /stream HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
      "Content-Length: 4096\r\n\r\n" +
      body;
  const auto both = [&](const std::string& beside) {
    measure(("GET, whole answer" + beside).c_str(), server.port(), get, "hello", &server_clock);
    measure(("POST of 4 KiB, to the end of a stream" + beside).c_str(), server.port(), post,
            "0\r\n\r\n", &server_clock);
  };
  fmt::print("{:<44} {:>8} {:>8} {:>8} {:>10}\n", "round trips over loopback, us", "p50", "p99",
             "max", "server CPU");
  {
    Echo echo;
    measure("bare echo", echo.port(), get, "\n", nullptr);
  }
  both("");
  const http::HttpUrl url{"127.0.0.1", server.port(), ""};
  {
    const atl::bench::Bystanders idle(url, 1000, 0);
    both(", 1000 idle");
    const atl::bench::Bystanders slow(url, 0, 100);
    both(", and 100 slow");
  }
  {
    Echo echo;
    measure("bare echo again", echo.port(), get, "\n", nullptr);
  }
  server.stop(std::chrono::milliseconds(0));
  thread.join();
  return 0;
}
