#include "constrain/json_schema_numbers.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numeric>
#include <string_view>

#include "constrain/json_schema_keywords.h"

namespace atl::constrain {
namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kMultipleOfMax = 1000;
constexpr int kMultipleDigitsMax = 9;
constexpr double kExactMax = 9007199254740991;  // 2^53 - 1

// 0.25 as digits; numbers beyond what doubles count exactly are brought back to it.
DecimalBound decimal(const Json& number, bool exclusive) {
  const double value = std::clamp(number.get<double>(), -kExactMax, kExactMax);
  std::string text = number.is_number_integer() && value == number.get<double>()
                         ? fmt::format("{}", number.get<int64_t>())
                         : fmt::format("{:.15f}", value);
  DecimalBound out;
  out.exclusive = exclusive;
  out.negative = text[0] == '-';
  if (out.negative) text.erase(0, 1);
  const size_t point = std::min(text.find('.'), text.size());
  out.whole = text.substr(0, point);
  if (point < text.size()) out.fraction = text.substr(point + 1);
  // As many digits as the shortest text of the number has, so that 0.1 stays 0.1.
  if (!out.fraction.empty()) {
    const std::string shortest = fmt::format("{}", std::fabs(value));
    const size_t dot = shortest.find('.');
    if (shortest.find('e') == std::string::npos) {
      out.fraction = dot == std::string::npos ? "" : shortest.substr(dot + 1);
    }
  }
  return out;
}

// multipleOf as an integer times 10^-digits.
struct Multiple {
  int64_t of = 1;
  int digits = 0;
};

Multiple multiple_of(const Json& schema, const std::string& place) {
  Multiple out;
  if (!schema.contains("multipleOf")) return out;
  const double value = schema["multipleOf"].get<double>();
  int64_t power = 1;
  while (out.digits < kMultipleDigitsMax && value > 0 && value <= kMultipleOfMax) {
    const double whole = std::round(value * static_cast<double>(power));
    if (whole >= 1 && whole / static_cast<double>(power) == value) break;
    power *= 10;
    ++out.digits;
  }
  out.of = static_cast<int64_t>(std::round(std::min(value, 2.0 * kMultipleOfMax) * power));
  const bool exact = static_cast<double>(out.of) / static_cast<double>(power) == value;
  if (!exact || out.of < 1 || out.of > kMultipleOfMax) {
    refuse_schema(fmt::format(
        "{}.multipleOf: only numbers whose digits are 1 to {}, with at most {} behind the point, "
        "are supported",
        place, kMultipleOfMax, kMultipleDigitsMax));
  }
  return out;
}

std::optional<DecimalBound> tightest(const Json& schema, const char* included, const char* excluded,
                                     bool is_low) {
  const bool has_in = schema.contains(included), has_out = schema.contains(excluded);
  if (!has_in && !has_out) return std::nullopt;
  if (!has_out) return decimal(schema[included], false);
  if (!has_in) return decimal(schema[excluded], true);
  const double in = schema[included].get<double>(), out = schema[excluded].get<double>();
  const bool in_is_tighter = is_low ? in > out : in < out;
  return in_is_tighter ? decimal(schema[included], false) : decimal(schema[excluded], true);
}

// Integers have no fraction, so neither do their bounds: the nearest integers within them.
void round_inwards(NumberRange& range) {
  const auto whole = [](DecimalBound& bound, bool is_low) {
    const bool has_fraction = bound.fraction.find_first_not_of('0') != std::string::npos;
    int64_t value = std::stoll(bound.whole);
    if (bound.negative) value = -value;
    const bool towards_zero = bound.negative == is_low;  // cutting the fraction off goes inwards
    if (has_fraction ? !towards_zero : bound.exclusive) value += is_low ? 1 : -1;
    bound = {fmt::format("{}", value < 0 ? -value : value), "", value < 0, false};
  };
  whole(range.low, true);
  whole(range.high, false);
}

}  // namespace

std::optional<NumberRange> number_range(bool integer, const Json& schema,
                                        const std::string& place) {
  static constexpr std::array<std::string_view, 5> kBounds = {
      "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"};
  bool bounded = false;
  for (std::string_view keyword : kBounds) {
    if (!schema.contains(keyword)) continue;
    bounded = true;
    if (!schema[std::string(keyword)].is_number()) {
      refuse_schema(fmt::format("{}.{}: expected a number", place, keyword));
    }
  }
  if (!bounded) return std::nullopt;
  NumberRange range;
  Multiple multiple = multiple_of(schema, place);
  range.integer = integer || (schema.contains("multipleOf") && multiple.digits == 0);
  if (range.integer) {  // of 1.5: integers that are multiples of 3
    const auto power = static_cast<int64_t>(std::pow(10, multiple.digits));
    multiple.of /= std::gcd(multiple.of, power);
  } else if (schema.contains("multipleOf")) {
    range.fraction_digits_max = multiple.digits;
  }
  range.multiple_of = static_cast<int32_t>(multiple.of);
  range.low.negative = true;
  range.low.whole = range.high.whole = "999999999999999";
  if (const auto low = tightest(schema, "minimum", "exclusiveMinimum", true)) range.low = *low;
  if (const auto high = tightest(schema, "maximum", "exclusiveMaximum", false)) range.high = *high;
  if (range.integer) round_inwards(range);
  return range;
}

}  // namespace atl::constrain
