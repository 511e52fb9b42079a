// One HTTP/1.x request out of the bytes of a connection.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "http/http_server.h"

namespace atl::http {

// Fed until it is done or has failed; then thrown away. Never throws but bad_alloc, whatever the
// bytes are. Grammar: RFC 9112 by Boost.Beast; on top of it what a server must refuse itself.
class RequestParser {
 public:
  struct Limits {
    size_t header_bytes_max = 0;  // start line and fields; also of a chunk's header and of trailers
    size_t body_bytes_max = 0;
  };
  enum class State { kHeader, kBody, kDone, kFailed };
  struct Refusal {
    int status = 400;
    std::string message;
  };

  explicit RequestParser(Limits limits);
  ~RequestParser();
  RequestParser(const RequestParser&) = delete;
  RequestParser& operator=(const RequestParser&) = delete;

  //   bytes   what has come and was not yet consumed, from its beginning
  // Returns how many of them were consumed; 0 asks for more. Stops behind the header (has_header()
  // turns true, state kBody, or kDone if there is no body) and behind the request.
  size_t feed(std::string_view bytes);

  State state() const;
  const Refusal& refusal() const;  // state kFailed

  // From here on: has_header().
  bool has_header() const;
  // Without body, id, remote and arrived. After a failure: the fields up to there.
  HttpRequest& request();
  bool keep_alive() const;  // the client wants it
  bool is_http_1_1() const;
  bool expects_continue() const;
  std::optional<uint64_t> content_length() const;  // nothing: chunked, or none
  size_t body_bytes() const;                       // come so far
  std::string take_body();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// "/a%20b" -> "/a b". Nothing for a bad escape and for control characters.
std::optional<std::string> percent_decode(std::string_view text);

}  // namespace atl::http
