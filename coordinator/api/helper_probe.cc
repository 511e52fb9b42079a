#include "coordinator/api/helper_probe.h"

#include <fmt/format.h>

namespace atl::coordinator {

HelperProbe::HelperProbe(http::HttpServer& server, const Clock& clock,
                         std::chrono::milliseconds late_after)
    : server_(server),
      clock_(clock),
      late_after_(late_after),
      asked_(std::make_shared<std::optional<Clock::TimePoint>>()) {}

void HelperProbe::tick() {
  if (*asked_) return;
  *asked_ = clock_.now();
  const auto answered = [asked = asked_] { asked->reset(); };
  server_.work({.client = "probe",
                .run = [&server = server_, answered](std::stop_token) { server.post(answered); },
                .refused = answered});
}

std::optional<std::string> HelperProbe::not_ready_because() const {
  const Clock::TimePoint now = clock_.now();
  if (!*asked_ || now - **asked_ <= late_after_) return std::nullopt;
  return fmt::format("requests have not been read for {:.1f} s: the helper threads are busy",
                     seconds_between(**asked_, now));
}

}  // namespace atl::coordinator
