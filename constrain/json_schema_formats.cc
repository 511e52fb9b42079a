#include "constrain/json_schema_formats.h"

#include <fmt/core.h>

namespace atl::constrain {
namespace {

// Dates and times: RFC 3339; years from 0001; 29 February in leap years only.
constexpr std::string_view kYear = R"((?:\d{3}[1-9]|\d{2}[1-9]0|\d[1-9]00|[1-9]000))";
constexpr std::string_view kMonthAndDay =
    R"((?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)|02-(?:0[1-9]|1\d|2[0-8])))";
constexpr std::string_view kLeapYear =
    R"((?:\d\d(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00))";
constexpr std::string_view kTime =
    R"((?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{1,6})?(?:Z|[+-](?:[01]\d|2[0-3]):[0-5]\d))";

std::string date_pattern() {
  return fmt::format("(?:{}-{}|{}-02-29)", kYear, kMonthAndDay, kLeapYear);
}

}  // namespace

std::string format_pattern(std::string_view format) {
  if (format == "date") return "^" + date_pattern() + "$";
  if (format == "time") return fmt::format("^{}$", kTime);
  if (format == "date-time") return fmt::format("^{}T{}$", date_pattern(), kTime);
  if (format == "uuid") {
    return "^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$";
  }
  if (format == "ipv4") {
    constexpr std::string_view kByte = R"((?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d))";
    return fmt::format(R"(^{0}\.{0}\.{0}\.{0}$)", kByte);
  }
  constexpr std::string_view kLabel = "[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?";
  if (format == "hostname") return fmt::format(R"(^{0}(?:\.{0}){{0,3}}$)", kLabel);
  if (format == "email") {
    return fmt::format(R"(^[a-zA-Z0-9_+-]+(?:\.[a-zA-Z0-9_+-]+)*@{0}(?:\.{0}){{1,3}}$)", kLabel);
  }
  if (format == "uri") {
    return R"(^[a-zA-Z][a-zA-Z0-9+.-]{0,30}://[a-zA-Z0-9.-]+(?::\d{1,5})?(?:/[a-zA-Z0-9._~!$&'()*+,;=:@/-]*)?$)";
  }
  if (format == "duration") {
    // RFC 3339, appendix A.
    constexpr std::string_view kTimes = R"(T(?:\d+H(?:\d+M(?:\d+S)?)?|\d+M(?:\d+S)?|\d+S))";
    constexpr std::string_view kDates = R"((?:\d+Y(?:\d+M(?:\d+D)?)?|\d+M(?:\d+D)?|\d+D))";
    return fmt::format(R"(^P(?:\d+W|{1}(?:{0})?|{0})$)", kTimes, kDates);
  }
  return "";
}

}  // namespace atl::constrain
