// Outcomes that callers must live with: Result<T> and Status.
//
// A Result holds a value or an Error; a Status is a Result without a value. What prevents the
// program from starting (config, checkpoint, port) is an exception instead: see LoadError below.
#pragma once

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

#include "base/check.h"

namespace atl {

// Named by the caller's next move.
enum class ErrorCode : uint8_t {
  kOverloaded,   // try again later
  kUnavailable,  // ask another replica
  kTimeout,      // ask another replica, mark this one slow
  kCorrupt,      // ask another source, never retry here
  kInvalid,      // tell the client
  kUnsupported,  // tell the user what is not built
  kInternal,     // a bug of ours
};

std::string_view to_string(ErrorCode code);

struct Error {
  ErrorCode code = ErrorCode::kInternal;
  std::string message;  // what was tried, on which node, file or expert, and what came back
};

// A value of T or an Error. Reading the wrong side is a bug (CHECK).
template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : state_(std::in_place_index<0>, std::move(value)) {}        // NOLINT(implicit)
  Result(Error error) : state_(std::in_place_index<1>, std::move(error)) {}    // NOLINT(implicit)

  bool has_value() const { return state_.index() == 0; }
  explicit operator bool() const { return has_value(); }

  T& value() & {
    CHECK(has_value());
    return std::get<0>(state_);
  }
  const T& value() const& {
    CHECK(has_value());
    return std::get<0>(state_);
  }
  T&& value() && {
    CHECK(has_value());
    return std::get<0>(std::move(state_));
  }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T&& operator*() && { return std::move(*this).value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }

  const Error& error() const {
    CHECK(!has_value());
    return std::get<1>(state_);
  }

 private:
  std::variant<T, Error> state_;
};

// Success, or an Error.
class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(Error error) : error_(std::move(error)) {}  // NOLINT(implicit)

  bool ok() const { return !error_.has_value(); }
  explicit operator bool() const { return ok(); }
  const Error& error() const {
    CHECK(!ok());
    return *error_;
  }

 private:
  std::optional<Error> error_;
};

// A reason not to start: bad config, checkpoint, flag, port. Thrown by constructors and loaders,
// caught once in main() and printed as one line.
class LoadError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

}  // namespace atl
