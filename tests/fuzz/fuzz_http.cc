// The bytes of a connection, in pieces whose size the first byte says.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/check.h"
#include "http/request_parser.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using atl::http::RequestParser;
  if (size == 0) return 0;
  const size_t piece = std::max<size_t>(1, data[0]);
  const std::string_view bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
  RequestParser parser({.header_bytes_max = 4096, .body_bytes_max = 16384});
  size_t consumed = 0;
  for (size_t come = 0; come < bytes.size();) {
    come = std::min(bytes.size(), come + piece);
    while (parser.state() != RequestParser::State::kDone &&
           parser.state() != RequestParser::State::kFailed) {
      const size_t taken = parser.feed(bytes.substr(consumed, come - consumed));
      consumed += taken;
      CHECK_LE(consumed, come);
      if (taken == 0) break;
    }
    CHECK_LE(parser.body_bytes(), size_t{16384});
  }
  if (parser.state() == RequestParser::State::kFailed) {
    CHECK(parser.refusal().status >= 400 && parser.refusal().status < 600);
  }
  if (parser.has_header()) (void)atl::http::percent_decode(parser.request().path);
  return 0;
}
