#include "cli/stop_signals.h"

#include <pthread.h>
#include <signal.h>

#include "base/check.h"
#include "base/log.h"

namespace atl::cli {
namespace {

// Ends the watcher; nobody else sends it.
constexpr int kEndWatcher = SIGUSR2;

sigset_t watched_signals() {
  sigset_t set;
  sigemptyset(&set);
  for (const int signal : {SIGTERM, SIGINT, kEndWatcher}) sigaddset(&set, signal);
  // The terminal was closed; not if whoever started this process wants it to stay (nohup).
  struct sigaction hang_up {};
  sigaction(SIGHUP, nullptr, &hang_up);
  if (hang_up.sa_handler != SIG_IGN) sigaddset(&set, SIGHUP);
  return set;
}

}  // namespace

StopSignals::StopSignals() {
  const sigset_t set = watched_signals();
  CHECK_EQ(pthread_sigmask(SIG_BLOCK, &set, nullptr), 0);
}

void StopSignals::watch(std::function<void()> stop) {
  CHECK(!watcher_.joinable());
  watcher_ = std::thread([stop = std::move(stop)] {
    const sigset_t set = watched_signals();
    for (int signal = 0; sigwait(&set, &signal) == 0 && signal != kEndWatcher;) {
      log_debug("stopping: {}", signal == SIGTERM  ? "SIGTERM"
                                : signal == SIGINT ? "SIGINT"
                                                   : "SIGHUP");
      stop();
    }
  });
}

StopSignals::~StopSignals() {
  if (!watcher_.joinable()) return;
  pthread_kill(watcher_.native_handle(), kEndWatcher);
  watcher_.join();
}

}  // namespace atl::cli
