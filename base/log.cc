#include "base/log.h"

#include <spdlog/sinks/ansicolor_sink.h>
#include <spdlog/spdlog.h>

#include <memory>
#include <string>

namespace atl {
namespace {

// The sink colours only a terminal (spdlog's color_mode::automatic checks isatty).
std::shared_ptr<spdlog::logger> make_logger(std::string_view process_name) {
  auto sink = std::make_shared<spdlog::sinks::ansicolor_stderr_sink_mt>();
  auto logger = std::make_shared<spdlog::logger>(std::string(process_name), sink);
  logger->set_pattern("%H:%M:%S.%e %^%l%$ %n: %v");
  logger->flush_on(spdlog::level::trace);
  return logger;
}

std::shared_ptr<spdlog::logger>& logger() {
  static std::shared_ptr<spdlog::logger> instance = make_logger("atoll");
  return instance;
}

spdlog::level::level_enum to_spdlog(LogLevel level) {
  switch (level) {
    case LogLevel::kTrace: return spdlog::level::trace;
    case LogLevel::kDebug: return spdlog::level::debug;
    case LogLevel::kInfo: return spdlog::level::info;
    case LogLevel::kWarn: return spdlog::level::warn;
    case LogLevel::kError: return spdlog::level::err;
    case LogLevel::kOff: return spdlog::level::off;
  }
  return spdlog::level::info;
}

constexpr std::pair<std::string_view, LogLevel> kNames[] = {
    {"trace", LogLevel::kTrace}, {"debug", LogLevel::kDebug}, {"info", LogLevel::kInfo},
    {"warn", LogLevel::kWarn},   {"error", LogLevel::kError}, {"off", LogLevel::kOff}};

}  // namespace

void init_log(LogLevel level, std::string_view process_name) {
  logger() = make_logger(process_name);
  logger()->set_level(to_spdlog(level));
}

bool parse_log_level(std::string_view text, LogLevel* level) {
  for (const auto& [name, value] : kNames) {
    if (text == name) {
      *level = value;
      return true;
    }
  }
  return false;
}

LogLevel log_level() {
  for (const auto& [name, level] : kNames) {
    if (log_enabled(level)) return level;
  }
  return LogLevel::kOff;
}

std::string_view to_string(LogLevel level) {
  for (const auto& [name, value] : kNames) {
    if (value == level) return name;
  }
  return "?";
}

bool log_enabled(LogLevel level) { return logger()->should_log(to_spdlog(level)); }

void log_line(LogLevel level, std::string_view line) {
  logger()->log(to_spdlog(level), spdlog::string_view_t(line.data(), line.size()));
}

}  // namespace atl
