#include "transport/data/ucx_log.h"

#include <signal.h>
#include <ucs/debug/debug.h>
#include <ucs/debug/log_def.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <string_view>

#include "base/log.h"
#include "transport/data/transport.h"

namespace atl::transport {

namespace {

std::mutex g_mutex;
std::string g_last_error;

// Called by UCX from any of its threads; nothing may be thrown through it.
ucs_log_func_rc_t on_ucx_log(const char*, unsigned, const char*, ucs_log_level_t level,
                             const ucs_log_component_config_t*, const char* message,
                             va_list arguments) {
  static const bool also_by_ucx = std::getenv("UCX_LOG_LEVEL") != nullptr;
  const auto next = also_by_ucx ? UCS_LOG_FUNC_RC_CONTINUE : UCS_LOG_FUNC_RC_STOP;
  if (level == UCS_LOG_LEVEL_FATAL || level == UCS_LOG_LEVEL_PRINT) return UCS_LOG_FUNC_RC_CONTINUE;
  char line[1024];
  va_list copy;
  va_copy(copy, arguments);
  std::vsnprintf(line, sizeof line, message, copy);
  va_end(copy);
  try {
    if (level == UCS_LOG_LEVEL_ERROR) {
      std::lock_guard lock(g_mutex);
      g_last_error = line;
    }
    // "invalid configuration: RX_SEG_SIZE=128k" means that the user's UCX_TLS left the transport
    // out that our setting is for.
    const bool ours = std::string_view(line).starts_with("invalid configuration");
    if (level == UCS_LOG_LEVEL_WARN && !ours)
      log_warn("ucx: {}", line);
    else
      log_debug("ucx: {}", line);
  } catch (...) {
  }
  return next;
}

}  // namespace

void route_ucx_log() {
  static std::once_flag once;
  std::call_once(once, [] { ucs_log_push_handler(on_ucx_log); });
}

void release_ucx_signals() {
  for (const int signal : {SIGHUP, SIGILL, SIGBUS, SIGFPE, SIGSEGV}) {
    ucs_debug_disable_signal(signal);
  }
}

std::string take_ucx_last_error() {
  std::lock_guard lock(g_mutex);
  return std::exchange(g_last_error, {});
}

}  // namespace atl::transport
