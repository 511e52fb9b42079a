#include "http/request_parser.h"

#include <boost/beast/core/buffers_range.hpp>
#include <boost/beast/http/error.hpp>
#include <boost/beast/http/field.hpp>
#include <boost/beast/http/parser.hpp>

#include <algorithm>

#include "base/check.h"

namespace atl::http {
namespace {

namespace beast = boost::beast;
namespace beast_http = boost::beast::http;

// Beast's string_body reserves what Content-Length claims; this one grows with what has come.
struct GrowingBody {
  using value_type = std::string;

  class reader {
   public:
    template <bool kIsRequest, class Fields>
    reader(beast_http::header<kIsRequest, Fields>&, value_type& body) : body_(body) {}

    void init(const boost::optional<uint64_t>&, beast::error_code& error) { error = {}; }
    template <class Buffers>
    size_t put(const Buffers& buffers, beast::error_code& error) {
      error = {};
      size_t bytes = 0;
      for (const auto buffer : beast::buffers_range_ref(buffers)) {
        body_.append(static_cast<const char*>(buffer.data()), buffer.size());
        bytes += buffer.size();
      }
      return bytes;
    }
    void finish(beast::error_code& error) { error = {}; }

   private:
    value_type& body_;
  };
};

std::string_view view(beast::string_view text) { return {text.data(), text.size()}; }

bool equals_ignoring_case(std::string_view a, std::string_view b) {
  return beast::iequals({a.data(), a.size()}, {b.data(), b.size()});
}

int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

// "http://host/path" (what proxies are asked for, and servers must take, RFC 9112 3.2.2) ->
// "/path".
std::string_view origin_form(std::string_view target) {
  const size_t scheme = target.find("://");
  if (target.starts_with('/') || scheme == std::string_view::npos) return target;
  const size_t path = target.find('/', scheme + 3);
  return path == std::string_view::npos ? "/" : target.substr(path);
}

}  // namespace

std::optional<std::string> percent_decode(std::string_view text) {
  std::string decoded;
  decoded.reserve(text.size());
  for (size_t i = 0; i < text.size(); ++i) {
    char c = text[i];
    if (c == '%') {
      if (i + 2 >= text.size()) return std::nullopt;
      const int high = hex_digit(text[i + 1]), low = hex_digit(text[i + 2]);
      if (high < 0 || low < 0) return std::nullopt;
      c = static_cast<char>(high * 16 + low);
      i += 2;
    }
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) return std::nullopt;
    decoded.push_back(c);
  }
  return decoded;
}

struct RequestParser::Impl {
  explicit Impl(Limits limits_given) : limits(limits_given) {
    parser.header_limit(static_cast<uint32_t>(limits.header_bytes_max));
    parser.body_limit(limits.body_bytes_max);
  }

  void fail(int status, std::string message) {
    state = State::kFailed;
    refusal = {status, std::move(message)};
  }

  void fail(const beast::error_code& error) {
    copy_head();
    if (error == beast_http::error::header_limit) return fail_header_limit();
    if (error == beast_http::error::body_limit) {
      return fail(413, "the body is larger than " + std::to_string(limits.body_bytes_max) +
                           " bytes, the most that this server takes");
    }
    if (error == beast_http::error::bad_version)
      return fail(400, "not a request of HTTP/1.0 or HTTP/1.1");
    fail(400, "malformed HTTP request: " + error.message());
  }
  void fail_header_limit() {
    fail(431, "the header is larger than " + std::to_string(limits.header_bytes_max) +
                  " bytes, the most that this server takes");
  }

  size_t feed_header(std::string_view bytes) {
    if (header_bytes == 0 && bytes[0] == 0x16) {
      fail(400, "this looks like TLS, and the server speaks plain HTTP; use http://");
      return 0;
    }
    beast::error_code error;
    const size_t consumed = parser.put(boost::asio::buffer(bytes.data(), bytes.size()), error);
    header_bytes += consumed;
    if (error && error != beast_http::error::need_more) {
      fail(error);
    } else if (header_bytes > limits.header_bytes_max) {
      fail_header_limit();  // Beast bounds what is unconsumed, which starts anew with each field
    } else if (parser.is_header_done()) {
      finish_header();
    }
    return consumed;
  }

  void finish_header() {
    copy_head();
    has_header = true;
    state = parser.is_done() ? State::kDone : State::kBody;
    parser.eager(true);
    check_target();
    check_fields();
  }

  void copy_head() {
    const auto& head = parser.get();
    request.method = view(head.method_string());
    request.headers.clear();
    for (const auto& field : head) {
      request.headers.emplace_back(view(field.name_string()), view(field.value()));
    }
  }

  void check_target() {
    const std::string_view target = origin_form(view(parser.get().target()));
    const size_t question = target.find('?');
    const auto path = percent_decode(target.substr(0, question));
    if (!path || !path->starts_with('/')) return fail(400, "the request's path is malformed");
    request.path = *path;
    if (question != std::string_view::npos) request.query = target.substr(question + 1);
  }

  // What Beast leaves to the server. Two readings of where a body ends let one client's bytes pass
  // as another's request, so anything doubtful is refused (RFC 9112 6.3, 11.2).
  void check_fields() {
    int num_hosts = 0;
    for (const auto& [name, value] : request.headers) {
      if (equals_ignoring_case(name, "host")) ++num_hosts;
      if (equals_ignoring_case(name, "transfer-encoding")) {
        if (!equals_ignoring_case(value, "chunked")) {
          return fail(501, "the transfer encoding \"" + value.substr(0, 64) +
                               "\" is not supported; \"chunked\" is");
        }
        if (!is_http_1_1()) return fail(400, "HTTP/1.0 has no transfer encodings");
      }
      if (equals_ignoring_case(name, "expect") && is_http_1_1()) {
        if (!equals_ignoring_case(value, "100-continue")) {
          return fail(417, "the expectation \"" + value.substr(0, 64) + "\" is not supported");
        }
        expects_continue = true;
      }
    }
    if (num_hosts > 1 || (num_hosts == 0 && is_http_1_1())) {
      fail(400, "a request has exactly one Host header");
    }
  }

  bool is_http_1_1() const { return parser.get().version() == 11; }

  size_t feed_body(std::string_view bytes) {
    beast::error_code error;
    const size_t consumed = parser.put(boost::asio::buffer(bytes.data(), bytes.size()), error);
    if (error && error != beast_http::error::need_more) {
      fail(error);
    } else if (parser.is_done()) {
      state = State::kDone;
    } else if (consumed == 0 && bytes.size() > limits.header_bytes_max) {
      fail(400, "a chunk's header or the trailers are larger than " +
                    std::to_string(limits.header_bytes_max) + " bytes");
    }
    return consumed;
  }

  const Limits limits;
  beast_http::request_parser<GrowingBody> parser;
  State state = State::kHeader;
  Refusal refusal;
  HttpRequest request;
  size_t header_bytes = 0;
  bool has_header = false;
  bool expects_continue = false;
};

RequestParser::RequestParser(Limits limits) : impl_(std::make_unique<Impl>(limits)) {}
RequestParser::~RequestParser() = default;

size_t RequestParser::feed(std::string_view bytes) {
  if (bytes.empty() || state() == State::kDone || state() == State::kFailed) return 0;
  return state() == State::kHeader ? impl_->feed_header(bytes) : impl_->feed_body(bytes);
}

RequestParser::State RequestParser::state() const { return impl_->state; }
const RequestParser::Refusal& RequestParser::refusal() const { return impl_->refusal; }
bool RequestParser::has_header() const { return impl_->has_header; }
HttpRequest& RequestParser::request() { return impl_->request; }
bool RequestParser::keep_alive() const { return impl_->parser.keep_alive(); }
bool RequestParser::is_http_1_1() const { return impl_->is_http_1_1(); }
bool RequestParser::expects_continue() const { return impl_->expects_continue; }
std::optional<uint64_t> RequestParser::content_length() const {
  const auto length = impl_->parser.content_length();
  return length ? std::optional<uint64_t>(*length) : std::nullopt;
}
size_t RequestParser::body_bytes() const { return impl_->parser.get().body().size(); }
std::string RequestParser::take_body() { return std::move(impl_->parser.get().body()); }

}  // namespace atl::http
