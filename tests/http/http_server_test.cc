// The server over real loopback sockets.

#include "http/http_server.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <atomic>
#include <condition_variable>
#include <future>
#include <mutex>
#include <thread>

#include "base/result.h"
#include "tests/http/raw_http.h"

namespace atl::http {
namespace {

using std::chrono::milliseconds;
using test::get;
using test::post;
using test::RawClient;
using test::RawResponse;
using test::RunningServer;
using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

// Exchanges that handlers of a test keep, for the test's thread to wait for.
class Kept {
 public:
  void add(std::shared_ptr<HttpExchange> exchange) {
    const std::lock_guard lock(mutex_);
    exchanges_.push_back(std::move(exchange));
    changed_.notify_all();
  }
  std::shared_ptr<HttpExchange> at(size_t index) {
    std::unique_lock lock(mutex_);
    const bool there =
        changed_.wait_for(lock, RawClient::kPatience, [&] { return exchanges_.size() > index; });
    return there ? exchanges_[index] : nullptr;
  }
  void clear() {
    const std::lock_guard lock(mutex_);
    exchanges_.clear();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::shared_ptr<HttpExchange>> exchanges_;
};

// Paths: /hello, /echo (POST), /later (answered by the test), /stream (begun, fed by the test),
// /gone (kept; its on_gone sets a promise), /throw, /drop (the exchange is dropped).
class HttpServerTest : public testing::Test {
 protected:
  void start(HttpOptions options = {}) {
    http_.emplace(std::move(options));
    HttpServer& server = http_->server();
    server.route("GET", "/hello", [](const auto& exchange) {
      exchange->respond({.content_type = "text/plain", .body = "hello"});
    });
    server.route("POST", "/echo", [](const auto& exchange) {
      exchange->respond({.content_type = "text/plain", .body = exchange->request().body});
    });
    server.route("GET", "/later", [this](const auto& exchange) { kept_.add(exchange); });
    server.route("GET", "/stream", [this](const auto& exchange) {
      exchange->begin_events();
      kept_.add(exchange);
    });
    server.route("GET", "/gone", [this](const auto& exchange) {
      exchange->on_gone([this] { gone_.set_value(); });
      kept_.add(exchange);
    });
    server.route("GET", "/throw", [](const auto&) { throw std::runtime_error("broken"); });
    server.route("GET", "/drop", [](const auto&) {});
    server.route("GET", "/where", [](const auto& exchange) {
      exchange->respond({.body = exchange->request().path + "|" + exchange->request().query});
    });
    http_->start();
  }
  uint16_t port() const { return http_->port(); }
  HttpServer& server() { return http_->server(); }
  // Runs it on the server's thread and waits.
  void on_server(const std::function<void()>& task) {
    std::promise<void> done;
    server().post([&] {
      task();
      done.set_value();
    });
    done.get_future().wait();
  }
  void expect_serving() { EXPECT_EQ(RawClient(port()).ask(get("/hello")).body, "hello"); }
  bool gone() {
    return gone_.get_future().wait_for(RawClient::kPatience) == std::future_status::ready;
  }
  template <typename Predicate>
  bool eventually(Predicate predicate) {
    const auto until = std::chrono::steady_clock::now() + RawClient::kPatience;
    while (!predicate() && std::chrono::steady_clock::now() < until) std::this_thread::yield();
    return predicate();
  }

  Kept kept_;
  std::promise<void> gone_;
  std::optional<RunningServer> http_;
};

// ---- plain requests

TEST_F(HttpServerTest, answers_with_length_type_date_and_request_id) {
  start();
  RawClient client(port());
  const RawResponse response = client.ask(get("/hello"));
  EXPECT_EQ(response.status, 200);
  EXPECT_EQ(response.body, "hello");
  EXPECT_EQ(response.headers.at("content-length"), "5");
  EXPECT_EQ(response.headers.at("content-type"), "text/plain");
  EXPECT_THAT(response.headers.at("date"), HasSubstr("GMT"));
  EXPECT_THAT(response.headers.at("x-request-id"), StartsWith("req-"));
}

TEST_F(HttpServerTest, keeps_the_connection_and_gives_each_request_its_own_id) {
  start();
  RawClient client(port());
  const std::string first = client.ask(get("/hello")).headers.at("x-request-id");
  EXPECT_NE(client.ask(get("/hello")).headers.at("x-request-id"), first);
  EXPECT_EQ(server().stats().accepted, 1u);
  EXPECT_EQ(server().stats().requests, 2u);
}

TEST_F(HttpServerTest, echoes_a_sane_request_id_only) {
  start();
  RawClient client(port());
  const auto answered_id = [&](const std::string& id) {
    return client.ask(get("/hello", "X-Request-Id: " + id + "\r\n")).headers.at("x-request-id");
  };
  EXPECT_EQ(answered_id("my-id_42:x"), "my-id_42:x");
  EXPECT_EQ(answered_id(std::string(128, 'a')), std::string(128, 'a'));
  EXPECT_THAT(answered_id(std::string(129, 'a')), StartsWith("req-"));
  EXPECT_THAT(answered_id("two words"), StartsWith("req-"));
  EXPECT_THAT(answered_id("\xc3\xa4"), StartsWith("req-"));
}

TEST_F(HttpServerTest, answers_requests_that_come_byte_by_byte) {
  start();
  RawClient client(port());
  for (const std::string& request : {post("/echo", "some body", "X-A: 1\r\n"), get("/hello")}) {
    for (const char byte : request) {
      ASSERT_TRUE(client.send({&byte, 1}));
      on_server([] {});  // it has had a turn, so bytes are read one at a time
    }
    EXPECT_EQ(client.read_response().status, 200);
  }
}

TEST_F(HttpServerTest, answers_pipelined_requests_in_order) {
  start();
  RawClient client(port());
  std::string requests;
  for (int i = 0; i < 50; ++i) requests += post("/echo", std::to_string(i)) + "\r\n";
  ASSERT_TRUE(client.send(requests));
  for (int i = 0; i < 50; ++i) EXPECT_EQ(client.read_response().body, std::to_string(i));
}

TEST_F(HttpServerTest, begins_a_pipelined_request_only_after_the_answer_before_it) {
  start();
  RawClient client(port());
  ASSERT_TRUE(client.send(get("/later") + get("/hello")));
  const auto exchange = kept_.at(0);
  ASSERT_TRUE(exchange);
  EXPECT_EQ(server().stats().requests, 1u);
  on_server([&] { exchange->respond({.body = "first"}); });
  EXPECT_EQ(client.read_response().body, "first");
  EXPECT_EQ(client.read_response().body, "hello");
}

TEST_F(HttpServerTest, a_client_that_pipelines_and_never_reads_is_not_served_without_bound) {
  start({.write_timeout = milliseconds(300)});
  RawClient client(port(), 4096);
  const std::string body(64 << 10, 'x');
  for (int i = 0; i < 2000 && client.send(post("/echo", body)); ++i) {
    if (server().stats().dropped_slow > 0) break;
  }
  EXPECT_TRUE(eventually([&] { return server().stats().dropped_slow == 1; }));
  EXPECT_LT(server().stats().requests, 1000u);
  expect_serving();
}

TEST_F(HttpServerTest, HEAD_gets_the_header_of_GET) {
  start();
  RawClient client(port());
  ASSERT_TRUE(client.send("HEAD /hello HTTP/1.1\r\nHost: x\r\n\r\n" + get("/hello")));
  const RawResponse head = client.read_response(true);
  EXPECT_EQ(head.status, 200);
  EXPECT_EQ(head.headers.at("content-length"), "5");
  EXPECT_EQ(client.read_response().body, "hello");
}

TEST_F(HttpServerTest, paths_are_decoded_and_queries_left_as_they_are) {
  start();
  RawClient client(port());
  EXPECT_EQ(client.ask(get("/%77here?a=%20&b")).body, "/where|a=%20&b");
  EXPECT_EQ(client.ask(get("http://some.host:80/where?c")).body, "/where|c");
  EXPECT_EQ(client.ask(get("/where%00")).status, 400);
  EXPECT_EQ(RawClient(port()).ask(get("/where%zz")).status, 400);
  EXPECT_EQ(RawClient(port()).ask(get("where")).status, 400);
}

TEST_F(HttpServerTest, unknown_path_is_404_and_wrong_method_405_and_both_keep_the_connection) {
  start();
  RawClient client(port());
  EXPECT_EQ(client.ask(get("/nothing")).status, 404);
  EXPECT_EQ(client.ask(post("/nothing", "a body that must be skipped")).status, 404);
  const RawResponse wrong = client.ask(post("/hello", "x"));
  EXPECT_EQ(wrong.status, 405);
  EXPECT_EQ(wrong.headers.at("allow"), "GET, HEAD");
  EXPECT_EQ(client.ask(get("/echo")).headers.at("allow"), "POST");
  EXPECT_EQ(client.ask("BREW /echo HTTP/1.1\r\nHost: x\r\n\r\n").status, 405);
  EXPECT_EQ(client.ask(get("/hello")).body, "hello");
}

TEST_F(HttpServerTest, HTTP_1_0_clients_get_an_answer_and_the_end_of_the_connection) {
  start();
  RawClient client(port());
  const RawResponse response = client.ask("GET /hello HTTP/1.0\r\n\r\n");
  EXPECT_EQ(response.body, "hello");
  EXPECT_EQ(response.headers.at("connection"), "close");
  EXPECT_TRUE(client.read_to_end());

  RawClient keeping(port());
  for (int i = 0; i < 2; ++i) {
    const RawResponse kept = keeping.ask("GET /hello HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    EXPECT_EQ(kept.headers.at("connection"), "keep-alive");
  }
}

TEST_F(HttpServerTest, Connection_close_is_honoured) {
  start();
  RawClient client(port());
  const RawResponse response = client.ask(get("/hello", "Connection: close\r\n"));
  EXPECT_EQ(response.headers.at("connection"), "close");
  EXPECT_TRUE(client.read_to_end());
}

TEST_F(HttpServerTest, a_handler_that_throws_gives_500_and_the_server_goes_on) {
  start();
  RawClient client(port());
  EXPECT_EQ(client.ask(get("/throw")).status, 500);
  EXPECT_EQ(client.ask(get("/hello")).status, 200);
}

TEST_F(HttpServerTest, a_request_that_its_handler_drops_gets_500) {
  start();
  EXPECT_EQ(RawClient(port()).ask(get("/drop")).status, 500);
  // Also if its last holder is another thread.
  RawClient client(port());
  ASSERT_TRUE(client.send(get("/later")));
  ASSERT_TRUE(kept_.at(0));
  kept_.clear();
  EXPECT_EQ(client.read_response().status, 500);
}

TEST_F(HttpServerTest, an_end_of_line_in_an_answers_field_does_not_begin_another_field) {
  start();
  RawClient client(port());
  ASSERT_TRUE(client.send(get("/later")));
  const auto exchange = kept_.at(0);
  on_server([&] { exchange->respond({.headers = {{"X-Said", "a\r\nX-Evil: 1"}}}); });
  const RawResponse response = client.read_response();
  EXPECT_FALSE(response.headers.contains("x-evil"));
  EXPECT_EQ(response.headers.at("x-said"), "a  X-Evil: 1");
}

// ---- bodies

TEST_F(HttpServerTest, reads_chunked_bodies_with_extensions_and_trailers) {
  start();
  RawClient client(port());
  EXPECT_EQ(
      client
          .ask("POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
               "4;a=b\r\nWiki\r\n6\r\npedia \r\nE\r\nin \r\n\r\nchunks.\r\n0\r\nX-T: 1\r\n\r\n")
          .body,
      "Wikipedia in \r\n\r\nchunks.");
  EXPECT_EQ(client.ask(get("/hello")).body, "hello");
}

TEST_F(HttpServerTest, a_body_of_megabytes_comes_back_whole) {
  start();
  std::string body(5 << 20, 0);
  for (size_t i = 0; i < body.size(); ++i) body[i] = static_cast<char>(i * 31 % 251);
  RawClient client(port());
  std::thread sender([&] { EXPECT_TRUE(client.send(post("/echo", body))); });
  const RawResponse response = client.read_response();
  sender.join();
  EXPECT_EQ(response.body, body);
}

TEST_F(HttpServerTest, Expect_100_continue_is_answered_before_the_body) {
  start();
  RawClient client(port());
  ASSERT_TRUE(client.send(
      "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"));
  EXPECT_EQ(client.read_response().status, 100);
  EXPECT_EQ(client.ask("ok").body, "ok");
}

TEST_F(HttpServerTest, Expect_100_continue_of_a_refused_request_gets_the_refusal_at_once) {
  start({.body_bytes_max = 1000});
  RawClient client(port());
  EXPECT_EQ(client
                .ask("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1001\r\n"
                     "Expect: 100-continue\r\n\r\n")
                .status,
            413);
  EXPECT_TRUE(client.read_to_end());
}

// ---- limits

TEST_F(HttpServerTest, header_up_to_the_limit_is_taken_and_one_byte_more_is_431) {
  start({.header_bytes_max = 2000});
  const auto request_of = [](size_t bytes) {
    const std::string empty = get("/hello", "X-Long: \r\n");
    return get("/hello", "X-Long: " + std::string(bytes - empty.size(), 'y') + "\r\n");
  };
  ASSERT_EQ(request_of(2000).size(), 2000u);
  EXPECT_EQ(RawClient(port()).ask(request_of(2000)).status, 200);
  EXPECT_EQ(RawClient(port()).ask(request_of(2001)).status, 431);
  EXPECT_EQ(RawClient(port()).ask(request_of(50'000)).status, 431);
  EXPECT_EQ(RawClient(port()).ask("GET /" + std::string(50'000, 'a')).status, 431);
}

TEST_F(HttpServerTest, many_short_fields_count_together) {
  start({.header_bytes_max = 2000});
  RawClient client(port());
  ASSERT_TRUE(client.send("GET /hello HTTP/1.1\r\nHost: x\r\n"));
  for (int i = 0; i < 400; ++i) {
    client.send("X-A: 1\r\n");
    on_server([] {});
  }
  EXPECT_EQ(client.read_response().status, 431);
}

TEST_F(HttpServerTest, body_up_to_the_limit_is_taken_and_one_byte_more_is_413) {
  start({.body_bytes_max = 1000});
  EXPECT_EQ(RawClient(port()).ask(post("/echo", std::string(1000, 'z'))).status, 200);
  EXPECT_EQ(RawClient(port()).ask(post("/echo", std::string(1001, 'z'))).status, 413);
  const std::string chunked =
      "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
  const std::string chunk = "1F4\r\n" + std::string(500, 'z') + "\r\n";
  EXPECT_EQ(RawClient(port()).ask(chunked + chunk + chunk + "0\r\n\r\n").status, 200);
  EXPECT_EQ(RawClient(port()).ask(chunked + chunk + chunk + "1\r\nz\r\n0\r\n\r\n").status, 413);
}

TEST_F(HttpServerTest, a_client_that_sends_a_large_refused_body_still_gets_the_answer) {
  start({.body_bytes_max = 1000});
  RawClient client(port());
  const std::string body(8 << 20, 'z');
  EXPECT_TRUE(client.send(post("/echo", body)));
  EXPECT_EQ(client.read_response().status, 413);
}

TEST_F(HttpServerTest, trailers_and_chunk_headers_are_bounded) {
  start({.header_bytes_max = 2000});
  const std::string head = "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
  RawClient trailers(port());
  trailers.send(head + "0\r\n" + "X-T: " + std::string(10'000, 't'));
  EXPECT_EQ(trailers.read_response().status, 400);
  RawClient extension(port());
  extension.send(head + "5;" + std::string(10'000, 'e'));
  EXPECT_EQ(extension.read_response().status, 400);
}

TEST_F(HttpServerTest, bodies_of_all_requests_together_are_bounded_and_given_back) {
  start({.body_bytes_max = 1000, .bodies_bytes_max = 1500});
  RawClient half(port());  // its body is being read
  ASSERT_TRUE(half.send("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n" +
                        std::string(999, 'a')));
  const std::string other = post("/echo", std::string(600, 'b'));
  EXPECT_TRUE(eventually([&] { return RawClient(port()).ask(other).status == 503; }));
  EXPECT_EQ(half.ask("a").status, 200);
  EXPECT_TRUE(eventually([&] { return RawClient(port()).ask(other).status == 200; }));
}

TEST_F(HttpServerTest, more_connections_than_allowed_get_503_until_one_closes) {
  start({.connections_max = 2});
  RawClient a(port()), b(port());
  EXPECT_EQ(a.ask(get("/hello")).status, 200);
  EXPECT_EQ(b.ask(get("/hello")).status, 200);
  RawClient c(port());
  EXPECT_EQ(c.read_response().status, 503);
  EXPECT_TRUE(c.read_to_end());
  c.close();
  a.close();
  EXPECT_TRUE(eventually([&] { return RawClient(port()).ask(get("/hello")).status == 200; }));
}

TEST_F(HttpServerTest, a_header_that_does_not_come_is_408) {
  start({.header_timeout = milliseconds(50)});
  RawClient client(port());
  ASSERT_TRUE(client.send("GET /hello HTTP/1.1\r\nHo"));
  EXPECT_EQ(client.read_response().status, 408);
  EXPECT_TRUE(client.read_to_end());
}

TEST_F(HttpServerTest, a_body_that_does_not_come_is_408) {
  start({.body_timeout = milliseconds(50)});
  RawClient client(port());
  ASSERT_TRUE(client.send("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc"));
  EXPECT_EQ(client.read_response().status, 408);
  EXPECT_TRUE(client.read_to_end());
}

TEST_F(HttpServerTest, an_idle_connection_is_closed_without_a_word) {
  start({.idle_timeout = milliseconds(50)});
  RawClient silent(port()), used(port());
  EXPECT_EQ(used.ask(get("/hello")).status, 200);
  std::string rest;
  EXPECT_TRUE(silent.read_to_end(&rest));
  EXPECT_TRUE(used.read_to_end(&rest));
  EXPECT_EQ(rest, "");
}

TEST_F(HttpServerTest, an_answer_may_take_longer_than_the_timeouts_of_reading) {
  start({.header_timeout = milliseconds(30),
         .body_timeout = milliseconds(30),
         .idle_timeout = milliseconds(30)});
  RawClient client(port());
  ASSERT_TRUE(client.send(get("/later")));
  const auto exchange = kept_.at(0);
  RawClient idle(port());
  EXPECT_TRUE(idle.read_to_end());  // 30 ms are over now
  on_server([&] { exchange->respond({.body = "late"}); });
  EXPECT_EQ(client.read_response().body, "late");
}

TEST_F(HttpServerTest, running_out_of_descriptors_delays_new_clients_and_loses_nobody) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "this build's checks of object types open pipes themselves";
#endif
  start();
  RawClient before(port());
  EXPECT_EQ(before.ask(get("/hello")).status, 200);
  rlimit saved{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &saved), 0);
  RawClient waiting(port());
  EXPECT_EQ(waiting.ask(get("/hello")).status, 200);
  // All descriptors from here on are refused, to the server as well: the client's own is made
  // first.
  std::vector<std::unique_ptr<RawClient>> clients;
  const int probe = dup(0);
  ASSERT_GE(probe, 0);
  close(probe);
  rlimit low = saved;
  low.rlim_cur = static_cast<rlim_t>(probe + 1);
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &low), 0);
  RawClient late(port());  // takes the last one
  ASSERT_TRUE(late.connected());
  ASSERT_TRUE(late.send(get("/hello")));
  EXPECT_EQ(before.ask(get("/hello")).status, 200);
  EXPECT_EQ(server().stats().accepted, 2u);
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &saved), 0);
  EXPECT_EQ(late.read_response().status, 200);
}

// ---- what is not HTTP

TEST_F(HttpServerTest, malformed_requests_are_400_and_end_the_connection) {
  start();
  const std::vector<std::string> requests = {
      "nonsense\r\n\r\n",
      "GET /hello\r\n\r\n",
      "GET /hello HTTP/1.1\nHost: x\n\n",
      "GET /hello HTTP/2.0\r\nHost: x\r\n\r\n",
      "GET /hello HTTP/1.1\r\n\r\n",
      "GET /hello HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
      "GET /hello HTTP/1.1\r\nHost : x\r\n\r\n",
      "GET /hello HTTP/1.1\r\nHost: x\r\nBad\x01Name: 1\r\n\r\n",
      "GET /hello HTTP/1.1\r\nHost: x\r\nX: a\x01z\r\n\r\n",
      std::string("GET /hello HTTP/1.1\r\nHost: x\r\nX: a\0z\r\n\r\n", 41),
      " GET /hello HTTP/1.1\r\nHost: x\r\n\r\n",
      "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
      "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1x\r\n\r\n",
      "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999999\r\n\r\n",
      "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
      "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
      "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n",
      "POST /echo HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
      "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
      "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcdefgh\r\n",
      std::string("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 11),
  };
  for (const std::string& request : requests) {
    RawClient client(port());
    EXPECT_EQ(client.ask(request).status, 400) << request;
    EXPECT_TRUE(client.read_to_end()) << request;
  }
  expect_serving();
}

TEST_F(HttpServerTest, what_is_not_supported_is_501_and_417) {
  start();
  const std::string head = "POST /echo HTTP/1.1\r\nHost: x\r\n";
  EXPECT_EQ(RawClient(port()).ask(head + "Transfer-Encoding: gzip\r\n\r\n").status, 501);
  EXPECT_EQ(RawClient(port()).ask(head + "Transfer-Encoding: gzip, chunked\r\n\r\n").status, 501);
  EXPECT_EQ(RawClient(port()).ask(head + "Transfer-Encoding: xchunked\r\n\r\n").status, 501);
  EXPECT_EQ(RawClient(port()).ask(head + "Expect: a-miracle\r\n\r\n").status, 417);
}

TEST_F(HttpServerTest, errors_of_the_server_have_the_callers_shape) {
  start({.body_bytes_max = 10, .error_response = [](int status, const std::string& message) {
           return HttpResponse{.body = "{" + std::to_string(status) + " " + message + "}"};
         }});
  EXPECT_THAT(RawClient(port()).ask(get("/nothing")).body, StartsWith("{404 "));
  EXPECT_THAT(RawClient(port()).ask(post("/hello", "")).body, StartsWith("{405 "));
  EXPECT_THAT(RawClient(port()).ask(post("/echo", "more than ten")).body, HasSubstr("10 bytes"));
  EXPECT_THAT(RawClient(port()).ask("x\r\n\r\n").body, StartsWith("{400 "));
  EXPECT_THAT(RawClient(port()).ask(get("/throw")).body, StartsWith("{500 "));
}

TEST_F(HttpServerTest, a_maker_of_errors_that_throws_is_replaced) {
  start({.error_response = [](int, const std::string&) -> HttpResponse { throw 1; }});
  EXPECT_EQ(RawClient(port()).ask(get("/nothing")).status, 404);
}

TEST_F(HttpServerTest, admit_refuses_before_the_body_is_there) {
  start({.admit = [](const HttpRequest& request) -> std::optional<HttpResponse> {
    if (request.header("AUTHORIZATION") == "yes") return std::nullopt;
    return HttpResponse{.status = 401, .body = "no"};
  }});
  RawClient client(port());
  // 20 of 100 bytes: the answer doesn't wait for them, and the connection lives on.
  ASSERT_TRUE(client.send("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n" +
                          std::string(20, 'x')));
  EXPECT_EQ(client.read_response().status, 401);
  ASSERT_TRUE(client.send(std::string(80, 'x') + get("/hello", "Authorization: yes\r\n")));
  EXPECT_EQ(client.read_response().body, "hello");
  // A large one isn't read just to keep the connection.
  ASSERT_TRUE(client.send("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"));
  EXPECT_EQ(client.read_response().status, 401);
  EXPECT_TRUE(client.read_to_end());
}

TEST_F(HttpServerTest, an_admit_that_throws_refuses) {
  start({.admit = [](const HttpRequest&) -> std::optional<HttpResponse> {
    throw std::runtime_error("broken");
  }});
  EXPECT_EQ(RawClient(port()).ask(get("/hello")).status, 500);
}

// ---- streams

TEST_F(HttpServerTest, events_come_as_chunks_and_the_connection_lives_on) {
  start();
  RawClient client(port());
  ASSERT_TRUE(client.send(get("/stream")));
  const auto exchange = kept_.at(0);
  on_server([&] { EXPECT_TRUE(exchange->send_event("{\"a\":1}")); });
  const std::string begin = client.read_until("\n\n\r\n");
  EXPECT_THAT(begin, HasSubstr("Content-Type: text/event-stream"));
  EXPECT_THAT(begin, HasSubstr("Cache-Control: no-cache"));
  EXPECT_THAT(begin, HasSubstr("\r\n\r\nf\r\ndata: {\"a\":1}\n\n\r\n"));
  on_server([&] {
    exchange->send_event("second");
    exchange->send_event("[DONE]");
    exchange->end();
    EXPECT_FALSE(exchange->send_event("too late"));
  });
  EXPECT_EQ(client.read_until("0\r\n\r\n"),
            "e\r\ndata: second\n\n\r\ne\r\ndata: [DONE]\n\n\r\n0\r\n\r\n");
  EXPECT_EQ(client.ask(get("/hello")).body, "hello");
  EXPECT_EQ(server().stats().in_flight, 0);
}

TEST_F(HttpServerTest, HTTP_1_0_streams_are_not_chunked_and_end_with_the_connection) {
  start();
  RawClient client(port());
  ASSERT_TRUE(client.send("GET /stream HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"));
  const auto exchange = kept_.at(0);
  on_server([&] {
    exchange->send_event("x");
    exchange->end();
  });
  const RawResponse response = client.read_response();
  EXPECT_EQ(response.status, 200);  // and the end of the connection
  EXPECT_EQ(response.body, "data: x\n\n");
  EXPECT_FALSE(response.headers.contains("transfer-encoding"));
}

TEST_F(HttpServerTest, a_silent_stream_gets_comments) {
  start({.keep_alive = milliseconds(20)});
  RawClient client(port());
  ASSERT_TRUE(client.send(get("/stream")));
  client.read_until("\r\n\r\n");
  for (int i = 0; i < 3; ++i) EXPECT_EQ(client.read_until("\n\n\r\n"), "e\r\n: keep-alive\n\n\r\n");
}

TEST_F(HttpServerTest, a_client_that_closes_is_gone_while_its_answer_is_made) {
  HttpOptions options;
  options.half_closed_probe = milliseconds(20);
  start(options);
  {
    RawClient client(port());
    ASSERT_TRUE(client.send(get("/gone")));
    ASSERT_TRUE(kept_.at(0));
    EXPECT_EQ(server().stats().in_flight, 1);
  }
  EXPECT_TRUE(gone());
  EXPECT_EQ(server().stats().in_flight, 0);
  on_server([&] { kept_.at(0)->respond({}); });  // does nothing
  expect_serving();
}

TEST_F(HttpServerTest, a_client_that_resets_is_gone_while_its_stream_runs) {
  start();
  RawClient client(port());
  ASSERT_TRUE(client.send(get("/gone")));
  const auto exchange = kept_.at(0);
  on_server([&] { exchange->begin_events(); });
  client.read_until("\r\n\r\n");
  client.reset();
  EXPECT_TRUE(gone());
  on_server([&] { EXPECT_FALSE(exchange->send_event("x")); });
}

TEST_F(HttpServerTest, a_client_that_closes_is_gone_while_its_silent_stream_runs) {
  HttpOptions options;
  options.half_closed_probe = milliseconds(20);
  start(options);
  {
    RawClient client(port());
    ASSERT_TRUE(client.send(get("/gone")));
    ASSERT_TRUE(kept_.at(0));
    on_server([&] { kept_.at(0)->begin_events(); });
    client.read_until("\r\n\r\n");
  }
  EXPECT_TRUE(gone());
}

TEST_F(HttpServerTest, a_client_that_ends_its_side_while_it_waits_is_answered) {
  for (const auto probe : {milliseconds(60'000), milliseconds(5)}) {
    HttpOptions options;
    options.half_closed_probe = probe;
    start(options);
    kept_.clear();
    RawClient client(port());
    ASSERT_TRUE(client.send(post("/echo", "body") + get("/later")));
    ASSERT_TRUE(kept_.at(0));
    client.shut_sending();
    EXPECT_EQ(client.read_response().body, "body");
    std::this_thread::sleep_for(milliseconds(30));
    EXPECT_EQ(server().stats().in_flight, 1);
    on_server([&] { kept_.at(0)->respond({.body = "late"}); });
    RawResponse response = client.read_response();
    while (response.status == 100) response = client.read_response();
    EXPECT_EQ(response.body, "late");
    EXPECT_EQ(response.headers.at("connection"), "close");
    EXPECT_TRUE(client.read_to_end());
  }
}

TEST_F(HttpServerTest, a_stream_goes_on_for_a_client_that_ended_its_side) {
  start();
  RawClient client(port());
  ASSERT_TRUE(client.send(get("/stream")));
  const auto stream = kept_.at(0);
  client.shut_sending();
  for (int i = 0; i < 3; ++i) {
    on_server([&] { EXPECT_TRUE(stream->send_event("x")); });
    EXPECT_THAT(client.read_until("data: x\n\n"), HasSubstr("data: x"));
  }
  on_server([&] { stream->end(); });
  EXPECT_THAT(client.read_until("0\r\n\r\n"), HasSubstr("0\r\n\r\n"));
  EXPECT_TRUE(client.read_to_end());
}

TEST_F(HttpServerTest, on_gone_that_comes_after_the_client_has_gone_is_called_too) {
  HttpOptions options;
  options.half_closed_probe = milliseconds(20);
  start(options);
  {
    RawClient client(port());
    ASSERT_TRUE(client.send(get("/later")));
    ASSERT_TRUE(kept_.at(0));
  }
  ASSERT_TRUE(eventually([&] { return server().stats().connections == 0; }));
  on_server([&] { kept_.at(0)->on_gone([this] { gone_.set_value(); }); });
  EXPECT_TRUE(gone());
}

TEST_F(HttpServerTest, on_gone_is_not_called_for_an_answer_that_ended) {
  start();
  std::atomic<int> calls = 0;
  {
    RawClient client(port());
    ASSERT_TRUE(client.send(get("/later")));
    const auto exchange = kept_.at(0);
    on_server([&] {
      exchange->on_gone([&] { ++calls; });
      exchange->respond({.body = "all"});
      exchange->on_gone([&] { ++calls; });
    });
    EXPECT_EQ(client.read_response().body, "all");
  }
  ASSERT_TRUE(eventually([&] { return server().stats().connections == 0; }));
  on_server([] {});
  EXPECT_EQ(calls, 0);
}

TEST_F(HttpServerTest, a_client_that_ends_its_side_still_gets_what_was_answered) {
  start();
  RawClient client(port());
  ASSERT_TRUE(client.send(get("/hello") + get("/where")));
  client.shut_sending();
  EXPECT_EQ(client.read_response().body, "hello");
  EXPECT_EQ(client.read_response().body, "/where|");
  EXPECT_TRUE(client.read_to_end());
}

TEST_F(HttpServerTest, a_slow_reader_is_dropped_and_the_others_are_not) {
  start({.unsent_bytes_max = 100'000});
  RawClient slow(port(), 4096), fast(port());
  ASSERT_TRUE(slow.send(get("/gone")));
  const auto slow_stream = kept_.at(0);
  ASSERT_TRUE(fast.send(get("/stream")));
  const auto fast_stream = kept_.at(1);
  on_server([&] { slow_stream->begin_events(); });
  const std::string event(10'000, 'e');
  bool alive = true;
  size_t sent = 0;
  for (int i = 0; i < 5000 && alive; ++i) {
    on_server([&] {
      alive = slow_stream->send_event(event);
      EXPECT_TRUE(fast_stream->send_event("tick"));
    });
    EXPECT_THAT(fast.read_until("tick\n\n"), Not(testing::IsEmpty()));
    ++sent;
  }
  EXPECT_FALSE(alive);
  EXPECT_TRUE(gone());
  EXPECT_EQ(server().stats().dropped_slow, 1u);
  // What the kernel took and what the limit allows, not what was produced: about 4 MB at most.
  EXPECT_LT(sent * event.size(), 20u << 20);
}

TEST_F(HttpServerTest, a_reader_that_takes_nothing_is_dropped_after_the_write_timeout) {
  start({.write_timeout = milliseconds(100)});
  RawClient client(port(), 4096);
  ASSERT_TRUE(client.send(get("/gone")));
  const auto exchange = kept_.at(0);
  on_server([&] { exchange->respond({.body = std::string(32 << 20, 'b')}); });
  EXPECT_TRUE(eventually([&] { return server().stats().connections == 0; }));
  EXPECT_EQ(server().stats().dropped_slow, 1u);
}

TEST_F(HttpServerTest, a_handler_that_throws_in_a_stream_ends_the_connection) {
  start();
  http_.reset();
  RunningServer other;
  other.server().route("GET", "/", [](const auto& exchange) {
    exchange->begin_events();
    throw std::runtime_error("broken");
  });
  other.start();
  RawClient client(other.port());
  ASSERT_TRUE(client.send(get("/")));
  std::string rest;
  EXPECT_TRUE(client.read_to_end(&rest));
  EXPECT_THAT(rest, Not(HasSubstr("0\r\n\r\n")));
}

// ---- many

TEST_F(HttpServerTest, a_thousand_idle_connections_hold_nobody_up) {
  start();
  std::vector<std::unique_ptr<RawClient>> idle;
  for (int i = 0; i < 1000; ++i) {
    idle.push_back(std::make_unique<RawClient>(port()));
    ASSERT_TRUE(idle.back()->connected());
  }
  ASSERT_TRUE(eventually([&] { return server().stats().connections == 1000; }));
  expect_serving();
  for (const auto& client : idle) EXPECT_EQ(client->ask(get("/hello")).body, "hello");
  idle.clear();
  EXPECT_TRUE(eventually([&] { return server().stats().connections == 0; }));
}

// ---- tasks and the end

TEST_F(HttpServerTest, tasks_run_in_order_and_a_throwing_one_harms_nobody) {
  start();
  std::vector<int> order;
  for (int i = 0; i < 100; ++i) {
    server().post([&order, i] {
      order.push_back(i);
      if (i % 10 == 0) throw std::runtime_error("broken");
    });
  }
  on_server([] {});
  ASSERT_EQ(order.size(), 100u);
  EXPECT_TRUE(std::is_sorted(order.begin(), order.end()));
}

TEST_F(HttpServerTest, delayed_tasks_come_by_time) {
  start();
  std::promise<void> last;
  std::vector<int> order;
  on_server([&] {
    server().post_after(milliseconds(40), [&] {
      order.push_back(2);
      last.set_value();
    });
    server().post_after(milliseconds(5), [&] { order.push_back(1); });
  });
  last.get_future().wait();
  EXPECT_EQ(order, (std::vector<int>{1, 2}));
}

TEST_F(HttpServerTest, work_does_not_hold_up_the_server) {
  start();
  std::promise<void> release;
  std::promise<std::thread::id> worker;
  server().work({.client = "a", .run = [&](std::stop_token) {
                   release.get_future().wait();
                   worker.set_value(std::this_thread::get_id());
                 }});
  expect_serving();
  std::thread::id server_thread;
  on_server([&] { server_thread = std::this_thread::get_id(); });
  release.set_value();
  EXPECT_NE(worker.get_future().get(), server_thread);
}

TEST_F(HttpServerTest, work_beyond_what_may_wait_is_refused_on_the_servers_thread) {
  HttpOptions options;
  options.work_waiting_max = 0;
  start(options);
  std::promise<std::thread::id> refused;
  server().work({.client = "a",
                 .run = [](std::stop_token) { FAIL() << "nothing may wait"; },
                 .refused = [&] { refused.set_value(std::this_thread::get_id()); }});
  const std::thread::id where = refused.get_future().get();
  on_server([&] { EXPECT_EQ(std::this_thread::get_id(), where); });
}

TEST_F(HttpServerTest, the_servers_end_asks_running_work_to_stop) {
  start();
  std::promise<void> begun;
  server().work({.client = "a", .run = [&](std::stop_token stop) {
                   begun.set_value();
                   while (!stop.stop_requested()) std::this_thread::yield();
                 }});
  begun.get_future().wait();
  server().stop();
  http_->join();
}

TEST_F(HttpServerTest, stop_ends_idle_connections_at_once_and_lets_answers_finish) {
  start();
  RawClient idle(port()), streaming(port()), waiting(port());
  EXPECT_EQ(idle.ask(get("/hello")).status, 200);
  ASSERT_TRUE(streaming.send(get("/stream")));
  const auto stream = kept_.at(0);
  ASSERT_TRUE(waiting.send(get("/later")));
  const auto later = kept_.at(1);
  server().stop(milliseconds(60'000));
  EXPECT_TRUE(idle.read_to_end());
  EXPECT_FALSE(RawClient(port()).connected());
  on_server([&] {
    stream->send_event("last");
    stream->end();
  });
  EXPECT_THAT(streaming.read_until("0\r\n\r\n"), HasSubstr("data: last"));
  EXPECT_TRUE(streaming.read_to_end());
  streaming.close();
  server().post([&] { later->respond({.body = "late"}); });
  const RawResponse response = waiting.read_response();
  EXPECT_EQ(response.body, "late");
  EXPECT_EQ(response.headers.at("connection"), "close");
  waiting.close();
  http_->join();
}

TEST_F(HttpServerTest, who_has_connected_and_has_no_answer_yet_is_told_and_not_reset) {
  start();
  RawClient silent(port()), halfway(port());
  ASSERT_TRUE(halfway.send("GET /hello HTTP/1.1\r\n"));
  // Still in the kernel's queue: the server's thread is kept busy while they connect and ask.
  std::optional<RawClient> queued;
  on_server([&] {
    queued.emplace(port());
    EXPECT_TRUE(queued->send(get("/hello")));
    server().stop(milliseconds(60'000));
  });
  for (RawClient* client : {&silent, &halfway, &*queued}) {
    const RawResponse response = client->read_response();
    EXPECT_EQ(response.status, 503) << (client == &silent    ? "silent"
                                        : client == &halfway ? "halfway"
                                                             : "queued");
    EXPECT_THAT(response.body, HasSubstr("the server is shutting down"));
    EXPECT_TRUE(client->read_to_end());
    client->close();
  }
  http_->join();
}

TEST_F(HttpServerTest, stop_waits_no_longer_than_its_grace_and_tells_those_it_cuts) {
  start();
  RawClient client(port());
  ASSERT_TRUE(client.send(get("/gone")));
  ASSERT_TRUE(kept_.at(0));
  server().stop(milliseconds(30));
  http_->join();
  EXPECT_TRUE(gone());
  EXPECT_TRUE(client.read_to_end());
}

TEST(HttpServer, a_port_in_use_is_a_load_error_that_names_it) {
  RunningServer first;
  const SteadyClock clock;
  HttpOptions options;
  options.port = first.port();
  try {
    HttpServer second(options, clock);
    FAIL() << "two servers on one port";
  } catch (const LoadError& e) {
    EXPECT_THAT(e.what(), HasSubstr("127.0.0.1:" + std::to_string(first.port())));
    EXPECT_THAT(e.what(), HasSubstr("in use"));
  }
  options.address = "no.such.address";
  EXPECT_THROW(HttpServer(options, clock), LoadError);
}

}  // namespace
}  // namespace atl::http
