// Log lines on stderr: `log_info("node {} unreachable: timeout after {} ms", name, ms)`.
//
// error = can't continue, warn = continues but unexpected, info = a handful per process life,
// debug = per object, trace = per request. Any thread. The back end (spdlog) stays in log.cc.
#pragma once

#include <fmt/core.h>

#include <string_view>
#include <utility>

namespace atl {

enum class LogLevel { kTrace, kDebug, kInfo, kWarn, kError, kOff };

// Sets the lowest level that is printed and the name that stands in each line ("atoll", "node n1").
void init_log(LogLevel level, std::string_view process_name);
// trace|debug|info|warn|error|off; false if it is none of them.
bool parse_log_level(std::string_view text, LogLevel* level);
std::string_view to_string(LogLevel level);
LogLevel log_level();  // the lowest that is printed
bool log_enabled(LogLevel level);
void log_line(LogLevel level, std::string_view line);

template <typename... Args>
void log_at(LogLevel level, fmt::format_string<Args...> format, Args&&... args) {
  if (log_enabled(level)) log_line(level, fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
void log_debug(fmt::format_string<Args...> format, Args&&... args) {
  log_at(LogLevel::kDebug, format, std::forward<Args>(args)...);
}
template <typename... Args>
void log_info(fmt::format_string<Args...> format, Args&&... args) {
  log_at(LogLevel::kInfo, format, std::forward<Args>(args)...);
}
template <typename... Args>
void log_warn(fmt::format_string<Args...> format, Args&&... args) {
  log_at(LogLevel::kWarn, format, std::forward<Args>(args)...);
}
template <typename... Args>
void log_error(fmt::format_string<Args...> format, Args&&... args) {
  log_at(LogLevel::kError, format, std::forward<Args>(args)...);
}

}  // namespace atl
