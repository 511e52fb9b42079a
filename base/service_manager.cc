#include "base/service_manager.h"

#include <fmt/format.h>
#include <systemd/sd-daemon.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "base/log.h"
#include "base/one_line.h"
#include "base/result.h"

namespace atl {

ServiceManager::ServiceManager() {
  uint64_t microseconds = 0;
  if (sd_watchdog_enabled(/*unset_environment=*/1, &microseconds) > 0) {
    period_ = std::chrono::microseconds(microseconds);
  }
  const int num_listeners = sd_listen_fds(/*unset_environment=*/1);
  if (num_listeners < 0) {
    throw LoadError(fmt::format("LISTEN_FDS: {}", std::strerror(-num_listeners)));
  }
  if (num_listeners > 1) {
    throw LoadError(
        fmt::format("LISTEN_FDS={}: expected one socket, for HTTP: give the socket unit one "
                    "ListenStream=",
                    num_listeners));
  }
  if (num_listeners == 1) listener_ = SD_LISTEN_FDS_START;
}

namespace {

void notify(const std::string& state) {
  const int sent = sd_notify(/*unset_environment=*/0, state.c_str());
  if (sent < 0) log_warn("systemd was not told '{}': {}", state, std::strerror(-sent));
}

}  // namespace

// One line: a second one would be another variable.
void ServiceManager::tell_status(const std::string& line) { notify("STATUS=" + one_line(line)); }

void ServiceManager::tell_ready(const std::string& line) {
  notify("READY=1\nSTATUS=" + one_line(line));
}

void ServiceManager::tell_stopping() { notify("STOPPING=1\nSTATUS=finishing what is under way"); }

void ServiceManager::tell_alive() {
  if (!period_) return;
  const auto now = std::chrono::steady_clock::now();
  if (now - told_.load(std::memory_order_relaxed) < *period_ / 4) return;
  told_.store(now, std::memory_order_relaxed);
  notify("WATCHDOG=1");
}

}  // namespace atl
