#include "constrain/json_schema_numbers.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <nlohmann/json.hpp>
#include <string_view>

#include "constrain/json_schema_keywords.h"

namespace atl::constrain {
namespace {

using Json = nlohmann::ordered_json;

constexpr int32_t kMultipleOfMax = 100;
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

int32_t multiple_of(const Json& schema, const std::string& place) {
  if (!schema.contains("multipleOf")) return 1;
  const double value = schema["multipleOf"].get<double>();
  if (value < 1 || value > kMultipleOfMax || value != std::floor(value)) {
    refuse_schema(fmt::format("{}.multipleOf: only integers from 1 to {} are supported", place,
                              kMultipleOfMax));
  }
  return static_cast<int32_t>(value);
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
  range.multiple_of = multiple_of(schema, place);
  range.integer = integer || schema.contains("multipleOf");
  range.low.negative = true;
  range.low.whole = range.high.whole = "999999999999999";
  if (const auto low = tightest(schema, "minimum", "exclusiveMinimum", true)) range.low = *low;
  if (const auto high = tightest(schema, "maximum", "exclusiveMaximum", false)) range.high = *high;
  if (range.integer) round_inwards(range);
  return range;
}

}  // namespace atl::constrain
