// Numbers with units, as people read and write them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/result.h"

namespace atl {

inline constexpr uint64_t kKiB = 1024;
inline constexpr uint64_t kMiB = 1024 * kKiB;
inline constexpr uint64_t kGiB = 1024 * kMiB;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// "17.2 MiB", "512 B": three significant digits, binary units.
std::string format_bytes(uint64_t bytes);
// "1.25 GB/s": decimal units, as bandwidth is quoted.
std::string format_rate(double bytes_per_second);
// "850 ms", "12.3 s", "4 min 05 s".
std::string format_duration(double seconds);
// 14848 -> "14,848".
std::string format_count(uint64_t n);
// Plain integers and "64KiB", "64 MiB", "8GiB", "1.5GiB", "2TiB"; also decimal "kB", "MB", "GB".
// kInvalid names the text.
Result<uint64_t> parse_bytes(std::string_view text);

}  // namespace atl
