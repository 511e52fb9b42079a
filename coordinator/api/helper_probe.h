// Whether the helper threads come to what they are asked: they are asked for nothing now and then.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <string>

#include "base/clock.h"
#include "http/http_server.h"

namespace atl::coordinator {

// Server's thread. Borrows server and clock.
class HelperProbe {
 public:
  // late_after: without an answer for longer, requests are not read either.
  HelperProbe(http::HttpServer& server, const Clock& clock, std::chrono::milliseconds late_after);

  // Several times in late_after. Asks, unless it waits for an answer.
  void tick();
  std::optional<std::string> not_ready_because() const;

 private:
  http::HttpServer& server_;
  const Clock& clock_;
  const std::chrono::milliseconds late_after_;
  // The answer may come when this is gone.
  const std::shared_ptr<std::optional<Clock::TimePoint>> asked_;
};

}  // namespace atl::coordinator
