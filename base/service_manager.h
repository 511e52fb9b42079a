// What systemd tells a service that it started, and wants to hear from it: sd_notify(3),
// sd_listen_fds(3), sd_watchdog_enabled(3). Where it did not start this process nothing happens.
//
// One for a process, made before its threads. Child processes must not make one: what is told to
// this one is in their environment, too. Any thread may tell.
#pragma once

#include <atomic>
#include <chrono>
#include <optional>
#include <string>

namespace atl {

class ServiceManager {
 public:
  // LoadError if more than one socket was handed over: which is for what, nobody said.
  ServiceManager();
  ServiceManager(const ServiceManager&) = delete;
  ServiceManager& operator=(const ServiceManager&) = delete;

  // A listening socket that was opened for this process (socket activation), and stays open when
  // it ends: clients wait while a new one starts. To be owned by whoever takes it.
  std::optional<int> listener() const { return listener_; }

  // Shown by `systemctl status`.
  void tell_status(const std::string& line);
  void tell_ready(const std::string& line);
  void tell_stopping();
  // To be called at least every watch_period(): a process that misses it is ended and restarted
  // (WatchdogSec=). More often costs a clock's reading.
  void tell_alive();
  // nullopt: nobody watches.
  std::optional<std::chrono::nanoseconds> watch_period() const { return period_; }

 private:
  std::optional<int> listener_;
  std::optional<std::chrono::nanoseconds> period_;
  std::atomic<std::chrono::steady_clock::time_point> told_{};
};

}  // namespace atl
