#include "coordinator/api/trace_route.h"

#include <charconv>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "coordinator/api/api.h"

namespace atl::coordinator {
namespace {

// Of "seconds=5" among a query's fields; none: it is no such number.
std::optional<double> seconds_of(std::string_view query) {
  constexpr std::string_view kKey = "seconds=";
  while (!query.empty()) {
    const size_t end = query.find('&');
    const std::string_view field = query.substr(0, end);
    query.remove_prefix(end == query.npos ? query.size() : end + 1);
    if (!field.starts_with(kKey)) continue;
    double seconds = 0;
    const char* const last = field.data() + field.size();
    const auto read = std::from_chars(field.data() + kKey.size(), last, seconds);
    const bool is_good = read.ec == std::errc() && read.ptr == last && seconds > 0;
    return is_good && seconds <= kTraceSecondsMax ? std::optional(seconds) : std::nullopt;
  }
  return kTraceSecondsDefault;
}

}  // namespace

void add_trace_route(http::HttpServer& server, TraceCollector& collector) {
  server.route("GET", "/trace", [&server, &collector](auto exchange) {
    const std::optional<double> seconds = seconds_of(exchange->request().query);
    if (!seconds) {
      return exchange->respond(
          Api::error_response(400, "seconds: expected a number above 0, at most 60"));
    }
    // Its lines come on the collector's thread.
    const auto begun = std::make_shared<bool>(false);
    const auto on_line = [&server, &collector, exchange, begun](std::string line) {
      server.post([&collector, exchange, begun, line = std::move(line)] {
        if (!std::exchange(*begun, true)) exchange->begin_events();
        if (!exchange->send_event(line)) return collector.stop();
        if (line.starts_with("{\"end\":")) exchange->end();
      });
    };
    const Status started =
        collector.start(std::chrono::milliseconds(static_cast<int64_t>(*seconds * 1000)), on_line);
    if (!started) {
      return exchange->respond(Api::error_response(429, started.error().message));
    }
    exchange->on_gone([&collector] { collector.stop(); });
  });
}

}  // namespace atl::coordinator
