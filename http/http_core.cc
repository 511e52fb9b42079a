#include "http/http_core.h"

#include <fmt/format.h>

#include <random>

#include "base/rng.h"

namespace atl::http {
namespace {

std::string http_date(std::time_t time) {
  std::tm parts{};
  gmtime_r(&time, &parts);
  char text[64];
  const size_t length = std::strftime(text, sizeof(text), "%a, %d %b %Y %H:%M:%S GMT", &parts);
  return {text, length};
}

}  // namespace

Core::Core(HttpOptions options_given, const Clock& clock_given)
    : options(std::move(options_given)),
      clock(clock_given),
      gate(std::make_shared<Gate>(io)),
      bodies(std::make_shared<BodyBudget>(options.bodies_bytes_max)) {
  std::random_device device;
  id_key = {device(), device()};
}

std::string Core::make_request_id() {
  const uint64_t n = ++num_ids;
  const auto bits = philox4x32_10({uint32_t(n), uint32_t(n >> 32), 0, 0}, id_key);
  return fmt::format("req-{:08x}{:08x}{:08x}", bits[0], bits[1], bits[2]);
}

const std::string& Core::date() {
  const std::time_t second = std::time(nullptr);
  if (second != date_second) {
    date_second = second;
    date_text = http_date(second);
  }
  return date_text;
}

HttpResponse Core::error_response(int status, const std::string& message) {
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

}  // namespace atl::http
