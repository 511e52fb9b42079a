// What an HTTP server's connections have in common. Private to the server.
#pragma once

#include <array>
#include <atomic>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <chrono>
#include <cstdint>
#include <ctime>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/log.h"
#include "http/http_server.h"

namespace atl::http {

namespace asio = boost::asio;

constexpr size_t kReadBytes = 64 << 10;  // taken from a socket at once; one buffer for all
constexpr int kStatusEnd = 600;          // above every status

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

class Connection;
using ExchangeId = uint64_t;  // counts up; 0: none

struct Counters {
  std::atomic<int64_t> connections{0}, in_flight{0};
  std::atomic<uint64_t> accepted{0}, requests{0}, dropped_slow{0};
  std::array<std::atomic<uint64_t>, kStatusEnd> refused{};  // by status
};

// What connections need of the server. Server's thread.
struct Core {
  Core(HttpOptions options_given, const Clock& clock_given);
  ~Core() { gate->close(); }

  std::string make_request_id();
  const std::string& date();  // now, as in a header
  HttpResponse error_response(int status, const std::string& message);
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

}  // namespace atl::http
