#include "base/units.h"

#include <fmt/format.h>

#include <cctype>
#include <charconv>
#include <cmath>

namespace atl {
namespace {

std::string three_digits(double value) {
  if (value >= 100) return fmt::format("{:.0f}", value);
  if (value >= 10) return fmt::format("{:.1f}", value);
  return fmt::format("{:.2f}", value);
}

}  // namespace

std::string format_bytes(uint64_t bytes) {
  if (bytes < kKiB) return fmt::format("{} B", bytes);
  constexpr const char* kUnits[] = {"KiB", "MiB", "GiB", "TiB", "PiB"};
  double value = static_cast<double>(bytes) / 1024.0;
  size_t unit = 0;
  while (value >= 999.5 && unit + 1 < std::size(kUnits)) {
    value /= 1024.0;
    ++unit;
  }
  return three_digits(value) + " " + kUnits[unit];
}

std::string format_rate(double bytes_per_second) {
  constexpr const char* kUnits[] = {"B/s", "kB/s", "MB/s", "GB/s", "TB/s"};
  size_t unit = 0;
  while (bytes_per_second >= 999.5 && unit + 1 < std::size(kUnits)) {
    bytes_per_second /= 1000.0;
    ++unit;
  }
  return three_digits(bytes_per_second) + " " + kUnits[unit];
}

std::string format_duration(double seconds) {
  if (seconds < 1e-3) return three_digits(seconds * 1e6) + " us";
  if (seconds < 1) return three_digits(seconds * 1e3) + " ms";
  if (seconds < 60) return three_digits(seconds) + " s";
  const auto whole = static_cast<uint64_t>(std::llround(seconds));
  if (whole < 3600) return fmt::format("{} min {:02} s", whole / 60, whole % 60);
  return fmt::format("{} h {:02} min", whole / 3600, whole / 60 % 60);
}

std::string format_count(uint64_t n) {
  std::string digits = std::to_string(n);
  for (int64_t at = static_cast<int64_t>(digits.size()) - 3; at > 0; at -= 3) {
    digits.insert(static_cast<size_t>(at), ",");
  }
  return digits;
}

Result<uint64_t> parse_bytes(std::string_view text) {
  const Error bad{ErrorCode::kInvalid,
                  fmt::format("not a size: '{}' (expected a number with a unit, such as 64MiB)", text)};
  double number = 0;
  const auto [end, status] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (status != std::errc() || number < 0 || !std::isfinite(number)) return bad;
  std::string unit;
  for (const char* c = end; c != text.data() + text.size(); ++c) {
    if (*c != ' ') unit += *c;
  }
  constexpr std::pair<std::string_view, double> kUnits[] = {
      {"", 1.0},           {"B", 1.0},           {"KiB", 1024.0},         {"MiB", 1048576.0},
      {"GiB", 0x1p30},     {"TiB", 0x1p40},      {"kB", 1e3},             {"MB", 1e6},
      {"GB", 1e9},         {"TB", 1e12}};
  for (const auto& [name, factor] : kUnits) {
    if (unit == name) {
      const double bytes = number * factor;
      if (bytes >= 0x1p63) return bad;
      return static_cast<uint64_t>(std::llround(bytes));
    }
  }
  return bad;
}

}  // namespace atl
