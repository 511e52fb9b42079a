// What a server answers in place of what was asked for.
#pragma once

#include <string>

#include "http/http_client.h"

namespace atl::http {

// "status 401: wrong key", of an error in OpenAI's shape or of any other body, as one line.
std::string http_error_text(const HttpAnswer& answer);

}  // namespace atl::http
