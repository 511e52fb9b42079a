#include "base/json_reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace atl {
namespace {

using Json = nlohmann::ordered_json;
using Members = Json::object_t::Container;  // whose own way to add one looks at all keys

constexpr size_t kMessageBytesMax = 200;
// nlohmann's ordered object looks at each key that stands before; with more than so many a table is
// made of them.
constexpr size_t kKeysInOrder = 16;
// Memory, about: lists grow by doubling.
constexpr size_t kElementBytes = 2 * sizeof(Json);
constexpr size_t kMemberBytes = 2 * sizeof(Members::value_type);
constexpr size_t kContainerBytes = 64, kStringBytes = 48, kTableBytes = 100;

std::string tidy(std::string what) {
  // "[json.exception.parse_error.101] parse error at line 1, column 2: ..."
  if (what.starts_with('[')) {
    const size_t end = what.find("] ");
    if (end != std::string::npos) what = what.substr(end + 2);
  }
  std::replace_if(
      what.begin(), what.end(), [](char c) { return c == '\n' || c == '\r'; }, ' ');
  return what.size() > kMessageBytesMax ? what.substr(0, kMessageBytesMax) + "..." : what;
}

class Reader final : public nlohmann::json_sax<Json> {
 public:
  explicit Reader(const JsonBounds& bounds) : bounds_(bounds) {}

  bool null() override { return add(nullptr) != nullptr; }
  bool boolean(bool v) override { return add(v) != nullptr; }
  bool number_integer(number_integer_t v) override { return add(v) != nullptr; }
  bool number_unsigned(number_unsigned_t v) override { return add(v) != nullptr; }
  bool number_float(number_float_t v, const string_t&) override { return add(v) != nullptr; }
  bool string(string_t& v) override { return hold_string(v) && add(std::move(v)) != nullptr; }
  bool binary(binary_t&) override { return false; }  // there is none in text
  bool start_object(size_t) override { return open(Json::value_t::object); }
  bool start_array(size_t) override { return open(Json::value_t::array); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }

  bool key(string_t& key) override {
    Open& object = open_.back();
    Members& members = object.value->get_ref<Json::object_t&>();
    if (Json* there = find(object, members, key)) {
      next_ = there;
      return true;
    }
    if (!hold_string(key) || !hold(kMemberBytes)) return false;
    if (members.size() >= kKeysInOrder) {
      if (!hold(kTableBytes + key.size())) return false;
      object.index.emplace(key, members.size());
    }
    members.emplace_back(std::move(key), Json());
    next_ = &members.back().second;
    return true;
  }

  bool parse_error(size_t, const std::string&, const Json::exception& error) override {
    problem = {ErrorCode::kInvalid, tidy(error.what())};
    return false;
  }

  Json root;
  Error problem;
  size_t bytes = 0;

 private:
  struct Open {
    Json* value;
    std::unordered_map<std::string, size_t> index;  // of an object's keys behind the first ones
  };

  bool exceeds(std::string why) {
    problem = {ErrorCode::kUnsupported, std::move(why)};
    return false;
  }

  bool hold(size_t more) {
    bytes += more;
    if (bytes <= bounds_.bytes_max) return true;
    return exceeds(fmt::format("more values than {} bytes of memory hold", bounds_.bytes_max));
  }
  bool hold_string(const std::string& text) { return hold(kStringBytes + text.size()); }

  static Json* find(Open& object, Members& members, const std::string& key) {
    const size_t in_order = std::min(members.size(), kKeysInOrder);
    for (size_t i = 0; i < in_order; ++i) {
      if (members[i].first == key) return &members[i].second;
    }
    const auto found = object.index.find(key);
    return found == object.index.end() ? nullptr : &members[found->second].second;
  }

  // Where it belongs now; null: no more memory.
  Json* add(Json value) {
    if (open_.empty()) {
      root = std::move(value);
      return &root;
    }
    if (open_.back().value->is_object()) {
      *next_ = std::move(value);
      return next_;
    }
    if (!hold(kElementBytes)) return nullptr;
    auto& elements = open_.back().value->get_ref<Json::array_t&>();
    elements.push_back(std::move(value));
    return &elements.back();
  }

  bool open(Json::value_t type) {
    if (open_.size() >= static_cast<size_t>(bounds_.depth_max)) {
      return exceeds(fmt::format("nested deeper than {} levels", bounds_.depth_max));
    }
    if (!hold(kContainerBytes)) return false;
    Json* const value = add(Json(type));
    if (value == nullptr) return false;
    open_.push_back({value, {}});
    return true;
  }

  bool close() {
    open_.pop_back();
    return true;
  }

  const JsonBounds bounds_;
  std::vector<Open> open_;
  Json* next_ = nullptr;  // the value of the key that was read
};

}  // namespace

Result<Json> read_json(std::string_view text, const JsonBounds& bounds, size_t* bytes) {
  // Which the parser takes for the end.
  if (text.find('\0') != std::string_view::npos) {
    return Error{ErrorCode::kInvalid, "a zero byte in it"};
  }
  Reader reader(bounds);
  const bool whole = Json::sax_parse(text.begin(), text.end(), &reader);
  if (bytes != nullptr) *bytes = reader.bytes;
  if (!whole) return reader.problem;
  return std::move(reader.root);
}

JsonBounds bounds_of_file(size_t file_bytes) {
  return {.bytes_max = (size_t{1} << 20) + 10 * file_bytes};
}

}  // namespace atl
