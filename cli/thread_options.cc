#include "cli/thread_options.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <charconv>

#include "base/log.h"

namespace atl::cli {
namespace {

constexpr int kThreadsMax = 4096;

// 0 for "auto"; -1 if it is no number of threads.
int parse_threads(const std::string& text) {
  if (text == "auto") return 0;
  int threads = 0;
  const char* end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, threads);
  const bool valid = error == std::errc() && rest == end && threads >= 0 && threads <= kThreadsMax;
  return valid ? threads : -1;
}

}  // namespace

void add_threads_option(CLI::App& command, const std::string& whose, int* threads) {
  command
      .add_option_function<std::string>(
          "--threads", [threads](const std::string& text) { *threads = parse_threads(text); },
          whose +
              "; auto (or 0): one for each core that this process may use, which is what is "
              "taken unless given")
      ->check(CLI::Validator(
          [](const std::string& text) {
            return parse_threads(text) >= 0
                       ? ""
                       : fmt::format("'{}' is no number of threads, expected auto or 1 to {}", text,
                                     kThreadsMax);
          },
          ""))
      ->type_name("N|auto");
}

void add_pin_option(CLI::App& command, topology::PinMode* mode) {
  using topology::PinMode;
  command
      .add_option_function<std::string>(
          "--pin",
          [mode](const std::string& text) {
            *mode = text == "on" ? PinMode::kOn : text == "off" ? PinMode::kOff : PinMode::kAuto;
          },
          "Keep each thread on a core of its own: auto (if the threads fill all cores), on (if "
          "there are enough) or off; auto unless given")
      ->check(CLI::IsMember({"auto", "on", "off"}))
      ->type_name("auto|on|off");
}

topology::TeamPlan plan_threads(const topology::TeamRequest& request) {
  topology::TeamPlan plan = topology::plan_team(topology::this_machine(), request);
  log_debug("{}", topology::describe(plan));
  return plan;
}

}  // namespace atl::cli
