#include "cli/http_error.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "cli/output.h"

namespace atl::cli {

std::string http_error_text(const http::HttpAnswer& answer) {
  const nlohmann::json body = nlohmann::json::parse(answer.body, nullptr, false);
  std::string text = answer.body.substr(0, 200);
  if (body.is_object() && body.contains("error") && body["error"].is_object()) {
    const nlohmann::json& error = body["error"];
    if (error.contains("message") && error["message"].is_string()) text = error["message"];
  }
  return fmt::format("status {}: {}", answer.status, one_line(text));
}

}  // namespace atl::cli
