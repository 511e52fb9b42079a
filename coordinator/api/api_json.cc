#include "coordinator/api/api_json.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "base/json_reader.h"

namespace atl::coordinator {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kFoundBytesMax = 60;
// Memory of a body's values: lists of token ids take 5 to 8 bytes for one of the text.
constexpr size_t kBodyBytesMin = size_t{16} << 20, kBytesOfByte = 8;

const Json& json_of(const void* value) { return *static_cast<const Json*>(value); }

std::string format_range(double min, double max) { return fmt::format("from {} to {}", min, max); }

}  // namespace

std::string dump(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

Json text_or_null(const std::string& text) { return text.empty() ? Json(nullptr) : Json(text); }

struct JsonDocument::State {
  Json json;
  JsonValue::Notes notes;
};

JsonDocument::JsonDocument(std::unique_ptr<State> state) : state_(std::move(state)) {}
JsonDocument::~JsonDocument() = default;
JsonDocument::JsonDocument(JsonDocument&&) noexcept = default;

Parsed<JsonDocument> JsonDocument::parse(std::string_view text, const JsonLimits& limits) {
  if (text.find_first_not_of(" \t\r\n") == std::string_view::npos) {
    return invalid_request("", "expected a JSON object as the body, found an empty body",
                           "invalid_json");
  }
  auto read = read_json(
      text, {.depth_max = limits.depth_max,
             .bytes_max = std::min(limits.bytes_max, kBodyBytesMin + kBytesOfByte * text.size())});
  if (!read) {
    const bool is_json = read.error().code == ErrorCode::kUnsupported;
    return invalid_request(
        "", (is_json ? "the body is refused: " : "the body is not JSON: ") + read.error().message,
        "invalid_json");
  }
  auto state = std::make_unique<State>();
  state->json = std::move(*read);
  if (!state->json.is_object()) {
    return invalid_request(
        "", fmt::format("expected a JSON object as the body, found {}", state->json.type_name()),
        "invalid_json");
  }
  return JsonDocument(std::move(state));
}

JsonValue JsonDocument::root() const { return JsonValue(&state_->json, "", &state_->notes); }

const std::optional<ApiError>& JsonDocument::error() const { return state_->notes.first; }

JsonValue::JsonValue(const void* value, std::string path, Notes* notes)
    : value_(value), path_(std::move(path)), notes_(notes) {}

bool JsonValue::missing() const { return value_ == nullptr || json_of(value_).is_null(); }
bool JsonValue::is_string() const { return value_ != nullptr && json_of(value_).is_string(); }
bool JsonValue::is_array() const { return value_ != nullptr && json_of(value_).is_array(); }
bool JsonValue::is_object() const { return value_ != nullptr && json_of(value_).is_object(); }

JsonValue JsonValue::operator[](std::string_view key) const {
  std::string path = path_.empty() ? std::string(key) : fmt::format("{}.{}", path_, key);
  if (!is_object()) return JsonValue(nullptr, std::move(path), notes_);
  const auto it = json_of(value_).find(std::string(key));
  return JsonValue(it == json_of(value_).end() ? nullptr : &*it, std::move(path), notes_);
}

std::vector<JsonValue> JsonValue::elements(size_t max) const {
  std::vector<JsonValue> elements;
  if (!is_array()) return elements;
  if (size() > max) {
    complain(fmt::format("an array of at most {}", max));
    return elements;
  }
  elements.reserve(size());
  for (size_t i = 0; i < size(); ++i) elements.push_back(element(i));
  return elements;
}

JsonValue JsonValue::element(size_t index) const {
  CHECK(is_array() && index < size());
  return JsonValue(&json_of(value_)[index], fmt::format("{}[{}]", path_, index), notes_);
}

std::vector<std::string> JsonValue::keys() const {
  std::vector<std::string> keys;
  if (!is_object()) return keys;
  for (const auto& [key, value] : json_of(value_).items()) keys.push_back(key);
  return keys;
}

size_t JsonValue::size() const { return is_array() || is_object() ? json_of(value_).size() : 0; }

std::string JsonValue::text() const { return value_ == nullptr ? "null" : dump(json_of(value_)); }

std::optional<bool> JsonValue::boolean() const {
  if (missing()) return std::nullopt;
  if (json_of(value_).is_boolean()) return json_of(value_).get<bool>();
  complain("true or false");
  return std::nullopt;
}

std::optional<int64_t> JsonValue::integer(int64_t min, int64_t max) const {
  if (missing()) return std::nullopt;
  const Json& json = json_of(value_);
  std::optional<int64_t> value;
  if (json.is_number_unsigned()) {
    const auto number = json.get<uint64_t>();
    if (number <= static_cast<uint64_t>(INT64_MAX)) value = static_cast<int64_t>(number);
  } else if (json.is_number_integer()) {
    value = json.get<int64_t>();
  } else if (json.is_number_float()) {
    const auto number = json.get<double>();
    constexpr double kExactMax = 9007199254740992;  // 2^53
    if (std::abs(number) <= kExactMax && number == std::floor(number)) {
      value = static_cast<int64_t>(number);
    }
  }
  if (value && *value >= min && *value <= max) return value;
  if (max == INT64_MAX) {
    complain(min == INT64_MIN ? "an integer of 64 bits" : fmt::format("an integer from {}", min));
  } else {
    complain(fmt::format("an integer from {} to {}", min, max));
  }
  return std::nullopt;
}

std::optional<double> JsonValue::number(double min, double max) const {
  if (missing()) return std::nullopt;
  if (json_of(value_).is_number()) {
    const auto number = json_of(value_).get<double>();
    if (number >= min && number <= max) return number;
  }
  complain("a number " + format_range(min, max));
  return std::nullopt;
}

std::optional<std::string> JsonValue::string() const {
  if (missing()) return std::nullopt;
  if (is_string()) return json_of(value_).get<std::string>();
  complain("a string");
  return std::nullopt;
}

std::optional<std::vector<int32_t>> JsonValue::integers(int32_t min, int32_t max) const {
  if (missing()) return std::nullopt;
  if (!is_array()) {
    complain("an array of integers");
    return std::nullopt;
  }
  std::vector<int32_t> values;
  values.reserve(size());
  for (const Json& element : json_of(value_)) {
    const bool fits =
        element.is_number_integer() &&
        !(element.is_number_unsigned() && element.get<uint64_t>() > static_cast<uint64_t>(max)) &&
        element.get<int64_t>() >= min && element.get<int64_t>() <= max;
    if (!fits) {
      JsonValue(&element, fmt::format("{}[{}]", path_, values.size()), notes_)
          .complain(fmt::format("an integer from {} to {}", min, max));
      return std::nullopt;
    }
    values.push_back(element.get<int32_t>());
  }
  return values;
}

std::string JsonValue::found() const {
  if (value_ == nullptr) return "nothing";
  const Json& json = json_of(value_);
  if (json.is_array()) return fmt::format("an array of {}", json.size());
  if (json.is_object()) return "an object";
  if (json.is_string()) {
    const auto& text = json.get_ref<const std::string&>();
    if (text.size() > kFoundBytesMax) return fmt::format("a string of {} bytes", text.size());
    return "the string " + dump(json);
  }
  return dump(json);
}

void JsonValue::complain(std::string_view expected) const {
  refuse(fmt::format("{}: expected {}, found {}", path_, expected, found()));
}

void JsonValue::refuse(std::string message, std::string code) const {
  if (!notes_->first) {
    notes_->first = invalid_request(path_, std::move(message), std::move(code));
  }
}

}  // namespace atl::coordinator
