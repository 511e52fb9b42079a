#include "coordinator/api/api_errors.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "coordinator/api/api_json.h"

namespace atl::coordinator {
namespace {

using Json = nlohmann::ordered_json;

}  // namespace

ApiError invalid_request(std::string param, std::string message, std::string code) {
  return {.message = std::move(message), .param = std::move(param), .code = std::move(code)};
}

ApiError no_such_model(std::string_view name, const std::string& served,
                       const std::vector<std::string>& others) {
  std::string names = "`" + served + "`";
  for (const std::string& other : others) names += ", `" + other + "`";
  ApiError error = invalid_request(
      "model",
      fmt::format("the model `{}` does not exist; this server has {}", name.substr(0, 200), names),
      "model_not_found");
  error.status = 404;
  return error;
}

ApiError api_error(const Error& error) {
  switch (error.code) {
    case ErrorCode::kOverloaded:
      return {.status = 429,
              .message = error.message,
              .type = "rate_limit_error",
              .code = "queue_full",
              .retry_after_s = 1};
    case ErrorCode::kUnavailable:
      return {.status = 503,
              .message = error.message,
              .type = "service_unavailable_error",
              .code = "unavailable",
              .retry_after_s = 5};
    case ErrorCode::kTimeout:
      return {.status = 504, .message = error.message, .type = "timeout_error", .code = "timeout"};
    case ErrorCode::kInvalid:
      return invalid_request("", error.message);
    case ErrorCode::kUnsupported:
      return invalid_request("", error.message, "unsupported");
    case ErrorCode::kCorrupt:
    case ErrorCode::kInternal:
      break;
  }
  return {
      .status = 500, .message = error.message, .type = "server_error", .code = "internal_error"};
}

ApiError api_error(int status, std::string message) {
  ApiError error{.status = status, .message = std::move(message)};
  if (status == 401) {
    error.code = "invalid_api_key";
  } else if (status == 404) {
    error.code = "not_found";
  } else if (status == 405) {
    error.code = "method_not_allowed";
  } else if (status == 413) {
    error.code = "request_too_large";
  } else if (status == 429) {
    error.type = "rate_limit_error";
    error.retry_after_s = 1;
  } else if (status == 503) {
    error.type = "service_unavailable_error";
    error.code = "unavailable";
    error.retry_after_s = 5;
  } else if (status >= 500) {
    error.type = "server_error";
  }
  return error;
}

std::string to_json(const ApiError& error) {
  const Json json = {{"error",
                      {{"message", error.message},
                       {"type", error.type},
                       {"param", text_or_null(error.param)},
                       {"code", text_or_null(error.code)}}}};
  // What a client sent may stand in the message, cut anywhere.
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

http::HttpResponse to_response(const ApiError& error) {
  http::HttpResponse response;
  response.status = error.status;
  response.body = to_json(error);
  if (error.retry_after_s > 0) {
    response.headers.emplace_back("Retry-After", fmt::format("{}", error.retry_after_s));
  }
  return response;
}

}  // namespace atl::coordinator
