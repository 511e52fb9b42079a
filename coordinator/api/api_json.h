// Reading JSON of strangers: bounded, and every complaint names the field, what is expected and
// what was found.
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "coordinator/api/api_errors.h"

namespace atl::coordinator {

// What one text may hold, so that neither stack, memory nor time grows beyond its size.
struct JsonLimits {
  int depth_max = 128;
  // Of the values in memory, as base/json_reader.h counts; less for short texts.
  size_t bytes_max = size_t{256} << 20;
};

// Of a chat in any of the protocols.
inline constexpr size_t kMessagesMax = 100'000, kPartsMax = 10'000, kToolsMax = 1024;

// A value of a JsonDocument, borrowed, with its place in it. One that isn't there is "missing", and
// so is a null: OpenAI's clients send null for what they leave out.
//
// The readers of a type give nullopt for a missing value and for one of another type or out of
// range; the latter is noted in the document.
class JsonValue {
 public:
  bool missing() const;
  bool is_string() const;
  bool is_array() const;
  bool is_object() const;

  JsonValue operator[](std::string_view key) const;  // missing, too, if this is no object
  // Of an array; else none. More than `max` are complained about.
  std::vector<JsonValue> elements(size_t max) const;
  JsonValue element(size_t index) const;             // of an array that has it
  std::vector<std::string> keys() const;             // of an object; else none
  size_t size() const;                               // of an array or object
  const std::string& path() const { return path_; }  // "messages[0].content"
  std::string text() const;                          // as JSON, keys in their order

  std::optional<bool> boolean() const;
  // Also a number like 16.0.
  std::optional<int64_t> integer(int64_t min, int64_t max) const;
  std::optional<double> number(double min, double max) const;
  std::optional<std::string> string() const;
  // An array of integers. Elements are not looked at one by one in the document's list of paths.
  std::optional<std::vector<int32_t>> integers(int32_t min, int32_t max) const;

  // Notes that this value is not `expected` ("a string or an array"), with what it is instead.
  void complain(std::string_view expected) const;
  void refuse(std::string message, std::string code = {}) const;

 private:
  friend class JsonDocument;
  struct Notes {
    std::optional<ApiError> first;
  };
  JsonValue(const void* value, std::string path, Notes* notes);
  std::string found() const;

  const void* value_;  // nlohmann::ordered_json, which stays in the source; null: not there
  std::string path_;
  Notes* notes_;
};

// As it is sent; bytes that are no UTF-8 are replaced.
std::string dump(const nlohmann::ordered_json& json);
// What OpenAI's objects have where there is nothing to say.
nlohmann::ordered_json text_or_null(const std::string& text);

class JsonDocument {
 public:
  // An object, or a 400 that says where the text goes wrong.
  static Parsed<JsonDocument> parse(std::string_view text, const JsonLimits& limits = {});
  ~JsonDocument();
  JsonDocument(JsonDocument&&) noexcept;

  JsonValue root() const;
  // The first complaint about a value.
  const std::optional<ApiError>& error() const;

 private:
  struct State;
  explicit JsonDocument(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace atl::coordinator
