#include "http/http_server.h"

#include <sys/resource.h>
#include <sys/socket.h>

#include <algorithm>
#include <boost/asio/executor_work_guard.hpp>
#include <thread>

#include "base/result.h"
#include "http/helper_pool.h"
#include "http/http_connection.h"
#include "http/http_core.h"

namespace atl::http {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;
using std::chrono::milliseconds;

constexpr milliseconds kAcceptBackOff{100};
constexpr int kAcceptedAtEnd = 4096;  // at most, of those that wait when the server ends

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

size_t num_helpers(const HttpOptions& options) {
  if (options.helper_threads > 0) return std::max<size_t>(options.helper_threads, 2);
  return std::clamp<size_t>(std::thread::hardware_concurrency(), 2, 4);
}

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
        stop_timer(core.io),
        helpers(num_helpers(core.options), core.options.work_waiting_max) {}

  void listen();
  void take_listener(int fd);
  void accept_next();
  void on_accepted(const error_code& error, tcp::socket socket);
  void back_off(const error_code& error);
  void accept_waiting();
  void begin_stop(milliseconds grace);
  void run_loop();

  Core core;
  tcp::acceptor acceptor;
  asio::steady_timer accept_timer, stop_timer;
  uint16_t port = 0;
  bool accept_failing = false;
  HelperPool helpers;
};

void HttpServer::Impl::listen() {
  const HttpOptions& options = core.options;
  if (options.listener) return take_listener(*options.listener);
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

void HttpServer::Impl::take_listener(int fd) {
  sockaddr_storage address{};
  socklen_t bytes = sizeof address;
  int is_listening = 0;
  socklen_t flag_bytes = sizeof is_listening;
  const bool is_tcp = ::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &bytes) == 0 &&
                      (address.ss_family == AF_INET || address.ss_family == AF_INET6) &&
                      ::getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &is_listening, &flag_bytes) == 0;
  if (!is_tcp || is_listening == 0) {
    throw LoadError(
        "the socket that was handed over is none that listens on TCP: give its unit "
        "ListenStream=HOST:PORT");
  }
  error_code error;
  acceptor.assign(address.ss_family == AF_INET ? tcp::v4() : tcp::v6(), fd, error);
  if (!error) acceptor.non_blocking(true, error);
  if (error) throw LoadError("the socket that was handed over: " + error.message());
  port = acceptor.local_endpoint().port();
  raise_descriptor_limit(core.options.connections_max + 1024);
}

void HttpServer::Impl::accept_next() {
  if (core.stopping) return;
  acceptor.async_accept([this](const error_code& error, tcp::socket socket) {
    if (error == asio::error::operation_aborted || (error && core.stopping)) return;
    if (error && error != asio::error::connection_aborted) return back_off(error);
    if (!error) on_accepted(error, std::move(socket));  // also at the end: it is told
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
  if (core.stopping) {
    connection->stop();
  } else if (open >= connections_max) {
    connection->start_refused();
  } else {
    connection->start();
  }
}

// Who waits in the kernel's queue has connected, for all it knows: it is told, too.
void HttpServer::Impl::accept_waiting() {
  for (int i = 0; i < kAcceptedAtEnd; ++i) {
    tcp::socket socket(core.io);
    error_code error;
    acceptor.accept(socket, error);
    if (error) return;
    on_accepted(error, std::move(socket));
  }
}

void HttpServer::Impl::begin_stop(milliseconds grace) {
  if (core.stopping) return;
  accept_waiting();
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
  impl_->helpers.start();
  impl_->accept_next();
  impl_->run_loop();
  impl_->helpers.stop();
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

void HttpServer::work(HttpWork work) {
  auto left_out = impl_->helpers.add(std::move(work));
  if (left_out) post(std::move(left_out->refused));
}

HttpStats HttpServer::stats() const {
  const Counters& counters = impl_->core.counters;
  HttpStats stats{counters.connections, counters.in_flight, counters.accepted, counters.requests,
                  counters.dropped_slow};
  for (size_t status = 0; status < counters.refused.size(); ++status) {
    if (const uint64_t count = counters.refused[status]) stats.refused[int(status)] = count;
  }
  return stats;
}

}  // namespace atl::http
