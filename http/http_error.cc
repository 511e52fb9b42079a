#include "http/http_error.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "base/one_line.h"

namespace atl::http {

std::string http_error_text(const HttpAnswer& answer) {
  const nlohmann::json body = nlohmann::json::parse(answer.body, nullptr, false);
  std::string text = answer.body.substr(0, 200);
  if (body.is_object() && body.contains("error") && body["error"].is_object()) {
    const nlohmann::json& error = body["error"];
    if (error.contains("message") && error["message"].is_string()) text = error["message"];
  }
  return fmt::format("status {}: {}", answer.status, one_line(text));
}

}  // namespace atl::http
