// Broken requests by the thousand: each is answered or its connection closed, and the server goes
// on. ATOLL_FUZZ_REQUESTS sets how many (5,000), ATOLL_FUZZ_SEED which.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <vector>

#include "base/log.h"
#include "base/rng.h"
#include "http/http_server.h"
#include "tests/http/raw_http.h"

namespace atl::http {
namespace {

using std::chrono::milliseconds;
using test::get;
using test::RawClient;
using test::RunningServer;

uint64_t from_environment(const char* name, uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text ? std::strtoull(text, nullptr, 10) : otherwise;
}

// Draws of one request: they depend on the seed and its number only.
class Draw {
 public:
  Draw(uint64_t seed, uint64_t request) : seed_(seed), request_(request) {}
  size_t below(size_t n) {
    return static_cast<size_t>(uniform_f64(seed_, {request_, position_++}) *
                               static_cast<double>(n));
  }

 private:
  uint64_t seed_, request_, position_ = 0;
};

const std::vector<std::string> kValid = {
    test::get("/hello"),
    test::get("/hello?a=1&b=%20", "Accept: */*\r\nConnection: keep-alive\r\n"),
    "HEAD /hello HTTP/1.1\r\nHost: x\r\n\r\n",
    "GET /hello HTTP/1.0\r\n\r\n",
    "GET http://x:1/hello HTTP/1.1\r\nHost: x:1\r\nX-Request-Id: abc\r\n\r\n",
    test::post("/echo", "{\"model\":\"m\",\"prompt\":[1,2,3]}",
               "Content-Type: application/json\r\n"),
    test::post("/echo", std::string(3000, 'b')),
    "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    "4;a=b\r\nWiki\r\n5\r\npedia\r\n0\r\nX-T: 1\r\n\r\n",
    "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\nok",
    test::get("/stream"),
    test::get("/hello") + test::post("/echo", "pipelined") + test::get("/stream"),
};
// What parsers trip over.
const std::vector<std::string> kPieces = {"\r\n",
                                          "\r",
                                          "\n",
                                          "\r\n\r\n",
                                          ":",
                                          " ",
                                          "\t",
                                          ";",
                                          ",",
                                          "%",
                                          "%00",
                                          "%zz",
                                          "//",
                                          "?",
                                          "#",
                                          std::string(1, '\0'),
                                          "\xff\xfe",
                                          "\xc3",
                                          "HTTP/1.1",
                                          "HTTP/9.9",
                                          "HTTP/1.",
                                          "0",
                                          "-1",
                                          "99999999999999999999",
                                          "ffffffffffffffff",
                                          "Content-Length: 5\r\n",
                                          "Content-Length: 0\r\n",
                                          "Transfer-Encoding: chunked\r\n",
                                          "Transfer-Encoding: gzip\r\n",
                                          "Connection: close\r\n",
                                          "Expect: 100-continue\r\n",
                                          "Host: y\r\n",
                                          "Upgrade: h2c\r\n",
                                          " folded\r\n",
                                          std::string(5000, 'A'),
                                          "0\r\n\r\n",
                                          "ffffffff\r\n",
                                          "X: \"unended",
                                          "PRI * HTTP/2.0\r\n\r\n"};

void mutate_once(std::string& request, Draw& draw) {
  const size_t at = draw.below(request.size() + 1);
  switch (draw.below(7)) {
    case 0:
      if (at < request.size()) request[at] = static_cast<char>(request[at] ^ (1 << draw.below(8)));
      break;
    case 1:
      request.insert(at, 1, static_cast<char>(draw.below(256)));
      break;
    case 2:
      request.erase(at, 1 + draw.below(8));
      break;
    case 3:
      request.insert(at, kPieces[draw.below(kPieces.size())]);
      break;
    case 4:
      request.resize(at);
      break;
    case 5:
      request.insert(at, request.substr(draw.below(request.size() + 1), 1 + draw.below(64)));
      break;
    default: {
      const std::string& other = kValid[draw.below(kValid.size())];
      request = request.substr(0, at) + other.substr(draw.below(other.size()));
    }
  }
}

std::string mutated(Draw& draw) {
  std::string request = kValid[draw.below(kValid.size())];
  for (size_t left = 1 + draw.below(6); left > 0 && !request.empty(); --left) {
    mutate_once(request, draw);
  }
  return request;
}

void add_routes(HttpServer& server) {
  server.route("GET", "/hello", [](const auto& exchange) { exchange->respond({.body = "hello"}); });
  server.route("POST", "/echo",
               [](const auto& exchange) { exchange->respond({.body = exchange->request().body}); });
  server.route("GET", "/stream", [](const auto& exchange) {
    exchange->begin_events();
    exchange->send_event("one");
    exchange->send_event("[DONE]");
    exchange->end();
  });
}

// The server must end the connection: at once if the client has ended its side, or by a timeout.
testing::AssertionResult survives(uint16_t port, const std::string& request, Draw& draw) {
  RawClient client(port);
  if (!client.connected()) return testing::AssertionFailure() << "not accepted";
  const size_t split = draw.below(4) == 0 ? draw.below(request.size() + 1) : request.size();
  if (client.send(request.substr(0, split))) client.send(request.substr(split));
  const bool waits = draw.below(100) == 0;
  if (!waits) client.shut_sending();
  std::string answer;
  if (!client.read_to_end(&answer)) return testing::AssertionFailure() << "neither answer nor end";
  if (!answer.empty() && !answer.starts_with("HTTP/1.1 ")) {
    return testing::AssertionFailure() << "answered with " << answer.substr(0, 100);
  }
  return testing::AssertionSuccess();
}

TEST(HttpFuzz, every_mutated_request_is_answered_or_closed_and_the_server_goes_on) {
  const uint64_t num_requests = from_environment("ATOLL_FUZZ_REQUESTS", 5000);
  const uint64_t seed = from_environment("ATOLL_FUZZ_SEED", 1);
  std::printf("%llu requests of seed %llu\n", static_cast<unsigned long long>(num_requests),
              static_cast<unsigned long long>(seed));
  HttpOptions options;
  options.header_bytes_max = 4096;
  options.body_bytes_max = 8192;
  options.header_timeout = options.body_timeout = options.idle_timeout = milliseconds(20);
  RunningServer running(options);
  add_routes(running.server());
  running.start();
  for (uint64_t i = 0; i < num_requests; ++i) {
    Draw draw(seed, i);
    const std::string request = mutated(draw);
    ASSERT_TRUE(survives(running.port(), request, draw)) << "request " << i << ":\n" << request;
    if (i % 100 == 0) {
      ASSERT_EQ(RawClient(running.port()).ask(get("/hello")).body, "hello") << "after " << i;
    }
  }
  EXPECT_EQ(RawClient(running.port()).ask(get("/hello")).body, "hello");
  EXPECT_EQ(running.server().stats().in_flight, 0);
}

}  // namespace
}  // namespace atl::http
