// Errors as OpenAI's API tells them: {"error": {"message", "type", "param", "code"}}.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/result.h"
#include "http/http_server.h"

namespace atl::coordinator {

struct ApiError {
  int status = 400;
  std::string message = {};
  std::string type = "invalid_request_error";
  std::string param = {};  // the field, as "messages[0].content"; empty: null
  std::string code = {};   // empty: null
  int retry_after_s = 0;   // > 0: also a header
};

ApiError invalid_request(std::string param, std::string message, std::string code = {});
// A 404 that names what there is.
ApiError no_such_model(std::string_view name, const std::string& served,
                       const std::vector<std::string>& others);
// By the error's code: kOverloaded 429, kUnavailable 503, kTimeout 504, kInvalid and kUnsupported
// 400, the others 500.
ApiError api_error(const Error& error);
// By the status alone, for what the HTTP server itself refuses.
ApiError api_error(int status, std::string message);

std::string to_json(const ApiError& error);
http::HttpResponse to_response(const ApiError& error);
// In the form of the API that the path belongs to.
http::HttpResponse to_response(const ApiError& error, std::string_view path);

// A value, or what is wrong with a request.
template <typename T>
class Parsed {
 public:
  Parsed(T value) : value_(std::move(value)) {}         // NOLINT(implicit)
  Parsed(ApiError error) : error_(std::move(error)) {}  // NOLINT(implicit)
  explicit operator bool() const { return value_.has_value(); }
  T& operator*() {
    CHECK(value_.has_value());
    return *value_;
  }
  T* operator->() { return &**this; }
  const ApiError& error() const {
    CHECK(!value_.has_value());
    return error_;
  }

 private:
  std::optional<T> value_;
  ApiError error_;
};

}  // namespace atl::coordinator
